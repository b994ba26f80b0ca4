"""Accuracy over rounds, bytes, seconds and shots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    Formatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from bench.report.figures.canvas import (
    NothingToDraw,
    Panels,
    drawn_interval,
    key_of,
    make_panels,
    zero_shot_line,
)
from bench.report.figures.frames import labelled_rounds, labelled_runs, zero_shot_of
from bench.report.styles import SANS, Look, Style, styles_of
from bench.report.tables import CELL

_CURVE = [*CELL, "method_label"]


@dataclass(frozen=True)
class _Over:
    """Over what: column of rounds, name of the axis, and how ticks of a logarithmic one are written."""

    column: str
    name: str
    logarithmic: Callable[[], Formatter] | None = None


_ROUNDS = _Over("round", "Round")
_BYTES = _Over(
    "cumulative_bytes", "Bytes sent so far, up + down, all clients", partial(EngFormatter, unit="B")
)
_SECONDS = _Over("cumulative_seconds", "Seconds so far", partial(StrMethodFormatter, "{x:,g}"))


def accuracy_over_rounds(
    rounds: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw test accuracy by round, a panel for each split and shots; zero-shot is a dashed line.

    Args:
        rounds: one row a run and round, of one task and model, as in ``bench.report.data.ReportData``; as
            ``bench.load_rounds`` gives them where runs of a method differ in their seed alone.
        ax: draw into this one; then there must be one split and shots.
        styles: of each method label; made from ``rounds`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: no trained method has a round.
        BadInput: the rounds are of several tasks or models, of several splits or shots for one ``ax``, or of
            runs that differ in more than rounds tell.
    """
    return _draw_over(_ROUNDS, rounds, ax, styles, look)


def accuracy_over_rounds_points(rounds: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers that ``accuracy_over_rounds`` draws.

    Returns:
        One row a task, model, split, shots, method and round: ``x`` (the round), ``n`` seeds, ``mean`` and
        ``half_width`` of the 95 % t-interval (0 to 1; missing where it is not drawn), and ``zero_shot``, the
        accuracy of the model before any training (missing where methods were scored on different test sets).
    """
    return _points_over(_ROUNDS, rounds)


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
    return _draw_over(_BYTES, rounds, ax, styles, look)


def accuracy_over_bytes_points(rounds: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers that ``accuracy_over_bytes`` draws; ``x`` is the mean of the seeds' bytes."""
    return _points_over(_BYTES, rounds)


def accuracy_over_seconds(
    rounds: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw test accuracy by the seconds that the rounds so far took, on a logarithmic axis.

    The seconds are those of this machine, all clients one after another or in groups: sending, training,
    receiving and aggregating. Neither evaluation nor the set-up before the first round (such as features that
    are computed once) is in them, and no network: for these see ``time_bars`` and ``time_to_accuracy``.

    Arguments and errors are those of ``accuracy_over_rounds``; rounds before the first work have no place.
    """
    return _draw_over(_SECONDS, rounds, ax, styles, look)


def accuracy_over_seconds_points(rounds: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers that ``accuracy_over_seconds`` draws; ``x`` is the mean of the seeds' seconds."""
    return _points_over(_SECONDS, rounds)


def few_shot_curves(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw accuracy after the last round by shots, a panel for each split; all data stands apart.

    Args:
        runs: one row a run, of one task and model.
        ax: draw into this one; then there must be one split.
        styles: of each method label; made from ``runs`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: fewer than two numbers of shots (all data is none) with a trained method.
        BadInput: the runs are of several tasks or models, or of several splits for one ``ax``.
    """
    runs = labelled_runs(runs)
    points, styles = few_shot_curves_points(runs), styles or styles_of(runs)
    with look.drawing():
        panels = make_panels(points, ax, look, by_shots=False)
        for axes, part in panels.parts:
            for label, curve in _curves_of(part, [c for c in _CURVE if c != "shots"]):
                _line(axes, curve[curve["shots"].notna()], styles[label], marks=len(curve))
                _line(axes, curve[curve["shots"].isna()], styles[label], marks=1)
            zero_shot_line(axes, part)
        _shots_axis(panels.axes[0], points)
        panels.finish("Shots (images per class and client)", "Accuracy (%)", key_of(points, styles))
        _fit_accuracy(panels.axes)
    return panels.figure


def few_shot_curves_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers that ``few_shot_curves`` draws.

    Returns:
        One row a task, model, split, method and shots (missing: all data): ``x``, where on the logarithmic
        axis it stands (all data at twice the most shots), and the rest as of ``accuracy_over_rounds_points``.
    """
    runs = labelled_runs(runs)
    trained = runs[(runs["method"] != "zero_shot") & runs["accuracy"].notna()]
    counts = trained["shots"].dropna().unique()
    if len(counts) < 2:
        raise NothingToDraw("a curve over shots needs runs with at least two numbers of shots")
    points = drawn_interval(trained, _CURVE, "accuracy")
    points.insert(len(_CURVE), "x", points["shots"].fillna(2 * max(counts)).astype(float))
    points = points.merge(zero_shot_of(runs).drop(columns="scored_apart"), on=CELL, how="left")
    order = ["task", "model", "split_label", "method_label", "x"]
    return points.sort_values(order, kind="stable", ignore_index=True)


def _points_over(over: _Over, rounds: pd.DataFrame) -> pd.DataFrame:
    rounds = labelled_rounds(rounds)
    trained = rounds[(rounds["method"] != "zero_shot") & rounds["accuracy"].notna()]
    if over.logarithmic:
        trained = trained[trained[over.column] > 0]
    if not (trained["round"] > 0).any():
        raise NothingToDraw("no trained method has a round with its accuracy")
    by = [*_CURVE, "round"]
    places = trained.assign(x=trained[over.column].astype(float)).groupby(by, dropna=False, observed=True)[
        "x"
    ]
    points = places.mean().reset_index().merge(drawn_interval(trained, by, "accuracy"), on=by)
    reference = zero_shot_of(rounds.drop_duplicates("config_hash"))
    return points.merge(reference.drop(columns="scored_apart"), on=CELL, how="left")


def _draw_over(
    over: _Over, rounds: pd.DataFrame, ax: Axes | None, styles: Mapping[str, Style] | None, look: Look
) -> Figure:
    rounds = labelled_rounds(rounds)
    points, styles = _points_over(over, rounds), styles or styles_of(rounds)
    with look.drawing():
        panels = make_panels(points, ax, look)
        for axes, part in panels.parts:
            for label, curve in _curves_of(part, _CURVE):
                _line(axes, curve, styles[label], marks=3 if over.logarithmic else 6)
            zero_shot_line(axes, part)
        if over.logarithmic is None:
            panels.axes[0].xaxis.set_major_locator(_Rounds(points["x"].max()))
        else:
            _logarithmic_axis(panels, points["x"], over.logarithmic())
        panels.finish(over.name, "Accuracy (%)", key_of(points, styles))
        _fit_accuracy(panels.axes)
    return panels.figure


def _curves_of(part: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, curve in part.groupby(list(by), dropna=False, observed=True):
        yield str(key[-1]), curve


def _line(axes: Axes, curve: pd.DataFrame, style: Style, marks: int) -> None:
    """Draw means with their band, or whiskers of one alone, and ``marks`` markers from first to last."""
    places, mean, half = (
        scale * curve[name].to_numpy(float) for name, scale in (("x", 1), ("mean", 100), ("half_width", 100))
    )
    marked = np.unique(np.linspace(0, len(places) - 1, min(marks, len(places))).round().astype(int)).tolist()
    kind = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
    axes.plot(places, mean, **kind, markevery=marked, markeredgewidth=0)
    if len(places) > 1:
        half = np.nan_to_num(half)
        axes.fill_between(places, mean - half, mean + half, color=style.colour, alpha=0.14, linewidth=0)
    elif len(places) and not np.isnan(half).any():
        axes.errorbar(places, mean, half, fmt="none", ecolor=style.colour, elinewidth=0.8, capsize=2)


class _Rounds(MaxNLocator):
    """Whole rounds, and always the last of which there is an accuracy."""

    def __init__(self, last: float) -> None:
        super().__init__(nbins=5, integer=True)
        self.last = last

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Give round numbers, without those that the last would touch."""
        ticks = np.asarray(super().tick_values(vmin, vmax))
        near = 0.6 * np.diff(ticks[:2]).max(initial=0.0)
        return [*ticks[ticks <= self.last - near].tolist(), self.last]


def _logarithmic_axis(panels: Panels, places: pd.Series, formatter: Formatter) -> None:
    """Have as many labels as stand side by side: the fewer decades, and the wider, the more in each."""
    wide = panels.panel_width > 1.7
    low, high = np.log10(places.min()), np.log10(places.max())
    decades = (high - low) or 2.0  # one place is framed by two
    locator: Locator = LogLocator(numticks=4 if wide else 3)
    if decades < 0.4:  # too few marks of a decade to go by
        locator = MaxNLocator(nbins=3 if wide else 2)
    elif decades < (1.6 if wide else 1.1):
        marks = (1, 2, 5) if decades < (0.9 if wide else 0.7) else (1, 3)
        exponents = range(math.floor(low), math.ceil(high) + 1)
        locator = FixedLocator([mark * 10.0**exponent for exponent in exponents for mark in marks])
    axes = panels.axes[0]  # all panels share it
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(formatter)


def _shots_axis(axes: Axes, points: pd.DataFrame) -> None:
    shots = points[["x", "shots"]].drop_duplicates().sort_values("x")
    names = ["all" if pd.isna(count) else str(count) for count in shots["shots"]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots["x"], names)
    axes.xaxis.set_minor_locator(NullLocator())


def _fit_accuracy(panels: Sequence[Axes]) -> None:
    """Frame the curves: wide intervals of few seeds may leave the frame rather than flatten what is in it."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines])
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    pad = max(0.12 * (high - low), (5.0 - (high - low)) / 2)  # at least five points, or noise looks large
    panels[0].set_ylim(max(low - pad, -1.0), min(high + pad, 101.0))  # all share it
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
