"""Run an experiment in a process of its own, with memory, threads and start-up of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import bench
from bench.perf.experiment import Experiment, Record, Setting


class ExperimentFailed(RuntimeError):
    """An experiment ended without a result; what went wrong is on standard error."""


def run_apart(experiment: Experiment, setting: Setting, out: Path) -> Record:
    """Run it, and give what it wrote to `out/<name>.json`.

    Raises:
        ExperimentFailed: it wrote nothing.
    """
    flags = [f"--{flag}" for flag in ("quick", "full") if getattr(setting, flag)]
    arguments = [experiment.name, "--out", str(out), "--device", setting.device, *flags]
    threads = {} if experiment.threads is None else {"OMP_NUM_THREADS": str(experiment.threads)}
    command = [sys.executable, "-m", "bench.perf", *arguments]
    done = subprocess.run(command, env=with_suite_on_path(threads), check=False)
    if done.returncode:
        raise ExperimentFailed(f"{experiment.name}: ended with {done.returncode}")
    return Record.read(out / f"{experiment.name}.json")


def with_suite_on_path(more: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of a process that is to import this very suite, installed or not."""
    paths = [str(Path(bench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
