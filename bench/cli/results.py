"""`flora-bench results`: the stored runs of a folder; filtered, sorted, grouped, as a table, JSON or CSV."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.selection import fields_of, is_ordered, plain, selected, text_of
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

FIGURES = ("accuracy", "train_seconds", "bytes", "peak_memory_bytes", "payload_bytes")
"""What is shown of each run; "bytes" is what it sent both ways."""

STATISTICS = ("mean", "std", "min", "max")

_NAMES = ("task", "model", "method", "split")
_MEASURED = ("split.fingerprint", "split.label_skew")
# What commands that choose among results take.
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="CONDITION", help="Only runs with FIELD=VALUE, or != < <= > >=; may be repeated."
    ),
]


def results(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of results.")] = Path("results"),
    where: Where = None,
    sort: Annotated[str | None, typer.Option(metavar="FIELD", help="Sort by it; -FIELD: downwards.")] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="FIELD,...", help="Group by these: n, mean, deviation, least and most."),
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="FIELD,...", help="Show these fields.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show at most so many rows.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read every file again and write results.parquet.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all fields.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with all fields.")] = False,
) -> None:
    """List the runs of a folder with what tells them apart and what they came to."""
    if as_json and as_csv:
        raise BadInput("--json and --csv exclude each other; give one of them")
    from bench.report.mixture import mixture

    every = read(folder, rebuild)
    runs = every[selected(every, where or [])]
    for line in mixture(runs):
        _say(line)
    if len(runs) == 0:
        _say(f"none of {len(every):,} runs is such that {' and '.join(where or [])}")
    named = fields_of(every, columns, "--columns") if columns else []
    figures = named or [name for name in FIGURES if name in runs]
    groups = fields_of(every, by, "--by") if by else []
    table = _sorted(_grouped(runs, groups, figures) if groups else runs, sort)
    table = table if limit is None else table.head(limit)
    if as_json or as_csv:
        raw = table[named] if named and not groups else table
        typer.echo(_json(raw) if as_json else raw.to_csv(index=False, lineterminator="\n").rstrip("\n"))
    elif len(table):
        shown = [*groups, "n", *figures] if groups else named or _telling(runs)
        _print({name: _texts(table, name) for name in shown})
        if len(table) < len(runs) and not groups:
            _say(f"{len(table):,} of {len(runs):,} runs are shown")


def read(folder: Path, rebuild: bool = False) -> DataFrame:
    """Read the results of a folder; those that cannot be used are named on stderr and left out.

    Returns:
        what `bench.store.load_results` gives, and "bytes": sent both ways.

    Raises:
        BadInput: there is none.
    """
    from bench.index import indexed

    damaged: list[BadInput] = []
    with _patience(f"reading {folder}"):
        try:
            runs = indexed(folder, rebuild, damaged.append)
        finally:
            for error in damaged:
                _say(str(error))
    if {"bytes_up", "bytes_down"} <= set(runs):
        runs["bytes"] = runs["bytes_up"] + runs["bytes_down"]
    return runs


def _telling(runs: DataFrame) -> list[str]:
    """Choose what to show of runs: the settings that differ, and the figures.

    An option that has one value with each method, or with each split, says no more than their names do.
    """
    from bench.config import RunConfig

    sections = {"shots", *RunConfig.model_fields} - {"tuning"}
    fields = [str(name) for name in runs if str(name).partition(".")[0] in sections]
    texts = runs[[name for name in fields if name not in _MEASURED]].astype(str)
    texts = texts.loc[:, texts.nunique(dropna=False) > 1]
    names = [name for name in _NAMES if name in texts]
    options = [str(field) for field in texts if field not in names]
    implied = {
        x for name in names for x in options if (texts.groupby(name)[x].nunique(dropna=False) < 2).all()
    }
    settings = [*names, *(option for option in options if option not in implied)]
    figures = [name for name in FIGURES if name in runs]
    return ["config_hash", *(settings or [*_NAMES, "seed"]), *figures]


def _grouped(runs: DataFrame, by: Sequence[str], figures: Sequence[str]) -> DataFrame:
    """Take means over the runs of each group."""
    import pandas as pd

    wrong = [name for name in figures if not runs[name].map(is_ordered).all()]
    if wrong:
        raise BadInput(f"--columns: {wrong[0]!r} is no number, and has no mean to group for")
    rows = []
    for key, group in runs.groupby(list(by), dropna=False, sort=False):
        row: dict[str, Any] = {**dict(zip(by, key, strict=True)), "n": len(group)}
        for name in figures:
            numbers = group[name].astype(float)
            row |= {f"{name}.{what}": getattr(numbers, what)() for what in STATISTICS}
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else [*by, "n"])


def _sorted(table: DataFrame, sort: str | None) -> DataFrame:
    """Sort rows by a field, downwards if it has a minus before it; a figure of groups by its mean."""
    if sort is None:
        return table
    name = sort.removeprefix("-")
    if f"{name}.mean" in table:
        name = f"{name}.mean"
    (field,) = fields_of(table, name, "--sort")
    # names and numbers in one column have no order among them, unless numbers come first
    rank = table[field].map(lambda value: (isinstance(plain(value), str), plain(value)))
    known = table[table[field].notna()]
    order = sorted(known.index, key=lambda row: rank[row], reverse=sort.startswith("-"))
    return table.loc[[*order, *table.index[table[field].isna()]]]


def _texts(table: DataFrame, name: str) -> list[str]:
    """Write a column as people read it; a figure of groups as its mean, deviation and range."""
    if name in table:
        return [_shown(name, value) for value in table[name]]
    parts = zip(*(table[f"{name}.{what}"] for what in STATISTICS), strict=True)
    return [_spread(*(_shown(name, value) for value in values)) for values in parts]


def _spread(mean: str, std: str, low: str, high: str) -> str:
    if low == high:
        return mean
    deviation = f" ± {std}" if std else ""
    return f"{mean}{deviation} ({low} to {high})"


def _shown(name: str, value: Any) -> str:
    from bench.report.text import bytes_text, duration_text

    known = plain(value)
    if known is None:
        return ""
    if isinstance(known, int | float) and not isinstance(known, bool):
        if "accuracy" in name:
            return f"{100 * known:.2f} %"
        if name.endswith("bytes") or name.startswith(("bytes_", "payload_bytes_", "memory.")):
            return bytes_text(known)
        if name.endswith("seconds"):
            return duration_text(known)
        if isinstance(known, float):
            return f"{known:.6g}"
    return text_of(known)


def _print(columns: dict[str, list[str]]) -> None:
    """Print a table: on a terminal, as many of its columns as fit; elsewhere all, as aligned lines."""
    right = {
        name: name != "config_hash" and all(text[:1] in "0123456789-" for text in texts)
        for name, texts in columns.items()
    }
    if sys.stdout.isatty():
        _print_to_terminal(columns, right)
        return
    widths = {name: max(len(name), *map(len, texts)) for name, texts in columns.items()}
    for row in zip(*([name, *texts] for name, texts in columns.items()), strict=True):
        cells = [
            text.rjust(widths[name]) if right[name] else text.ljust(widths[name])
            for name, text in zip(columns, row, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _print_to_terminal(columns: dict[str, list[str]], right: dict[str, bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=box.SIMPLE)
    headings = {name: name.replace("_", "_\n") for name in columns}
    room = console.width
    shown: list[str] = []
    for name, texts in columns.items():
        room -= max(map(len, (*headings[name].split("\n"), *texts))) + 3
        if room < 0 and shown:
            break
        shown.append(name)
        table.add_column(headings[name], justify="right" if right[name] else "left", no_wrap=True)
    for row in zip(*(columns[name] for name in shown), strict=True):
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    if len(shown) < len(columns):
        left_out = [name for name in columns if name not in shown]
        _say(f"the terminal is too narrow for {', '.join(left_out)}; --columns chooses")


def _json(table: DataFrame) -> str:
    """Write rows as a list of objects, each on a line of its own."""
    values = [table[name].astype(object).where(table[name].notna(), None).tolist() for name in table]
    rows = [json.dumps(dict(zip(table, row, strict=True))) for row in zip(*values, strict=True)]
    return "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Show on a terminal that something is going on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _say(line: str) -> None:
    typer.echo(f"flora-bench: {line}", err=True)
