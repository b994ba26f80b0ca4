"""Benchmarks of the hot paths on the embedded model: they time and never decide (`tox run -e perf`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.catalogue import load_method, method_modules
from bench.config import Model, RunConfig
from bench.models import load_model
from bench.splits import make_split
from flora import client, payload
from flora.aggregation import WeightedMean
from flora.clip import ENCODED
from flora.features import Batch
from flora.method import Method
from flora.prompts import Prompts

# one of PEFT's adapters stands for them all
TRAINED = sorted(name for name in method_modules() if name != "zero_shot" and not name.startswith("peft:"))
TRAINED.append("peft:dora")


def make_method(name: str) -> Method:
    model = load_model(Model(), "cpu")
    prompts = Prompts.tokenize([f"a photo of the number {digit}." for digit in range(10)], model.tokenize)
    cls = load_method(name)
    return cls(model.clip, prompts, cls.Options(name=name), torch.Generator().manual_seed(0))


def make_batch(method: Method, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % 10
    if method.trains_vision:
        return Batch(torch.randn(size, 3, 32, 32, generator=generator), labels)
    return Batch(torch.randn(size, method.clip.dim, generator=generator), labels, ENCODED)


@pytest.mark.parametrize("name", TRAINED)
def test_local_step(benchmark, name):
    method = make_method(name)
    batch = make_batch(method)
    state = client.start(method, method.trainable, RunConfig().training, None)
    benchmark(client.step, state, batch)
    assert state.steps > 0


@pytest.mark.parametrize("name", ["flora", "full_finetune"])
def test_payload_there_and_back(benchmark, name):
    trainable = make_method(name).trainable
    decoded = benchmark(lambda: payload.decode(payload.encode(trainable), like=trainable))
    assert decoded.keys() == trainable.keys()


@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_aggregation(benchmark, clients):
    tensors = {name: p.detach() for name, p in make_method("flora").trainable.items()}

    def aggregate():
        mean = WeightedMean()
        for _ in range(clients):
            mean.add({name: tensor.clone() for name, tensor in tensors.items()}, 1.0)
        return mean.result()

    assert benchmark(aggregate).keys() == tensors.keys()


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pathological", "quantity"])
def test_split(benchmark, name):
    config = RunConfig.read({"split": name})
    labels = np.arange(50_000) % 100
    split = benchmark(make_split, config.split, labels, 100, 0)
    assert sum(split.client_sizes) == len(labels)
