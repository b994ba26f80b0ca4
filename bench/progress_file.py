"""How far a running cell is: a small file in its folder, for whoever looks on from another process."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from bench.config import RunConfig
from bench.measure.memory import peak_of_process
from flora.events import Listener, Phase, RoundRecord, Work

PROGRESS = "progress.json"
SECONDS_BETWEEN = 1.0
"""How much time passes between two writes at the least, but for phases outside of rounds."""


class ProgressFile(Listener):
    """Keeps `progress.json` up to date from the events of a run, and removes it at the end of a `with`.

    Each event within rounds only looks at the clock, and one a second writes; so the file also tells a cell
    that is stuck from one with long rounds. A file that cannot be written never disturbs the run.

    Args:
        folder: the cell's, which is there.
        config: the cell.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = folder / PROGRESS
        # one name, as the lock leaves one writer: what a process killed while writing leaves is written over
        self._temporary = folder / f".{PROGRESS}.tmp"
        self._process = psutil.Process()
        self._clock = clock
        self._began = self._due = clock()
        self._first: tuple[int, float] | None = None
        self._values: dict[str, Any] = {
            "host": platform.node(),
            "pid": os.getpid(),
            "began": _now(),
            "phase": "starting",
            "round": None,
            "rounds": config.rounds,
            "accuracy": None,
            "done": None,
            "total": None,
            "peak_memory_bytes": self._process.memory_info().rss,
            "resumed_from": None,
            "rounds_per_second": None,
        }
        self._write(self._process.memory_info().rss)

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file: the cell runs no more."""
        for file in (self._file, self._temporary):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def resumed(self, round: int) -> None:
        """Take note of where the run goes on."""
        self._values.update(round=round, resumed_from=round)

    def phase_started(self, phase: Phase) -> None:
        """Name the phase; write at once if it is none of a round's."""
        self._values["phase"] = phase.name
        self._values["done"] = self._values["total"] = None
        if phase.round is None:
            self._update()
        else:
            self._update_if_due()

    def phase_ended(self, phase: Phase) -> None:
        """Write now and then."""
        self._update_if_due()

    def work_ended(self, work: Work) -> None:
        """Write now and then."""
        self._update_if_due()

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """Take note of how many images are through."""
        self._values.update(phase=phase.name, done=done, total=total)
        self._update_if_due()

    def round_ended(self, record: RoundRecord) -> None:
        """Take note of the round, its accuracy and the pace of the rounds since the first one."""
        now = self._clock()
        self._first = first, since = self._first or (record.round, now)
        if record.round > first and now > since:
            self._values["rounds_per_second"] = (record.round - first) / (now - since)
        self._values.update(round=record.round, accuracy=record.accuracy)
        self._update_if_due()

    def _update_if_due(self) -> None:
        if self._clock() >= self._due:
            self._update()

    def _update(self) -> None:
        resident = self._process.memory_info().rss
        self._values["peak_memory_bytes"] = max(
            self._values["peak_memory_bytes"], resident, peak_of_process()
        )
        self._write(resident)

    def _write(self, resident: int) -> None:
        now = self._clock()
        self._due = now + SECONDS_BETWEEN
        values = {
            **self._values,
            "memory_bytes": resident,
            "updated": _now(),
            "seconds": round(now - self._began, 3),
        }
        with suppress(OSError):
            self._temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            os.replace(self._temporary, self._file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Read how far the cell of a folder is; None if nothing runs there or the file is damaged.

    Returns:
        `host` and `pid` of the process; `began` and `updated`, UTC; `seconds` from the one to the other by a
        clock that never goes back; `phase`; `done` of `total` images in it, or null; `round` of `rounds`;
        `accuracy` after it; `rounds_per_second`; `memory_bytes` resident, and `peak_memory_bytes`, the most
        of it seen; `resumed_from`, the round that it went on from, or null.
    """
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
