"""Small cells from end to end: one round of two clients on the embedded digits."""

from __future__ import annotations

import pytest

from bench.cell import run_cell
from bench.config import RunConfig
from bench.execute import run_matrix

EXACT = (
    "trainable_parameters",
    "payload_bytes",
    "bytes_up",
    "train_flops",
    "total_flops",
    "peak_tensor_bytes",
)


def small(method):
    data = {"max_train": 64, "max_test": 64}
    return RunConfig.read({"method": method, "data": data, "clients": 2, "rounds": 1, "device": "cpu"})


@pytest.mark.parametrize("method", ["flora", "linear_probe"])
def test_cell(benchmark, method):
    result = benchmark.pedantic(run_cell, args=(small(method),), rounds=3)
    benchmark.extra_info.update({name: result["summary"][name] for name in EXACT})
    assert result["status"] == "complete"


def test_cell_kept_on_disk(benchmark, tmp_path):
    """With the warm-up before it, and all that lies beside its result."""
    cells = [small("linear_probe")]
    (outcome,) = benchmark.pedantic(lambda: list(run_matrix(cells, tmp_path, fresh=True)), rounds=3)
    assert outcome.status == "ran"
