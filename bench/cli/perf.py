"""`flora-bench perf`: experiments that show what acceleration is worth, and figures of what they left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.perf.experiment import Record

RESULTS = Path("results/reference/performance")
# Apart from those that decide something.
QUICK_RESULTS = Path("results/performance-quick")
REPORTS = Path("reports/reference/performance")
EXIT_SHORT, EXIT_INTERRUPTED = 1, 130


def perf(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...|list|figures]", help="Experiments; all of them if none is named."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder to write to; if not given, {RESULTS}, {QUICK_RESULTS} or, for figures, {REPORTS}."
        ),
    ] = None,
    source: Annotated[Path, typer.Option("--from", help="For figures: folder of experiments.")] = RESULTS,
    device: Annotated[str, typer.Option(help="Where the work runs: cpu, cuda or auto.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, to see that all of it works; decides nothing.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Extrapolate nothing; takes hours.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the experiments as JSON.")] = False,
) -> None:
    """Run experiments, each in a process of its own, and hold them against their targets."""
    match names or []:
        case ["list"]:
            _list(as_json)
        case ["figures"]:
            _figures(source, out or REPORTS)
        case wanted:
            _run(wanted, out or (QUICK_RESULTS if quick else RESULTS), device, quick, full, as_json)


def _list(as_json: bool) -> None:
    from bench.perf.catalogue import EXPERIMENTS

    if as_json:
        entries = {e.name: {"what": e.what, "minutes": e.minutes} for e in EXPERIMENTS.values()}
        typer.echo(json.dumps(entries, indent=1))
        return
    width = max(map(len, EXPERIMENTS))
    for experiment in EXPERIMENTS.values():
        typer.echo(f"{experiment.name:<{width}}  {experiment.what} About {experiment.minutes:g} min.")
        for target in experiment.targets:
            typer.echo(f"{'':<{width}}  target: {target.figure} {target.text}")


def _figures(source: Path, out: Path) -> None:
    from bench.perf.experiment import read_all
    from bench.perf.summary import write_summary
    from bench.store import check_writable

    records = read_all(source)
    check_writable(out)
    typer.echo(f"summary: {write_summary(records, out)}")


def _run(names: Sequence[str], out: Path, device: str, quick: bool, full: bool, as_json: bool) -> None:
    from bench.device import resolve
    from bench.perf.apart import ExperimentFailed, run_apart
    from bench.perf.catalogue import chosen
    from bench.perf.experiment import Setting
    from bench.store import check_writable

    experiments = chosen(names)
    # what needs torch takes seconds, and the experiments import it in processes of their own
    setting = Setting(quick, full, device if device == "cpu" else resolve(device))
    check_writable(out)
    records: list[Record] = []
    failed = 0
    for number, experiment in enumerate(experiments, start=1):
        expected = "seconds" if quick else f"about {experiment.minutes:g} min"
        typer.echo(f"[{number}/{len(experiments)}] {experiment.name}: {expected}", err=True)
        try:
            records.append(run_apart(experiment, setting, out))
        except ExperimentFailed as error:
            failed += 1
            typer.echo(f"flora-bench: {error}", err=True)
        except KeyboardInterrupt:
            typer.echo(f"interrupted: what finished is in {out}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        else:
            if not as_json:
                typer.echo(_in_a_line(records[-1]))
    if as_json:
        typer.echo(
            json.dumps([record.model_dump(mode="json", by_alias=True) for record in records], indent=1)
        )
    raise typer.Exit(EXIT_SHORT if failed or any(record.holds is False for record in records) else 0)


def _in_a_line(record: Record) -> str:
    if record.skipped:
        return f"{record.name}: skipped, {record.skipped}"
    verdict = {True: "holds", False: "FALLS SHORT", None: "decides nothing"}
    checks = [f"{check.figure} {check.value:.4g} ({check.text})" for check in record.checks]
    return f"{record.name}: {verdict[record.holds]}{': ' if checks else ''}{'; '.join(checks)}"
