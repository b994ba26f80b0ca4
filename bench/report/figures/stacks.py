"""What a round's seconds and a run's memory are made of: stacked bars by method, and their shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter

from bench.measure.causes import CAUSES
from bench.report.figures.canvas import (
    LETTER,
    LONGEST_IN_A_COLUMN,
    MOST_IN_A_COLUMN,
    NothingToDraw,
    Panels,
    drawn_interval,
    make_panels,
    order_of,
    verbatim,
)
from bench.report.figures.frames import labelled_rounds, labelled_runs
from bench.report.styles import SANS, Look, Style
from bench.report.tables import CELL
from bench.report.text import bytes_text, digits

# Those of `summary.round_seconds`: the others are the instruments' own, or due to one machine playing many
# clients.
PHASES = ("send", "train", "receive", "aggregate", "evaluate")

# Paul Tol's of medium contrast: told apart by every colour vision, and in grey by their lightness; neighbours
# alternate. They are none of the methods', as a part is not a method. Hatches are of lines alone: dots take
# LaTeX minutes.
_LOOKS = (
    ("#eecc66", "///"),
    ("#004488", ""),
    ("#ee99aa", "---"),
    ("#994455", "\\\\\\"),
    ("#6699cc", "xxx"),
)
_BAR = [*CELL, "method_label"]


@dataclass(frozen=True)
class _Stack:
    """What is stacked: the column of its parts' names, the name of the axis, how values are written."""

    part: str
    label: str
    text: Callable[[float], str]
    ticks: Callable[[], Formatter]


_SECONDS = _Stack("phase", "Seconds a round", digits, lambda: FuncFormatter(lambda value, _: f"{value:,.6g}"))
_BYTES = _Stack("cause", "Live tensors at their peak", bytes_text, lambda: EngFormatter(unit="B"))


def phase_times(
    rounds: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the mean seconds of a round, stacked by phase, with the total at its end.

    Where there is one split and number of shots, each phase's share stands beside it, in a column below it.

    Args:
        rounds: one row a run and round; round 0 does not count.
        ax: draw the seconds into this one, without shares; then there must be one split and shots.
        styles: taken as every figure does; a phase has a colour of its own in all methods.
        look: type and width.

    Raises:
        NothingToDraw: no round states its seconds by phase.
        BadInput: the rounds are of several tasks or models, of several splits or shots for one ``ax``, or of
            runs that differ in more than rounds tell.
    """
    return _stacks(phase_times_points(rounds), _SECONDS, PHASES, ax, look)


def phase_times_points(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the segments that ``phase_times`` draws.

    Returns:
        One row a task, model, split, shots, method and ``phase``: ``n`` runs, ``mean`` seconds a round, its
        ``share`` of the ``total`` of all phases (0 to 1), and that total's ``half_width``, missing where it
        is not drawn.
    """
    rounds = labelled_rounds(rounds)
    columns = {f"seconds.{phase}": phase for phase in PHASES if f"seconds.{phase}" in rounds}
    trained = rounds[(rounds["round"] > 0) & rounds[list(columns)].notna().any(axis=1)]
    if not columns or trained.empty:
        raise NothingToDraw("no round states its seconds by phase")
    runs = trained.groupby([*_BAR, "config_hash"], dropna=False, observed=True)[list(columns)].mean()
    return _points(runs.reset_index(), columns, _SECONDS.part)


def memory_by_cause(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw what lived in memory at the peak of live tensors, stacked by cause; else as ``phase_times``.

    Raises:
        NothingToDraw: no run counted its tensors.
        BadInput: the runs are of several tasks or models, or of several splits or shots for one ``ax``.
    """
    return _stacks(memory_by_cause_points(runs), _BYTES, CAUSES, ax, look)


def memory_by_cause_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the segments that ``memory_by_cause`` draws: as ``phase_times_points``, bytes by ``cause``."""
    runs = labelled_runs(runs)
    columns = {f"memory.by_cause.{cause}": cause for cause in CAUSES if f"memory.by_cause.{cause}" in runs}
    counted = runs[runs[list(columns)].notna().any(axis=1)]
    if not columns or counted.empty:
        raise NothingToDraw("no run counted its live tensors by cause")
    return _points(counted, columns, _BYTES.part)


def _points(runs: pd.DataFrame, columns: Mapping[str, str], part: str) -> pd.DataFrame:
    """One row a bar and part, from a row a run with the values in ``columns``."""
    values = runs[list(columns)].astype(float).fillna(0.0)
    runs = runs[_BAR].join(values).assign(total=values.sum(axis=1))
    totals = drawn_interval(runs, _BAR, "total").drop(columns="n").rename(columns={"mean": "total"})
    parts = [drawn_interval(runs, _BAR, column)[[*_BAR, "n", "mean"]] for column in columns]
    points = pd.concat(parts, keys=columns.values(), names=[part]).reset_index(level=0)
    points[part] = pd.Categorical(points[part], categories=list(columns.values()), ordered=True)
    points = points.merge(totals, on=_BAR)
    points["share"] = points["mean"] / points["total"].where(points["total"] > 0)
    points = points.sort_values([*_BAR, part], na_position="first", ignore_index=True)
    return points[[*_BAR, part, "n", "mean", "share", "total", "half_width"]]


def _stacks(points: pd.DataFrame, stack: _Stack, parts: Sequence[str], ax: Axes | None, look: Look) -> Figure:
    looks = {part: _patch(*_LOOKS[place]) for place, part in enumerate(parts)}
    order = order_of(points)
    with look.drawing():
        panels = _panels(points, order, ax, look)
        shares = panels.axes[1:] if _has_shares(points, ax) else []
        values = panels.axes[:1] if shares else panels.axes
        for axes, part in panels.parts:
            _bars(axes, part, order, stack, looks, in_shares=axes in shares)
        _fit(values, points, stack, panels.abreast)
        for axes in shares:
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axes.set_xlabel("Share")
            values[0].set_xlabel(stack.label)
        names = [str(part) for part in points[stack.part].cat.categories]
        key = {name.replace("_", " "): Patch(**looks[name]) for name in names}
        panels.finish("" if shares else stack.label, "", key)
    return panels.figure


def _patch(colour: str, hatch: str) -> dict[str, Any]:
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def _has_shares(points: pd.DataFrame, ax: Axes | None) -> bool:
    return ax is None and len(points[CELL].drop_duplicates()) == 1


def _panels(points: pd.DataFrame, order: Sequence[str], ax: Axes | None, look: Look) -> Panels:
    """A panel of values for each split and shots; where that is one, beside or above it one of shares."""
    height = 0.24 * len(order) + 0.45
    if not _has_shares(points, ax):
        return make_panels(points, ax, look, height, in_column=1, least_height=0.4 + 0.16 * len(order))
    fits = len(order) <= MOST_IN_A_COLUMN and max(map(len, order)) <= LONGEST_IN_A_COLUMN
    beside = not fits if look.width is None else look.width == "page"
    size = (look.page, height + 0.6) if beside else (look.column, 2 * height + 0.7)
    figure = Figure(size, layout="constrained")
    grid: Any = figure.subplots(1 if beside else 2, 2 if beside else 1, sharey=True)
    return Panels(figure, [(axes, points) for axes in grid], abreast=1 + beside, own=True)


def _bars(
    axes: Axes,
    part: pd.DataFrame,
    order: Sequence[str],
    stack: _Stack,
    looks: Mapping[str, Mapping[str, Any]],
    in_shares: bool,
) -> None:
    """Draw a bar a method, its parts one after the other, and the total at its end."""
    for (*_, label), bar in part.groupby(_BAR, dropna=False, observed=True):
        y, end = order.index(str(label)), 0.0
        for row in bar.to_dict("records"):
            width = row["share" if in_shares else "mean"]
            axes.barh(y, width, 0.7, left=end, **looks[row[stack.part]])
            end += width
        if not in_shares:
            _end(axes, y, bar.iloc[0], stack)
    axes.set_yticks(range(len(order)), [verbatim(name) for name in order])
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _end(axes: Axes, y: int, row: pd.Series, stack: _Stack) -> None:
    """Write the total at the end of a bar, after the whisker of its interval."""
    total, half = row["total"], row["half_width"]
    if half > 0:
        axes.errorbar(total, y, xerr=half, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
    end = total + np.nan_to_num(half)
    axes.annotate(stack.text(total), (end, y), (3, 0), textcoords="offset points", va="center")


def _fit(panels: Sequence[Axes], points: pd.DataFrame, stack: _Stack, abreast: int) -> None:
    """Leave room at the right of the longest bar for its total; bars start at zero."""
    longest = (points["total"] + points["half_width"].fillna(0.0)).max()
    # names stand left of the first panel alone
    names = LETTER * max(len(line) for name in order_of(points) for line in verbatim(name).split("\n"))
    width = (panels[0].figure.get_figwidth() - names - 0.2) / abreast  # type: ignore[union-attr]
    room = 0.15 + LETTER * max(len(stack.text(total)) for total in points["total"])
    limit = longest / max(1 - room / width, 0.3) if longest > 0 else 1.0
    ticks = MaxNLocator(nbins=5 if width > 1.85 else 3, steps=[1, 2, 2.5, 5, 10]).tick_values(0, limit)
    for axes in panels:
        axes.set_xlim(0, limit)
        # A label at the very end would touch the next panel's first.
        axes.set_xticks([tick for tick in ticks if tick < 0.9 * limit])
        axes.xaxis.set_major_formatter(stack.ticks())
