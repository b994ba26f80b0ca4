"""The figures, from synthetic results."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.catalogue import method_modules
from bench.report import figures
from bench.report.names import METHODS, label_rounds, label_runs
from bench.report.styles import SANS, STYLES, styles_of
from tests.bench.report.made import (
    COLD,
    LEVEL,
    WARM,
    labelled,
    make_results,
    make_rounds,
    make_run,
    make_runs,
    make_small,
)


def test_a_method_looks_the_same_in_every_set_and_variants_keep_apart():
    alone = styles_of(make_runs(make_run()))
    many = styles_of(make_results(methods=(*LEVEL, "a", "b"))[0])
    assert alone["FLoRA"] == many["FLoRA"]
    assert len({(s.colour, s.marker, str(s.line)) for s in many.values()}) == len(many)
    variants = styles_of(make_runs(*(make_run(**{"method.rank": r}) for r in (2.0, 4.0, 8.0))))
    assert len({s.marker for s in variants.values()}) == len({s.hatch for s in variants.values()}) == 3


def test_every_method_has_a_name_and_those_of_this_project_a_look_of_their_own():
    methods = method_modules()
    assert set(methods) <= set(METHODS)
    assert len(set(METHODS.values())) == len(METHODS)
    assert {name for name in methods if ":" not in name} == set(STYLES)
    for part in ("colour", "marker", "line", "hatch"):
        values = [str(getattr(style, part)) for name, style in STYLES.items() if name != "zero_shot"]
        repeated = len(values) - len(set(values))
        assert repeated <= (1 if part == "line" else 0), part


def test_many_methods_without_a_look_of_their_own_keep_apart():
    names = [name for name in method_modules() if ":" in name]
    drawn = styles_of(make_runs(*(make_run(method=name) for name in (*STYLES, *names))))
    assert len({(s.colour, s.marker) for s in drawn.values()}) == len(drawn)
    own = {style.colour for style in STYLES.values()}
    assert not own & {drawn[METHODS[name]].colour for name in names}


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


@pytest.mark.parametrize("factor", [1.5, 4.0, 20.0, 1e5])
def test_bytes_axis_has_one_to_five_labels_whatever_its_span(factor):
    rounds = labelled(make_small())[1]
    sent = 70_000 * np.where(rounds["round"] < 2, 1.0, factor)
    axes = figures.accuracy_over_bytes(rounds.assign(cumulative_bytes=sent)).axes[0]
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


@pytest.mark.parametrize("kind", ["accuracy_over_rounds", "accuracy_over_bytes", "time_bars", "memory_bars"])
def test_no_two_texts_overlap(kind):
    runs, rounds = labelled(make_results(rounds=3))
    main = runs[runs["shots"].isna()]
    figure = getattr(figures, kind)(rounds if kind.startswith("accuracy") else main)
    figure.draw_without_rendering()
    texts = [*(axes.title for axes in figure.axes), *(note for axes in figure.axes for note in axes.texts)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            shown = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
            texts += [tick.label1 for tick in shown]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    clashes = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.fully_overlaps(b)]
    assert len(boxes) > 10
    assert not clashes


def test_few_shot_curves_need_two_numbers_of_shots():
    runs, _ = make_results(methods=("flora",), splits=("iid",))
    with pytest.raises(figures.NothingToDraw, match="two numbers of shots"):
        figures.few_shot_curves(runs)
    runs, _ = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA, 1, 4, 16))
    axes = figures.few_shot_curves(runs).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "all"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 2, 4])


def test_time_needs_a_trained_method_and_bars_state_training_and_set_up():
    with pytest.raises(figures.NothingToDraw):
        figures.time_bars(make_runs(make_run("zero_shot")))
    axes = figures.time_bars(make_runs(make_run(train_seconds=30.0, setup_seconds=12.5))).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [30.0, 12.5]
    assert [note.get_text() for note in axes.texts] == ["30.0 + 12.5"]


@pytest.mark.parametrize("seconds", [COLD, WARM], ids=["cold", "warm"])
def test_bars_count_features_as_computed(seconds):
    figure = figures.time_bars(make_runs(make_run(train_seconds=30.0, **seconds)))
    assert [patch.get_width() for patch in figure.axes[0].patches] == [30.0, 12.0, 0.5]
    assert [note.get_text() for note in figure.axes[0].texts] == ["30.0 + 12.5"]
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


def test_names_are_not_read_as_mathematics(tmp_path):
    run = make_run("_$x_{$")
    runs = label_runs(make_runs(run))
    figure = figures.accuracy_over_rounds(
        label_rounds(pd.DataFrame(make_rounds(run)).astype({"shots": "Int64"}), runs)
    )
    figures.save(figure, tmp_path / "odd")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()[1:]] == ["_\\$x_{\\$"]


def test_two_builds_give_the_same_bytes_and_pdf_embeds_its_fonts(tmp_path):
    runs, _ = labelled(make_small())
    first, again = (figures.save(figures.time_bars(runs), tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    pdf = first[1].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    image = Image.open(first[0])
    assert image.width == int(SANS.page * 200)
    assert "Software" not in image.info


def test_drawing_leaves_the_global_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    figures.save(figures.memory_bars(make_runs(make_run())), tmp_path / "a")
    assert dict(mpl.rcParams) == before
