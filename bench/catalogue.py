"""What methods and aggregators there are, found by file, without importing torch to say so."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import baselines
from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from flora.method import Method


def method_modules() -> dict[str, str]:
    """Name the module of every method: FLoRA's own, and each public file of `baselines/` under its name."""
    names = [m.name for m in iter_modules(baselines.__path__) if not m.name.startswith("_")]
    return {"flora": "flora.lora"} | {name: f"baselines.{name}" for name in names}


def load_method(name: str) -> type[Method]:
    """Import a method.

    Raises:
        BadInput: there is none of that name.
        ValueError: its file registers no method of that name.
    """
    modules = method_modules()
    if name not in modules:
        raise BadInput(f"method.name: there is no method {name!r}{nearest(name, modules)}")
    module = import_module(modules[name])
    from flora.method import METHODS

    if name not in METHODS:
        raise ValueError(f"{module.__file__} must register the method {name!r}, after its file")
    return METHODS[name]


def describe_methods() -> dict[str, str]:
    """Give each method's one-line description, the first line of its module."""
    return {name: _first_line(_source(module)) for name, module in method_modules().items()}


def describe_aggregators() -> dict[str, str]:
    """Give each aggregator's one-line description, the first line of its class."""
    classes = [node for node in _source("flora.aggregation").body if isinstance(node, ast.ClassDef)]
    return {name: _first_line(cls) for cls in classes if (name := _assigned(cls, "name"))}


def _source(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")


def _assigned(cls: ast.ClassDef, name: str) -> str | None:
    """The string a class body assigns to `name`, if it does."""
    for node in cls.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    return None


def describe_models() -> dict[str, str]:
    """Say which models a run can start from."""
    return {
        "tiny": "Embedded: a small CLIP pretrained on printed characters; nothing is downloaded",
        "ARCHITECTURE:random": "An open_clip architecture, seeded random weights: for time, memory, bytes",
    }
