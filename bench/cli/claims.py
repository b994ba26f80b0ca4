"""`flora-bench claims`: the paper's headline claims beside what is measured here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.cache import CacheFolder, NoCache, opened
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

    from bench.claims import Finding
    from bench.config import RunConfig
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
    from bench.store import load_results

    kept = opened(cache, no_cache)
    parts = [cells(part, device) for part in (COST_CELLS, ACCURACY_CELLS)]
    frames = [load_results(_results_of(part, results, kept)) for part in parts]
    found = findings(*frames)
    where = _environment(frames[0])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"measured_on": where, "claims": [finding.to_dict() for finding in found]}
        (out / "claims.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (out / "claims.md").write_text(to_markdown(found, where), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in found], indent=1))
    else:
        _print(found)
    raise typer.Exit(0 if all(finding.verdict == "holds" for finding in found) else EXIT_NOT_ALL_HOLD)


def _results_of(part: Sequence[RunConfig], results: Path, cache: FeatureCache | None) -> list[Path]:
    """Run the cells that have no result, each in a process of its own so that no peak is another's."""
    from bench.cli.progress import progress
    from bench.execute import run_matrix

    with progress(sys.stderr) as watcher:
        outcomes = list(run_matrix(part, results, watcher=watcher, cache=cache, isolate=True))
    for outcome in outcomes:
        if not outcome.summary:
            raise BadInput(f"claims: a run has no result, so nothing can be said: {outcome.reason}")
    return [outcome.path for outcome in outcomes]


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
