"""The runner, and where optimiser states rest."""

from pathlib import Path

import pytest
import torch

from flora import payload, states
from flora.events import Events
from flora.runners import OneByOne
from flora.settings import Training
from flora.states import StatesOnDisk, states_for
from tests.flora import toy

SETTINGS = {
    "adam": {"name": "adam", "lr": 1e-2},
    "adamw": {"name": "adamw", "lr": 1e-2},
    "momentum": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "state": "keep"},
    "plain": {"name": "sgd", "lr": 1e-2, "state": "keep"},
}


def uploads_of(groups):
    return [upload for uploads in groups for upload in uploads]


def final_state(kept, optimizer, rounds=3):
    training = Training(batch_size=4, optimizer=optimizer)
    server = toy.federation(toy.method({"name": "flora"}), training, participation=0.67, kept=kept)
    records = list(server.rounds(rounds))
    return server.state, records


@pytest.mark.parametrize("optimizer", SETTINGS.values(), ids=SETTINGS)
def test_states_in_memory_and_on_disk_give_identical_results(optimizer):
    in_memory, records = final_state({}, optimizer)
    on_disk, same = final_state(StatesOnDisk(), optimizer)
    assert records == same
    assert all(torch.equal(in_memory[n], t) for n, t in on_disk.items())


def test_keeping_states_makes_a_difference_from_the_second_round_on():
    kept, keep_records = final_state(None, {"name": "adam", "lr": 1e-2, "state": "keep"})
    reset, reset_records = final_state(None, {"name": "adam", "lr": 1e-2, "state": "reset"})
    assert keep_records[:2] == reset_records[:2]
    assert not all(torch.equal(kept[n], t) for n, t in reset.items())


def test_a_reset_client_gives_the_same_whatever_came_before():
    training = Training(batch_size=4, optimizer={"lr": 1e-2, "state": "reset"})
    built = toy.method({"name": "flora"})
    runner = OneByOne(built, toy.samples(), toy.SHARES, training, None, order_seed=5)
    broadcast = payload.encode(built.trainable)
    first = uploads_of(runner.run(3, [0, 1, 2], broadcast, Events()))
    for number in (2, 0):
        ((again,),) = runner.run(3, [number], broadcast, Events())
        assert again == first[number]
    ((other_round,),) = runner.run(4, [0], broadcast, Events())
    assert other_round.payload != first[0].payload


def test_uploads_come_in_the_order_asked_for_with_their_weights():
    training = Training(batch_size=4, local_epochs=2)
    built = toy.method({"name": "linear_probe"})
    runner = OneByOne(built, toy.samples(), toy.SHARES, training, {}, order_seed=5)
    uploads = uploads_of(runner.run(1, [2, 0, 1], payload.encode(built.trainable), Events()))
    assert [u.client for u in uploads] == [2, 0, 1]
    assert [u.samples for u in uploads] == [10, 7, 4]
    assert [u.seen for u in uploads] == [20, 14, 8]
    assert sorted(runner.kept) == [0, 1, 2]
    assert runner.kept[1]["0.step"] == 2  # two epochs of one batch
    assert runner.kept[2]["0.step"] == 6


def test_clients_start_from_the_broadcast_and_not_from_one_another():
    built = toy.method({"name": "linear_probe"})
    shares = [toy.SHARES[0], toy.SHARES[0]]
    runner = OneByOne(built, toy.samples(), shares, Training(optimizer="sgd"), None, order_seed=5)
    whole_batch = uploads_of(runner.run(1, [0, 1], payload.encode(built.trainable), Events()))
    first, second = (payload.decode(u.payload, built.trainable) for u in whole_batch)
    # one batch of the same samples in another order: the same but for rounding
    assert all(torch.allclose(first[n], second[n], rtol=0, atol=1e-12) for n in first)


def test_states_on_disk_are_a_mapping_that_leaves_nothing_behind():
    states = StatesOnDisk()
    folder = Path(states._folder.name)
    assert states.get(3) is None
    with pytest.raises(KeyError):
        states[3]
    states[3] = {"0.step": torch.tensor(2.0), "0.exp_avg": torch.arange(6.0).reshape(2, 3).T}
    states[1] = {}
    read = states[3]
    states[3] = {"0.step": torch.tensor(5.0)}
    assert torch.equal(
        read["0.exp_avg"], torch.arange(6.0).reshape(2, 3).T
    )  # not overwritten under the reader
    assert states[3] == {"0.step": torch.tensor(5.0)}
    assert sorted(states) == [1, 3]
    del states[1]
    assert len(states) == 1
    with pytest.raises(KeyError):
        del states[1]
    assert [file.name for file in folder.glob("*.*tensors")] == ["3.safetensors"]
    del states
    assert not folder.exists()


def test_where_states_rest(monkeypatch):
    built = toy.method({"name": "flora"})
    two_moments = 2 * 8 * built.closed_form()
    assert states_for(built, 10, Training(optimizer={"state": "reset"})) is None
    assert states_for(built, 10, Training(optimizer="sgd")) is None
    assert states_for(built, 10, Training()) == {}
    monkeypatch.setattr(states, "STATES_IN_MEMORY_BYTES", 10 * two_moments)
    assert isinstance(states_for(built, 10, Training()), dict)
    assert isinstance(states_for(built, 11, Training()), StatesOnDisk)


def test_a_client_that_diverged_starts_afresh_and_recovers():
    training = Training(batch_size=4, optimizer={"lr": 1e-2, "state": "keep"})
    built = toy.method({"name": "linear_probe"})
    runner = OneByOne(built, toy.samples(), toy.SHARES, training, {}, order_seed=5)
    start = {name: p.detach().clone() for name, p in built.trainable.items()}
    broken = {name: torch.full_like(tensor, torch.finfo(tensor.dtype).max) for name, tensor in start.items()}
    ((diverged,),) = runner.run(1, [0], payload.encode(broken), Events())
    assert not torch.isfinite(torch.tensor(diverged.loss))
    assert 0 not in runner.kept
    ((recovered,),) = runner.run(2, [0], payload.encode(start), Events())
    assert torch.isfinite(torch.tensor(recovered.loss))
    payload.decode(recovered.payload, built.trainable)


def test_a_client_without_samples_is_refused():
    with pytest.raises(ValueError, match="client 1 has no samples"):
        OneByOne(None, None, [torch.tensor([0]), torch.tensor([], dtype=torch.int64)], Training(), None, 0)
