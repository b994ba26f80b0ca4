"""A matrix of the methods with frozen towers: what cells share, they compute once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from bench.config import RunConfig
from bench.execute import run_matrix
from bench.matrix import Matrix
from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import extraction_seconds, job
from flora.cache import FeatureCache

METHODS = ("flora", "linear_probe", "attention_adapter", "clip_adapter", "prompt_tuning")
SPLITS = (
    {"name": "iid"},
    {"name": "dirichlet", "beta": 0.1},
    {"name": "pathological", "classes_per_client": 5},
)
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1)
ROUNDS = 3


def matrix(setting: Setting) -> Measured:
    """Run all cells with `acceleration: exact`, and of those with `none` a few by each method."""
    fields = _quick(setting) if setting.quick else _full(setting)
    cells = Matrix(**fields).cells()
    sampled = cells if setting.full else [cell for cell in cells if _in_sample(cell, fields)]
    unaccelerated = [_without_acceleration(cell) for cell in sampled]
    with TemporaryDirectory(prefix="flora-perf-") as folder:
        started = time.perf_counter()
        exact = _results(cells, Path(folder, "exact"), FeatureCache(Path(folder, "features")))
        exact_seconds = time.perf_counter() - started
        none = _results(unaccelerated, Path(folder, "none"))
    predicted = _predicted(exact, none)
    computed = [result["features"]["computed"] for result in exact]
    images = max(result["features"]["images"] for result in exact)
    return Measured(
        figures={
            "total_speedup": sum(predicted) / exact_seconds,
            "times_extracted": sum(computed) / images,
            "images": images,
            "cells": len(cells),
            "exact_total_seconds": exact_seconds,
            "none_total_seconds": sum(predicted),
            "none_cells_measured": len(none),
            "extraction_seconds": max(map(extraction_seconds, exact)),
            "exact_cell_seconds": _by_method(exact, [r["summary"]["total_seconds"] for r in exact]),
            "none_cell_seconds": _by_method(exact, predicted),
        },
        samples=1,
        notes=[
            "times extracted: images put through the image tower in any cell over images that there are",
            "exact: wall time of all cells, loading, checks and extraction included",
            f"none: {len(none)} cells were run, one of the fewest shots and one of some for each method; the "
            "seconds of a cell are on the straight line through these two, by the samples that its steps saw",
        ]
        if not setting.full
        else ["exact: wall time of all cells; none: sum of the cells' own times"],
        extrapolated=not setting.full,
    )


def _full(setting: Setting) -> dict[str, Any]:
    split = [{**one, "shots": list(SHOTS)} for one in SPLITS]
    fields = {"task": "synthetic:10x640x64", "method": list(METHODS), "split": split, "seed": list(SEEDS)}
    return job(setting, **fields, rounds=ROUNDS)


def _quick(setting: Setting) -> dict[str, Any]:
    split = [{"name": "iid", "shots": [1, 2]}]
    return job(setting, method=["linear_probe"], split=split, seed=[0], rounds=1)


def _in_sample(cell: RunConfig, fields: dict[str, Any]) -> bool:
    shots = fields["split"][0]["shots"]
    few, some = shots[0], shots[len(shots) // 2]
    return cell.split.name == "iid" and cell.split.shots in (few, some) and cell.seed.split == 0


def _without_acceleration(cell: RunConfig) -> RunConfig:
    return RunConfig.read({**cell.model_dump(), "acceleration": "none"})


def _results(
    cells: Sequence[RunConfig], folder: Path, cache: FeatureCache | None = None
) -> list[dict[str, Any]]:
    """Run cells and give what each left.

    Raises:
        RuntimeError: one has no result.
    """
    outcomes = list(run_matrix(cells, folder, cache=cache))
    if failed := [outcome for outcome in outcomes if not outcome.summary]:
        raise RuntimeError(f"{len(failed)} cells have no result, the first as {failed[0].reason}")
    return [json.loads(outcome.path.read_text(encoding="utf-8")) for outcome in outcomes]


def _predicted(exact: Sequence[dict[str, Any]], none: Sequence[dict[str, Any]]) -> list[float]:
    """What each cell takes unaccelerated: as measured, or on the line through what was of its method."""
    seconds = []
    for result in exact:
        own = sorted((_seen(r), _seconds(r)) for r in none if _method(r) == _method(result))
        (few, short), (many, long) = own[0], own[-1]
        slope = (long - short) / (many - few)
        measured = [_seconds(r) for r in none if _same_cell(r, result)]
        seconds.append(measured[0] if measured else short + slope * (_seen(result) - few))
    return seconds


def _same_cell(none: dict[str, Any], exact: dict[str, Any]) -> bool:
    return {**none["config"], "acceleration": "exact"} == exact["config"]


def _seen(result: dict[str, Any]) -> int:
    return sum(record["samples_seen"] for record in result["rounds"])


def _seconds(result: dict[str, Any]) -> float:
    return float(result["summary"]["total_seconds"])


def _method(result: dict[str, Any]) -> str:
    return str(result["config"]["method"]["name"])


def _by_method(results: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, float]:
    methods = list(map(_method, results))
    return {
        method: fmean(s for m, s in zip(methods, seconds, strict=True) if m == method)
        for method in dict.fromkeys(methods)
    }
