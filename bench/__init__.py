"""The harness: what is run, measured, kept and reported.

`Matrix`, `run` and `load_results` are all that a script needs; see `bench.api`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Result as Result
    from bench.api import run as run
    from bench.config import RunConfig as RunConfig
    from bench.matrix import Matrix as Matrix
    from bench.store import load_results as load_results
    from bench.store import load_rounds as load_rounds

_HOMES = {
    "Matrix": "bench.matrix",
    "Result": "bench.api",
    "RunConfig": "bench.config",
    "load_results": "bench.store",
    "load_rounds": "bench.store",
    "run": "bench.api",
}
__all__ = ["Matrix", "Result", "RunConfig", "load_results", "load_rounds", "run"]


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use, as most commands do without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
