"""`flora-bench run`: a matrix of runs, with its progress and a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.cache import CacheFolder, NoCache, opened
from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from bench.execute import Outcome

Source = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset's name or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field in every cell; may be repeated."),
]
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

# What commands that run cells take.
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Run each cell in a process of its own, with memory of its own.")
]


def run(
    source: Source = "quick",
    overrides: Overrides = None,
    results: Annotated[Path, typer.Option(help="Folder the results are kept in.")] = Path("results"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run cells that have a result, too.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds, one seed, a few images: see that all of it works.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="Trained tensors to keep for `export`: small (up to 16 MiB), all or none.")
    ] = "small",
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    isolate: Isolate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each cell as JSON.")] = False,
) -> None:
    """Run the cells that have no result yet, and print a table of all of them."""
    from bench.cli.progress import progress
    from bench.execute import run_matrix
    from bench.matrix import Matrix
    from bench.matrix import smoke as scaled_down
    from bench.store import WEIGHTS_KEPT_BYTES

    if weights not in WEIGHTS_KEPT_BYTES:
        raise BadInput(f"--weights: there is no {weights!r}{nearest(weights, WEIGHTS_KEPT_BYTES)}")
    kept = opened(cache, no_cache)
    cells = Matrix.read(source, overrides or []).cells()
    cells = scaled_down(cells) if smoke else cells
    outcomes: list[Outcome] = []
    try:
        with progress(sys.stderr) as watcher:
            for outcome in run_matrix(cells, results, fresh, watcher, weights, cache=kept, isolate=isolate):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        finished = sum(outcome.status in ("ran", "kept") for outcome in outcomes)
        typer.echo(
            f"interrupted: {finished} of {len(cells)} cells are kept in {results}; "
            f"give the same command again{' without --fresh' if fresh else ''} to go on",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(outcomes, as_json)
    if not as_json and all(outcome.summary for outcome in outcomes):
        typer.echo(f"results are in {results}; next: flora-bench report {results}", err=True)
    raise typer.Exit(exit_code(outcomes))


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Say how a matrix went: 0, every cell has a result; 1, one failed; 2, one asked for the impossible."""
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses:
        return EXIT_BAD_INPUT
    return EXIT_FAILED if "failed" in statuses else 0


def _print(outcomes: Sequence[Outcome], as_json: bool) -> None:
    from bench.cli.summary import print_json, print_tables

    (print_json if as_json else print_tables)(outcomes)
