"""How far the cells of a matrix are, by what lies in their folders alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bench import store
from bench.checkpoints import FOLDER as CHECKPOINTS
from bench.checkpoints import newest_round
from bench.execute import FAILURE, read_failure
from bench.locks import LOCK, is_held
from bench.matrices import written
from bench.progress_file import PROGRESS, read_progress


@dataclass(frozen=True)
class Standing:
    """Where a cell of a matrix stands, by what is in its folder.

    Attributes:
        cell: as `load_matrices` gives it.
        kind: "done"; "running", a process holds its lock; "failed" since the matrix began; "partial", a
            process that is gone began it; else "left".
        finished: when its result was written, in seconds since the epoch; None if it has none.
        progress: as `read_progress` gives it, of the process that is on it or was.
        kept_round: the round after which its state was last kept; None if it was not.
        reason: why it failed.
    """

    cell: Mapping[str, Any]
    kind: Literal["done", "running", "failed", "partial", "left"]
    finished: float | None = None
    progress: Mapping[str, Any] | None = None
    kept_round: int | None = None
    reason: str = ""


def standings(results: Path, matrix: Mapping[str, Any]) -> list[Standing]:
    """Look where the cells of a matrix stand; no result is read for it.

    Args:
        results: the folder.
        matrix: as `load_matrices` or `any_cells` give it.
    """
    began = seconds_of(matrix["began"]) or 0.0
    return [_standing(results, cell, began) for cell in matrix["cells"]]


def any_cells(results: Path) -> dict[str, Any]:
    """Give what there is in a folder in the form of a matrix, for want of one."""
    folders = sorted(path.relative_to(results) for path in results.glob("*/*/*/") if is_cell(path))
    return {
        "began": None,
        "command": None,
        "cells": [
            {"hash": folder.name, "path": (folder / store.RUN).as_posix(), "label": folder.as_posix()}
            for folder in folders
        ],
    }


def seconds_of(moment: object) -> float | None:
    """Read a time as files hold it, in seconds since the epoch; None if it is no time."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None


_LEFT_BY_CELLS = (store.RUN, PROGRESS, FAILURE, LOCK, CHECKPOINTS)


def is_cell(folder: Path) -> bool:
    """Whether a folder holds anything that cells leave."""
    return not folder.name.startswith(".") and any((folder / name).exists() for name in _LEFT_BY_CELLS)


def is_running(folder: Path) -> bool:
    """Whether a process is on the cell of a folder; if its lock cannot be read, whether it shows progress."""
    try:
        return is_held(folder)
    except OSError:  # a folder of someone else's
        return os.path.exists(folder / PROGRESS)


def reason_in(failure: Mapping[str, Any]) -> str:
    """Say in one line why a cell has no result, of what `read_failure` gave."""
    return " ".join(str(failure.get("reason", "")).split()) or "reason unknown"


def _standing(results: Path, cell: Mapping[str, Any], began: float) -> Standing:
    folder = (results / cell["path"]).parent
    try:
        there = set(os.listdir(folder))
    except OSError:
        return Standing(cell, "left")
    kept_round = newest_round(folder) if CHECKPOINTS in there else None
    if LOCK in there and is_running(folder):
        return Standing(cell, "running", progress=read_progress(folder), kept_round=kept_round)
    finished = written(folder / store.RUN) if store.RUN in there else None
    if finished is not None and finished != cell.get("replaces"):
        return Standing(cell, "done", finished=finished / 1e9)
    if FAILURE in there and (written(folder / FAILURE) or 0) / 1e9 >= began:
        reason = reason_in(read_failure(folder) or {})
        return Standing(cell, "failed", reason=reason, kept_round=kept_round)
    progress = read_progress(folder) if PROGRESS in there else None
    kind: Literal["partial", "left"] = "left" if progress is None and kept_round is None else "partial"
    return Standing(cell, kind, progress=progress, kept_round=kept_round)
