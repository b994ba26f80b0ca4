"""Many clients at once, held against one after another."""

import json

import pytest
import torch

from flora import group
from flora.method import METHODS
from flora.settings import Training
from flora.states import StatesOnDisk
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


def run(options, at_once, training=toy.TRAINING, dtype=torch.float64, rounds=3, on_disk=False, **more):
    kept = StatesOnDisk() if on_disk else None
    built = toy.method(options, dtype=dtype)
    server = toy.federation(built, training, at_once=at_once, shares=SHARES, kept=kept, **more)
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


@pytest.mark.parametrize("loss", ["contrastive", "cross_entropy"])
def test_which_methods_can_be_grouped(loss):
    cases = {json.dumps(case): case for case in toy.CASES}
    cases |= {name: {**case, "loss": loss} for name, case in cases.items() if "loss" in case}
    data = toy.samples()
    refused = {
        case["name"] for case in cases.values() if not group.can_be_grouped(toy.method(case), data, SHARES[0])
    }
    # PEFT's code for them has gradients of its own, or writes in place
    assert refused == {"peft:loha", "peft:oft", "peft:randlora"}


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


@pytest.mark.parametrize("more", [{"proximal_mu": 0.5}, {"local_steps": 3}, {"local_epochs": 2}], ids=str)
def test_however_clients_are_asked_to_train(more):
    training = Training(batch_size=4, optimizer={"lr": 1e-2}, **more)
    assert_same({"name": "flora"}, at_once=3, training=training, on_disk=True)


class WithASpare(METHODS["flora"]):
    """FLoRA, and a parameter that has no part in the loss."""

    def prepare(self, generator):
        super().prepare(generator)
        self.spare = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_has_no_part_in_the_loss_decays_alike(optimizer, monkeypatch):
    monkeypatch.setitem(METHODS, "flora", WithASpare)
    training = Training(batch_size=4, optimizer={**optimizer, "weight_decay": 0.1})
    assert_same({"name": "flora"}, at_once=4, training=training)


# --- how many ------------------------------------------------------------------------------------------


def at_once(options, samples=None, shares=SHARES, batch_size=4, most=1000):
    built = toy.method(options)
    return group.clients_at_once(
        built, samples or toy.samples(), shares, Training(batch_size=batch_size), most
    )


def test_as_many_as_fit_into_the_budget(monkeypatch):
    monkeypatch.setattr(group, "CPU_BUDGET_BYTES", 4 * 2**20)
    many = at_once({"name": "flora"})
    monkeypatch.setattr(group, "CPU_BUDGET_BYTES", 8 * 2**20)
    assert many >= group.FEWEST
    assert at_once({"name": "flora"}) == pytest.approx(2 * many, abs=1)
    assert at_once({"name": "flora"}, most=7) == 7  # no more than take part in a round


def test_one_by_one_where_few_fit_or_grouping_is_impossible(monkeypatch):
    assert at_once({"name": "flora"}, most=group.FEWEST - 1) == 1
    assert at_once({"name": "zero_shot"}) == 1
    assert at_once({"name": "peft:loha"}) == 1
    monkeypatch.setattr(group, "CPU_BUDGET_BYTES", 2**16)
    assert at_once({"name": "full_finetune"}) == 1


def test_the_order_of_the_data_does_not_change_how_many():
    data = toy.samples()
    by_class = data.labels.argsort(stable=True)
    sorted_data = type(data)(toy.Images(data.images.pixels[by_class]), data.labels[by_class])
    everything = [torch.arange(len(data))]
    assert at_once({"name": "flora"}, data, everything) == at_once({"name": "flora"}, sorted_data, everything)
