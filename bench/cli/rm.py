"""`flora-bench rm`: remove stored runs, and what is left of runs that failed or were interrupted."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.results import Where
from flora.errors import BadInput, nearest

STATES = ("done", "stale", "failed", "partial", "left")
EXIT_NOT_REMOVED = 1
_HASH = re.compile("[0-9a-f]{12}")
# How many folders are named before it is asked.
_NAMED = 5


def rm(
    target: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run's folder, or one of results.")],
    where: Where = None,
    state: Annotated[
        str | None, typer.Option(help=f"Only runs that are {', '.join(STATES[:-1])} or {STATES[-1]}.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the folders of runs, with all that is in them."""
    if state is not None and state not in STATES:
        raise BadInput(f"--state: there is no {state!r}{nearest(state, STATES)}")
    folders = _chosen(target, where, state)
    if not folders:
        typer.echo(f"{target}: no run is such; nothing is removed")
        return
    _refuse_running(folders)
    if not yes:
        _ask(folders)
    for folder in folders:
        _remove(folder)
    typer.echo(f"{target}: {_count(folders)} removed")


def _chosen(target: Path, where: Sequence[str] | None, state: str | None) -> list[Path]:
    """Find the folders to remove, none of them outside of `target`."""
    from bench.standing import any_cells, standings
    from bench.store import RUN

    if target.name == RUN and target.is_file():
        target = target.parent
    if not target.is_dir():
        raise BadInput(f"rm: {str(target)!r} is no folder; name a run's, or one of results")
    if _is_run(target):
        if where or state:
            raise BadInput(
                "rm: --where and --state choose among runs; name the folder of results that they are in"
            )
        if target.is_symlink():
            raise BadInput(f"rm: {str(target)!r} is a link; name the folder itself")
        return [target]
    try:
        cells = [x for x in any_cells(target)["cells"] if _is_run((target / x["path"]).parent)]
    except OSError as error:
        raise BadInput(f"rm: {error.filename!r} cannot be read ({error.strerror})") from error
    if not cells:
        raise BadInput(f"rm: {str(target)!r} holds no <task>/<method>/<hash>, and is no such folder itself")
    found = {
        (target / x.cell["path"]).parent: x.kind for x in standings(target, {"began": None, "cells": cells})
    }
    folders = [folder for folder in found if _is_below(folder, target)]
    if where:
        from bench.cli.results import read
        from bench.selection import selected

        runs = read(target)
        met = {Path(path).parent for path in runs[selected(runs, where)]["path"]}
        folders = [folder for folder in folders if folder in met]
    if state == "stale":
        return _stale([folder for folder in folders if found[folder] == "done"], target)
    return [folder for folder in folders if state is None or found[folder] == state]


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it goes by a hash, and holds what runs leave."""
    from bench.standing import is_cell

    return bool(_HASH.fullmatch(folder.absolute().name)) and is_cell(folder)


def _is_below(folder: Path, results: Path) -> bool:
    """Whether it is reached without a link, which may lead anywhere."""
    if folder.resolve() == results.resolve() / folder.relative_to(results):
        return True
    typer.echo(f"flora-bench: {folder}: is behind a link, and stays", err=True)
    return False


def _stale(folders: Sequence[Path], results: Path) -> list[Path]:
    """Keep those whose result was made from something else than its cell is now."""
    from bench.config import RunConfig
    from bench.states import states
    from bench.store import RUN, load_run

    stale = []
    for folder in folders:
        try:
            cell = RunConfig.read(load_run(folder / RUN)["config"])
        except BadInput as error:
            typer.echo(f"flora-bench: {folder}: not compared, {error}", err=True)
            continue
        (found,) = states([cell], results)
        if found.kind == "stale":
            stale.append(folder)
    return stale


def _refuse_running(folders: Sequence[Path]) -> None:
    from bench.standing import is_running

    for folder in folders:
        if is_running(folder):
            raise BadInput(f"rm: {str(folder)!r} is being run; stop that first, or choose among the others")


def _ask(folders: Sequence[Path]) -> None:
    if not sys.stdin.isatty():
        raise BadInput(
            f"rm: would remove {_count(folders)}, and there is no terminal to ask; confirm with --yes"
        )
    for folder in folders[:_NAMED]:
        typer.echo(str(folder), err=True)
    if len(folders) > _NAMED:
        typer.echo(f"... and {len(folders) - _NAMED:,} more", err=True)
    if not typer.confirm(f"Remove {_count(folders)}?", err=True):
        raise typer.Exit(EXIT_NOT_REMOVED)


def _count(folders: Sequence[Path]) -> str:
    return f"{len(folders):,} run{'s' * (len(folders) != 1)}"


def _remove(folder: Path) -> None:
    """Remove a run; what makes it a result first, so that none is ever half there."""
    from filelock import Timeout

    from bench.locks import LOCK, locked
    from bench.store import RUN

    try:
        with locked(folder):
            (folder / RUN).unlink(missing_ok=True)
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        if not any(folder.iterdir()):  # else a process has begun the cell anew
            folder.rmdir()
    except Timeout as error:
        raise BadInput(f"rm: {str(folder)!r} is being run now, and stays") from error
    except OSError as error:
        raise BadInput(f"rm: cannot remove {str(folder)!r} ({error.strerror or error})") from error
