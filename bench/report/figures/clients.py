"""The accuracies of single clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.report.figures.canvas import NothingToDraw, by_method, make_panels, order_of, verbatim
from bench.report.figures.frames import check_frame
from bench.report.styles import SANS, Look, Style, styles_of

# More than these of a method are summed up in a box.
MOST_DOTS = 60
BOX = {"5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95}
"""What a box shows: ends of its line, of itself, and the middle."""

_CELL = ["task", "model", "split_label", "shots", "method_label"]
_GREY = "#6e6e6e"
_BLACK: dict[str, dict[str, Any]] = {
    "mean": {"marker": "|", "markersize": 11, "markeredgewidth": 1.5, "zorder": 4},
    "worst": {
        "marker": "d",
        "markersize": 4.5,
        "markerfacecolor": "white",
        "markeredgewidth": 1,
        "zorder": 4,
    },
}


def client_accuracies_points(clients: pd.DataFrame) -> pd.DataFrame:
    """Give the marks of ``client_accuracies``.

    Returns:
        One row a mark: ``task, model, split_label, shots, method_label, mark, seed, client, samples``,
        ``accuracy`` (0 to 1) and ``offset`` from the row of its method. ``mark`` is "client", or where a
        method of a panel has more than ``MOST_DOTS`` one of ``BOX`` over all seeds' clients; and "mean" and
        "worst", over the seeds, of the mean and the least of their clients.

    Raises:
        NothingToDraw: no client was evaluated apart.
    """
    check_frame(clients, "clients")
    known = clients.dropna(subset=["accuracy"])
    if known.empty:
        raise NothingToDraw("no run evaluated its clients apart")
    cells = known.groupby(_CELL, dropna=False, observed=True, sort=True)
    boxed = bool(cells.size().max() > MOST_DOTS)
    tables = [
        pd.concat([_box(cell) if boxed else _dots(cell), _over_seeds(cell)]).assign(
            **{name: cell[name].iloc[0] for name in _CELL}
        )
        for _, cell in cells
    ]
    table = pd.concat(tables, ignore_index=True)
    table = table.astype(
        {"shots": "Int64", **{name: known[name].dtype for name in ("split_label", "method_label")}}
    )
    return table.reindex(columns=[*_CELL, "mark", "seed", "client", "samples", "accuracy", "offset"])


def client_accuracies(
    clients: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the accuracy of every client by method, with their mean and the worst; a panel a split and shots.

    Clients of all seeds are drawn, and mean and worst are means over the seeds. Many clients are summed up:
    a box holds the middle half of them, its line nine in ten.

    Args:
        clients: one row a run and client, as in ``bench.report.data.ReportData``.
        ax: draw into this one; then there must be one split and shots.
        styles: of each method label; made from ``clients`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: no client was evaluated apart.
        BadInput: the clients are of several tasks or models, or of several splits or shots for one ``ax``.
    """
    points = client_accuracies_points(clients)
    styles, order = styles or styles_of(clients), order_of(points)
    with look.drawing():
        names = [verbatim(name) for name in order]
        least = 0.4 + 0.16 * sum(name.count("\n") + 1 for name in names)
        height = max(0.26 * len(order) + 0.45, least)
        panels = make_panels(points, ax, look, height, in_column=1, least_height=least)
        for axes, part in panels.parts:
            for (label, mark), group in part.groupby(["method_label", "mark"], observed=True, sort=False):
                _mark(axes, order.index(str(label)), str(mark), group, styles[str(label)])
            _boxes(axes, part[part["mark"].isin(list(BOX))], order, styles)
            axes.set_yticks(range(len(order)), names)
            axes.set_ylim(len(order) - 0.45, -0.55)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        drawn = 100 * points["accuracy"]
        pad = max(0.06 * (drawn.max() - drawn.min()), 1.0)
        panels.axes[0].set_xlim(drawn.min() - pad, drawn.max() + pad)
        panels.finish("Accuracy on the client's own images (%)", "", _key(points, clients["seed"].nunique()))
    return panels.figure


def _dots(cell: pd.DataFrame) -> pd.DataFrame:
    """Every client, beside its row by the golden ratio: neighbours in the frame lie far apart."""
    offsets = (np.arange(len(cell)) * 0.618034 % 1 - 0.5) * 0.5
    return cell[["seed", "client", "samples", "accuracy"]].assign(mark="client", offset=offsets)


def _box(cell: pd.DataFrame) -> pd.DataFrame:
    values = cell["accuracy"].quantile(list(BOX.values())).to_numpy()
    return pd.DataFrame({"mark": list(BOX), "accuracy": values, "offset": 0.0})


def _over_seeds(cell: pd.DataFrame) -> pd.DataFrame:
    runs = cell.groupby("seed")["accuracy"]
    values = [runs.mean().mean(), runs.min().mean()]
    return pd.DataFrame({"mark": ["mean", "worst"], "accuracy": values, "offset": 0.0})


def _mark(axes: Axes, row: int, mark: str, group: pd.DataFrame, style: Style) -> None:
    """Draw the clients of a method, or their mean or worst."""
    if mark in _BLACK:
        look = {"color": "black", **_BLACK[mark]}
    elif mark == "client":
        look = {"color": style.colour, "marker": style.marker or "o", "markersize": 3.2, "alpha": 0.6}
        look |= {"markeredgewidth": 0}
    else:
        return
    axes.plot(100 * group["accuracy"], row + group["offset"], linestyle="", **look)


def _boxes(axes: Axes, part: pd.DataFrame, order: Sequence[str], styles: Mapping[str, Style]) -> None:
    """Draw the box of each method."""
    for label, group in by_method(part):
        row, style = order.index(label), styles[label]
        low, left, middle, right, high = 100 * group.set_index("mark")["accuracy"].loc[list(BOX)]
        axes.hlines(row, low, high, color=style.colour, linewidth=1)
        look: dict[str, Any] = {
            "facecolor": to_rgba(style.colour, 0.3),
            "edgecolor": style.colour,
            "hatch": style.hatch,
        }
        axes.barh(row, right - left, 0.5, left=left, linewidth=0.8, **look)
        axes.vlines(middle, row - 0.25, row + 0.25, color=style.colour, linewidth=1.6)


def _key(points: pd.DataFrame, n_seeds: int) -> dict[str, Any]:
    key: dict[str, Any] = {}
    if (points["mark"] == "client").any():
        key["client"] = Line2D([], [], linestyle="", marker="o", color=_GREY, markersize=3.2, alpha=0.6)
    else:
        key["half of the clients (line: 90 %)"] = Patch(facecolor=to_rgba(_GREY, 0.3), edgecolor=_GREY)
    for mark, look in _BLACK.items():
        name = "worst, mean of seeds" if mark == "worst" and n_seeds > 1 else mark
        key[name] = Line2D([], [], linestyle="", color="black", **look)
    return key
