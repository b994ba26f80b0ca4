"""What figures share: their size, panels and key. Drawn on their own canvas, never through pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bench.report.names import METHODS, shots_label
from bench.report.statistics import mean_interval
from bench.report.styles import STYLES, Look, Style
from bench.report.text import keep_brackets_whole
from flora.errors import BadInput


class NothingToDraw(ValueError):
    """The runs hold no data for a figure; the message says in a few words what is missing."""


# Intervals of fewer seeds stand in the tables alone: Student's factor is 12.7 for two, 4.3 for three.
FEWEST_FOR_INTERVAL = 3
# What fits into a figure of a column's width: methods, and letters of their names beside bars.
MOST_IN_A_COLUMN, LONGEST_IN_A_COLUMN = 6, 20
# Inches: the highest figure that a page has room for with its caption, and what is around all panels. Every
# figure sets aside some of that for a key; a longer one makes the figure taller.
HIGHEST, _AROUND, _KEY_ROOM = 8.5, 0.6, 0.3
# Inches of a letter at the size of text and of titles, on average; and of what stands beside all panels.
LETTER, _TITLE_LETTER, _BESIDE = 0.063, 0.067, 0.5

_LINE_SPACING = 1.15

# The values of the columns that panels are told apart by, and the rows with these.
_Part = tuple[Any, pd.DataFrame]


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

    @property
    def panel_width(self) -> float:
        """Inches of a panel, about: what else stands beside the axes shows when they are laid out."""
        width = self.figure.get_figwidth()
        return (width - _BESIDE) / self.abreast if self.own else width * self.axes[0].get_position().width

    def finish(self, x_label: str, y_label: str, key: Mapping[str, Any]) -> None:
        """Name the axes once for all panels and set the key above them."""
        names, handles = [verbatim(name) for name in key], list(key.values())
        if not self.own:
            axes = self.axes[0]
            axes.set(xlabel=x_label, ylabel=y_label)
            if key:
                axes.legend(handles, names)
            set_lines(axes)
            return
        self.figure.supxlabel(x_label)
        height = 0.0
        if key:
            columns = _key_columns(names, self.figure.get_figwidth())
            self.figure.legend(handles, names, loc="outside upper center", ncols=columns)
            height = _key_height(names, columns)
            before = self.figure.get_figheight()
            self.figure.set_figheight(max(before, min(before + height - _KEY_ROOM, HIGHEST)))
        if y_label:  # beside the panels alone, not the key
            self.figure.supylabel(y_label, y=0.5 * (1 - height / self.figure.get_figheight()))
        set_lines(self.figure)


def set_lines(artist: Artist) -> None:
    """Have lines of a text stand as close in every font: some ask for twice their height."""
    for text in artist.findobj(Text):
        if isinstance(text, Text) and "\n" in text.get_text():
            text.set_linespacing(_LINE_SPACING)


def _key_columns(names: Sequence[str], width: float) -> int:
    """How many columns of the key fit into ``width`` inches; entries go down the columns."""
    # An entry takes about 0.55 inch for its line and the space after it.
    needs = [0.55 + LETTER * max(map(len, name.split("\n"))) for name in names]
    fits = (n for n in range(len(names), 1, -1) if sum(map(max, np.array_split(needs, n))) < width)
    return next(fits, 1)


def _key_height(names: Sequence[str], columns: int) -> float:
    """Inches that the key takes: its highest column."""
    entries = [0.14 * (name.count("\n") + 1) + 0.07 for name in names]
    return max(map(sum, np.array_split(entries, columns)))


def make_panels(
    frame: pd.DataFrame,
    ax: Axes | None,
    look: Look,
    row_height: float | None = None,
    by_shots: bool = True,
    in_column: int = 2,
    least_height: float = 1.2,
) -> Panels:
    """Divide the rows among panels by split; other shots start a row of their own.

    Where there is one split, the shots stand abreast.

    Args:
        frame: rows with ``split_label``, ``shots`` and ``method_label``.
        ax: take this one instead; then there must be one split, and one number of shots ``by_shots``.
        look: says how wide the figure is.
        row_height: inches of a row of panels, with its titles; about as high as wide where not given.
        by_shots: whether shots have panels of their own.
        in_column: how many panels stand abreast at most in a figure of a column's width; else three.
        least_height: inches that a row of panels needs where there are too many for a page; what then does
            not fit a column takes the width of the page.

    Raises:
        BadInput: the rows are of several tasks or models, or of several panels for one ``ax``.
    """
    check_one_task(frame)
    keys = ["shots", "split_label"] if by_shots else ["split_label"]
    parts: list[_Part] = list(frame.groupby(keys, dropna=False, observed=True))
    if ax is not None:
        figure = in_axes(ax)
        if len(parts) > 1:
            one = "one split and shots" if by_shots else "one split"
            raise BadInput(f"ax: holds {one}, not {len(parts)}; filter to {one}, or leave it out")
        return Panels(figure, [(ax, frame)], abreast=1, own=False)
    if by_shots:  # all data before the few
        parts.sort(key=lambda item: not pd.isna(item[0][0]))
    narrow = _fits_column(frame, len(parts)) if look.width is None else look.width == "column"
    grid, room = _arranged(parts, by_shots, in_column if narrow else 3, narrow), HIGHEST - _AROUND
    if narrow and grid.rows * least_height > room:
        narrow, grid = False, _arranged(parts, by_shots, 3, False)
    if grid.rows * least_height > room:
        grid = min(grid, _arranged(parts, by_shots, 3, False, shots_abreast=True), key=lambda one: one.rows)
    row_height = row_height or (1.65 if narrow and grid.abreast > 1 else 2.0)
    row_height = min(row_height, max(room / grid.rows, least_height))
    return _make(grid, look.column if narrow else look.page, row_height, by_shots)


@dataclass(frozen=True)
class _Grid:
    """Which part stands where, by row and column."""

    parts: list[_Part]
    places: list[tuple[int, int]]
    abreast: int

    @property
    def rows(self) -> int:
        return 1 + max(row for row, _ in self.places)


def _arranged(
    parts: Sequence[_Part], by_shots: bool, most: int, narrow: bool, shots_abreast: bool = False
) -> _Grid:
    """Place the parts, at most so many abreast."""
    n_splits = len({key[-1] for key, _ in parts})
    abreast = {1: 1, 2: 2, 4: 2}.get(n_splits if n_splits > 1 else len(parts), 3)
    levels = [str(key[0]) if by_shots and n_splits > 1 else "" for key, _ in parts]
    parts = list(parts)
    n_levels = len(set(levels))
    if shots_abreast and n_levels > 1:
        abreast = n_levels
    if n_levels > 1 and (shots_abreast or (narrow and n_splits > most >= n_levels)):
        # the shots of a split side by side rather than splits that fill no row
        parts.sort(key=lambda item: item[1]["split_label"].cat.codes.iloc[0])
        levels = [str(key[1]) for key, _ in parts]
    abreast = min(abreast, most)
    return _Grid(parts, _places(levels, abreast), abreast)


def _make(grid: _Grid, width: float, row_height: float, by_shots: bool) -> Panels:
    """Make the figure, with the title of each panel."""
    figure = Figure((width, row_height * grid.rows + _AROUND), layout="constrained")
    axes = figure.subplots(grid.rows, grid.abreast, sharex=True, sharey=True, squeeze=False)
    letters = int((width - _BESIDE) / grid.abreast / _TITLE_LETTER)
    drawn = []
    for place, (key, part) in zip(grid.places, grid.parts, strict=True):
        few = by_shots and not pd.isna(key[0])
        shots = f", {shots_label(key[0])}".replace(" shot", "\N{NO-BREAK SPACE}shot") if few else ""
        axes[place].set_title(verbatim(f"{key[-1]}{shots}", letters))
        drawn.append((axes[place], part))
    _drop_empty(axes, grid.places)
    return Panels(figure, drawn, grid.abreast, own=True)


def _fits_column(frame: pd.DataFrame, n_parts: int) -> bool:
    """Whether the figure is legible in a column; a key of many methods would be taller than the panel."""
    labels = frame["method_label"].drop_duplicates().astype(str)
    return n_parts == 1 and len(labels) <= MOST_IN_A_COLUMN and max(map(len, labels)) <= LONGEST_IN_A_COLUMN


def _places(levels: Sequence[str], abreast: int) -> list[tuple[int, int]]:
    """Row and column of each panel; a row ends when it is full or the level changes."""
    places: list[tuple[int, int]] = []
    for index, level in enumerate(levels):
        if index == 0:
            places.append((0, 0))
            continue
        row, column = places[-1]
        same = level == levels[index - 1]
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


def drawn_interval(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Give means as ``mean_interval`` does, and half widths where they are worth drawing.

    That of two values mostly spans the whole figure.
    """
    table = mean_interval(frame, by, value).drop(columns="std")
    return table.assign(half_width=table["half_width"].where(table["n"] >= FEWEST_FOR_INTERVAL))


def in_axes(ax: Any) -> Figure:
    """Give the figure of axes to draw into.

    Raises:
        BadInput: it is something else, such as the array that ``plt.subplots`` gives.
    """
    if not isinstance(ax, Axes):
        raise BadInput(
            f"ax: {type(ax).__name__} must be one matplotlib Axes; of several give one, such as axes.flat[0]"
        )
    return cast(Figure, ax.get_figure(root=True))


def check_one_task(points: pd.DataFrame) -> None:
    """Refuse to draw several tasks or models on top of one another.

    Raises:
        BadInput: there are.
    """
    for column in ("task", "model"):
        names = list(points[column].unique()) if column in points else []
        if len(names) > 1:
            raise BadInput(
                f"frame: has {len(names)} {column}s; a figure shows one task and model: filter, "
                f"such as frame[frame[{column!r}] == {names[0]!r}]"
            )


def zero_shot_line(axes: Axes, part: pd.DataFrame) -> None:
    """Draw what the model gave before any training, ``zero_shot`` of the points, as a dashed line."""
    style = STYLES["zero_shot"]
    for level in part["zero_shot"].dropna().unique():
        axes.axhline(100 * level, color=style.colour, linestyle=style.line, linewidth=1, zorder=1.5)


def key_of(points: pd.DataFrame, styles: Mapping[str, Style]) -> dict[str, Line2D]:
    """Give a line for each method drawn, and for zero-shot where it is known."""
    key = {name: styles[name] for name in order_of(points)}
    if points["zero_shot"].notna().any():
        key = {zero_shot_name(styles): STYLES["zero_shot"], **key}
    return {n: Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker) for n, s in key.items()}


def zero_shot_name(styles: Mapping[str, Style]) -> str:
    """Give the author's name of zero-shot where runs of it are among those with a style, else ours."""
    return next((name for name, own in styles.items() if own == STYLES["zero_shot"]), METHODS["zero_shot"])
