"""Something to look at while a report is made: on a terminal, how far it has come; elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def patiently(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """Give the items, and show on a terminal's stderr how many of them are done.

    Args:
        items: of which each takes a while.
        what: is done with them, such as "drawing".
        total: how many there are.
    """
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, total=total, console=Console(stderr=True), transient=True)
