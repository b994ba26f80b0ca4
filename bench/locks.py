"""One process a cell: a lock on its folder, which the system lets go of when its holder ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

# Whoever only looks whether a lock is held has it for a moment.
_PATIENCE_SECONDS, _POLL_SECONDS = 0.2, 0.02


def lock_of(folder: Path) -> FileLock:
    """Give the lock of a cell's folder, not taken yet."""
    return FileLock(folder / LOCK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a cell's folder for oneself, for the time of a `with`; what marks the lock is gone afterwards.

    Raises:
        filelock.Timeout: another process has it.
        OSError: the folder cannot be written.
    """
    with lock_of(folder).acquire(timeout=_PATIENCE_SECONDS, poll_interval=_POLL_SECONDS):
        try:
            yield
        finally:
            # while it is held: who waits for a file that is gone finds that out, and makes another
            (folder / LOCK).unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process, this one included, works on the cell of a folder now; leaves nothing there.

    Raises:
        OSError: it cannot be told.
    """
    if fcntl is None:
        return _is_taken(folder)
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def _is_taken(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except Timeout:
        return True
