"""Which code a run's numbers come from: a hash over what modules compute, not over how that is written.

Comments, docstrings and formatting do not count, nor does what only a type checker reads. The hash is the
same under Python 3.11 to 3.13.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("flora", "baselines", "bench")
ROOT = Path(__file__).parents[1]
"""Where the packages lie, beside one another: in a checkout as where they are installed."""

DIGITS = 12
# Where a statement holds others.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True)
class _Module:
    digest: str
    imports: frozenset[str]


def code_version(modules: Iterable[str], root: Path = ROOT) -> str:
    """Hash the code of modules, whatever their order, to twelve hexadecimal digits.

    Args:
        modules: by their dotted names; these alone, without what they import.
        root: the folder that their packages lie in.
    """
    digests = [f"{name} {_module(name, root).digest}" for name in sorted(modules)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:DIGITS]


@cache
def imported(module: str, root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> frozenset[str]:
    """Name a module and all that it imports, directly or not, out of the given packages.

    An import within a function counts, as it may run; one under `if TYPE_CHECKING:` does not. A module that
    is imported by a name made up when it runs, as methods and tasks are, cannot be seen.

    Args:
        module: by its dotted name.
        root: the folder that the packages lie in.
        packages: those whose modules are named; what lies outside of them is left out.

    Raises:
        ValueError: there is no such module.
    """
    if _file(module, root) is None:
        raise ValueError(f"{module} is no module in {root}")
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # a name imported from a module need be no module itself
        if name in found or name.partition(".")[0] not in packages or _file(name, root) is None:
            continue
        found.add(name)
        # a module's package is run before it
        waiting += [name.rpartition(".")[0], *_module(name, root).imports]
    return frozenset(found)


@cache
def _file(module: str, root: Path) -> Path | None:
    place = root.joinpath(*module.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


@cache
def _module(name: str, root: Path) -> _Module:
    file = _file(name, root)
    assert file is not None
    tree = ast.parse(file.read_bytes())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    digest = hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()
    return _Module(digest, frozenset(_imports(tree.body, package)))


def _plain(node: ast.AST) -> tuple[Any, ...]:
    """Give a tree as nested tuples of what it holds; in fields that hold nothing Pythons differ."""
    fields: list[Any] = [type(node).__name__]
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            items = _that_runs(value) if not isinstance(node, ast.JoinedStr) else _that_show(value)
            kept = [_plain(item) if isinstance(item, ast.AST) else item for item in items]
            if kept:
                fields.append((name, *kept))
        elif isinstance(value, ast.AST):
            if not isinstance(value, ast.expr_context):  # follows from where the node stands
                fields.append((name, _plain(value)))
        elif isinstance(node, ast.Constant):
            if name == "value":  # the other says how a string was written
                fields.append(value)
        elif value is not None:
            fields.append((name, value))
    return tuple(fields)


def _that_show(parts: Sequence[ast.expr]) -> Iterator[ast.expr]:
    """Leave out the empty texts that Python 3.12 finds in f-strings, and no other version."""
    return (part for part in parts if not (isinstance(part, ast.Constant) and part.value == ""))


def _that_runs(items: Sequence[Any]) -> Iterator[Any]:
    """Leave out statements that change no number: docstrings, and what is there for readers of the code."""
    for item in items:
        if isinstance(item, ast.If) and _named(item.test) == "TYPE_CHECKING":
            yield from _that_runs(item.orelse)
        elif not (
            isinstance(item, ast.Pass)
            or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            or _is_for_others(item)
        ):
            yield item


def _is_for_others(item: Any) -> bool:
    """Whether it is what a package offers as its own; the packages' modules import from one another."""
    if isinstance(item, ast.FunctionDef):
        return item.name == "__getattr__" and len(item.args.args) == 1  # that of a class has two
    return isinstance(item, ast.Assign) and [_named(target) for target in item.targets] == ["__all__"]


def _named(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _imports(block: Sequence[Any], package: str) -> Iterator[str]:
    """Name what is imported in a block; a name taken from a package may be one of its modules."""
    for item in _that_runs(block):
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - item.level] if item.level else []
            source = ".".join([*above, *([item.module] if item.module else [])])
            yield from (source, *(f"{source}.{alias.name}" for alias in item.names))
        for name in _BLOCKS:
            yield from _imports(getattr(item, name, []), package)
