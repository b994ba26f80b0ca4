"""What experiments left, as one page of Markdown and its figures, from their files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.perf.catalogue import EXPERIMENTS
from bench.perf.experiment import Check, Record
from bench.report.names import METHODS
from bench.report.text import ABSENT, digits, escape_markdown

SUMMARY = "summary.md"
_VERDICTS = {True: "holds", False: "**falls short**", None: "decides nothing"}


def write_summary(records: Sequence[Record], out: Path) -> Path:
    """Draw the figures that the records allow, and write the page that shows them; gives its path."""
    from bench.perf.figures import draw_all

    ordered = sorted(records, key=lambda record: (_place(record.name), record.name))
    figures = draw_all({record.name: record for record in ordered if record.figures}, out)
    parts = [
        "# Performance",
        "Made by `flora-bench perf figures` from the files of the experiments alone.",
        _environments(ordered),
        "## Targets",
        _targets(ordered),
        *(f"![{caption}]({stem}.png)\n\n{caption}" for stem, caption in figures.items()),
        *_roofline(ordered),
        "## What was measured",
        *(_details(record) for record in ordered),
    ]
    path = out / SUMMARY
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _place(name: str) -> int:
    return list(EXPERIMENTS).index(name) if name in EXPERIMENTS else len(EXPERIMENTS)


def _environments(records: Sequence[Record]) -> str:
    """Name each machine, once."""
    lines: dict[str, list[str]] = {}
    for record in records:
        there = record.environment
        gpu = f", {there['gpu']}" if there.get("gpu") else ""
        commit = str(there.get("git_commit") or "")[:12] or "unknown commit"
        changed = " with changes" if there.get("git_dirty") else ""
        torch_version = there.get("packages", {}).get("torch")
        line = (
            f"{there.get('cpu')}, {there.get('physical_cores')} cores{gpu}, Python {there.get('python')}, "
            f"torch {torch_version}, {there.get('torch_threads')} threads, {commit}{changed}"
        )
        lines.setdefault(line, []).append(record.name)
    return "\n".join(f"- {escape_markdown(line)}: {', '.join(names)}" for line, names in lines.items())


def _targets(records: Sequence[Record]) -> str:
    """One row a target; experiments without any, or that were skipped, have one too."""
    rows = [
        "| Experiment | Figure | Measured | Target | Verdict |",
        "|:---|:---|---:|---:|:---|",
    ]
    for record in records:
        for check in record.checks:
            rows.append(
                _row(record.name, _words(check.figure), digits(check.value), *_verdict(record, check))
            )
        if record.skipped:
            rows.append(_row(record.name, ABSENT, ABSENT, ABSENT, f"skipped: {record.skipped}"))
        elif not record.checks:
            rows.append(_row(record.name, ABSENT, ABSENT, ABSENT, "records only"))
    return "\n".join(rows)


def _verdict(record: Record, check: Check) -> tuple[str, str]:
    extrapolated = ", partly extrapolated" if record.extrapolated else ""
    return check.text, f"{_VERDICTS[check.holds]}{extrapolated}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def _words(figure: str) -> str:
    return figure.replace("_", " ")


def _roofline(records: Sequence[Record]) -> list[str]:
    """Every method's step against its floor, if it was measured."""
    found = [record.figures["methods"] for record in records if record.name == "roofline" and record.figures]
    if not found:
        return []
    columns = {
        "exact_megaflops_per_sample": "MFLOP a sample",
        "exact_kilobytes_per_sample": "kB a sample",
        "exact_floor_ms_per_sample": "Floor (ms a sample)",
        "exact_ms_per_sample": "Reached (ms a sample)",
        "none_megaflops_per_sample": "MFLOP a sample, none",
        "none_floor_ms_per_sample": "Floor, none (ms a sample)",
    }
    rows = [_row("Method", *columns.values()), f"|:---|{'---:|' * len(columns)}"]
    rows += [
        _row(METHODS.get(name, name), *(digits(costs[column]) for column in columns))
        for name, costs in found[0].items()
    ]
    return ["## Roofline of a training step", "\n".join(rows)]


def _details(record: Record) -> str:
    """All scalar figures of an experiment, and its notes."""
    lines = [f"### {record.name}", record.what, f"`{record.command}`"]
    if record.skipped:
        return "\n\n".join([*lines, f"Skipped: {record.skipped}."])
    figures = "\n".join(f"- {_words(name)}: {value}" for name, value in _flat(record.figures))
    notes = "\n".join(f"- {escape_markdown(note)}" for note in record.notes)
    repeats = f"{record.samples} repeat{'s' * (record.samples != 1)}"
    return "\n\n".join(filter(None, [*lines, f"{repeats}.{' Quick run.' * record.quick}", figures, notes]))


def _flat(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers and mappings of numbers, written out; tables and series are for the figures."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, int | float):
            lines.append((name, digits(value)))
        elif isinstance(value, dict) and all(isinstance(x, int | float) for x in value.values()):
            lines.append((name, ", ".join(f"{key} {digits(x)}" for key, x in value.items())))
    return lines
