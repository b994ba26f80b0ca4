"""The paper's claims: verdicts follow from results, whatever these are."""

import json

import pandas as pd
import pytest

from bench import claims, execute
from bench.execute import Outcome
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


def accuracies(of_flora, of_others=0.80, spread=0.001, methods=("flora", *claims.BASELINES, "zero_shot")):
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
            + spread * seed * (method == "flora"),
        }
        for method in methods
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


def of_iid(found):
    return next(finding for finding in found if finding.claim == "accuracy-iid")


@pytest.mark.parametrize(
    ("differences", "spread", "verdict", "told"),
    [
        # seeds at d, d + spread, d + 2 spreads: mean d + spread, half width 4.303 spread / sqrt(3)
        ((0.05, 0.05, 0.05), 0.001, "holds", "settled: 3 of 3 differences (3 above, 0 below)"),
        ((0.0, 0.0, 0.05), 0.01, "holds", "settled: 1 of 3 differences (1 above, 0 below)"),
        ((-0.03, 0.05, 0.05), 0.001, "holds partly", "settled: 3 of 3 differences (2 above, 1 below)"),
        ((-0.02, -0.02, -0.02), 0.01, "holds partly", "settled: 0 of 3 differences (0 above, 0 below)"),
        ((-0.02, -0.02, -0.09), 0.01, "does not hold", "settled: 1 of 3 differences (0 above, 1 below)"),
    ],
)
def test_accuracy_is_judged_by_intervals(differences, spread, verdict, told):
    runs = accuracies(lambda *_: 0.8, spread=spread)
    for baseline, difference in zip(claims.BASELINES, differences, strict=True):
        runs.loc[runs["method"] == baseline, "accuracy"] = 0.8 - difference
    found = of_iid(claims.findings(costs(), runs))
    assert found.verdict == verdict
    assert told in found.measured


def test_one_seed_settles_nothing():
    runs = accuracies(lambda *_: 0.7)
    found = of_iid(claims.findings(costs(), runs[runs["seed"] == 0]))
    assert found.verdict == "holds partly"
    assert {x["standing"] for x in found.figures["differences"]} == {"not settled"}
    assert found.figures["differences"][0]["half_width"] is None
    assert "± –" in found.measured


@pytest.mark.parametrize("methods", [("flora", "linear_probe"), claims.BASELINES, ("flora",), ("zero_shot",)])
def test_missing_pairs_cannot_be_tested(methods):
    found = of_iid(claims.findings(costs(), accuracies(lambda *_: 0.9, methods=methods)))
    assert found.verdict == "cannot be tested here"
    assert "of 3 comparisons" in found.why


def test_a_missing_split_cannot_be_tested():
    runs = accuracies(lambda *_: 0.9)
    found = verdicts(costs(), runs[runs["split"] != "iid"])
    assert found["accuracy-iid"] == found["accuracy-few-shot"] == "cannot be tested here"
    assert found["accuracy-dirichlet"] == "holds"


@pytest.mark.parametrize(
    ("column", "claim"),
    [
        ("train_seconds", "training-time"),
        ("peak_memory_bytes", "memory"),
        ("peak_tensor_bytes", "memory"),
        ("payload_bytes", "bytes"),
    ],
)
def test_missing_costs_cannot_be_tested(column, claim):
    one = costs()
    one.loc[one["method"] == "flora", column] = None
    for missing in (one, costs().drop(columns=column)):
        found = {x.claim: x for x in claims.findings(missing, accuracies(lambda *_: 0.9))}
        assert [x for x in found if found[x].verdict == "cannot be tested here"] == [claim, "paper-data"]
        assert column in found[claim].why
        json.dumps([x.to_dict() for x in found.values()], allow_nan=False)


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


# The command


@pytest.fixture
def ran(monkeypatch):
    """Have runs take no time, and their results be what a test says."""
    frames = []

    def run_matrix(cells, results, **_):
        for cell in cells:
            yield Outcome(cell, "ran", results / cell.hash, {"accuracy": 0.9})

    monkeypatch.setattr(execute, "run_matrix", run_matrix)
    monkeypatch.setattr("bench.store.load_results", lambda paths: frames.pop(0))
    return frames


@pytest.mark.parametrize(
    ("seconds", "of_flora", "code"), [(50.0, 0.9, 0), (10.0, 0.9, 1), (50.0, 0.7, 1), (None, 0.9, 0)]
)
def test_only_what_does_not_wholly_hold_is_exit_code_1(run_cli, ran, tmp_path, seconds, of_flora, code):
    ran += [costs(train=(seconds, 1.0), memory=(3e9, 1e9)), accuracies(lambda *_: of_flora)]
    arguments = ("claims", "--device", "cpu", "--results", str(tmp_path / "results"), "--no-cache")
    got, out, err = run_cli(*arguments, "--out", str(tmp_path / "out"), "--json")
    assert got == code
    assert [finding["claim"] for finding in json.loads(out)] == NAMES
    assert json.loads((tmp_path / "out" / "claims.json").read_text())["claims"] == json.loads(out)
    n_cells = sum(len(claims.cells(part, "cpu")) for part in (claims.COST_CELLS, claims.ACCURACY_CELLS))
    assert f"{n_cells} of {n_cells} runs to do; with none kept they take about ten minutes on 2 cores" in err


def test_a_folder_that_takes_no_files_is_found_before_anything_runs(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr(execute, "run_matrix", None)  # calling it would fail
    (tmp_path / "out").write_text("a file")
    code, out, err = run_cli("claims", "--device", "cpu", "--no-cache", "--out", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--out: cannot write to" in err


def test_an_interrupt_says_what_is_kept(run_cli, monkeypatch, tmp_path):
    def run_matrix(cells, results, **_):
        yield Outcome(cells[0], "ran", results / "one", {"accuracy": 0.9})
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run_matrix", run_matrix)
    code, out, err = run_cli("claims", "--device", "cpu", "--no-cache", "--results", str(tmp_path))
    assert (code, out) == (130, "")
    assert "interrupted: 1 of " in err
    assert "same command again" in err
