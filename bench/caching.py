"""Where what frozen towers give is kept, and how much of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from flora.errors import BadInput

FOLDER_VARIABLE = "FLORA_BENCH_CACHE"
LIMIT_VARIABLE = "FLORA_BENCH_CACHE_LIMIT"
DEFAULT_LIMIT = "20GB"

BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def default_folder() -> Path:
    """The folder that `FLORA_BENCH_CACHE` names, else one where the system keeps caches."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("flora-bench", appauthor=False) / "features"


def folder_for_runs(named: str | None) -> Path:
    """The folder that `--cache` names, else the default; it need not be there yet.

    Raises:
        BadInput: the name is empty, or a file is where the folder or one above it would be.
    """
    if named is not None and not named.strip():
        raise BadInput(f"--cache: {named!r} is no folder; name one, or give --no-cache")
    place = default_folder() if named is None else Path(named).expanduser().absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        field = "--cache" if named is not None else FOLDER_VARIABLE
        raise BadInput(f"{field}: {str(there)!r} is a file; name a folder, there or yet to be made")
    return place


def default_limit_bytes() -> int:
    """What `FLORA_BENCH_CACHE_LIMIT` says, else 20 GB.

    Raises:
        BadInput: it says something that is no size.
    """
    return parse_bytes(os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT, LIMIT_VARIABLE)


def parse_bytes(text: str, field: str) -> int:
    """Read a size such as 5GB, 1.5 GiB or 0.

    Raises:
        BadInput: it is none; the message starts with `field`.
    """
    return round(_parse(text, BYTES, f"{field}: {text!r} is no size; write one such as 5GB or 500MB"))


def parse_seconds(text: str, field: str) -> float:
    """Read a stretch of time such as 30d, 12h or 2w.

    Raises:
        BadInput: it is none; the message starts with `field`.
    """
    return _parse(text, SECONDS, f"{field}: {text!r} is no stretch of time; write one such as 30d or 12h")


def _parse(text: str, units: dict[str, int], complaint: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in units:
        raise BadInput(complaint)
    return float(match[1]) * units[match[2]]


def bytes_text(size: int) -> str:
    """Write a size for people: 98.3 kB."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:,.1f} {unit}"
    return f"{value / 1000:,.1f} TB"
