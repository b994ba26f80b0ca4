"""The harness: what is run, measured, kept and reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.store import load_results as load_results
    from bench.store import load_rounds as load_rounds

__all__ = ["load_results", "load_rounds"]


def __getattr__(name: str) -> Any:
    """Import the readers of results on first use, as most commands do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench import store

    return getattr(store, name)
