"""Matrices of many small cells: what the harness adds to each, and how soon commands answer on results."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench import store
from bench.config import RunConfig
from bench.definition import Fingerprints, definition_of
from bench.execute import InProcess, run_matrix
from bench.matrices import save_matrix
from bench.matrix import Matrix
from bench.perf.apart import with_suite_on_path
from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import job
from flora.cache import FeatureCache

logger = logging.getLogger(__name__)

ROUND = (*store.ROUND_WORK, "evaluate")
"""Phases of a round that are its own work; counting and checking are overhead."""

RATES = 100
"""Learning rates of the stored matrix: its cells differ in more than their seed."""


def cells(setting: Setting) -> Measured:
    """Run cells of one round that differ in their seed, one after another in this process."""
    count = 3 if setting.quick else 1000 if setting.full else 100
    logger.info("%d cells of one round", count)
    matrix = Matrix(**_fields(setting, seed=list(range(count)))).cells()
    with TemporaryDirectory(prefix="flora-perf-") as folder:
        started = time.perf_counter()
        results = _run(matrix, Path(folder))
        wall_seconds = time.perf_counter() - started
    round_seconds = sum(map(_round_seconds, results))
    features_seconds = sum(result["summary"]["features_seconds"] for result in results)
    inside_seconds = sum(result["summary"]["total_seconds"] for result in results)
    return Measured(
        figures={
            "overhead_seconds_per_cell": (wall_seconds - round_seconds - features_seconds) / count,
            "wall_seconds_per_cell": wall_seconds / count,
            "round_seconds_per_cell": round_seconds / count,
            "features_seconds_per_cell": features_seconds / count,
            "outside_of_cells_seconds_per_cell": (wall_seconds - inside_seconds) / count,
            "cells": count,
            "wall_seconds": wall_seconds,
        },
        samples=count,
        notes=[
            "wall: from the first check to the last result in its place, the warm-up of libraries included",
            "overhead: wall less the phases of rounds, from sending to evaluation and that before training "
            "included, and less features",
            "outside of cells: wall less what the cells say they took: checks, warm-up, writing results",
        ],
    )


def stored(setting: Setting) -> Measured:
    """Store many results, and time commands on them, each from the start of its process to its end."""
    count, repeats = (50, 1) if setting.quick else (10_000, 3)
    rates = min(RATES, count // 10)
    lr = [round(0.001 * (1 + number), 4) for number in range(rates)]
    fields = _fields(setting, optimizer={"name": "adam", "lr": lr}, seed=list(range(count // rates)))
    with TemporaryDirectory(prefix="flora-perf-") as name:
        folder = Path(name, "results")
        logger.info("storing %d results", count)
        matrix = Matrix(**fields).cells()
        one = Path(name, "one")
        _run(matrix[:1], one)
        _store(matrix, one / "results", folder)
        file = Path(name, "matrix.yaml")
        file.write_text(json.dumps(fields), encoding="utf-8")  # JSON is YAML
        plan = ("plan", str(file), "--results")
        first_cell = ("--set", "seed=0", "--set", f"optimizer.lr={lr[0]}")
        commands: dict[str, Sequence[str]] = {
            "results": ("results", str(folder)),
            "plan": (*plan, str(folder)),
            "status": ("status", str(folder)),
            "plan_of_one": (*plan, str(one / "results"), *first_cell),
        }
        first_seconds = _command_seconds(commands["results"])
        seconds = {
            f"{command}_seconds": median(_command_seconds(arguments) for _ in range(repeats))
            for command, arguments in commands.items()
        }
    return Measured(
        figures={**seconds, "first_results_seconds": first_seconds, "results": count},
        samples=repeats,
        notes=[
            "whole processes, start-up and printing included; `plan` of the matrix of all that is stored",
            "the first call of `results` reads every file and writes the index, which later calls read",
            "plan of one: of a single cell, which is start-up, libraries and the versions of the code",
            "stored: copies of one real result under the configurations and definitions of other cells",
        ],
    )


def _fields(setting: Setting, **more: Any) -> dict[str, Any]:
    return job(setting, task="digits", model="tiny", method="linear_probe", rounds=1, **more)


def _run(matrix: Sequence[RunConfig], folder: Path) -> list[dict[str, Any]]:
    """Run cells in `folder/results`, and read what each left.

    Raises:
        RuntimeError: one has no result.
    """
    cache = FeatureCache(folder / "features")
    outcomes = list(run_matrix(matrix, folder / "results", cache=cache, executor=InProcess()))
    if failed := [outcome for outcome in outcomes if outcome.status != "ran"]:
        raise RuntimeError(f"{len(failed)} cells have no result, the first as {failed[0].reason}")
    return [store.load_run(outcome.path) for outcome in outcomes]


def _round_seconds(result: Mapping[str, Any]) -> float:
    return sum(record["seconds"].get(phase, 0.0) for record in result["rounds"] for phase in ROUND)


def _store(matrix: Sequence[RunConfig], source: Path, results: Path) -> None:
    """Store the result of the first cell as that of every cell, each with what would be its own.

    Args:
        matrix: the cells.
        source: folder that the first has run in.
        results: folder to fill.
    """
    real = _path(matrix[0], source)
    result = store.load_run(real)
    seen: Fingerprints = {}
    for config in matrix:
        own = {
            "config": config.model_dump(mode="json"),
            "config_hash": config.hash,
            "definition": definition_of(config, seen).to_dict(),
        }
        path = _path(config, results)
        path.parent.mkdir(parents=True)
        for name in store.side_files(result):
            shutil.copyfile(real.with_name(name), path.with_name(name))
        # not `save_run`, which waits for the disk each time
        path.write_text(json.dumps({**result, **own}, indent=1), encoding="utf-8")
    save_matrix(results, matrix)


def _path(config: RunConfig, results: Path) -> Path:
    return store.run_path(results, config.model_dump(mode="json"), config.hash)


def _command_seconds(arguments: Sequence[str]) -> float:
    """Run a command in a process of its own.

    Raises:
        RuntimeError: it failed; its reason is on standard error.
    """
    command = [sys.executable, "-m", "bench", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, env=with_suite_on_path(), stdout=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"flora-bench {arguments[0]}: ended with {done.returncode}")
    return seconds
