"""The one exception whose message a user reads."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is one line and says what would be right.

    The command line prints the message alone and exits with 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is closest, or all of them, as the end of an error message."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(names)}"
