"""Accuracy against what it costs, and the methods that no other betters in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, Formatter, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from bench.report.figures.canvas import (
    NothingToDraw,
    Panels,
    drawn_interval,
    make_panels,
    order_of,
    verbatim,
    zero_shot_line,
    zero_shot_name,
)
from bench.report.figures.frames import labelled_runs, memory_column, memory_name, zero_shot_of
from bench.report.names import without_deployed_twins
from bench.report.styles import SANS, STYLES, Look, Style, styles_of
from bench.report.tables import CELL
from bench.report.times import which_time_in_short, with_times
from flora.errors import BadInput, nearest

FRONT = "Pareto front"
_FRONT_LOOK: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.9, "linestyle": "-"}
# Inches of a panel from which on three to five numbers stand side by side below it.
_WIDE = 1.7
_MARK = [*CELL, "method_label"]


@dataclass(frozen=True)
class _Cost:
    """A cost of a run: gives the runs with the column ``cost``, and the name of its axis."""

    measure: Callable[[pd.DataFrame], tuple[pd.DataFrame, str]]
    formatter: Callable[[], Formatter]
    missing: str


def _bytes(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    runs = without_deployed_twins(runs)
    return runs.assign(cost=runs["bytes_up"] + runs["bytes_down"]), "Bytes sent, up + down, all clients"


def _memory(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    column = memory_column(runs)
    return runs.assign(cost=runs[column]), memory_name(column)


def _time(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    runs = with_times(runs)
    mixed = "acceleration" in runs and runs["acceleration"].nunique() > 1  # then the names say which
    name = f"Seconds of the whole run, from nothing{'' if mixed else which_time_in_short(runs)}"
    return runs.assign(cost=runs["from_nothing_seconds"]), name


def _energy(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    return runs.assign(cost=runs.get("energy_joules", np.nan)), "Energy of the whole run"


def _seconds() -> Formatter:
    return FuncFormatter(lambda value, _: f"{value:,.6g}")


_COSTS = {
    "bytes": _Cost(_bytes, lambda: EngFormatter(unit="B"), "no run of a trained method sent a byte"),
    "memory": _Cost(_memory, lambda: EngFormatter(unit="B"), "no run states its peak memory"),
    "time": _Cost(_time, _seconds, "no run states its time"),
    "energy": _Cost(_energy, lambda: EngFormatter(unit="J"), "no run measured its energy"),
}
COSTS = tuple(_COSTS)


def pareto_front(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    cost: str = "bytes",
) -> Figure:
    """Draw accuracy after the last round against a cost: a mark a method, and a line along the front.

    A single panel names the methods beside their marks where there is room, others in a key above. Bars are
    intervals of both; zero-shot, which costs nothing, is a dashed line.

    Args:
        runs: one row a run.
        ax: draw into this one; then there must be one split and shots.
        styles: of each method label; made from ``runs`` when absent.
        look: type and width.
        cost: one of ``COSTS``; time is that of the whole run, features counted as computed.

    Raises:
        NothingToDraw: no trained method has both.
        BadInput: there is no such cost, or the runs are of several tasks or models, or of several splits or
            shots for one ``ax``.
    """
    runs = labelled_runs(runs)
    points, styles = pareto_front_points(runs, cost=cost), styles or styles_of(runs)
    name = _COSTS[cost].measure(runs)[1]
    with look.drawing():
        panels = _draw(points, ax, styles, look, cost)
        panels.finish(name, "Accuracy (%)", _key(points, styles, []))
        if panels.own and len(panels.parts) == 1 and _name_marks(panels, points):
            return panels.figure
        panels = _draw(points, ax, styles, look, cost)
        panels.finish(name, "Accuracy (%)", _key(points, styles, order_of(points)))
    return panels.figure


def pareto_front_points(runs: pd.DataFrame, *, cost: str = "bytes") -> pd.DataFrame:
    """Return the marks that ``pareto_front`` draws, with its arguments and errors.

    Returns:
        One row a task, model, split, shots and trained method, cheapest first: ``cost``, ``n`` seeds, ``x``
        and ``x_half_width`` (bytes, seconds or joules), ``mean`` and ``half_width`` (accuracy, 0 to 1),
        ``zero_shot``, and ``on_front``: no other is as good in both and better in one, nor is zero-shot as
        accurate. Where methods were scored on different test sets there is neither. Half widths are missing
        where they are not drawn. What costs nothing has no place on the logarithmic axis.
    """
    if cost not in _COSTS:
        raise BadInput(f"cost: {cost!r} is none; must be one of {', '.join(COSTS)}{nearest(cost, COSTS)}")
    runs = labelled_runs(runs)
    measured = _COSTS[cost].measure(runs)[0]
    measured = measured[(measured["method"] != "zero_shot") & measured["accuracy"].notna()]
    measured = measured[measured["cost"] > 0]
    if measured.empty:
        raise NothingToDraw(_COSTS[cost].missing)
    places = drawn_interval(measured, _MARK, "cost").drop(columns="n")
    places = places.rename(columns={"mean": "x", "half_width": "x_half_width"})
    points = drawn_interval(measured, _MARK, "accuracy").merge(places, on=_MARK)
    points = points.merge(zero_shot_of(runs), on=CELL, how="left")
    comparable = points[~points.pop("scored_apart").fillna(False).astype(bool)]
    points["on_front"] = False
    for _, part in comparable.groupby(CELL, dropna=False, observed=True):
        points.loc[part.index, "on_front"] = _undominated(part)
    points.insert(len(_MARK), "cost", cost)
    return points.sort_values([*CELL, "x", "method_label"], na_position="first", ignore_index=True)


def _undominated(part: pd.DataFrame) -> np.ndarray:
    x, y = part["x"].to_numpy(float), part["mean"].to_numpy(float)
    as_good = (x[:, None] <= x) & (y[:, None] >= y)  # of [one, other]
    better = (x[:, None] < x) | (y[:, None] > y)
    above_zero_shot: np.ndarray = ~(y <= part["zero_shot"].to_numpy(float))
    return ~(as_good & better).any(axis=0) & above_zero_shot


def _draw(
    points: pd.DataFrame, ax: Axes | None, styles: Mapping[str, Style], look: Look, cost: str
) -> Panels:
    panels = make_panels(points, ax, look)
    _frame(panels, points, _COSTS[cost].formatter)
    for axes, part in panels.parts:
        for row in part.to_dict("records"):
            _mark(axes, row, styles[str(row["method_label"])])
        zero_shot_line(axes, part)
    for axes, part in panels.parts:
        for _, cell in part.groupby(CELL, dropna=False, observed=True):
            _front(axes, cell[cell["on_front"]])
    return panels


def _mark(axes: Axes, row: Mapping[Any, Any], style: Style) -> None:
    """Draw a method with the bars of its intervals: filled on the front, hollow behind it."""
    half = np.nan_to_num(row["x_half_width"])
    # a logarithmic axis has no place for what is below it
    ends = [[min(half, row["x"] - axes.get_xlim()[0])], [half]] if half > 0 else None
    axes.errorbar(
        row["x"],
        100 * row["mean"],
        100 * row["half_width"] if row["half_width"] > 0 else None,
        ends,
        fmt=style.marker,
        color=style.colour,
        markerfacecolor=style.colour if row["on_front"] else "white",
        markersize=5,
        elinewidth=0.8,
        capsize=2,
        zorder=3,
    )


def _front(axes: Axes, front: pd.DataFrame) -> None:
    """Draw what can be had at a cost: a step up at each method of the front, level to the next."""
    if front.empty:
        return
    x, y = front["x"].to_numpy(float), 100 * front["mean"].to_numpy(float)
    axes.plot([*x, axes.get_xlim()[1]], [*y, y[-1]], drawstyle="steps-post", **_FRONT_LOOK, zorder=1)


def _frame(panels: Panels, points: pd.DataFrame, formatter: Callable[[], Formatter]) -> None:
    """Leave room around the marks for their names; long bars may leave the frame rather than flatten it."""
    exponents = np.log10(points["x"].to_numpy(float))
    pad = max(0.2 * np.ptp(exponents), (0.9 - np.ptp(exponents)) / 2, 0.15)
    limits = 10 ** (exponents.min() - pad), 10 ** (exponents.max() + pad)
    frame_accuracy(panels.axes, points, room=0.18)
    ticks = _ticks(*limits, fewest=3 if panels.panel_width > _WIDE else 2)
    for ax in panels.axes:
        ax.set_xscale("log")
        ax.set_xlim(*limits)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(formatter())


def frame_accuracy(axes: Sequence[Axes], points: pd.DataFrame, room: float = 0.12) -> None:
    """Frame the means and zero-shot, with a share of their span left above and below.

    Wide intervals of few seeds may leave the frame rather than flatten what is in it.
    """
    levels = 100 * pd.concat([points["mean"], points["zero_shot"]]).dropna()
    half = 100 * points["half_width"].fillna(0.0).clip(upper=max(np.ptp(levels), 5.0) / 200)
    low = min(levels.min(), (100 * points["mean"] - half).min())
    high = max(levels.max(), (100 * points["mean"] + half).max())
    pad = max(room * (high - low), (5.0 - (high - low)) / 2)  # at least five points, or noise looks large
    for ax in axes:
        ax.set_ylim(max(low - pad, -1.0), min(high + pad, 102.0))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _ticks(low: float, high: float, fewest: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, at least as many as asked for and hardly more."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits, step in (((1,), 3), ((1,), 2), ((1,), 1), ((1, 3), 1), ((1, 2, 5), 1)):
        ticks = [digit * 10.0**power for power in decades if power % step == 0 for digit in digits]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= fewest:
            break
    return shown


def _key(points: pd.DataFrame, styles: Mapping[str, Style], named: Sequence[str]) -> dict[str, Line2D]:
    """Give the lines there are, and the marks of the methods ``named``."""
    key = {}
    if points["zero_shot"].notna().any():
        style = STYLES["zero_shot"]
        key[zero_shot_name(styles)] = Line2D([], [], color=style.colour, linestyle=style.line, linewidth=1)
    if points["on_front"].any():
        key[FRONT] = Line2D([], [], **_FRONT_LOOK)
    for name in named:
        style = styles[name]
        key[name] = Line2D([], [], color=style.colour, marker=style.marker, linestyle="", markersize=5)
    return key


# Where a name may stand from its mark: the side, first those nearest to how one reads, and points away.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_BESIDE = [(x, y, far if x * y == 0 else 0.7 * far) for far in (6.0, 9.0) for x, y in _SIDES]
_ACROSS, _UP = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}


def _name_marks(panels: Panels, points: pd.DataFrame) -> bool:
    """Write each method's name beside its mark; false where one found no room, then some are written."""
    axes = panels.axes[0]
    panels.figure.draw_without_rendering()  # settles where the axes are
    taken = [*_boxes_of_marks(axes, points), *_boxes_of_lines(axes)]
    return all(_name_mark(axes, row, taken) for row in points.to_dict("records"))


def _name_mark(axes: Axes, row: Mapping[Any, Any], taken: list[Bbox]) -> bool:
    note = axes.annotate(
        verbatim(row["method_label"], 20),
        (row["x"], 100 * row["mean"]),
        (0, 0),
        textcoords="offset points",
        linespacing=0.95,
    )
    note.set_in_layout(False)
    for x, y, far in _BESIDE:
        note.set(position=(x * far, y * far), ha=_ACROSS[x], va=_UP[y])
        box = note.get_window_extent().padded(1.5)
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 4
        inside &= axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
        if inside and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return True
    return False


def _boxes_of_marks(axes: Axes, points: pd.DataFrame) -> Iterator[Bbox]:
    """Where marks and their bars are, in pixels."""
    radius = 3.5 * axes.figure.dpi / 72
    for row in points.fillna({"x_half_width": 0.0, "half_width": 0.0}).to_dict("records"):
        x, y, wide, high = row["x"], 100 * row["mean"], row["x_half_width"], 100 * row["half_width"]
        ((left, _), (right, _), (_, bottom), (_, top)) = axes.transData.transform(
            [(max(x - wide, axes.get_xlim()[0]), y), (x + wide, y), (x, y - high), (x, y + high)]
        )
        (centre, middle) = axes.transData.transform((x, y))
        yield Bbox([[left - radius, middle - radius], [right + radius, middle + radius]])
        yield Bbox([[centre - radius, bottom - radius], [centre + radius, top + radius]])


def _boxes_of_lines(axes: Axes) -> Iterator[Bbox]:
    """Where the dashed line and the steps of the front are, in pixels."""
    for line in axes.lines:
        corners = np.asarray(line.get_path().transformed(line.get_transform()).vertices)
        yield from (Bbox(corners[start : start + 2]).padded(1) for start in range(len(corners) - 1))
