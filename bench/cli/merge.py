"""`flora-bench merge`: the results of several folders, such as those of shards, in one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.merging import Merged

EXIT_DIFFER = 1
_QUIET = ("copied", "kept")


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results.")],
    into: Annotated[Path, typer.Option(help="Folder to copy them to; made if need be.")],
    newest: Annotated[
        bool, typer.Option("--newest", help="Of two results of a run that differ, keep the later one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each run as JSON.")] = False,
) -> None:
    """Copy the runs of several folders into one; those that are there stay."""
    from bench.merging import merge as merged
    from bench.report.mixture import mixture
    from bench.store import load_results

    outcomes = []
    for outcome in _with_bar(merged(folders, into, newest)):
        outcomes.append(outcome)
        if outcome.status not in _QUIET:
            typer.echo(f"{outcome.path}: {outcome.status}: {outcome.reason}", err=True)
    count = Counter(outcome.status for outcome in outcomes)
    if as_json:
        records = [{"path": str(x.path), "status": x.status, "reason": x.reason or None} for x in outcomes]
        typer.echo(json.dumps(records, indent=1))
    else:
        typer.echo(f"{into}: {', '.join(f'{n:,} {status}' for status, n in count.items())}")
    if count["copied"] + count["kept"] + count["replaced"]:
        for line in mixture(load_results(into, on_damage=lambda _: None)):
            typer.echo(f"flora-bench: {line}", err=True)
    raise typer.Exit(EXIT_DIFFER if count["differs"] + count["skipped"] else 0)


def _with_bar(outcomes: Iterator[Merged]) -> Iterator[Merged]:
    """Pass outcomes on, counting them on a terminal."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(outcomes, "merging", console=Console(stderr=True), transient=True)
