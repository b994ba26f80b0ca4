"""Accuracy against cost: what lies on the front, and that it is drawn as it is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.names import Names, label_runs
from bench.report.styles import SANS, Look, styles_of
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible, texts_of
from tests.bench.report.made import COLD, WARM, both_ways, make_results, make_run, make_runs

EIGHT = (
    *("zero_shot", "flora", "full_finetune", "linear_probe", "attention_adapter", "clip_adapter"),
    *("prompt_tuning", "layernorm_tuning", "bitfit"),
)
HOSTILE = "Größe_$x_{$ & 100 % #{}~^\\ <script>"


def measured(cost, accuracy, method="flora", seed=0, **fields):
    """A run that sent ``cost`` bytes, half of them up."""
    sent = {"bytes_up": cost / 2, "bytes_down": cost / 2}
    return make_run(method, seed=seed, accuracy=accuracy, **(sent | fields))


def drawn_marks(axes):
    """Where marks stand, and whether they are filled."""
    marks = [container.lines[0] for container in axes.containers]
    return {
        (float(line.get_xdata()[0]), round(float(line.get_ydata()[0]), 6)): to_hex(line.get_markerfacecolor())
        != "#ffffff"
        for line in marks
    }


def front_line(axes):
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    return line


def test_the_front_holds_what_no_other_betters_in_both():
    runs = make_runs(
        measured(1e6, 0.70, "a"),
        measured(2e6, 0.70, "b"),  # dearer than a and no better
        measured(3e6, 0.80, "c"),
        measured(3e6, 0.75, "d"),  # as dear as c and worse
        measured(9e6, 0.90, "e"),
        measured(9e7, 0.85, "f"),
    )
    points = figures.pareto_front_points(runs)
    assert points["x"].is_monotonic_increasing
    assert dict(zip(points["method_label"], points["on_front"], strict=True)) == {
        "a": True, "b": False, "c": True, "d": False, "e": True, "f": False,
    }  # fmt: skip


def test_two_methods_alike_in_both_are_both_on_the_front():
    points = figures.pareto_front_points(make_runs(measured(1e6, 0.7, "a"), measured(1e6, 0.7, "b")))
    assert points["on_front"].tolist() == [True, True]


def test_what_is_no_better_than_the_model_as_it_came_is_not_on_the_front():
    runs = make_runs(measured(1e3, 0.62, "a"), measured(1e4, 0.5, "b"), measured(1e6, 0.7, "c"))
    assert figures.pareto_front_points(runs)["on_front"].tolist() == [False, False, True]


def test_each_split_has_a_front_of_its_own():
    runs = make_runs(
        measured(1e6, 0.7, "a"),
        measured(1e7, 0.8, "b"),
        measured(1e6, 0.8, "a", split="dirichlet"),
        measured(1e7, 0.7, "b", split="dirichlet"),
    )
    points = figures.pareto_front_points(runs)
    assert points["on_front"].tolist() == [True, True, True, False]
    one, other = figures.pareto_front(runs).axes
    np.testing.assert_allclose(front_line(one).get_xdata()[:-1], [1e6, 1e7])
    np.testing.assert_allclose(front_line(other).get_xdata()[:-1], [1e6])


@pytest.mark.parametrize("cost", ["bytes", "memory", "time"])
@pytest.mark.parametrize("width", ["column", "page"])
def test_marks_steps_and_zero_shot_are_those_of_the_points(cost, width):
    runs, _ = make_results(splits=("iid", "dirichlet"), shots=(pd.NA,), seeds=(0, 1, 2))
    points = figures.pareto_front_points(runs, cost=cost)
    figure = figures.pareto_front(runs, cost=cost, look=Look(width=width))
    for axes, (_, part) in zip(figure.axes, points.groupby("split_label", observed=True), strict=True):
        assert axes.get_xscale() == "log"
        expected = {(row.x, round(100 * row.mean, 6)): row.on_front for row in part.itertuples(index=False)}
        assert drawn_marks(axes) == expected
        front, line = part[part["on_front"]], front_line(axes)
        np.testing.assert_allclose(line.get_xdata(), [*front["x"], axes.get_xlim()[1]])
        np.testing.assert_allclose(line.get_ydata(), 100 * front["mean"].to_numpy()[[*range(len(front)), -1]])
        dashed = [line for line in axes.lines if line.is_dashed()]
        assert [line.get_ydata()[0] for line in dashed] == [pytest.approx(62.0)]


def test_methods_keep_their_look():
    runs, _ = make_results(splits=("iid",), shots=(pd.NA,))
    styles = styles_of(runs)
    axes = figures.pareto_front(runs).axes[0]
    points = figures.pareto_front_points(runs)
    for container, label in zip(axes.containers, points["method_label"], strict=True):
        assert to_hex(container.lines[0].get_color()) == styles[label].colour
        assert container.lines[0].get_marker() == styles[label].marker


def bars_of(axes):
    return [
        [tuple(map(tuple, line.get_segments()[0])) for line in container.lines[2]]
        for container in axes.containers
    ]


def test_bars_are_intervals_of_both_and_need_three_seeds():
    seeds = [(1e6, 0.70), (2e6, 0.72), (3e6, 0.74)]
    runs = make_runs(*(measured(cost, accuracy, seed=i) for i, (cost, accuracy) in enumerate(seeds)))
    (point,) = figures.pareto_front_points(runs).to_dict("records")
    assert (point["n"], point["x"], point["mean"]) == (3, 2e6, pytest.approx(0.72))
    assert point["x_half_width"] == pytest.approx(4.302653 * 1e6 / 3**0.5, rel=1e-6)
    assert point["half_width"] == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)
    (bars,) = bars_of(figures.pareto_front(runs).axes[0])
    across, up = bars
    assert across[1][0] == pytest.approx(2e6 + point["x_half_width"])
    assert up[1][1] == pytest.approx(72 + 100 * point["half_width"])
    two = figures.pareto_front_points(runs[:2])
    assert two[["x_half_width", "half_width"]].isna().all(axis=None)
    assert bars_of(figures.pareto_front(runs[:2]).axes[0]) == [[]]


@pytest.mark.parametrize("seconds", [COLD, WARM], ids=["cold", "warm"])
def test_time_is_of_the_whole_run_whether_or_not_features_were_found(seconds):
    runs = make_runs(make_run(train_seconds=18.0, **seconds))
    assert figures.pareto_front_points(runs, cost="time")["x"].tolist() == [32.0]
    label = figures.pareto_front(runs, cost="time").get_supxlabel()
    assert label == "Seconds of the whole run, from nothing (accelerated)"


def test_memory_is_that_of_the_gpu_only_where_every_trained_run_states_it():
    runs = make_runs(make_run(peak_gpu_memory_bytes=3e9), make_run("linear_probe", peak_memory_bytes=2e9))
    points = figures.pareto_front_points(runs, cost="memory")
    assert sorted(points["x"]) == [2e9, runs["peak_memory_bytes"][0]]
    runs["peak_gpu_memory_bytes"] = [3e9, 1e9]
    assert figures.pareto_front(runs, cost="memory").get_supxlabel() == "Peak GPU memory"
    assert figures.pareto_front_points(runs, cost="memory")["x"].tolist() == [1e9, 3e9]


def test_energy_is_drawn_where_it_was_measured_and_said_to_be_missing_where_not():
    runs = make_runs(make_run(energy_joules=5.0))
    assert figures.pareto_front_points(runs, cost="energy")["x"].tolist() == [5.0]
    with pytest.raises(figures.NothingToDraw, match="no run measured its energy"):
        figures.pareto_front(make_runs(make_run()), cost="energy")


@pytest.mark.parametrize("run", [make_run("zero_shot"), make_run(bytes_up=0, bytes_down=0)])
def test_there_is_nothing_to_draw_of_what_sent_nothing(run):
    with pytest.raises(figures.NothingToDraw, match="sent a byte"):
        figures.pareto_front(make_runs(run))


def test_an_unknown_cost_is_refused_with_the_known():
    with pytest.raises(BadInput, match=r"cost: 'byte' .*bytes, memory, time, energy"):
        figures.pareto_front(make_runs(make_run()), cost="byte")


def test_runs_as_deployed_stand_beside_their_twins_in_time_alone():
    runs = make_runs(*both_ways("flora", "linear_probe"))
    assert len(figures.pareto_front_points(runs, cost="bytes")) == 2
    assert len(figures.pareto_front_points(runs, cost="time")) == 4


def named_marks(figure):
    return {note.get_text() for note in figure.axes[0].texts}


def test_a_panel_with_room_names_its_marks_and_one_without_has_a_key():
    roomy, _ = make_results(splits=("iid",), shots=(pd.NA,), methods=("flora", "full_finetune"))
    figure = figures.pareto_front(roomy)
    assert named_marks(figure) == {"FLoRA", "Full fine-tuning"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Zero-shot", "Pareto front"]
    crowded = make_runs(*(measured(1e7, 0.7, f"Method number {i}") for i in range(9)))
    figure = figures.pareto_front(crowded)
    assert not named_marks(figure)
    assert len(figure.legends[0].get_texts()) == 11


def test_names_stand_clear_of_marks_and_lines():
    runs, _ = make_results(splits=("iid",), shots=(pd.NA,), seeds=(0, 1, 2))
    figure = figures.pareto_front(runs, cost="bytes", look=Look(width="page"))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    marks = [container.lines[0] for container in axes.containers]
    places = [axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in marks]
    step = axes.transData.transform(np.column_stack(front_line(axes).get_data()))
    level = axes.transData.transform((1, 62.0))[1]
    assert len(axes.texts) == 4
    for note in axes.texts:
        box = note.get_window_extent()
        assert not any(box.contains(*place) for place in places)
        assert not box.y0 < level < box.y1
        assert not any(box.contains(*corner) for corner in step)


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("cost", ["bytes", "time", "energy"])
def test_many_methods_are_legible(width, cost):
    runs, _ = make_results(methods=EIGHT, splits=("iid",), shots=(pd.NA,), seeds=(0, 1, 2))
    rng = np.random.default_rng(0)
    runs["energy_joules"] = 40 * runs["train_seconds"] * rng.lognormal(0, 0.3, len(runs))
    assert_legible(figures.pareto_front(runs, cost=cost, look=Look(width=width)), fewest=9)


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_splits_and_shots_are_legible(width, n_seeds):
    runs, _ = make_results(shots=(pd.NA, 4), seeds=range(n_seeds))
    figure = figures.pareto_front(runs, look=Look(width=width))
    assert len(figure.axes) == 6
    assert_legible(figure, fewest=20)


def test_hostile_names_are_shown_as_they_are_and_legible():
    runs = label_runs(make_results(splits=("iid",), shots=(pd.NA,))[0], Names(methods={"flora": HOSTILE}))
    for width in ("column", "page"):
        figure = figures.pareto_front(runs, look=Look(width=width))
        assert_legible(figure, fewest=6)
        shown = " ".join(text.get_text() for text in texts_of(figure))
        assert all(part in shown for part in ("Größe", r"\$x", "<script>", "%"))


@pytest.mark.parametrize("spread", [1.0, 1.3, 3.0, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("start", [1.0, 8.7e5])
def test_an_axis_has_two_to_six_round_labels_whatever_its_span(start, spread):
    runs = make_runs(measured(start, 0.7, "a"), measured(start * spread, 0.8, "b"))
    axes = figures.pareto_front(runs, look=Look(width="column")).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(ticks) <= 6
    assert {f"{tick:e}"[0] for tick in ticks} <= {"1", "2", "3", "5"}
    assert low < start
    assert start * spread < high


def test_drawing_into_given_axes():
    figure = Figure()
    axes = figure.subplots()
    runs, _ = make_results(splits=("iid",), shots=(pd.NA,))
    assert figures.pareto_front(runs, axes, cost="memory", look=SANS) is figure
    assert axes.get_xlabel() == "Peak memory of the process"
    assert axes.get_ylabel() == "Accuracy (%)"
    assert axes.get_legend() is not None
