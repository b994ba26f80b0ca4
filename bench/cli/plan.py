"""`flora-bench plan`: what the cells of a matrix will take; nothing runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.estimate import Calibrate, NoTime, calibrated
from bench.cli.run import Overrides, Source
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.config import RunConfig

# Many small clients may be trained in one stack, which takes less time and more memory.
ONE_BY_ONE = "with one client trained at a time"


@dataclass(frozen=True)
class Planned:
    """Cells that differ in their seed alone.

    Attributes:
        cells: these.
        done: how many have a result.
        how: the prediction's way, "fake tensors" or "formulas"; or why there is none.
        prediction: of each of them.
    """

    cells: Sequence[RunConfig]
    done: int
    how: str
    prediction: Mapping[str, Any]


def plan(
    source: Source = "quick",
    overrides: Overrides = None,
    results: Annotated[Path, typer.Option(help="Folder the results are kept in.")] = Path("results"),
    save: Annotated[
        bool, typer.Option("--save", help="Keep the predictions beside them, for `report`.")
    ] = False,
    no_time: NoTime = False,
    calibrate: Calibrate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what the cells of a matrix will take, and run nothing."""
    from bench.matrix import Matrix

    cells = Matrix.read(source, overrides or []).cells()
    planned = [
        _planned(group, results, no_time, calibrate and not i) for i, group in enumerate(_groups(cells))
    ]
    if save:
        _save(results, {cell.hash: dict(x.prediction) for x in planned for cell in x.cells if x.prediction})
    if as_json:
        typer.echo(json.dumps([_record(x) for x in planned], indent=1))
    else:
        _print(planned)


def _groups(cells: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Put cells together that only differ in their seed."""
    groups: dict[str, list[RunConfig]] = {}
    for cell in cells:
        key = json.dumps(cell.model_dump(mode="json", exclude={"seed", "tuning"}), sort_keys=True)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _planned(cells: Sequence[RunConfig], results: Path, no_time: bool, calibrate: bool) -> Planned:
    from bench.estimate import estimate, predicted_seconds
    from bench.store import run_path

    done = sum(run_path(results, cell.model_dump(mode="json"), cell.hash).exists() for cell in cells)
    try:
        found = estimate(cells[0])
    except BadInput as error:
        if str(error).startswith(("model", "method")):
            raise
        return Planned(cells, done, str(error), {})
    speed = calibrated(cells[0], found, no_time, calibrate)
    seconds = None if speed is None else predicted_seconds(found, speed)["total"]
    return Planned(cells, done, found.how, {**found.predictions, "total_seconds": seconds})


def _record(planned: Planned) -> dict[str, Any]:
    from bench.config import label

    return {
        "cell": label(planned.cells[0]),
        "config_hashes": [cell.hash for cell in planned.cells],
        "done": planned.done,
        "how": planned.how,
        **planned.prediction,
    }


def _save(results: Path, predictions: dict[str, dict[str, Any]]) -> None:
    from bench.store import save_predictions

    try:
        save_predictions(results, predictions)
    except OSError as error:
        raise BadInput(f"results: cannot write to {str(results)!r} ({error.strerror})") from error


def _print(planned: Sequence[Planned]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from bench.report.text import bytes_text, duration_text

    timed = any(x.prediction.get("total_seconds") is not None for x in planned)
    some_done = any(x.done for x in planned)
    names = _names([x.cells[0] for x in planned])
    table = Table(box=box.SIMPLE)
    table.add_column("cell", min_width=max(len(word) for name in names for word in name.split()))
    parts = ["done"] * some_done + ["time a run"] * timed
    for name in ("runs", *parts, "live tensors", "sent", "trainable"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, x in zip(names, planned, strict=True):
        known = x.prediction
        sent = _sum(known.get("bytes_up"), known.get("bytes_down"))
        table.add_row(
            name,
            str(len(x.cells)),
            *(["all" if x.done == len(x.cells) else str(x.done or "")] if some_done else []),
            *([_text(known.get("total_seconds"), duration_text)] if timed else []),
            _text(known.get("peak_tensor_bytes"), bytes_text),
            _text(sent, bytes_text),
            _text(known.get("trainable_parameters"), "{:,}".format),
        )
    console = Console()
    console.print(table)
    console.print(_total(planned, timed), highlight=False)


def _names(cells: Sequence[RunConfig]) -> list[str]:
    """Name cells without their seeds, and without a task that all of them have."""
    from bench.config import label

    named = [label(cell).rpartition(" · ")[0] for cell in cells]
    if len({cell.task for cell in cells}) > 1:
        return named
    return [name.partition(" · ")[2] for name in named]


def _total(planned: Sequence[Planned], timed: bool) -> str:
    """Say what is left to run, and how long it will take as far as that is known."""
    from bench.report.text import duration_text

    left = [(x.prediction.get("total_seconds"), len(x.cells) - x.done) for x in planned]
    runs = sum(count for _, count in left)
    to_do = f"{runs} run{'s' * (runs != 1)} to do"
    if not timed:
        return f"{to_do}; bytes are of one run each, {ONE_BY_ONE}"
    unknown = sum(count for seconds, count in left if seconds is None)
    more = f", besides {unknown} runs of which it is not known" if unknown else ""
    total = sum((seconds or 0.0) * count for seconds, count in left)
    about = f"{to_do}: about {duration_text(total)}{more}"
    return f"{about}; times and bytes are of one run each, {ONE_BY_ONE}"


def _sum(up: int | None, down: int | None) -> int | None:
    return None if up is None or down is None else up + down


def _text(value: Any, write: Any) -> str:
    return "unknown" if value is None else str(write(value))
