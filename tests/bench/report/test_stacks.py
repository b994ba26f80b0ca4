"""What a round's seconds and a run's memory are made of: the segments drawn, their sums and shares."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.figures.stacks import PHASES
from bench.report.names import Names, label_rounds, label_runs
from bench.report.styles import STYLES, Look
from bench.report.text import bytes_text
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import labelled, make_results, make_rounds, make_run, make_runs

SECONDS = {"send": 0.1, "train": 1.0, "receive": 0.2, "aggregate": 0.05, "evaluate": 0.4}
INSTRUMENTS = {"check": 7.0, "count": 8.0, "rest": 9.0}
CAUSES = {"parameters": 6e8, "gradients": 3e8, "optimizer_state": 6e8, "activations": 9e8, "buffers": 1e7}
HOSTILE = "Größe_$x_{$ & 100 % #{}~^\\ <script>"


def timed(runs, **seconds):
    """The rounds of runs, slower the longer the method's name; round 0 evaluates alone."""
    rounds = pd.DataFrame([row for run in runs.to_dict("records") for row in make_rounds(run)])
    slow = rounds["method"].str.len() ** 2 / 100
    for phase, value in {**SECONDS, **INSTRUMENTS, **seconds}.items():
        rounds[f"seconds.{phase}"] = np.where(rounds["round"] > 0, value * slow, np.nan)
    rounds.loc[rounds["round"] == 0, "seconds.evaluate"] = 99.0
    labels = label_runs(runs)
    return label_rounds(rounds.astype({"shots": "Int64"}), labels)


def counted(runs, **causes):
    values = {f"memory.by_cause.{cause}": value for cause, value in {**CAUSES, **causes}.items()}
    return runs.assign(**values)


def segments(axes):
    """Start, width and height of each segment in the order drawn."""
    return [
        (patch.get_x(), patch.get_width(), patch.get_y() + patch.get_height() / 2) for patch in axes.patches
    ]


def test_a_round_is_what_the_tables_call_a_round_and_round_zero_is_none():
    runs = make_runs(make_run(rounds=3))
    points = figures.phase_times_points(timed(runs))
    slow = len("flora") ** 2 / 100
    assert dict(zip(points["phase"], points["mean"], strict=True)) == {
        phase: pytest.approx(slow * value) for phase, value in SECONDS.items()
    }
    assert points["total"].unique() == pytest.approx([slow * sum(SECONDS.values())])
    assert points["share"].sum() == pytest.approx(1.0)


def test_a_run_counts_once_whatever_its_rounds():
    rounds = timed(make_runs(make_run(), make_run(seed=1)))
    rounds.loc[rounds["seed"] == 1, "seconds.train"] *= 3
    rounds = rounds[(rounds["round"] < 2) | (rounds["seed"] == 1)]
    points = figures.phase_times_points(rounds).set_index("phase")
    assert points.loc["train", "mean"] == pytest.approx(0.25 * 2)
    assert points.loc["train", "n"] == 2


@pytest.mark.parametrize("width", ["column", "page"])
def test_segments_are_those_of_the_points_in_values_and_in_shares(width):
    runs, _ = make_results(splits=("iid",), shots=(pd.NA,), seeds=(0, 1, 2))
    runs = runs[runs["method"] != "zero_shot"]
    rounds = timed(runs)
    points = figures.phase_times_points(rounds)
    values, shares = figures.phase_times(rounds, look=Look(width=width)).axes
    order = [text.get_text() for text in values.get_yticklabels()]
    for axes, column in ((values, "mean"), (shares, "share")):
        drawn = iter(segments(axes))
        for label, bar in points.groupby("method_label", observed=True):
            end = 0.0
            for size in bar[column]:
                assert next(drawn) == pytest.approx((end, size, order.index(label)))
                end += size
        assert next(drawn, None) is None
        assert axes.get_xlim()[0] == 0.0
    assert [note.get_text() for note in values.texts] == ["2.96", "2.52", "5.06", "0.438"]
    assert not shares.texts


def test_causes_are_stacked_to_the_peak_of_live_tensors():
    runs = counted(make_runs(make_run()))
    points = figures.memory_by_cause_points(runs)
    assert points["cause"].tolist() == list(CAUSES)
    assert points["mean"].tolist() == list(CAUSES.values())
    axes = figures.memory_by_cause(runs).axes[0]
    assert [note.get_text() for note in axes.texts] == [bytes_text(sum(CAUSES.values()))]
    start, width, _ = segments(axes)[-1]
    assert start + width == pytest.approx(sum(CAUSES.values()))


def test_the_whisker_of_a_total_needs_three_seeds():
    runs = make_runs(*(make_run(seed=seed) for seed in range(3)))
    runs = counted(runs).assign(**{"memory.by_cause.buffers": [1e8, 2e8, 3e8]})
    half = 4.302653 * 1e8 / 3**0.5
    assert figures.memory_by_cause_points(runs)["half_width"].tolist() == [pytest.approx(half)] * 5
    axes = figures.memory_by_cause(runs).axes[0]
    (whisker,) = axes.containers[-1].lines[2]
    assert np.ptp(whisker.get_segments()[0][:, 0]) == pytest.approx(2 * half)
    two = runs[:2]
    assert figures.memory_by_cause_points(two)["half_width"].isna().all()
    assert all(not hasattr(box, "lines") for box in figures.memory_by_cause(two).axes[0].containers)


def test_a_part_that_no_run_has_is_left_out_and_one_that_some_have_is_nothing_in_the_others():
    runs = counted(make_runs(make_run(), make_run("linear_probe"))).drop(columns="memory.by_cause.gradients")
    runs.loc[1, "memory.by_cause.optimizer_state"] = np.nan
    points = figures.memory_by_cause_points(runs)
    assert set(points["cause"]) == set(CAUSES) - {"gradients"}
    probe = points[points["method_label"] == "Linear probe"].set_index("cause")
    assert probe.loc["optimizer_state", "mean"] == 0.0
    key = [text.get_text() for text in figures.memory_by_cause(runs).legends[0].get_texts()]
    assert key == ["parameters", "optimizer state", "activations", "buffers"]


def test_a_part_looks_the_same_whatever_others_there_are():
    every = figures.memory_by_cause(counted(make_runs(make_run())))
    fewer = figures.memory_by_cause(counted(make_runs(make_run())).drop(columns="memory.by_cause.parameters"))
    looks = [
        {text.get_text(): (patch.get_facecolor(), patch.get_hatch()) for text, patch in
         zip(figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True)}
        for figure in (every, fewer)
    ]  # fmt: skip
    assert all(looks[0][name] == look for name, look in looks[1].items())


def test_parts_are_told_apart_in_grey_and_are_no_method():
    figure = figures.phase_times(timed(make_runs(make_run(rounds=1))))
    patches = figure.legends[0].get_patches()
    assert len(patches) == len(PHASES)
    light = [np.dot(patch.get_facecolor()[:3], (0.2126, 0.7152, 0.0722)) for patch in patches]
    assert all(abs(one - other) > 0.1 for one, other in itertools.pairwise(light))
    assert len({patch.get_hatch() for patch in patches}) == len(patches)
    methods = np.array([to_rgb(style.colour) for style in STYLES.values()])
    for patch in patches:
        assert np.linalg.norm(methods - patch.get_facecolor()[:3], axis=1).min() > 0.04
    hues = [rgb_to_hsv(patch.get_facecolor()[:3]).round(3).tolist() for patch in patches]
    assert len(set(map(tuple, hues))) == len(patches)


def test_splits_have_panels_and_no_shares():
    runs, _ = make_results(shots=(pd.NA,))
    figure = figures.memory_by_cause(counted(runs))
    assert len(figure.axes) == 3
    assert figure.get_supxlabel() == "Live tensors at their peak"
    assert all(axes.get_xlim()[1] > 2e9 for axes in figure.axes)


def test_nothing_to_draw_without_phases_or_causes():
    rounds = timed(make_runs(make_run()))
    for frame in (
        rounds.drop(columns=[f"seconds.{phase}" for phase in PHASES]),
        rounds[rounds["round"] == 0],
        rounds.assign(**{f"seconds.{phase}": np.nan for phase in PHASES}),
    ):
        with pytest.raises(figures.NothingToDraw, match="seconds by phase"):
            figures.phase_times(frame)
    with pytest.raises(figures.NothingToDraw, match="live tensors"):
        figures.memory_by_cause(make_runs(make_run()))


def test_methods_that_hold_nothing_have_no_share():
    runs = counted(make_runs(make_run()), **dict.fromkeys(CAUSES, 0.0))
    points = figures.memory_by_cause_points(runs)
    assert points["share"].isna().all()
    assert [note.get_text() for note in figures.memory_by_cause(runs).axes[0].texts] == ["0 B"]


@pytest.mark.parametrize("width", ["column", "page", None])
@pytest.mark.parametrize("splits", [("iid",), ("iid", "dirichlet", "pathological")])
def test_stacks_are_legible(width, splits):
    methods = (*STYLES, HOSTILE) if len(splits) == 1 else ("flora", "full_finetune", "linear_probe")
    runs, _ = make_results(methods=methods, splits=splits, shots=(pd.NA,), seeds=(0, 1, 2))
    assert_legible(figures.memory_by_cause(counted(runs), look=Look(width=width)), fewest=15)
    trained = runs[runs["method"] != "zero_shot"]
    figure = figures.phase_times(timed(trained, train=123.0), look=Look(width=width))
    assert_legible(figure, fewest=15)


@pytest.mark.parametrize("largest", [3.0e8, 9.8e11])
def test_totals_stay_inside_the_panel_of_values(largest):
    runs = counted(label_runs(make_runs(make_run()), Names(methods={"flora": "F"})), activations=largest)
    for width in ("column", "page"):
        figure = figures.memory_by_cause(runs, look=Look(width=width))
        assert_legible(figure, fewest=8)
        axes = figure.axes[0]
        assert axes.texts[0].get_window_extent().x1 <= axes.bbox.x1


def test_drawing_into_given_axes():
    figure = Figure()
    axes = figure.subplots()
    _, rounds = labelled(make_results(splits=("iid",), shots=(pd.NA,), methods=("flora",)))
    rounds = rounds.assign(**{f"seconds.{phase}": 1.0 for phase in PHASES})
    assert figures.phase_times(rounds, axes) is figure
    assert axes.get_xlabel() == "Seconds a round"
    assert len(figure.axes) == 1
