"""What figures share: their size, panels, key and files. Drawn on their own canvas, never through pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.names import METHODS, shots_label
from bench.report.styles import SANS, STYLES, Look, Style
from bench.report.text import keep_brackets_whole

RESOLUTION = 200  # dots per inch


class NothingToDraw(ValueError):
    """The runs hold no data for a figure; the message says in a few words what is missing."""


# Intervals of fewer seeds stand in the tables alone: Student's factor is 12.7 for two, 4.3 for three.
FEWEST_FOR_INTERVAL = 3
# What fits into a figure of a column's width: methods, and letters of their names beside bars.
MOST_IN_A_COLUMN, LONGEST_IN_A_COLUMN = 6, 20
# Inches that every figure sets aside for a key; a longer one makes the figure taller.
_KEY_ROOM = 0.3


def verbatim(text: object, width: int = 30) -> str:
    """Text as matplotlib shows it unchanged: no mathematics, no leading underscore, lines of some length."""
    lines = textwrap.wrap(keep_brackets_whole(str(text)).replace("$", r"\$"), width) or [""]
    return "\n".join(lines) if not lines[0].startswith("_") else " " + "\n".join(lines)


@dataclass(frozen=True)
class Panels:
    """Small multiples: each axes with its rows; ``own`` where the figure was made for them."""

    figure: Figure
    parts: list[tuple[Axes, pd.DataFrame]]
    abreast: int
    own: bool

    @property
    def axes(self) -> list[Axes]:
        """Those drawn into."""
        return [axes for axes, _ in self.parts]

    def finish(self, x_label: str, y_label: str, key: Mapping[str, Any]) -> None:
        """Name the axes once for all panels and set the key above them."""
        names, handles = [verbatim(name) for name in key], list(key.values())
        if not self.own:
            axes = self.axes[0]
            axes.set(xlabel=x_label, ylabel=y_label)
            if key:
                axes.legend(handles, names)
            return
        self.figure.supxlabel(x_label)
        if y_label:
            self.figure.supylabel(y_label)
        if key:
            columns = _key_columns(names, self.figure.get_figwidth())
            self.figure.legend(handles, names, loc="outside upper center", ncols=columns)
            height = self.figure.get_figheight() + max(0.0, _key_height(names, columns) - _KEY_ROOM)
            self.figure.set_figheight(height)


def _key_columns(names: Sequence[str], width: float) -> int:
    """How many entries of the key fit abreast into ``width`` inches."""
    # An entry takes about 0.5 inch for its line and 0.063 a letter at this size.
    needs = [0.5 + 0.063 * max(map(len, name.split("\n"))) for name in names]
    return len(names) if sum(needs) < width else max(1, int(width / max(needs)))


def _key_height(names: Sequence[str], columns: int) -> float:
    """Inches that the key takes: the tallest entry of each of its rows, entries going down the columns."""
    rows = -(-len(names) // columns)
    lines = [max(name.count("\n") + 1 for name in names[row::rows]) for row in range(rows)]
    return sum(0.14 * count + 0.07 for count in lines)


def make_panels(
    frame: pd.DataFrame, ax: Axes | None, look: Look, row_height: float = 2.0, by_shots: bool = True
) -> Panels:
    """Divide the rows among panels by split, at most three abreast; other shots start a row of their own.

    Where there is one split, the shots stand abreast.
    """
    if ax is not None:
        return Panels(cast(Figure, ax.get_figure(root=True)), [(ax, frame)], abreast=1, own=False)
    keys = ["shots", "split_label"] if by_shots else ["split_label"]
    parts: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(keys, dropna=False, observed=True))
    if by_shots:  # all data before the few
        parts.sort(key=lambda item: not pd.isna(item[0][0]))
    n_splits = frame["split_label"].nunique()
    abreast = {1: 1, 2: 2, 4: 2}.get(n_splits if n_splits > 1 else len(parts), 3)
    places = _places([key[0] if by_shots and n_splits > 1 else None for key, _ in parts], abreast)
    rows = 1 + max(row for row, _ in places)
    # above a single column a key of many methods would be taller than what it explains
    labels = frame["method_label"].drop_duplicates().astype(str)
    fits = (
        len(parts) == 1 and len(labels) <= MOST_IN_A_COLUMN and max(map(len, labels)) <= LONGEST_IN_A_COLUMN
    )
    narrow = fits if look.width is None else look.width == "column"
    figure = Figure((look.column if narrow else look.page, row_height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, abreast, sharex=True, sharey=True, squeeze=False)
    drawn = []
    for (row, column), (key, part) in zip(places, parts, strict=True):
        few = by_shots and not pd.isna(key[0])
        shots = f", {shots_label(key[0])}".replace(" shot", "\N{NO-BREAK SPACE}shot") if few else ""
        grid[row, column].set_title(verbatim(f"{key[-1]}{shots}"))
        drawn.append((grid[row, column], part))
    _drop_empty(grid, places)
    return Panels(figure, drawn, abreast, own=True)


def _places(levels: Sequence[Any], abreast: int) -> list[tuple[int, int]]:
    """Row and column of each panel; a row ends when it is full or the level changes."""
    places: list[tuple[int, int]] = []
    for index, level in enumerate(levels):
        if index == 0:
            places.append((0, 0))
            continue
        row, column = places[-1]
        same = str(level) == str(levels[index - 1])
        places.append((row, column + 1) if same and column + 1 < abreast else (row + 1, 0))
    return places


def _drop_empty(grid: Any, places: Sequence[tuple[int, int]]) -> None:
    """Remove axes without data; the panel above one shows the tick labels in its stead."""
    for row, column in np.ndindex(grid.shape):
        if (row, column) not in places:
            grid[row, column].remove()
            if (row - 1, column) in places:
                grid[row - 1, column].xaxis.set_tick_params(labelbottom=True)


def by_method(part: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Give the rows of each method, in the order of the report."""
    return [(str(label), group) for label, group in part.groupby("method_label", observed=True)]


def order_of(frame: pd.DataFrame) -> list[str]:
    """Give the labels of the methods there are, in the order of the report."""
    return [label for label, _ in by_method(frame)]


def drawn_half_width(table: pd.DataFrame) -> np.ndarray:
    """Half widths of the intervals worth drawing: that of two values mostly spans the whole figure."""
    return table["half_width"].where(table["n"] >= FEWEST_FOR_INTERVAL, 0.0).to_numpy(dtype=float)


def zero_shot_line(axes: Axes, part: pd.DataFrame, reference: pd.DataFrame) -> None:
    """Draw what the model gave before any training as a dashed line."""
    cells = part[["task", "model", "split_label", "shots"]].drop_duplicates()
    values = cells.merge(reference, how="inner")["zero_shot"]
    if len(values):
        style = STYLES["zero_shot"]
        axes.axhline(100 * values.mean(), color=style.colour, linestyle=style.line, linewidth=1, zorder=1.5)


def key_of(trained: pd.DataFrame, styles: Mapping[str, Style], reference: pd.DataFrame) -> dict[str, Line2D]:
    """Give a line for each trained method, and for zero-shot where it is known."""
    labels = [label for label, _ in by_method(trained)]
    key = {name: styles[name] for name in labels}
    if len(reference):
        key = {METHODS["zero_shot"]: STYLES["zero_shot"], **key}
    return {n: Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker) for n, s in key.items()}


def save(figure: Figure, stem: Path, look: Look = SANS) -> list[Path]:
    """Write ``stem``.png and .pdf; the same figure gives the same bytes, so neither carries a date."""
    png, pdf = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    with look.drawing():
        figure.savefig(png, dpi=RESOLUTION, metadata={"Software": None})
        figure.savefig(pdf, metadata={"CreationDate": None})
    return [png, pdf]
