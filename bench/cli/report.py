"""`flora-bench report`: tables, figures and a page from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
) -> None:
    """Make tables, figures and a page of stored results."""
    from bench.report.page import build_report

    build_report(results, out)
    typer.echo(f"report: {out / 'index.html'}")
