"""A client's step, of each method on the embedded model."""

from __future__ import annotations

import pytest
import torch

from bench.catalogue import method_modules
from bench.config import RunConfig
from flora import client
from flora.clip import ENCODED
from flora.features import Batch
from flora.method import Method
from tests.perf.made import make_method, random

# one of PEFT's adapters stands for them all
TRAINED = sorted(name for name in method_modules() if name != "zero_shot" and not name.startswith("peft:"))
TRAINED.append("peft:dora")

# no weight is moved by so small a rate: the thousandth step does what the first did
TRAINING = RunConfig.read({"optimizer": {"name": "adam", "lr": 1e-12}}).training


def make_batch(method: Method, size: int = 64) -> Batch:
    labels = torch.arange(size) % method.classes
    if method.trains_vision:
        return Batch(random(size, 3, 32, 32), labels)
    return Batch(random(size, method.clip.dim), labels, ENCODED)


@pytest.mark.parametrize("name", TRAINED)
def test_local_step(benchmark, name):
    method = make_method(name)
    state = client.start(method, method.trainable, TRAINING, None)
    benchmark.extra_info["trainable_parameters"] = sum(p.numel() for p in method.trainable.values())
    benchmark(client.step, state, make_batch(method))
    assert state.steps > 0
    assert state.losses.isfinite()
