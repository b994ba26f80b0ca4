"""What figures refuse to draw, and what they take of a frame."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.figures.frames import memory_column
from bench.report.names import METHODS, Names, label_rounds, label_runs
from bench.report.styles import Look, styles_of
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import labelled, make_results, make_rounds, make_run, make_runs
from tests.bench.report.test_clients import many
from tests.bench.report.test_divisions import COUNTS, divided, together
from tests.bench.report.test_networks import timed

OF_ROUNDS = ("accuracy_over_rounds", "accuracy_over_bytes", "accuracy_over_seconds", "phase_times")
OF_RUNS = (
    *("few_shot_curves", "time_bars", "memory_bars", "bytes_bars", "pareto_front", "sensitivity"),
    *("memory_by_cause", "heat_map", "critical_difference_diagram"),
)
OTHERS = ("client_accuracies", "split_picture", "time_to_accuracy")
OF_SEVERAL_TASKS = ("heat_map", "critical_difference_diagram")
OF_ONE_TASK = (*OF_ROUNDS, *(kind for kind in OF_RUNS if kind not in OF_SEVERAL_TASKS), *OTHERS)


def with_all(runs):
    """Runs with all that any figure of runs draws: options that vary, tensors counted."""
    other = runs[runs["method"] == "flora"].assign(**{"method.rank": 8.0})
    other["config_hash"] += "8"
    return pd.concat([runs, other], ignore_index=True).assign(**{"memory.by_cause.buffers": 1e6})


def frame_of(kind, splits=("iid",), shots=(1, 4)):
    """A frame that this figure draws, of several panels if asked for."""
    if kind == "client_accuracies":
        return many(splits=splits)
    if kind == "split_picture":
        return together(*(divided(COUNTS, split) for split in splits))
    if kind == "time_to_accuracy":
        parts = pd.concat([timed({"flora": [1.0]}, split=split) for split in splits])
        return parts.assign(split_label=parts["split_label"].astype("category"))
    runs, rounds = make_results(splits=splits, shots=shots)
    if kind in OF_RUNS:
        return label_runs(with_all(runs))
    return label_rounds(rounds, label_runs(runs)).assign(**{"seconds.train": 1.0})


def one_shot(kind, **options):
    return frame_of(kind, shots=(1, 4) if kind == "few_shot_curves" else (pd.NA,), **options)


def draw(kind, *args, **options):
    return getattr(figures, kind)(*args, **options)


def test_every_figure_of_a_frame_is_looked_at_here():
    functions = {name: getattr(figures, name) for name in figures.__all__ if name[0].islower()}
    takes_ax = {name for name, draws in functions.items() if "ax" in inspect.signature(draws).parameters}
    assert takes_ax == {*OF_ROUNDS, *OF_RUNS, *OTHERS, "ratios"}


@pytest.mark.parametrize("kind", OF_ONE_TASK)
def test_several_tasks_or_models_are_not_drawn_on_one_another(kind):
    frame = one_shot(kind)
    assert isinstance(draw(kind, frame), Figure)
    for column in ("task", "model"):
        if column in frame:
            other = frame.assign(**{column: "another"})
            if "fingerprint" in frame:
                other["fingerprint"] = "another"
            both = pd.concat([frame, other], ignore_index=True)
            with pytest.raises(BadInput, match=f"2 {column}s"):
                draw(kind, both)


@pytest.mark.parametrize("kind", OF_ONE_TASK)
def test_one_axes_takes_one_split_and_shots(kind):
    axes = Figure().subplots()
    with pytest.raises(BadInput, match=r"ax: holds one split.* not 2; filter"):
        draw(kind, one_shot(kind, splits=("iid", "dirichlet")), axes)
    assert not axes.has_data()
    assert draw(kind, one_shot(kind), axes) is axes.figure


@pytest.mark.parametrize("kind", [*OF_ROUNDS, *OF_RUNS, *OTHERS])
def test_an_array_of_axes_is_none(kind):
    frame = frame_of(kind) if kind == "heat_map" else one_shot(kind)
    if kind == "critical_difference_diagram":
        frame = pd.concat([frame.assign(task=f"task {number}") for number in range(6)], ignore_index=True)
    with pytest.raises(BadInput, match="ax: ndarray must be one matplotlib Axes"):
        draw(kind, frame, Figure().subplots(1, 2))


@pytest.mark.parametrize(
    ("kinds", "wrong", "message"),
    [
        (OF_ROUNDS, frame_of("time_bars"), r"rounds: .*`bench.load_rounds` gives; .* none of 'round'"),
        (
            OF_RUNS,
            frame_of("phase_times"),
            r"runs: .*`bench.load_results` gives; this has a row a run and ro",
        ),
        (OF_RUNS, many(), "this has a row a run and client"),
        (OTHERS[:1], frame_of("time_bars"), r"read_data\(folder\).clients` gives; this has none of 'client'"),
        (OTHERS[1:2], frame_of("time_bars"), r"read_data\(folder\).divisions` gives; .* 'fingerprint'"),
        (OTHERS[2:], frame_of("time_bars"), "network_times` gives; this has none of 'profile'"),
        ((*OF_ROUNDS, *OF_RUNS, *OTHERS), [1], "list must be a data frame"),
    ],
)
def test_a_frame_of_another_kind_is_refused_in_a_line(kinds, wrong, message):
    for kind in kinds:
        with pytest.raises(BadInput, match=message) as refused:
            draw(kind, wrong)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [*OF_ROUNDS, *OF_RUNS, *OTHERS])
def test_nothing_is_nothing_to_draw(kind):
    for nothing in (pd.DataFrame(), one_shot(kind).iloc[:0]):
        with pytest.raises(figures.NothingToDraw):
            draw(kind, nothing)


@pytest.mark.parametrize("kind", OF_ROUNDS)
def test_rounds_that_do_not_tell_their_runs_apart_are_not_pooled(kind):
    runs = make_runs(*(make_run(seed=seed, **{"method.rank": r}) for seed in (0, 1) for r in (2.0, 8.0)))
    rounds = pd.DataFrame([row for run in runs.to_dict("records") for row in make_rounds(run)])
    rounds = rounds.astype({"shots": "Int64"}).assign(**{"seconds.train": 1.0})
    with pytest.raises(
        BadInput, match=r"rounds: runs of FLoRA on IID differ in more than their seed.*label_rounds"
    ):
        draw(kind, rounds)
    points = draw(f"{kind}_points", label_rounds(rounds, label_runs(runs)))
    assert set(points["n"]) == {2}
    assert points["method_label"].nunique() == 2
    one = rounds[rounds["config_hash"].isin(runs.query("`method.rank` == 2")["config_hash"])]
    assert set(draw(f"{kind}_points", one)["n"]) == {2}


def test_memory_is_that_of_the_gpu_where_every_trained_run_states_it():
    runs = make_runs(make_run("zero_shot"), make_run(peak_gpu_memory_bytes=3e9))
    assert memory_column(runs) == "peak_gpu_memory_bytes"
    assert figures.memory_bars_points(runs)["quantity"].unique().tolist() == ["peak_gpu_memory_bytes"]
    assert figures.pareto_front_points(runs, cost="memory")["x"].tolist() == [3e9]
    mixed = make_runs(make_run("linear_probe"), make_run(peak_gpu_memory_bytes=3e9))
    assert memory_column(mixed) == "peak_memory_bytes"
    assert memory_column(runs[runs["method"] == "zero_shot"]) == "peak_memory_bytes"


@pytest.mark.parametrize("kind", ["accuracy_over_rounds", "few_shot_curves", "pareto_front", "sensitivity"])
def test_methods_scored_on_different_test_sets_have_no_zero_shot_and_no_front(kind):
    frame = frame_of(kind)
    assert draw(f"{kind}_points", frame)["zero_shot"].notna().all()
    apart = frame["shots"].eq(4) & frame["method"].eq("linear_probe")
    frame.loc[apart, "zero_shot_accuracy"] -= 1e-6
    points = draw(f"{kind}_points", frame)
    four = points["shots"] == 4
    assert points.loc[four, "zero_shot"].isna().all()
    assert points.loc[~four, "zero_shot"].notna().all()
    if kind == "pareto_front":
        assert not points.loc[four, "on_front"].any()
        assert points.loc[~four, "on_front"].any()
    assert isinstance(draw(kind, frame), Figure)


def test_a_reference_is_a_name_or_a_label():
    both = [make_run(m, acceleration=a) for m in ("full_finetune", "flora") for a in ("exact", "none")]
    runs = label_runs(make_runs(*both), Names(methods={"full_finetune": "Everything"}))
    for kind in ("time_bars_points", "memory_bars_points", "bytes_bars_points"):
        by_name, by_label = (draw(kind, runs, reference=name) for name in ("full_finetune", "Everything"))
        assert by_name["times_less"].notna().sum() == 2
        pd.testing.assert_frame_equal(by_name, by_label)
    ranks = make_runs(*(make_run(**{"method.rank": rank}) for rank in (2.0, 8.0)))
    assert figures.time_bars_points(ranks, reference="FLoRA (rank 8)")["times_less"].isna().tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("kind", ["time_bars", "memory_bars", "bytes_bars"])
def test_values_beside_bars_stay_in_the_axes_given(kind, layout):
    runs = make_results(splits=("iid",), shots=(pd.NA,))[0]
    figure = Figure((5, 4), layout=layout)
    axes = figure.subplots()
    draw(kind, runs, axes)
    figure.draw_without_rendering()
    assert len(axes.texts) >= 4
    for note in axes.texts:
        assert note.get_window_extent().x1 <= axes.bbox.x1 + 1, note.get_text()


def test_ratios_of_one_cost_go_into_axes_given_and_one_has_a_tick():
    frame = pd.DataFrame({"quantity": ["bytes", "train_seconds"], "ratio": [7.3, 0.91], "n": 1})
    frame = frame.assign(method_label=pd.Categorical(["FLoRA"] * 2), split_label="IID", shots=pd.NA)
    styles = styles_of(make_runs(make_run()))
    for axes in figures.ratios(frame, ("a", "b"), styles=styles).axes:
        np.testing.assert_allclose(np.abs(axes.get_xticks() - 1).min(), 0, atol=1e-12)
        low, high = axes.get_xlim()
        assert 2 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 7
    axes = Figure().subplots()
    with pytest.raises(BadInput, match=r"ax: holds one cost, not 2"):
        figures.ratios(frame, ("a", "b"), axes, styles=styles)
    assert figures.ratios(frame[:1], ("a", "b"), axes, styles=styles) is axes.figure
    assert (axes.get_title(), axes.get_xlabel()) == ("Bytes sent", "b / a")


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("kind", ["accuracy_over_bytes", *OF_RUNS[1:5], "memory_by_cause", "phase_times"])
def test_no_figure_is_higher_than_a_page(kind, width):
    splits = ("iid", "dirichlet", "pathological", "quantity", "domain", "other")
    figure = draw(kind, one_shot(kind, splits=splits), look=Look(width=width))
    assert figure.get_figheight() <= 8.5
    assert len(figure.axes) == 6


def test_a_figure_takes_the_page_where_a_column_would_be_too_high():
    splits = ("iid", "dirichlet", "pathological", "quantity")
    frame = frame_of("time_bars", splits=splits, shots=(pd.NA, 1, 4))
    figure = figures.time_bars(frame, look=Look(width="column"))
    assert figure.get_figheight() <= 8.5
    assert figure.get_figwidth() == Look().page


@pytest.mark.parametrize("rounds", [1, 7, 10, 17, 100])
def test_the_last_round_has_a_tick(rounds):
    _, frame = labelled(make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=rounds))
    axes = figures.accuracy_over_rounds(frame).axes[0]
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert rounds in shown
    assert all(tick == int(tick) for tick in shown)
    assert 1 <= len(shown) <= 7


def test_lines_of_titles_stand_as_close_in_every_font():
    frame = frame_of("accuracy_over_rounds", splits=("iid", "pathological"), shots=(pd.NA, 4))
    heights = []
    for font in ("sans", "serif"):
        figure = figures.accuracy_over_rounds(frame, look=Look(font, "column"))
        figure.draw_without_rendering()
        titles = [axes.title for axes in figure.axes if axes.get_title().count("\n") == 1]
        assert titles
        heights += [title.get_window_extent().height / title.get_fontsize() for title in titles]
    assert max(heights) < 1.05 * min(heights)


def test_a_map_of_many_data_sets_is_no_higher_than_a_page():
    runs = [
        make_run(method, split, task=f"task {number}")
        for method in tuple(METHODS)[:9]
        for split in ("iid", "dirichlet", "pathological")
        for number in range(16)
    ]
    figure = figures.heat_map(make_runs(*runs), columns="task", look=Look(width="page"))
    assert figure.get_figheight() <= 8.5
    numbers = figure.axes[0].texts
    assert {text.get_rotation() for text in numbers} == {0.0}
    assert all(text.get_text().isdigit() for text in numbers)
    assert min(text.get_fontsize() for text in numbers) >= 7
    figure.draw_without_rendering()
    wide = figure.axes[0].bbox.width / 16
    assert max(text.get_window_extent().width for text in numbers) < wide


def test_equal_critical_differences_are_equally_long():
    rng = np.random.default_rng(0)
    names = {"iid": ["a", "b", "a method of a long name"], "dirichlet": ["a", "b", "c"]}
    runs = make_runs(*(
        make_run(method, split, task=f"task {number}", accuracy=float(rng.uniform()))
        for split, methods in names.items() for method in methods for number in range(8)
    ))  # fmt: skip
    ends = []
    for axes in figures.critical_difference_diagram(runs, look=Look(width="page")).axes:
        (bar,) = (line for line in axes.lines if line.get_marker() == "|")
        ends.append(np.ptp(axes.transData.transform(bar.get_xydata())[:, 0]))
    assert len(ends) == 2
    assert ends[0] == pytest.approx(ends[1])


def test_bubbles_of_many_panels_keep_apart():
    parts = [
        divided(np.full((8, 10), 16), shots=shots, split=split)
        for shots in (1, 2, 4, 8, 16)
        for split in "ab"
    ]
    figure = figures.split_picture(together(*parts), look=Look(width="column"))
    assert figure.get_figheight() <= 8.6
    figure.draw_without_rendering()
    for axes in figure.axes:
        step = np.abs(np.diff(axes.transData.transform([(0, 0), (1, 1)]), axis=0)).min()
        assert np.sqrt(axes.collections[0].get_sizes().max()) * figure.dpi / 72 < step
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["16 samples", "all classes"]


def test_numbers_below_a_narrow_front_keep_apart():
    frame = frame_of("pareto_front", splits=("iid", "dirichlet"), shots=(pd.NA,))
    for font in ("sans", "serif"):
        assert_legible(figures.pareto_front(frame, look=Look(font, "column")), fewest=10)
