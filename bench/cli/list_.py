"""`flora-bench list`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """What can be listed."""

    methods = "methods"
    tasks = "tasks"
    splits = "splits"
    models = "models"
    presets = "presets"
    aggregators = "aggregators"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="An object of names and descriptions.")] = False,
) -> None:
    """Say what there is, a line each."""
    entries = _describe(kind)
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    width = max(map(len, entries))
    for name, description in entries.items():
        typer.echo(f"{name:<{width}}  {description}")


def _describe(kind: Kind) -> dict[str, str]:
    # each is imported only when asked for: a list should come at once
    from bench import catalogue

    def tasks() -> dict[str, str]:
        from bench.tasks import describe_tasks

        return describe_tasks()

    def splits() -> dict[str, str]:
        from bench.splits import describe_splits

        return describe_splits()

    def presets() -> dict[str, str]:
        from bench.matrix import presets

        return presets()

    describe: dict[Kind, Callable[[], dict[str, str]]] = {
        Kind.methods: catalogue.describe_methods,
        Kind.aggregators: catalogue.describe_aggregators,
        Kind.models: catalogue.describe_models,
        Kind.tasks: tasks,
        Kind.splits: splits,
        Kind.presets: presets,
    }
    return describe[kind]()
