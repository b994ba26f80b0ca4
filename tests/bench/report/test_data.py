"""What a report reads: each stored run once, with its division of the data and its clients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench.report.data import assemble, read_data
from bench.report.paper import Paper
from bench.store import load_results, load_rounds, run_files
from flora.errors import BadInput
from tests.bench.report.made import make_results, make_run

SPLITS = Path(__file__).parents[3] / "results" / "reference" / "splits"
EARLIER = Path(__file__).parents[2] / "data" / "schema-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reference runs of two methods on two splits, and a cell that failed."""
    folder = tmp_path_factory.mktemp("results")
    for path in run_files(SPLITS):
        config = json.loads(path.read_text())["config"]
        if config["method"]["name"] in ("flora", "linear_probe") and config["split"]["name"] in (
            "iid",
            "domain",
        ):
            shutil.copytree(path.parent, folder / path.parent.relative_to(SPLITS))
    failed = folder / "glyphs" / "flora" / "0123456789ab"
    failed.mkdir()
    (failed / "failure.json").write_text(json.dumps({"reason": "out of\nmemory: 9 GB", "cause": "memory"}))
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return read_data(folder)


def test_runs_and_rounds_are_those_that_the_store_loads(folder, data):
    runs, rounds = load_results(folder), load_rounds(folder)
    labels = ["task_label", "split_label", "twin_label", "method_label", "codec"]
    pd.testing.assert_frame_equal(data.runs.drop(columns=labels), runs, check_like=True)
    assert len(data.rounds) == len(rounds)
    assert data.rounds["accuracy"].sum() == pytest.approx(rounds["accuracy"].sum())


def test_a_division_is_there_once_with_every_sample(data):
    assert set(data.divisions["fingerprint"]) == set(data.runs["split.fingerprint"])
    totals = data.divisions.groupby("fingerprint")["samples"].sum()
    for run in data.runs.to_dict("records"):
        sizes = data.stored[run["config_hash"]]["split"]["client_sizes"]
        assert totals[run["split.fingerprint"]] == sum(sizes)
    assert data.divisions["class_name"].nunique() == 36


def test_clients_have_the_accuracies_of_the_last_round(data):
    for key, part in data.clients.groupby("config_hash"):
        summary = data.stored[key]["summary"]
        assert part["accuracy"].mean() == pytest.approx(summary["client_mean_accuracy"])
        assert part["accuracy"].min() == summary["client_worst_accuracy"]


def test_a_failed_cell_is_named_in_one_line(data):
    (failure,) = data.failures
    assert failure.folder == "glyphs/flora/0123456789ab"
    assert failure.reason == "out of memory: 9 GB"


def test_a_selection_leaves_nothing_of_other_runs(folder):
    data = read_data(folder, Paper.of({"select": {"method": "flora", "split": "iid"}}).choose)
    hashes = set(data.runs["config_hash"])
    assert set(data.runs["method"]) == {"flora"}
    assert set(data.rounds["config_hash"]) == set(data.clients["config_hash"]) == hashes == set(data.stored)
    assert set(data.divisions["fingerprint"]) == set(data.runs["split.fingerprint"])


def test_results_of_before_classes_were_counted_have_the_sizes_of_clients():
    data = read_data(EARLIER)
    assert len(data.divisions)
    assert data.divisions["class_name"].isna().all()
    assert data.clients.empty
    assert data.divisions["class_index"].dtype == "Int64"


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(BadInput, match="make some with"):
        read_data(tmp_path)
    failed = tmp_path / "digits" / "flora" / "0123456789ab"
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(json.dumps({"reason": "no such device"}))
    with pytest.raises(BadInput, match=r"1 cell that failed .*no such device"):
        read_data(tmp_path)


def test_a_damaged_result_stops_the_report_or_is_told(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    path = run_files(copy)[0]
    path.write_text("{")
    with pytest.raises(BadInput):
        read_data(copy)
    told = []
    assert len(read_data(copy, on_damage=told.append).runs) == len(read_data(folder).runs) - 1
    assert len(told) == 1


def test_runs_that_are_not_complete_are_kept_apart():
    runs, rounds = make_results(extra=[make_run(seed=9, status="failed")])
    data = assemble(runs, rounds)
    assert len(data.left_out) == 1
    assert "failed" not in set(data.runs["status"])
    with pytest.raises(BadInput, match="none of 1 runs is complete"):
        assemble(data.left_out, rounds)
