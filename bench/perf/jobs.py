"""The job that most experiments share, and the ways to run it: in this process, or in one of its own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from bench.caching import FOLDER_VARIABLE
from bench.cell import run_cell
from bench.config import RunConfig, label
from bench.perf.apart import with_suite_on_path
from bench.perf.experiment import Setting
from flora.cache import FeatureCache
from flora.events import Listener, RoundRecord

logger = logging.getLogger(__name__)

# 4 clients x 32 images of 10 classes, 64 test images; all else is FLoRA's published preset.
_JOB = {"task": "synthetic:10x128x64", "model": "ViT-B-32:random", "clients": 4, "batch_size": 32}
_QUICK_JOB = {"task": "synthetic:4x16x8", "model": "tiny", "clients": 2, "batch_size": 8}


def job(setting: Setting, **fields: Any) -> dict[str, Any]:
    """Give the fields of the shared job, some of them replaced."""
    return {**(_QUICK_JOB if setting.quick else _JOB), "device": setting.device, **fields}


def run(values: dict[str, Any], *listeners: Listener, cache: FeatureCache | None = None) -> dict[str, Any]:
    """Run a cell in this process, with no features from before but those in `cache`; gives its result."""
    config = RunConfig.read(values)
    logger.info("%s, %d clients, %d rounds", label(config), config.clients, config.rounds)
    return run_cell(config, listeners, cache=cache)


def warm_up(setting: Setting) -> None:
    """Have the libraries loaded and set up, so that nothing measured is the first to do so."""
    run({**_QUICK_JOB, "method": "full_finetune", "rounds": 1, "device": setting.device})


@dataclass(frozen=True)
class Apart:
    """A cell that ran in a process of its own.

    Attributes:
        result: what its `run.json` holds.
        seconds: from the start of the process to its end.
    """

    result: dict[str, Any]
    seconds: float


def run_apart(values: dict[str, Any]) -> Apart:
    """Run a cell by `flora-bench run` in a process of its own, with no features kept from before.

    Raises:
        RuntimeError: it did not come to a result; its reason is on standard error.
    """
    logger.info("in a process of its own: %s", label(RunConfig.read(values)))
    with TemporaryDirectory(prefix="flora-perf-") as folder:
        matrix = Path(folder, "matrix.yaml")
        matrix.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "bench", "run", str(matrix), "--results", folder, "--json"]
        environment = with_suite_on_path({FOLDER_VARIABLE: str(Path(folder, "cache"))})
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"a run of its own ended with {done.returncode}: {json.dumps(values)}")
        (path,) = Path(folder).glob("*/*/*/run.json")
        return Apart(json.loads(path.read_text(encoding="utf-8")), seconds)


def round_seconds(result: dict[str, Any]) -> float:
    """Mean seconds of a round: send, train, receive, aggregate, evaluate."""
    return float(result["summary"]["round_seconds"])


def own_memory_bytes(result: Mapping[str, Any]) -> int:
    """Peak of the process over what was resident before the run began."""
    summary = result["summary"]
    return int(summary["peak_memory_bytes"] - summary["resident_at_start_bytes"])


def extraction_seconds(result: dict[str, Any]) -> float:
    """What computing the run's features took, in this run or whenever that was."""
    return float(result["summary"]["extraction_seconds"])


def phase_seconds(*results: dict[str, Any]) -> dict[str, float]:
    """Mean seconds of each phase over the rounds of training."""
    rounds = [record["seconds"] for result in results for record in result["rounds"][1:]]
    return {name: fmean(seconds.get(name, 0.0) for seconds in rounds) for name in rounds[0]}


def peak_memory_bytes(result: dict[str, Any]) -> int:
    """Peak of the GPU where there was one, else of the process."""
    summary = result["summary"]
    return int(summary["peak_gpu_memory_bytes"] or summary["peak_memory_bytes"])


@dataclass
class RoundWalls(Listener):
    """Wall time of every round of training, from the end of the round before.

    Attributes:
        seconds: a round each.
    """

    seconds: list[float] = field(default_factory=list)
    _border: float = 0.0

    def round_ended(self, record: RoundRecord) -> None:
        """Close the round; round 0 is the evaluation before training."""
        now = time.perf_counter()
        if record.round > 0:
            self.seconds.append(now - self._border)
        self.between(record)
        self._border = time.perf_counter()

    def between(self, record: RoundRecord) -> None:
        """Do here what is to be no part of a round."""


def walls_without(result: dict[str, Any], walls: RoundWalls, *phases: str) -> list[float]:
    """Wall time of every round of training less what these phases took."""
    return [
        wall - sum(record["seconds"].get(phase, 0.0) for phase in phases)
        for wall, record in zip(walls.seconds, result["rounds"][1:], strict=True)
    ]
