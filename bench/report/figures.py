"""The figures: drawn on their own canvas, never through pyplot, so that no global state changes.

Bands and whiskers are 95 % t-intervals over seeds. Methods look as ``styles`` says.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from bench.report.names import METHODS, label_runs, shots_label
from bench.report.statistics import mean_interval
from bench.report.styles import FEATURES_COLOUR, SETUP_COLOUR, STYLES, Style, drawing, styles_of
from bench.report.tables import zero_shot_reference
from bench.report.text import bytes_text, digits, keep_brackets_whole
from bench.report.times import with_times

FULL_WIDTH, COLUMN_WIDTH = 7.0, 3.5  # inches: a page's text, one column of two
RESOLUTION = 200  # dots per inch


class NothingToDraw(ValueError):
    """The runs hold no data for a figure; the message says in a few words what is missing."""


# Intervals of fewer seeds stand in the tables alone: Student's factor is 12.7 for two, 4.3 for three.
FEWEST_FOR_INTERVAL = 3
# What fits into a figure of a column's width: methods, and letters of their names beside bars.
MOST_IN_A_COLUMN, LONGEST_IN_A_COLUMN = 6, 20
# The parts of a set-up, in the order they are stacked: name in the key, and colour.
_SETUP = {
    "features_once_seconds": ("features, once", FEATURES_COLOUR),
    "other_setup_seconds": ("rest of set-up", SETUP_COLOUR),
}
# Inches that every figure sets aside for a key; a longer one makes the figure taller.
_KEY_ROOM = 0.3


def accuracy_over_rounds(
    rounds: pd.DataFrame, ax: Axes | None = None, *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Draw test accuracy by round, a panel for each split and shots; zero-shot is a dashed line.

    Args:
        rounds: one row a run and round, best labelled by ``names.label_rounds``.
        ax: draw all rows into this one instead.
        styles: of each method label; made from ``rounds`` when absent.

    Raises:
        NothingToDraw: no trained method has a round.
    """
    return _curves(rounds, "round", ax, styles)


def accuracy_over_bytes(
    rounds: pd.DataFrame, ax: Axes | None = None, *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Draw test accuracy by the bytes sent so far, up and down over all clients, on a logarithmic axis.

    Arguments and errors are those of ``accuracy_over_rounds``; rounds before the first byte have no place.
    """
    return _curves(rounds[rounds["cumulative_bytes"] > 0], "cumulative_bytes", ax, styles)


def time_bars(
    runs: pd.DataFrame, ax: Axes | None = None, *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Draw the seconds that training took and, stacked onto them, those of the set-up before the first round.

    The set-up counts features of a frozen tower as computed, whether or not a run found them in the cache.

    Args:
        runs: one row a run.
        ax: draw all rows into this one instead of a panel for each split and shots.
        styles: of each method label; made from ``runs`` when absent.

    Raises:
        NothingToDraw: no run of a trained method has ``train_seconds``.
    """
    runs = with_times(runs)
    trained = runs[runs["method"] != "zero_shot"].dropna(subset=["train_seconds"])
    if trained.empty:
        raise NothingToDraw("no run of a trained method states its training time")
    with drawing():
        panels = _panels(trained, ax, _bar_height(trained))
        for axes, part in panels.parts:
            table = mean_interval(part, ["method_label"], "train_seconds")
            table["half_width"] = _drawn_half_width(table)
            for name in _SETUP:
                means = mean_interval(part, ["method_label"], name)[["method_label", "mean"]]
                table = table.merge(means.rename(columns={"mean": name}), on="method_label", how="left")
            _bars(axes, table, _order(trained), styles or styles_of(runs), digits)
        _fit_bars(panels)
        key = {"training, all rounds": Patch(facecolor="#6e6e6e")}
        known = [name for name in _SETUP if trained[name].notna().any()]
        key |= {_SETUP[name][0]: Patch(facecolor=_SETUP[name][1]) for name in known}
        panels.finish("Seconds", "", key)
    return panels.figure


def memory_bars(
    runs: pd.DataFrame, ax: Axes | None = None, *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Draw peak memory by method: of the GPU where every run states it, else of the process.

    Arguments are those of ``time_bars``.

    Raises:
        NothingToDraw: no run states its peak memory.
    """
    runs = label_runs(runs)
    on_gpu = "peak_gpu_memory_bytes" in runs and runs["peak_gpu_memory_bytes"].notna().all()
    column = "peak_gpu_memory_bytes" if on_gpu else "peak_memory_bytes"
    measured = runs.dropna(subset=[column])
    if measured.empty:
        raise NothingToDraw("no run states its peak memory")
    with drawing():
        panels = _panels(measured, ax, _bar_height(measured))
        for axes, part in panels.parts:
            table = mean_interval(part, ["method_label"], column)
            table["half_width"] = _drawn_half_width(table)
            _bars(axes, table, _order(measured), styles or styles_of(runs), bytes_text)
            axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        _fit_bars(panels)
        panels.finish("Peak GPU memory" if on_gpu else "Peak memory of the process", "", {})
    return panels.figure


def few_shot_curves(
    runs: pd.DataFrame, ax: Axes | None = None, *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """Draw accuracy after the last round by shots, a panel for each split; all data stands apart.

    Arguments are those of ``time_bars``.

    Raises:
        NothingToDraw: fewer than two numbers of shots (all data is none) with a trained method.
    """
    runs = label_runs(runs)
    trained = runs[(runs["method"] != "zero_shot") & runs["accuracy"].notna()]
    counts = sorted(int(shots) for shots in trained["shots"].dropna().unique())
    if len(counts) < 2:
        raise NothingToDraw("a curve over shots needs runs with at least two numbers of shots")
    styles = styles or styles_of(runs)
    reference = zero_shot_reference(runs)
    with drawing():
        panels = _panels(trained, ax, by_shots=False)
        for axes, part in panels.parts:
            _shots_axis(axes, counts, all_data=bool(trained["shots"].isna().any()))
            for label, group in _by_method(part):
                _shots_curve(axes, group, counts, styles[label])
            _zero_shot_line(axes, part, reference)
        panels.finish("Shots (images per class and client)", "Accuracy (%)", _key(trained, styles, reference))
        _fit_accuracy(panels.axes)
    return panels.figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and .pdf; the same figure gives the same bytes, so neither carries a date."""
    png, pdf = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    with drawing():
        figure.savefig(png, dpi=RESOLUTION, metadata={"Software": None})
        figure.savefig(pdf, metadata={"CreationDate": None})
    return [png, pdf]


def _label(text: object, width: int = 30) -> str:
    """Text as matplotlib shows it unchanged: no mathematics, no leading underscore, lines of some length."""
    lines = textwrap.wrap(keep_brackets_whole(str(text)).replace("$", r"\$"), width) or [""]
    return "\n".join(lines) if not lines[0].startswith("_") else " " + "\n".join(lines)


@dataclass(frozen=True)
class _Panels:
    """Small multiples: each axes with its rows; ``own`` where the figure was made for them."""

    figure: Figure
    parts: list[tuple[Axes, pd.DataFrame]]
    abreast: int
    own: bool

    @property
    def axes(self) -> list[Axes]:
        return [axes for axes, _ in self.parts]

    def finish(self, x_label: str, y_label: str, key: Mapping[str, Any]) -> None:
        """Name the axes once for all panels and set the key above them."""
        names, handles = [_label(name) for name in key], list(key.values())
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


def _panels(frame: pd.DataFrame, ax: Axes | None, row_height: float = 2.0, by_shots: bool = True) -> _Panels:
    """Divide the rows among panels by split, at most three abreast; other shots start a row of their own.

    Where there is one split, the shots stand abreast.
    """
    if ax is not None:
        return _Panels(cast(Figure, ax.get_figure(root=True)), [(ax, frame)], abreast=1, own=False)
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
    narrow = (
        len(parts) == 1 and len(labels) <= MOST_IN_A_COLUMN and max(map(len, labels)) <= LONGEST_IN_A_COLUMN
    )
    figure = Figure((COLUMN_WIDTH if narrow else FULL_WIDTH, row_height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, abreast, sharex=True, sharey=True, squeeze=False)
    drawn = []
    for (row, column), (key, part) in zip(places, parts, strict=True):
        few = by_shots and not pd.isna(key[0])
        shots = f", {shots_label(key[0])}".replace(" shot", "\N{NO-BREAK SPACE}shot") if few else ""
        grid[row, column].set_title(_label(f"{key[-1]}{shots}"))
        drawn.append((grid[row, column], part))
    _drop_empty(grid, places)
    return _Panels(figure, drawn, abreast, own=True)


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


def _curves(rounds: pd.DataFrame, x: str, ax: Axes | None, styles: Mapping[str, Style] | None) -> Figure:
    rounds = label_runs(rounds)
    styles = styles or styles_of(rounds)
    trained = rounds[(rounds["method"] != "zero_shot") & rounds["accuracy"].notna()]
    trained = trained if x == "round" else trained[trained[x] > 0]
    if trained.empty or not (trained["round"] > 0).any():
        raise NothingToDraw("no trained method has a round with its accuracy")
    reference = zero_shot_reference(rounds.drop_duplicates("config_hash"))
    with drawing():
        panels = _panels(trained, ax)
        for axes, part in panels.parts:
            for label, group in _by_method(part):
                _round_curve(axes, group, x, styles[label])
            _zero_shot_line(axes, part, reference)
        if x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        else:
            _bytes_axes(panels.axes, trained[x])
        names = {"round": "Round", "cumulative_bytes": "Bytes sent so far, up + down, all clients"}
        panels.finish(names[x], "Accuracy (%)", _key(trained, styles, reference))
        _fit_accuracy(panels.axes)
    return panels.figure


def _order(frame: pd.DataFrame) -> list[str]:
    return [label for label, _ in _by_method(frame)]


def _by_method(part: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(label), group) for label, group in part.groupby("method_label", observed=True)]


def _round_curve(axes: Axes, group: pd.DataFrame, x: str, style: Style) -> None:
    table = mean_interval(group, ["round"], "accuracy")
    places = group.groupby("round")[x].mean().reindex(table["round"]) if x != "round" else table["round"]
    _line(axes, places.to_numpy(dtype=float), table, style, marks=6 if x == "round" else 3)


def _shots_curve(axes: Axes, group: pd.DataFrame, counts: Sequence[int], style: Style) -> None:
    table = mean_interval(group, ["shots"], "accuracy")
    some = table[table["shots"].notna()]
    _line(axes, np.log2(some["shots"].to_numpy(dtype=float)), some, style, marks=len(some))
    everything = table[table["shots"].isna()]
    at = [math.log2(counts[-1]) + 1] * len(everything)
    error = 100 * _drawn_half_width(everything)
    axes.errorbar(
        at, 100 * everything["mean"], error, fmt=style.marker, color=style.colour, elinewidth=0.8, capsize=2
    )


def _drawn_half_width(table: pd.DataFrame) -> np.ndarray:
    """Half widths of the intervals worth drawing: that of two values mostly spans the whole figure."""
    return table["half_width"].where(table["n"] >= FEWEST_FOR_INTERVAL, 0.0).to_numpy(dtype=float)


def _line(axes: Axes, places: np.ndarray, table: pd.DataFrame, style: Style, marks: int) -> None:
    """Draw means with their band, and ``marks`` markers from the first to the last."""
    mean, half = 100 * table["mean"].to_numpy(), 100 * _drawn_half_width(table)
    marked = np.unique(np.linspace(0, len(places) - 1, min(marks, len(places))).round().astype(int)).tolist()
    kind = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
    axes.plot(places, mean, **kind, markevery=marked, markeredgewidth=0)
    axes.fill_between(places, mean - half, mean + half, color=style.colour, alpha=0.14, linewidth=0)


def _zero_shot_line(axes: Axes, part: pd.DataFrame, reference: pd.DataFrame) -> None:
    cells = part[["task", "model", "split_label", "shots"]].drop_duplicates()
    values = cells.merge(reference, how="inner")["zero_shot"]
    if len(values):
        style = STYLES["zero_shot"]
        axes.axhline(100 * values.mean(), color=style.colour, linestyle=style.line, linewidth=1, zorder=1.5)


def _key(trained: pd.DataFrame, styles: Mapping[str, Style], reference: pd.DataFrame) -> dict[str, Line2D]:
    labels = [label for label, _ in _by_method(trained)]
    key = {name: styles[name] for name in labels}
    if len(reference):
        key = {METHODS["zero_shot"]: STYLES["zero_shot"], **key}
    return {n: Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker) for n, s in key.items()}


def _bytes_axes(axes: Sequence[Axes], sent: pd.Series) -> None:
    """Logarithmic, with as many labels as stand side by side: the fewer decades, the more in each."""
    decades = math.log10(sent.max() / sent.min())
    marks = (1, 2, 5) if decades < 0.8 else (1, 3) if decades < 1.6 else (1,)
    for ax in axes:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=marks, numticks=4))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))


def _shots_axis(axes: Axes, counts: Sequence[int], all_data: bool) -> None:
    ticks = [math.log2(shots) for shots in counts]
    names = [str(shots) for shots in counts]
    if all_data:
        ticks, names = [*ticks, ticks[-1] + 1], [*names, "all"]
    axes.set_xticks(ticks, names)


def _fit_accuracy(axes: Sequence[Axes]) -> None:
    """Frame the curves: wide intervals of few seeds may leave the frame rather than flatten what is in it."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for ax in axes for line in ax.lines])
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    pad = max(0.12 * (high - low), (5.0 - (high - low)) / 2)  # at least five points, or noise looks large
    for ax in axes:
        ax.set_ylim(max(low - pad, -1.0), min(high + pad, 101.0))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _bar_height(frame: pd.DataFrame) -> float:
    return 0.24 * frame["method_label"].nunique() + 0.45


def _bars(
    axes: Axes,
    table: pd.DataFrame,
    order: Sequence[str],
    styles: Mapping[str, Style],
    text: Callable[[float], str],
) -> None:
    """Draw a bar a method with its value beside it; the parts of the set-up, if any, are stacked onto it."""
    for row in table.to_dict("records"):
        label, mean = str(row["method_label"]), float(row["mean"])
        y, style = order.index(label), styles[label]
        *parts, half = (float(np.nan_to_num(row.get(name, 0.0))) for name in (*_SETUP, "half_width"))
        axes.barh(y, mean, 0.7, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0)
        setup = 0.0
        for seconds, (_, colour) in zip(parts, _SETUP.values(), strict=True):
            if seconds:
                axes.barh(y, seconds, 0.7, left=mean + setup, color=colour)
            setup += seconds
        if half:
            axes.errorbar(mean, y, xerr=half, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=2)
        shown = f"{text(mean)} + {text(setup)}" if setup else text(mean)
        end = mean + max(setup, half)
        axes.annotate(shown, (end, y), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(order)), [_label(name) for name in order])
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _fit_bars(panels: _Panels) -> None:
    """Leave room at the right of the longest bar for its value; bars start at zero."""
    room = {1: 1.45, 2: 1.5}.get(panels.abreast, 1.65)
    ends = [note.xy[0] for axes in panels.axes for note in axes.texts if isinstance(note, Annotation)]
    longest = max(ends)
    limit = room * longest if longest > 0 else 1.0
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, limit)
    for axes in panels.axes:
        axes.set_xlim(0, limit)
        # A label at the very end would touch the next panel's first.
        axes.set_xticks([tick for tick in ticks if tick < 0.88 * limit])
