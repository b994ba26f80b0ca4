"""How numbers and names are written in tables, figures and file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

ABSENT = "–"


@dataclass(frozen=True)
class Digits:
    """How exactly numbers are written.

    Attributes:
        accuracy: decimals of an accuracy in percent.
        cost: significant digits of times, bytes and other costs.
    """

    accuracy: int = 1
    cost: int = 3


def bytes_text(value: float, significant: int = 3) -> str:
    """Return bytes with a decimal prefix and so many digits: 98.3 kB."""
    if abs(value) < 1000:
        return f"{value:.0f} B"
    scaled, prefix = _scaled(value, ("k", "M", "G", "T"), significant)
    return f"{digits(scaled, significant)} {prefix}B"


def operations_text(value: float, significant: int = 3) -> str:
    """Return operations with a decimal prefix and so many digits: 282 G."""
    if abs(value) < 999.5:
        return f"{value:.0f}"
    scaled, prefix = _scaled(value, ("k", "M", "G", "T", "P"), significant)
    return f"{digits(scaled, significant)} {prefix}"


def _scaled(value: float, prefixes: Sequence[str], significant: int) -> tuple[float, str]:
    """Divide by thousands until what is written is below 1000, or the prefixes run out."""
    for prefix in prefixes:
        value /= 1000
        if abs(_rounded(value, significant)) < 1000:
            return value, prefix
    return value, prefixes[-1]


def _rounded(value: float, significant: int) -> float:
    return float(f"{value:.{significant}g}")


def duration_text(seconds: float) -> str:
    """Return seconds as people read them: 0.162 s, 0:03:20, 1 day, 4:36:40."""
    return f"{digits(seconds)} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def digits(value: float, significant: int = 3) -> str:
    """Return a number to so many digits, at most one more of them decimals: 0.0521, 12.3, 1,234."""
    if not np.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    rounded = _rounded(value, significant)  # 0.9996 is written 1.00
    decimals = significant - 1 - int(np.floor(np.log10(abs(rounded))))
    return f"{value:,.{min(max(decimals, 0), significant + 1)}f}"


def n_text(n: Sequence[int] | pd.Series) -> str:
    """Say over how many seeds a mean is taken: "mean of n = 1 to 3 seeds", "one seed"."""
    low, high = min(n), max(n)
    if high == 1:
        return "one seed"
    return f"mean of n = {high} seeds" if low == high else f"mean of n = {low} to {high} seeds"


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one: "1 run", "1,020 runs"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def slug(text: str) -> str:
    """Return text as a file name: small letters, digits, underscores and single hyphens."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._") else " " for c in text.lower())
    return "-".join(kept.replace(".", "_").split()) or "unnamed"


def escape_markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line, also within a table."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in line)


def keep_brackets_whole(text: str) -> str:
    """Return text that breaks before a short bracket and not within it."""
    return re.sub(r"\([^()]{1,24}\)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
