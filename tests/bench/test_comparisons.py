"""Best round beside last, paired differences, what a target took; and the mark of falling below zero-shot."""

import numpy as np
import pandas as pd
import pytest

from bench.report import page
from bench.report.comparisons import best_round_table, paired_table, to_target_table
from bench.report.overview import run_table
from bench.report.statistics import paired_differences
from bench.report.tables import below_zero_shot, beyond_table, deployed_table
from tests.bench.report.made import make_results, make_run, make_runs


def shown(table):
    return {name: [cell.text for cell in cells] for name, cells in table.rows}


def marked(table):
    """The method and heading of each cell with the mark."""
    return {
        (name, heading)
        for name, cells in table.rows
        for heading, cell in zip(table.columns[1:], cells, strict=True)
        if cell.below
    }


# Best and last round


def test_best_and_last_round_stand_side_by_side_with_what_else_was_measured():
    rows = [
        make_run(seed=seed, accuracy=last, best_accuracy=best, best_round=number, calibration_error=0.05)
        for seed, last, best, number in ((0, 0.70, 0.80, 3), (1, 0.72, 0.80, 5))
    ]
    table = best_round_table(make_runs(*rows, make_run("zero_shot", accuracy=0.62, best_accuracy=0.62)))
    assert table.columns[1:] == ["Last round", "Best round", "Number of the best", "Calibration error"]
    last, best, number, error = shown(table)["FLoRA"]
    assert last.startswith("71.0 ± 12.7")
    assert best == "80.0 ± 0.0"
    assert number.startswith("4.0 ± ")
    assert error == "5.0 ± 0.0"
    assert shown(table)["Zero-shot"][2:] == ["–", "–"]
    assert "flatters" in table.caption
    assert {"quantity", "mean", "n"} <= set(table.data.columns)


def test_one_seeds_best_round_is_a_whole_number():
    table = best_round_table(make_runs(make_run(best_round=7)))
    assert shown(table)["FLoRA"][2] == "7"


def test_without_a_best_round_there_is_no_table():
    assert best_round_table(make_runs(make_run(best_accuracy=np.nan))) is None


# Below zero-shot


def test_each_accuracy_is_marked_against_what_it_is_compared_with():
    runs = make_runs(
        make_run(accuracy=0.70, best_accuracy=0.72, client_worst_accuracy=0.3, new_accuracy=0.5,
                 zero_shot_new_accuracy=0.6, client_accuracy_spread=0.0),
        make_run("zero_shot", accuracy=0.62, best_accuracy=0.62, client_worst_accuracy=0.4, new_accuracy=0.6,
                 zero_shot_new_accuracy=0.6, client_accuracy_spread=0.1),
        make_run("bitfit", accuracy=0.50, best_accuracy=0.61, client_worst_accuracy=0.4, new_accuracy=0.6,
                 zero_shot_new_accuracy=0.6, client_accuracy_spread=0.1),
    )  # fmt: skip
    assert marked(beyond_table(runs)) == {("FLoRA", "Worst client"), ("FLoRA", "New classes, after")}
    assert "▼: below zero-shot" in beyond_table(runs).caption
    assert marked(best_round_table(runs)) == {
        ("BitFit", "Last round"),
        ("BitFit", "Best round"),
        ("FLoRA", "Worst client"),
    }
    assert "▼: below zero-shot" in best_round_table(runs).caption


def test_what_prints_the_same_is_not_below_and_the_unknown_is_not_either():
    near = make_runs(make_run(accuracy=0.61996, client_worst_accuracy=0.1))
    assert below_zero_shot(near, "accuracy") == {"FLoRA": False}
    assert below_zero_shot(near, "client_worst_accuracy") == {"FLoRA": False}
    assert "▼" not in beyond_table(near).caption


def test_a_method_as_deployed_is_marked_too():
    rows = [make_run(acceleration=mode, accuracy=0.5) for mode in ("exact", "none")]
    table = deployed_table(make_runs(*rows))
    below = [cell.text for cell in dict(table.rows)["FLoRA"] if cell.below]
    assert below == ["50.0", "50.0"]
    assert "▼: below zero-shot" in table.caption
    better = [make_run(acceleration=mode, accuracy=0.7) for mode in ("exact", "none")]
    assert not any(cell.below for _, cells in deployed_table(make_runs(*better)).rows for cell in cells)


def test_the_list_of_runs_marks_each_run():
    table = run_table(make_runs(make_run(accuracy=0.5), make_run(seed=1, accuracy=0.7)), None)
    column = table.columns.index("Accuracy (%)") - 1
    assert [cells[column].below for _, cells in table.rows] == [True, False]
    assert sum(cell.below for _, cells in table.rows for cell in cells) == 1
    assert "▼" in table.caption
    assert "▼" not in run_table(make_runs(make_run(accuracy=0.7)), None).caption


# Pairs


def test_the_page_has_flora_against_each_other_and_the_file_all_pairs():
    runs, _ = make_results(seeds=(0, 1, 2))
    table = paired_table(runs)
    assert table.columns[0] == "FLoRA minus"
    assert [name for name, _ in table.rows] == [
        "Zero-shot", "Full fine-tuning", "Linear probe", "Attention adapter",
    ]  # fmt: skip
    assert table.groups == [("all data", 3), ("4 shots", 3)]
    assert table.columns[1:4] == ["IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)"]
    assert len(table.data) == 10 * 6
    assert "over the 60 pairs" in table.caption


def test_a_pair_is_shown_from_floras_side_whichever_way_it_is_kept():
    rows = [
        make_run(method, seed=seed, accuracy=accuracy)
        for method, accuracies in {"linear_probe": (0.6, 0.6, 0.6), "flora": (0.7, 0.8, 0.9)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    runs = make_runs(*rows)
    (cell,) = dict(paired_table(runs).rows)["Linear probe"]
    kept = paired_differences(runs).iloc[0]
    assert kept["method_label"] == "Linear probe"
    assert cell.text == "+20.0 ± 24.8"
    assert cell.note == f"p {kept['t_p_holm']:.2g}; 0.25"
    assert not cell.best
    (cell,) = dict(paired_table(runs[runs["seed"] == 0]).rows)["Linear probe"]
    assert (cell.text, cell.note) == ("+10.0", "")


def test_a_loss_has_a_minus_and_a_clear_difference_is_bold():
    rows = [
        make_run(method, seed=seed, accuracy=level + seed / 1000 * shift)
        for method, level, shift in (("flora", 0.5, 1), ("bitfit", 0.7, 2))
        for seed in range(4)
    ]
    (cell,) = dict(paired_table(make_runs(*rows)).rows)["BitFit"]
    assert cell.text.startswith("\N{MINUS SIGN}20.")
    assert cell.best


def test_without_flora_the_first_trained_method_stands_in_and_alone_there_is_no_table():
    rows = [make_run(method) for method in ("zero_shot", "linear_probe", "bitfit")]
    assert paired_table(make_runs(*rows)).columns[0] == "Linear probe minus"
    assert paired_table(make_runs(make_run())) is None
    assert paired_table(make_runs(make_run("zero_shot"))) is None


def test_a_run_as_deployed_is_not_compared_with_itself():
    rows = [make_run(acceleration=mode) for mode in ("exact", "none")]
    assert paired_table(make_runs(*rows, make_run("bitfit"))).data.shape[0] == 1


# Targets


def test_what_a_target_took_is_a_table_of_the_quantities_measured():
    runs, rounds = make_results(methods=("zero_shot", "flora"), splits=("iid",), shots=(pd.NA,))
    table = to_target_table(runs, rounds, 0.7)
    assert table.columns == ["Method", "Seeds that reached it", "Seconds", "Bytes"]
    assert [name for name, _ in table.rows] == ["FLoRA"]
    assert shown(table)["FLoRA"][0] == "2 of 2"
    assert "To an accuracy of 70%" in table.caption
    assert set(table.data["quantity"]) == {"seconds", "bytes"}
    more = rounds.assign(cumulative_joules=rounds["round"] * 2.0, cumulative_deployment_seconds=np.nan)
    assert "Joules" in to_target_table(runs, more, 0.7).columns
    assert "Seconds, clients at once" not in to_target_table(runs, more, 0.7).columns


def test_a_target_not_reached_says_how_far_it_came():
    runs, rounds = make_results(methods=("flora",), splits=("pathological",), shots=(pd.NA,))
    table = to_target_table(runs, rounds, 0.95)
    cells = dict(zip(table.columns[1:], dict(table.rows)["FLoRA"], strict=True))
    assert cells["Seeds that reached it"].text == "0 of 2"
    assert cells["Seconds"].text == "–"
    # rounds of these runs begin at zero-shot and fall from there
    assert cells["Best that did not (%)"].text == "62.0"
    assert "of seeds that did not" in table.caption


def test_where_nothing_trained_there_is_no_table():
    runs, rounds = make_results(methods=("zero_shot",), splits=("iid",), shots=(pd.NA,))
    assert to_target_table(runs, rounds) is None


# Page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs, rounds = make_results(
        methods=("zero_shot", "flora", "bitfit"), splits=("iid", "dirichlet"), shots=(pd.NA,), rounds=2
    )
    out = tmp_path_factory.mktemp("report")
    page.write_report(runs, rounds, out)
    return out, (out / "index.html").read_text("utf-8"), (out / "report.md").read_text("utf-8")


def test_the_page_and_its_files_have_the_new_tables(report):
    out, html, markdown = report
    for stem in ("best-round", "paired", "to-target"):
        files = sorted(out.glob(f"tables/{stem}-*.csv"))
        assert len(files) == (1 if stem == "paired" else 2)
        assert all(len(pd.read_csv(file)) for file in files)
    for text in ("Last round and best", "FLoRA minus", "To an accuracy of"):
        assert text in html
        assert text in markdown
    assert html.count("<details>") == 2
    assert "Last and best round under the other splits and shots" in html


def test_every_table_has_a_number_once_in_the_order_of_the_page(report):
    _, html, _ = report
    numbers = [int(part.partition(".")[0]) for part in html.split("<b>Table ")[1:]]
    assert numbers == list(range(1, len(numbers) + 1))
