"""What methods, aggregators and codecs there are, found by file, without importing torch to say so."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import baselines
from flora.errors import BadInput, nearest
from flora.settings import CODECS

if TYPE_CHECKING:
    from flora.method import Method


def method_modules() -> dict[str, str]:
    """Name the module of every method: FLoRA's own, and each public file of `baselines/` under its name.

    A file that lists `VARIANTS` offers a method `file:variant` for each, and none under its bare name.
    """
    modules = {"flora": "flora.lora"}
    for file in _baselines():
        names = [f"{file}:{variant}" for variant in _variants(f"baselines.{file}")] or [file]
        modules |= dict.fromkeys(names, f"baselines.{file}")
    return modules


def load_method(name: str) -> type[Method]:
    """Import a method.

    Raises:
        BadInput: there is none of that name.
        ValueError: its file registers no method of that name.
    """
    modules = method_modules()
    file, _, variant = name.partition(":")
    if variants := file in _baselines() and _variants(f"baselines.{file}"):
        module = import_module(f"baselines.{file}")
    elif name in modules:
        module = import_module(modules[name])
    else:
        raise BadInput(f"method.name: there is no method {name!r}{_nearest_method(name, modules)}")
    from flora.method import METHODS

    if name not in METHODS and variant:
        raise BadInput(f"method.name: {module.why_not(variant)}")
    if name not in METHODS and variants:
        names = ", ".join(f"{file}:{variant}" for variant in variants)
        raise BadInput(f"method.name: {name!r} is several methods; choose from {names}")
    if name not in METHODS:
        raise ValueError(f"{module.__file__} must register the method {name!r}, after its file")
    return METHODS[name]


def _nearest_method(name: str, known: Iterable[str]) -> str:
    """Say which method is closest; one whose variant has just that name before all others."""
    variants = [method for method in known if method.partition(":")[2] == name]
    return f"; did you mean {variants[0]!r}?" if variants else nearest(name, known)


def describe_methods() -> dict[str, str]:
    """Give each method's one-line description: the first line of its module, or its entry in `VARIANTS`."""
    lines = {name: _first_line(_source(module)) for name, module in method_modules().items()}
    for file in _baselines():
        lines |= {f"{file}:{variant}": line for variant, line in _variants(f"baselines.{file}").items()}
    return lines


def _baselines() -> list[str]:
    """Name the public files of `baselines/`."""
    return [m.name for m in iter_modules(baselines.__path__) if not m.name.startswith("_")]


@cache
def _variants(module: str) -> dict[str, str]:
    """Read what a module assigns to `VARIANTS`, a line for each, without importing it."""
    text = _text(module)
    for node in ast.parse(text).body if "\nVARIANTS = " in text else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
            return dict(ast.literal_eval(node.value))
    return {}


def describe_aggregators() -> dict[str, str]:
    """Give each aggregator's one-line description, the first line of its class."""
    classes = [node for node in _source("flora.aggregation").body if isinstance(node, ast.ClassDef)]
    return {name: _first_line(cls) for cls in classes if (name := _assigned(cls, "name"))}


def describe_codecs() -> dict[str, str]:
    """Give each payload codec's one-line description, the first line of its settings."""
    return {name: (spec.__doc__ or "").partition("\n")[0] for name, spec in CODECS.items()}


def _source(module: str) -> ast.Module:
    return ast.parse(_text(module))


def _text(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")


def _assigned(cls: ast.ClassDef, name: str) -> str | None:
    """The string a class body assigns to `name`, if it does."""
    for node in cls.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    return None
