"""Several cells at once on one machine, each in a process of its own: cores and GPUs are divided among them.

One loop in this process follows all of them. A cell that fails fails alone; one that had too little memory is
tried once more where that can help.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench import isolate
from bench.config import RunConfig
from bench.execute import Job, Outcome, Watcher, failed, read_failure
from bench.interrupt import interruptible
from bench.isolate import CellProcess
from bench.measure.load import usable_cores
from bench.placement import VISIBLE, Gpus, Placed, Prediction, Wish, next_to_start
from flora.errors import BadInput

THREADS_A_CORE = 2
"""Most threads for each core that workers may have together."""

Predictions = Callable[[RunConfig], Prediction | None]


class Workers:
    """Runs up to `count` cells at once, the heaviest first; with one worker, in their order.

    Args:
        count: how many; with fewer cells the cores are divided among these.
        timeout_seconds: after how long a cell is given up; None for never.
        predictions: gives what a cell is foretold to take. Without it, a cell for a GPU has one for itself.

    Raises:
        BadInput: `count` or `timeout_seconds` is not positive.
    """

    def __init__(
        self, count: int, *, timeout_seconds: float | None = None, predictions: Predictions | None = None
    ) -> None:
        if count < 1:
            raise BadInput(f"jobs: {count} must be at least 1")
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise BadInput(f"timeout: {timeout_seconds:g} must be a number of seconds greater than 0")
        self.count = count
        self.timeout_seconds = timeout_seconds
        self.predictions = predictions or (lambda _: None)

    def prepare(self) -> None:
        """Have the libraries loaded in the background."""
        isolate.start_server(crowded=self.count > 1)

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Iterator[Outcome]:
        """Run every job and yield what became of it, in the order in which they end.

        Raises:
            KeyboardInterrupt: this process was asked to stop; those of the cells have ended by then.
        """
        isolate.wait_for_server()
        pool = _Pool(self, jobs, watcher)
        # who stops asking for outcomes and keeps the iterator would wait for ever for the cells when it ends
        atexit.register(pool.stop)
        try:
            yield from pool.outcomes()
        finally:
            pool.stop()
            atexit.unregister(pool.stop)


@dataclass(frozen=True)
class _Attempt:
    """A cell to run.

    Attributes:
        job: the cell.
        prediction: what it will take.
        how: it is tried again, in words; empty the first time.
        alone: nothing else may run meanwhile.
    """

    job: Job
    prediction: Prediction
    how: str = ""
    alone: bool = False

    @property
    def wish(self) -> Wish | None:
        """What it needs of a GPU; None if it needs none."""
        if not self.job.config.device.startswith("cuda"):
            return None
        return Wish.of(self.job.config, self.prediction.peak_bytes, self.job.options.one_by_one)


@dataclass
class _Running:
    """A cell that runs.

    Attributes:
        attempt: what it is.
        process: where.
        gpu, promised_bytes: on which GPU, and what it may take of that; None without one, see `Placed`.
        had_company: whether another ran at any time beside it.
    """

    attempt: _Attempt
    process: CellProcess
    gpu: str | None
    promised_bytes: int | None
    had_company: bool


class _Pool:
    """Cells that wait and cells that run."""

    def __init__(self, workers: Workers, jobs: Sequence[Job], watcher: Watcher) -> None:
        self.workers = workers
        self.watcher = watcher
        self.at_once = max(1, min(workers.count, len(jobs)))
        self.threads = threads_of_each(self.at_once)
        self.gpus = Gpus()
        self.waiting = [_Attempt(job, workers.predictions(job.config) or Prediction()) for job in jobs]
        if workers.count > 1:
            self.waiting.sort(key=_weight, reverse=True)
        self.running: list[_Running] = []

    def outcomes(self) -> Iterator[Outcome]:
        """Run all of it."""
        with interruptible():
            outcomes = list(self._start())
        yield from outcomes
        while self.running:
            with interruptible():
                isolate.wait([cell.process for cell in self.running])
                before = len(self.running)
                outcomes = self._collect()
                if len(self.running) < before:
                    outcomes += self._start()
            yield from outcomes

    def stop(self) -> None:
        """End what runs."""
        isolate.stop([cell.process for cell in self.running])
        self.running.clear()

    def _start(self) -> Iterator[Outcome]:
        """Start what there is room for; gives the outcomes of those that the system has no room for at all.

        Where it has none beside those that run, fewer run at once from then on.
        """
        while len(self.running) < self.at_once and (chosen := self._next()):
            attempt, gpu, promised = chosen
            self.waiting.remove(attempt)
            try:
                self._start_one(attempt, gpu, promised)
            except OSError as error:
                if self.running:
                    self.waiting.insert(0, attempt)
                    self.at_once = len(self.running)
                else:
                    yield self._ended(attempt, _not_started(attempt.job, error))

    def _next(self) -> tuple[_Attempt, str | None, int | None] | None:
        """Choose a cell, its GPU, and what that is to give it; those to run alone come last."""
        if not self.waiting or any(cell.attempt.alone for cell in self.running):
            return None
        candidates = [attempt for attempt in self.waiting if not attempt.alone]
        if not candidates:
            candidates = [] if self.running else self.waiting[:1]
        wishes = [attempt.wish for attempt in candidates]
        gpus = self.gpus.now() if any(wishes) else []
        chosen = next_to_start(wishes, gpus, self._placed())
        if chosen is None:
            return None
        place, gpu = chosen
        wish = wishes[place]
        if gpu is None or wish is None:
            return candidates[place], None, None
        return candidates[place], gpu.name, wish.bytes_on(gpu)

    def _placed(self) -> list[Placed]:
        return [
            Placed(cell.gpu, cell.promised_bytes, cell.process.process.pid)
            for cell in self.running
            if cell.gpu is not None
        ]

    def _start_one(self, attempt: _Attempt, gpu: str | None, promised: int | None) -> None:
        job, environment = attempt.job, {}
        if gpu is not None:  # which one it is must not show in the result
            job = replace(job, config=job.config.model_copy(update={"device": "cuda"}))
            environment = {VISIBLE: gpu}
        process = CellProcess(
            job,
            self.watcher.cell_started(attempt.job.config),
            environment=environment,
            threads=self.threads,
            timeout_seconds=self.workers.timeout_seconds,
        )
        # known before it starts, so that an interrupt leaves nothing behind
        self.running.append(_Running(attempt, process, gpu, promised, bool(self.running)))
        try:
            process.start()
        except OSError:
            self.running.pop()
            isolate.stop([process])
            raise
        if len(self.running) > 1:
            for cell in self.running:
                cell.had_company = True

    def _collect(self) -> list[Outcome]:
        """Take those that have ended out, and line up those that are to be tried again."""
        outcomes = []
        for cell in list(self.running):
            if (outcome := cell.process.ended()) is None:
                continue
            self.running.remove(cell)
            if again := _second_attempt(cell, outcome):
                self.waiting.insert(0, again)
                continue
            outcomes.append(self._ended(cell.attempt, outcome))
        return outcomes

    def _ended(self, attempt: _Attempt, outcome: Outcome) -> Outcome:
        outcome = _final(attempt, outcome)
        self.watcher.cell_ended(outcome)
        return outcome


def threads_of_each(count: int) -> int | None:
    """Divide the cores among workers; None for as many threads as this process uses.

    The last bits of a sum depend on how many threads share it, so a worker keeps this process's number as
    long as no core has more than two. On two cores, two workers with two threads each took 9 % longer than
    with one thread each, and came to the very numbers of a single one.
    """
    if count == 1:
        return None
    import torch

    return max(1, min(torch.get_num_threads(), THREADS_A_CORE * len(usable_cores()) // count))


def _weight(attempt: _Attempt) -> tuple[bool, float]:
    """Rank a cell by the seconds foretold; those unknown come first, by how often a client trains in them."""
    seconds, config = attempt.prediction.seconds, attempt.job.config
    return (
        (True, config.rounds * config.clients * config.participation) if seconds is None else (False, seconds)
    )


def _not_started(job: Job, error: OSError) -> Outcome:
    """Say why a cell has no process though no other has one."""
    return failed(job, f"its process cannot be started: {error.strerror or error}")


def _second_attempt(cell: _Running, outcome: Outcome) -> _Attempt | None:
    """Say how to try a cell that had too little memory again; None if it was, or nothing can help."""
    attempt = cell.attempt
    if outcome.cause != "memory" or attempt.how:
        return None
    job, ways = attempt.job, []
    if cell.had_company:
        ways.append("alone")
    if may_group(job):
        job = replace(job, options=job.options.model_copy(update={"one_by_one": True}))
        ways.append("with one client trained at a time")
    return replace(attempt, job=job, how=" and ".join(ways), alone=cell.had_company) if ways else None


def may_group(job: Job) -> bool:
    """Whether clients may have been trained together that need not be."""
    config = job.config
    return (
        config.clients_per_batch == "auto"
        and config.mode == "federated"
        and config.acceleration != "none"
        and not job.options.one_by_one
    )


def _final(attempt: _Attempt, outcome: Outcome) -> Outcome:
    """Tell of the cell as it was asked for, and of a second failure that it was one."""
    if outcome.status == "failed" and attempt.how:
        noted = read_failure(attempt.job.folder) or {}
        bare = str(noted.get("reason", outcome.reason))
        where = outcome.reason.removeprefix(bare).strip()
        reason = f"{bare}; tried twice, the second time {attempt.how}"
        outcome = failed(attempt.job, reason, outcome.cause, where)
    return replace(outcome, config=attempt.job.config)
