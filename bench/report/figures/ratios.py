"""Two sets of results side by side: how many times more the second takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report.figures.canvas import NothingToDraw, in_axes, order_of, verbatim
from bench.report.styles import SANS, Look, Style
from flora.errors import BadInput

_HEADINGS = {
    "train_seconds": "Training time",
    "round_seconds": "Time of a round",
    "bytes": "Bytes sent",
    "peak_memory_bytes": "Peak memory",
    "peak_gpu_memory_bytes": "Peak GPU memory",
    "energy_joules": "Energy",
}


def ratios_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the ratios drawn: of all costs that have one."""
    known = frame[frame["quantity"].isin(_HEADINGS) & frame["ratio"].notna() & (frame["ratio"] > 0)]
    return known[["quantity", "method_label", "split_label", "shots", "n", "ratio"]].reset_index(drop=True)


def ratios(
    frame: pd.DataFrame,
    names: tuple[str, str],
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style],
    look: Look = SANS,
) -> Figure:
    """Draw, for each cost, the second's divided by the first's: a mark a split and shots, a line a method.

    Args:
        frame: of ``bench.report.beside.side_by_side``.
        names: of the two.
        ax: draw into this one; then there must be one cost.
        styles: of each method label.
        look: type and width.

    Raises:
        NothingToDraw: no cost has a ratio.
        BadInput: there are several costs for one ``ax``.
    """
    points = ratios_points(frame)
    if points.empty:
        raise NothingToDraw("the two have no cost in common")
    shown = [name for name in _HEADINGS if name in set(points["quantity"])]
    order = order_of(points)
    if ax is not None:
        figure = in_axes(ax)
        if len(shown) > 1:
            raise BadInput(
                f"ax: holds one cost, not {len(shown)}; filter, such as "
                f"frame[frame['quantity'] == {shown[0]!r}]"
            )
        with look.drawing():
            _panel(ax, points, order, styles)
            ax.set(title=_HEADINGS[shown[0]], xlabel=_divided(names))
        return figure
    abreast = 1 if look.width == "column" else min(len(shown), 3)
    rows = -(-len(shown) // abreast)
    size = (look.column if look.width == "column" else look.page, rows * (0.24 * len(order) + 0.55) + 0.4)
    with look.drawing():
        figure = Figure(size, layout="constrained")
        grid = figure.subplots(rows, abreast, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, shown, strict=False):
            _panel(axes, points[points["quantity"] == name], order, styles)
            axes.set_title(_HEADINGS[name])
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        figure.supxlabel(_divided(names))
    return figure


def _divided(names: tuple[str, str]) -> str:
    return verbatim(f"{names[1]} / {names[0]}", 80)


def _panel(axes: Axes, points: pd.DataFrame, order: list[str], styles: Mapping[str, Style]) -> None:
    axes.axvline(1.0, color="#4d4d4d", linewidth=0.8, zorder=1)
    for label, part in points.groupby("method_label", observed=True):
        style, y = styles[str(label)], order.index(str(label))
        axes.plot(
            part["ratio"], [y] * len(part), style.marker or "o", color=style.colour, alpha=0.75, clip_on=False
        )
    axes.set_yticks(range(len(order)), [verbatim(name) for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    low, high = points["ratio"].min(), points["ratio"].max()
    reach = max(abs(low - 1), abs(high - 1), 0.02) * 1.15
    # a ratio is never below zero, whatever the other end
    axes.set_xlim(max(1 - reach, -0.05), 1 + reach)
    left, right = axes.get_xlim()
    step = MaxNLocator(nbins=4).tick_values(left, right)
    width = step[1] - step[0]
    # counted from 1, which is what a ratio is held against
    axes.set_xticks(1 + width * np.arange(math.ceil((left - 1) / width), math.floor((right - 1) / width) + 1))
