"""Accuracy over rounds, bytes and shots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from bench.report.figures.canvas import (
    NothingToDraw,
    by_method,
    drawn_half_width,
    key_of,
    make_panels,
    zero_shot_line,
)
from bench.report.names import label_runs
from bench.report.statistics import mean_interval
from bench.report.styles import SANS, Look, Style, styles_of
from bench.report.tables import zero_shot_reference


def accuracy_over_rounds(
    rounds: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw test accuracy by round, a panel for each split and shots; zero-shot is a dashed line.

    Args:
        rounds: one row a run and round, best labelled by ``names.label_rounds``.
        ax: draw all rows into this one instead.
        styles: of each method label; made from ``rounds`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: no trained method has a round.
    """
    return _curves(rounds, "round", ax, styles, look)


def accuracy_over_bytes(
    rounds: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw test accuracy by the bytes sent so far, up and down over all clients, on a logarithmic axis.

    Arguments and errors are those of ``accuracy_over_rounds``; rounds before the first byte have no place.
    """
    return _curves(rounds[rounds["cumulative_bytes"] > 0], "cumulative_bytes", ax, styles, look)


def few_shot_curves(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw accuracy after the last round by shots, a panel for each split; all data stands apart.

    Arguments are those of ``time_bars``.

    Raises:
        NothingToDraw: fewer than two numbers of shots (all data is none) with a trained method.
    """
    runs = label_runs(runs)
    trained = runs[(runs["method"] != "zero_shot") & runs["accuracy"].notna()]
    counts = sorted(int(shots) for shots in trained["shots"].dropna().unique())
    if len(counts) < 2:
        raise NothingToDraw("a curve over shots needs runs with at least two numbers of shots")
    styles = styles or styles_of(runs)
    reference = zero_shot_reference(runs)
    with look.drawing():
        panels = make_panels(trained, ax, look, by_shots=False)
        for axes, part in panels.parts:
            _shots_axis(axes, counts, all_data=bool(trained["shots"].isna().any()))
            for label, group in by_method(part):
                _shots_curve(axes, group, counts, styles[label])
            zero_shot_line(axes, part, reference)
        panels.finish(
            "Shots (images per class and client)", "Accuracy (%)", key_of(trained, styles, reference)
        )
        _fit_accuracy(panels.axes)
    return panels.figure


def _curves(
    rounds: pd.DataFrame, x: str, ax: Axes | None, styles: Mapping[str, Style] | None, look: Look
) -> Figure:
    rounds = label_runs(rounds)
    styles = styles or styles_of(rounds)
    trained = rounds[(rounds["method"] != "zero_shot") & rounds["accuracy"].notna()]
    trained = trained if x == "round" else trained[trained[x] > 0]
    if trained.empty or not (trained["round"] > 0).any():
        raise NothingToDraw("no trained method has a round with its accuracy")
    reference = zero_shot_reference(rounds.drop_duplicates("config_hash"))
    with look.drawing():
        panels = make_panels(trained, ax, look)
        for axes, part in panels.parts:
            for label, group in by_method(part):
                _round_curve(axes, group, x, styles[label])
            zero_shot_line(axes, part, reference)
        if x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        else:
            _bytes_axes(panels.axes, trained[x])
        names = {"round": "Round", "cumulative_bytes": "Bytes sent so far, up + down, all clients"}
        panels.finish(names[x], "Accuracy (%)", key_of(trained, styles, reference))
        _fit_accuracy(panels.axes)
    return panels.figure


def _round_curve(axes: Axes, group: pd.DataFrame, x: str, style: Style) -> None:
    table = mean_interval(group, ["round"], "accuracy")
    places = group.groupby("round")[x].mean().reindex(table["round"]) if x != "round" else table["round"]
    _line(axes, places.to_numpy(dtype=float), table, style, marks=6 if x == "round" else 3)


def _shots_curve(axes: Axes, group: pd.DataFrame, counts: Sequence[int], style: Style) -> None:
    table = mean_interval(group, ["shots"], "accuracy")
    some = table[table["shots"].notna()]
    _line(axes, np.log2(some["shots"].to_numpy(dtype=float)), some, style, marks=len(some))
    everything = table[table["shots"].isna()]
    at = [math.log2(counts[-1]) + 1] * len(everything)
    error = 100 * drawn_half_width(everything)
    axes.errorbar(
        at, 100 * everything["mean"], error, fmt=style.marker, color=style.colour, elinewidth=0.8, capsize=2
    )


def _line(axes: Axes, places: np.ndarray, table: pd.DataFrame, style: Style, marks: int) -> None:
    """Draw means with their band, and ``marks`` markers from the first to the last."""
    mean, half = 100 * table["mean"].to_numpy(), 100 * drawn_half_width(table)
    marked = np.unique(np.linspace(0, len(places) - 1, min(marks, len(places))).round().astype(int)).tolist()
    kind = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
    axes.plot(places, mean, **kind, markevery=marked, markeredgewidth=0)
    axes.fill_between(places, mean - half, mean + half, color=style.colour, alpha=0.14, linewidth=0)


def _bytes_axes(axes: Sequence[Axes], sent: pd.Series) -> None:
    """Logarithmic, with as many labels as stand side by side: the fewer decades, the more in each."""
    decades = math.log10(sent.max() / sent.min())
    marks = (1, 2, 5) if decades < 0.8 else (1, 3) if decades < 1.6 else (1,)
    for ax in axes:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=marks, numticks=4))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))


def _shots_axis(axes: Axes, counts: Sequence[int], all_data: bool) -> None:
    ticks = [math.log2(shots) for shots in counts]
    names = [str(shots) for shots in counts]
    if all_data:
        ticks, names = [*ticks, ticks[-1] + 1], [*names, "all"]
    axes.set_xticks(ticks, names)


def _fit_accuracy(axes: Sequence[Axes]) -> None:
    """Frame the curves: wide intervals of few seeds may leave the frame rather than flatten what is in it."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for ax in axes for line in ax.lines])
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    pad = max(0.12 * (high - low), (5.0 - (high - low)) / 2)  # at least five points, or noise looks large
    for ax in axes:
        ax.set_ylim(max(low - pad, -1.0), min(high + pad, 101.0))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
