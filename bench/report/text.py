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


def bytes_text(value: float) -> str:
    """Return bytes with a decimal prefix and three digits: 98.3 kB."""
    if abs(value) < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 999.5:
            return f"{digits(value)} {unit}"
    return f"{digits(value / 1000)} TB"


def operations_text(value: float) -> str:
    """Return operations with a decimal prefix and three digits: 282 G."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5:
            return f"{digits(value)}{unit}" if unit else f"{value:.0f}"
        value /= 1000
    return f"{digits(value)} P"


def duration_text(seconds: float) -> str:
    """Return seconds as people read them: 0.162 s, 0:03:20, 1 day, 4:36:40."""
    return f"{digits(seconds)} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def digits(value: float) -> str:
    """Return a number to three digits, at most four of them decimals: 0.0521, 12.3, 1,234."""
    if not np.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # 0.9996 is written 1.00
    decimals = 2 - int(np.floor(np.log10(abs(rounded))))
    return f"{value:,.{min(max(decimals, 0), 4)}f}"


def n_text(n: Sequence[int] | pd.Series) -> str:
    """Say over how many seeds a mean is taken: "mean of n = 1 to 3 seeds", "one seed"."""
    low, high = min(n), max(n)
    if high == 1:
        return "one seed"
    return f"mean of n = {high} seeds" if low == high else f"mean of n = {low} to {high} seeds"


def slug(text: str) -> str:
    """Return text as a file name: small letters, digits, underscores and single hyphens."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._") else " " for c in text.lower())
    return "-".join(kept.replace(".", "_").split()) or "unnamed"


def escape_markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line, also within a table."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in line)


def keep_brackets_whole(text: str) -> str:
    """Return text that breaks before a bracket and not within it."""
    return re.sub(r"\([^)]*\)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
