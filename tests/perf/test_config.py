"""Configurations: one run's, and a preset with all of its cells."""

from __future__ import annotations

import pytest

from bench.config import RunConfig
from bench.matrix import Matrix

VALUES = {
    "task": "digits",
    "method": {"name": "flora", "rank": 8, "places": ["text.out", "text.head"]},
    "split": {"name": "dirichlet", "beta": 0.1, "shots": 4},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "codec": "int8",
    "device": "cpu",
}


def test_config(benchmark):
    config = benchmark(RunConfig.read, VALUES)
    assert config.method.rank == 8


def test_hash(benchmark):
    config = RunConfig.read(VALUES)
    # a configuration keeps its own hash once it is known
    assert benchmark(lambda: config.with_seed(0).hash) == config.hash


@pytest.mark.parametrize("preset", ["quick", "speed"])
def test_matrix(benchmark, preset):
    cells = benchmark(lambda: Matrix.read(preset).cells())
    assert len(cells) == Matrix.read(preset).count()
