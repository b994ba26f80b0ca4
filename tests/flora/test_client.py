"""A client's work: its batches, its optimiser, what it loads and gives."""

import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flora import client
from flora.clip import ENCODED
from flora.features import Batch, Samples
from flora.settings import Training
from tests.flora import toy

PROBE = {"name": "linear_probe"}


def numbered(count):
    """Samples whose label is their index and whose image is that number."""
    images = toy.Images(torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    return Samples(images, torch.arange(count))


def drawn(indices, training, seed=(0, 1, 2)):
    found = list(client.batches(numbered(100), torch.tensor(indices), training, seed))
    assert all(torch.equal(b.inputs[:, 0, 0, 0].long(), b.labels) and b.stage == 0 for b in found)
    return [batch.labels.tolist() for batch in found]


INDICES = st.lists(st.integers(0, 99), min_size=1, max_size=30, unique=True)
checked = settings(max_examples=60, deadline=None, derandomize=True)


@checked
@given(indices=INDICES, size=st.integers(1, 12), epochs=st.integers(1, 3))
def test_each_sample_comes_once_an_epoch(indices, size, epochs):
    batches = drawn(indices, Training(batch_size=size, local_epochs=epochs))
    steps = math.ceil(len(indices) / size)
    assert len(batches) == epochs * steps
    for epoch in range(epochs):
        of_epoch = batches[epoch * steps : (epoch + 1) * steps]
        assert sorted(chain(*of_epoch)) == sorted(indices)
        assert all(len(batch) == size for batch in of_epoch[:-1])


@checked
@given(indices=INDICES, size=st.integers(1, 12), steps=st.integers(1, 20))
def test_local_steps_start_over_as_often_as_needed(indices, size, steps):
    batches = drawn(indices, Training(batch_size=size, local_steps=steps, local_epochs=7))
    assert len(batches) == steps
    a_pass = math.ceil(len(indices) / size)
    for first in range(0, steps - a_pass + 1, a_pass):
        assert sorted(chain(*batches[first : first + a_pass])) == sorted(indices)


def test_the_order_is_that_of_the_seed_alone():
    training = Training(batch_size=3, local_epochs=2)
    indices = list(range(20, 40))
    first = drawn(indices, training, (4, 2, 1))
    for other in [(4, 1, 1), (4, 2, 0), (5, 2, 1)]:
        assert drawn(indices, training, other) != first
    assert drawn(indices, training, (4, 2, 1)) == first
    assert first[:7] != first[7:]  # shuffled afresh each epoch
    assert drawn(indices, Training(batch_size=3, local_steps=5), (4, 2, 1)) == first[:5]


def test_batches_draw_from_no_global_stream():
    before = torch.get_rng_state()
    drawn([1, 2, 3], Training())
    assert torch.equal(torch.get_rng_state(), before)


def weight_after(optimizer, steps=2, kept=None):
    """Where steps down half a square lead from one, the gradient being the value itself."""
    built = toy.method(PROBE)
    built.loss = lambda batch: sum(p.square().sum() for p in built.trainable.values()) / 2
    ones = {name: torch.ones_like(p) for name, p in built.trainable.items()}
    state = client.start(built, ones, Training(optimizer=optimizer), kept)
    batch = Batch(torch.zeros(2, toy.DIM, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), ENCODED)
    for _ in range(steps):
        state = client.step(state, batch)
    trained = client.finish(state)
    values = torch.cat([t.flatten() for t in trained.values()])
    assert values.max() - values.min() < 1e-12
    return values[0].item(), state


def adam(steps, decoupled):
    lr, decay, beta1, beta2, eps = 0.1, 0.3, 0.8, 0.9, 1e-3
    p, m, v = 1.0, 0.0, 0.0
    for t in range(1, steps + 1):
        gradient = p if decoupled else p + decay * p
        p = p * (1 - lr * decay) if decoupled else p
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        p -= lr * m / (1 - beta1**t) / (math.sqrt(v / (1 - beta2**t)) + eps)
    return p


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_decays_through_the_gradient_and_adamw_apart_from_it(name):
    optimizer = {"name": name, "lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-3}
    value, _ = weight_after(optimizer, 3)
    assert value == pytest.approx(adam(3, decoupled=name == "adamw"), abs=1e-12)


def test_sgd_with_momentum_and_decay():
    value, _ = weight_after({"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}, 3)
    p, velocity = 1.0, 0.0
    for _ in range(3):
        velocity = 0.9 * velocity + p + 0.2 * p
        p -= 0.1 * velocity
    assert value == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adam", "lr": 0.1},
        {"name": "adamw", "lr": 0.1},
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "sgd", "lr": 0.1},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_kept_state_continues_and_without_one_all_starts_afresh(optimizer):
    whole, _ = weight_after(optimizer, 4)
    half, state = weight_after(optimizer, 2)
    kept = client.optimizer_state(state)

    # Resume from the first half's weights with its state: as if never stopped.
    resumed = client.start(state.method, client.finish(state), Training(optimizer=optimizer), kept)
    batch = Batch(torch.zeros(2, toy.DIM, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), ENCODED)
    for _ in range(2):
        client.step(resumed, batch)
    assert client.finish(resumed)["bias"][0].item() == pytest.approx(whole, abs=1e-12)
    if kept:
        with_kept, _ = weight_after(optimizer, 2, kept)
        assert with_kept != pytest.approx(half, abs=1e-6)
    else:
        assert optimizer == {"name": "sgd", "lr": 0.1}
    assert weight_after(optimizer, 2)[0] == half


def test_loading_overwrites_what_trains_and_nothing_else():
    built = toy.method({"name": "flora"})
    sent = {name: torch.full_like(p, i) for i, (name, p) in enumerate(built.trainable.items(), start=1)}
    before = {n: p.detach().clone() for n, p in built.named_parameters()}
    client.load(built, sent)
    for name, p in built.named_parameters():
        assert torch.equal(p, sent.get(name, before[name])), name
    client.load(built, {n: t * 2 for n, t in sent.items()})
    assert all(torch.equal(p, 2 * sent[n]) for n, p in built.trainable.items())
    with pytest.raises(KeyError):
        client.load(built, {})


def test_the_loss_reported_is_the_mean_over_the_samples():
    built = toy.method(PROBE)
    data = toy.samples(7)
    state = client.start(built, dict(built.trainable), Training(optimizer={"lr": 1e-12}), None)
    batches = [data.batch(torch.arange(4)), data.batch(torch.arange(4, 7))]
    expected = sum(built.loss(batch).item() * len(batch.labels) for batch in batches)
    for batch in batches:
        state = client.step(state, batch)
    assert (state.seen, state.steps) == (7, 2)
    assert state.losses.item() == pytest.approx(expected, abs=1e-9)
    assert not state.losses.requires_grad


def test_finishing_lets_the_gradients_go():
    built = toy.method(PROBE)
    state = client.start(built, dict(built.trainable), Training(), None)
    state = client.step(state, toy.whole(toy.samples()))
    assert all(p.grad is not None for p in built.trainable.values())
    trained = client.finish(state)
    assert all(p.grad is None for p in built.trainable.values())
    assert all(trained[n].data_ptr() == p.data_ptr() for n, p in built.trainable.items())
    assert not any(t.requires_grad for t in trained.values())


def test_fedprox_pulls_towards_what_was_sent():
    """The gradient of the loss plus mu / 2 times the squared distance, by autograd."""
    mu, built = 0.7, toy.method({"name": "full_finetune"})
    sent = {name: p.detach().clone() for name, p in built.trainable.items()}
    setting = Training(proximal_mu=mu, optimizer={"name": "sgd", "lr": 0.05})
    state = client.start(built, sent, setting, None)
    toy.shake(built)  # away from what was sent, as after some steps
    here = {name: p.detach().clone() for name, p in built.trainable.items()}
    batch = toy.whole(toy.samples(8))
    distance = sum(((p - sent[name]) ** 2).sum() for name, p in built.trainable.items())
    loss = built.loss(batch)
    expected = torch.autograd.grad(loss + mu / 2 * distance, list(built.trainable.values()))
    state = client.step(state, batch)
    for (name, parameter), gradient in zip(built.trainable.items(), expected, strict=True):
        assert torch.allclose(parameter, here[name] - 0.05 * gradient, rtol=0, atol=1e-12), name
    assert state.losses.item() == pytest.approx(loss.item() * 8)


def test_fedprox_without_a_factor_is_fedavg():
    built = toy.method({"name": "flora"})
    assert client.start(built, built.trainable, Training(), None).anchor == []


def test_the_loss_scale_of_half_precision_is_taken_out_of_the_gradients():
    """On top of it FedProx's term, which was never scaled."""
    mu, built = 0.5, toy.method({"name": "full_finetune"})
    sent = {name: p.detach().clone() for name, p in built.trainable.items()}
    state = client.start(built, sent, Training(proximal_mu=mu), None)
    toy.shake(built)
    loss = built.loss(toy.whole(toy.samples(8)))
    expected = torch.autograd.grad(loss, list(built.trainable.values()), retain_graph=True)
    (loss * 1024).backward()
    client._correct_gradients(state, 1024)
    for (name, parameter), gradient in zip(built.trainable.items(), expected, strict=True):
        wanted = gradient + mu * (parameter.detach() - sent[name])
        assert torch.allclose(parameter.grad, wanted, rtol=1e-12, atol=1e-12), name


def test_a_gradient_that_overflows_when_scaled_is_computed_with_a_smaller_scale(monkeypatch):
    built = toy.method({"name": "linear_probe"}, dtype=torch.float32)
    built.clip.compute_dtype = torch.float16
    tried = []
    finite = client._gradients_are_finite
    monkeypatch.setattr(
        client, "_gradients_are_finite", lambda s: tried.append(1) or (len(tried) > 1 and finite(s))
    )
    state = client.start(built, built.trainable, Training(optimizer={"name": "sgd", "lr": 0.1}), None)
    batch = toy.whole(toy.samples(8, torch.float32))
    before = built.weight.detach().clone()
    (gradient,) = torch.autograd.grad(built.loss(batch), [built.weight])
    client.step(state, batch)
    assert len(tried) == 2
    assert torch.allclose(built.weight, before - 0.1 * gradient, rtol=1e-4, atol=1e-6)
