"""One process a cell: a lock on its folder, which the system lets go of when its holder ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


def lock_of(folder: Path) -> FileLock:
    """Give the lock of a cell's folder, not taken yet; `acquire(timeout=0)` raises `filelock.Timeout`."""
    return FileLock(folder / LOCK)


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, works on the cell of a folder now.

    Raises:
        OSError: it cannot be told, as only others may write there.
    """
    if not (folder / LOCK).exists():
        return False
    try:
        with lock_of(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True
