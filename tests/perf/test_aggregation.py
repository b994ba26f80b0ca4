"""The server's mean over its clients."""

from __future__ import annotations

import pytest
import torch

from flora.aggregation import WeightedMean
from tests.perf.made import flora_tensors


def aggregate(uploads):
    mean = WeightedMean()
    for number, tensors in enumerate(uploads):
        # the first is kept and changed
        mean.add(tensors if number else {name: x.clone() for name, x in tensors.items()}, 1.0)
    return mean.result()


@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_aggregation(benchmark, clients):
    distinct = [flora_tensors(seed) for seed in range(10)]
    mean = benchmark(aggregate, distinct * (clients // len(distinct)))
    name = next(iter(mean))
    torch.testing.assert_close(mean[name], torch.stack([x[name] for x in distinct]).mean(dim=0))
