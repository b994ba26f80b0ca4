"""`flora-bench run`: a matrix of runs, with its progress and a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.caching import parse_seconds
from bench.cli.cache import CacheFolder, NoCache, opened
from bench.cli.confirm import Yes, confirmed
from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.execute import Executor, Outcome

Source = Annotated[str, typer.Argument(metavar="PRESET|FILE", help="A preset's name or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field in every cell; may be repeated."),
]
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
EXECUTORS = ("local", "ray")

# What commands that run cells take.
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Run each cell in a process of its own, with memory of its own.")
]


def run(
    source: Source = "quick",
    overrides: Overrides = None,
    results: Annotated[Path, typer.Option(help="Folder the results are kept in.")] = Path("results"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run cells that have a result, too.")] = False,
    keep_stale: Annotated[
        bool,
        typer.Option("--keep-stale", help="Keep results whose images, weights or code have changed since."),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds, one seed, a few images: see that all of it works.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            help="Cells at once, each in a process of its own.",
            show_default="one after another, in this process",
        ),
    ] = None,
    isolate: Isolate = False,
    executor: Annotated[str, typer.Option(help="Who runs the cells: local or ray.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray cluster to use; if not given, one is started here."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run part I of N of the matrix, such as 1/4.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give a cell up after so long, such as 2h.")
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            metavar="ROUNDS",
            min=0,
            help="Keep a run's state every so many rounds; 0 for never.",
            show_default="whenever half a minute would be lost",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Trained tensors to keep for `export`: small (up to 16 MiB), all or none.")
    ] = "small",
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each cell as JSON.")] = False,
) -> None:
    """Run the cells that have no result yet, and print a table of all of them."""
    from bench.cli.progress import progress
    from bench.execute import run_matrix
    from bench.interrupt import interruptible
    from bench.matrices import predicted_totals
    from bench.matrix import Matrix
    from bench.matrix import smoke as scaled_down
    from bench.sharding import shard_of
    from bench.store import WEIGHTS_KEPT_BYTES

    if weights not in WEIGHTS_KEPT_BYTES:
        raise BadInput(f"--weights: there is no {weights!r}{nearest(weights, WEIGHTS_KEPT_BYTES)}")
    if fresh and keep_stale:
        raise BadInput("--fresh and --keep-stale exclude each other; give one of them")
    kept = opened(cache, no_cache)
    cells = confirmed(Matrix.read(source, overrides or []), yes).cells()
    matrix = scaled_down(cells) if smoke else cells
    cells = matrix if shard is None else shard_of(matrix, shard)
    if not cells:
        typer.echo(f"part {shard} has no cells: the matrix has {len(matrix)}", err=True)
        return
    runner = _executor(executor, ray_address, jobs, isolate, timeout, results, cells)
    outcomes: list[Outcome] = []
    try:
        with interruptible(), progress(sys.stderr, predicted_totals(results), jobs or 1) as watcher:
            for outcome in run_matrix(
                cells,
                results,
                fresh,
                watcher,
                weights,
                cache=kept,
                executor=runner,
                checkpoint_rounds=checkpoint,
                keep_stale=keep_stale,
                matrix=matrix,
                command=["flora-bench", *sys.argv[1:]],
            ):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        finished = sum(outcome.status in ("ran", "kept") for outcome in outcomes)
        typer.echo(
            f"interrupted: {finished} of {len(cells)} cells are kept in {results}; {_how_to_go_on(fresh)}",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    order = {cell.hash: number for number, cell in enumerate(cells)}
    outcomes.sort(key=lambda outcome: order[outcome.config.hash])
    _print(outcomes, as_json)
    if not as_json and all(outcome.summary for outcome in outcomes):
        typer.echo(f"results are in {results}; next: flora-bench report {results}", err=True)
    raise typer.Exit(exit_code(outcomes))


def _how_to_go_on(fresh: bool) -> str:
    if fresh:
        return "with --fresh again all cells begin anew; without, those that had a result keep it"
    return "give the same command again to go on"


def _executor(
    name: str,
    ray_address: str | None,
    jobs: int | None,
    isolate: bool,
    timeout: str | None,
    results: Path,
    cells: Sequence[RunConfig],
) -> Executor | None:
    """Choose who runs the cells; None for this process."""
    if name not in EXECUTORS:
        raise BadInput(f"--executor: there is no {name!r}{nearest(name, EXECUTORS)}")
    if ray_address is not None and name != "ray":
        raise BadInput("--ray-address: needs --executor ray")
    if isolate and name == "ray":
        raise BadInput("--isolate: is so with --executor ray; leave it out")
    if jobs is not None and jobs < 1:
        raise BadInput(f"--jobs: {jobs} must be a whole number from 1")
    seconds = None if timeout is None else parse_seconds(timeout, "--timeout")
    if name == "local" and jobs is None and not isolate and seconds is None:
        return None
    from bench.placement import predictions

    foretold = predictions(results, cells)
    if name == "ray":
        from bench.cluster import RayCluster

        return RayCluster(ray_address, workers=jobs, predictions=foretold, timeout_seconds=seconds)
    from bench.workers import Workers

    return Workers(jobs or 1, timeout_seconds=seconds, predictions=foretold)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Say how a matrix went: 0, every cell has a result; 1, one failed; 2, one asked for the impossible."""
    statuses = {outcome.status for outcome in outcomes}
    if "refused" in statuses:
        return EXIT_BAD_INPUT
    return EXIT_FAILED if "failed" in statuses else 0


def _print(outcomes: Sequence[Outcome], as_json: bool) -> None:
    from bench.cli.summary import print_json, print_tables

    (print_json if as_json else print_tables)(outcomes)
