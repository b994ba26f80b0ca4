"""`flora-bench history`: what many revisions measured, and at which commits it stepped."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.regress.findings import Finding, Judged
    from bench.regress.history import History


def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the history.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--add",
            metavar="SOURCE",
            help="Keep what a results folder, run.json, pytest-benchmark's JSON or a snapshot holds first; "
            "may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for figures and a page.", show_default=False)
    ] = None,
    probes: Annotated[
        list[str] | None,
        typer.Option("--probe", metavar="PATTERN", help="Only cells and probes so named; may be repeated."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only these; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say at which commits measurements stepped, by how much, and draw them."""
    from bench.regress.findings import chosen, judged, worst_first
    from bench.regress.gate import Gate
    from bench.regress.history import read_history
    from bench.report.patience import patiently

    for source in sources or []:
        _add(folder, source)
    read = read_history(folder, Gate.find())
    series = chosen(read, probes or [], metrics or [])
    found = judged(read, patiently(series, "looking for steps", len(series)))
    findings = worst_first(found)
    summary = _summary(read, found, findings)
    if as_json:
        typer.echo(json.dumps(_as_json(read, found, findings), indent=1))
    else:
        for finding in findings:
            typer.echo(_line(finding, len(read.machines) > 1))
        typer.echo(summary)
    if out is not None:
        _draw(read, found, out, summary)


def _add(folder: Path, source: Path) -> None:
    from bench.regress.history import add
    from bench.regress.measurements import read_measurements

    path = add(folder, read_measurements(source))
    _say(f"{source}: is there already" if path is None else f"{source}: kept as {path}")


def _draw(read: History, found: Sequence[Judged], out: Path, summary: str) -> None:
    from bench.regress.history_figure import write_page
    from bench.report.text import counted

    if not sys.stderr.isatty():
        _say(f"drawing {counted(len({one.series.subject for one in found}), 'figure')}")
    try:
        page = write_page(read, found, out, summary)
    except OSError as error:
        raise BadInput(
            f"--out: cannot write to {str(out)!r} ({error.strerror}); choose another folder"
        ) from error
    _say(f"page: {page}")


def _line(finding: Finding, with_machine: bool) -> str:
    series = finding.series
    machine = f"; on {series.machine}" if with_machine else ""
    what = f"{series.metric.name} of {series.subject}"
    return f"{finding.verdict}: {finding.change_text}, {what}: {finding.where_text}{machine}"


def _summary(read: History, found: Sequence[Judged], findings: Sequence[Finding]) -> str:
    """Say in a line how much there is and what was found in it."""
    from bench.regress.pairing import some
    from bench.report.text import counted

    of = Counter((finding.drifts, finding.verdict) for finding in findings)
    steps, drifts = (sum(n for (drift, _), n in of.items() if drift is kind) for kind in (False, True))
    verdicts = Counter(finding.verdict for finding in findings)
    told = [counted(steps, "step"), *([counted(drifts, "drift")] if drifts else [])]
    each = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items(), reverse=True))
    dirty = sum(revision.dirty for revision in read.revisions)
    undeclared = sorted({one.series.metric.name for one in found if not one.series.judged})
    notes = [
        f"{', '.join(told)}{f' ({each})' if each else ''}",
        *([f"{dirty} with uncommitted changes shown, not judged"] if dirty else []),
        *([f"shown, not judged, as no budget declares them: {some(undeclared)}"] if undeclared else []),
        *([] if read.repository else ["no repository here knows these commits: ordered by their times"]),
    ]
    what = f"{counted(len(read.revisions), 'revision')}, {len(found):,} series"
    kinds = counted(len(read.machines), "kind") + " of machine"
    return f"history: {what} on {kinds}: {'; '.join(notes)}"


def _as_json(read: History, found: Sequence[Judged], findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "revisions": [revision.model_dump(mode="json") for revision in read.revisions],
        "ordered_by": "git" if read.repository else "time",
        "machines": read.machines,
        "series": [
            {
                "subject": one.series.subject,
                "metric": one.series.metric.name,
                "machine": one.series.machine,
                "calibrated": one.series.calibrated,
                "judged": one.series.judged,
                "noise": one.fit.noise,
                "revisions": len(one.series.points),
                "steps": len(one.fit.steps),
                "drifts": len(one.fit.drifts),
            }
            for one in found
        ],
        "findings": [finding.to_dict() for finding in findings],
    }


def _say(line: str) -> None:
    typer.echo(f"flora-bench: {line}", err=True)
