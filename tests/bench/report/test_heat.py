"""The heat map of accuracies, from synthetic results."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bench.report.figures import NothingToDraw, heat_map, heat_map_points
from bench.report.figures.heat import _COLOURS, _ink
from bench.report.names import Names, label_runs
from bench.report.styles import Look
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import HARDER, LEVEL, make_results, make_run, make_runs

ALL = pd.NA
MANY = (*LEVEL, "bitfit", "clip_adapter", "_$x_{$ a very long, hostile name <script> of 50% & more")


def results(methods=("zero_shot", "flora"), splits=("iid", "dirichlet"), shots=(ALL,), seeds=(0, 1, 2)):
    return make_results(methods=methods, splits=splits, shots=shots, seeds=seeds)[0]


def of_tasks(n, **fields):
    runs = results(**fields)
    return pd.concat([runs.assign(task=f"data_{number:02}") for number in range(n)], ignore_index=True)


def names_of(axes):
    texts = axes.get_yticklabels(), axes.get_xticklabels()
    return [[" ".join(text.get_text().split()) for text in labels] for labels in texts]


def numbers(axes):
    """The number written in each field, by row and column."""
    return {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts
    }


def test_fields_are_means_in_percent_with_zero_shot_first():
    accuracies = {("flora", "iid"): 0.7, ("flora", "dirichlet"): 0.4}
    rows = [
        make_run(method, split, seed=seed, accuracy=accuracies.get((method, split), 0.2) + 0.1 * seed)
        for method in ("flora", "zero_shot")
        for split in ("iid", "dirichlet")
        for seed in (0, 1)
    ]
    axes = heat_map(make_runs(*rows)).axes[0]
    assert names_of(axes) == [["Zero-shot", "FLoRA"], ["IID", "Dirichlet (β = 0.1)"]]
    np.testing.assert_allclose(axes.collections[0].get_array(), [[25, 25], [75, 45]])
    assert numbers(axes) == {(0, 0): "25.0", (0, 1): "25.0", (1, 0): "75.0", (1, 1): "45.0"}
    low, high = axes.get_ylim()
    assert low > high  # the first row on top


def test_points_are_the_fields_with_their_intervals():
    runs = results()
    points = heat_map_points(runs)
    axes = heat_map(runs).axes[0]
    np.testing.assert_allclose(axes.collections[0].get_array().ravel(), 100 * points["mean"])
    assert points["row"].tolist() == ["Zero-shot", "Zero-shot", "FLoRA", "FLoRA"]
    assert points["n"].tolist() == [3] * 4
    values = runs.query("method == 'flora' and split == 'iid'")["accuracy"]
    iid = points.query("method_label == 'FLoRA' and split_label == 'IID'").iloc[0]
    assert iid["mean"] == pytest.approx(values.mean())
    assert iid["half_width"] == pytest.approx(4.302653 * values.std() / 3**0.5)


def test_a_field_without_a_run_is_hatched_and_has_no_number():
    runs = results()
    axes = heat_map(runs[(runs["method"] != "flora") | (runs["split"] != "iid")]).axes[0]
    np.testing.assert_array_equal(
        np.ma.getmaskarray(axes.collections[0].get_array()), [[False, False], [True, False]]
    )
    assert (1, 0) not in numbers(axes)
    assert axes.patch.get_hatch()


def test_shots_are_columns_from_all_data_to_few():
    axes = heat_map(results(splits=("iid",), shots=(1, ALL, 16))).axes[0]
    assert names_of(axes)[1] == ["IID", "IID, 16 shots", "IID, 1 shot"]


def test_data_sets_may_be_columns_and_models_tell_them_apart():
    runs = of_tasks(3, splits=("iid",))
    (axes, _) = heat_map(runs, columns="task").axes
    assert names_of(axes)[1] == ["data_00", "data_01", "data_02"]
    two = pd.concat([runs, runs.assign(model="RN50")])
    (axes, _) = heat_map(two, columns="task").axes
    assert len(names_of(axes)[1]) == 6
    assert names_of(axes)[1][0] == "data_00 · RN50"


def test_data_sets_bear_an_authors_names_in_his_order():
    runs = label_runs(
        of_tasks(2, splits=("iid",)), Names(tasks={"data_00": "Birds"}, task_order=("data_01",))
    )
    assert names_of(heat_map(runs, columns="task").axes[0])[1] == ["data_01", "Birds"]


def test_what_is_neither_row_nor_column_has_a_panel_on_the_same_scale():
    runs = of_tasks(2)
    runs.loc[runs["task"] == "data_01", "accuracy"] -= 0.2
    first, second, _ = heat_map(runs).axes
    assert [first.get_title(), second.get_title()] == ["data_00", "data_01"]
    one, other = first.collections[0], second.collections[0]
    assert one.get_clim() == other.get_clim()
    np.testing.assert_allclose(one.get_array() - other.get_array(), 20)
    by_task = heat_map(runs, columns="task").axes
    assert [" ".join(axes.get_title().split()) for axes in by_task[:2]] == ["IID", "Dirichlet (β = 0.1)"]


def test_rows_and_columns_can_be_exchanged():
    runs = results()
    upright, lying = heat_map(runs).axes[0], heat_map(runs, rows="split", columns="method").axes[0]
    np.testing.assert_allclose(upright.collections[0].get_array(), lying.collections[0].get_array().T)
    assert names_of(lying) == names_of(upright)[::-1]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_numbers_contrast_with_every_colour_of_the_scale():
    for colour in mpl.colormaps[_COLOURS](np.linspace(0, 1, 101)):
        dark, light = sorted([luminance(colour[:3]), luminance(_ink(colour))])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_the_scale_rises_evenly_in_grey():
    greys = [luminance(colour[:3]) for colour in mpl.colormaps[_COLOURS](np.linspace(0, 1, 101))]
    lightness = 116 * np.cbrt(greys) - 16
    steps = np.diff(lightness[5:])
    assert steps.min() > 0
    assert steps.max() < 3 * steps.min()


@pytest.mark.parametrize("look", [Look(), Look(font="serif", width="page")], ids=str)
@pytest.mark.parametrize(
    ("runs", "options"),
    [
        (results(), {}),
        (results(MANY, tuple(HARDER), (ALL, 1, 4), seeds=(0,)), {}),
        (results(MANY, tuple(HARDER), (ALL, 4), seeds=(0,)), {"rows": "split", "columns": "method"}),
        (of_tasks(16, methods=MANY, splits=("iid",), seeds=(0,)), {"columns": "task"}),
        (of_tasks(30, methods=MANY, splits=("iid",), seeds=(0,)), {"columns": "task"}),
        (of_tasks(2, methods=MANY, seeds=(0,)), {"rows": "task"}),
        (of_tasks(3, methods=tuple(LEVEL), seeds=(0,)), {}),
        (of_tasks(3, methods=tuple(LEVEL), seeds=(0,)), {"rows": "task", "columns": "method"}),
    ],
    ids=["small", "many", "turned", "tasks", "thirty", "long", "panels", "lying"],
)
def test_texts_are_legible(runs, options, look):
    if options.get("rows") == "task":
        options = {"columns": "method"} | options
    assert_legible(heat_map(runs, look=look, **options), fewest=8)


def test_a_small_one_fits_a_column():
    look = Look(width="column")
    figure = heat_map(results(tuple(LEVEL), tuple(HARDER)), look=look)
    assert figure.get_figwidth() == look.column
    assert_legible(figure, fewest=20)


def test_nothing_in_it_is_rasterised():
    figure = heat_map(results())
    assert not any(artist.get_rasterized() for artist in figure.findobj())


def test_it_draws_into_given_axes_what_one_has_room_for():
    figure = Figure()
    axes = figure.subplots()
    assert heat_map(results(), axes) is figure
    assert len(axes.texts) == 4
    with pytest.raises(BadInput, match="2 panels"):
        heat_map(of_tasks(2), Figure().subplots())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "methods"}, "did you mean 'method'"),
        ({"columns": "seed"}, "must be one of method, split, task"),
        ({"columns": "method"}, "they must differ"),
    ],
)
def test_sides_that_cannot_be(options, message):
    with pytest.raises(BadInput, match=message):
        heat_map(results(), **options)


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (results(splits=("iid",)), {}, "at least two splits"),
        (results(methods=("flora",)), {}, "at least two methods"),
        (results(), {"columns": "task"}, "at least two tasks"),
        (results().assign(accuracy=np.nan), {}, "no run states its accuracy"),
        (
            of_tasks(60, splits=("iid",), seeds=(0,)),
            {"columns": "task"},
            "60 columns of a heat map do not fit",
        ),
    ],
    ids=["split", "method", "task", "accuracy", "sixty"],
)
def test_what_a_heat_map_would_not_show(runs, options, message):
    with pytest.raises(NothingToDraw, match=message):
        heat_map(runs, **options)
