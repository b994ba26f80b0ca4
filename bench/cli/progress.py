"""How a matrix gets on: a live view on a terminal, a plain line a cell elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import takewhile
from statistics import fmean, median
from threading import Event, Lock, Thread
from typing import TextIO

import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.config import RunConfig, labels
from bench.execute import Outcome, Watcher
from flora.events import Listener, Phase, RoundRecord

QUIET_SECONDS = 2.0  # what takes no longer is not worth a word
SECONDS_A_LINE = 5.0
SECONDS_A_CELLS_LINE = 300.0
"""Off a terminal: how often a line says where a cell is that runs for long."""

SECONDS_BETWEEN_LOOKS = 5.0
REFRESHES_PER_SECOND = 2.0  # drawing takes time from the cells
ROWS = 8
"""Of cells that run, so that the view stays low however many they are."""

BAR_FROM_COLUMNS, BAR_COLUMNS, NOTES_COLUMNS = 100, 16, 20
ROUNDS_HALF_TRUSTED = 3
"""After so many timed rounds a cell's own pace counts as much as what cells before it took."""


@contextmanager
def progress(stream: TextIO, predictions: Mapping[str, float] = {}, jobs: int = 1) -> Iterator[Watcher]:
    """Give a watcher that writes to `stream`, as suits it, for the time of a `with`.

    Args:
        stream: such as standard error.
        predictions: seconds that cells are foretold to take, by hash of the configuration.
        jobs: how many cells are to run at once; what counts is how many do.
    """
    console = Console(file=stream)
    if not console.is_terminal:
        plain = PlainProgress(console, predictions, jobs)
        with _now_and_then(plain.tell_of_long_cells):
            yield plain
        return
    view = LiveProgress(console, predictions, jobs)
    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
        transient=True,
    ):
        yield view


@contextmanager
def _now_and_then(do: Callable[[], None]) -> Iterator[None]:
    """Call a function every few seconds for the time of a `with`: a cell may be silent for hours."""
    over = Event()

    def repeat() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            do()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Headway:
    """How far a cell is.

    Attributes:
        share: of its rounds that are done, in [0, 1].
        timed_rounds: how many of them one process has run after its first.
        total_seconds: what all rounds would take at the pace of these; None where there are none.
    """

    share: float = 0.0
    timed_rounds: int = 0
    total_seconds: float | None = None

    @classmethod
    def of(cls, round: int, rounds: int, timed_rounds: int, seconds: float) -> Headway:
        """Describe a cell after `round` of its rounds, where the last so many took so long."""
        share = min(1.0, round / rounds) if rounds else 0.0
        if timed_rounds <= 0 or seconds <= 0:
            return cls(share)
        return cls(share, timed_rounds, seconds / timed_rounds * rounds)


class TimeLeft:
    """Foretells how long cells will take, from predictions and from what was measured.

    A cell is expected to take what was predicted of it, times the median over the ended cells of its method
    of measured by predicted; over those of all methods, where none of its own has ended. Without a prediction
    it is expected to take the mean of its method; of the methods' means, where none of its own has ended. A
    method of which no cell has ended is judged by its running ones, at their pace.

    A running cell that has timed n rounds is held to that expectation with weight 3 / (n + 3), and to its own
    pace with the rest.

    Args:
        left: the methods of the cells that have no result yet, by the cells' hashes.
        predictions: seconds by the cells' hashes, as far as they are known.
        jobs: how many run at once, until some have been seen to run.
    """

    def __init__(self, left: Mapping[str, str], predictions: Mapping[str, float] = {}, jobs: int = 1) -> None:
        self._left = dict(left)
        self._predictions, self._jobs = predictions, jobs
        self._most_at_once = 0
        self._measured = _Measured()
        # sums, as there may be thousands of cells and the time left is asked for every moment
        self._predicted: dict[str, float] = defaultdict(float)
        self._predicted_cells: dict[str, int] = defaultdict(int)
        self._other_cells: dict[str, int] = defaultdict(int)
        for key in self._left:
            self._count(key, 1)

    def _count(self, key: str, number: int) -> None:
        method, predicted = self._left[key], self._predictions.get(key)
        if predicted:
            self._predicted[method] += number * predicted
            self._predicted_cells[method] += number
        else:
            self._other_cells[method] += number

    def cells_run(self, number: int) -> None:
        """Take note that so many run now: as many as ever did are expected to."""
        self._most_at_once = max(self._most_at_once, number)

    def cell_ended(self, key: str) -> None:
        """Leave a cell out from now on."""
        if key in self._left:
            self._count(key, -1)
            del self._left[key]

    def cell_took(self, key: str, method: str, seconds: float) -> None:
        """Learn from what a cell took, from its beginning to its end."""
        self._measured.add(method, seconds, self._predictions.get(key))

    def seconds(self, running: Mapping[str, Headway] = {}) -> float | None:
        """Give how long the cells left will take; None if that cannot be said.

        Args:
            running: how far the cells are that run, by hash.
        """
        running = {key: headway for key, headway in running.items() if key in self._left}
        known = self._measured_by(running)
        remaining = [_remaining(headway, self._expected(key, known)) for key, headway in running.items()]
        remaining.append(self._waiting_seconds(running, known))
        certain = [seconds for seconds in remaining if seconds is not None]
        if len(certain) < len(remaining):
            return None
        at_once = max(1, min(self._most_at_once or self._jobs, len(self._left)))
        return max(sum(certain) / at_once, *certain[:-1], 0.0)

    def seconds_of(self, key: str, running: Mapping[str, Headway]) -> float | None:
        """Give how long one of the cells that run will take yet; None if that cannot be said."""
        running = {key: headway for key, headway in running.items() if key in self._left}
        return _remaining(running[key], self._expected(key, self._measured_by(running)))

    def _measured_by(self, running: Mapping[str, Headway]) -> _Measured:
        """Add what running cells tell of methods of which none has ended."""
        known = _Measured(dict(self._measured.seconds), dict(self._measured.ratios))
        for key, headway in running.items():
            method = self._left[key]
            if headway.total_seconds is not None and method not in self._measured.seconds:
                known.add(method, headway.total_seconds, self._predictions.get(key))
        return known

    def _waiting_seconds(self, running: Iterable[str], known: _Measured) -> float | None:
        """Give what the cells will take that have not begun."""
        other_cells, predicted = dict(self._other_cells), dict(self._predicted)
        for key in running:
            method = self._left[key]
            if seconds := self._predictions.get(key):
                predicted[method] -= seconds
            else:
                other_cells[method] -= 1
        total = sum(known.ratio(method) * seconds for method, seconds in predicted.items())
        for method, cells in other_cells.items():
            if cells:
                if (mean := self._mean(method, known)) is None:
                    return None
                total += cells * mean
        return total

    def _expected(self, key: str, known: _Measured) -> float | None:
        method = self._left[key]
        predicted = self._predictions.get(key)
        return known.ratio(method) * predicted if predicted else self._mean(method, known)

    def _mean(self, method: str, known: _Measured) -> float | None:
        """Give what a cell of a method takes of which nothing was predicted."""
        if method in known.seconds:
            return fmean(known.seconds[method])
        means = [fmean(seconds) for seconds in known.seconds.values()] or [
            seconds / self._predicted_cells[other]
            for other, seconds in self._predicted.items()
            if self._predicted_cells[other]
        ]
        return fmean(means) if means else None


@dataclass(frozen=True)
class _Measured:
    """What cells took, and how many times what was predicted of them, by method."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def add(self, method: str, seconds: float, predicted: float | None) -> None:
        self.seconds.setdefault(method, []).append(seconds)
        if predicted:
            self.ratios.setdefault(method, []).append(seconds / predicted)

    def ratio(self, method: str) -> float:
        """Give how many times what was predicted cells of a method take."""
        ratios = self.ratios.get(method) or [ratio for some in self.ratios.values() for ratio in some]
        return median(ratios) if ratios else 1.0


def _remaining(headway: Headway, expected: float | None) -> float | None:
    total = headway.total_seconds
    if total is None or expected is None:
        total = expected if total is None else total
    else:
        trust = headway.timed_rounds / (headway.timed_rounds + ROUNDS_HALF_TRUSTED)
        total = trust * total + (1 - trust) * expected
    return None if total is None else (1 - headway.share) * total


def time_left_text(seconds: float | None) -> str:
    """Say how much time is left, None being not known."""
    return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Write whole seconds as hours, minutes and seconds; clocks that were set back make no negative ones."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def rate_text(number: float, what: str, seconds: float) -> str:
    """Say how many of something there are a second, a minute or an hour: the first that is at least 1."""
    rates = {unit: number / seconds * length for unit, length in (("s", 1), ("min", 60), ("h", 3600))}
    unit = next((unit for unit, rate in rates.items() if rate >= 1), "h")
    rate = rates[unit]
    return f"{rate:,.0f} {what}/{unit}" if rate >= 100 else f"{rate:.3g} {what}/{unit}"


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
            return f"{rate:,.3g}/s, took {duration(elapsed)}"
        return f"{rate:,.3g}/s, {time_left_text((self.total - self.done) / rate)}"


class RunningCell(Listener):
    """What is known of a cell while it runs.

    Args:
        config: the cell.
        name: what it is called.
        tell: called with this cell and the pace of long work whenever that has moved.
    """

    def __init__(self, config: RunConfig, name: str, tell: Callable[[RunningCell, Pace], None]) -> None:
        self.config, self.name, self._tell = config, name, tell
        self.began = self.told = time.monotonic()
        self.doing = "starting"
        self.was_resumed = False
        self.round: int | None = None
        self.accuracy: float | None = None
        self.pace: Pace | None = None
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of its rounds is done."""
        return (self.round or 0) / self.config.rounds if self.config.rounds else 0.0

    @property
    def reached(self) -> Sequence[str]:
        """Say how good it is by now, once that is known."""
        return [] if self.accuracy is None else [f"accuracy {self.accuracy:.1%}"]

    @property
    def headway(self) -> Headway:
        """How far it is, and how fast."""
        timed, seconds = self._timed
        return Headway.of(self.round or 0, self.config.rounds, timed, seconds)

    @property
    def rounds_per_second(self) -> float:
        """How fast its rounds pass."""
        timed, seconds = self._timed
        return timed / seconds if seconds > 0 else 0.0

    @property
    def _timed(self) -> tuple[int, float]:
        """How many rounds have ended after the first that did, and how long they took."""
        if self._first is None or self._last is None:
            return 0, 0.0
        return self._last[0] - self._first[0], self._last[1] - self._first[1]

    def resumed(self, round: int) -> None:
        """Take note that its first rounds were run by another process."""
        self.was_resumed, self.round = True, round

    def phase_started(self, phase: Phase) -> None:
        """Take note of what is done outside of rounds."""
        if phase.round is None:
            self.doing = phase.name.replace("_", "-")

    def phase_ended(self, phase: Phase) -> None:
        """Forget the images of a phase with it."""
        if self.pace is not None and phase == self.pace.phase:
            self.pace = None

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """Take note of how many images are through."""
        if self.pace is None or not self.pace.goes_on(phase, done, total):
            self.pace = Pace(phase, done, total)
        self._tell(self, self.pace)

    def round_ended(self, record: RoundRecord) -> None:
        """Take note of the round and its accuracy."""
        self._last = record.round, time.monotonic()
        self._first = self._first or self._last
        self.round, self.accuracy = record.round, record.accuracy
        self.doing = f"round {record.round:,}/{self.config.rounds:,}"


class PlainProgress(Watcher):
    """One line when the matrix starts, one for each cell that ends, a few for what takes long."""

    def __init__(self, console: Console, predictions: Mapping[str, float] = {}, jobs: int = 1) -> None:
        self.console = console
        self.predictions, self.jobs = predictions, jobs
        self.total = self.kept = 0
        self.running: dict[str, RunningCell] = {}
        self.ended: dict[str, str] = {}
        self._waited_for: set[str] = set()
        self._stale: Counter[str] = Counter()
        self._counting = Lock()  # cells may end in several threads; nothing is written while it is held

    def found_stale(self, config: RunConfig, changes: Sequence[str]) -> None:
        """Count what has changed."""
        self._stale.update(["; ".join(changes)])

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """Say how many cells there are, how many have a result, and how many one that no longer stands."""
        self.began = time.monotonic()
        self.labels = labels(cells)
        self.time_left = TimeLeft(
            {config.hash: config.method.name for config in left}, self.predictions, self.jobs
        )
        self.total, self.kept = len(left), len(cells) - len(left)
        kept = f", {self.kept} kept from before" if self.kept else ""
        stale = "".join(f", {count} to be replaced: {what}" for what, count in self._stale.items())
        self._write(f"{len(cells)} cell{'s' * (len(cells) > 1)}{kept}{stale}")

    def cell_started(self, config: RunConfig) -> Listener:
        """Start the cell's clock."""
        running = RunningCell(config, self.labels[config.hash], self._long_work)
        self.running[config.hash] = running
        self.time_left.cells_run(len(self.running))
        return running

    def tell_of_long_cells(self) -> None:
        """Say where the cells are of which nothing was said for minutes."""
        now, running = time.monotonic(), dict(self.running)
        headways = {key: cell.headway for key, cell in running.items()}
        for key, cell in running.items():
            if now - cell.told >= SECONDS_A_CELLS_LINE:
                cell.told = now
                with self._counting:
                    if key in self.ended:
                        continue
                    left = self.time_left.seconds_of(key, headways)
                self._write(f"{cell.name}: {', '.join([cell.doing, *cell.reached, time_left_text(left)])}")

    def _long_work(self, cell: RunningCell, pace: Pace) -> None:
        """Say how many images have their features, if that takes a while."""
        if pace.due(SECONDS_A_LINE):
            cell.told = time.monotonic()
            self._write(f"{cell.name}: {pace.phase.name}, {pace.done:,} of {pace.total:,} images, {pace}")

    def cell_ended(self, outcome: Outcome) -> None:
        """Say what the cell came to."""
        key = outcome.config.hash
        running = self.running.pop(key, None) or RunningCell(
            outcome.config, self.labels[key], self._long_work
        )
        if outcome.status == "busy":
            self._wait_for(running)
            return
        with self._counting:
            self.ended[key] = outcome.status
            self.time_left.cell_ended(key)
            if outcome.status == "ran" and not running.was_resumed:
                self.time_left.cell_took(key, outcome.config.method.name, running.seconds)
            done = len(self.ended)
        left = f", {time_left_text(self.seconds_left())}" if done < self.total else ""
        came_to = f"{_came_to(outcome)} ({running.seconds:.1f} s{left})"
        self._write(f"[{done}/{self.total}] {running.name}: {came_to}")

    def _wait_for(self, cell: RunningCell) -> None:
        """Say once that another process has a cell: it is asked for again and again."""
        if cell.config.hash not in self._waited_for:
            self._waited_for.add(cell.config.hash)
            self._write(f"{cell.name}: another process is on it; its result will be waited for")

    def seconds_left(self) -> float | None:
        """Give how long the cells left will take."""
        running = dict(self.running)  # others may begin and end meanwhile
        with self._counting:
            return self.time_left.seconds({key: cell.headway for key, cell in running.items()})

    def _write(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(PlainProgress):
    """Besides the lines, below them, a view that is drawn anew: a bar of all cells, figures, a row a cell."""

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """Say the same, and name cells in short."""
        super().matrix_started(cells, left)
        self._short = short_names(self.labels)

    def _long_work(self, cell: RunningCell, pace: Pace) -> None:
        """Leave it to the cell's row."""

    def render(self) -> RenderableType:
        """Draw the view, as wide as the console."""
        if not self.total:
            return Text()
        width = self.console.width
        running = sorted(self.running.values(), key=lambda cell: cell.began)
        rows = [_row(cell, self._short[cell.config.hash]) for cell in running[:ROWS]]
        more = [Text(f"and {len(running) - ROWS} more")] if len(running) > ROWS else []
        return Group(
            cells_bar(self.kept + self._with_result, self.kept + self.total, width),
            facts_text(self._facts(), width),
            table(rows, width),
            *more,
        )

    @property
    def _with_result(self) -> int:
        return sum(status in ("ran", "kept") for status in list(self.ended.values()))

    def _facts(self) -> Iterator[str]:
        done, running = len(self.ended), list(self.running.values())
        failed = sum(status in ("failed", "refused") for status in list(self.ended.values()))
        elapsed = time.monotonic() - self.began
        yield f"{len(running)} running"
        if failed:
            yield f"{failed} failed"
        yield f"{max(0, self.total - done - len(running))} waiting"
        yield f"{duration(elapsed)} so far, {time_left_text(self.seconds_left())}"
        if done and elapsed:
            yield rate_text(done, "cells", elapsed)
        if (rounds := sum(cell.rounds_per_second for cell in running)) > 0:
            yield rate_text(rounds, "rounds", 1)
        yield memory_text()
        if any(cell.config.device.startswith("cuda") for cell in running) and (gpus := gpu_memory_text()):
            yield gpus


@dataclass(frozen=True)
class Row:
    """A cell that runs, as it is shown.

    Attributes:
        name: what it is called.
        share: how much of what it does is done; None if that is not known.
        doing: what that is.
        notes: more about it, the most important first.
    """

    name: str
    share: float | None
    doing: str
    notes: Sequence[str] = ()


def _row(cell: RunningCell, name: str) -> Row:
    pace = cell.pace
    if pace is not None and pace.worth_telling:
        doing = f"{pace.phase.name} {pace.done:,}/{pace.total:,}"
        return Row(name, pace.done / pace.total if pace.total else None, doing, str(pace).split(", ")[::-1])
    accuracy = "" if cell.accuracy is None else f"{cell.accuracy:.1%}"
    share = None if cell.round is None else cell.share
    return Row(name, share, cell.doing, [f"{accuracy:>6}", duration(cell.seconds)])


def cells_bar(done: int, total: int, width: int) -> RenderableType:
    """Draw how many of the cells are done."""
    count = f"{done:,}/{total:,} cells"
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total, done, width=max(10, min(60, width - len(count) - 2))), count)
    return line


def facts_text(facts: Iterable[str], width: int) -> Text:
    """Put figures side by side; a line breaks between two of them and never within one."""
    lines = [""]
    for fact in facts:
        longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
        if len(longer) > width and lines[-1]:
            lines.append(fact)
        else:
            lines[-1] = longer
    return Text("\n".join(lines))


def table(rows: Sequence[Row], width: int) -> RenderableType:
    """Draw a line a cell; where that is narrow without bars, with fewer notes and with shortened names."""
    with_bars = width >= BAR_FROM_COLUMNS
    names = max((len(row.name) for row in rows), default=0)
    doing = max((len(row.doing) for row in rows), default=0)
    room = width - doing - 2 - (BAR_COLUMNS + 2 if with_bars else 0)
    for_names = min(names, max(room // 2, room - NOTES_COLUMNS))
    lines = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        bar = ProgressBar(1, row.share, width=BAR_COLUMNS) if row.share is not None else Text()
        texts = row.doing, "  ".join(_fitting(row.notes, room - for_names - 2))
        lines.add_row(
            Text(shortened(row.name, for_names), no_wrap=True),
            *([bar] if with_bars else []),
            *(Text(text, no_wrap=True) for text in texts),
        )
    return lines


def _fitting(notes: Sequence[str], width: int) -> Iterator[str]:
    for note in notes:
        width -= len(note)
        if width < 0:
            return
        yield note
        width -= 2


def shortened(name: str, width: int) -> str:
    """Leave out the middle of a name that is too long: its end tells cells apart."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 3 // 5
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def short_names(names: Mapping[str, str]) -> dict[str, str]:
    """Leave out the parts of names that all of them begin with, such as the task."""
    parts = {key: name.split(" · ") for key, name in names.items()}
    alike = takewhile(lambda several: len(set(several)) == 1, zip(*parts.values(), strict=False))
    shared = len(list(alike)) if len(parts) > 1 else 0
    return {key: " · ".join(part[min(shared, len(part) - 1) :]) for key, part in parts.items()}


def memory_text() -> str:
    """Say how much of the machine's memory is in use."""
    memory = psutil.virtual_memory()
    return f"memory {(memory.total - memory.available) / 1e9:.1f} of {memory.total / 1e9:.1f} GB"


def gpu_memory_text() -> str:
    """Say how much of the GPUs' memory is in use; nothing where the driver does not tell."""
    from bench.measure.nvml import NvmlUnavailable, library

    try:
        nvml = library()
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        memories = [nvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
    except NvmlUnavailable:
        return ""
    except nvml.NVMLError:
        return ""
    used, total = sum(memory.used for memory in memories), sum(memory.total for memory in memories)
    return f"GPU{'s' * (len(gpus) > 1)} {used / 1e9:.1f} of {total / 1e9:.1f} GB"


def _came_to(outcome: Outcome) -> str:
    if outcome.reason:
        return f"{outcome.status}: {outcome.reason}"
    summary = outcome.summary
    refused = summary["refused_uploads"]
    lost = f", {refused} uploads refused" if refused else ""
    elsewhere = ", by another process" if outcome.status == "kept" else ""
    return (
        f"accuracy {summary['accuracy']:.1%}, zero-shot {summary['zero_shot_accuracy']:.1%}{lost}{elsewhere}"
    )
