"""A history to look at: a figure a cell or probe, with its steps marked, and a page that lists them all."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, StrMethodFormatter

from bench.regress.findings import Finding, Judged, value_text, worst_first
from bench.regress.history import History, Point, Revision
from bench.regress.judgement import Verdict
from bench.regress.metrics import Kind, Metric
from bench.regress.steps import Piece
from bench.report.figures import save
from bench.report.figures.canvas import HIGHEST, set_lines, verbatim
from bench.report.patience import patiently
from bench.report.styles import SANS, STYLES, Look
from bench.report.text import escape_markdown, slug

PAGE = "history.md"
FIGURES = "figures"
FORMATS = ("png", "svg")

VALUES, LEVEL = STYLES["full_finetune"].colour, "#1a1a1a"
COLOURS = {
    Verdict.WORSE: STYLES["flora"].colour,
    Verdict.BETTER: STYLES["linear_probe"].colour,
    Verdict.CHANGED: STYLES["clip_adapter"].colour,
}

_ROW, _AROUND = 1.75, 0.75  # inches of a row of panels, and around all of them
_TICK = 0.85  # inches that the hash and date of a commit take
_LEAST_SPAN = 0.1  # of a panel's height, as a share: what hardly varies is drawn nearly flat
_ABOVE = 0.45  # of the values' span, for what is written at steps
_CHARACTER = 0.065  # inches that a character of what is written at steps takes at most
_LEFT = 0.7  # inches to the left of a panel's values
_ROWS = 2  # of what is written at steps
_TITLE_CHARACTER = 0.09  # inches that a character of a figure's title takes, about
_TITLE_LINE = 0.18  # inches
_DASHES = (0, (4, 2))  # of steps; drifts are drawn through
_LINKED = re.compile(rf"\({FIGURES}/([\w-][\w.-]*\.(?:{'|'.join(FORMATS)}))\)")


@dataclass(frozen=True)
class _Unit:
    """How an axis is scaled, and what it says."""

    scale: float
    name: str


def write_page(history: History, found: Sequence[Judged], out: Path, summary: str) -> Path:
    """Write `history.md` and its figures; those of an earlier page that this one lacks are removed.

    Args:
        history: what was measured.
        found: the series to show.
        out: folder; made if need be.
        summary: the page's first line.

    Returns:
        The page.
    """
    subjects = list(dict.fromkeys(one.series.subject for one in found))
    drawn: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    earlier = (
        set(_LINKED.findall(page.read_text(encoding="utf-8", errors="replace"))) if page.exists() else set()
    )
    with TemporaryDirectory(prefix=".history-", dir=out) as made:
        for subject in patiently(subjects, "drawing", len(subjects)):
            figure = draw([one for one in found if one.series.subject == subject])
            if figure is not None:
                drawn[subject] = _stem(subject)
                save(figure, Path(made, drawn[subject]), FORMATS)
        text = "\n".join(_page(history, found, drawn, summary)) + "\n"
        Path(made, PAGE).write_text(text, encoding="utf-8", newline="\n")
        (out / FIGURES).mkdir(exist_ok=True)
        names = [f"{stem}.{ending}" for stem in drawn.values() for ending in FORMATS]
        for name in names:
            Path(made, name).replace(out / FIGURES / name)
        Path(made, PAGE).replace(page)
    for name in earlier.difference(names):
        (out / FIGURES / name).unlink(missing_ok=True)
    return page


def draw(found: Sequence[Judged], look: Look = SANS) -> Figure | None:
    """Draw the series of one subject, a panel a metric and kind of machine.

    What is exact and never changed is not drawn, nor is what is no number.

    Returns:
        The figure; None if nothing is to be drawn.
    """
    shown = [one for one in found if _is_drawn(one)]
    if not shown:
        return None
    abreast = min(len(shown), 2)
    rows = -(-len(shown) // abreast)
    height = max(1.2, min(_ROW, (HIGHEST - _AROUND) / rows))
    several = len({one.series.machine for one in shown}) > 1
    revisions = _revisions(shown)
    title = verbatim(shown[0].series.subject, int(look.page / _TITLE_CHARACTER))
    around = _AROUND + _TITLE_LINE * title.count("\n")
    with look.drawing():
        figure = Figure((look.page, rows * height + around), layout="constrained")
        grid = figure.subplots(rows, abreast, squeeze=False)
        for axes, one in zip(grid.flat, shown, strict=False):
            _panel(axes, one, revisions, look.page / abreast)
            named = [one.series.metric.title, *([one.series.machine] if several else [])]
            axes.set_title("\n".join(verbatim(x, int(88 / abreast)) for x in named), fontsize="medium")
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes in grid.flat[len(shown) - abreast : len(shown)]:
            axes.set_xlabel("Revision, in the order of commits")
        for axes in grid.flat[: len(shown) - abreast]:
            axes.tick_params(axis="x", labelbottom=False)
        figure.suptitle(title, fontsize="large", fontweight="bold")
        figure.legend(handles=_key(shown), loc="outside lower center", ncols=5)
        set_lines(figure)
    return figure


def _is_drawn(one: Judged) -> bool:
    points = one.series.points
    numbers = all(not isinstance(point.value, str) for point in points)
    return numbers and bool(points) and (one.series.metric.kind is not Kind.EXACT or bool(one.findings))


def _revisions(shown: Sequence[Judged]) -> list[Revision]:
    """Those that the panels have a value of, in order."""
    by_place = {point.place: point.revision for one in shown for point in one.series.points}
    return [revision for _, revision in sorted(by_place.items())]


def _panel(axes: Axes, one: Judged, revisions: Sequence[Revision], width: float) -> None:
    series = one.series
    unit = _unit(series.points, series.metric)
    places = {revision: place for place, revision in enumerate(revisions)}
    for points, fill in ((series.committed, VALUES), (_dirty(series.points), "white")):
        xs = [places[point.revision] for point in points]
        ys = np.array([float(point.value) for point in points]) * unit.scale
        axes.plot(xs, ys, "o", color=VALUES, markersize=3.2, markeredgewidth=0.7, markerfacecolor=fill)
        for x, point in zip(xs, points, strict=True):
            if point.low is not None and point.high is not None:
                ends = [point.low * unit.scale, point.high * unit.scale]
                axes.plot([x, x], ends, color=VALUES, linewidth=0.7, alpha=0.4, zorder=1.5)
    own = [places[point.revision] for point in series.committed]
    for piece in _levels(one):
        ends = [own[piece.start] - 0.4, own[piece.stop - 1] + 0.4]
        axes.plot(ends, [piece.level * unit.scale] * 2, color=LEVEL, linewidth=1.1)
    marks = _marks(one.findings, places, width)
    _frame(axes, one, unit, len(revisions), max((mark.row + 1 for mark in marks), default=0))
    _draw_marks(axes, marks, unit)
    _name_revisions(axes, revisions, width)
    calibrated = ", calibrated" if series.calibrated else ""
    quantity = {"s": "Time", "B": "Size", "FLOP": "Operations"}.get(series.metric.unit, "")
    if not quantity:
        quantity = {Kind.STATISTICAL: "Accuracy", Kind.EXACT: "Count"}.get(series.metric.kind, "Value")
    axes.set_ylabel(f"{quantity}{calibrated}{f' ({unit.name})' if unit.name else ''}")


def _levels(one: Judged) -> list[Piece]:
    """Leave out the stairs of drifts."""
    drifts = one.fit.drifts
    return [
        piece
        for piece in one.fit.pieces
        if not any(drift.start <= piece.start and piece.stop <= drift.stop for drift in drifts)
    ]


def _dirty(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.revision.dirty]


def _unit(points: Sequence[Point], metric: Metric) -> _Unit:
    """Choose the prefix in which the values have one to three digits before the point."""
    if metric.kind is Kind.STATISTICAL:
        return _Unit(100, "%")
    if not metric.unit:
        return _Unit(1, "")
    typical = float(np.median([abs(float(point.value)) for point in points]))
    prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] if metric.unit != "s" else []
    prefixes += [(1, ""), *([(1e-3, "m"), (1e-6, "µ"), (1e-9, "n")] if metric.unit == "s" else [])]
    size, prefix = next((x for x in prefixes if typical >= x[0]), prefixes[-1] if typical else (1, ""))
    return _Unit(1 / size, f"{prefix}{metric.unit}")


def _frame(axes: Axes, one: Judged, unit: _Unit, n: int, written: int) -> None:
    """Set the axes' ranges: all values and quartiles, and room above for rows of what is written."""
    known = [x for point in one.series.points for x in (point.value, point.low, point.high) if x is not None]
    values = np.array([float(x) for x in known]) * unit.scale
    low, high = float(values.min()), float(values.max())
    exact = one.series.metric.kind is Kind.EXACT
    short = 0.0 if exact and high > low else _LEAST_SPAN * abs(low + high) / 2 - (high - low)
    low, high = (low - short / 2, high + short / 2) if short > 0 else (low, high)
    span = (high - low) or 1.0
    axes.set_ylim(low - 0.08 * span, high + max(0.08, _ABOVE * written) * span)
    axes.set_xlim(-0.02 * n - 0.6, n - 1 + 0.02 * n + 0.6)
    counts = not one.series.metric.unit and exact
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=counts))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.12g}" if exact else "{x:,.4g}"))


@dataclass(frozen=True)
class _Mark:
    """What is drawn of a finding: where, and its text, to which side, in which row (-1 if none has room)."""

    finding: Finding
    good: int
    bad: int
    x: float
    text: str
    to_left: bool
    row: int


def _marks(findings: Sequence[Finding], places: Mapping[Revision, int], width: float) -> list[_Mark]:
    marks: list[_Mark] = []
    n, taken = len(places), [-math.inf] * _ROWS
    for finding in sorted(findings, key=lambda x: (places[x.likeliest], places[x.good])):
        good, bad, likeliest = (places[x] for x in (finding.good, finding.bad, finding.likeliest))
        x = (good + bad) / 2 if finding.drifts else likeliest - 0.5
        text = _mark_text(finding)
        long = n * _CHARACTER * max(map(len, text.split("\n"))) / (width - _LEFT)
        to_left = x + long > n  # what is written stays within the panel
        start = x - long if to_left else x
        row = next((row for row in range(_ROWS) if taken[row] <= start), -1)
        if row >= 0:
            taken[row] = start + long
        marks.append(_Mark(finding, good, bad, x, text, to_left, row))
    return marks


def _draw_marks(axes: Axes, marks: Sequence[_Mark], unit: _Unit) -> None:
    """Mark steps by a line before their revision, drifts by a slope, both with what became of them.

    Where a step may also be elsewhere, that range is shaded.
    """
    for mark in marks:
        finding, colour = mark.finding, COLOURS[mark.finding.verdict]
        if finding.drifts:
            ends = [float(finding.before) * unit.scale, float(finding.after) * unit.scale]
            axes.plot([mark.good, mark.bad], ends, color=colour, linewidth=1.6)
        else:
            if mark.bad > mark.good + 1:
                axes.axvspan(mark.good, mark.bad, color=colour, alpha=0.12, linewidth=0, zorder=0.5)
            axes.axvline(mark.x, color=colour, linewidth=0.9, linestyle=_DASHES, zorder=1.2)
        if mark.row < 0:
            continue
        axes.annotate(
            mark.text,
            (mark.x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if mark.to_left else 3, -2 - 22 * mark.row),
            textcoords="offset points",
            ha="right" if mark.to_left else "left",
            va="top",
            fontsize="small",
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the line of another step
        )


def _mark_text(finding: Finding) -> str:
    metric = finding.series.metric
    if metric.kind is Kind.STATISTICAL:
        amount = f"{100 * (float(finding.after) - float(finding.before)):+.1f} points"
    elif finding.change is None:
        amount = f"{value_text(finding.before, metric)} to {value_text(finding.after, metric)}"
    else:
        amount = f"{100 * finding.change:+.3g} %"
    return f"{amount.replace('-', '−')}\n{'drift' if finding.drifts else finding.likeliest.commit[:7]}"


def _name_revisions(axes: Axes, revisions: Sequence[Revision], width: float) -> None:
    """Name as many revisions as fit below a panel by their commit and day."""
    most = max(2, int((width - _LEFT) / _TICK))
    n = len(revisions)
    shown = sorted({round(x) for x in np.linspace(0, n - 1, min(most, n))})
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.set_xticklabels([f"{revisions[x].name}\n{revisions[x].day}" for x in shown], fontsize="small")
    axes.grid(axis="x", visible=False)


def _key(shown: Sequence[Judged]) -> list[Line2D]:
    dot: dict[str, Any] = {"color": VALUES, "marker": "o", "markersize": 3.2, "linestyle": ""}
    with_quartiles = any(point.low is not None for one in shown for point in one.series.points)
    key = [Line2D([], [], label="median, with quartiles" if with_quartiles else "measured", **dot)]
    if any(_dirty(one.series.points) for one in shown):
        key.append(Line2D([], [], label="with uncommitted changes", markerfacecolor="white", **dot))
    if any(_levels(one) for one in shown):
        key.append(Line2D([], [], color=LEVEL, linewidth=1.1, label="level"))
    seen = {(finding.verdict, finding.drifts) for one in shown for finding in one.findings}
    for verdict, colour in COLOURS.items():
        if (verdict, False) in seen:
            key.append(Line2D([], [], color=colour, linewidth=0.9, linestyle=_DASHES, label=verdict.value))
        if (verdict, True) in seen:
            key.append(Line2D([], [], color=colour, linewidth=1.6, label=f"{verdict.value}, drifts"))
    return key


def _stem(subject: str) -> str:
    """Name a subject's files; what is cut off or replaced tells no two apart, so a checksum does."""
    return f"{slug(subject)[:80]}-{hashlib.sha256(subject.encode()).hexdigest()[:6]}"


# --- the page ------------------------------------------------------------------------------------------


def _page(history: History, found: Sequence[Judged], drawn: Mapping[str, str], summary: str) -> Iterator[str]:
    """Give the lines of the page."""
    first, last = history.revisions[0], history.revisions[-1]
    yield "# History"
    yield f"\n{escape_markdown(summary)}"
    span = f"From {first.name} ({first.day}) to {last.name} ({last.day}), in the order of"
    yield f"\n{span} {'git' if history.repository else 'the times of their commits'}."
    yield f"Machines: {escape_markdown('; '.join(history.machines))}."
    findings = worst_first(found)
    if findings:
        yield "\nIn the figures, a step lies at its dashed line, or anywhere in the range shaded around it."
        yield "What it did is written there where there is room; here it always is."
        yield "\n## Steps\n"
        yield "| Verdict | What | Metric | Change | Likeliest | Look | Machine |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        yield from map(_row, findings)
    yield "\n## Series"
    for subject in dict.fromkeys(one.series.subject for one in found):
        yield f"\n### {escape_markdown(subject)}\n"
        if subject in drawn:
            yield f"![{escape_markdown(subject)}]({FIGURES}/{drawn[subject]}.png)"
            yield f"\n[As SVG]({FIGURES}/{drawn[subject]}.svg)"
        plain = sorted({one.series.metric.title for one in found if _is_plain(one, subject)})
        if plain:
            names = escape_markdown(", ".join(plain))
            yield f"\nNot judged, as no budget declares how exact they are: {names}."
        constant = [one for one in found if one.series.subject == subject and _is_constant(one)]
        if constant:
            yield f"\nAlways the same: {', '.join(dict.fromkeys(map(_constant_text, constant)))}."


def _row(finding: Finding) -> str:
    first = finding.likeliest
    cells = [
        f"**{finding.verdict}**" + (", drifts" if finding.drifts else ""),
        escape_markdown(finding.series.subject),
        escape_markdown(finding.series.metric.title),
        escape_markdown(finding.change_text),
        escape_markdown(f"{first.commit[:7]} {first.day} {first.subject}"),
        f"`git log {finding.range}`" + (escape_markdown(f"; {finding.software}") if finding.software else ""),
        escape_markdown(finding.series.machine),
    ]
    return f"| {' | '.join(cells)} |"


def _is_plain(one: Judged, subject: str) -> bool:
    return one.series.subject == subject and not one.series.judged


def _is_constant(one: Judged) -> bool:
    return one.series.metric.kind is Kind.EXACT and not one.findings and bool(one.series.committed)


def _constant_text(one: Judged) -> str:
    value = value_text(one.series.committed[0].value, one.series.metric)
    return f"{escape_markdown(one.series.metric.title)} {escape_markdown(value)}"
