"""Accuracy over an option of a method: its rank, its factor, the layers it adapts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.canvas import (
    LETTER,
    NothingToDraw,
    Panels,
    drawn_interval,
    key_of,
    make_panels,
    order_of,
    verbatim,
    zero_shot_line,
)
from bench.report.figures.frames import labelled_runs, zero_shot_of
from bench.report.figures.fronts import frame_accuracy
from bench.report.names import label_runs, option_value, without_deployed_twins
from bench.report.styles import SANS, Look, Style, styles_of
from bench.report.tables import CELL

_LABELS = ["method_label", "split_label", "task_label", "twin_label"]


# Inches of a line of text, and letters on one where it does not stand level.
_LINE, _LONGEST_ASLANT = 0.14, 24


def varied_options(runs: pd.DataFrame) -> list[str]:
    """Name the options of methods (``method.rank``) that differ between runs that are alike otherwise."""
    runs = _comparable(runs)
    options = sorted(column for column in map(str, runs.columns) if column.startswith("method."))
    return [option for option in options if _varying(runs, option).any()]


def sensitivity(
    runs: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
    option: str | None = None,
) -> Figure:
    """Draw accuracy after the last round over an option: a line a method where it is a number, else marks.

    Bands and bars are intervals; zero-shot is a dashed line. Numbers stand on a scale of powers of two.

    Args:
        runs: one row a run.
        ax: draw into this one; then there must be one split and shots.
        styles: of each method label, with or without the option; made from ``runs`` when absent.
        look: type and width.
        option: such as "rank" or "method.rank"; by default the first of ``varied_options``.

    Raises:
        NothingToDraw: no method ran with different values of it, all else equal.
        BadInput: the runs are of several tasks or models, or of several splits or shots for one ``ax``.
    """
    runs = _comparable(runs)
    points = sensitivity_points(runs, option=option)
    styles = styles or styles_of(runs)
    looks = _looks(runs, points, styles)
    draw = _line if _is_number(points) else _marks
    with look.drawing():
        panels = make_panels(points, ax, look)
        for axes, part in panels.parts:
            for (*_, label), group in part.groupby([*CELL, "method_label"], dropna=False, observed=True):
                draw(axes, group, looks[str(label)])
            zero_shot_line(axes, part)
        _ticks(panels, points)
        frame_accuracy(panels.axes, points)
        key = key_of(points, {**styles, **looks})
        if not _is_number(points):
            for name in looks:
                key[name].set_linestyle("")
        panels.finish(_leaf(points["option"].iloc[0]).capitalize(), "Accuracy (%)", key)
    return panels.figure


def sensitivity_points(runs: pd.DataFrame, *, option: str | None = None) -> pd.DataFrame:
    """Return the marks that ``sensitivity`` draws, with its arguments and errors.

    Returns:
        One row a task, model, split, shots, method (``method_label`` without the option) and ``value`` of
        the ``option``: its ``place`` on the axis, ``n`` seeds, ``mean`` and ``half_width`` (accuracy, 0 to 1;
        the latter missing where it is not drawn), ``zero_shot`` (missing where methods were scored on
        different test sets).
    """
    runs = _comparable(runs)
    varied = varied_options(runs)
    name = option if option is None or option.startswith("method.") else f"method.{option}"
    if name is None and not varied:
        raise NothingToDraw("no method ran with different values of an option, all else equal")
    name = name or varied[0]
    if name not in varied:
        raise NothingToDraw(f"no method ran with different values of {name}, all else equal")
    shown = runs[_varying(runs, name)]
    values = _values(shown[name])
    shown = shown.assign(method_label=_labels_without(runs, name)[shown.index], value=values)
    points = drawn_interval(shown, [*CELL, "method_label", "value"], "accuracy")
    points = points.merge(zero_shot_of(runs), on=CELL, how="left")
    points = points.assign(option=name, place=_places(points))
    return points[[*CELL, "method_label", "option", "value", "place", "n", "mean", "half_width", "zero_shot"]]


def _comparable(runs: pd.DataFrame) -> pd.DataFrame:
    return without_deployed_twins(labelled_runs(runs)).reset_index(drop=True)


def _varying(runs: pd.DataFrame, option: str) -> pd.Series:
    """Whether each run of a trained method has others that differ from it in the option alone."""
    measured = runs["accuracy"].notna() & (runs["method"] != "zero_shot")
    values = runs[option].map(option_value).where(measured).replace("", None)
    alike = [runs[column] for column in CELL] + [_bare_labels(runs, option)]
    return values.notna() & (values.groupby(alike, dropna=False, observed=True).transform("nunique") > 1)


def _bare_labels(runs: pd.DataFrame, option: str) -> pd.Series:
    known = [name for name in (option, *_LABELS) if name in runs]
    return label_runs(runs.drop(columns=known))["method_label"].astype(str)


def _labels_without(runs: pd.DataFrame, option: str) -> pd.Series:
    """The label of each run without the option, in the author's words where these follow from its own."""
    bare = _bare_labels(runs, option)
    pairs = zip(runs["method_label"], runs[option], strict=True)
    stripped = pd.Series([_strip(str(label), option, value) for label, value in pairs], index=runs.index)
    names = stripped.where(stripped.groupby(bare).transform("nunique") == 1, bare)
    order = runs["method_label"].cat.codes.groupby(names).min().sort_values(kind="stable").index
    return names.astype(pd.CategoricalDtype(list(order), ordered=True))


def _strip(label: str, option: str, value: Any) -> str:
    """Take what an option says out of the brackets of a label."""
    name, opening, inside = label.rpartition(" (")
    if not opening or not inside.endswith(")"):
        return label
    own = f"{option.rpartition('.')[2]} {option_value(value)}".replace("_", " ")
    others = ", ".join(text for text in inside[:-1].split(", ") if text != own)
    return f"{name} ({others})" if others else name


def _looks(runs: pd.DataFrame, points: pd.DataFrame, styles: Mapping[str, Style]) -> dict[str, Style]:
    """The style of each label without the option: its own if it has one, else that of its first variant."""
    names = _labels_without(runs, points["option"].iloc[0])
    first = runs["method_label"].groupby(names, observed=True).min().astype(str)
    return {label: styles.get(label, styles[first[label]]) for label in order_of(points)}


def _leaf(option: str) -> str:
    return option.rpartition(".")[2].replace("_", " ")


def _values(column: pd.Series) -> pd.Series:
    """Numbers as they are; else texts."""
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in column):
        return column.astype(float)
    texts = column.map(option_value)
    order = sorted(texts.unique(), key=lambda text: (text.count(" + "), text))
    return texts.astype(pd.CategoricalDtype(order, ordered=True))


def _is_number(points: pd.DataFrame) -> bool:
    return pd.api.types.is_numeric_dtype(points["value"])


def _on_powers(values: pd.Series) -> bool:
    return bool((values > 0).all())


def _places(points: pd.DataFrame) -> pd.Series:
    """Where values stand: powers of two at equal steps; words too, the methods a little apart."""
    if _is_number(points):
        return np.log2(points["value"]) if _on_powers(points["value"]) else points["value"]
    labels = order_of(points)
    aside = points["method_label"].astype(str).map(labels.index) - (len(labels) - 1) / 2
    return points["value"].cat.codes + 0.8 / max(len(labels), 4) * aside.astype(float)


def _line(axes: Axes, group: pd.DataFrame, style: Style) -> None:
    """Draw means joined in the order of the numbers, with their band."""
    x, mean = group["place"].to_numpy(float), 100 * group["mean"].to_numpy(float)
    half = 100 * group["half_width"].fillna(0.0).to_numpy(float)
    axes.plot(x, mean, color=style.colour, linestyle=style.line, marker=style.marker, markeredgewidth=0)
    axes.fill_between(x, mean - half, mean + half, color=style.colour, alpha=0.14, linewidth=0)


def _marks(axes: Axes, group: pd.DataFrame, style: Style) -> None:
    """Draw means with their bars: between words there is nothing that a line could show."""
    axes.errorbar(
        group["place"],
        100 * group["mean"],
        100 * group["half_width"].fillna(0.0),
        fmt=style.marker,
        color=style.colour,
        elinewidth=0.8,
        capsize=2,
    )


def _ticks(panels: Panels, points: pd.DataFrame) -> None:
    """Write the values that were run, as many as stand side by side."""
    if not _is_number(points):
        _words(panels, list(points["value"].cat.categories))
        return
    known = points.drop_duplicates("value").sort_values("value")
    places, texts = known["place"].to_list(), [f"{value:,.6g}" for value in known["value"]]
    a_step = panels.panel_width / (1.1 * (places[-1] - places[0]))
    shown = [0]
    for index in range(1, len(places)):
        needed = LETTER * (len(texts[shown[-1]]) + len(texts[index])) / 2 + 0.06
        if (places[index] - places[shown[-1]]) * a_step > needed:
            shown.append(index)
    for axes in panels.axes:
        axes.set_xticks([places[index] for index in shown], [texts[index] for index in shown])


def _words(panels: Panels, words: Sequence[str]) -> None:
    """Write each word below its marks; aslant or upright, on a taller figure, where they are too long."""
    width = panels.panel_width / len(words)
    letters = int(width / LETTER) - 1
    level = all(len(part) <= letters for word in words for part in word.split())
    texts = [verbatim(word, letters if level else _LONGEST_ASLANT) for word in words]
    for axes in panels.axes:
        axes.set_xlim(-0.5, len(words) - 0.5)
        axes.set_xticks(range(len(words)), texts)
    if level:
        return
    lines = max(text.count("\n") + 1 for text in texts)
    turned = 30 if width * math.sin(math.radians(30)) > _LINE * (lines + 0.2) else 90
    for axes in panels.axes:
        for label in axes.get_xticklabels():
            label.set(rotation=turned, ha="right", va="center" if turned == 90 else "top")
            label.set_rotation_mode("anchor")
    if panels.own:
        longest = LETTER * max(len(line) for text in texts for line in text.split("\n"))
        uneven = len(panels.parts) > panels.abreast and len(panels.parts) % panels.abreast
        rows = 2 if uneven else 1  # of panels that show their words
        height = panels.figure.get_figheight() + rows * longest * math.sin(math.radians(turned))
        panels.figure.set_figheight(height)
