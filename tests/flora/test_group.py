"""Many clients at once, held against one after another."""

import pytest
import torch

from flora.settings import Training
from tests.flora import toy

# Two to nine samples: with batches of four, one step to three, the last of one to four samples.
SHARES = [torch.arange(0, 18, 2), torch.arange(1, 5), torch.arange(5, 16, 2), torch.tensor([18, 20])]
OPTIMIZERS = {
    "keep": {"name": "adam", "lr": 1e-2, "state": "keep"},
    "reset": {"name": "adam", "lr": 1e-2, "state": "reset"},
    "adamw": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1},
    "momentum": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "state": "keep"},
    "plain": {"name": "sgd", "lr": 1e-2, "weight_decay": 0.1},
}


def run(options, at_once, training=toy.TRAINING, dtype=torch.float64, rounds=3, tampered=None, **more):
    server = toy.federation(
        toy.method(options, dtype=dtype),
        training,
        at_once=at_once,
        shares=SHARES,
        kept=more.pop("kept", None),
        **more,
    )
    if tampered:
        server.runner = toy.Tampered(server.runner, tampered)
    return server, list(server.rounds(rounds))


def assert_same(options, at_once, tolerance=1e-9, **more):
    plain, expected = run(options, 1, **more)
    grouped, records = run(options, at_once, **more)
    assert [r.accuracy for r in records] == [r.accuracy for r in expected]
    assert [(r.clients, r.refused, r.samples_seen) for r in records] == [
        (r.clients, r.refused, r.samples_seen) for r in expected
    ]
    losses = [r.loss for r in expected[1:]]
    assert [r.loss for r in records[1:]] == pytest.approx(losses, rel=tolerance)
    for name, tensor in plain.state.items():
        scale = tensor.abs().max().item() or 1.0
        assert (grouped.state[name] - tensor).abs().max().item() <= tolerance * scale, name


# Every method, grouped in pairs, is held against the plain way in tests/bench/test_exactness.py.
FEW = [
    {"name": "flora"},
    {"name": "flora", "places": ("vision.out",), "loss": "cross_entropy"},
    {"name": "linear_probe"},
    {"name": "prompt_tuning", "context": 3, "class_specific": True},
]


@pytest.mark.parametrize("options", FEW, ids=toy.case_id)
def test_grouped_clients_are_trained_as_one_by_one(options):
    assert_same(options, at_once=4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_whatever_the_optimizer_and_whoever_takes_part(optimizer, participation):
    training = Training(batch_size=4, optimizer=optimizer)
    assert_same({"name": "flora"}, at_once=3, training=training, participation=participation)
