"""Mean ranks, Friedman's test, Nemenyi's critical difference, and the diagram of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from bench.report import figures
from bench.report.names import label_runs
from bench.report.ranking import (
    critical_difference,
    friedman_p,
    indistinct_groups,
    mean_ranks,
    score_matrix,
)
from bench.report.styles import STYLES, Look, styles_of
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible, texts_of
from tests.bench.report.made import both_ways, make_run, make_runs

# Demšar (2006), Table 6: AUC of four learners on 14 data sets, and the ranks he gives of them.
DEMSAR = {
    "C4.5": [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1., .94, .619, .972, .957],
    "C4.5+m": [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1., .962, .666, .981, .978],
    "C4.5+cf": [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1., .965, .614, .9751, .946],
    "C4.5+m+cf": [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1., .962, .669, .975, .970],
}  # fmt: skip
# Table 5 (a) of the same: q for alpha = 0.05 and 0.10 by the number of methods.
FACTORS = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
FACTORS_10 = {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}


def scored(scores, seeds=(0,), **fields):
    """Runs of each method with its score on every data set; the seeds lie evenly around it."""
    return make_runs(
        *(
            make_run(method, seed=seed, task=f"set{index}", accuracy=score + 1e-3 * (seed - np.mean(seeds)))
            | fields
            for method, row in scores.items()
            for index, score in enumerate(row)
            for seed in seeds
        )
    )


def test_the_example_of_the_paper():
    runs = scored(DEMSAR)
    table = mean_ranks(runs).set_index("method_label")
    assert set(table["n"]) == {14}
    found = table["mean_rank"].round(3).to_dict()
    assert found == {"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.01)
    statistic = 12 * 14 / (4 * 5) * ((table["mean_rank"] ** 2).sum() - 4 * 5**2 / 4)
    assert statistic == pytest.approx(9.28, abs=0.01)
    # he leaves ties as they are: three pairs and a row of four, a pair counting 6 and four counting 60
    for_ties = 1 - (3 * 6 + 60) / (14 * 4 * (4**2 - 1))
    assert friedman_p(score_matrix(label_runs(runs))) == pytest.approx(stats.chi2.sf(statistic / for_ties, 3))


@pytest.mark.parametrize(("alpha", "factors"), [(0.05, FACTORS), (0.10, FACTORS_10)])
def test_the_factors_of_the_paper(alpha, factors):
    for n_methods, factor in factors.items():
        ours = critical_difference(n_methods, 20, alpha) / np.sqrt(n_methods * (n_methods + 1) / 120)
        assert ours == pytest.approx(factor, abs=1e-3), n_methods


def test_a_seed_more_does_not_make_another_data_set_and_ranks_are_of_means():
    scores = {"a": [0.5, 0.6], "b": [0.4, 0.7], "c": [0.3, 0.2]}
    one, many = mean_ranks(scored(scores)), mean_ranks(scored(scores, seeds=(0, 1, 2)))
    pd.testing.assert_frame_equal(one, many)
    assert many["mean_rank"].tolist() == [1.5, 1.5, 3.0]


def test_ties_share_the_mean_of_their_ranks_also_where_they_differ_by_arithmetic():
    table = mean_ranks(scored({"a": [0.1 + 0.2], "b": [0.3], "c": [0.5], "d": [0.2]}))
    assert table["mean_rank"].tolist() == [2.5, 2.5, 1.0, 4.0]


def test_data_sets_that_a_method_did_not_run_do_not_count():
    runs = scored({"a": [0.9, 0.1, 0.1], "b": [0.2, 0.2, 0.2], "c": [0.3, 0.3, 0.3]})
    runs = runs[~((runs["method"] == "a") & (runs["task"] == "set2"))]
    table = mean_ranks(runs)
    assert table["n"].tolist() == [2, 2, 2]
    assert table["mean_rank"].tolist() == [2.0, 2.5, 1.5]
    apart = mean_ranks(runs[(runs["method"] != "a") | (runs["task"] == "set9")])
    assert apart["n"].tolist() == [3, 3]


def test_methods_without_a_data_set_in_common_have_no_rank():
    runs = make_runs(make_run("flora", task="x"), make_run("linear_probe", task="y"))
    table = mean_ranks(runs)
    assert table["n"].tolist() == [0, 0]
    assert table["mean_rank"].isna().all()


def test_models_splits_and_shots_are_ranked_apart():
    first = scored({"a": [0.5], "b": [0.4]})
    other = scored({"a": [0.4], "b": [0.5]}, shots=4)
    table = mean_ranks(pd.concat([first, other]).astype({"shots": "Int64"}))
    assert table[["shots", "method_label", "mean_rank"]].values.tolist() == [
        [4, "a", 2.0], [4, "b", 1.0], [pd.NA, "a", 1.0], [pd.NA, "b", 2.0],
    ]  # fmt: skip


def test_a_method_that_ran_both_ways_is_ranked_once():
    runs = make_runs(*both_ways("flora", "linear_probe"))
    assert mean_ranks(runs)["method_label"].tolist() == ["Linear probe", "FLoRA"]


def test_no_runs_have_no_ranks():
    assert mean_ranks(label_runs(make_runs(make_run()))[:0]).empty


def test_labels_of_methods_that_a_selection_left_out_do_not_count():
    runs = label_runs(scored({"a": [0.5, 0.1], "b": [0.4, 0.2], "c": [0.3, 0.3]}))
    table = mean_ranks(runs[runs["method"] != "c"])
    assert table["method_label"].tolist() == ["a", "b"]
    assert table["n"].tolist() == [2, 2]


@pytest.mark.parametrize("shape", [(20, 2), (4, 5)])
def test_friedman_needs_three_methods_and_five_data_sets(shape):
    scores = pd.DataFrame(np.random.default_rng(0).random(shape))
    assert np.isnan(friedman_p(scores))


def test_friedman_of_level_methods_speaks_for_nothing_and_of_one_order_against_chance():
    assert friedman_p(pd.DataFrame(np.full((6, 3), 0.5))) == 1.0
    one_order = pd.DataFrame(np.tile([0.1, 0.2, 0.3], (6, 1)))
    assert friedman_p(one_order) == pytest.approx(np.exp(-6))  # chi-square 12 with two degrees of freedom


def test_no_critical_difference_of_one_method_or_of_no_data():
    assert np.isnan(critical_difference(1, 5))
    assert np.isnan(critical_difference(3, 0))


def test_groups_are_maximal_overlap_and_end_short_of_the_critical_difference():
    ranks = {"d": 4.0, "a": 1.0, "b": 2.0, "c": 2.5, "e": 7.0}
    assert indistinct_groups(ranks, 1.5) == [["a", "b"], ["b", "c"]]
    assert indistinct_groups(ranks, 1.6) == [["a", "b", "c"], ["c", "d"]]
    assert indistinct_groups(ranks, 100.0) == [["a", "b", "c", "d", "e"]]
    assert indistinct_groups(ranks, 0.4) == []


# Noise in which two of ten methods come apart although Friedman's test finds nothing.
NO_DIFFERENCE = 11
HOSTILE = ("a" * 40, "Größe_$x_{$ & 100 % #{}~^\\ <script>", "W" * 20 + " " + "M" * 8)


def graded(methods, n_data_sets=16, step=0.03, spread=0.05, **fields):
    """Methods of growing skill, with noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, spread, (len(methods), n_data_sets))
    return scored({m: 0.5 + step * i + noise[i] for i, m in enumerate(methods)}, **fields)


def bars(axes):
    """The ranks that each thick bar joins."""
    thick = [line for line in axes.lines if line.get_linewidth() > 2]
    return [sorted(map(float, line.get_xdata())) for line in thick]


def elbows(axes):
    """The rank at which each method's line leaves the axis."""
    return [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 3]


@pytest.mark.parametrize("width", ["column", "page"])
def test_the_diagram_draws_the_ranks_their_bars_and_the_critical_difference(width):
    runs = graded(tuple(STYLES)[:8])
    points = figures.critical_difference_diagram_points(runs)
    (axes,) = figures.critical_difference_diagram(runs, look=Look(width=width)).axes
    assert elbows(axes) == points["mean_rank"].tolist()
    assert set(points["n"]) == {16}
    assert set(points["critical_difference"]) == {critical_difference(8, 16)}
    ranks = points.set_index(points["method_label"].astype(str))["mean_rank"]
    groups = indistinct_groups(ranks.to_dict(), critical_difference(8, 16))
    assert len(groups) > 1
    assert bars(axes) == [[ranks[group[0]], ranks[group[-1]]] for group in groups]
    for label, numbers in zip(points["method_label"], points["groups"], strict=True):
        assert numbers.split() == [str(n) for n, group in enumerate(groups, 1) if label in group]
    (above,) = [line for line in axes.lines if line.get_marker() == "|"]
    assert abs(np.ptp(above.get_xdata())) == pytest.approx(critical_difference(8, 16))
    worst, best = axes.get_xlim()
    assert worst > 8
    assert best < 1


def test_names_stand_beside_their_marks_best_at_the_top_right_with_their_ranks():
    runs = scored(
        {"linear_probe": [0.9] * 6, "flora": [0.8] * 6, "bitfit": [0.7] * 6, "zero_shot": [0.6] * 6}
    )
    figure = figures.critical_difference_diagram(runs, look=Look(width="page"))
    texts = {text.get_text(): text.get_window_extent() for text in texts_of(figure)}
    best, second, third, last = (
        texts[name] for name in ("Linear probe (1.00)", "FLoRA (2.00)", "BitFit (3.00)", "Zero-shot (4.00)")
    )
    assert best.x0 == second.x0 > third.x1 == last.x1
    assert best.y0 > second.y1
    assert last.y0 > third.y1
    (marked,) = [line for line in figure.axes[0].lines if line.get_marker() == STYLES["flora"].marker]
    assert marked.get_color() == styles_of(runs)["FLoRA"].colour


def test_where_friedman_finds_no_difference_one_bar_joins_all_however_far_apart():
    skill = [0.006, *[0.0] * 8, -0.006]
    noise = np.random.default_rng(NO_DIFFERENCE).normal(0, 0.01, (10, 12))
    runs = scored({f"m{i}": 0.5 + skill[i] + noise[i] for i in range(10)})
    points = figures.critical_difference_diagram_points(runs)
    ranks = points["mean_rank"]
    assert points["friedman_p"].min() > 0.05
    assert np.ptp(ranks) > critical_difference(10, 12)
    assert set(points["groups"]) == {"1"}
    assert bars(figures.critical_difference_diagram(runs).axes[0]) == [[ranks.min(), ranks.max()]]


def test_methods_apart_have_no_bar():
    runs = scored({"a": [0.9] * 30, "b": [0.8] * 30, "c": [0.7] * 30})
    points = figures.critical_difference_diagram_points(runs)
    assert points["groups"].tolist() == ["", "", ""]
    assert not bars(figures.critical_difference_diagram(runs).axes[0])


@pytest.mark.parametrize(("n_methods", "n_data_sets"), [(3, 4), (2, 9)])
def test_the_diagram_says_how_many_there_are_where_they_do_not_suffice(n_methods, n_data_sets):
    with pytest.raises(figures.NothingToDraw, match=f"there are {n_methods} on {n_data_sets}"):
        figures.critical_difference_diagram(graded("abc"[:n_methods], n_data_sets))


def test_only_splits_with_enough_data_sets_are_drawn():
    few = graded("abc", 4, split="dirichlet")
    runs = pd.concat([graded("abc", 6), few]).astype({"shots": "Int64"})
    figure = figures.critical_difference_diagram(runs)
    assert [axes.get_title() for axes in figure.axes] == ["IID"]


def test_drawing_a_diagram_into_given_axes_takes_one_cell():
    figure = Figure()
    axes = figure.subplots()
    assert figures.critical_difference_diagram(graded("abcd", 6), axes) is figure
    assert elbows(axes)
    both = pd.concat([graded("abc", 6), graded("abc", 6, split="dirichlet")]).astype({"shots": "Int64"})
    with pytest.raises(BadInput, match="ax: "):
        figures.critical_difference_diagram(both, axes)


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize(
    "methods",
    [("flora", "zero_shot", "bitfit"), tuple(STYLES)[:8], (*STYLES, "a", "b", "c", "d"), HOSTILE],
    ids=["three", "eight", "fourteen", "hostile"],
)
def test_diagrams_are_legible(width, methods):
    parts = [graded(methods, 16, split="dirichlet"), graded(methods, 5, step=0.0)]
    runs = pd.concat(parts).astype({"shots": "Int64"})
    figure = figures.critical_difference_diagram(runs, look=Look(width=width))
    assert len(figure.axes) == 2
    assert_legible(figure, fewest=2 * (len(methods) + 5))
