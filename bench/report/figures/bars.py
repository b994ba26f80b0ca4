"""Bars of time, memory and bytes by method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, MaxNLocator

from bench.report.figures.canvas import (
    LONGEST_IN_A_COLUMN,
    NothingToDraw,
    Panels,
    drawn_interval,
    make_panels,
    order_of,
    verbatim,
)
from bench.report.figures.frames import labelled_runs, memory_column, memory_name
from bench.report.statistics import mean_interval, ratio_to
from bench.report.styles import FEATURES_COLOUR, SANS, SETUP_COLOUR, Look, Style, styles_of
from bench.report.tables import CELL
from bench.report.text import bytes_text, digits
from bench.report.times import with_times

REFERENCE = "full_finetune"
# The parts of a set-up, in the order they are stacked: name in the key, and colour.
_SETUP = {
    "features_once_seconds": ("features, once", FEATURES_COLOUR),
    "other_setup_seconds": ("rest of set-up", SETUP_COLOUR),
}
# What a method is called; the second is the same as deployed.
_METHOD = ["method", "twin_label", "method_label"]
# Of a panel, at most what values beside bars take.
_MOST_FOR_VALUES = 0.8
# Inches around each panel.
_AROUND = 0.18


def time_bars(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    reference: str = REFERENCE,
) -> Figure:
    """Draw the seconds that training took and, stacked onto them, those of the set-up before the first round.

    The set-up counts features of a frozen tower as computed, whether or not a run found them in the cache.
    Behind the seconds stands how many times less the whole bar is than that of the reference.

    Args:
        runs: one row a run, of one task and model.
        ax: draw into this one instead of a panel for each split and shots; there may be but one of these.
        styles: of each method label; made from ``runs`` when absent.
        look: type and width.
        reference: the method, by name or label, that others are compared with, accelerated alike.

    Raises:
        NothingToDraw: no run of a trained method has ``train_seconds``.
        BadInput: the runs are of several tasks or models, or of several splits or shots for one ``ax``.
    """
    runs = labelled_runs(runs)
    points, styles = time_bars_points(runs, reference=reference), styles or styles_of(runs)
    with look.drawing():
        panels = _panels(points, ax, look)
        for axes, part in panels.parts:
            for row in part.to_dict("records"):
                _bar(axes, row, styles, _time_text)
        _finish(panels, "Seconds", _setup_key(points))
    return panels.figure


def time_bars_points(runs: pd.DataFrame, *, reference: str = REFERENCE) -> pd.DataFrame:
    """Give the numbers that ``time_bars`` draws.

    Returns:
        One row a task, model, split, shots and trained method: ``n`` seeds, ``mean`` seconds of training and
        ``half_width`` of its 95 % t-interval (missing where it is not drawn), the means
        ``features_once_seconds`` and ``other_setup_seconds`` (missing where there are none), ``total`` of all
        three, and ``times_less``: total of the reference / total (missing without one, and for itself).
    """
    runs = with_times(labelled_runs(runs))
    trained = runs[(runs["method"] != "zero_shot") & runs["train_seconds"].notna()]
    if trained.empty:
        raise NothingToDraw("no run of a trained method states its training time")
    by = _bar_of(trained)
    points = drawn_interval(trained, by, "train_seconds")
    for name in _SETUP:
        means = mean_interval(trained, by, name).rename(columns={"mean": name})
        points = points.merge(means[[*by, name]], on=by, how="left")
    points["total"] = points[["mean", *_SETUP]].sum(axis=1)
    return _with_ratio(points, reference, "total")


def memory_bars(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    reference: str = REFERENCE,
) -> Figure:
    """Draw peak memory by method: of the GPU where every trained run states it, else of the process.

    Arguments and errors are those of ``time_bars``, but that there is nothing to draw where no run states its
    peak memory.
    """
    runs = labelled_runs(runs)
    points, styles = memory_bars_points(runs, reference=reference), styles or styles_of(runs)
    name = memory_name(points["quantity"].iloc[0])
    return _bytes_figure(points, ax, styles, look, name)


def memory_bars_points(runs: pd.DataFrame, *, reference: str = REFERENCE) -> pd.DataFrame:
    """Give the numbers that ``memory_bars`` draws.

    Returns:
        One row a task, model, split, shots and method: ``quantity``, the column of runs shown; ``n`` seeds,
        ``mean`` bytes and ``half_width`` of the 95 % t-interval (missing where it is not drawn), and
        ``times_less``: mean of the reference / mean (missing without one, and for itself).
    """
    runs = labelled_runs(runs)
    column = memory_column(runs)
    measured = runs.dropna(subset=[column])
    if measured.empty:
        raise NothingToDraw("no run states its peak memory")
    points = drawn_interval(measured, _bar_of(measured), column)
    points.insert(len(CELL), "quantity", column)
    return _with_ratio(points, reference, "mean")


def bytes_bars(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    reference: str = REFERENCE,
) -> Figure:
    """Draw the bytes that trained methods sent, up and down, over all clients and rounds.

    Arguments and errors are those of ``time_bars``, but that there is nothing to draw where no run of a
    trained method states what it sent.
    """
    runs = labelled_runs(runs)
    points, styles = bytes_bars_points(runs, reference=reference), styles or styles_of(runs)
    return _bytes_figure(points, ax, styles, look, "Bytes sent, up + down, all clients and rounds")


def bytes_bars_points(runs: pd.DataFrame, *, reference: str = REFERENCE) -> pd.DataFrame:
    """Give the numbers that ``bytes_bars`` draws, as ``memory_bars_points`` but without ``quantity``."""
    runs = labelled_runs(runs)
    sent = runs.assign(bytes=runs["bytes_up"] + runs["bytes_down"])
    sent = sent[(sent["method"] != "zero_shot") & sent["bytes"].notna()]
    if sent.empty:
        raise NothingToDraw("no run of a trained method states the bytes it sent")
    return _with_ratio(drawn_interval(sent, _bar_of(sent), "bytes"), reference, "mean")


def _bar_of(runs: pd.DataFrame) -> list[str]:
    """What makes a bar; those that agree in all but the method are compared."""
    return [*_compared(runs), *_METHOD]


def _compared(runs: pd.DataFrame) -> list[str]:
    return [*CELL, *(["acceleration"] if "acceleration" in runs else [])]


def _with_ratio(points: pd.DataFrame, reference: str, value: str) -> pd.DataFrame:
    compared = _compared(points)
    points = points.sort_values([*CELL, "method_label"], kind="stable", ignore_index=True)
    named = (points[_METHOD].astype(str) == reference).any(axis=1)
    first = named & ~points[named].duplicated(compared).reindex(points.index, fill_value=False)
    # what took or sent nothing, such as zero-shot, has no factor
    times_less = ratio_to(points, compared, first, value).where(~first)
    return points.drop(columns="twin_label").assign(times_less=times_less)


def _bytes_figure(
    points: pd.DataFrame, ax: Axes | None, styles: Mapping[str, Style], look: Look, name: str
) -> Figure:
    with look.drawing():
        panels = _panels(points, ax, look)
        for axes, part in panels.parts:
            for row in part.to_dict("records"):
                _bar(axes, row, styles, lambda row: bytes_text(row["mean"]))
            axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        _finish(panels, name, {})
    return panels.figure


def _panels(points: pd.DataFrame, ax: Axes | None, look: Look) -> Panels:
    order = order_of(points)
    names = [verbatim(name, LONGEST_IN_A_COLUMN if look.width == "column" else 30) for name in order]
    lines = sum(name.count("\n") + 1 for name in names)
    points = points.assign(y=[order.index(str(label)) for label in points["method_label"]])
    height, least = 0.45 + max(0.24 * len(order), 0.16 * lines), 0.4 + 0.16 * lines
    panels = make_panels(points, ax, look, height, in_column=1, least_height=least)
    for axes in panels.axes:
        axes.set_yticks(range(len(order)), names)
        axes.set_ylim(len(order) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return panels


def _bar(
    axes: Axes, row: Mapping[Any, Any], styles: Mapping[str, Style], text: Callable[[Mapping[Any, Any]], str]
) -> None:
    """Draw a bar with its value and ratio beside it; the parts of a set-up, if any, are stacked onto it."""
    y, mean, style = row["y"], row["mean"], styles[str(row["method_label"])]
    axes.barh(y, mean, 0.7, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0)
    end = mean
    for name, (_, colour) in _SETUP.items():
        if seconds := np.nan_to_num(row.get(name, 0.0)):
            axes.barh(y, seconds, 0.7, left=end, color=colour)
            end += seconds
    if half := np.nan_to_num(row["half_width"]):
        axes.errorbar(mean, y, xerr=half, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
    ratio = "" if np.isnan(row["times_less"]) else f"  {digits(row['times_less'])}×"
    place = max(end, mean + half), y
    # clipped, one that is not in the frame yet would have no width
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(text(row) + ratio, place, (3, 0), **beside)


def _time_text(row: Mapping[Any, Any]) -> str:
    setup = row["total"] - row["mean"]
    return f"{digits(row['mean'])} + {digits(setup)} s" if setup > 0 else f"{digits(row['mean'])} s"


def _setup_key(points: pd.DataFrame) -> dict[str, Patch]:
    key = {"training, all rounds": Patch(facecolor="#6e6e6e")}
    known = [name for name in _SETUP if points[name].notna().any()]
    return key | {_SETUP[name][0]: Patch(facecolor=_SETUP[name][1]) for name in known}


def _finish(panels: Panels, name: str, key: Mapping[str, Patch]) -> None:
    """Leave room at the right of each bar for its value; bars start at zero."""
    _fit(panels, _inches_of_bars(panels))
    panels.finish(name, "", key)
    if not panels.own:  # only what else is in the figure says what its layout leaves to the axes
        panels.figure.draw_without_rendering()
        _fit(panels, panels.axes[0].get_window_extent().width / panels.figure.dpi)


def _fit(panels: Panels, room: float) -> None:
    """Make the bars of each panel and their values fill so many inches."""
    notes = [note for axes in panels.axes for note in axes.texts if isinstance(note, Annotation)]
    takes = [min((_inches(note) + 0.1) / room, _MOST_FOR_VALUES) for note in notes]
    limit = max(note.xy[0] / (1 - take) for note, take in zip(notes, takes, strict=True)) or 1.0
    ticks = MaxNLocator(nbins=4 if room > 1.6 else 3, steps=[1, 2, 2.5, 5, 10]).tick_values(0, limit)
    panels.axes[0].set_xlim(0, limit)  # all share it
    # A label at the very end would touch the next panel's first.
    panels.axes[0].set_xticks([tick for tick in ticks if tick < 0.88 * limit])


def _inches_of_bars(panels: Panels) -> float:
    """What names of methods, which stand beside the first panel of a row, leave to each, about."""
    if not panels.own:
        return panels.panel_width
    names = max(_inches(label) for label in panels.axes[0].get_yticklabels())
    return (panels.figure.get_figwidth() - names) / panels.abreast - _AROUND


def _inches(text: Text) -> float:
    figure = text.get_figure(root=True)
    assert figure is not None
    return float(text.get_window_extent().width / figure.dpi)
