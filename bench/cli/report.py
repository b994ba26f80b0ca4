"""`flora-bench report`: tables, figures, a page and a bundle, from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.report.paper import Paper


# Options that are called otherwise than their setting.
_OPTIONS = {"formats": "format"}


def report(
    results: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder of results; results/ if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("reports"),
    paper: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with names, order, digits, selection; see docs/reports.md."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Only runs with FIELD=VALUE, or != < <= > >=; may be repeated."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME,...", help="Of figures: pdf, svg, png, pgf.", show_default=False
        ),
    ] = None,
    font: Annotated[str | None, typer.Option(metavar="sans|serif", help="Of the figures.")] = None,
    width: Annotated[
        str | None, typer.Option(metavar="column|page", help="Of the figures; else as they need.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Accuracy, 0 to 1, that time and bytes are counted up to.", show_default=False),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="ZIP", help="Also pack report, runs and commands into one file.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Make nothing; check that a report or bundle follows from its runs."
        ),
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="DIR2", help="Set these results beside those of DIR instead.")
    ] = None,
) -> None:
    """Make tables, figures and a page of stored results."""
    given = {
        "where": tuple(where) if where else None,
        "formats": tuple(name.strip() for name in formats.split(",")) if formats else None,
        "font": font,
        "width": width,
        "target": target,
    }
    if check is not None:
        _check(check, results, {"--paper": paper, "--bundle": bundle, "--beside": beside, **given})
        return
    results = results or Path("results")
    settings = _settings(paper, {name: value for name, value in given.items() if value is not None})
    if beside is not None:
        _beside(results, beside, out, settings, bundle)
        return
    _report(results, out, settings, bundle)


def _settings(paper: Path | None, given: dict[str, Any]) -> Paper:
    """What the file says, and the command line over it."""
    from bench.report.paper import Paper

    settings = Paper.read(paper) if paper else Paper()
    for name, value in given.items():
        Paper.of({name: value}, f"--{_OPTIONS.get(name, name)}")
    if "where" in given:
        given["where"] = (*settings.where, *given["where"])
    return Paper.of(settings.model_dump() | given)


def _report(results: Path, out: Path, settings: Paper, bundle: Path | None) -> None:
    from bench.report.build import build_report
    from bench.report.bundle import write_bundle

    try:
        build_report(results, out, settings)
    except OSError as error:
        raise BadInput(
            f"--out: cannot write to {str(out)!r} ({error.strerror}); choose another folder"
        ) from error
    typer.echo(f"report: {out / 'index.html'}")
    if bundle is not None:
        write_bundle(out, results, bundle)
        typer.echo(f"bundle: {bundle} ({bundle.stat().st_size / 1e6:.1f} MB); check it with --check {bundle}")


def _beside(first: Path, second: Path, out: Path, settings: Paper, bundle: Path | None) -> None:
    from bench.report.beside import read_beside, write_beside

    if bundle is not None:
        raise BadInput(
            "--bundle: a comparison of two folders has none; leave out one of --bundle and --beside"
        )
    files = write_beside(read_beside(first, second, _names(first, second), settings), out, settings)
    typer.echo(f"report: {files[-1]}")


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' names, with as much of their paths as tells them apart."""
    one, other = first.resolve(), second.resolve()
    if one == other:
        raise BadInput(f"--beside: {str(second)!r} is the same folder; give another")
    for depth in range(1, max(len(one.parts), len(other.parts)) + 1):
        names = "/".join(one.parts[-depth:]), "/".join(other.parts[-depth:])
        if names[0] != names[1]:
            return names
    return str(one), str(other)


def _check(path: Path, results: Path | None, others: dict[str, Any]) -> None:
    """Say what of a report or a bundle does not follow from its runs; exit code 1 if anything."""
    from bench.report.check import run_check

    if extra := [name for name, value in others.items() if value is not None]:
        raise BadInput(f"--check: makes no report, so {extra[0]} has no meaning beside it; leave it out")
    verdict = run_check(path, results)
    for finding in verdict.findings:
        typer.echo(f"{finding.file}: {finding.what}")
    for note in verdict.notes:
        typer.echo(f"flora-bench: {note}", err=True)
    typer.echo(verdict.summary)
    if verdict.findings:
        raise typer.Exit(1)
