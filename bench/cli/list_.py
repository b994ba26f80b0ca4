"""`flora-bench list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench import catalogue
from flora.errors import BadInput, nearest


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, tasks, splits, models, presets, aggregators, codecs or profiles.", metavar="KIND"
        ),
    ],
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


def _describe(kind: str) -> dict[str, str]:
    describe = {
        "methods": catalogue.describe_methods,
        "tasks": _tasks,
        "splits": _splits,
        "models": _models,
        "presets": _presets,
        "aggregators": catalogue.describe_aggregators,
        "codecs": catalogue.describe_codecs,
        "profiles": _profiles,
    }
    if kind not in describe:
        raise BadInput(f"list: {kind!r} cannot be listed{nearest(kind, describe)}")
    return {name: text.rstrip(".") for name, text in describe[kind]().items()}


# each imports what it needs only when asked for: a list should come at once


def _tasks() -> dict[str, str]:
    from bench.tasks import describe_tasks

    return describe_tasks()


def _splits() -> dict[str, str]:
    from bench.splits import describe_splits

    return describe_splits()


def _models() -> dict[str, str]:
    from bench.models import describe_models

    return describe_models()


def _profiles() -> dict[str, str]:
    from bench.network import describe_profiles

    return describe_profiles()


def _presets() -> dict[str, str]:
    from bench.matrix import presets

    return presets()
