"""`flora-bench compare`: two measurements set against each other, and what got worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flora.errors import BadInput

EXIT_WORSE, EXIT_NOTHING_JUDGED = 1, 2

# What commands that judge take.
GateFile = Annotated[
    Path | None,
    typer.Option(
        "--gate", metavar="FILE", help="TOML file of budgets.", show_default="pyproject.toml's, if it has any"
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Also show what is the same, and not judged.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with all there is.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a comment for a pull request.")]

_SOURCE = "A results folder, a run.json, pytest-benchmark's JSON, or a file of measurements."


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help=f"What was. {_SOURCE}", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="What is, likewise.", show_default=False)],
    gate: GateFile = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Fail also where NEW lacks a cell or probe that BASE has.")
    ] = False,
    everything: Everything = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Say what got worse from BASE to NEW.

    Exit with 0 if nothing did, with 1 if anything, and with 2 if nothing can be compared.
    """
    from datetime import date

    from bench.cli.verdicts import fails, judged, show
    from bench.regress.compare import compare_measurements
    from bench.regress.gate import Gate
    from bench.regress.measurements import read_measurements

    if as_json and as_markdown:
        raise BadInput("--json and --markdown exclude each other; give one of them")
    budgets = Gate.find(gate)
    comparison = compare_measurements(read_measurements(base), read_measurements(new), budgets, date.today())
    show(comparison, everything=everything, as_json=as_json, as_markdown=as_markdown, complete=complete)
    failed = fails(comparison, complete=complete)
    if not failed and not judged(comparison):
        raise typer.Exit(EXIT_NOTHING_JUDGED)
    raise typer.Exit(EXIT_WORSE if failed else 0)
