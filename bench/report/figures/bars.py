"""Bars of time and memory by method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, MaxNLocator

from bench.report.figures.canvas import (
    NothingToDraw,
    Panels,
    drawn_half_width,
    make_panels,
    order_of,
    verbatim,
)
from bench.report.names import label_runs
from bench.report.statistics import mean_interval
from bench.report.styles import FEATURES_COLOUR, SANS, SETUP_COLOUR, Look, Style, styles_of
from bench.report.text import bytes_text, digits
from bench.report.times import with_times

# The parts of a set-up, in the order they are stacked: name in the key, and colour.
_SETUP = {
    "features_once_seconds": ("features, once", FEATURES_COLOUR),
    "other_setup_seconds": ("rest of set-up", SETUP_COLOUR),
}


def time_bars(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the seconds that training took and, stacked onto them, those of the set-up before the first round.

    The set-up counts features of a frozen tower as computed, whether or not a run found them in the cache.

    Args:
        runs: one row a run.
        ax: draw all rows into this one instead of a panel for each split and shots.
        styles: of each method label; made from ``runs`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: no run of a trained method has ``train_seconds``.
    """
    runs = with_times(runs)
    trained = runs[runs["method"] != "zero_shot"].dropna(subset=["train_seconds"])
    if trained.empty:
        raise NothingToDraw("no run of a trained method states its training time")
    with look.drawing():
        panels = make_panels(trained, ax, look, _bar_height(trained))
        for axes, part in panels.parts:
            table = mean_interval(part, ["method_label"], "train_seconds")
            table["half_width"] = drawn_half_width(table)
            for name in _SETUP:
                means = mean_interval(part, ["method_label"], name)[["method_label", "mean"]]
                table = table.merge(means.rename(columns={"mean": name}), on="method_label", how="left")
            _bars(axes, table, order_of(trained), styles or styles_of(runs), digits)
        _fit_bars(panels)
        key = {"training, all rounds": Patch(facecolor="#6e6e6e")}
        known = [name for name in _SETUP if trained[name].notna().any()]
        key |= {_SETUP[name][0]: Patch(facecolor=_SETUP[name][1]) for name in known}
        panels.finish("Seconds", "", key)
    return panels.figure


def memory_bars(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw peak memory by method: of the GPU where every run states it, else of the process.

    Arguments are those of ``time_bars``.

    Raises:
        NothingToDraw: no run states its peak memory.
    """
    runs = label_runs(runs)
    on_gpu = "peak_gpu_memory_bytes" in runs and runs["peak_gpu_memory_bytes"].notna().all()
    column = "peak_gpu_memory_bytes" if on_gpu else "peak_memory_bytes"
    measured = runs.dropna(subset=[column])
    if measured.empty:
        raise NothingToDraw("no run states its peak memory")
    with look.drawing():
        panels = make_panels(measured, ax, look, _bar_height(measured))
        for axes, part in panels.parts:
            table = mean_interval(part, ["method_label"], column)
            table["half_width"] = drawn_half_width(table)
            _bars(axes, table, order_of(measured), styles or styles_of(runs), bytes_text)
            axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        _fit_bars(panels)
        panels.finish("Peak GPU memory" if on_gpu else "Peak memory of the process", "", {})
    return panels.figure


def _bar_height(frame: pd.DataFrame) -> float:
    return 0.24 * frame["method_label"].nunique() + 0.45


def _bars(
    axes: Axes,
    table: pd.DataFrame,
    order: Sequence[str],
    styles: Mapping[str, Style],
    text: Callable[[float], str],
) -> None:
    """Draw a bar a method with its value beside it; the parts of the set-up, if any, are stacked onto it."""
    for row in table.to_dict("records"):
        label, mean = str(row["method_label"]), float(row["mean"])
        y, style = order.index(label), styles[label]
        *parts, half = (float(np.nan_to_num(row.get(name, 0.0))) for name in (*_SETUP, "half_width"))
        axes.barh(y, mean, 0.7, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0)
        setup = 0.0
        for seconds, (_, colour) in zip(parts, _SETUP.values(), strict=True):
            if seconds:
                axes.barh(y, seconds, 0.7, left=mean + setup, color=colour)
            setup += seconds
        if half:
            axes.errorbar(mean, y, xerr=half, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
        shown = f"{text(mean)} + {text(setup)}" if setup else text(mean)
        end = mean + max(setup, half)
        axes.annotate(shown, (end, y), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(order)), [verbatim(name) for name in order])
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _fit_bars(panels: Panels) -> None:
    """Leave room at the right of the longest bar for its value; bars start at zero."""
    room = {1: 1.45, 2: 1.5}.get(panels.abreast, 1.65)
    ends = [note.xy[0] for axes in panels.axes for note in axes.texts if isinstance(note, Annotation)]
    longest = max(ends)
    limit = room * longest if longest > 0 else 1.0
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, limit)
    for axes in panels.axes:
        axes.set_xlim(0, limit)
        # A label at the very end would touch the next panel's first.
        axes.set_xticks([tick for tick in ticks if tick < 0.88 * limit])
