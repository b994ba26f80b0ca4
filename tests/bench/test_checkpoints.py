"""A run that was interrupted and goes on from a checkpoint: the same bits as one that never was."""

import json
import logging
import os

import pytest
from safetensors import SafetensorError

import flora.states
from bench.cell import Leftovers, run_cell
from bench.checkpoints import AT_STAKE_SECONDS, Checkpoints, latest_round, newest_round
from bench.config import RunConfig
from flora.events import Listener
from tests.bench.sameness import peaks, without_times

DEFINITION = "0123456789abcdef"
SIZES = {"max_train": 60, "max_test": 30}
SMALL = {"clients": 3, "rounds": 4, "batch_size": 16, "data": SIZES, "device": "cpu"}
PROBE = {"method": "linear_probe"}
MOMENTUM = {"name": "sgd", "momentum": 0.9, "state": "keep"}
RESET = {"name": "adam", "lr": 1e-3, "state": "reset"}


class Stopped(KeyboardInterrupt):
    """A planted interruption."""


class StopAfter(Listener):
    """Interrupts a run right after the evaluation of a round, before any checkpoint of it."""

    def __init__(self, round):
        self.round = round

    def round_ended(self, record):
        if record.round == self.round:
            raise Stopped


def configured(**fields):
    return RunConfig.read({**SMALL, **fields})


def checkpoints(folder, every=1, definition=DEFINITION, **more):
    return Checkpoints(folder, definition, every, **more)


def run(config, kept=None, stop_after=None):
    leftovers = Leftovers()
    listeners = [] if stop_after is None else [StopAfter(stop_after)]
    result = run_cell(config, listeners, leftovers, checkpoints=kept)
    return json.loads(json.dumps(result)), leftovers


def interrupted(config, folder, *stops, every=1):
    for stop in stops:
        with pytest.raises(Stopped):
            run(config, checkpoints(folder, every), stop)
    return run(config, checkpoints(folder, every))


CASES = {
    "flora, grouped": {"method": "flora", "clients_per_batch": 3},
    "flora, one by one": {"method": "flora", "clients_per_batch": 1},
    "full fine-tuning": {"method": "full_finetune", "rounds": 3},
    "momentum kept": {**PROBE, "optimizer": MOMENTUM},
    "optimiser reset": {**PROBE, "optimizer": RESET},
    "residuals": {**PROBE, "codec": {"name": "topk", "share": 0.1}},
    "some take part": {"method": "flora", "participation": 0.67},
    "alone": {**PROBE, "mode": "local_only"},
    "centralised": {"method": "flora", "mode": "centralized"},
    "base to new": {"method": "flora", "data": {**SIZES, "base_to_new": True}},
    "FedProx": {"method": "flora", "proximal_mu": 0.1},
    "by client": {**PROBE, "evaluation": {"per_client": True}},
    "nothing trains": {"method": "zero_shot"},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_runs_come_to_the_same_bits(case, tmp_path):
    config = configured(**CASES[case])
    whole, of_whole = run(config)
    result, leftovers = interrupted(config, tmp_path, *([0] if case == "nothing trains" else [2]))
    assert without_times(result) == without_times(whole)
    assert peaks(result) == peaks(whole)
    assert leftovers.weights.keys() == of_whole.weights.keys()
    assert all(x.equal(of_whole.weights[name]) for name, x in leftovers.weights.items())
    assert list(leftovers.tables["ledger"]) == list(of_whole.tables["ledger"])
    assert [row["client"] for row in leftovers.tables["clients"]] == [
        row["client"] for row in of_whole.tables["clients"]
    ]


def test_interrupted_in_every_round_it_still_comes_to_the_same(tmp_path):
    config = configured(method="flora")
    result, leftovers = interrupted(config, tmp_path, 1, 2, 3, 4)
    whole, of_whole = run(config)
    assert without_times(result) == without_times(whole)
    assert all(x.equal(of_whole.weights[name]) for name, x in leftovers.weights.items())
    spans = [(s["first_round"], s["last_round"]) for s in result["sittings"]]
    assert spans == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("linked", [True, False])
def test_states_on_disk_are_linked_or_copied_and_come_back_the_same(linked, tmp_path, monkeypatch):
    monkeypatch.setattr(flora.states, "STATES_IN_MEMORY_BYTES", 0)
    if not linked:
        monkeypatch.setattr(os, "link", _refused)
    config = configured(**PROBE, codec={"name": "topk", "share": 0.1})
    whole, _ = run(config)
    result, _ = interrupted(config, tmp_path, 2, 3)
    assert without_times(result) == without_times(whole)
    names = {path.name for path in (tmp_path / "checkpoints" / "round-00004").rglob("*") if path.is_file()}
    assert {"0.safetensors", "2.safetensors"} <= names


def _refused(*_):
    raise OSError("no links here")


def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    config = configured(**PROBE)
    with pytest.raises(Stopped):
        run(config, checkpoints(tmp_path), 4)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["round-00002", "round-00003"]
    assert checkpoints(tmp_path).latest(1).round == 3
    (tmp_path / "checkpoints/round-00003/state.safetensors").write_bytes(b"damaged")
    assert checkpoints(tmp_path).latest(1).round == 2
    whole, _ = run(config)
    result, _ = run(config, checkpoints(tmp_path))
    assert without_times(result) == without_times(whole)
    assert [s["first_round"] for s in result["sittings"]] == [0, 3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "checkpoint.json").write_text("{"),
        lambda folder: (folder / "checkpoint.json").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text('{"version": 99}'),
        lambda folder: (folder / "optimizers" / "all.safetensors").unlink(),
        lambda folder: (folder / "records.json").write_text(
            (folder / "records.json").read_text().replace("accuracy", "acuracy")
        ),
    ],
)
def test_what_is_not_whole_is_no_checkpoint(damage, tmp_path):
    with pytest.raises(Stopped):
        run(configured(**PROBE), checkpoints(tmp_path, every=2), 3)
    damage(tmp_path / "checkpoints" / "round-00002")
    found = checkpoints(tmp_path).latest(1)
    assert found is None or found.round == 0


def test_one_of_another_definition_is_not_gone_on_from(tmp_path):
    with pytest.raises(Stopped):
        run(configured(**PROBE), checkpoints(tmp_path), 2)
    assert latest_round(tmp_path, DEFINITION) == 1
    other = "f" * 16
    assert latest_round(tmp_path, other) is None
    assert checkpoints(tmp_path, definition=other).latest(1) is None


def test_those_of_a_new_definition_take_the_place_of_the_old_ones(tmp_path):
    config, other = configured(**PROBE), "f" * 16
    with pytest.raises(Stopped):
        run(config, checkpoints(tmp_path), 4)
    with pytest.raises(Stopped):
        run(config, checkpoints(tmp_path, definition=other), 2)
    assert latest_round(tmp_path, DEFINITION) is None
    assert latest_round(tmp_path, other) == 1
    assert checkpoints(tmp_path, definition=other).latest(1).round == 1


def test_what_only_looks_like_one_is_left_alone(tmp_path):
    with pytest.raises(Stopped):
        run(configured(**PROBE), checkpoints(tmp_path), 2)
    (tmp_path / "checkpoints" / "round-00009.bak").mkdir()
    assert latest_round(tmp_path, DEFINITION) == 1
    assert newest_round(tmp_path) == 1
    run(configured(**PROBE), checkpoints(tmp_path))
    assert (tmp_path / "checkpoints" / "round-00009.bak").is_dir()


def test_a_run_killed_after_its_last_round_says_that_nothing_was_left_to_do(tmp_path):
    config = configured(**PROBE)
    run(config, checkpoints(tmp_path))
    result, _ = run(config, checkpoints(tmp_path))
    spans = [(s["first_round"], s["last_round"]) for s in result["sittings"]]
    assert spans == [(0, 4), (None, None)]


def test_clients_trained_in_other_groups_begin_anew(tmp_path):
    config = configured(**PROBE, clients=10, batch_size=2)
    with pytest.raises(Stopped):
        run(config, checkpoints(tmp_path), 2)
    assert checkpoints(tmp_path).latest(1) is None
    result = run_cell(config, checkpoints=checkpoints(tmp_path), one_by_one=True)
    assert result["summary"]["clients_together"] == 1
    assert [s["first_round"] for s in result["sittings"]] == [0]


@pytest.mark.parametrize("call", ["bench.checkpoints.os.fsync", "safetensors.torch.serialize_file"])
def test_where_it_cannot_be_written_the_run_goes_on(call, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(call, _full if "fsync" in call else _full_as_safetensors_says_it)
    with caplog.at_level(logging.WARNING):
        result, _ = run(configured(**PROBE), checkpoints(tmp_path))
    assert result["status"] == "complete"
    assert "no checkpoint of round 1: " in caplog.text
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "checkpoints").iterdir())


def _full_as_safetensors_says_it(*_, **__):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def _full(_):
    raise OSError(28, "No space left on device")


def test_when_one_is_due(tmp_path):
    now = [0.0]
    by_time = checkpoints(tmp_path, every=None, clock=lambda: now[0])
    assert not by_time.due(1)
    now[0] = AT_STAKE_SECONDS
    assert by_time.due(2)
    by_time._last, by_time._cost_seconds = now[0], 3.0  # one that takes long is due less often
    now[0] += 59
    assert not by_time.due(3)
    now[0] += 1
    assert by_time.due(3)
    assert [n for n in range(7) if checkpoints(tmp_path, every=3).due(n)] == [0, 3, 6]
    assert not any(checkpoints(tmp_path, every=0).due(n) for n in range(7))


def test_times_of_all_sittings_add_up(tmp_path):
    result, _ = interrupted(configured(**PROBE), tmp_path, 3)
    sittings, summary = result["sittings"], result["summary"]
    assert sittings[0]["seconds"] < summary["total_seconds"] < sum(s["seconds"] for s in sittings)
    phases = sum(seconds for r in result["rounds"] for seconds in r["seconds"].values())
    assert 0 <= summary["unaccounted_seconds"] < summary["total_seconds"] - phases
    assert all(r["seconds"]["evaluate"] > 0 for r in result["rounds"])
    assert summary["train_seconds"] == pytest.approx(
        sum(r["seconds"].get("train", 0) for r in result["rounds"])
    )
    assert sum(r["steps"]["count"] for r in result["rounds"]) == 4 * 3 * 2
