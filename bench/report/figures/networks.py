"""Time to a target accuracy by network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.report.figures.canvas import (
    FEWEST_FOR_INTERVAL,
    LETTER,
    NothingToDraw,
    Panels,
    make_panels,
    order_of,
    verbatim,
)
from bench.report.figures.frames import check_frame
from bench.report.networks import BY, mean_times
from bench.report.styles import SANS, Look, Style, styles_of

NEVER, AT_ONCE = "never", "at once"
_SOME = "not by every seed"
_PROFILES = {"lan": "LAN", "wifi": "Wi-Fi", "4g": "4G", "3g": "3G"}
# Of a logarithmic axis that spans 1, what a strip for marks without a time takes.
_STRIP = 0.13


def time_to_accuracy_points(times: pd.DataFrame) -> pd.DataFrame:
    """Give the marks of ``time_to_accuracy``: means over the seeds that reached the target.

    Returns:
        One row a task, model, split, shots, method and profile: ``runs`` and how many of them ``reached`` the
        ``target``; ``mean`` seconds of these, missing where none did; ``half_width`` of the interval where it
        is drawn; ``best_not_reached``, the best accuracy of any run that did not.

    Raises:
        NothingToDraw: there are no times until a target, or no run has reached it after its start.
    """
    check_frame(times, "times")
    if "target" not in times:
        raise NothingToDraw("no run was replayed on a network with a target accuracy")
    table = mean_times(times).rename(
        columns={"to_target_seconds": "mean", "to_target_seconds_half_width": "half_width"}
    )
    table = table.merge(times.groupby(BY, dropna=False, observed=True)["target"].first().reset_index(), on=BY)
    if not (table["mean"] > 0).any():
        raise NothingToDraw("no run came to the target accuracy by training")
    table["half_width"] = table["half_width"].where(table["reached"] >= FEWEST_FOR_INTERVAL)
    return table[[*BY, "target", "runs", "reached", "mean", "half_width", "best_not_reached"]]


def time_to_accuracy(
    times: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the seconds until a target accuracy under each network, a panel for each split and shots.

    A hollow mark is the mean of the seeds that reached it where others did not; a method of which no seed did
    stands in a strip of its own, as does one that had it before any training.

    Args:
        times: as ``bench.report.networks.network_times`` gives them with a target.
        ax: draw into this one; then there must be one split and shots.
        styles: of each method label; made from ``times`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: there are no times until a target, or no run has reached it after its start.
        BadInput: the times are of several tasks or models, or of several splits or shots for one ``ax``.
    """
    points = time_to_accuracy_points(times)
    styles = styles or styles_of(times)
    order, profiles = order_of(points), list(points["profile"].cat.remove_unused_categories().cat.categories)
    with look.drawing():
        panels = make_panels(points, ax, look)
        levels = _time_axes(panels, points)
        for axes, part in panels.parts:
            for row in part.to_dict("records"):
                place = profiles.index(row["profile"]) + _beside(order.index(row["method_label"]), len(order))
                _mark(axes, place, row, styles[str(row["method_label"])], levels)
            _profile_axis(axes, profiles, panels.panel_width)
        targets = points["target"].unique()
        target = (
            f"{100 * targets[0]:g}\N{NO-BREAK SPACE}% accuracy"
            if len(targets) == 1
            else "the target accuracy"
        )
        panels.finish("Network", f"Seconds to {target}", _key(points, styles, order))
    return panels.figure


def _beside(index: int, count: int) -> float:
    """Offset of a method's mark from the middle of its profile, whose width is 1."""
    return (index - (count - 1) / 2) * min(0.18, 0.8 / count)


def _mark(axes: Axes, place: float, row: Mapping, style: Style, levels: Mapping[str, float]) -> None:
    y = levels[NEVER] if not row["reached"] else row["mean"] or levels[AT_ONCE]
    face = style.colour if row["reached"] in (0, row["runs"]) else "white"
    half = np.nan_to_num(row["half_width"])
    # a logarithmic axis has no place for what is below it
    ends = [[min(half, y - axes.get_ylim()[0])], [half]] if half > 0 else None
    axes.errorbar(
        place, y, ends, fmt=style.marker, color=style.colour, markerfacecolor=face, elinewidth=0.8, capsize=2
    )


def _time_axes(panels: Panels, points: pd.DataFrame) -> dict[str, float]:
    """Set the axes up around the times, and give the levels of marks that have none."""
    timed = points[points["mean"] > 0]
    ends = timed["mean"] + timed["half_width"].fillna(0.0)
    low, high = math.log10(timed["mean"].min()), math.log10(ends.max())
    span = max(high - low, 0.3)
    low, high = low - 0.07 * span, high + 0.07 * span
    ticks = {tick: f"{tick:,g}" for tick in _ticks(low, high)}
    levels = {}
    bottom, top = low, high
    if (points["reached"] == 0).any():
        top += _STRIP * span
        levels[NEVER] = 10 ** (high + _STRIP * span / 2)
    if (points["mean"] == 0).any():
        bottom -= _STRIP * span
        levels[AT_ONCE] = 10 ** (low - _STRIP * span / 2)
    ticks |= {level: name for name, level in levels.items()}
    for axes in panels.axes:
        axes.set_yscale("log")
        axes.set_ylim(10**bottom, 10**top)
        axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: ticks.get(tick, "")))
        for edge, outer in ((10**low, 10**bottom), (10**high, 10**top)):
            if edge != outer:
                axes.axhspan(edge, outer, color="#efefef", linewidth=0, zorder=0)
    return levels


def _ticks(low: float, high: float) -> list[float]:
    """Give round numbers between powers of ten: the fewer decades, the more in each."""
    marks = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 3 else (1,)
    found = np.asarray(LogLocator(subs=marks, numticks=8).tick_values(10**low, 10**high))
    inside = (np.log10(found) > low + 0.05 * (high - low)) & (np.log10(found) < high - 0.05 * (high - low))
    return [float(tick) for tick in found[inside]]


def _profile_axis(axes: Axes, profiles: Sequence[str], width: float) -> None:
    """Name the profiles below their marks, on ``width`` inches, with a line between two."""
    letters = max(4, int(width / len(profiles) / LETTER) - 1)
    axes.set_xlim(-0.5, len(profiles) - 0.5)
    axes.set_xticks(range(len(profiles)), [verbatim(_PROFILES.get(name, name), letters) for name in profiles])
    axes.set_xticks([place + 0.5 for place in range(len(profiles) - 1)], minor=True)
    axes.tick_params(axis="x", which="both", length=0)
    axes.grid(visible=False, axis="x", which="major")
    axes.grid(visible=True, axis="x", which="minor", color="#c9c9c9")


def _key(points: pd.DataFrame, styles: Mapping[str, Style], order: Sequence[str]) -> dict[str, Line2D]:
    looks = {name: styles[name] for name in order}
    key = {name: Line2D([], [], linestyle="", color=s.colour, marker=s.marker) for name, s in looks.items()}
    if ((points["reached"] > 0) & (points["reached"] < points["runs"])).any():
        key[_SOME] = Line2D([], [], linestyle="", color="#4d4d4d", marker="o", markerfacecolor="white")
    return key
