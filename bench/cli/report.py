"""`flora-bench report`: tables, figures and a page from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flora.errors import BadInput


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    target: Annotated[
        float | None,
        typer.Option(help="Accuracy, 0 to 1, that time and bytes are counted up to.", show_default=False),
    ] = None,
) -> None:
    """Make tables, figures and a page of stored results."""
    from bench.report.page import build_report

    if target is not None and not 0 < target <= 1:
        raise BadInput(f"--target: {target} must be an accuracy above 0 and up to 1, such as 0.8")
    try:
        build_report(results, out, target)
    except OSError as error:
        raise BadInput(
            f"--out: cannot write to {str(out)!r} ({error.strerror}); choose another folder"
        ) from error
    typer.echo(f"report: {out / 'index.html'}")
