"""Every method through the harness on real images: it learns, as a whole, and touches nothing else."""

from pathlib import Path

import pytest
import torch

import bench.cell
from bench.catalogue import method_modules
from bench.config import RunConfig
from flora.clip import PLACES

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-mini"
TASKS = {
    "digits": "digits",
    "cifar10-mini": pytest.param(
        f"folder:{CIFAR}", marks=pytest.mark.skipif(not CIFAR.is_dir(), reason="no cifar10-mini here")
    ),
}
# What is not among the defaults or does not learn at their rate within two rounds, and the rate that does.
VARIANTS = ("peft:dora", "peft:vera", "peft:ia3", "peft:loha")
METHODS = {
    **{name: ({}, 1e-3) for name in method_modules() if ":" not in name and name != "zero_shot"},
    **{name: ({}, 1e-3) for name in VARIANTS},
    "linear_probe": ({}, 1e-2),
    "peft:vera": ({}, 1e-2),
    "peft:ia3": ({"places": ["text.key", "text.value", "vision.mlp"]}, 1e-2),
    "flora": ({"alpha": 4, "places": list(PLACES)}, 1e-3),
}


class Watched:
    """A method as the harness makes it, its frozen tensors remembered, its gradients looked at."""

    def __init__(self, method):
        self.method = method
        self.frozen = {n: p.detach().clone() for n, p in method.named_parameters() if not p.requires_grad}
        self.largest = dict.fromkeys(method.trainable, 0.0)
        for name, parameter in method.trainable.items():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self.note(name, p.grad))

    def note(self, name, gradient):
        self.largest[name] = max(self.largest[name], gradient.abs().max().item())


@pytest.fixture
def watched(monkeypatch):
    """Catch the method that the harness makes."""
    made = []
    make = bench.cell.make_method
    monkeypatch.setattr(
        bench.cell, "make_method", lambda *args: made.append(Watched(make(*args))) or made[0].method
    )
    return made


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
@pytest.mark.parametrize("name", METHODS)
def test_two_rounds_on_real_images(name, task, watched):
    options, lr = METHODS[name]
    fields = {
        "task": task,
        "method": {"name": name, **options},
        "rounds": 2,
        "clients": 2,
        "batch_size": 20,
        "optimizer": {"lr": lr, "weight_decay": 0.0},
        "data": {"max_train": 120, "max_test": 20},
        "device": "cpu",
    }
    result = bench.cell.run_cell(RunConfig.read(fields))
    losses = [record["loss"] for record in result["rounds"][1:]]
    assert losses[1] < losses[0]
    (seen,) = watched
    for tensor, largest in seen.largest.items():
        # attention is blind to a bias on all keys: what comes of it is rounding
        assert largest > (0 if tensor.endswith("k_proj.bias") else 1e-7), tensor
    parameters = dict(seen.method.named_parameters())
    for tensor, before in seen.frozen.items():
        assert torch.equal(parameters[tensor], before), tensor
    assert result["invariants"]["payload_closed_form"]["holds"]
