"""The command line, from its start to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["list", "methods"]], ids=" ".join)
def test_start(benchmark, command):
    started = [sys.executable, "-m", "bench", *command]
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
    done = benchmark.pedantic(subprocess.run, args=(started,), kwargs=settings, rounds=3)
    assert done.stdout
