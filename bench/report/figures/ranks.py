"""Which methods the data sets tell apart: the critical-difference diagram of mean ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.canvas import LETTER, NothingToDraw, in_axes, verbatim
from bench.report.figures.frames import labelled_runs
from bench.report.names import shots_label, without_deployed_twins
from bench.report.ranking import (
    FEWEST_DATA_SETS,
    FEWEST_METHODS,
    RANK_CELL,
    critical_difference,
    friedman_p,
    indistinct_groups,
    mean_rank_of,
    score_matrix,
)
from bench.report.styles import SANS, Look, Style, styles_of
from bench.report.tables import on_same_test_sets
from flora.errors import BadInput

ALPHA = 0.05
_INK = "#222222"
# Inches: above the axis of ranks, of a title, of the line at the foot, of a line of a name, between names,
# between the bars of groups, from the ends of the axis to the marks, from these to the names, and around all.
_HEAD, _TITLE, _FOOT, _LINE, _BETWEEN = 0.42, 0.2, 0.22, 0.13, 0.05
_BAR, _GAP, _ASIDE, _EDGE = 0.08, 0.14, 0.07, 0.03
# Letters on a line of a name: as many as leave the axis its share of the width.
_LETTERS, _AXIS_SHARE = (32, 26, 22, 18, 16, 14, 12, 10, 8), 0.28
# What fits into a column: methods, and letters of their names.
_MOST_IN_A_COLUMN, _LONGEST_IN_A_COLUMN = 10, 24


def critical_difference_diagram(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the methods on an axis of mean ranks, the best at the right, as Demšar (2006) does.

    Bars join methods that are not told apart: their ranks differ by less than the critical difference of
    Nemenyi's test at 5 %, drawn above, or Friedman's test finds no difference at all. A panel for each model,
    split and shots with enough data sets.

    Args:
        runs: one row a run, of several data sets.
        ax: draw into this one; then there must be one model, split and shots.
        styles: of each method label; made from ``runs`` when absent.
        look: type and width.

    Raises:
        NothingToDraw: nowhere did ``FEWEST_METHODS`` methods all run on ``FEWEST_DATA_SETS`` data sets.
        BadInput: there is more to draw than ``ax`` takes.
    """
    runs = labelled_runs(runs)
    points, styles = critical_difference_diagram_points(runs), styles or styles_of(runs)
    cells = [cell for _, cell in points.groupby(RANK_CELL, dropna=False, observed=True)]
    cells.sort(key=lambda cell: bool(cell["shots"].notna().any()))  # all data before the few
    if ax is not None and len(cells) > 1:
        raise BadInput("ax: there are several models, splits or shots; each needs an axes of its own")
    with look.drawing():
        if ax is not None:
            figure = in_axes(ax)
            (plan,) = _plans(cells, ax.get_window_extent().width / figure.dpi)
            _draw(ax, plan, styles)
            return figure
        width = look.column if _fits_column(points, look) else look.page
        plans = _plans(cells, width)
        heights = [plan.height + _TITLE for plan in plans]
        figure = Figure((width, sum(heights)))
        top = 1.0
        for plan, height in zip(plans, heights, strict=True):
            top -= height / sum(heights)
            axes = figure.add_axes((0, top, 1, plan.height / sum(heights)))
            axes.set_title(verbatim(_title(plan.cell, several=points["model"].nunique() > 1), 60), pad=2)
            _draw(axes, plan, styles)
    return figure


def critical_difference_diagram_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the ranks that ``critical_difference_diagram`` draws, with its errors.

    Returns:
        One row a model, split, shots and method, best first: ``n`` data sets, ``mean_rank``,
        ``critical_difference``, ``friedman_p``, and ``groups``: the numbers of the bars that it is joined by.
    """
    runs, _ = on_same_test_sets(without_deployed_twins(labelled_runs(runs)))
    scores = {key: score_matrix(cell) for key, cell in runs.groupby(RANK_CELL, dropna=False, observed=True)}
    enough = {
        key: matrix
        for key, matrix in scores.items()
        if len(matrix) >= FEWEST_DATA_SETS and len(matrix.columns) >= FEWEST_METHODS
    }
    if not enough:
        data_sets, methods = max((matrix.shape for matrix in scores.values()), default=(0, 0))
        raise NothingToDraw(
            f"mean ranks need {FEWEST_METHODS} methods that all ran on {FEWEST_DATA_SETS} data sets; "
            f"there are {methods} on {data_sets}"
        )
    tables = [
        pd.DataFrame([key], columns=RANK_CELL).merge(_ranked(matrix), how="cross")
        for key, matrix in enough.items()
    ]
    points = pd.concat(tables, ignore_index=True).astype({"shots": "Int64"})
    return points.astype({name: runs[name].dtype for name in ("split_label", "method_label")})


def _ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of a matrix of scores, without where they are of."""
    table = mean_rank_of(scores).sort_values("mean_rank", kind="stable", ignore_index=True)
    difference, p = critical_difference(scores.shape[1], len(scores), ALPHA), friedman_p(scores)
    # Without a difference at all there is none between two.
    apart = difference if p < ALPHA else float("inf")
    groups = indistinct_groups(dict(zip(table["method_label"], table["mean_rank"], strict=True)), apart)
    joined = [
        " ".join(str(number) for number, group in enumerate(groups, 1) if label in group)
        for label in table["method_label"]
    ]
    return table.assign(critical_difference=difference, friedman_p=p, groups=joined)


def _fits_column(points: pd.DataFrame, look: Look) -> bool:
    if look.width is not None:
        return look.width == "column"
    labels = points["method_label"].astype(str)
    return labels.nunique() <= _MOST_IN_A_COLUMN and labels.str.len().max() <= _LONGEST_IN_A_COLUMN


def _title(cell: pd.DataFrame, several: bool) -> str:
    first = cell.iloc[0]
    parts = [str(first["model"])] if several else []
    parts.append(str(first["split_label"]))
    parts += [] if pd.isna(first["shots"]) else [shots_label(first["shots"])]
    return ", ".join(parts)


class _Plan:
    """Where the parts of one diagram stand, in inches.

    Attributes:
        cell: its rows of the points, best first.
        right: how many rows, the best, stand at the right; the others are at the left.
        names: of each row, broken into lines.
        margins: that names take from the ends of the axis to the edges of the figure, at the left and right.
        a_rank: from one rank to the next.
        levels: how deep below the axis the middle of each row's name stands.
        depth: of everything below the axis.
    """

    def __init__(self, cell: pd.DataFrame, letters: int) -> None:
        self.cell, self.right = cell, -(-len(cell) // 2)
        texts = [
            f"{label} ({rank:.2f})"
            for label, rank in zip(cell["method_label"], cell["mean_rank"], strict=True)
        ]
        self.names = [verbatim(text, letters) for text in texts]
        inches = [_inches(name) for name in self.names]
        best, worst = max(inches[: self.right]), max(inches[self.right :])
        self.margins = [side + _GAP + _ASIDE + _EDGE for side in (worst, best)]
        self.a_rank = 0.0
        start = 0.1 + _BAR * len(self.groups())
        # the outermost of either side stands highest, so that no two lines cross
        self.levels = [
            *_levels(self.names[: self.right], start),
            *reversed(list(_levels(self.names[: self.right - 1 : -1], start))),
        ]
        lowest = max(level + _height(name) / 2 for level, name in zip(self.levels, self.names, strict=True))
        self.depth = lowest + _FOOT

    @property
    def height(self) -> float:
        """Inches of the whole."""
        return _HEAD + self.depth

    def groups(self) -> list[pd.DataFrame]:
        """The rows that each bar joins."""
        numbers = self.cell["groups"].str.split()
        count = max((int(number) for row in numbers for number in row), default=0)
        return [self.cell[[str(n) in row for row in numbers]] for n in range(1, count + 1)]


def _plans(cells: Sequence[pd.DataFrame], width: float) -> list[_Plan]:
    """Plan the diagrams with axes of one length: a critical difference is then as long in each."""
    for letters in _LETTERS:
        plans = [_Plan(cell, letters) for cell in cells]
        margins = [max(sides) for sides in zip(*(plan.margins for plan in plans), strict=True)]
        if width - sum(margins) > _AXIS_SHARE * width:
            break
    for plan in plans:
        plan.margins = margins
        plan.a_rank = max(width - sum(margins), 0.5) / (len(plan.cell) - 1)
    return plans


def _levels(names: Sequence[str], start: float) -> Iterator[float]:
    """The middle of each name, one below the other."""
    for name in names:
        yield start + _height(name) / 2
        start += _height(name) + _BETWEEN


def _height(name: str) -> float:
    return _LINE * (name.count("\n") + 1)


def _inches(text: str) -> float:
    """How wide a text is."""
    figure = Figure()
    return float(figure.text(0, 0, text).get_window_extent().width / figure.dpi)


def _draw(axes: Axes, plan: _Plan, styles: Mapping[str, Style]) -> None:
    """Draw a diagram; the axes' heights are inches, their widths ranks that fall to the right."""
    axes.set_axis_off()
    axes.set_ylim(-plan.depth, _HEAD)
    worst = len(plan.cell)
    (before, after), gap = (side / plan.a_rank for side in plan.margins), _GAP / plan.a_rank
    axes.set_xlim(worst + before, 1 - after)
    axes.plot([worst, 1], [0, 0], color=_INK, linewidth=0.8)
    every = math.ceil((0.05 + LETTER * len(str(worst))) / plan.a_rank)
    for rank in range(1, worst + 1):
        axes.plot([rank, rank], [0, 0.045], color=_INK, linewidth=0.8)
        if (rank - 1) % every == 0:
            axes.text(rank, 0.06, str(rank), ha="center", va="bottom")
    _critical_difference(axes, plan)
    for index, row in enumerate(plan.cell.to_dict("records")):
        side = 1 - gap if index < plan.right else worst + gap
        _method(axes, row, plan.names[index], -plan.levels[index], side, styles)
    for number, group in enumerate(plan.groups()):
        ends = group["mean_rank"].max(), group["mean_rank"].min()
        axes.plot(ends, [-0.09 - _BAR * number] * 2, color=_INK, linewidth=2.6, solid_capstyle="round")


def _critical_difference(axes: Axes, plan: _Plan) -> None:
    """Draw the critical difference above the axis, and say below what its ranks are."""
    first, worst = plan.cell.iloc[0], len(plan.cell)
    difference, p = first["critical_difference"], first["friedman_p"]
    ends, level = (worst, worst - difference), _HEAD - 0.09
    axes.plot(ends, [level, level], color=_INK, linewidth=1.2, marker="|", markersize=5)
    axes.annotate(f"CD = {difference:.2f}", (ends[1], level), (5, 0), textcoords="offset points", va="center")
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    text = f"Mean rank, {first['n']} data sets (Friedman {shown})"
    axes.text(0.5, -plan.depth + _EDGE, text, transform=axes.get_yaxis_transform(), ha="center", va="bottom")


def _method(
    axes: Axes, row: Mapping[Any, Any], name: str, level: float, side: float, styles: Mapping[str, Style]
) -> None:
    """Lead a line from a method's rank to its mark and name at one side."""
    style, rank = styles[str(row["method_label"])], row["mean_rank"]
    axes.plot([rank, rank, side], [0, level, level], color=style.colour, linewidth=0.9)
    axes.plot(side, level, color=style.colour, marker=style.marker, markersize=4.5)
    points = 72 * _ASIDE
    far, ha = (points, "left") if side < rank else (-points, "right")
    axes.annotate(
        name, (side, level), (far, 0), textcoords="offset points", ha=ha, va="center", linespacing=1.0
    )
