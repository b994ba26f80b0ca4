"""How a matrix gets on: a live line on a terminal, a plain line a cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bench.config import RunConfig, labels
from bench.execute import Outcome, Watcher
from flora.events import Phase, RoundRecord

QUIET_SECONDS = 2.0  # what takes no longer is not worth a word
SECONDS_A_LINE = 5.0


@contextmanager
def progress(stream: TextIO) -> Iterator[Watcher]:
    """Give a watcher that writes to `stream`, as suits it, for the time of a `with`."""
    console = Console(file=stream)
    if not console.is_terminal:
        yield PlainProgress(console)
        return
    bar = Progress(
        BarColumn(), TextColumn("{task.completed:,}/{task.total:,} {task.fields[unit]}"),
        TextColumn("{task.description}"), console=console, transient=True,
    )  # fmt: skip
    with bar:
        yield LiveProgress(bar)


class TimeLeft:
    """Foretells how long the cells left will take, from those of the same method that have run."""

    def __init__(self, left: Sequence[RunConfig]) -> None:
        self._left = [config.method.name for config in left]
        self._seconds: dict[str, list[float]] = {}

    def cell_took(self, seconds: float) -> None:
        """Take note of the cell that was first among those left."""
        self._seconds.setdefault(self._left.pop(0), []).append(seconds)

    def __str__(self) -> str:
        if not self._seconds:
            return "time left unknown"
        mean = {method: fmean(seconds) for method, seconds in self._seconds.items()}
        elsewhere = fmean(mean.values())
        left = sum(mean.get(method, elsewhere) for method in self._left)
        return f"about {timedelta(seconds=round(left))} left"


class Pace:
    """How fast a long piece of work gets on, from the moment it was first heard of.

    Args:
        phase: what is done.
        done: how much of it was done at that moment, as by an earlier run.
        total: how much there is.
    """

    def __init__(self, phase: Phase, done: int, total: int) -> None:
        self.phase, self.total = phase, total
        self.began_with = self.done = done
        self.began = self.told = time.monotonic()

    def goes_on(self, phase: Phase, done: int, total: int) -> bool:
        """Take note of where the work stands; False if this is other work."""
        same = (phase, total) == (self.phase, self.total) and self.done <= done and self.done < total
        self.done = done
        return same

    @property
    def worth_telling(self) -> bool:
        """Whether the work lasts long enough to speak of."""
        return time.monotonic() - self.began >= QUIET_SECONDS

    def due(self, seconds: float) -> bool:
        """Whether something should be said, that much time having passed since it last was."""
        now = time.monotonic()
        first = self.told == self.began
        if not self.worth_telling or not (first or now - self.told >= seconds or self.done == self.total):
            return False
        self.told = now
        return True

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.began
        rate = (self.done - self.began_with) / elapsed if elapsed else 0.0
        if not rate:
            return "time left unknown"
        if self.done == self.total:
            return f"{rate:,.3g}/s, took {timedelta(seconds=round(elapsed))}"
        left = timedelta(seconds=round((self.total - self.done) / rate))
        return f"{rate:,.3g}/s, about {left} left"


class PlainProgress(Watcher):
    """One line when the matrix starts, one for each cell that ends, a few for long work in a cell."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace: Pace | None = None

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """Say how many cells there are, and how many of them have a result."""
        self.total, self.done = len(left), 0
        self.labels = labels(cells)
        self.time_left = TimeLeft(left)
        kept = f", {len(cells) - len(left)} kept from before" if len(left) < len(cells) else ""
        self._write(f"{len(cells)} cell{'s' * (len(cells) > 1)}{kept}")

    def cell_started(self, config: RunConfig) -> None:
        """Start the cell's clock."""
        self.started = time.monotonic()
        self.name = self.labels[config.hash]

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """Say how many images have their features, if that takes a while."""
        if self.pace is None or not self.pace.goes_on(phase, done, total):
            self.pace = Pace(phase, done, total)
        self._show(self.pace)

    def _show(self, pace: Pace) -> None:
        if pace.due(SECONDS_A_LINE):
            self._write(f"{self.name}: {pace.phase.name}, {pace.done:,} of {pace.total:,} images, {pace}")

    def cell_ended(self, outcome: Outcome) -> None:
        """Say what the cell came to."""
        seconds = time.monotonic() - self.started
        self.time_left.cell_took(seconds)
        self.done += 1
        left = f", {self.time_left}" if self.done < self.total else ""
        self._write(f"[{self.done}/{self.total}] {self.name}: {_came_to(outcome)} ({seconds:.1f} s{left})")

    def _write(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(PlainProgress):
    """A bar with what is running, its round and accuracy, and the time left; a second one for long work."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(bar.console)
        self.bar = bar
        self.task = TaskID(0)
        self.images: TaskID | None = None

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """Set the bar up."""
        super().matrix_started(cells, left)
        if left:
            self.task = self.bar.add_task("loading libraries", total=len(left), unit="cells")

    def cell_started(self, config: RunConfig) -> None:
        """Name the cell."""
        super().cell_started(config)
        self._describe("starting")

    def phase_started(self, phase: Phase) -> None:
        """Name what is done before the first round."""
        if phase.round is None:
            self._describe(phase.name.replace("_", "-"))

    def phase_ended(self, phase: Phase) -> None:
        """Take the bar of images away with the phase it was for."""
        if self.images is not None and self.pace is not None and phase == self.pace.phase:
            self.bar.remove_task(self.images)
            self.images = None

    def _show(self, pace: Pace) -> None:
        if not pace.worth_telling:
            return
        if self.images is None:
            self.images = self.bar.add_task("", unit="images")
        self.bar.update(self.images, completed=pace.done, total=pace.total, description=str(pace))

    def round_ended(self, record: RoundRecord) -> None:
        """Show the round and its accuracy."""
        self._describe(f"round {record.round}, accuracy {record.accuracy:.1%}")

    def cell_ended(self, outcome: Outcome) -> None:
        """Move the bar on."""
        super().cell_ended(outcome)
        self.bar.advance(self.task)

    def _describe(self, what: str) -> None:
        self.bar.update(self.task, description=f"{self.name}: {what} · {self.time_left}")


def _came_to(outcome: Outcome) -> str:
    if outcome.reason:
        return f"{outcome.status}: {outcome.reason}"
    summary = outcome.summary
    refused = summary["refused_uploads"]
    lost = f", {refused} uploads refused" if refused else ""
    return f"accuracy {summary['accuracy']:.1%}, zero-shot {summary['zero_shot_accuracy']:.1%}{lost}"
