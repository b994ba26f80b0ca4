"""`flora-bench report`: tables, figures, a page and a bundle, from stored results alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

    from bench.report.paper import Paper


def report(
    results: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder of results; results/ if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the report; reports/ if not given.")
    ] = None,
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
        "formats": tuple(name.strip() for name in formats.split(",")) if formats is not None else None,
        "font": font,
        "width": width,
        "target": target,
    }
    if check is not None:
        others = {_option(name): value for name, value in given.items()}
        _check(
            check, results, {"--paper": paper, "--out": out, "--bundle": bundle, "--beside": beside, **others}
        )
        return
    results, out = results or Path("results"), out or Path("reports")
    if out.resolve() == results.resolve():
        raise BadInput(f"--out: {str(out)!r} is the folder of results itself; choose another folder")
    settings = _settings(paper, {name: value for name, value in given.items() if value is not None})
    try:
        out.mkdir(parents=True, exist_ok=True)
        if beside is not None:
            _beside(results, beside, out, settings, bundle)
        else:
            _report(results, out, settings, bundle)
    except OSError as error:
        raise BadInput(
            f"--out: cannot write to {str(out)!r} ({error.strerror}); choose another folder"
        ) from error


def _option(name: str) -> str:
    """What the option of a setting is called."""
    return f"--{'format' if name == 'formats' else name}"


def _settings(paper: Path | None, given: dict[str, Any]) -> Paper:
    """What the file says, and the command line over it."""
    from bench.report.paper import Paper

    settings = Paper.read(paper) if paper else Paper()
    for name, value in given.items():
        Paper.of({name: value}, _option(name))
    if "where" in given:
        given["where"] = (*settings.where, *given["where"])
    return Paper.of(settings.model_dump(exclude_unset=True) | given)


def _report(results: Path, out: Path, settings: Paper, bundle: Path | None) -> None:
    from bench.report.build import write_report
    from bench.report.bundle import check_bundle_path, write_bundle
    from bench.report.data import read_data
    from bench.report.names import label_runs
    from bench.report.text import counted
    from bench.store import load_predictions

    if bundle is not None:
        check_bundle_path(bundle, out)
    every: list[DataFrame] = []

    def choose(runs: DataFrame) -> DataFrame:
        every.append(runs)
        return settings.choose(runs)

    data = read_data(results, choose, settings.called)
    for line in [*_left_out(results), *settings.unmatched(label_runs(every[0], settings.called))]:
        _say(line)
    if not sys.stderr.isatty():
        _say(f"{counted(len(data.runs), 'run')} read; making tables and figures")
    write_report(data, out, settings, load_predictions(results), _say)
    typer.echo(f"report: {out / 'index.html'}")
    if bundle is not None:
        write_bundle(out, results, bundle)
        typer.echo(f"bundle: {bundle} ({bundle.stat().st_size / 1e6:.1f} MB); check it with --check {bundle}")


def _left_out(results: Path) -> list[str]:
    """Say how many cells that `run` was asked for have no result."""
    from bench.matrices import load_matrices
    from bench.report.text import counted

    asked = {cell["path"] for record in load_matrices(results).values() for cell in record["cells"]}
    missing = [path for path in asked if not (results / path).exists()]
    of = counted(len(asked), "cell")
    return [f"{len(missing):,} of {of} asked for have no result; see flora-bench status"] if missing else []


def _say(line: str) -> None:
    typer.echo(f"flora-bench: {line}", err=True)


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
        _say(note)
    typer.echo(verdict.summary)
    if verdict.findings:
        raise typer.Exit(1)
