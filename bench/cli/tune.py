"""`flora-bench tune`: an equal search for every method, on held-out training data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.cache import CacheFolder, NoCache, opened
from bench.cli.confirm import Yes, confirmed
from bench.cli.run import Isolate
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.tune import Choice
    from flora.cache import FeatureCache


def tune(
    source: Annotated[
        str, typer.Argument(metavar="PRESET|FILE", help="A preset's name or a YAML file.")
    ] = "quick",
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=[VALUE,...]", help="Values to try; several fields multiply."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field in every cell; may be repeated."),
    ] = None,
    share: Annotated[float, typer.Option(help="Part of each client's training data held out.")] = 0.2,
    results: Annotated[Path, typer.Option(help="Folder the trials are kept in.")] = Path("results/tuning"),
    out: Annotated[Path, typer.Option(help="Matrix file to write.")] = Path("tuned.yaml"),
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    isolate: Isolate = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the choices as JSON.")] = False,
) -> None:
    """Try every setting of a grid for every cell of a matrix, and write the matrix of the best."""
    from bench.matrix import Matrix
    from bench.tune import choose, read_grid, to_matrix, trials

    values = read_grid(grid or [])
    if out.exists() or not out.parent.is_dir():
        raise BadInput(f"--out: {str(out)!r} must be a new file in a folder that is there")
    kept = opened(cache, no_cache)
    confirmed(Matrix.read(source, overrides or []), yes)
    by_cell = trials(source, overrides or [], values, share)
    cells = {cell.hash: cell for mine in by_cell for trial in mine for cell in trial.validation}
    accuracies = _run(list(cells.values()), results, kept, isolate)
    choices = [choose(mine, accuracies, values) for mine in by_cell]
    try:
        out.write_text(to_matrix(choices), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--out: {str(out)!r} cannot be written ({error.strerror})") from error
    _print(choices, as_json)
    typer.echo(f"wrote {out}; next: flora-bench run {out}", err=True)


def _run(
    cells: list[RunConfig], results: Path, cache: FeatureCache | None, isolate: bool
) -> dict[str, float]:
    """Run the trials that have no result yet; give the accuracies of all that have one, by hash."""
    from bench.cli.progress import progress
    from bench.config import label
    from bench.execute import run_matrix

    try:
        with progress(sys.stderr) as watcher:
            outcomes = list(run_matrix(cells, results, watcher=watcher, cache=cache, isolate=isolate))
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: trials that finished are kept in {results}; give the same command again", err=True
        )
        raise typer.Exit(130) from None
    sound = {}
    for outcome in outcomes:
        if not outcome.summary:
            typer.echo(f"flora-bench: a trial has no result: {outcome.reason}", err=True)
        elif outcome.summary["refused_uploads"]:
            # what was refused left the model as it was, which may well score higher than bad training
            typer.echo(f"flora-bench: a trial diverged and does not count: {label(outcome.config)}", err=True)
        else:
            sound[outcome.config.hash] = outcome.summary["accuracy"]
    return sound


def _print(choices: list[Choice], as_json: bool) -> None:
    from bench.config import label

    if as_json:
        records = [
            {"cell": label(choice.cells[0]), "seeds": len(choice.cells), **choice.tuning.model_dump()}
            for choice in choices
        ]
        typer.echo(json.dumps(records, indent=1))
        return
    for choice in choices:
        taken = ", ".join(f"{field}={value}" for field, value in choice.tuning.chosen.items())
        seeds = f"{len(choice.cells)} seeds" if len(choice.cells) > 1 else "one seed"
        found = f"{choice.tuning.validation_accuracy:.1%} on held-out data, best of {choice.tuning.trials}"
        cell = label(choice.cells[0]).rpartition(" · ")[0]
        typer.echo(f"{cell}: {taken or 'nothing to tune'} ({found}, {seeds})")
