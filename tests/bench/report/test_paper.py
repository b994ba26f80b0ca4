"""An author's settings: names, order, selection and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.report.names import Names, label_runs
from bench.report.paper import Paper
from flora.errors import BadInput
from tests.bench.report.made import make_results, make_run, make_runs


def categories(runs, column):
    return list(runs[column].cat.remove_unused_categories().cat.categories)


def test_own_names_replace_those_of_the_report():
    runs, _ = make_results()
    names = Names(tasks={"cifar10": "CIFAR-10"}, methods={"flora": "Ours"}, splits={"iid": "Even"})
    labelled = label_runs(runs, names)
    assert categories(labelled, "task_label") == ["CIFAR-10"]
    assert "Ours" in categories(labelled, "method_label")
    assert "Even" in categories(labelled, "split_label")


def test_a_label_with_options_can_be_named_by_itself():
    runs = make_runs(*(make_run(**{"method.rank": float(rank)}) for rank in (2, 8)))
    labelled = label_runs(runs, Names(methods={"flora": "Ours", "FLoRA (rank 8)": "Ours-8"}))
    assert categories(labelled, "method_label") == ["Ours (rank 2)", "Ours-8"]


def test_what_is_ordered_stands_first_and_the_rest_as_ever():
    runs, _ = make_results()
    usual = categories(label_runs(runs), "method_label")
    labelled = label_runs(runs, Names(method_order=["flora", "Linear probe"]))
    assert categories(labelled, "method_label") == [
        "FLoRA",
        "Linear probe",
        *(name for name in usual if name not in ("FLoRA", "Linear probe")),
    ]


def test_two_methods_of_one_name_are_refused_as_their_mean_would_be_of_nothing():
    runs, _ = make_results()
    with pytest.raises(BadInput, match=r"names\.methods: .*both called 'Same'"):
        label_runs(runs, Names(methods={"flora": "Same", "linear_probe": "Same"}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fonts": "serif"}, ["fonts", "did you mean 'font'"]),
        ({"names": {"method": {}}}, ["names.method", "did you mean 'methods'"]),
        ({"font": "mono"}, ["font 'mono' must be 'sans' or 'serif'"]),
        ({"formats": ["gif"]}, ["'gif'", "'pdf', 'svg', 'png' or 'pgf'"]),
        ({"formats": []}, ["formats"]),
        ({"digits": {"accuracy": 9}}, ["digits.accuracy", "9"]),
        ({"target": 80}, ["target", "80"]),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(settings, words):
    with pytest.raises(BadInput) as caught:
        Paper.of(settings)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "font: [", "\x00"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text):
    path = tmp_path / "paper.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"paper\.yaml: "):
        Paper.read(path)
    with pytest.raises(BadInput, match="cannot be read"):
        Paper.read(tmp_path / "missing.yaml")


def test_an_empty_file_is_the_reports_own_way(tmp_path):
    path = tmp_path / "paper.yaml"
    path.write_text("# nothing yet\n")
    assert Paper.read(path) == Paper()


def test_settings_survive_being_written_down():
    paper = Paper.of(
        {"select": {"shots": [None, 4]}, "names": {"tasks": {"a": "B"}}, "where": "method=flora"}
    )
    assert Paper.of(paper.model_dump(mode="json")) == paper


def test_selected_values_are_those_asked_for():
    runs, _ = make_results()
    chosen = Paper.of({"select": {"method": ["flora", "linear_probe"], "shots": None}}).choose(runs)
    assert set(chosen["method"]) == {"flora", "linear_probe"}
    assert chosen["shots"].isna().all()
    assert len(chosen) == ((runs["method"].isin(["flora", "linear_probe"])) & runs["shots"].isna()).sum()


def test_a_condition_and_a_selection_must_both_hold():
    runs, _ = make_results()
    chosen = Paper.of({"where": "seed=1", "select": {"split": "iid"}}).choose(runs)
    assert set(chosen["seed"]) == {1}
    assert set(chosen["split"]) == {"iid"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"select": {"method": "flor"}}, ["select.method", "'flor'", "did you mean 'flora'", "linear_probe"]),
        ({"select": {"methd": "flora"}}, ["select", "'methd'", "'method'"]),
        ({"where": "task=mnist"}, ["task=mnist", "none of 60", "cifar10", "flora", "pathological", "null"]),
        ({"where": "task"}, ["where", "FIELD=VALUE"]),
    ],
)
def test_a_selection_of_nothing_says_what_there_is(settings, words):
    runs, _ = make_results()
    assert isinstance(runs, pd.DataFrame)
    with pytest.raises(BadInput) as caught:
        Paper.of(settings).choose(runs)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)
