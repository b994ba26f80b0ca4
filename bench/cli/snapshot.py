"""`flora-bench snapshot`: what `compare` needs of results and benchmarks, in one small file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.regress.measurements import Measurements


def snapshot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Results folders, run.json files, pytest-benchmark's JSON or earlier snapshots.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write; one that is there is replaced.")],
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Leave out times and resident memory, which another machine gives otherwise."
        ),
    ] = False,
) -> None:
    """Put what was measured of one revision into one file, to compare later ones with."""
    from bench.regress.measurements import join, read_measurements, without_the_machine, write_measurements

    joined = join([read_measurements(source) for source in sources], str(out))
    if exact:
        joined = without_the_machine(joined)
    write_measurements(joined, out)
    typer.echo(f"{out}: {_contents(joined)}; {out.stat().st_size:,} bytes")


def _contents(measurements: Measurements) -> str:
    """Say in words what a file holds, and of what."""
    counts = {"cell": len(measurements.cells), "benchmark": len(measurements.benchmarks)}
    held = [f"{count:,} {what}{'s' * (count != 1)}" for what, count in counts.items() if count]
    revision = measurements.revision
    commit = revision["commit"][:12] if revision.get("commit") else "unknown, or several"
    changed = ", with changes that are not committed" if revision.get("dirty") else ""
    return f"{' and '.join(held)}; commit {commit}{changed}"
