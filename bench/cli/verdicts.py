"""How a comparison is shown: lines for a terminal, Markdown for a pull request, JSON for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import typer

from bench.regress.calibrated import CALIBRATED
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.metrics import Kind, Metric

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_ROWS = 20
"""Of a comparison a terminal and a comment show so many rows, the worst; the others are counted."""

FOLDED_CHARACTERS = 40_000
"""Of the rows in a comment's folded part; GitHub takes 65,536 of a whole comment."""

_FOLDED_NAMES = 20
_NAMED_AT_MOST = 3
_WIDE = 10_000
_FINGERPRINT = 12
_TOLD_SHARE = 1e-5  # of less than that the difference alone is told
_PROBE = "::"  # in the full name of every test, and in no cell's
_STYLES = {Verdict.ACCEPTED: "yellow", Verdict.UNSURE: "yellow", Verdict.BETTER: "green"}
_QUIET = (Verdict.SAME, Verdict.UNJUDGED)


@dataclass(frozen=True)
class Row:
    """Judgements that say the same: of several cells or probes, or of several metrics of these.

    Attributes:
        first: of them.
        titles: of the metrics.
        subjects: the cells or probes.
    """

    first: Judgement
    titles: tuple[str, ...]
    subjects: tuple[str, ...]

    @property
    def metrics(self) -> str:
        """Name the metrics."""
        return "; ".join(self.titles)


def show(
    comparison: Comparison,
    *,
    everything: bool = False,
    as_json: bool = False,
    as_markdown: bool = False,
    complete: bool = False,
) -> None:
    """Print a comparison.

    Args:
        comparison: what to print.
        everything: also what is the same, and what was not judged, one by one.
        as_json: as JSON, which has everything.
        as_markdown: as a comment, likewise.
        complete: it fails, too, where NEW lacks what BASE has.
    """
    if as_json:
        typer.echo(json.dumps(to_dict(comparison, complete=complete), indent=1))
    elif as_markdown:
        typer.echo(to_markdown(comparison, complete=complete))
    else:
        _print(comparison, everything, complete)


def fails(comparison: Comparison, *, complete: bool = False) -> bool:
    """Whether a gate stops for it: something got worse, or, if all is asked for, is not there any more."""
    return comparison.fails or (complete and bool(comparison.only_base))


def judged(comparison: Comparison) -> int:
    """How many metrics could be compared."""
    return len(comparison.judgements) - comparison.count(Verdict.UNJUDGED)


def verdict_line(comparison: Comparison, *, complete: bool = False) -> str:
    """Say in one line what became of it all, and what NEW lacks, which fails if all is asked for."""
    failing = [x for x in comparison.judgements if x.verdict.fails]
    compared = judged(comparison)
    if failing:
        said = f"worse: {_counted(len(failing), 'metric')} of {_places(failing)} (of {compared:,} compared)"
    elif compared:
        said = f"none worse (of {_counted(compared, 'metric')} compared)"
    else:
        said = f"nothing could be judged (of {_counted(len(comparison.judgements), 'metric')})"
    kinds = (Verdict.EXPIRED, Verdict.ACCEPTED, Verdict.UNSURE, Verdict.BETTER)
    said += "".join(f"; {n} {kind}" for kind in kinds if (n := comparison.count(kind)))
    if comparison.only_base:
        said += f"; {len(comparison.only_base):,} only in BASE" + (", which fails" if complete else "")
    return said


def to_dict(comparison: Comparison, *, complete: bool = False) -> dict[str, Any]:
    """Give a comparison as JSON knows it."""
    return {
        "base": comparison.base,
        "new": comparison.new,
        "fails": fails(comparison, complete=complete),
        "verdict": verdict_line(comparison, complete=complete),
        "counts": {verdict: comparison.count(verdict) for verdict in Verdict},
        "judgements": [judgement.to_dict() for judgement in comparison.worst_first()],
        "only_base": list(comparison.only_base),
        "only_new": list(comparison.only_new),
        "caveats": list(comparison.caveats),
    }


def rows_of(judgements: Iterable[Judgement]) -> list[Row]:
    """Put judgements that say the same into one row, in the order of the first of each."""
    by_values: dict[Any, list[Judgement]] = {}
    for x in judgements:
        by_values.setdefault((x.verdict, x.metric, x.base, x.new, x.note), []).append(x)
    by_subjects: dict[Any, list[list[Judgement]]] = {}
    for (verdict, metric, base, new, note), alike in by_values.items():
        subjects = tuple(x.subject for x in alike)
        by_subjects.setdefault((verdict, metric.unit, base, new, note, subjects), []).append(alike)
    return [
        Row(groups[0][0], tuple(group[0].metric.title for group in groups), key[-1])
        for key, groups in by_subjects.items()
    ]


# --- terminal ------------------------------------------------------------------------------------------


def _print(comparison: Comparison, everything: bool, complete: bool) -> None:
    """Print lines: on a terminal the worst in its width, elsewhere all of them, a row on a line."""
    on_terminal = sys.stdout.isatty()
    judgements = comparison.worst_first()
    rows = rows_of(judgements if everything else (x for x in judgements if x.verdict not in _QUIET))
    shown = rows[:SHOWN_ROWS] if on_terminal and not everything else rows
    most = None if everything or not on_terminal else _NAMED_AT_MOST
    typer.echo(_line(f"{comparison.base} -> {comparison.new}"))
    if shown:
        _print_rows(shown, most, on_terminal)
    if len(shown) < len(rows):
        typer.echo(f"and {len(rows) - len(shown)} more such rows; --all shows them")
    notes = (f"note: {caveat}" for caveat in comparison.caveats)
    for line in [*([] if everything else _quiet(comparison)), *_alone(comparison, most), *notes]:
        typer.echo(_line(line))
    typer.echo(verdict_line(comparison, complete=complete))


def _print_rows(rows: Sequence[Row], most: int | None, on_terminal: bool) -> None:
    from rich.console import Console

    if on_terminal:
        Console().print(_table(rows, most, stacked=True))
        return
    console = Console(width=_WIDE)
    with console.capture() as captured:
        console.print(_table(rows, most, stacked=False))
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def _table(rows: Sequence[Row], most: int | None, *, stacked: bool) -> Table:
    """Put rows into a table; where and why stand below what changed, or beside it."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for row in rows:
        judgement = row.first
        style = "bold red" if judgement.verdict.fails else _STYLES.get(judgement.verdict, "")
        where = named([_line(x) for x in row.subjects], most, "\n" if stacked else "; ")
        told = [_line(values_text(judgement)), where, _line(judgement.note)]
        cells = ["\n".join(filter(None, told))] if stacked else told
        table.add_row(Text(judgement.verdict, style), Text(_line(row.metrics)), *map(Text, cells))
    return table


def _line(text: str) -> str:
    """Put text on a line, and nothing in it that a terminal would do: names are others' to choose."""
    return "".join(c if c.isprintable() else " " for c in text)


def _quiet(comparison: Comparison) -> Iterator[str]:
    """Sum up what is the same, and what was not judged, by why."""
    same = [x for x in comparison.judgements if x.verdict is Verdict.SAME]
    moved = sum(x.metric.kind is Kind.EXACT and x.base != x.new for x in same)
    if same:
        yield f"the same: {len(same):,}" + (f" ({moved:,} but for what a budget allows)" if moved else "")
    why: dict[str, int] = {}
    for x in comparison.judgements:
        if x.verdict is Verdict.UNJUDGED:
            why[x.note] = why.get(x.note, 0) + 1
    for note, count in why.items():
        yield f"not judged: {count:,} ({note})"


def _alone(comparison: Comparison, most: int | None) -> Iterator[str]:
    for side, names in (("BASE", comparison.only_base), ("NEW", comparison.only_new)):
        if names:
            yield f"only in {side}: {len(names):,}: {named(names, most)}"


def named(names: Sequence[str], most: int | None, between: str = "; ") -> str:
    """Name the first few, or all, and count the others."""
    more = 0 if most is None else max(len(names) - most, 0)
    return between.join([*names[:most], *([f"and {more:,} more"] if more else [])])


# --- Markdown ------------------------------------------------------------------------------------------


def to_markdown(comparison: Comparison, *, complete: bool = False) -> str:
    """Give a comment for a pull request: the verdict, a table of what changed, all else folded."""
    from bench.report.text import escape_markdown

    judgements = comparison.worst_first()
    rows = rows_of(x for x in judgements if x.verdict not in _QUIET)
    mark = "❌" if fails(comparison, complete=complete) else "✅"
    parts = [f"{mark} **{escape_markdown(verdict_line(comparison, complete=complete))}**"]
    if rows:
        parts.append("\n".join([*_HEAD, *_markdown_rows(rows[:SHOWN_ROWS], _NAMED_AT_MOST)]))
    if len(rows) > SHOWN_ROWS:
        parts.append(f"{len(rows) - SHOWN_ROWS:,} more such rows are below.")
    parts += [escape_markdown(line) for line in _alone(comparison, _NAMED_AT_MOST)]
    quiet = rows_of(x for x in judgements if x.verdict in _QUIET)
    return "\n\n".join([*parts, _folded(comparison, [*rows[SHOWN_ROWS:], *quiet])])


def _folded(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Give what a reader need not see at once, as much of it as there is room for."""
    from bench.report.text import escape_markdown

    told = [*_quiet(comparison), *comparison.caveats, *_alone(comparison, _FOLDED_NAMES)]
    lines = _markdown_rows(rows, _FOLDED_NAMES)
    ends = list(accumulate(len(line) + 1 for line in lines))
    kept = [line for line, end in zip(lines, ends, strict=True) if end <= FOLDED_CHARACTERS]
    left_out = len(lines) - len(kept)
    parts = [
        "<details><summary>All else that was compared</summary>",
        f"{escape_markdown(comparison.base)} → {escape_markdown(comparison.new)}",
        "\n".join(f"- {escape_markdown(line)}" for line in told),
        "\n".join([*_HEAD, *kept]) if kept else "",
        f"{left_out:,} more rows are left out; --json has them." if left_out else "",
        "</details>",
    ]
    return "\n\n".join(filter(None, parts))


_HEAD = ("| | Metric | BASE → NEW | Where | |", "|---|---|---|---|---|")


def _markdown_rows(rows: Sequence[Row], most: int) -> list[str]:
    from bench.report.text import escape_markdown

    lines = []
    for row in rows:
        verdict = f"**{row.first.verdict}**" if row.first.verdict.fails else str(row.first.verdict)
        values = values_text(row.first).replace(" -> ", " → ")
        told = (row.metrics, values, named(row.subjects, most), row.first.note)
        lines.append(f"| {' | '.join([verdict, *map(escape_markdown, told)])} |")
    return lines


# --- values --------------------------------------------------------------------------------------------


def values_text(judgement: Judgement) -> str:
    """Write what was and what is, as exactly as it takes to tell the two apart, and the change."""
    base, new, metric = judgement.base, judgement.new, judgement.metric
    if base is None and new is None:
        return ""
    texts = [_value_text(metric, value) for value in (base, new)]
    if base != new and texts[0] == texts[1]:
        texts = [_value_text(metric, value, exactly=True) for value in (base, new)]
    change = _change_text(judgement)
    if base == new and not judgement.change:
        return texts[0]
    return f"{texts[0]} -> {texts[1]}" + (f" ({change})" if change else "")


def _value_text(metric: Metric, value: float | str | None, exactly: bool = False) -> str:
    from bench.report.text import ABSENT, bytes_text, digits

    if value is None:
        return ABSENT
    if isinstance(value, str):
        return value if exactly or len(value) <= _FINGERPRINT else f"{value[:_FINGERPRINT]}…"
    if metric.kind is Kind.STATISTICAL:
        return f"{100 * value:.{6 if exactly else 2}f} %"
    if exactly or (metric.unit == "" and value == int(value)):
        return f"{value:,.15g} {metric.unit}".strip()
    written = {"B": bytes_text, "FLOP": _operations_text, "s": _seconds_text}
    return written.get(metric.unit, lambda x: f"{digits(x)} {metric.unit}".strip())(value)


def _operations_text(value: float) -> str:
    from bench.report.text import operations_text

    number, _, prefix = operations_text(value).partition(" ")
    return f"{number} {prefix}FLOP"


def _seconds_text(value: float) -> str:
    from bench.report.text import digits, duration_text

    for unit, many in (("µs", 1e6), ("ms", 1e3)):
        if 0 < value * many < 1000:
            return f"{digits(value * many)} {unit}"
    return duration_text(value)


def _change_text(judgement: Judgement) -> str:
    """Write by how much a figure changed: of an exact one in its unit, of others as a share."""
    base, new, metric = judgement.base, judgement.new, judgement.metric
    if isinstance(base, str) or isinstance(new, str) or base is None or new is None:
        return ""
    if metric.kind in (Kind.ROUNDING, Kind.STATISTICAL):  # which the note says
        return ""
    share = "" if judgement.change is None else _share_text(judgement.change)
    if judgement.note.startswith(CALIBRATED):  # which may go up where the seconds go down
        return f"in units of the kernel set {share}"
    if judgement.interval is not None:
        share += f", {_share_text(judgement.interval[0])} to {_share_text(judgement.interval[1])}"
    if metric.kind is not Kind.EXACT:
        return share
    difference = new - base
    by = f"{'+' if difference > 0 else '-'}{_value_text(metric, abs(difference))}"
    return by if abs(judgement.change or 0.0) < _TOLD_SHARE else f"{by}, {share}"


def _share_text(share: float) -> str:
    if abs(share) >= 10:
        return f"{1 + share:,.3g} times"
    return f"{100 * share:+.2g} %" if abs(share) < 0.1 else f"{100 * share:+.0f} %"


def _places(judgements: Iterable[Judgement]) -> str:
    """Count the cells and probes that judgements are of."""
    subjects = {x.subject for x in judgements}
    probes = sum(_PROBE in subject for subject in subjects)
    counted = [(len(subjects) - probes, "cell"), (probes, "probe")]
    return " and ".join(_counted(n, noun) for n, noun in counted if n)


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
