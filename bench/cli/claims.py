"""`flora-bench claims`: the paper's headline claims beside what is measured here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.cache import CacheFolder, NoCache, opened
from bench.cli.run import EXIT_INTERRUPTED
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

    from bench.claims import Finding
    from bench.config import RunConfig
    from bench.execute import Outcome
    from flora.cache import FeatureCache

EXIT_NOT_ALL_HOLD = 1


def claims(
    device: Annotated[str, typer.Option(help="Where to measure: auto, cpu, cuda or cuda:N.")] = "auto",
    results: Annotated[Path, typer.Option(help="Folder the runs are kept in.")] = Path("results/claims"),
    out: Annotated[
        Path | None, typer.Option(help="Folder that gets claims.json and claims.md.", show_default=False)
    ] = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Run what the paper's claims are checked with, unless it has a result, and print a verdict on each."""
    from bench.claims import ACCURACY_CELLS, COST_CELLS, cells, findings, to_markdown
    from bench.store import check_writable, load_results

    kept = opened(cache, no_cache)
    if out is not None:
        check_writable(out, "--out")
    parts = [cells(part, device) for part in (COST_CELLS, ACCURACY_CELLS)]
    frames = [load_results(paths) for paths in _run(parts, results, kept)]
    found = findings(*frames)
    where = _environment(frames[0])
    if out is not None:
        content = {"measured_on": where, "claims": [finding.to_dict() for finding in found]}
        (out / "claims.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (out / "claims.md").write_text(to_markdown(found, where), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in found], indent=1))
    else:
        _print(found)
    wanting = any(finding.verdict in ("holds partly", "does not hold") for finding in found)
    raise typer.Exit(EXIT_NOT_ALL_HOLD if wanting else 0)


def _run(parts: Sequence[Sequence[RunConfig]], results: Path, cache: FeatureCache | None) -> list[list[Path]]:
    """Run the cells that have no result, each in a process of its own so that no peak is another's.

    Raises:
        BadInput: one of them has no result in the end.
    """
    from bench.cli.progress import progress
    from bench.execute import run_matrix

    total = sum(map(len, parts))
    typer.echo(f"flora-bench: {_left(parts, results)}", err=True)
    outcomes: list[list[Outcome]] = []
    try:
        for part in parts:
            outcomes.append([])
            with progress(sys.stderr) as watcher:
                for outcome in run_matrix(part, results, watcher=watcher, cache=cache, isolate=True):
                    outcomes[-1].append(outcome)
            for outcome in outcomes[-1]:
                if not outcome.summary:
                    raise BadInput(f"claims: a run has no result, so nothing can be said: {outcome.reason}")
    except KeyboardInterrupt:
        finished = sum(bool(outcome.summary) for of_part in outcomes for outcome in of_part)
        typer.echo(
            f"interrupted: {finished} of {total} runs are kept in {results}; "
            "give the same command again to go on",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    return [[outcome.path for outcome in of_part] for of_part in outcomes]


def _left(parts: Sequence[Sequence[RunConfig]], results: Path) -> str:
    """Say how many runs are to do, and how long that may take."""
    from bench.store import run_path

    cells = [cell for part in parts for cell in part]
    left = sum(not run_path(results, cell.model_dump(mode="json"), cell.hash).exists() for cell in cells)
    told = f"{left} of {len(cells)} runs to do"
    return f"{told}; with none kept they take about ten minutes on 2 cores" if left else told


def _environment(runs: DataFrame) -> str:
    first = runs.iloc[0]
    where = first.get("environment.gpu") or first.get("environment.cpu")
    return f"{where}, torch {first.get('environment.packages.torch')}"


def _print(found: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_lines=True)
    for heading in ("Claim", "Measured here", "Verdict"):
        table.add_column(heading)
    for finding in found:
        table.add_row(
            f"{finding.claim}\n{finding.says}", f"{finding.measured}\n({finding.setting})", finding.verdict
        )
    Console().print(table)
