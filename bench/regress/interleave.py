"""Two processes, one of each revision, that time the same probes in turn: A B B A."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import psutil

PROBER = Path(__file__).with_name("prober.py")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

BURST_SECONDS = 0.01
"""How long a burst of calls is made to take: long beside a clock's grain, short beside drift."""

_LOAD_SECONDS = 0.1
_LOG_LINES, _LOG_CHARACTERS = 15, 200
_LOG_BYTES = 2**16


class _ProbeEnded(Exception):
    """A probe ended, by failing, before its process was told that it may.

    Attributes:
        side: whose it was.
        message: that said so.
    """

    def __init__(self, side: str, message: Mapping[str, Any]) -> None:
        self.side, self.message = side, message
        super().__init__(side)


class ProbeProcessEnded(RuntimeError):
    """A process that ran probes ended, or hung, before its time.

    Attributes:
        log: the last lines that it printed.
    """

    def __init__(self, message: str, log: Sequence[str]) -> None:
        self.log = log
        super().__init__(message)


@dataclass(frozen=True)
class Side:
    """What one of the two processes runs.

    Attributes:
        name: as messages have it: "base" or "head".
        folder: where the revision is checked out.
        python: the interpreter of its environment.
    """

    name: str
    folder: Path
    python: str = sys.executable


@dataclass(frozen=True)
class Plan:
    """How a round is run.

    Attributes:
        probes: what pytest is given: a path within the checkouts, and options.
        threads: of each process.
        seconds: a probe is timed for in a round, both sides together.
        hang_seconds: after which a process that says nothing is given up.
    """

    probes: Sequence[str]
    threads: int = 1
    seconds: float = 0.6
    hang_seconds: float = 300.0


@dataclass
class ProbeRound:
    """What a round measured of one probe.

    Attributes:
        base, head: seconds a call of each burst; as many of one as of the other, in blocks of A B B A.
        extra: figures that the probe left, by side.
        failed: why there is nothing, by side.
    """

    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    extra: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class ProbeProcess:
    """A process of `bench.regress.prober`, and the pipes to it.

    Attributes:
        side: what it runs.
        doing: the probe that it is at, as errors name it.

    Args:
        side: what it runs.
        plan: how.
        log: what it prints is added to.
    """

    def __init__(self, side: Side, plan: Plan, log: Path) -> None:
        self.side, self._plan, self._log = side, plan, log
        self.doing = "the collection"
        orders_out, orders = os.pipe()
        answers, answers_in = os.pipe()
        paths = [str(path) for path in (side.folder / "src", side.folder) if path.is_dir()]
        own = {
            name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTHONHOME")
        }
        environment = {
            **own,
            **dict.fromkeys(THREAD_VARIABLES, str(plan.threads)),
            "PYTHONPATH": os.pathsep.join(paths),
            # what lies where in memory is drawn anew by each process: fixed, one side would always be lucky
            "PYTHONHASHSEED": "random",
            # the plugins of an environment take longer to import than pytest itself
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        command = [side.python, str(PROBER), str(orders_out), str(answers_in), *plan.probes]
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                cwd=side.folder,
                env=environment,
                pass_fds=(orders_out, answers_in),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=0,  # what probes start is ended with it
            )
        os.close(orders_out)
        os.close(answers_in)
        self._orders: BinaryIO = os.fdopen(orders, "wb", buffering=0)
        self._answers, self._read = answers, b""

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, if it has not ended, and what it started."""
        with suppress(OSError):
            self._orders.close()
        os.close(self._answers)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def order(self, **what: Any) -> None:
        """Send an order.

        Raises:
            ProbeProcessEnded: nobody is there to take it.
        """
        try:
            self._orders.write(json.dumps(what).encode() + b"\n")
        except OSError:
            raise self._ended("ended") from None

    def answer(self, *events: str) -> dict[str, Any]:
        """Wait for a message of one of these kinds.

        Raises:
            ProbeProcessEnded: there comes none.
        """
        deadline = time.monotonic() + self._plan.hang_seconds
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise self._ended(f"said nothing for {self._plan.hang_seconds:.0f} s")
            more = os.read(self._answers, 2**16)
            if not more:
                raise self._ended("ended")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if message["event"] not in events:
            raise self._ended("ended" if message["event"] == "finished" else f"said {message['event']!r}")
        return message

    def pin(self, core: int | None) -> None:
        """Keep it on one core, where the system can; None for none in particular."""
        if core is not None and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, {core})

    def burst(self, calls: int) -> float:
        """Have so many calls timed, and give the seconds that one took.

        Raises:
            _ProbeEnded: one of them failed.
        """
        self.order(calls=calls)
        message = self.answer("burst", "ended")
        if message["event"] == "ended":
            raise _ProbeEnded(self.side.name, message)
        return float(message["seconds"]) / calls

    def end(self) -> Mapping[str, Any]:
        """Have no more calls timed, and give the message of how the probe ended."""
        self.order(calls=0)
        return self.answer("ended")

    def _ended(self, how: str) -> ProbeProcessEnded:
        message = f"{self.side.name}: the process of its probes {how} at {self.doing}"
        return ProbeProcessEnded(message, log_end(self._log))


def log_end(log: Path) -> list[str]:
    """Give the last lines of a log, each cut where it gets too long to be read."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    return [line[:_LOG_CHARACTERS] for line in lines[-_LOG_LINES:]]


@dataclass(frozen=True)
class Round:
    """What a pair of fresh processes measured.

    Attributes:
        collected: the probes that each side has, by its name.
        probes: what was measured of those that both have.
        uncollected: why files could not be collected, by its name and theirs.
        modules: where each side's modules and packages were imported from, by its name and theirs.
        timed_seconds: spent on timing; the rest of the round went into starting.
    """

    collected: Mapping[str, Sequence[str]]
    probes: Mapping[str, ProbeRound]
    uncollected: Mapping[str, Mapping[str, str]]
    modules: Mapping[str, Mapping[str, str]]
    timed_seconds: float


def measure_round(
    base: Side,
    head: Side,
    plan: Plan,
    calls: dict[str, int],
    number: int,
    log: Path,
    probes: Sequence[str] | None = None,
) -> Round:
    """Start a fresh process of each side and time the probes in turn.

    Args:
        base: one side.
        head: the other; who starts first and begins the blocks changes from round to round.
        plan: how.
        calls: in a burst, by probe; those missing are found out, and added.
        number: of the round.
        log: gets what the processes print, in the place of what it had.
        probes: which, of those that both sides have, in this order; None for all of them.

    Raises:
        ProbeProcessEnded: one of the processes ended before its time.
    """
    measured: dict[str, ProbeRound] = {}
    log.write_bytes(b"")
    with ExitStack() as stack:
        order = (base, head) if number % 2 else (head, base)
        pair = [stack.enter_context(ProbeProcess(side, plan, log)) for side in order]
        first = {process.side.name: process.answer("collected") for process in pair}
        collected = {side: message["probes"] for side, message in first.items()}
        uncollected = {side: message["uncollected"] for side, message in first.items()}
        in_both = [name for name in collected[base.name] if name in set(collected[head.name])]
        wanted = in_both if probes is None else probes
        core = quietest_core() if plan.threads == 1 else None
        for process in pair:
            process.order(run=list(wanted))
            process.pin(core)
        began = time.monotonic()
        for probe in wanted:
            measured[probe] = _measure(pair, plan, probe, calls)
        took = time.monotonic() - began
        modules = {process.side.name: process.answer("finished")["modules"] for process in pair}
    return Round(collected, measured, uncollected, modules, took)


def _measure(pair: Sequence[ProbeProcess], plan: Plan, probe: str, calls: dict[str, int]) -> ProbeRound:
    found = ProbeRound()
    for process in pair:
        process.doing = probe
    first = {process.side.name: process.answer("ready", "ended") for process in pair}
    ended: dict[str, Mapping[str, Any]]
    ended = {side: message for side, message in first.items() if message["event"] == "ended"}
    if not ended:
        try:
            _time(pair, plan, probe, calls, found)
        except _ProbeEnded as failed:
            ended[failed.side] = failed.message
    for process in pair:
        side = process.side.name
        message = ended[side] if side in ended else process.end()
        found.extra[side] = message["extra"]
        if message["failed"]:
            found.failed[side] = message["failed"]
    return found


def _time(
    pair: Sequence[ProbeProcess],
    plan: Plan,
    probe: str,
    calls: dict[str, int],
    found: ProbeRound,
) -> None:
    """Have a probe timed in blocks of A B B A."""
    if probe not in calls:
        calls[probe] = _calls(pair[0])
    n = calls[probe]
    # the first burst of each warms it up: one side more than the other would show
    took = n * max(process.burst(n) for process in pair)
    blocks = max(1, round(plan.seconds / (4 * took)))
    one, other = pair
    times: dict[str, list[float]] = {"base": found.base, "head": found.head}
    for _ in range(blocks):
        for process in (one, other, other, one):
            times[process.side.name].append(process.burst(n))


def _calls(process: ProbeProcess) -> int:
    """Find how many calls make a burst."""
    calls = 1
    while (took := calls * process.burst(calls)) < BURST_SECONDS / 2:
        calls = max(2 * calls, min(int(calls * BURST_SECONDS / max(took, 1e-9)), 100 * calls))
    return calls


def quietest_core() -> int | None:
    """Find the core that was least busy in the last moment, of those that may be used; None if unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    busy = psutil.cpu_percent(interval=_LOAD_SECONDS, percpu=True)
    cores = [core for core in os.sched_getaffinity(0) if core < len(busy)]
    return min(cores, key=lambda core: busy[core], default=None)
