"""Accuracy over an option of a method: which options vary all else equal, and what is drawn of them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.names import Names, label_runs
from bench.report.styles import Look, styles_of
from tests.bench.report.legible import assert_legible, texts_of
from tests.bench.report.made import both_ways, make_run, make_runs

PLACES = (("text.out",), ("text.out", "text.head"), ("vision.out",), ("text.out", "vision.out"))
HOSTILE = "Größe_$x_{$ & 100 % #{}~^\\ <script>"


def option(method="flora", accuracy=0.7, seed=0, rank=2.0, **fields):
    dotted = {f"method.{name}": fields.pop(name) for name in ("alpha", "places", "loss") if name in fields}
    return make_run(method, seed=seed, accuracy=accuracy, **{"method.rank": rank}, **dotted, **fields)


def swept(ranks=(1, 2, 4, 8), seeds=(0, 1, 2), methods=("flora",), **fields):
    """Accuracy that grows by 3 points a doubling and 1 a seed."""
    cells = itertools.product(methods, ranks, seeds)
    return [
        option(m, 0.7 + 0.03 * np.log2(rank) + 0.01 * seed, seed, float(rank), **fields)
        for m, rank, seed in cells
    ]


def test_an_option_varies_where_all_else_is_equal():
    assert figures.varied_options(make_runs(*swept())) == ["method.rank"]
    assert figures.varied_options(make_runs(option(), option("linear_probe", rank=8.0))) == []
    # nothing follows of a rank from runs that differ in the factor as well
    together = make_runs(option(rank=2.0, alpha=2.0), option(rank=4.0, alpha=4.0))
    assert figures.varied_options(together) == []
    apart = make_runs(option(rank=2.0, alpha=2.0), option(rank=4.0, alpha=2.0), option(rank=4.0, alpha=4.0))
    assert figures.varied_options(apart) == ["method.alpha", "method.rank"]
    of_two_splits = make_runs(option(rank=2.0), option(rank=4.0, split="dirichlet"))
    assert figures.varied_options(of_two_splits) == []


def test_zero_shot_has_no_option_and_neither_have_runs_without_accuracy():
    runs = make_runs(option("zero_shot", rank=2.0), option("zero_shot", rank=4.0))
    assert figures.varied_options(runs) == []
    assert figures.varied_options(make_runs(option(rank=2.0), option(rank=4.0, accuracy=np.nan))) == []


def test_points_are_means_by_value_named_without_the_option():
    runs = make_runs(*swept(), make_run("full_finetune", **{"method.rank": np.nan}))
    points = figures.sensitivity_points(runs)
    assert set(points["method_label"]) == {"FLoRA"}
    assert set(points["option"]) == {"method.rank"}
    assert points["value"].tolist() == [1, 2, 4, 8]
    assert points["place"].tolist() == [0, 1, 2, 3]
    assert points["n"].tolist() == [3] * 4
    np.testing.assert_allclose(points["mean"], 0.71 + 0.03 * np.arange(4))
    np.testing.assert_allclose(points["half_width"], 4.302653 * 0.01 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(points["zero_shot"], 0.62)
    two = figures.sensitivity_points(make_runs(*swept(seeds=(0, 1))))
    assert two["half_width"].isna().all()


@pytest.mark.parametrize("name", ["rank", "method.rank", None])
def test_the_line_and_its_band_are_those_of_the_points(name):
    runs = make_runs(*swept(), *(option("zero_shot", 0.62, rank=np.nan, seed=s) for s in range(3)))
    points = figures.sensitivity_points(runs, option=name)
    figure = figures.sensitivity(runs, option=name)
    (axes,) = figure.axes
    line, dashed = axes.lines
    np.testing.assert_allclose(line.get_xdata(), points["place"])
    np.testing.assert_allclose(line.get_ydata(), 100 * points["mean"])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(100 * (points["mean"] + points["half_width"]).max())
    assert dashed.get_ydata()[0] == pytest.approx(62.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert figure.get_supxlabel() == "Rank"
    assert to_hex(line.get_color()) == styles_of(runs)["FLoRA (rank 1)"].colour


def test_another_option_parts_a_method_into_lines_with_looks_of_their_own():
    runs = make_runs(*swept(alpha=16.0), *swept(alpha=32.0))
    figure = figures.sensitivity(runs, option="rank")
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    key = [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    assert key == ["Zero-shot", "FLoRA (alpha 16)", "FLoRA (alpha 32)"]
    by_alpha = figures.sensitivity_points(runs, option="alpha")
    assert set(by_alpha["method_label"]) == {f"FLoRA (rank {rank})" for rank in (1, 2, 4, 8)}


def test_an_authors_name_stays():
    runs = label_runs(make_runs(*swept(alpha=16.0), *swept(alpha=32.0)), Names(methods={"flora": HOSTILE}))
    points = figures.sensitivity_points(runs, option="rank")
    assert set(points["method_label"]) == {f"{HOSTILE} (alpha 16)", f"{HOSTILE} (alpha 32)"}
    assert set(figures.sensitivity_points(label_runs(make_runs(*swept())))["method_label"]) == {"FLoRA"}


def test_a_name_for_each_value_gives_way_to_that_of_the_method():
    names = {f"FLoRA (rank {rank})": f"Ours {rank}" for rank in (1, 2, 4, 8)}
    runs = label_runs(make_runs(*swept()), Names(methods=names))
    points = figures.sensitivity_points(runs)
    assert set(points["method_label"]) == {"FLoRA"}
    assert len(points) == 4
    figures.sensitivity(runs, styles=styles_of(runs))


def test_words_are_marks_without_a_line_the_methods_side_by_side():
    runs = make_runs(
        *(
            option(m, 0.7 + 0.05 * i + 0.01 * seed, seed, places=place)
            for m in ("flora", "peft:lora") for i, place in enumerate(PLACES) for seed in range(3)
        )
    )  # fmt: skip
    points = figures.sensitivity_points(runs)
    words = ["text.out", "vision.out", "text.out + text.head", "text.out + vision.out"]
    assert list(points["value"].cat.categories) == words
    figure = figures.sensitivity(runs, look=Look(width="page"))
    (axes,) = figure.axes
    drawn = [container.lines[0] for container in axes.containers]
    assert all(line.get_linestyle() == "None" for line in drawn)
    for line, (_, group) in zip(drawn, points.groupby("method_label", observed=True), strict=True):
        np.testing.assert_allclose(line.get_xdata(orig=False), group["place"])
        np.testing.assert_allclose(line.get_ydata(orig=False), 100 * group["mean"])
    apart = np.abs(drawn[0].get_xdata(orig=False) - drawn[1].get_xdata(orig=False))
    assert (apart > 0.05).all()
    assert (np.round(points["place"]) == points["value"].cat.codes).all()
    assert [label.get_text() for label in axes.get_xticklabels()] == words


def test_numbers_without_a_logarithm_stand_where_they_are():
    points = figures.sensitivity_points(make_runs(option(rank=0.0), option(rank=0.5), option(rank=3.0)))
    assert points["place"].tolist() == [0.0, 0.5, 3.0]


def test_a_run_as_deployed_is_no_other_value():
    assert figures.varied_options(make_runs(*both_ways("flora"))) == []
    runs = make_runs(*swept(acceleration="exact"), *swept(acceleration="none"))
    assert figures.sensitivity_points(runs)["n"].tolist() == [3] * 4


def test_nothing_to_draw_says_which_option_does_not_vary():
    with pytest.raises(figures.NothingToDraw, match="an option"):
        figures.sensitivity(make_runs(option()))
    with pytest.raises(figures.NothingToDraw, match=r"method\.alpha"):
        figures.sensitivity(make_runs(*swept()), option="alpha")


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("ranks", [(1, 2), (1, 2, 3, 4, 5, 6, 7, 8, 24, 30, 32, 1024), (1000, 1001, 1002)])
def test_numbers_are_legible_and_some_are_written(width, ranks):
    splits = ("iid", "dirichlet", "pathological")
    runs = make_runs(*(run for split in splits for run in swept(ranks, split=split)))
    figure = figures.sensitivity(runs, look=Look(width=width))
    assert_legible(figure, fewest=8)
    written = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert written[0] == f"{ranks[0]:,}"


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("splits", [("iid",), ("iid", "dirichlet", "pathological")])
def test_words_and_hostile_names_are_legible(width, splits):
    places = (*PLACES, (HOSTILE,))
    cells = itertools.product(("flora", "peft:lora", HOSTILE), enumerate(places), splits, range(3))
    runs = make_runs(
        *(option(m, 0.7 + 0.02 * i, seed, places=p, split=split) for m, (i, p), split, seed in cells)
    )
    figure = figures.sensitivity(runs, look=Look(width=width))
    assert_legible(figure, fewest=10)
    assert any("text.out + vision.out" in " ".join(text.get_text().split()) for text in texts_of(figure))


def test_shots_have_panels_of_their_own():
    runs = make_runs(*swept(), *swept(shots=4))
    figure = figures.sensitivity(runs)
    assert len(figure.axes) == 2
    assert_legible(figure, fewest=8)


def test_drawing_into_given_axes():
    figure = Figure()
    axes = figure.subplots()
    assert figures.sensitivity(make_runs(*swept()), axes) is figure
    assert axes.get_xlabel() == "Rank"
    assert pd.Series(axes.get_xticks()).tolist() == [0, 1, 2, 3]
