"""`flora-bench variance`: how much of the spread over seeds each random stream makes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.cache import CacheFolder, NoCache, opened
from bench.cli.confirm import Yes, confirmed
from bench.cli.run import EXIT_INTERRUPTED, Overrides, Source, exit_code

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.execute import Outcome
    from bench.variance import Spread, Study
    from flora.cache import FeatureCache

_NAMES = {
    "split": "Split",
    "participation": "Participation",
    "init": "Initialisation",
    "order": "Batch order",
    "together": "All together",
}


def variance(
    source: Source = "quick",
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each stream.")] = 5,
    results: Annotated[Path, typer.Option(help="Folder the runs are kept in.")] = Path("results/variance"),
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the spreads as JSON.")] = False,
) -> None:
    """Vary each random stream alone, and all together, and print the spread of accuracy due to each."""
    from bench.matrix import Matrix
    from bench.variance import spreads, studies, to_run

    kept = opened(cache, no_cache)
    made = studies(confirmed(Matrix.read(source, overrides or []), yes).cells(), seeds)
    outcomes = _run(to_run(made), results, kept)
    summaries = {outcome.config.hash: outcome.summary for outcome in outcomes if outcome.summary}
    accuracies = {key: float(summary["accuracy"]) for key, summary in summaries.items()}
    measured = [(study, spreads(study, accuracies)) for study in made]
    if as_json:
        typer.echo(json.dumps([_record(study, found) for study, found in measured], indent=1))
    else:
        _print(measured, summaries)
    raise typer.Exit(exit_code(outcomes))


def _run(cells: Sequence[RunConfig], results: Path, cache: FeatureCache | None) -> list[Outcome]:
    """Run the cells that have no result yet; say which have none in the end."""
    from bench.cli.progress import progress
    from bench.config import label
    from bench.execute import run_matrix

    outcomes: list[Outcome] = []
    try:
        with progress(sys.stderr) as watcher:
            for outcome in run_matrix(cells, results, watcher=watcher, cache=cache):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        finished = sum(bool(outcome.summary) for outcome in outcomes)
        typer.echo(
            f"interrupted: {finished} of {len(cells)} cells are kept in {results}; "
            "give the same command again to go on",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if without := [outcome for outcome in outcomes if not outcome.summary]:
        first = f"{label(without[0].config)}: {without[0].reason}"
        typer.echo(f"flora-bench: {len(without)} of {len(outcomes)} cells have no result; {first}", err=True)
    return outcomes


def _record(study: Study, measured: Sequence[Spread]) -> dict[str, Any]:
    from bench.variance import sum_of_variances

    streams = {
        spread.stream: {
            "seeds": spread.n,
            "mean": _finite(spread.mean),
            "standard_deviation": _finite(spread.deviation),
            "low": _finite(spread.low),
            "high": _finite(spread.high),
            "variance": _finite(spread.variance),
            "can_matter": spread.matters,
            "config_hashes": [cell.hash for cell in study.cells[spread.stream]],
        }
        for spread in measured
    }
    return {
        "cell": _cell(study),
        "method": study.base.method.name,
        "base_seeds": study.base.seed.model_dump(),
        "streams": streams,
        "sum_of_variances": _finite(sum_of_variances(measured)),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(study: Study) -> str:
    """Name a cell without its seed."""
    from bench.config import label

    return label(study.base).rpartition(" · ")[0]


def _print(
    measured: Sequence[tuple[Study, list[Spread]]], summaries: Mapping[str, Mapping[str, Any]]
) -> None:
    from rich.console import Console

    console = Console()
    for study, found in measured:
        _print_one(console, study, found, summaries)
    console.print(
        "Mean and standard deviation (points) of the accuracy after the last round, over the seeds of one "
        "stream, the others at their base, with the deviation's chi-square interval (of normal draws), and "
        "its square. A stream that cannot matter (nothing trains, or all clients take part) is not run and "
        "adds nothing. The sum of the four variances need not be the variance of all together: streams may "
        "work on one another, and each was varied at one value of the others.",
        style="dim",
        highlight=False,
    )


def _print_one(
    console: Any, study: Study, found: Sequence[Spread], summaries: Mapping[str, Mapping[str, Any]]
) -> None:
    from rich import box
    from rich.table import Table

    from bench.report.tables import BELOW
    from bench.report.text import ABSENT
    from bench.variance import sum_of_variances

    table = Table(box=box.SIMPLE, title=_cell(study), title_justify="left", title_style="bold")
    table.add_column("What varies")
    for heading in ("Seeds", "Mean (%)", "Deviation", "95 % interval", "Variance"):
        table.add_column(heading, justify="right")
    for spread in found:
        if not spread.matters:
            table.add_row(_NAMES[spread.stream], ABSENT, ABSENT, f"{ABSENT}, cannot matter", ABSENT, ABSENT)
            continue
        zero_shot = _zero_shot([cell.hash for cell in study.cells[spread.stream]], summaries)
        mark = f" {BELOW}" if round(100 * spread.mean, 1) < round(100 * zero_shot, 1) else ""
        table.add_row(
            _NAMES[spread.stream],
            str(spread.n),
            ABSENT if math.isnan(spread.mean) else f"{100 * spread.mean:.1f}{mark}",
            _points(100 * spread.deviation),
            _interval(spread),
            _points(1e4 * spread.variance),
        )
    table.add_row("Sum of the four", "", "", "", "", _points(1e4 * sum_of_variances(found)))
    console.print(table)


def _zero_shot(hashes: Sequence[str], summaries: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean zero-shot accuracy of runs; NaN where none has one."""
    known = [
        value
        for key in hashes
        if key in summaries and (value := summaries[key].get("zero_shot_accuracy")) is not None
    ]
    return sum(known) / len(known) if known else math.nan


def _interval(spread: Spread) -> str:
    from bench.report.text import ABSENT

    if math.isnan(spread.deviation):
        return ABSENT
    return f"{100 * spread.low:.2f} to {100 * spread.high:.2f}"


def _points(value: float) -> str:
    from bench.report.text import ABSENT

    return ABSENT if math.isnan(value) else f"{value:.2f}"
