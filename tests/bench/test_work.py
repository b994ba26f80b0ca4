"""Operations and live bytes of a run: what follows from the work that is counted, against counting it all."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines import zero_shot
from bench.catalogue import method_modules
from bench.cell import Cell, run_cell
from bench.config import RunConfig
from bench.measure.tensors import Counter
from bench.measure.work import Polynomial, WorkMeter
from flora.events import Events, Listener, RoundRecord, Work

TRAINED = [name for name in method_modules() if name != zero_shot.ZeroShotOptions().name]
SMALL = {
    "data": {"max_train": 60, "max_test": 20},
    "clients": 3,
    "rounds": 2,
    "batch_size": 8,
    "split": {"name": "dirichlet", "beta": 0.5},
}


class Everything(Listener):
    """Counts each piece of work, and notes the bytes that lived besides what was there before."""

    def __init__(self):
        self.flops = {"step": 0, "classify": 0, "classifier": 0}
        self.pieces = dict(self.flops)

    def work_started(self, work):
        self.counter = Counter()
        self.counter.__enter__()

    def work_ended(self, work):
        self.counter.__exit__(None, None, None)
        self.flops[work.kind] += self.counter.flops
        self.pieces[work.kind] += 1


def config(**fields):
    return RunConfig.read({**SMALL, **fields})


@pytest.mark.parametrize(
    ("method", "together"), [*((name, 1) for name in TRAINED), ("flora", 3), ("prompt_tuning", 3)]
)
def test_what_is_not_counted_follows_exactly_from_what_is(method, together):
    cell, everything = config(method=method, clients_per_batch=together), Everything()
    events = Events((everything,))
    for _ in Cell.prepared(cell, None, events).training(events).rounds(cell.rounds):
        pass
    result = run_cell(cell)
    assert result["environment"]["counts_reason"] is None
    assert result["flops"]["train"] == everything.flops["step"] > 0
    counted = sum(result["flops"].get(name, 0) for name in ("prepare", "evaluate", "zero_shot"))
    assert counted == everything.flops["classify"] + everything.flops["classifier"]


def test_two_runs_count_the_same():
    one, other = (run_cell(config(method="flora")) for _ in range(2))
    for part in ("flops", "memory"):
        assert one[part] == other[part]


def test_a_step_of_a_linear_probe_takes_what_its_formula_gives():
    result = run_cell(config(method="linear_probe", clients_per_batch=1))
    seen = sum(record["samples_seen"] for record in result["rounds"])
    width, classes = 128, 10
    # forward, and the gradient of the weights; none is wanted of the features
    assert result["flops"]["train"] == seen * 2 * (2 * width * classes)


@pytest.mark.parametrize("method", ["linear_probe", "flora"])
def test_the_causes_add_up_to_the_peak(method):
    result = run_cell(config(method=method))
    by_cause, by_phase = (result["memory"][part].values() for part in ("by_cause", "by_phase"))
    assert sum(by_cause) == result["summary"]["peak_tensor_bytes"] == max(by_phase)


def test_parameters_and_moments_are_all_there():
    result = run_cell(config(method="full_finetune"))
    summary, memory = result["summary"], result["memory"]
    assert (
        sum(memory["by_cause"].values()) == summary["peak_tensor_bytes"] == max(memory["by_phase"].values())
    )
    trained = 4 * summary["trainable_parameters"]
    assert memory["by_cause"]["parameters"] >= trained
    assert (
        2 * trained <= memory["by_cause"]["optimizer_state"] <= 2 * trained + 8 * 1000
    )  # two moments, counts
    assert memory["by_cause"]["activations"] > 0


def test_a_step_that_tries_again_is_counted_each_time():
    meter = WorkMeter()
    result = run_cell(
        config(method="linear_probe", clients_per_batch=1, model={"name": "tiny", "dtype": "float16"})
    )
    assert result["summary"]["train_flops"] > 0
    meter.watch({}, every_step=True)
    assert not meter._known("step", (1, 1, 0, 0, 0, 0, 0))


def test_what_ran_before_and_how_clients_are_grouped_change_no_count(tmp_path):
    def counts(**fields):
        result = run_cell(config(**fields))
        return result["flops"], result["memory"]

    probe = {"method": "attention_adapter", "split": "iid"}
    before = counts(**probe)
    counts(method={"name": "flora", "places": ["vision.out"]})
    assert counts(**probe) == before
    together = counts(**probe, clients=5)[0]["evaluate"]
    assert together == counts(**probe, clients=5, clients_per_batch=1)[0]["evaluate"]


def test_equal_clients_see_the_servers_mean_too():
    fields = {
        "method": {"name": "full_finetune", "loss": "cross_entropy"},
        "split": "iid",
        "clients_per_batch": 1,
    }
    result = run_cell(config(**fields, data={"max_train": 48, "max_test": 20}))
    trained = 4 * result["summary"]["trainable_parameters"]
    assert result["memory"]["by_cause"]["buffers"] >= 2 * trained


def test_a_step_is_not_timed_while_it_is_counted():
    result = run_cell(config(method="linear_probe", clients_per_batch=1))
    assert result["rounds"][1]["seconds"]["count"] > 0
    assert result["summary"]["check_seconds"] >= result["rounds"][1]["seconds"]["count"]


def test_64_mb_held_in_evaluation_show_there_and_nowhere_else(monkeypatch):
    def peaks():
        return run_cell(config(method="linear_probe"))["memory"]["by_phase"]

    before = peaks()
    from baselines.linear_probe import LinearProbe

    logits = LinearProbe.logits

    def hoarding(self, batch, classifier):
        held = torch.ones(64 * 2**20 // 4)
        return logits(self, batch, classifier) + 0 * held[0]

    monkeypatch.setattr(LinearProbe, "logits", hoarding)
    after = peaks()
    assert after["evaluate"] - before["evaluate"] == 64 * 2**20
    assert {name: after[name] - before[name] for name in ("send", "aggregate", "zero_shot")} == dict.fromkeys(
        ("send", "aggregate", "zero_shot"), 0
    )


def test_the_servers_mean_counts_while_clients_train():
    result = run_cell(config(method="full_finetune", clients_per_batch=1))
    summary, by_cause = result["summary"], result["memory"]["by_cause"]
    trained = 4 * summary["trainable_parameters"]
    assert by_cause["buffers"] >= 2 * trained  # the global state, and the mean so far


def test_work_that_fails_leaves_no_counter_on():
    events = Events((meter := WorkMeter(),))
    with pytest.raises(ZeroDivisionError), events.phase("evaluate", 1), events.work(Work("classifier")):
        1 / 0  # noqa: B018
    flops = meter.flops_by_phase["evaluate"]
    torch.ones(4, 4) @ torch.ones(4, 4)
    assert meter.flops_by_phase["evaluate"] == flops
    events.round(RoundRecord(1, 0.5))


vectors = st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=12)


@given(vectors=vectors, weights=st.tuples(*[st.integers(0, 10**9)] * 4))
def test_a_polynomial_is_exact_where_it_answers_and_answers_in_the_span(vectors, weights):
    known, asked = Polynomial(), []
    for vector in vectors:
        true = sum(x * w for x, w in zip(vector, weights, strict=True))
        found = known.at(vector)
        assert found in (None, true)
        if found is None:
            known.measured(vector, true)
            asked.append(vector)
    assert len(asked) == rank(vectors)
    assert known.at((0, 0, 0, 0)) == 0


def rank(vectors):
    rows, found = [[Fraction(x) for x in vector] for vector in vectors], 0
    for place in range(4):
        pivot = next((row for row in rows[found:] if row[place]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(found, pivot)
        for row in rows[found + 1 :]:
            factor = row[place] / pivot[place]
            row[:] = [x - factor * y for x, y in zip(row, pivot, strict=True)]
        found += 1
    return found
