"""`flora-bench report`: tables, figures and a page from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flora.errors import BadInput


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
) -> None:
    """Make tables, figures and a page of stored results."""
    from bench.report.page import build_report

    try:
        build_report(results, out)
    except OSError as error:
        raise BadInput(
            f"--out: cannot write to {str(out)!r} ({error.strerror}); choose another folder"
        ) from error
    typer.echo(f"report: {out / 'index.html'}")
