"""Training without communication, held against one-client federations and plain loops."""

import pytest
import torch

from flora import client
from flora.evaluation import evaluate
from flora.events import Events
from flora.local import LocalTraining
from flora.runners import OneByOne
from flora.states import models_for, states_for
from tests.flora import reference, toy

FLORA = {"name": "flora"}


def local(built, shares=toy.SHARES, training=toy.TRAINING, **more):
    trainer = OneByOne(built, toy.samples(), shares, training, states_for(built, len(shares), training), 5)
    test = toy.samples(30, seed=1)
    return LocalTraining(built, trainer, test, len(shares), models_for(built, len(shares)), **more)


def test_a_client_alone_is_a_federation_of_one():
    alone = local(toy.method(FLORA))
    list(alone.rounds(3))
    built = toy.method(FLORA)
    runner = OneByOne(built, toy.samples(), toy.SHARES[:1], toy.TRAINING, {}, 5)
    federation = toy.federation(built)
    federation.runner, federation.clients = runner, 1
    list(federation.rounds(3))
    for name, tensor in federation.state.items():
        assert torch.equal(alone.trained[0][name], tensor)
        assert not torch.equal(alone.trained[1][name], tensor)


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_centralised_training_is_plain_training_on_all_data(state):
    training = toy.TRAINING.model_copy(
        update={"optimizer": toy.TRAINING.optimizer.model_copy(update={"state": state})}
    )
    everything = torch.cat(toy.SHARES).unique()
    built = toy.method(FLORA)
    start = [p.detach().clone() for p in built.trainable.values()]
    central = local(built, [everything], training)
    list(central.rounds(2))

    def draw(number, who):
        for batch in client.batches(toy.samples(), everything, training, (5, number, who)):
            yield batch.inputs, toy.prompts().tokens[batch.labels]

    loss = reference.flora_loss(toy.open_clip_model().requires_grad_(False), built.options.alpha)
    expected, _ = reference.train(
        loss, start, [(0,), (0,)], sizes=[len(everything)], draw=draw, keep=state == "keep"
    )
    for (name, tensor), plain in zip(central.trained[0].items(), expected, strict=True):
        assert torch.allclose(tensor, plain, rtol=0, atol=1e-8), name


def test_the_accuracy_is_the_mean_over_the_clients_models():
    alone = local(toy.method({"name": "linear_probe"}))
    last = list(alone.rounds(4))[-1]
    of_each = [evaluate(alone.method, alone.test) for _ in alone.models()]
    assert last.client_accuracies == tuple(of_each)
    assert last.accuracy == pytest.approx(sum(of_each) / 3)
    assert len(set(of_each)) > 1


def test_each_client_is_evaluated_on_its_own_part_by_its_own_model():
    parts = [torch.arange(0, 10), torch.arange(10, 30), torch.tensor([], dtype=torch.int64)]
    alone = local(toy.method({"name": "linear_probe"}), client_test=parts)
    last = list(alone.rounds(2))[-1]
    test = toy.samples(30, seed=1)
    for part, accuracy, _ in zip(parts[:2], last.client_accuracies, alone.models(), strict=False):
        batch = test.batch(part)
        with torch.no_grad():
            scores = alone.method.logits(batch, alone.method.classifier())
        assert accuracy == (scores.argmax(1) == batch.labels).double().mean().item()
    assert last.client_accuracies[2] is None


def test_of_centralised_training_every_part_is_evaluated_by_the_one_model():
    parts = [torch.arange(0, 12), torch.arange(12, 30)]
    central = local(toy.method({"name": "linear_probe"}), [torch.arange(24)], client_test=parts)
    last = list(central.rounds(2))[-1]
    weighted = sum(a * len(p) for a, p in zip(last.client_accuracies, parts, strict=True)) / 30
    assert last.accuracy == pytest.approx(weighted)


def test_nothing_is_sent():
    recorder = toy.Recorder()
    list(local(toy.method(FLORA), events=Events((recorder,))).rounds(2))
    kinds = {event[0] for event in recorder.heard}
    assert kinds == {"started", "ended", "round"}
    phases = {event[1].name for event in recorder.heard if event[0] == "started"}
    assert phases == {"evaluate", "train", "rest"}


def test_those_who_do_not_take_part_stay_as_they_were():
    alone = local(toy.method(FLORA), participation=0.34)
    trained = [record.clients for record in alone.rounds(1)][-1]
    assert len(trained) == 1
    assert set(alone.trained) == set(trained)


def test_nothing_to_train_stops_after_round_zero():
    assert [record.round for record in local(toy.method({"name": "zero_shot"})).rounds(3)] == [0]


def test_the_loss_is_weighted_by_the_clients_samples():
    alone = local(toy.method(FLORA))
    record = list(alone.rounds(1))[-1]
    weights = [len(share) for share in toy.SHARES]
    again = local(toy.method(FLORA))
    own = [again.trainer.train(1, who, again.state, Events()).loss for who in range(3)]
    assert len(set(weights)) > 1
    expected = sum(w * x for w, x in zip(weights, own, strict=True)) / sum(weights)
    assert record.loss == pytest.approx(expected, abs=1e-9)


def test_a_client_that_diverges_stays_where_it_was_and_is_named():
    alone = local(toy.method(FLORA))
    right = alone.trainer.train

    def poisoned(round, number, start, events):
        trained = right(round, number, start, events)
        if number == 1:
            next(iter(trained.tensors.values())).fill_(torch.nan)
        return trained

    object.__setattr__(alone.trainer, "train", poisoned)
    record = list(alone.rounds(1))[-1]
    assert [refusal.client for refusal in record.refused] == [1]
    assert set(alone.trained) == {0, 2}


def test_clients_are_evaluated_before_training_too():
    parts = [torch.arange(0, 10), torch.arange(10, 30)]
    central = local(toy.method({"name": "linear_probe"}), [torch.arange(24)], client_test=parts)
    assert [len(record.client_accuracies) for record in central.rounds(1)] == [2, 2]
    without = local(toy.method({"name": "linear_probe"}), [torch.arange(24)])
    assert [record.client_accuracies for record in without.rounds(1)] == [(), ()]
