"""The paper's claims: verdicts follow from results, whatever these are."""

import json

import pandas as pd
import pytest

from bench import claims
from bench.report.names import label_runs

NAMES = [
    "training-time",
    "memory",
    "bytes",
    "accuracy-iid",
    "accuracy-dirichlet",
    "accuracy-pathological",
    "accuracy-few-shot",
    "paper-data",
]


def costs(train=(50.0, 1.0), memory=(2.0e9, 1.0e9), gpu=None):
    rows = [
        {
            "method": method,
            "acceleration": acceleration,
            "train_seconds": train[index],
            "peak_memory_bytes": memory[index],
            "peak_gpu_memory_bytes": None if gpu is None else gpu[index],
            "peak_tensor_bytes": 4.0e9 / (1 + index),
            "payload_bytes": 1e6 / (1 + 9 * index),
        }
        for index, method in enumerate(("full_finetune", "flora"))
        for acceleration in ("exact", "none")
    ]
    return pd.DataFrame(rows)


def accuracies(of_flora, of_others=0.80):
    rows = [
        {
            "task": "digits",
            "model": "tiny",
            "method": method,
            "split": split,
            "shots": shots,
            "seed": seed,
            "config_hash": f"{method}{split}{shots}{seed}",
            "accuracy": (of_flora(split, shots) if method == "flora" else of_others)
            + 0.001 * seed * (method == "flora"),
        }
        for method in ("flora", *claims.BASELINES, "zero_shot")
        for split in ("iid", "dirichlet", "pathological")
        for shots in (None, 4)
        for seed in range(3)
    ]
    frame = pd.DataFrame(rows)
    frame["shots"] = frame["shots"].astype("Int64")
    return label_runs(frame)


def verdicts(costs, accuracies):
    return {finding.claim: finding.verdict for finding in claims.findings(costs, accuracies)}


def test_every_claim_has_a_verdict_and_says_how_it_follows():
    found = claims.findings(costs(), accuracies(lambda split, shots: 0.9))
    assert [finding.claim for finding in found] == NAMES
    assert all(finding.says and finding.setting and finding.measured and finding.why for finding in found)
    json.dumps([finding.to_dict() for finding in found], allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [((35.0, 1.0), "holds"), ((30.0, 1.0), "holds partly"), ((0.9, 1.0), "does not hold")],
)
def test_the_verdict_on_time_follows_from_the_ratio(seconds, verdict):
    assert verdicts(costs(train=seconds), accuracies(lambda *_: 0.9))["training-time"] == verdict


@pytest.mark.parametrize(
    ("peaks", "verdict"), [((2.5, 1.0), "holds"), ((2.4, 1.0), "holds partly"), ((1.0, 1.0), "does not hold")]
)
def test_memory_is_that_of_the_gpu_where_there_is_one(peaks, verdict):
    on_gpu = costs(memory=(1.0, 9.0), gpu=peaks)
    assert verdicts(on_gpu, accuracies(lambda *_: 0.9))["memory"] == verdict
    assert verdicts(costs(memory=peaks), accuracies(lambda *_: 0.9))["memory"] == verdict


def test_accuracy_is_judged_by_split_and_shots():
    def of_flora(split, shots):
        return 0.7 if split == "dirichlet" and shots is None else 0.9

    found = verdicts(costs(), accuracies(of_flora))
    assert found["accuracy-iid"] == found["accuracy-pathological"] == found["accuracy-few-shot"] == "holds"
    assert found["accuracy-dirichlet"] == "does not hold"
    mixed = verdicts(costs(), accuracies(lambda split, shots: 0.9 if split == "iid" else 0.7))
    assert mixed["accuracy-few-shot"] == "holds partly"


def test_differences_are_paired_and_in_points():
    found = {x.claim: x for x in claims.findings(costs(), accuracies(lambda *_: 0.9))}
    differences = found["accuracy-iid"].figures["differences"]
    assert [x["n"] for x in differences] == [3, 3, 3]
    assert [x["difference_points"] for x in differences] == pytest.approx([10.1] * 3)


def test_what_cannot_be_tested_here_is_said():
    assert verdicts(costs(), accuracies(lambda *_: 0.9))["paper-data"] == "cannot be tested here"


def test_the_page_has_a_row_and_a_note_a_claim():
    found = claims.findings(costs(), accuracies(lambda *_: 0.9))
    page = claims.to_markdown(found, "a processor")
    assert page.count("\n| ") == len(found) + 1
    assert page.count("\n- **") == len(found)


def test_the_runs_behind_the_claims_can_be_had():
    cost, accuracy = (claims.cells(part, "cpu") for part in (claims.COST_CELLS, claims.ACCURACY_CELLS))
    assert {(x.method.name, x.acceleration) for x in cost} == {
        (method, mode) for method in ("flora", "full_finetune") for mode in ("exact", "none")
    }
    assert {x.method.name for x in accuracy} >= {"flora", *claims.BASELINES}
    assert {x.seed.split for x in accuracy} == {0, 1, 2}
