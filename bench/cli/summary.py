"""What a matrix came to, on the terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.config import label
from bench.execute import Outcome
from bench.report.tables import (
    BELOW,
    BROKEN,
    Cell,
    Table,
    accuracy_table,
    cells_of,
    cost_table,
    deployed_table,
)
from bench.store import load_results

# what fits on a narrow terminal; the report has the rest
COSTS = (
    "payload_bytes",
    "payload_bytes_up",
    "payload_bytes_down",
    "train_seconds",
    "from_nothing_seconds",
    "peak_memory_bytes",
)
BOTH_WAYS = ("round_seconds",)


def print_json(outcomes: Sequence[Outcome]) -> None:
    """Print a list with what became of each cell."""
    records = [
        {
            "cell": label(outcome.config),
            "config_hash": outcome.config.hash,
            "status": outcome.status,
            "path": str(outcome.path),
            "reason": outcome.reason or None,
            "summary": outcome.summary or None,
        }
        for outcome in outcomes
    ]
    typer.echo(json.dumps(records, indent=1))


def print_tables(outcomes: Sequence[Outcome]) -> None:
    """Print the accuracy and cost tables of the cells that have a result, and how many have none."""
    paths = [outcome.path for outcome in outcomes if outcome.summary]
    if paths:
        _print_results(paths)
    if without := [outcome for outcome in outcomes if not outcome.summary]:
        first = f"{label(without[0].config)}: {without[0].reason}"
        typer.echo(f"flora-bench: {len(without)} of {len(outcomes)} cells have no result; {first}", err=True)


def _print_results(paths: Sequence[Path]) -> None:
    console = Console()
    for (task, model), runs in load_results(paths).groupby(["task", "model"]):
        console.rule(f"{task} · {model}", align="left", style="dim")
        for _, part in runs.groupby("shots", dropna=False):  # one table for all would be too wide
            _print(console, accuracy_table(part))
        main = cells_of(runs)[0]
        _print(console, cost_table(main, only=COSTS))
        if (deployed := deployed_table(main, only=BOTH_WAYS)) is not None:
            _print(console, deployed)


def _print(console: Console, table: Table) -> None:
    """Set a report's table in the terminal, its groups of columns named in each heading."""
    shown = RichTable(box=box.SIMPLE)
    first, *headings = table.headings
    rows = [(name, [_cell(cell) for cell in cells]) for name, cells in table.rows]
    # where space is scarce, names and headings wrap between words and figures stay whole
    shown.add_column(first, min_width=max(len(word) for name, _ in rows for word in name.split()))
    for column, heading in enumerate(headings):
        widest = max(len(line) for _, cells in rows for line in cells[column].plain.split("\n"))
        shown.add_column(heading, justify="right", min_width=widest)
    for name, cells in rows:
        shown.add_row(name, *cells)
    console.print(shown)
    console.print(table.caption, style="dim", highlight=False)


def _cell(cell: Cell) -> Text:
    note = f"\n({cell.note})" if cell.note else ""
    marks = f" {BELOW}" * cell.below + f" {BROKEN}" * cell.broken
    style = "bold" if cell.best else "underline" if cell.second else ""
    return Text(f"{cell.text}{note}{marks}", style=style)
