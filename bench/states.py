"""Where each cell of a matrix stands in a folder of results, without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.checkpoints import latest_round
from bench.config import RunConfig
from bench.definition import Definition, Fingerprints, definition_of
from bench.execute import read_failure
from bench.index import definitions
from bench.standing import is_running, reason_in
from bench.store import load_run, run_path
from flora.errors import BadInput


@dataclass(frozen=True)
class State:
    """Where a cell stands.

    Attributes:
        kind: "done", its result is there and nothing has changed since; "running", a process is on it;
            "stale", its result was made from something else; "partial", it was interrupted and goes on from a
            checkpoint; "failed", it was tried; else "new".
        detail: what has changed, the round it goes on after, or why it failed. Of a result whose images or
            weights are not at hand, so that they cannot be compared, the reason.
    """

    kind: Literal["new", "done", "stale", "failed", "partial", "running"]
    detail: str = ""

    def __str__(self) -> str:
        between = " " if self.kind == "partial" else ": "
        return f"{self.kind}{between}{self.detail}" if self.detail else self.kind


def states(cells: Sequence[RunConfig], results: Path) -> list[State]:
    """Say where cells stand, in their order.

    Args:
        cells: of a matrix.
        results: the folder of results; it need not be there.

    Raises:
        BadInput: the result of one of the cells is damaged.
    """
    damaged: list[BadInput] = []  # such a result is looked at when it is a cell's own
    stored = definitions(results, on_damage=damaged.append)
    seen: Fingerprints = {}
    return [_state(config, _path(config, results), stored, seen) for config in cells]


def _state(
    config: RunConfig, path: Path, stored: Mapping[Path, Mapping[str, str]], seen: Fingerprints
) -> State:
    folder = path.parent
    kept = stored.get(path)
    if kept is None and not folder.is_dir():
        return State("new")
    if kept is None and path.exists():  # damaged, or written since
        kept = load_run(path)["definition"]
    try:
        today = definition_of(config, seen)
    except BadInput as error:
        there = State("new" if kept is None else "done", f"not compared, {error}")
        return State("running") if is_running(folder) else there
    if kept is not None and Definition.read(kept) == today:
        return State("done")
    if is_running(folder):
        return State("running")
    if kept is not None:
        return State("stale", "; ".join(today.changes(Definition.read(kept), config)))
    return _left_over(folder, today)


def _left_over(folder: Path, today: Definition) -> State:
    """Say what is there of a cell without a result."""
    if (at := latest_round(folder, today.hash)) is not None:
        return State("partial", f"at round {at}")
    failure = read_failure(folder)
    if failure is None or failure.get("definition") != today.hash:
        return State("new")
    return State("failed", reason_in(failure))


def _path(config: RunConfig, results: Path) -> Path:
    return run_path(results, {"task": config.task, "method": {"name": config.method.name}}, config.hash)
