"""What happened to a cell and when: `log.txt` in its folder, one line an event, over all attempts at it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType

from bench.config import RunConfig, label
from bench.measure.environment import describe
from flora.errors import BadInput
from flora.events import Listener, Phase, RoundRecord

LOG = "log.txt"
ROUNDS_ALL_WRITTEN = 100
"""Of runs with more rounds than that, at most one is written every `SECONDS_BETWEEN`, and the last."""

SECONDS_BETWEEN = 1.0


class CellLog(Listener):
    """Appends to a log around the body of a `with`, which it tells the end of, whatever that is.

    A log that cannot be written never disturbs the run.

    Args:
        path: the file.
        config: the cell.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._config = path, config
        self._clock = clock
        self._due = self._began = clock()
        self._phases: list[float] = []
        self._refused = 0
        self._came_to = ""
        self._file: FileIO | None = None

    def __enter__(self) -> CellLog:
        with suppress(OSError):
            # unbuffered: a line is one write, so that none waits in memory for a death or a disk with room
            self._file = self._path.open("ab", buffering=0)
        self.write(f"started: {label(self._config)} ({self._config.hash}) on {_here()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write(f"{self._end(error)} after {self._clock() - self._began:.1f} s")
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _end(self, error: BaseException | None) -> str:
        match error:
            case None:
                return f"ended{self._came_to}"
            case KeyboardInterrupt():
                return "interrupted"
            case BadInput():
                return f"refused: {error},"
        return f"failed: {type(error).__name__}: {error},"

    def write(self, event: str) -> None:
        """Append a line, with the time in front."""
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        with suppress(OSError):
            self._file.write(f"{now} {' '.join(event.split())}\n".encode(errors="replace"))

    def resumed(self, round: int) -> None:
        """Say where the run goes on."""
        self.write(f"resumed from round {round} of {self._config.rounds}")

    def phase_started(self, phase: Phase) -> None:
        """Start the clock of a phase outside of rounds."""
        if phase.round is None:
            self._phases.append(self._clock())

    def phase_ended(self, phase: Phase) -> None:
        """Say how long a phase outside of rounds took."""
        if phase.round is None:
            self.write(f"{phase.name}: {self._clock() - self._phases.pop():.3f} s")

    def round_ended(self, record: RoundRecord) -> None:
        """Say what the round came to, and how many uploads were refused since that was last said."""
        self._refused += len(record.refused)
        rounds, now = self._config.rounds, self._clock()
        if rounds > ROUNDS_ALL_WRITTEN and now < self._due and record.round != rounds:
            return
        self._due = now + SECONDS_BETWEEN
        loss = "" if record.loss is None else f", loss {record.loss:.6g}"
        accuracy = f"accuracy {record.accuracy:.2%}"
        self.write(f"round {record.round} of {rounds}: {accuracy}{loss}{self._refusals(record)}")
        self._came_to = f" with {accuracy}"

    def _refusals(self, record: RoundRecord) -> str:
        count, self._refused = self._refused, 0
        if not count:
            return ""
        if not record.refused:
            return f", {count} upload{'s' * (count > 1)} refused before"
        last = record.refused[-1]
        return f", {count} upload{'s' * (count > 1)} refused, the last of client {last.client}: {last.reason}"


def _here() -> str:
    """Say where this process runs, and what."""
    here = describe("cpu")
    versions = f"Python {here['python']}, torch {here['packages']['torch']}"
    commit = (
        f" at {here['git_commit'][:12]}{' changed' * bool(here['git_dirty'])}" if here["git_commit"] else ""
    )
    return f"{platform.node()}, process {os.getpid()}; flora-bench {here['suite']}{commit}, {versions}"
