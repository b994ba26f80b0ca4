"""Whose time it is: server's or client's, one client's or a group's, step by step; and what is left over."""

import time

import pytest
import torch

from bench.cell import run_cell
from bench.config import RunConfig
from bench.measure.clock import Clock
from bench.measure.steps import StepTimes, describe
from flora.aggregation import WeightedMean
from flora.events import Events, Work


class Hands:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def hands():
    return Hands()


def spend(events, hands, seconds, name, client=None, side="server", steps=()):
    with events.phase(name, 1, client, side):
        for clients in steps:
            with events.work(Work("step", clients=clients)):
                pass
        hands.advance(seconds)


def test_a_round_in_a_deployment_takes_the_server_and_the_slowest_client(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    spend(events, hands, 1.0, "send")
    for client, seconds in [(3, 10.0), (5, 40.0)]:
        spend(events, hands, 0.5, "send", client, "client")
        spend(events, hands, 7.0, "rest", client, "client")  # one machine's matter
        spend(events, hands, seconds, "train", client, "client", steps=[(client,)])
        spend(events, hands, 0.25, "receive", client, "client")
        spend(events, hands, 2.0, "receive", client)
        spend(events, hands, 3.0, "aggregate", client)
    spend(events, hands, 4.0, "aggregate")
    spend(events, hands, 1000.0, "evaluate")
    assert clock.server_seconds(1) == 1 + 2 * 2 + 2 * 3 + 4
    assert [(x.client, x.send, x.train, x.receive) for x in clock.client_times(1)] == [
        (3, 0.5, 10.0, 0.25),
        (5, 0.5, 40.0, 0.25),
    ]
    assert clock.deployment_seconds(1) == 15 + 40.75
    assert clock.seconds(1, "client") == {"send": 1.0, "rest": 14.0, "train": 50.0, "receive": 0.5}
    assert not clock.shares_clients
    assert clock.named_seconds == clock.total_seconds


def test_a_groups_time_is_shared_by_the_steps_each_took_part_in(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    spend(events, hands, 4.0, "send", side="client")
    spend(events, hands, 30.0, "train", side="client", steps=[(0, 1), (0, 1), (0,)])
    times = {x.client: x for x in clock.client_times(1)}
    assert clock.shares_clients
    assert {client: x.train for client, x in times.items()} == {0: pytest.approx(18), 1: pytest.approx(12)}
    assert [x.send for x in times.values()] == [2.0, 2.0]


def test_time_between_phases_is_not_named(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    hands.advance(3.0)
    spend(events, hands, 5.0, "aggregate")
    hands.advance(2.0)
    assert (clock.total_seconds, clock.named_seconds) == (10.0, 5.0)


def test_steps_are_timed_one_by_one(hands):
    steps = StepTimes(clock=hands)
    events = Events((steps,))
    with events.phase("train", 1, 0, "client"):
        for seconds in (1.0, 5.0, 2.0):
            with events.work(Work("step")):
                hands.advance(seconds)
        with events.work(Work("classify")):
            hands.advance(100.0)
    assert steps.of(1) == {"count": 3, "median_seconds": 2.0, "p95_seconds": 5.0}
    assert steps.of(2) == describe([]) == {"count": 0, "median_seconds": None, "p95_seconds": None}
    assert steps.all["count"] == 3


def test_on_a_gpu_steps_are_timed_in_its_queue_and_none_waits(monkeypatch):
    waits = []

    class Event:
        count = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream of cuda:1"
            Event.count += 1
            self.at = Event.count

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

        def synchronize(self):
            waits.append(self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    steps = StepTimes("cuda:1")
    events = Events((steps,))
    with events.phase("train", 1, 0, "client"):
        for _ in range(3):
            with events.work(Work("step")):
                assert not waits
    assert waits == [6]
    assert steps.of(1) == {"count": 3, "median_seconds": 1.0, "p95_seconds": 1.0}


def cell(**fields):
    small = {"data": {"max_train": 60, "max_test": 20}, "clients": 3, "rounds": 2, "batch_size": 16}
    return run_cell(RunConfig.read({"method": "linear_probe", **small, **fields}))


def test_50_ms_of_sleep_in_aggregation_show_in_that_phase(monkeypatch):
    add = WeightedMean.add

    def sleepy(self, tensors, weight):
        time.sleep(0.05)
        add(self, tensors, weight)

    monkeypatch.setattr(WeightedMean, "add", sleepy)
    for record in cell()["rounds"][1:]:
        # that no other phase has them is shown with a clock that stands still (test_run.py)
        assert record["seconds"]["aggregate"] >= 3 * 0.05
        assert record["server_seconds"]["aggregate"] == record["seconds"]["aggregate"]
        assert record["server_seconds"]["aggregate"] >= 3 * 0.05


@pytest.mark.parametrize("together", [1, 3])
def test_a_runs_times_agree_with_one_another(together):
    result = cell(clients_per_batch=together)
    summary, rounds = result["summary"], result["rounds"]
    named = sum(result["setup"]["seconds"].values()) + sum(sum(r["seconds"].values()) for r in rounds)
    assert summary["unaccounted_seconds"] == pytest.approx(summary["total_seconds"] - named)
    assert summary["unaccounted_seconds"] >= 0
    assert result["client_times"] == ("measured" if together == 1 else "shared")
    for record in rounds[1:]:
        both = [record[f"{side}_seconds"].get("train", 0.0) for side in ("client", "server")]
        assert sum(both) == pytest.approx(record["seconds"]["train"])
        if together == 1:
            assert record["slowest_client_seconds"] <= record["deployment_seconds"]
        else:  # no client was timed by itself
            assert record["slowest_client_seconds"] is record["deployment_seconds"] is None
        assert record["steps"]["count"] == (6 if together == 1 else 2)
    assert summary["client_seconds"] >= summary["train_seconds"]
    deployed = [r["deployment_seconds"] for r in rounds[1:]]
    assert summary["deployment_seconds"] == (pytest.approx(sum(deployed)) if together == 1 else None)
    assert summary["cpu_seconds"] > 0
