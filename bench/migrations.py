"""Results of earlier schemas, brought to today's: one function a step, for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def migrated(result: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the fields of a `run.json` of an earlier schema to the newest, one step after another.

    Args:
        result: the fields; left as they are. What says no known schema is returned unchanged.

    Raises:
        LookupError, TypeError, AttributeError: it lacks what its schema has.
    """
    newest = dict(result)
    # a truth value is no number here, though Python takes it for one
    while type(schema := newest.get("schema")) is int and schema in MIGRATIONS:
        newest = {**MIGRATIONS[schema](newest), "schema": schema + 1}
    return newest


def _definition_and_sittings(result: Mapping[str, Any]) -> dict[str, Any]:
    """From 1 to 2: of what a run was made of, schema 1 knows all but the versions of the code."""
    data, model = result.get("data") or {}, result.get("model") or {}
    definition = {
        "hash": "",
        "config": result["config_hash"],
        "data": data.get("fingerprint", ""),
        "suites": data.get("suites", ""),
        "model": model.get("fingerprint", ""),
        "harness": "",
        "method": "",
        "task": "",
    }
    return {**result, "definition": definition, "sittings": []}


MIGRATIONS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _definition_and_sittings}
"""By schema, what makes the next one of it."""
