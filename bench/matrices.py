"""What a results folder was asked for: one file a matrix, for `flora-bench status` to know what is left."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import store
from bench.config import RunConfig, label, labels
from flora.errors import BadInput

MATRICES = "matrices"


def save_matrix(
    results: Path,
    cells: Sequence[RunConfig],
    left: Sequence[RunConfig] = (),
    predictions: Mapping[str, float] | None = None,
    command: Sequence[str] | None = None,
) -> Path | None:
    """Note which cells a folder is asked for, in `matrices/<hash over the cells' hashes>.json`.

    A matrix that is asked for again, or by two processes at once, has one file. No run fails for it.

    Args:
        results: the folder.
        cells: all that are asked for.
        left: those among them that are to run, though they may have a result: that does not count then.
        predictions: seconds by hash of the configuration; if not given, those kept in the folder.
        command: what was typed.

    Returns:
        the file; None if it could not be written.
    """
    by_hash = {cell.hash: cell for cell in cells}
    paths = {key: _path(cell, key) for key, cell in by_hash.items()}
    seconds = predicted_totals(results) if predictions is None else predictions
    names = _names(by_hash)
    again = set(map(id, left))  # a cell's hash takes long
    record = {
        "began": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "host": platform.node(),
        "pid": os.getpid(),
        "command": None if command is None else list(command),
        "cells": [
            {
                "hash": key,
                "path": path,
                "label": names[key],
                "predicted_seconds": seconds.get(key),
                "replaces": written(results / path) if id(by_hash[key]) in again else None,
            }
            for key, path in paths.items()
        ],
    }
    name = hashlib.sha256(" ".join(sorted(by_hash)).encode()).hexdigest()[:12]
    file = results / MATRICES / f"{name}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with store.replacing(file) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")
    except OSError:
        return None
    return file


def load_matrices(results: Path) -> dict[Path, dict[str, Any]]:
    """Read every matrix that a folder was asked for, the latest first; damaged files are left out.

    Returns:
        by file: `began`, UTC; `host` and `pid` of who asked; `command`, a list or null; `cells`, each with
        its `hash`, the `path` of its `run.json` within the folder, `label`, `predicted_seconds` or null, and
        `replaces`: when the result was written that the cell is to replace, in nanoseconds, or null.
    """
    files = [(written(file) or 0, file) for file in (results / MATRICES).glob("*.json")]
    read = {file: _read(file) for _, file in sorted(files, reverse=True)}
    return {file: matrix for file, matrix in read.items() if matrix is not None}


def predicted_totals(results: Path) -> dict[str, float]:
    """Give the seconds that `plan --save` foretold of runs, by hash of the configuration."""
    try:
        found = store.load_predictions(results)
    except BadInput:  # whoever needs the predictions says so; here they are a help
        return {}
    return {key: x["total_seconds"] for key, x in found.items() if x.get("total_seconds") is not None}


def _path(cell: RunConfig, key: str) -> str:
    config = {"task": cell.task, "method": {"name": cell.method.name}}
    return store.run_path("", config, key).as_posix()


def _names(cells: Mapping[str, RunConfig]) -> dict[str, str]:
    """Name cells as `labels` does; most need no comparing, which takes longest."""
    names = {key: label(cell) for key, cell in cells.items()}
    count = Counter(names.values())
    return names | labels([cell for key, cell in cells.items() if count[names[key]] > 1])


def written(file: Path) -> int | None:
    """Say when a file was written, in nanoseconds; None if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        whole = isinstance(found["began"], str) and all(
            isinstance(cell[name], str) for cell in found["cells"] for name in ("hash", "path", "label")
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return found if whole else None
