"""Acceleration and grouping of clients change no result: the same parameters, accuracies and bytes.

In double precision every method is held to it on two splits (and FLoRA at every place, on the first of them),
every split with two methods, and every way to train with one; a few methods again in single precision, and a
few from the configuration to what a run leaves.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch

from bench.cell import Leftovers, run_cell
from bench.config import RunConfig
from bench.splits import SPLITS, make_split
from flora.events import Events, Listener
from flora.federation import Federation
from flora.group import can_be_grouped
from flora.method import METHODS
from flora.runners import Grouped, OneByOne
from flora.settings import Training
from flora.states import states_for
from tests.flora import toy

ROUNDS, CLIENTS, IMAGES = 3, 4, 24
# Largest difference allowed, as a share of the largest entry of the tensor.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def in_pairs(method, *rest):
    """Group clients where that is possible: unequal ones, and a last group that may be smaller."""
    samples, shares = rest[:2]
    together = can_be_grouped(method, samples, shares[0])
    return Grouped(method, *rest, 2) if together else OneByOne(method, *rest)


# Who carries out the clients' work, by name: all with the arguments of OneByOne; and what a cell says of it.
RUNNERS = {"one-by-one": OneByOne, "grouped": in_pairs}
RUNNER_FIELDS = {"one-by-one": {"clients_per_batch": 1}, "grouped": {"clients_per_batch": 2}}

PLAIN_SPLIT, SKEWED_SPLIT = {"name": "iid"}, {"name": "dirichlet", "beta": 0.3}
OTHER_SPLITS = [
    {"name": "iid", "shots": 1},
    {"name": "iid", "shots": 3, "overlap": True},
    {"name": "dirichlet", "beta": 0.1, "cap": True},
    {"name": "pathological", "classes_per_client": 2},
    {"name": "pathological", "classes_per_client": None, "shots": 2},
    {"name": "quantity", "alpha": 0.5},
    {"name": "domain"},
    {"name": "domain", "domains_per_client": 2},
]
ALL_SPLITS = [PLAIN_SPLIT, SKEWED_SPLIT, *OTHER_SPLITS]
# One that trains what reads the prompts, and one whose text tower is frozen too.
FLORA, PROBE = {"name": "flora"}, {"name": "linear_probe"}
# All places and options, but each loss with two methods only.
CASES = [case for case in toy.CASES if case.get("loss") != "cross_entropy"]
CASES += [{"name": name, "loss": "cross_entropy"} for name in ("flora", "full_finetune")]
# The first case of each method.
ONE_CASE = list({case["name"]: case for case in reversed(toy.CASES)}.values())[::-1]
# One for each way in which something is kept: the features, what enters a later block, the prompts, nothing.
SINGLE_PRECISION = [
    PROBE,
    FLORA,
    {"name": "flora", "places": ("vision.mlp",)},
    {"name": "prompt_tuning", "context": 4},
    {"name": "full_finetune"},
]
ADAM = {"lr": 1e-2}
# Adam divides gradients by their size: where they vanish, as those of a key's bias do, it makes whole steps
# of rounding. In single precision these would count, so that there each step follows the gradient.
OPTIMIZER = {torch.float64: ADAM, torch.float32: {"name": "sgd", "lr": 1e-3}}
SETTINGS = {
    "kept": {"optimizer": ADAM | {"state": "keep"}, "local_epochs": 2},
    "reset": {"optimizer": ADAM | {"state": "reset"}, "local_epochs": 2},
    "adamw": {"optimizer": ADAM | {"name": "adamw"}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "state": "keep"}},
    "steps": {"local_steps": 3},
    "near": {"proximal_mu": 0.5, "local_epochs": 2},
    "whole": {"batch_size": 64},
}
BROKEN = 1  # the client whose work is refused, where one is


class Lengths(Listener):
    """Notes how many bytes passed, each time."""

    def __init__(self):
        self.noted = []

    def payload_passed(self, round, client, direction, payload):
        self.noted.append((round, client, direction, len(payload)))


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    state: dict
    records: list
    lengths: list


def shares(split):
    """Divide the images by a rule of this name and these options, some clients having few."""
    labels = np.arange(IMAGES) % toy.CLASSES
    spec = SPLITS[split["name"]](**split)
    made = make_split(spec, labels, CLIENTS, seed=3, domains=np.arange(IMAGES) // toy.CLASSES % 3)
    return [torch.from_numpy(own.copy()) for own in made.indices]


def as_seen_by(built, data):
    """Give samples as the method may have them: where it is exact, what its frozen stages make of them."""
    stage = built.frozen_image_stages
    return toy.featured(data, built.clip, stage) if built.exact and stage else data


def trained(
    options,
    split,
    acceleration,
    runner="one-by-one",
    *,
    dtype=torch.float64,
    settings=MappingProxyType({}),
    spoil=lambda data, own: data,
    payloads=None,
    **more,
):
    """Train for three rounds, starting off the zero-shot model.

    `spoil` is given the samples and those of the broken client, `payloads` replace uploads by client, and
    `more` goes to the federation.
    """
    built = toy.shake(toy.method(options, acceleration, dtype))
    training, parts = Training(**{"batch_size": 4, "optimizer": ADAM} | settings), shares(split)
    train = as_seen_by(built, spoil(toy.samples(IMAGES, dtype), parts[BROKEN]))
    test = as_seen_by(built, toy.samples(20, dtype, seed=1))
    work = RUNNERS[runner](built, train, parts, training, states_for(built, CLIENTS, training), 5)
    lengths = Lengths()
    server = Federation(
        built, toy.Tampered(work, payloads or {}), test, CLIENTS, events=Events((lengths,)), **more
    )
    records = list(server.rounds(ROUNDS))
    return Outcome(server.state, records, lengths.noted)


def assert_same(found, expected, dtype=torch.float64):
    """Hold two outcomes against each other."""
    assert sorted(found.lengths) == sorted(expected.lengths)
    for ours, theirs in zip(found.records, expected.records, strict=True):
        assert ours.accuracy == theirs.accuracy
        assert (ours.clients, ours.samples_seen) == (theirs.clients, theirs.samples_seen)
        assert [refusal.client for refusal in ours.refused] == [refusal.client for refusal in theirs.refused]
        assert ours.loss == (theirs.loss and pytest.approx(theirs.loss, rel=10 * TOLERANCE[dtype]))
    assert_close(found.state, expected.state, dtype)


def assert_close(found, expected, dtype):
    """Hold tensors by name against each other."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = float(tensor.abs().max())
        difference = float((found[name] - tensor).abs().max())
        assert difference <= TOLERANCE[dtype] * largest, f"{name}: {difference / largest:.1e} of its largest"


def assert_alike(options, split, *, dtype=torch.float64, **more):
    """Train as deployed, then accelerated with every runner, and hold these against the former; give that."""
    deployed = trained(options, split, "none", dtype=dtype, **more)
    for name in RUNNERS:
        with naming(name):
            assert_same(trained(options, split, "exact", name, dtype=dtype, **more), deployed, dtype)
    return deployed


@contextmanager
def naming(runner):
    """Say with which runner an assertion failed."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"accelerated, {runner}")
        raise


def split_id(split):
    return "-".join(f"{key}={value}" for key, value in split.items()).removeprefix("name=")


def test_every_method_that_trains_and_every_split_is_among_the_cases():
    assert {case["name"] for case in ONE_CASE} == set(METHODS) - {"zero_shot"}
    assert {split["name"] for split in ALL_SPLITS} == set(SPLITS)


@pytest.mark.parametrize("options", CASES, ids=toy.case_id)
def test_every_method_trains_alike(options):
    assert_alike(options, SKEWED_SPLIT)


@pytest.mark.parametrize("options", ONE_CASE, ids=toy.case_id)
def test_every_method_trains_alike_on_another_split(options):
    assert_alike(options, PLAIN_SPLIT)


@pytest.mark.parametrize("split", OTHER_SPLITS, ids=split_id)
@pytest.mark.parametrize("options", [FLORA, PROBE], ids=toy.case_id)
def test_every_split_trains_alike(options, split):
    assert_alike(options, split)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_way_to_train_is_alike_with_three_clients_in_four(settings):
    assert_alike(FLORA, SKEWED_SPLIT, settings=settings, participation=0.75)


def not_a_number(data, own):
    """Make what the client trains on useless."""
    data.images.pixels[own] = torch.nan
    return data


@pytest.mark.parametrize(
    "fault", [{"payloads": {BROKEN: b"damaged"}}, {"spoil": not_a_number}], ids=["damaged", "diverged"]
)
@pytest.mark.parametrize("options", [FLORA, PROBE], ids=toy.case_id)
def test_a_client_that_is_refused_changes_nothing_for_the_others(options, fault):
    deployed = assert_alike(options, SKEWED_SPLIT, **fault)
    assert [[refusal.client for refusal in record.refused] for record in deployed.records[1:]] == [
        [BROKEN]
    ] * 3


@pytest.mark.parametrize("options", SINGLE_PRECISION, ids=toy.case_id)
def test_single_precision_trains_alike(options):
    settings = {"optimizer": OPTIMIZER[torch.float32]}
    assert_alike(options, SKEWED_SPLIT, dtype=torch.float32, settings=settings)


def cell(method, dtype, acceleration, fields):
    """Run a small cell on real digits from its configuration: its result and the tensors it trained."""
    config = {
        "method": method,
        "model": {"dtype": str(dtype).removeprefix("torch.")},
        "split": SKEWED_SPLIT,
        "data": {"max_train": 60, "max_test": 30},
        "clients": CLIENTS,
        "rounds": 2,
        "batch_size": 8,
        "optimizer": OPTIMIZER[dtype],
        "device": "cpu",
        "acceleration": acceleration,
    }
    leftovers = Leftovers()
    return run_cell(RunConfig.read(config | fields), leftovers=leftovers), leftovers.weights


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("flora", torch.float64),
        ("flora", torch.float32),
        ("linear_probe", torch.float64),
        ("prompt_tuning", torch.float64),
        ("clip_adapter", torch.float32),
        ("full_finetune", torch.float32),
    ],
)
def test_whole_cells_come_to_the_same(method, dtype):
    expected, plain = cell(method, dtype, "none", RUNNER_FIELDS["one-by-one"])
    for name, fields in RUNNER_FIELDS.items():
        with naming(name):
            result, weights = cell(method, dtype, "exact", fields)
            for figure in ("accuracy", "best_accuracy", "zero_shot_accuracy", "payload_bytes"):
                assert result["summary"][figure] == expected["summary"][figure]
            for ours, theirs in zip(result["rounds"], expected["rounds"], strict=True):
                for figure in ("accuracy", "bytes_up", "bytes_down", "samples_seen"):
                    assert ours[figure] == theirs[figure]
            assert_close(weights, plain, dtype)
