"""The tables, from synthetic results."""

from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest

from bench.report.names import Names, label_runs, without_deployed_twins
from bench.report.tables import (
    accuracy_frame,
    accuracy_table,
    beyond_table,
    cells_of,
    cost_frame,
    cost_table,
    deployed_frame,
    deployed_table,
    few_shot_table,
    further_cost_table,
    main_accuracy_tables,
    scored_apart,
    zero_shot_reference,
)
from bench.report.text import Digits
from bench.report.times import with_times
from tests.bench.report.made import (
    COLD,
    FORMER,
    UNKEPT,
    WARM,
    both_ways,
    make_results,
    make_run,
    make_runs,
)


def test_best_trained_method_and_those_below_zero_shot_are_marked():
    runs = make_runs(
        make_run("zero_shot", accuracy=0.62),
        make_run("flora", accuracy=0.70),
        make_run("linear_probe", accuracy=0.61),
    )
    frame = accuracy_frame(runs).set_index("method")
    assert frame.index[frame["best"]].tolist() == ["flora"]
    assert frame.index[frame["below_zero_shot"]].tolist() == ["linear_probe"]
    markdown = accuracy_table(runs).to_markdown()
    assert "| FLoRA | **70.0** |" in markdown
    assert "| Linear probe | <u>61.0</u> ▼ |" in markdown
    assert "▼: below zero-shot" in markdown
    assert "bold is the highest of the column and underlined the next, which establishes nothing" in markdown


def test_zero_shot_itself_is_never_best():
    runs = make_runs(
        make_run("zero_shot", accuracy=0.9),
        make_run("flora", accuracy=0.5),
        make_run("linear_probe", accuracy=0.4),
    )
    assert accuracy_frame(runs).set_index("method")["best"].to_dict() == {
        "zero_shot": False, "flora": True, "linear_probe": False,
    }  # fmt: skip


def test_captions_explain_the_marks_that_occur_and_no_others():
    clear = [make_run(m, seed=s, accuracy=a) for m, a in (("flora", 0.8), ("bitfit", 0.7)) for s in (0, 1)]
    caption = accuracy_table(make_runs(*clear)).caption
    assert (
        "Bold: best trained method of the column, its lead over each other beyond the 95 % interval"
        in caption
    )
    assert "paired by seed and split" in caption
    assert not any(word in caption for word in ("without a bold", "Welch", "one seed", "▼", "‡"))
    level = [make_run(m, seed=s, accuracy=0.7, broken="lost") for m in ("flora", "bitfit") for s in (0, 1)]
    caption = accuracy_table(make_runs(*level)).caption
    assert "mean of n = 2 seeds ± half width of the 95 % t-interval" in caption
    assert "Underlined without a bold one: the highest and all not told from it" in caption
    assert "‡: an invariant did not hold" in caption
    assert "Bold" not in caption
    apart = [row | {"seed": row["seed"] + 10 * (row["method"] == "bitfit")} for row in clear]
    assert "unpaired (Welch)" in accuracy_table(make_runs(*apart)).caption


def test_marks_are_those_of_their_own_column():
    cells = itertools.product(("flora", "linear_probe"), ("iid", "domain"))
    accuracies = (0.8, 0.6, 0.7, 0.9)
    runs = make_runs(*(make_run(*cell, accuracy=a) for cell, a in zip(cells, accuracies, strict=True)))
    best = accuracy_frame(runs).query("best")
    assert set(zip(best["method"], best["split_label"], strict=True)) == {
        ("flora", "IID"),
        ("linear_probe", "Domain"),
    }


def test_accuracy_table_has_shots_as_column_groups_and_the_interval():
    runs, _ = make_results(seeds=(0, 1, 2))
    table = accuracy_table(runs)
    assert table.groups == [("all data", 3), ("4 shots", 3)]
    assert table.columns[1:] == ["IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)"] * 2
    values = runs.query("method == 'flora' and split == 'iid' and shots.isna()")["accuracy"] * 100
    half = 4.302653 * values.std() / 3**0.5
    assert dict(table.rows)["FLoRA"][0].text == f"{values.mean():.1f} ± {half:.1f}"


def test_methods_scored_on_different_images_are_marked_by_their_own_zero_shot_and_none_is_best():
    rows = [
        make_run("flora", **{"data.protocol": "official"}, accuracy=0.59, zero_shot_accuracy=0.58),
        make_run("flora", **{"data.protocol": "paper"}, accuracy=0.61, zero_shot_accuracy=0.62),
    ]
    table = accuracy_frame(make_runs(*rows)).set_index("method_label")
    assert dict(table["below_zero_shot"]) == {
        "FLoRA (protocol official)": False,
        "FLoRA (protocol paper)": True,
    }
    assert not table["best"].any()
    shown = dict(accuracy_table(make_runs(*rows)).rows)
    assert "Zero-shot" not in shown or shown["Zero-shot"][0].text == "–"


def test_a_cell_that_was_not_run_shows_a_dash():
    runs = make_runs(make_run(), make_run(split="domain"), make_run("linear_probe"))
    assert [cell.text for cell in dict(accuracy_table(runs).rows)["Linear probe"]][1] == "–"


def test_zero_shot_row_comes_from_the_other_runs_where_it_was_not_run():
    table = accuracy_table(make_runs(make_run(zero_shot_accuracy=0.321)))
    assert table.rows[0][0] == "Zero-shot"
    assert table.rows[0][1][0].text == "32.1"


def test_a_zero_shot_run_fills_its_row_under_its_own_name_where_it_was_not_run():
    rows = [make_run("zero_shot"), make_run(), make_run(split="domain", zero_shot_accuracy=0.321)]
    runs = label_runs(make_runs(*rows), Names(methods={"zero_shot": "As it came"}))
    table = accuracy_table(runs)
    shown = {name: [cell.text for cell in cells] for name, cells in table.rows}
    assert dict(zip(table.columns[1:], shown["As it came"], strict=True)) == {"IID": "62.0", "Domain": "32.1"}
    assert "Zero-shot" not in shown


def test_no_row_is_filled_over_a_method_that_its_author_calls_zero_shot():
    runs = label_runs(make_runs(make_run(accuracy=0.8)), Names(methods={"flora": "Zero-shot"}))
    assert [(name, cells[0].text) for name, cells in accuracy_table(runs).rows] == [("Zero-shot", "80.0")]


def test_methods_that_do_not_state_zero_shot_are_compared_with_its_run():
    rows = [make_run("zero_shot"), make_run(accuracy=0.6, zero_shot_accuracy=np.nan)]
    runs = make_runs(*rows)
    for made in (runs, runs.drop(columns="zero_shot_accuracy")):
        assert accuracy_frame(made).set_index("method")["below_zero_shot"].to_dict() == {
            "zero_shot": False,
            "flora": True,
        }


def test_zero_shot_reference_is_that_of_its_own_cell():
    runs = make_runs(make_run(zero_shot_accuracy=0.3), make_run(split="domain", zero_shot_accuracy=0.5))
    reference = zero_shot_reference(runs)
    assert dict(zip(reference["split_label"], reference["zero_shot"], strict=True)) == {
        "IID": 0.3,
        "Domain": 0.5,
    }


def test_cost_ratios_say_how_many_times_less_than_full_fine_tuning():
    runs = make_runs(
        make_run("full_finetune", train_seconds=347.2, peak_memory_bytes=2.47e9, total_seconds=0.0),
        make_run("flora", train_seconds=10.0, peak_memory_bytes=1e9),
    )
    row = cost_frame(runs).set_index("method").loc["flora"]
    assert row["train_seconds_times_less"] == pytest.approx(34.72)
    assert row["peak_memory_bytes_times_less"] == pytest.approx(2.47)
    assert row["trainable_parameters_times_less"] == pytest.approx(151_277_313 / 24_576)
    assert np.isnan(row["from_nothing_seconds_times_less"])
    cells = dict(zip(cost_table(runs).columns[1:], dict(cost_table(runs).rows)["FLoRA"], strict=True))
    assert (cells["Train (s)"].text, cells["Train (s)"].note) == ("10.0", "34.7×")
    assert (cells["Payload"].text, cells["Total from nothing (s)"].note) == ("98.3 kB", "")


def test_costs_are_compared_with_full_fine_tuning_that_is_accelerated_alike():
    seconds = {("flora", "exact"): 1.0, ("flora", "none"): 10.0, ("full_finetune", "exact"): 40.0}
    seconds["full_finetune", "none"] = 50.0
    rows = [make_run(method, acceleration=a, train_seconds=s) for (method, a), s in seconds.items()]
    table = cost_frame(make_runs(*rows)).set_index(["method", "acceleration"])["train_seconds_times_less"]
    assert table["flora", "exact"] == 40.0
    assert table["flora", "none"] == 5.0
    assert table["full_finetune", "none"] == 1.0
    assert "accelerated alike" in cost_table(make_runs(*rows)).caption


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (COLD, (12.0, 0.5, 32.0)),
        (WARM, (12.0, 0.5, 32.0)),
        (FORMER, (12.0, 0.5, 32.0)),
        (UNKEPT, (None, 0.5, 20.0)),
    ],
    ids=["cold", "warm", "former", "nothing kept"],
)
def test_costs_are_as_from_an_empty_cache(seconds, expected):
    runs = make_runs(make_run(**seconds))
    row = with_times(runs).iloc[0]
    found = [row[f"{name}_seconds"] for name in ("features_once", "other_setup", "from_nothing")]
    np.testing.assert_array_equal(found, np.array(expected, float))
    assert ("Features, once (s)" in cost_table(runs).columns) == (expected[0] is not None)


def test_a_warm_cache_flatters_no_method():
    rows = [make_run("full_finetune", **UNKEPT | {"total_seconds": 64.0})]
    rows += [make_run("flora", seed=0, **COLD), make_run("flora", seed=1, **WARM)]
    flora = cost_frame(make_runs(*rows)).set_index("method").loc["flora"]
    assert flora["from_nothing_seconds_times_less"] == 2.0
    assert flora["from_nothing_seconds_half_width"] == 0.0


def test_results_of_a_time_before_acceleration_was_stated_are_read():
    runs = make_runs(make_run()).drop(columns="acceleration")
    assert "Seconds" not in cost_table(runs).caption
    assert deployed_table(runs) is None
    assert list(without_deployed_twins(runs)["method"]) == ["flora"]
    assert label_runs(runs)["method_label"].tolist() == ["FLoRA"]


def test_runs_as_deployed_are_called_so_beside_accelerated_ones_and_only_there():
    runs = label_runs(make_runs(*both_ways("flora"), make_run("linear_probe")))
    assert list(runs["method_label"].cat.categories) == ["Linear probe", "FLoRA", "FLoRA (as deployed)"]
    alone = label_runs(make_runs(make_run(acceleration="none")))
    assert list(alone["method_label"]) == ["FLoRA"]
    other = label_runs(make_runs(make_run(), make_run("full_finetune", acceleration="none")))
    assert set(other["method_label"]) == {"FLoRA", "Full fine-tuning (as deployed)"}


def test_a_method_run_both_ways_stands_beside_itself_with_the_ratio():
    table = deployed_table(make_runs(*both_ways("flora", "full_finetune"), make_run("linear_probe")))
    assert [name for name, _ in table.rows] == ["Full fine-tuning", "FLoRA"]
    headings = dict(zip(table.headings[1:], dict(table.rows)["FLoRA"], strict=True))
    shown = {
        heading: cell.text for heading, cell in headings.items() if "Round" in heading or "Total" in heading
    }
    assert shown == {
        "As deployed, Round (s)": "10.0",
        "Accelerated, Round (s)": "1.00",
        "Ratio, Round (s)": "10.0×",
        "As deployed, Total from nothing (s)": "120",
        "Accelerated, Total from nothing (s)": "30.0",
        "Ratio, Total from nothing (s)": "4.00×",
    }


def test_both_ways_are_compared_over_the_seeds_they_share():
    rows = [*both_ways("flora"), make_run(seed=1, round_seconds=5.0, clients_together=4)]
    frame = deployed_frame(make_runs(*rows))
    assert frame["round_seconds_accelerated"].tolist() == [1.0]
    assert deployed_table(make_runs(make_run(), make_run(seed=1, acceleration="none"))) is None


def test_variants_of_a_method_are_compared_each_with_itself():
    rows = [
        make_run(acceleration=mode, round_seconds=seconds * rank, **{"method.rank": float(rank)})
        for mode, seconds in (("exact", 1.0), ("none", 8.0))
        for rank in (2, 4)
    ]
    frame = deployed_frame(make_runs(*rows)).set_index("twin_label")
    assert frame["round_seconds_ratio"].to_dict() == {"FLoRA (rank 2)": 8.0, "FLoRA (rank 4)": 8.0}
    labels = label_runs(make_runs(*rows))["method_label"]
    assert "FLoRA (rank 4, as deployed)" in set(labels)


def test_captions_say_which_time_they_show():
    accelerated, deployed = (make_run(acceleration=mode) for mode in ("exact", "none"))
    captions = [
        cost_table(make_runs(*rows)).caption for rows in ([accelerated], [deployed], [accelerated, deployed])
    ]
    assert ["of the simulation, accelerated" in caption for caption in captions] == [True, False, True]
    assert ["as deployed" in caption for caption in captions] == [False, True, True]


def test_clients_trained_together_are_told_and_not_compared():
    rows = [make_run("full_finetune", clients_together=1), make_run("flora", clients_together=10)]
    cells = dict(cost_table(make_runs(*rows)).rows)
    assert [cells[name][-1].text for name in ("Full fine-tuning", "FLoRA")] == ["1", "10"]
    assert cells["FLoRA"][-1].note == ""
    assert "Clients at once" not in cost_table(make_runs(make_run(clients_together=1))).columns


def test_seeds_share_a_label_however_many_clients_fitted_together():
    rows = [make_run(seed=seed, clients_per_batch="auto", clients_together=24 + seed) for seed in (0, 1)]
    assert set(label_runs(make_runs(*rows))["method_label"]) == {"FLoRA"}


def test_runs_that_compute_otherwise_are_told_apart():
    asked = [make_run(clients_per_batch=asked) for asked in (1, 8, "auto")]
    assert label_runs(make_runs(*asked))["method_label"].nunique() == 3
    threads = [make_run(**{"compute.threads": threads}) for threads in (1, 2)]
    assert label_runs(make_runs(*threads))["method_label"].nunique() == 2


def test_cost_without_full_fine_tuning_has_no_ratio():
    table = cost_table(make_runs(make_run(), make_run("linear_probe")))
    assert not any(cell.note for _, cells in table.rows for cell in cells)
    assert "times less" not in table.caption


def test_gpu_memory_is_a_column_only_where_it_was_measured():
    assert "Peak GPU memory" not in cost_table(make_runs(make_run())).columns
    assert "Peak GPU memory" in cost_table(make_runs(make_run(peak_gpu_memory_bytes=1e9))).columns


def test_what_was_measured_beyond_the_test_set_has_a_table_and_else_there_is_none():
    assert beyond_table(make_runs(make_run())) is None
    rows = [
        make_run(seed=seed, client_worst_accuracy=worst, new_accuracy=new)
        for seed, worst, new in ((0, 0.5, 0.61), (1, 0.6, 0.63))
    ]
    rows.append(make_run("linear_probe", client_worst_accuracy=0.4, new_accuracy=np.nan))
    table = beyond_table(make_runs(*rows))
    assert table.columns == ["Method", "Worst client", "New classes, after"]
    shown = {name: [cell.text for cell in cells] for name, cells in table.rows}
    # two values a tenth apart: t = 12.706, their standard deviation 0.0707
    assert shown["FLoRA"] == ["55.0 ± 63.5", "62.0 ± 12.7"]
    assert shown["Linear probe"] == ["40.0", "–"]


def test_markdown_table_is_rectangular():
    lines = accuracy_table(make_results()[0]).to_markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert {line.count("|") for line in rows} == {8}


def test_html_table_is_escaped():
    html = accuracy_table(make_runs(make_run("<script>alert(1)</script>"))).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_html_names_rows_columns_and_marks_for_those_who_do_not_see_them():
    rows = [make_run(m, seed=s, accuracy=a) for m, a in (("flora", 0.8), ("bitfit", 0.5)) for s in (0, 1)]
    html = accuracy_table(make_runs(*rows, make_run("linear_probe", accuracy=0.4, broken="lost"))).to_html(
        "Table 1"
    )
    caption = re.search(r'<figcaption id="([^"]+)"><b>Table 1.</b>', html)[1]
    assert html.count(f'aria-labelledby="{caption}"') == 2
    assert html.count('scope="row"') == 4
    assert {"col", "colgroup"} <= set(re.findall(r'scope="(\w+)"', html))
    assert 'aria-label="below zero-shot"' in html
    assert 'aria-label="an invariant did not hold"' in html
    assert re.search(r'<u title="[^"]+">80.0', html)


def test_all_forms_have_the_same_marks():
    runs, _ = make_results(seeds=(0, 1, 2))
    table = accuracy_table(runs)
    cells = [cell for _, row in table.rows for cell in row]
    counts = {mark: sum(getattr(cell, mark) for cell in cells) for mark in ("best", "second", "below")}
    assert all(counts.values())
    forms = {
        table.to_html(): ("<strong", "<u ", 'class="mark"'),
        table.to_markdown().partition("|")[2]: ("**", "<u>", "▼"),
        table.to_latex().partition("toprule")[2]: (r"\fontseries{b}", r"\underline", r"\blacktriangledown"),
    }
    for text, signs in forms.items():
        found = [text.count(sign) / (2 if sign == "**" else 1) for sign in signs]
        assert found == list(counts.values())
    assert pd.read_csv(io.StringIO(table.to_csv()))["mean"].tolist() == table.data["mean"].tolist()


# Over data sets


def on_data_sets(accuracies, seeds=(0, 1), **fields):
    """Runs of each method on its data sets, 0.04 points more for each seed."""
    return [
        make_run(method, task=task, seed=seed, accuracy=accuracy + seed / 2500, **fields)
        for method, by_task in accuracies.items()
        for task, accuracy in by_task.items()
        for seed in seeds
    ]


def test_the_main_table_has_a_row_a_data_set_and_their_mean():
    rows = on_data_sets({"flora": {"b": 0.80, "a": 0.60}, "bitfit": {"a": 0.70, "b": 0.50}})
    (table,) = main_accuracy_tables(make_runs(*rows))
    assert table.columns == ["Data set", "Zero-shot", "BitFit", "FLoRA"]
    assert [name for name, _ in table.rows] == ["a", "b", "Mean"]
    assert table.foot == 1
    # both seeds 0.04 points apart: half width 12.706 x 0.0283 / sqrt(2) = 0.254
    assert [cell.text for cell in table.rows[-1][1]] == ["62.0", "60.0 ± 0.3", "70.0 ± 0.3"]
    best = {name: [cell.best for cell in cells] for name, cells in table.rows}
    assert best == {"a": [False, True, False], "b": [False, False, True], "Mean": [False, False, True]}
    assert [cell.below for cell in dict(table.rows)["Mean"]] == [False, True, False]
    assert "on 2 data sets (ViT-B-32:openai, IID, all data)" in table.caption
    assert "best trained method of the row" in table.caption


def test_the_mean_is_of_methods_that_ran_on_every_data_set():
    rows = on_data_sets({"flora": {"a": 0.6, "b": 0.8}, "bitfit": {"a": 0.9}})
    (table,) = main_accuracy_tables(make_runs(*rows))
    mean = dict(zip(table.columns[1:], dict(table.rows)["Mean"], strict=True))
    assert mean["BitFit"].text == "–"
    assert mean["FLoRA"].text.startswith("70.0")
    assert not mean["FLoRA"].best
    assert "– for 1 method that did not run on all" in table.caption
    neither = on_data_sets({"flora": {"a": 0.6}, "bitfit": {"b": 0.9}})
    (table,) = main_accuracy_tables(make_runs(*neither))
    assert {cell.text for cell in dict(table.rows)["Mean"]} == {"–"}


def test_the_mean_of_zero_shot_needs_every_data_set():
    rows = on_data_sets({"flora": {"a": 0.6, "b": 0.8}, "bitfit": {"a": 0.5, "b": 0.5}})
    for row in rows:
        row["zero_shot_accuracy"] = 0.9 if row["task"] == "a" else np.nan
    (table,) = main_accuracy_tables(make_runs(*rows))
    shown = {name: cells[0].text for name, cells in table.rows}
    assert table.columns[1] == "Zero-shot"
    assert shown == {"a": "90.0", "b": "–", "Mean": "–"}
    assert not any(cell.below for cell in dict(table.rows)["Mean"])
    assert all(cell.below for cell in dict(table.rows)["a"][1:])


def test_no_mean_is_best_where_a_data_set_was_scored_on_different_test_sets():
    rows = on_data_sets({"flora": {"a": 0.6, "b": 0.8}, "bitfit": {"a": 0.5, "b": 0.5}})
    for row in rows:
        before = 0.5 if row["method"] == "flora" else 0.4
        row["zero_shot_accuracy"] = before if row["task"] == "a" else np.nan
    (table,) = main_accuracy_tables(make_runs(*rows))
    best = {name: any(cell.best for cell in cells) for name, cells in table.rows}
    assert best == {"a": False, "b": True, "Mean": False}


def test_a_data_set_may_be_called_as_the_mean_is():
    rows = on_data_sets({"flora": {"mean over data sets": 0.6, "b": 0.8}, "bitfit": {"b": 0.5}})
    (table,) = main_accuracy_tables(make_runs(*rows))
    place = table.columns.index("FLoRA") - 1
    assert [(name, cells[place].text[:4]) for name, cells in table.rows] == [
        ("b", "80.0"), ("mean over data sets", "60.0"), ("Mean", "70.0"),
    ]  # fmt: skip


def test_the_mean_of_unlike_seeds_is_that_of_the_rows_without_interval_or_mark():
    rows = on_data_sets({"flora": {"a": 0.6, "b": 0.8}, "bitfit": {"a": 0.5, "b": 0.5}})
    rows.append(make_run(task="b", seed=2, accuracy=0.95))
    (table,) = main_accuracy_tables(make_runs(*rows))
    flora = dict(zip(table.columns[1:], dict(table.rows)["Mean"], strict=True))["FLoRA"]
    # b: (0.8 + 0.8004 + 0.95) / 3 = 0.8501; a: 0.6002
    assert flora.text == "72.5"
    assert not any(cell.best or cell.second for cell in dict(table.rows)["Mean"])


def test_there_is_a_main_table_for_each_split_and_shots_and_none_for_one_data_set():
    rows = [make_run(task=t, split=s, shots=n) for t in "ab" for s in ("iid", "domain") for n in (1, 4)]
    assert len({table.name for table in main_accuracy_tables(make_runs(*rows))}) == 4
    assert main_accuracy_tables(make_runs(make_run())) == []


def test_a_task_is_called_as_its_author_calls_it():
    runs = label_runs(make_runs(*on_data_sets({"flora": {"a": 0.6, "b": 0.8}})))
    runs["task_label"] = pd.Categorical(
        runs["task"].map({"a": "Zebras", "b": "Apes"}), categories=["Zebras", "Apes"], ordered=True
    )
    (table,) = main_accuracy_tables(runs)
    assert [name for name, _ in table.rows] == ["Zebras", "Apes", "Mean"]


# Few shots


def test_the_few_shot_table_has_splits_as_groups_and_all_data_last():
    runs, _ = make_results(shots=(pd.NA, 1, 4), splits=("iid", "dirichlet"))
    full_only = make_run("flora", "domain")
    table = few_shot_table(make_runs(*runs.to_dict("records"), full_only))
    assert table.groups == [("IID", 3), ("Dirichlet (β = 0.1)", 3)]
    assert table.columns[1:] == ["1 shot", "4 shots", "all data"] * 2
    accuracy = accuracy_table(runs)
    by_level = dict(zip(accuracy.headings[1:], dict(accuracy.rows)["FLoRA"], strict=True))
    shown = dict(zip(table.headings[1:], dict(table.rows)["FLoRA"], strict=True))
    assert shown["1 shot, IID"] == by_level["IID, 1 shot"]
    assert shown["all data, Dirichlet (β = 0.1)"] == by_level["Dirichlet (β = 0.1), all data"]


def test_of_cells_with_as_many_methods_all_data_stand_first_and_then_most_shots():
    cells = cells_of(make_runs(*(make_run(shots=shots) for shots in (1, 16, 4, pd.NA))))
    assert [str(cell["shots"].iloc[0]) for cell in cells] == ["<NA>", "16", "4", "1"]


def test_without_two_numbers_of_shots_there_is_no_few_shot_table():
    assert few_shot_table(make_results()[0]) is None


# Costs and digits


def test_costs_can_be_set_against_another_method():
    rows = [make_run("full_finetune", train_seconds=40.0), make_run("flora", train_seconds=10.0)]
    rows.append(make_run("bitfit", train_seconds=5.0))
    table = cost_table(make_runs(*rows), ("train_seconds",), reference="flora")
    assert {name: cells[0].note for name, cells in table.rows} == {
        "Full fine-tuning": "0.250×", "BitFit": "2.00×", "FLoRA": "",
    }  # fmt: skip
    assert "how many times less than FLoRA" in table.caption
    by_label = cost_table(label_runs(make_runs(*rows)), ("train_seconds",), reference="BitFit")
    assert dict(by_label.rows)["FLoRA"][0].note == "0.500×"
    assert "In brackets" not in cost_table(make_runs(*rows), reference="nothing").caption


def test_operations_and_energy_stand_with_the_costs_and_the_rest_further():
    measured = {"train_flops": 2e12, "energy_joules": 50.0, "cpu_seconds": 3.0}
    runs = make_runs(make_run("full_finetune", **measured), make_run(**measured))
    assert {"Training FLOPs", "Energy (J)"} <= set(cost_table(runs).columns)
    assert further_cost_table(runs).columns == ["Method", "Processor time (s)"]
    assert further_cost_table(make_runs(make_run())) is None


def test_means_of_costs_are_over_the_seeds_that_measured_them():
    rows = [
        make_run(seed=s, energy_joules=e, train_seconds=t) for s, e, t in ((0, 1.0, 2.0), (1, np.nan, 4.0))
    ]
    row = cost_frame(make_runs(*rows)).iloc[0]
    assert (row["energy_joules"], row["train_seconds"]) == (1.0, 3.0)
    assert np.isnan(row["energy_joules_half_width"])
    # 12.706 x 1.414 / sqrt(2)
    assert row["train_seconds_half_width"] == pytest.approx(12.7062)


def test_numbers_have_as_many_digits_as_asked_for():
    digits = Digits(accuracy=2, cost=4)
    rows = [make_run("flora", accuracy=0.70014, train_seconds=12.3456, payload_bytes=98_304)]
    rows.append(make_run("full_finetune", accuracy=0.70009, train_seconds=100.0, payload_bytes=605_109_252))
    runs = make_runs(*rows)
    assert dict(accuracy_table(runs, digits).rows)["FLoRA"][0].text == "70.01"
    assert dict(accuracy_table(runs, digits).rows)["FLoRA"][0].second
    assert dict(accuracy_table(runs, Digits(accuracy=3)).rows)["FLoRA"][0].best
    cells = dict(cost_table(runs, ("trainable_parameters", "payload_bytes", "train_seconds"), digits).rows)
    assert [cell.text for cell in cells["FLoRA"]] == ["24,576", "98.30 kB", "12.35"]
    assert cells["FLoRA"][2].note == "8.100×"


@pytest.mark.parametrize(("decimals", "below"), [(1, False), (3, True)])
def test_below_zero_shot_is_as_printed(decimals, below):
    runs = make_runs(
        make_run(accuracy=0.61996, client_worst_accuracy=0.1, new_accuracy=0.5996, zero_shot_new_accuracy=0.6)
    )
    digits = Digits(accuracy=decimals)
    assert dict(accuracy_table(runs, digits).rows)["FLoRA"][0].below is below
    assert dict(beyond_table(runs, digits).rows)["FLoRA"][-1].below is below


def test_every_table_of_one_seed_one_method_and_one_round_can_be_set():
    (cell,) = cells_of(make_runs(make_run(rounds=1)))
    for table in (accuracy_table(cell), cost_table(cell)):
        assert all((table.to_latex(), table.to_markdown(), table.to_html(), table.to_csv()))
        assert "one seed" in table.caption


def test_test_images_drawn_by_the_seed_are_the_same_for_all_methods():
    """A seed that one method lacks shifts its mean zero-shot accuracy, and sets no method apart."""
    drawn = {0: 0.60, 1: 0.70}
    rows = [make_run("flora", seed=1, zero_shot_accuracy=drawn[1])]
    rows += [make_run("linear_probe", seed=seed, zero_shot_accuracy=drawn[seed]) for seed in drawn]
    assert not scored_apart(make_runs(*rows))["scored_apart"].any()
    rows[0] |= {"zero_shot_accuracy": 0.71}
    assert scored_apart(make_runs(*rows))["scored_apart"].all()
