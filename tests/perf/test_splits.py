"""50,000 samples divided among 100 clients."""

from __future__ import annotations

import numpy as np
import pytest

from bench.config import RunConfig
from bench.splits import make_split

LABELS = np.arange(50_000) % 100
CLIENTS = 100


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pathological", "quantity"])
def test_split(benchmark, name):
    spec = RunConfig.read({"split": name}).split
    split = benchmark(make_split, spec, LABELS, CLIENTS, 0)
    assert sum(split.client_sizes) == len(LABELS)


def test_split_of_few_shots(benchmark):
    spec = RunConfig.read({"split": {"name": "iid", "shots": 4, "overlap": True}}).split
    split = benchmark(make_split, spec, LABELS, CLIENTS, 0)
    assert set(split.client_sizes) == {4 * 100}
