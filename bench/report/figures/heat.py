"""Accuracies as a heat map: method by split, or by data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report.figures.canvas import HIGHEST, LETTER, NothingToDraw, in_axes, set_lines, verbatim
from bench.report.figures.frames import labelled_runs
from bench.report.names import shots_label
from bench.report.statistics import mean_interval
from bench.report.styles import SANS, Look, Style
from flora.errors import BadInput, nearest

# What a heat map can be laid out by, with the columns of a frame of runs that tell it.
_SIDES = {"method": ["method_label"], "split": ["split_label", "shots"], "task": ["task_label", "model"]}
SIDES = tuple(_SIDES)
_CELL = ["task", "task_label", "model", "split_label", "shots", "method_label"]
# Perceptually uniform, light to dark in grey as well, and the same to readers of every colour vision.
_COLOURS = "viridis"
_STEPS = 48  # a key of 50 or more is rasterised, which puts a second file beside one of PGF
# Inches: of a number, of a line of text, and of all rows, which the name of the key stands beside.
_NUMBER, _LINE, _LOWEST = 0.33, 0.135, 1.0
_MOST_LETTERS = 24  # of a name in one line


@dataclass(frozen=True)
class _Numbers:
    """How a field's number is written: how wide and high that is in inches, its decimals and its turn."""

    width: float
    height: float
    decimals: int = 1
    turn: int = 0


_LEVEL, _TURNED, _WHOLE = _Numbers(_NUMBER, _LINE), _Numbers(_LINE, _NUMBER, turn=90), _Numbers(0.2, _LINE, 0)


def heat_map_points(runs: pd.DataFrame, *, rows: str = "method", columns: str = "split") -> pd.DataFrame:
    """Give the fields of ``heat_map``.

    Returns:
        One row a task, model, split, shots and method: the names of its ``panel``, ``row`` and ``column``;
        ``mean`` accuracy (0 to 1) over ``n`` seeds and the ``half_width`` of its interval.

    Raises:
        NothingToDraw: no run states its accuracy, or there is a single row or column.
        BadInput: ``rows`` and ``columns`` are not two of ``SIDES``.
    """
    for name, side in (("rows", rows), ("columns", columns)):
        if side not in _SIDES:
            raise BadInput(f"{name}: {side!r} must be one of {', '.join(SIDES)}{nearest(side, SIDES)}")
    if rows == columns:
        raise BadInput(f"columns: {columns!r} is what the rows are; they must differ")
    runs = labelled_runs(runs)
    labels = runs["task_label"] if "task_label" in runs else runs["task"]
    known = runs.assign(task_label=labels).dropna(subset=["accuracy"])
    if known.empty:
        raise NothingToDraw("no run states its accuracy")
    table = mean_interval(known, _CELL, "accuracy")
    (third,) = set(SIDES) - {rows, columns}
    for name, side in (("panel", third), ("row", rows), ("column", columns)):
        table[name] = _names(table, side)
        if name != "panel" and table[name].nunique() < 2:
            raise NothingToDraw(f"a heat map needs at least two {side}s")
    return table.drop(columns="task_label").sort_values(["panel", "row", "column"], ignore_index=True)


def heat_map(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    rows: str = "method",
    columns: str = "split",
) -> Figure:
    """Draw mean accuracy after the last round as a field of colour with its number, zero-shot first.

    What is neither rows nor columns has a panel each, above one another, all on one scale of colours. Fields
    without a run are hatched.

    Args:
        runs: one row a run.
        ax: draw into this one; then there must be one panel.
        styles: of methods; a field has no room for them.
        look: type and width.
        rows: one of ``SIDES``: "method", "split" (with its shots) or "task" (with its model).
        columns: likewise.

    Raises:
        NothingToDraw: no run states its accuracy, there is a single row or column, or more than fit.
        BadInput: ``rows`` and ``columns`` are not two of ``SIDES``, or ``ax`` is one for several panels.
    """
    points = heat_map_points(runs, rows=rows, columns=columns)
    parts = list(points.groupby("panel", observed=True))
    downs, acrosses = _order(points["row"]), _order(points["column"])
    if ax is not None and len(parts) > 1:
        names = ", ".join(str(name) for name, _ in parts)
        raise BadInput(f"ax: there are {len(parts)} panels ({names}); choose one's runs, or give none")
    norm = Normalize(100 * points["mean"].min(), 100 * points["mean"].max())
    with look.drawing():
        colours = mpl.colormaps[_COLOURS].resampled(_STEPS)
        if ax is None:
            figure, grid, width, numbers = _figure(len(parts), downs, acrosses, look)
        else:
            figure, grid = in_axes(ax), [ax]
            width = ax.get_window_extent().width / figure.dpi / len(acrosses)
            numbers = _LEVEL if width >= _NUMBER else _TURNED
        for axes, (name, part) in zip(grid, parts, strict=True):
            _fields(axes, part, downs, acrosses, norm, colours, numbers)
            if len(parts) > 1:
                axes.set_title(_wrapped(str(name), 60))
            axes.set_yticks(range(len(downs)), [_wrapped(name, _MOST_LETTERS) for name in downs])
        for axes in grid:
            _name_columns(axes, acrosses, width, named=axes is grid[-1])
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=grid, pad=0.015, fraction=0.05, aspect=25)
        bar.outline.set_linewidth(0.4)
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        bar.set_label("Accuracy (%)")
        set_lines(figure if ax is None else ax)
    return figure


def _wrapped(name: str, letters: int) -> str:
    """Text in lines of some length; a number of shots is not broken."""
    return verbatim(re.sub(r"(\d) (shots?)$", "\\1\N{NO-BREAK SPACE}\\2", name), letters)


def _names(table: pd.DataFrame, side: str) -> pd.Series:
    """What each row is called on a side of the map, in the order of the report."""
    parts = table[_SIDES[side]].astype({_SIDES[side][0]: object})
    if side == "split":
        texts = [
            str(split) if pd.isna(shots) else f"{split}, {shots_label(shots)}"
            for split, shots in parts.to_numpy()
        ]
    elif side == "task" and table["model"].nunique() > 1:
        texts = [f"{task} · {model}" for task, model in parts.to_numpy()]
    else:
        texts = parts.iloc[:, 0].astype(str).tolist()
    order = table.assign(text=texts)
    if side == "split":  # all data before the few, and of these the most first
        order["shots"] = order["shots"].fillna(10**9)
        order = order.sort_values(["shots", "split_label"], ascending=[False, True], kind="stable")
    else:
        order = order.sort_values(_SIDES[side], kind="stable")
    return pd.Series(pd.Categorical(texts, order["text"].unique(), ordered=True), index=table.index)


def _order(names: pd.Series) -> list[str]:
    return list(names.cat.remove_unused_categories().cat.categories)


def _lines(names: Sequence[str], letters: int) -> int:
    return max(_wrapped(name, letters).count("\n") + 1 for name in names)


def _longest(names: Sequence[str], letters: int) -> int:
    return max(len(line) for name in names for line in _wrapped(name, letters).split("\n"))


def _figure(
    n_panels: int, downs: Sequence[str], acrosses: Sequence[str], look: Look
) -> tuple[Figure, list[Axes], float, _Numbers]:
    """Make a figure whose fields hold a number; gives its axes, a field's width in inches, and the numbers.

    Numbers stand on end in narrow fields; where that takes more than a page they lose their decimals.
    """
    beside = LETTER * _longest(downs, _MOST_LETTERS) + 0.7  # and the key of colours
    fits = beside + _NUMBER * len(acrosses) <= look.column
    outer = look.column if (fits if look.width is None else look.width == "column") else look.page
    width = (outer - beside) / len(acrosses)
    if width < _LINE:
        raise NothingToDraw(f"{len(acrosses)} columns of a heat map do not fit {outer:g} inches")
    level, letters = _turn(acrosses, width)
    below = _LINE * _lines(acrosses, letters) if level else LETTER * _longest(acrosses, letters)
    names = _LINE * _lines(downs, _MOST_LETTERS)
    for numbers in (numbers for numbers in (_LEVEL, _TURNED, _WHOLE) if numbers.width <= width):
        all_rows = max(n_panels * len(downs) * (max(numbers.height, names) + 0.06), _LOWEST)
        height = all_rows + n_panels * (0.3 if n_panels > 1 else 0.05) + below + 0.2
        if height <= HIGHEST:
            break
    figure = Figure((outer, height), layout="constrained")
    grid = figure.subplots(n_panels, 1, squeeze=False)
    return figure, [axes for (axes,) in grid], width, numbers


def _turn(names: Sequence[str], width: float) -> tuple[bool, int]:
    """Say whether the names of columns stand level, no word of them broken, and the letters of a line."""
    letters = max(int(width / LETTER), 1)
    words = [word for name in names for word in re.split("[ \\n-]", _wrapped(name, 1000))]
    if max(map(len, words)) <= letters and _lines(names, letters) <= 3:
        return True, letters
    return False, _MOST_LETTERS if width > 2.2 * _LINE else 1000


def _name_columns(axes: Axes, names: Sequence[str], width: float, named: bool) -> None:
    level, letters = _turn(names, width)
    texts = [_wrapped(name, letters) if named else "" for name in names]
    axes.set_xticks(range(len(names)), texts, rotation=0 if level else 90)


def _fields(
    axes: Axes,
    part: pd.DataFrame,
    downs: Sequence[str],
    acrosses: Sequence[str],
    norm: Normalize,
    colours: Colormap,
    numbers: _Numbers,
) -> None:
    """Colour each field, write its number in black or white, and hatch those without."""
    means = np.full((len(downs), len(acrosses)), np.nan)
    for row in part.to_dict("records"):
        means[downs.index(row["row"]), acrosses.index(row["column"])] = 100 * row["mean"]
    axes.patch.set(hatch="//////", edgecolor="#c4c4c4")
    across, down = (np.arange(count + 1) - 0.5 for count in (len(acrosses), len(downs)))
    axes.pcolormesh(across, down, means, cmap=colours, norm=norm, edgecolor="white", linewidth=0.8)
    number: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "rotation": numbers.turn}
    for (y, x), mean in np.ndenumerate(means):
        if not np.isnan(mean):
            axes.text(x, y, f"{mean:.{numbers.decimals}f}", color=_ink(colours(norm(mean))), **number)
    axes.set_ylim(len(downs) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _ink(colour: Any) -> str:
    """Black or white, whichever contrasts more by WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
