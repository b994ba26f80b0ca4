"""`flora-bench estimate`: what methods will take on a model, side by side, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.measure.causes import CAUSES

if TYPE_CHECKING:
    from bench.calibration import Calibration
    from bench.config import RunConfig
    from bench.estimate import Estimate

REFERENCE = "full_finetune"

# What commands that foretell time take.
NoTime = Annotated[bool, typer.Option("--no-time", help="Leave time out, and measure nothing.")]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure this machine anew (10 s), though it was before.")
]


def estimate(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="As in a run; an architecture alone will do: no weights are read."
        ),
    ] = "tiny",
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method; may be repeated. Default: flora.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the run; may be repeated."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Find the largest batch that fits, such as 16GB.")
    ] = None,
    no_time: NoTime = False,
    calibrate: Calibrate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run will take, without weights, GPU or training."""
    from bench.caching import parse_bytes
    from bench.estimate import estimate as estimated
    from bench.estimate import largest_batch, predicted_seconds

    room = None if memory is None else parse_bytes(memory, "--memory")
    configs = [_config(model, method, overrides or []) for method in methods or ["flora"]]
    found: list[dict[str, Any]] = []
    for config in configs:
        one = estimated(config)
        speed = calibrated(config, one, no_time, calibrate and not found)
        record = one.to_dict() | {"seconds": None if speed is None else predicted_seconds(one, speed)}
        if room is not None:
            counted = one.step is not None and one.step.flops > 0
            record["largest_batch"] = largest_batch(config, room) if counted else None
        found.append(record)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found, memory)


def calibrated(config: RunConfig, found: Estimate, no_time: bool, anew: bool) -> Calibration | None:
    """Give the machine's calibration, None where no time can or shall be foretold from it."""
    if no_time or found.step is None:
        return None
    from bench.calibration import calibration
    from bench.compute import configured

    with configured(config.compute, "cpu"):
        return calibration(config.model.dtype, anew)


def _config(model: str, method: str, overrides: Sequence[str]) -> RunConfig:
    """Read the run that the options describe; a bare architecture has random weights."""
    from bench.config import RunConfig
    from bench.matrix import parse_override

    named = model if ":" in model or model == "tiny" else f"{model}:random"
    fields: dict[str, Any] = {"device": "cpu", "model": {"name": named}, "method": {"name": method}}
    for override in overrides:
        section, dot, name = parse_override(override)[0].partition(".")
        value = parse_override(override)[1]
        if not dot:
            fields[section] = value
            continue
        there = fields.get(section, {})
        fields[section] = {**(there if isinstance(there, dict) else {"name": there}), name: value}
    return RunConfig.read(fields)


def _print(found: Sequence[dict[str, Any]], memory: str | None) -> None:
    """Print a table, quantities as rows and methods as columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    reference = next((x for x in found if x["method"] == REFERENCE), None) if len(found) > 1 else None
    table = Table(box=box.SIMPLE, title=found[0]["model"], title_justify="left")
    table.add_column("")
    for record in found:
        table.add_column(record["method"], justify="right")
    for name, get, write in _rows(memory):
        values = [get(record) for record in found]
        base = None if reference is None else get(reference)
        if any(value is not None for value in values):
            table.add_row(name, *(_cell(x, base, write) for x in values))
    console.print(table)
    for record in found:
        for note in (f"by {record['how']}", *record["notes"]):
            console.print(f"{record['method']}: {note}", style="dim", highlight=False, markup=False)
    console.print("One client at a time; FLOPs of matrix products, convolutions, attention.", style="dim")


def _cell(value: float | None, base: float | None, write: Callable[[Any], str]) -> str:
    if value is None:
        return "unknown"
    from bench.report.text import digits

    ratio = f" ({digits(base / value)}× less)" if base and value and base > value else ""
    return f"{write(value)}{ratio}"


def _rows(memory: str | None) -> list[tuple[str, Callable[[dict[str, Any]], Any], Callable[[Any], str]]]:
    """Name each quantity, and say where it is and how it is written."""
    from bench.report.text import bytes_text, duration_text, operations_text

    def of(*path: str) -> Callable[[dict[str, Any]], Any]:
        def get(record: dict[str, Any]) -> Any:
            value: Any = record
            for name in path:
                value = None if value is None else value.get(name)
            return value

        return get

    def count(value: int) -> str:
        return f"{value:,}"

    return [
        ("trainable parameters", of("trainable_parameters"), count),
        ("payload", of("payload_bytes"), bytes_text),
        ("sent up a round", of("round_bytes_up"), bytes_text),
        ("sent down a round", of("round_bytes_down"), bytes_text),
        ("FLOPs a sample and step", of("sample_flops"), operations_text),
        ("FLOPs a round", of("round_flops"), operations_text),
        ("FLOPs of an image's features, once", of("feature_flops"), operations_text),
        ("samples in a batch", of("batch_size"), count),
        ("peak tensor memory", of("peak_tensor_bytes"), bytes_text),
        *((f"  {cause.replace('_', ' ')}", of("peak_by_cause", cause), bytes_text) for cause in CAUSES),
        (f"largest batch in {memory}", of("largest_batch"), count),
        ("predicted time of a step", of("seconds", "step"), duration_text),
        ("  of a round's steps", of("seconds", "round"), duration_text),
        ("  of all images' features", of("seconds", "features"), duration_text),
        ("  of the run", of("seconds", "total"), duration_text),
    ]
