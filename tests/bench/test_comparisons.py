"""Best round beside last, paired differences, what a target took; and the mark of falling below zero-shot."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.report.build import make_report
from bench.report.comparisons import (
    _p_text,
    best_round_table,
    differences_frame,
    paired_table,
    ranks_table,
    to_target_table,
)
from bench.report.data import ReportData
from bench.report.names import label_rounds, label_runs
from bench.report.overview import run_table
from bench.report.paper import Paper
from bench.report.statistics import paired_differences
from bench.report.tables import below_zero_shot, beyond_table, deployed_table
from bench.report.text import Digits
from tests.bench.report.made import make_results, make_run, make_runs


def data_of(runs, rounds=None):
    """What a report of these is made of."""
    runs = label_runs(runs)
    rounds = pd.DataFrame() if rounds is None else label_rounds(rounds, runs)
    return ReportData(runs, rounds, runs[:0])


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
    table = run_table(data_of(make_runs(make_run(accuracy=0.5), make_run(seed=1, accuracy=0.7))))
    column = table.columns.index("Accuracy (%)") - 1
    assert [cells[column].below for _, cells in table.rows] == [True, False]
    assert sum(cell.below for _, cells in table.rows for cell in cells) == 1
    assert "▼" in table.caption
    assert "▼" not in run_table(data_of(make_runs(make_run(accuracy=0.7)))).caption


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
    assert cell.note == f"p {kept['t_p_holm']:.3f}"
    assert "Wilcoxon" not in paired_table(runs).caption
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


def paired(differences, level=0.5):
    """Runs of FLoRA that differ so from BitFit's, seed by seed."""
    return make_runs(
        *(
            make_run(method, seed=seed, accuracy=level + difference * (method == "flora"))
            for seed, difference in enumerate(differences)
            for method in ("flora", "bitfit")
        )
    )


def test_wilcoxons_test_is_shown_from_six_seeds_on():
    five, six = (paired_table(paired([0.01 * (seed + 1) for seed in range(n)])) for n in (5, 6))
    assert ";" not in dict(five.rows)["BitFit"][0].note
    assert "Wilcoxon" not in five.caption
    # 2 / 2^6
    assert dict(six.rows)["BitFit"][0].note.endswith("; 0.031")
    assert (
        "of Wilcoxon's signed-rank test, from 6 seeds on; after Holm's correction over the 1 pair"
        in six.caption
    )
    assert "Bold: significant, whichever is higher" in six.caption


def test_captions_say_where_there_is_no_test_and_count_no_pairs_that_have_none():
    alike = paired_table(paired([0.1] * 6))
    assert dict(alike.rows)["BitFit"][0].note == "p –; 0.031"
    assert "(–: all differences the same and not zero); of Wilcoxon's" in alike.caption
    few = paired_table(paired([0.1] * 3))
    assert dict(few.rows)["BitFit"][0].note == ""
    assert "No test: all differences the same and not zero." in few.caption
    assert not any("over the 0" in table.caption for table in (alike, few))
    unpaired = paired_table(apart(flora=(0.7, 0.7), bitfit=(0.6, 0.6))).caption
    assert "which without any spread have no test" in unpaired
    assert "one seed have" not in unpaired


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "< 0.001"), (0.0123, "0.012"), (0.0496, "< 0.05"), (0.0501, "0.050"), (0.049, "0.049"),
     (0.123, "0.12"), (1.0, "1"), (np.nan, "–")],
)  # fmt: skip
def test_a_p_below_the_threshold_is_not_printed_as_the_threshold(p, text):
    assert _p_text(p) == text


def test_methods_scored_on_different_test_sets_are_neither_paired_nor_ranked():
    rows = [
        make_run(method, split, task=task, seed=seed, accuracy=0.6 + place / 10 + seed / 100 * place,
                 zero_shot_accuracy=0.5 + 0.1 * (place == 1 and task == "a" and split == "iid"))
        for task in "abc"
        for split in ("iid", "domain")
        for place, method in enumerate(("flora", "bitfit"))
        for seed in (0, 1)
    ]  # fmt: skip
    runs = make_runs(*rows)
    table = paired_table(runs[runs["task"] == "a"])
    assert table.columns == ["FLoRA minus", "Domain"]
    assert set(table.data["split_label"]) == {"Domain"}
    told = "Left out, as methods were scored on different test sets: a, IID, all data."
    assert told in table.caption
    ranks = ranks_table(runs)
    numbers = dict(zip(ranks.columns[1:], dict(ranks.rows)["Data sets"], strict=True))
    assert {where: cell.text for where, cell in numbers.items()} == {
        "IID, all data": "2", "Domain, all data": "3",
    }  # fmt: skip
    assert told in ranks.caption
    assert "Left out" not in ranks_table(runs[runs["task"] != "a"]).caption


def test_without_flora_the_first_trained_method_stands_in_and_alone_there_is_no_table():
    rows = [make_run(method) for method in ("zero_shot", "linear_probe", "bitfit")]
    assert paired_table(make_runs(*rows)).columns[0] == "Linear probe minus"
    assert paired_table(make_runs(make_run())) is None
    assert paired_table(make_runs(make_run("zero_shot"))) is None


def test_a_run_as_deployed_is_not_compared_with_itself():
    rows = [make_run(acceleration=mode) for mode in ("exact", "none")]
    assert paired_table(make_runs(*rows, make_run("bitfit"))).data.shape[0] == 1


# No common seeds


def apart(**accuracies):
    """Runs of methods that share no seed."""
    return make_runs(
        *(
            make_run(method, seed=10 * start + index, accuracy=accuracy)
            for start, (method, values) in enumerate(accuracies.items())
            for index, accuracy in enumerate(values)
        )
    )


def test_without_common_seeds_the_caption_says_that_paired_tests_are_impossible_and_gives_welchs():
    runs = apart(flora=(0.70, 0.71, 0.72), bitfit=(0.60, 0.61, 0.62))
    table = paired_table(runs)
    (cell,) = dict(table.rows)["BitFit"]
    # both deviate by 0.01: error 0.01 sqrt(2 / 3), four degrees of freedom, t = 2.7764
    assert cell.text == "+10.0 ± 2.3"
    p = stats.ttest_ind((0.70, 0.71, 0.72), (0.60, 0.61, 0.62), equal_var=False).pvalue
    assert table.data["t_p"].tolist() == pytest.approx([p])
    assert cell.note == "p < 0.001, unpaired"
    assert cell.best
    assert "paired tests are impossible" in table.caption
    assert "Welch's t-test" in table.caption
    assert "Wilcoxon" not in table.caption


def test_pairs_that_share_seeds_stay_paired_beside_others_that_do_not():
    runs = apart(flora=(0.70, 0.71), bitfit=(0.60, 0.62), linear_probe=(0.5, 0.53))
    runs.loc[runs["method"] == "bitfit", "seed"] = [0, 1]
    frame = differences_frame(runs).set_index(["method_label", "other_label"])
    assert frame["test"].to_dict() == {
        ("BitFit", "FLoRA"): "paired",
        ("Linear probe", "BitFit"): "unpaired",
        ("Linear probe", "FLoRA"): "unpaired",
    }
    unpaired = frame[frame["test"] == "unpaired"]
    assert set(unpaired["family"]) == {2}
    # the smaller p of two is doubled
    assert unpaired["t_p_holm"].min() == pytest.approx(2 * unpaired["t_p"].min())
    caption = paired_table(runs).caption
    assert "over the same seeds" in caption
    assert "Unpaired, where too few seeds are shared" in caption


def test_one_common_seed_among_several_is_no_paired_test():
    runs = apart(flora=(0.70, 0.71, 0.72), bitfit=(0.60, 0.61, 0.62))
    runs.loc[runs["method"] == "bitfit", "seed"] = [2, 3, 4]
    assert differences_frame(runs)["test"].tolist() == ["unpaired"]
    single = apart(flora=(0.7,), bitfit=(0.6,))
    assert dict(paired_table(single).rows)["BitFit"][0].text == "+10.0"
    assert "have no test" in paired_table(single).caption
    single["seed"] = 0
    assert differences_frame(single)["test"].tolist() == ["paired"]


def test_differences_have_the_decimals_asked_for():
    runs = make_runs(make_run(accuracy=0.71234), make_run("bitfit", accuracy=0.70001))
    assert dict(paired_table(runs, Digits(accuracy=2)).rows)["BitFit"][0].text == "+1.23"


# Ranks


def on_tasks(n_tasks, methods=("flora", "bitfit", "linear_probe", "full_finetune")):
    """The methods in the same order on every data set."""
    return make_runs(
        *(
            make_run(method, task=f"task{index}", accuracy=0.8 - place / 10 + index / 1000)
            for index in range(n_tasks)
            for place, method in enumerate(methods)
        )
    )


def test_ranks_stand_with_friedmans_test_and_the_critical_difference():
    table = ranks_table(on_tasks(12))
    assert {name: cells[0].text for name, cells in table.rows} == {
        "Full fine-tuning": "4.00",
        "Linear probe": "3.00",
        "BitFit": "2.00",
        "FLoRA": "1.00",
        "Data sets": "12",
        # 2.569 x sqrt(4 x 5 / (6 x 12)), Demšar's table 5a
        "Critical difference": "1.35",
        "Friedman's p": "< 0.001",
    }
    assert table.foot == 3
    marks = {name: (cells[0].best, cells[0].second) for name, cells in table.rows}
    assert [name for name, (best, _) in marks.items() if best] == []
    assert {name for name, (_, second) in marks.items() if second} == {"FLoRA", "BitFit"}
    assert "Underlined: not told from the lowest" in table.caption


def test_a_rank_beyond_the_critical_difference_is_bold():
    table = ranks_table(on_tasks(30))
    assert dict(table.rows)["FLoRA"][0].best
    assert not dict(table.rows)["BitFit"][0].second


def test_too_few_data_sets_have_ranks_but_no_marks_and_one_has_no_table():
    table = ranks_table(on_tasks(3))
    assert dict(table.rows)["Friedman's p"][0].text == "–"
    assert not any(cell.best or cell.second for _, cells in table.rows for cell in cells)
    assert "too few data sets" in table.caption
    assert ranks_table(on_tasks(1)) is None
    assert ranks_table(on_tasks(6, methods=("flora",))) is None


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
def report():
    runs, rounds = make_results(
        methods=("zero_shot", "flora", "bitfit"), splits=("iid", "dirichlet"), shots=(pd.NA,), rounds=2
    )
    return make_report(data_of(runs, rounds), Paper(figures=()))


def test_the_report_has_these_tables_for_each_split(report):
    for stem, number in (("best-round", 2), ("paired", 1), ("to-target", 2)):
        found = [table for table in report.tables if table.name.startswith(stem)]
        assert len(found) == number
        assert all(len(table.data) for table in found)


def test_every_table_has_a_number_once_in_the_order_of_the_page(report):
    numbers = [report.number[table.name] for table in report.tables]
    assert numbers == [f"Table {index}" for index in range(1, len(numbers) + 1)]
