"""Operations and live bytes of a run: what follows from the work that is counted, against counting it all."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines import zero_shot
from bench.catalogue import method_modules
from bench.config import RunConfig
from bench.measure.tensors import Counter
from bench.measure.work import Polynomial, WorkMeter
from bench.run import run_cell
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
    everything, meter = Everything(), WorkMeter()
    cell = config(method=method, clients_per_batch=together)
    run_cell(cell, [everything])
    run_cell(cell, [meter])
    assert meter.flops_by_phase["train"] == everything.flops["step"] > 0
    in_evaluation = everything.flops["classify"] + everything.flops["classifier"]
    assert meter.flops_by_phase["evaluate"] + meter.flops_by_phase["zero_shot"] == in_evaluation


def test_two_runs_count_the_same():
    one, other = WorkMeter(), WorkMeter()
    for meter in (one, other):
        run_cell(config(method="flora"), [meter])
    assert one.flops_by_phase == other.flops_by_phase
    assert one.peak_by_phase == other.peak_by_phase
    assert one.peak_by_cause == other.peak_by_cause


def test_a_step_of_a_linear_probe_takes_what_its_formula_gives():
    meter = WorkMeter()
    result = run_cell(config(method="linear_probe", clients_per_batch=1), [meter])
    seen = sum(record["samples_seen"] for record in result["rounds"])
    width, classes = 128, 10
    # forward, and the gradient of the weights; none is wanted of the features
    assert meter.flops_by_phase["train"] == seen * 2 * (2 * width * classes)


def test_the_causes_add_up_to_the_peak_and_parameters_are_all_there():
    meter = WorkMeter()
    result = run_cell(config(method="full_finetune"), [meter])
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
