"""Results of several folders put into one: whole runs, each copied whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from bench import store
from bench.cell_log import LOG
from bench.execute import forget_attempts
from bench.locks import locked
from bench.standing import any_cells
from flora.errors import BadInput

_DETERMINISTIC = (
    "accuracy",
    "best_accuracy",
    "zero_shot_accuracy",
    "bytes_up",
    "bytes_down",
    "payload_bytes",
)
_OF_ROUNDS = ("accuracy", "loss", "bytes_up", "bytes_down")


@dataclass(frozen=True)
class Merged:
    """What became of one run.

    Attributes:
        path: of its `run.json`, in the folder that it is from.
        status: "copied"; "kept", as the same result is there; "differs" from the one there, which stays;
            "replaced" it; "skipped" as it cannot be used.
        reason: why it differs or is skipped.
    """

    path: Path
    status: Literal["copied", "kept", "differs", "replaced", "skipped"]
    reason: str = ""


def figures(run: Mapping[str, Any]) -> dict[str, Any]:
    """Give the figures of a result that a second run repeats exactly: accuracies, losses and bytes."""
    summary = {name: run["summary"].get(name) for name in _DETERMINISTIC}
    return {
        **summary,
        **{f"round {x['round']} {name}": x.get(name) for x in run["rounds"] for name in _OF_ROUNDS},
    }


def merge(folders: Sequence[Path], into: Path, newest: bool = False) -> Iterator[Merged]:
    """Copy the runs of folders into one, with all that lies beside them; nothing is changed on the way.

    Args:
        folders: of results, whose runs are taken in this order.
        into: made if need be; its own runs come first.
        newest: where two results of one run differ, keep the one written last instead of the first.

    Yields:
        what became of each run.

    Raises:
        BadInput: a folder holds no results, or is `into` itself; or `into` cannot be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise store.nothing_in(folder)
        if folder.resolve() == into.resolve():
            raise BadInput(f"--into: {str(into)!r} is one of the folders to merge; name another")
    found = {folder: sorted(store.run_files(folder)) for folder in folders}
    for folder, paths in found.items():
        if not paths and not any_cells(folder)["cells"]:
            raise store.nothing_in(folder)
    predictions: dict[str, dict[str, Any]] = {}
    for folder in (into, *folders):  # what is there first stays, as with runs
        predictions = {**store.load_predictions(folder), **predictions}
    store.check_writable(into)
    for folder, paths in found.items():
        for path in paths:
            yield _merge(path, into / path.relative_to(folder), newest)
        for cell in any_cells(folder)["cells"]:
            if not (path := folder / cell["path"]).exists():
                yield Merged(path.parent, "skipped", "has no result")
    if predictions:
        store.save_predictions(into, predictions)


def _merge(source: Path, target: Path, newest: bool) -> Merged:
    try:
        run = store.load_run(source)
        _check_files(source, run)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            return _merge_alone(source, target, run, newest)
    except Timeout:
        return Merged(source, "skipped", f"{target.parent} is being run")
    except BadInput as error:
        return Merged(source, "skipped", str(error).removeprefix(f"{source}: "))
    except OSError as error:
        raise BadInput(f"--into: cannot write {str(target)!r} ({error.strerror or error})") from error


def _merge_alone(source: Path, target: Path, run: Mapping[str, Any], newest: bool) -> Merged:
    """Take over a run into a folder whose lock is held."""
    store.recover(target.parent)
    there = store.stored(target)
    if there is None:
        _copy(source, target, run)
        return Merged(source, "copied")
    if not (reason := _difference(there, run)):
        return Merged(source, "kept")
    if newest and source.stat().st_mtime_ns > target.stat().st_mtime_ns:
        _copy(source, target, run)
        return Merged(source, "replaced", reason)
    return Merged(source, "differs", reason)


def _check_files(path: Path, run: Mapping[str, Any]) -> None:
    """See that what lies beside a run is its own; what was not kept is not missed."""
    try:
        damaged = [name for name, what in store.unlike_saved(path, run).items() if what == "damaged"]
    except OSError as error:
        raise _unreadable(path, error) from error
    if damaged:
        raise BadInput(f"{path}: {damaged[0]} is not what it was saved with")


def _copy(source: Path, target: Path, run: Mapping[str, Any]) -> None:
    """Copy a run and the files it names; its own bytes, whatever its schema."""
    with store.staged(target) as staged:
        for name in store.side_files(run):
            if source.with_name(name).exists():
                _copy_file(source.with_name(name), staged.with_name(name))
        if source.with_name(LOG).exists():
            _copy_file(source.with_name(LOG), target.with_name(LOG))
        _copy_file(source, staged)
        forget_attempts(target.parent)  # from here on the result is safe, though not in its place


def _copy_file(source: Path, target: Path) -> None:
    """Copy what is in a file and its times; not its mode, as archives are often read-only."""
    try:
        content = source.open("rb")
    except OSError as error:
        raise _unreadable(source, error) from error
    with content, store.replacing(target) as temporary:
        with temporary.open("xb") as copy:
            shutil.copyfileobj(content, copy)
        times = os.fstat(content.fileno())
        os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"{error.filename or path}: cannot be read ({error.strerror or error})")


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say in what two results of one run differ; empty if they are the same but for times."""
    for part, then in one["definition"].items():
        now = other["definition"].get(part, "")
        if then and now and then != now and part != "hash":
            return f"made from another {part}"
    known, given = figures(one), figures(other)
    for name in {**known, **given}:
        if known.get(name) != given.get(name):
            return f"{name} is {json.dumps(given.get(name))} instead of {json.dumps(known.get(name))}"
    return ""
