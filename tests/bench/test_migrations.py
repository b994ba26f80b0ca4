"""Results of every schema there was stay readable for ever."""

import json
from pathlib import Path

import pandas as pd
import pytest

from bench import store
from bench.migrations import MIGRATIONS, migrated
from bench.report.build import build_report
from bench.report.paper import Paper
from flora.errors import BadInput

ROOT = Path(__file__).parents[2]
OLD = next((ROOT / "tests/data/schema-1").glob("*/*/*/run.json"))


def test_every_schema_before_todays_has_a_step():
    assert sorted(MIGRATIONS) == list(range(1, store.SCHEMA))


def test_an_old_result_is_read_with_all_it_had():
    written = json.loads(OLD.read_text())
    assert written["schema"] == 1
    assert not {"definition", "sittings"} & set(written)
    read = store.load_run(OLD)
    assert read == {
        **written,
        "schema": store.SCHEMA,
        "sittings": [],
        "definition": {
            "hash": "",
            "config": written["config_hash"],
            "data": written["data"]["fingerprint"],
            "suites": "",
            "model": written["model"]["fingerprint"],
            **dict.fromkeys(("harness", "method", "task"), ""),
        },
    }


def test_an_old_result_saved_again_is_of_todays_schema_and_no_longer_migrated(tmp_path):
    read = store.load_run(OLD)
    store.save_run(tmp_path / "run.json", read)
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == store.SCHEMA
    assert store.load_run(tmp_path / "run.json") == read


def test_what_says_it_is_of_schema_1_is_migrated_when_saved(tmp_path):
    store.save_run(tmp_path / "run.json", json.loads(OLD.read_text()))
    assert json.loads((tmp_path / "run.json").read_text()) == store.load_run(OLD)


def test_migrating_leaves_what_it_is_given_as_it_is():
    written = json.loads(OLD.read_text())
    migrated(written)
    assert written == json.loads(OLD.read_text())


def test_a_result_older_than_its_fingerprints_of_data_and_model_is_read(tmp_path):
    written = json.loads(OLD.read_text())
    del written["data"], written["model"]
    (tmp_path / "run.json").write_text(json.dumps(written))
    definition = store.load_run(tmp_path / "run.json")["definition"]
    assert (definition["data"], definition["model"]) == ("", "")


@pytest.mark.parametrize("change", [{"data": "many"}, {"model": [1]}, {"data": {"fingerprint": 3}}])
def test_an_old_result_that_is_damaged_is_refused_by_name(tmp_path, change):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(OLD.read_text()), **change}))
    with pytest.raises(BadInput, match=r"run\.json.*delete it"):
        store.load_run(path)


@pytest.mark.parametrize("schema", [0, -1, True, "1", 1.0, None])
def test_what_is_no_schema_is_refused_by_name(tmp_path, schema):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(OLD.read_text()), "schema": schema}))
    with pytest.raises(BadInput, match="schema"):
        store.load_run(path)


def test_every_reference_result_is_read_and_reported(tmp_path):
    folders = {path.parents[3] for path in (ROOT / "results/reference").rglob("run.json")}
    assert folders
    for folder in folders:
        runs, rounds = store.load_results(folder), store.load_rounds(folder)
        assert len(runs) == len(list(folder.glob("*/*/*/run.json")))
        assert set(rounds["config_hash"]) == set(runs["config_hash"])
        build_report(folder, tmp_path / folder.name, Paper(figures=()))  # figures take long


def test_old_and_new_results_share_one_table(tmp_path):
    old = store.load_run(OLD)
    store.save_run(store.run_path(tmp_path, old["config"], "new"), {**old, "config_hash": "new"})
    path = store.run_path(tmp_path, old["config"], old["config_hash"])
    path.parent.mkdir(parents=True)
    path.write_bytes(OLD.read_bytes())
    runs = store.load_results(tmp_path).drop(columns=["path", "config_hash"])
    pd.testing.assert_series_equal(runs.iloc[0], runs.iloc[1], check_names=False)
