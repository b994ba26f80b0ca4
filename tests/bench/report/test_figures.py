"""The figures, from synthetic results."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.figures.canvas import HIGHEST
from bench.report.names import METHODS, Names, label_rounds, label_runs
from bench.report.styles import SANS, Look, styles_of
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import (
    COLD,
    WARM,
    labelled,
    make_results,
    make_rounds,
    make_run,
    make_runs,
    make_small,
)

CURVES = ("accuracy_over_rounds", "accuracy_over_bytes", "accuracy_over_seconds")
BARS = ("time_bars", "memory_bars", "bytes_bars")
KINDS = (*CURVES, "few_shot_curves", *BARS)


def test_panels_are_split_by_shots_with_zero_shot_dashed():
    _, rounds = labelled(make_results(rounds=2))
    figure = figures.accuracy_over_rounds(rounds)
    assert [" ".join(axes.get_title().split()) for axes in figure.axes] == [
        "IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)",
        "IID, 4 shots", "Dirichlet (β = 0.1), 4 shots", "Pathological (2 classes), 4 shots",
    ]  # fmt: skip
    levels = [line for line in figure.axes[0].lines if line.is_dashed() and len(set(line.get_ydata())) == 1]
    assert [float(line.get_ydata()[0]) for line in levels] == [pytest.approx(62.0)]


def test_curve_shows_the_mean_and_band_of_its_seeds():
    made = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2, seeds=(0, 1, 2))
    _, rounds = labelled(made)
    axes = figures.accuracy_over_rounds(rounds).axes[0]
    last = 100 * rounds.query("round == 2")["accuracy"]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(last.mean())
    top = axes.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(last.mean() + 4.302653 * last.std() / 3**0.5, rel=1e-6)


def test_two_seeds_have_no_band_as_theirs_would_fill_the_figure():
    _, rounds = labelled(make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2))
    axes = figures.accuracy_over_rounds(rounds).axes[0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(axes.lines[0].get_ydata()))


def test_bytes_are_on_a_logarithmic_axis_without_round_zero():
    _, rounds = labelled(make_small())
    axes = figures.accuracy_over_bytes(rounds).axes[0]
    assert axes.get_xscale() == "log"
    assert min(min(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 3) > 0


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 9.0, 20.0, 1e5])
def test_bytes_axis_has_one_to_five_labels_whatever_its_span(factor, width):
    rounds = labelled(make_small())[1]
    sent = 70_000 * np.where(rounds["round"] < 2, 1.0, factor)
    figure = figures.accuracy_over_bytes(rounds.assign(cumulative_bytes=sent), look=Look("sans", width))
    check_page(figure, fewest=5)
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert 1 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 5


def test_a_flat_curve_is_framed_by_five_points():
    rounds = labelled(make_small())[1].assign(accuracy=0.895, zero_shot_accuracy=0.895)
    low, high = figures.accuracy_over_rounds(rounds).axes[0].get_ylim()
    assert high - low == pytest.approx(5.0)


def test_drawing_into_given_axes():
    _, rounds = labelled(make_small())
    figure = Figure()
    axes = figure.subplots()
    assert figures.accuracy_over_rounds(rounds[rounds["split"] == "iid"], axes) is figure
    assert axes.get_xlabel() == "Round"
    assert axes.get_ylabel() == "Accuracy (%)"


def drawn_of(kind, results, **options):
    """The figure of this kind and its points."""
    runs, rounds = results
    frame = rounds if kind.startswith("accuracy") else runs
    return getattr(figures, kind)(frame, **options), getattr(figures, f"{kind}_points")(frame)


def axes_of(figure, points):
    """Each axes that was drawn into, with the points of its panel."""
    panels = [part for _, part in points.groupby(["shots", "split_label"], dropna=False, observed=True)]
    panels.sort(key=lambda part: not part["shots"].isna().all())
    assert len(figure.axes) == len(panels)
    return list(zip(figure.axes, panels, strict=True))


def check_page(figure, fewest):
    """Assert that the texts of a figure can be read and that none lies on a panel it does not belong to."""
    assert_legible(figure, fewest)
    panels = [axes.get_window_extent() for axes in figure.axes]
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    for axes, panel in zip(figure.axes, panels, strict=True):
        for note in axes.texts:
            assert note.get_window_extent().x1 <= panel.x1 + 2, note.get_text()


MANY = ["zero_shot", "full_finetune", *(name for name in METHODS if name.startswith("peft")), "flora"][:9]
LONG = "a_method with % a very_long name & an option of 100 $ {each} ~ ^"


@pytest.mark.parametrize("font", ["sans", "serif"])
@pytest.mark.parametrize("width", ["column", "page", None])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_can_be_read(kind, width, font):
    results = labelled(make_results(rounds=3, shots=(pd.NA, 1, 4), seeds=(0, 1, 2)))
    figure, _ = drawn_of(kind, results, look=Look(font, width))
    check_page(figure, fewest=10)
    bars = kind in BARS  # nine panels of these would be higher than a page, below one another
    inches = SANS.column if width == "column" and not bars else SANS.page
    assert figure.get_figwidth() == inches
    assert figure.get_figheight() <= HIGHEST


@pytest.mark.parametrize("methods", [["flora"], MANY, ["flora", "full_finetune", LONG]], ids=len)
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_method_many_and_long_names_can_be_read(kind, width, methods):
    results = labelled(make_results(methods=methods, splits=("iid",), shots=(1, 4), rounds=1, seeds=(0,)))
    check_page(drawn_of(kind, results, look=Look("sans", width))[0], fewest=5)


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)], ids=len)
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("kind", CURVES)
def test_curves_are_drawn_from_their_points(kind, rounds, seeds):
    figure, points = drawn_of(kind, labelled(make_results(rounds=rounds, seeds=seeds)))
    for axes, part in axes_of(figure, points):
        curves = dict(list(part.groupby("method_label", observed=True)))
        lines = [line for line in axes.lines if line.get_marker() not in ("None", "", "|", "_")]
        for line, (label, curve) in zip(lines, curves.items(), strict=True):
            assert line.get_color() == styles_of(make_results()[0])[label].colour
            np.testing.assert_array_equal(line.get_xdata(), curve["x"])
            np.testing.assert_allclose(line.get_ydata(), 100 * curve["mean"])
        assert curve["half_width"].notna().all() == (len(seeds) == 3)
        assert set(curve["n"]) == {len(seeds)}
        if len(seeds) == 3:
            bars = [bar for bar in axes.collections if isinstance(bar, LineCollection)]
            bands = bars if len(curve) == 1 else [c for c in axes.collections if c not in bars]
            half = [curve["half_width"].to_numpy() for curve in curves.values()]
            for band, width in zip(bands, half, strict=True):
                y = band.get_paths()[0].vertices[:, 1]
                assert y.max() - y.min() >= 200 * width.max() * (1 - 1e-9)


def test_points_of_curves_say_what_was_measured():
    _, rounds = labelled(make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2))
    last = rounds[rounds["round"] == 2]
    for kind, column in (("bytes", "cumulative_bytes"), ("seconds", "cumulative_seconds")):
        points = getattr(figures, f"accuracy_over_{kind}_points")(rounds)
        assert list(points["round"]) == [1, 2]  # nothing was sent before
        row = points.iloc[-1]
        assert row["x"] == pytest.approx(last[column].mean())
        assert row["mean"] == pytest.approx(last["accuracy"].mean())
        assert row["zero_shot"] == pytest.approx(0.62)
        assert (row["n"], row["task"]) == (2, "cifar10")


def test_curves_may_be_drawn_from_what_the_store_gives():
    runs, rounds = make_small()
    figure = figures.accuracy_over_rounds(rounds.drop(columns="config_hash").assign(config_hash="x"))
    assert figures.accuracy_over_rounds_points(rounds)["n"].max() == 2
    assert len(figure.axes) == 2
    assert len(figures.time_bars(runs).axes) == 2


def test_an_author_s_name_of_zero_shot_stands_in_the_key():
    runs, rounds = make_small()
    runs = label_runs(runs, Names(methods={"zero_shot": "Untrained"}))
    figure = figures.accuracy_over_rounds(label_rounds(rounds, runs), styles=styles_of(runs))
    assert figure.legends[0].get_texts()[0].get_text() == "Untrained"


def test_few_shot_curves_need_two_numbers_of_shots():
    runs, _ = make_results(methods=("flora",), splits=("iid",))
    with pytest.raises(figures.NothingToDraw, match="two numbers of shots"):
        figures.few_shot_curves(runs)
    runs, _ = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA, 1, 4, 16))
    axes = figures.few_shot_curves(runs).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "all"]
    assert list(axes.lines[0].get_xdata()) == [1, 4, 16]
    points = figures.few_shot_curves_points(runs)
    assert list(points["x"]) == [1, 4, 16, 32]  # all data stands apart
    drawn = np.concatenate([line.get_ydata() for line in axes.lines[:2]])
    np.testing.assert_allclose(drawn, 100 * points["mean"])


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("time_bars", ["mean", "features_once_seconds", "other_setup_seconds"]),
        ("memory_bars", ["mean"]),
        ("bytes_bars", ["mean"]),
    ],
)
def test_bars_are_drawn_from_their_points(kind, columns):
    figure, points = drawn_of(kind, labelled(make_results(seeds=(0, 1, 2))))
    for axes, part in axes_of(figure, points):
        widths = [width for row in part[columns].to_numpy(float) for width in row if width > 0]
        np.testing.assert_allclose([patch.get_width() for patch in axes.patches], widths)
        whiskers = [bar.get_segments()[0][:, 0] for bar in axes.collections]
        expected = part[part["half_width"] > 0]
        np.testing.assert_allclose([np.ptp(ends) / 2 for ends in whiskers], expected["half_width"])
        np.testing.assert_allclose([ends.mean() for ends in whiskers], expected["mean"])


def test_bars_say_how_many_times_less_than_the_reference():
    runs = make_runs(
        make_run("full_finetune", train_seconds=60.0, setup_seconds=0.0, bytes_up=4e6, bytes_down=4e6),
        make_run(train_seconds=2.0, setup_seconds=1.0, bytes_up=1e3, bytes_down=1e3),
    )
    notes = [note.get_text() for note in figures.time_bars(runs).axes[0].texts]
    assert notes == ["60.0 s", "2.00 + 1.00 s  20.0×"]  # of whole bars, set-up and all
    assert [note.get_text() for note in figures.bytes_bars(runs).axes[0].texts][1] == "2.00 kB  4,000×"
    turned = figures.time_bars(runs, reference="flora").axes[0].texts
    assert [note.get_text() for note in turned] == ["60.0 s  0.0500×", "2.00 + 1.00 s"]
    without = figures.time_bars(runs, reference="bitfit").axes[0].texts
    assert not any("×" in note.get_text() for note in without)


def test_bars_as_deployed_are_compared_with_the_reference_as_deployed():
    seconds = {
        ("full_finetune", "exact"): 40.0,
        ("flora", "exact"): 2.0,
        ("full_finetune", "none"): 900.0,
        ("flora", "none"): 9.0,
    }
    runs = make_runs(*(
        make_run(method, acceleration=mode, train_seconds=train, setup_seconds=0.0)
        for (method, mode), train in seconds.items()
    ))  # fmt: skip
    points = figures.time_bars_points(runs).set_index("method_label")["times_less"]
    assert (points["FLoRA"], points["FLoRA (as deployed)"]) == (20.0, 100.0)
    assert points.isna().sum() == 2


def test_bars_of_several_splits_have_no_place_in_one_axes():
    axes = Figure().subplots()
    with pytest.raises(BadInput, match="ax: holds one split and shots, not 2"):
        figures.time_bars(make_small()[0], axes)
    figures.time_bars(make_small()[0].query("split == 'iid'"), axes)
    assert axes.get_xlabel() == "Seconds"


def test_bytes_need_a_trained_method_that_states_them():
    with pytest.raises(figures.NothingToDraw, match="bytes"):
        figures.bytes_bars(make_runs(make_run("zero_shot"), make_run(bytes_up=np.nan)))


def test_time_needs_a_trained_method_and_bars_state_training_and_set_up():
    with pytest.raises(figures.NothingToDraw):
        figures.time_bars(make_runs(make_run("zero_shot")))
    axes = figures.time_bars(make_runs(make_run(train_seconds=30.0, setup_seconds=12.5))).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [30.0, 12.5]
    assert [note.get_text() for note in axes.texts] == ["30.0 + 12.5 s"]


@pytest.mark.parametrize("seconds", [COLD, WARM], ids=["cold", "warm"])
def test_bars_count_features_as_computed(seconds):
    figure = figures.time_bars(make_runs(make_run(train_seconds=30.0, **seconds)))
    assert [patch.get_width() for patch in figure.axes[0].patches] == [30.0, 12.0, 0.5]
    assert [note.get_text() for note in figure.axes[0].texts] == ["30.0 + 12.5 s"]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == ["training, all rounds", "features, once", "rest of set-up"]


def test_memory_is_that_of_the_gpu_where_all_ran_on_one():
    figure = figures.memory_bars(make_runs(make_run(peak_gpu_memory_bytes=3e9)))
    assert figure.get_supxlabel() == "Peak GPU memory"
    assert figure.axes[0].patches[0].get_width() == 3e9
    with pytest.raises(figures.NothingToDraw):
        figures.memory_bars(make_runs(make_run(peak_memory_bytes=np.nan)))


@pytest.mark.parametrize("peak", [1e9, 4.6e9, 4.9e9, 6.1e9])
def test_no_label_stands_at_the_end_of_a_bar_axis(peak):
    runs, _ = make_results(methods=("flora",), shots=(pd.NA,), seeds=(0,))
    axes = figures.memory_bars(runs.assign(peak_memory_bytes=peak)).axes[0]
    assert axes.get_xlim()[1] > peak
    assert max(axes.get_xticks()) < 0.9 * axes.get_xlim()[1]


def test_names_are_not_read_as_mathematics():
    run = make_run("_$x_{$")
    rounds = pd.DataFrame(make_rounds(run)).astype({"shots": "Int64"})
    figure = figures.accuracy_over_rounds(label_rounds(rounds, label_runs(make_runs(run))))
    figure.draw_without_rendering()
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()[1:]] == ["_\\$x_{\\$"]


def test_drawing_leaves_the_global_settings_alone():
    before = dict(mpl.rcParams)
    figures.memory_bars(make_runs(make_run()))
    assert dict(mpl.rcParams) == before
