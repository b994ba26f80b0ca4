"""Two processes, one of each revision, that time the same probes in turn: A B B A."""

from __future__ import annotations

import json
import os
import select
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

BURST_SECONDS = 0.02
"""How long a burst of calls is made to take: long beside a clock's grain, short beside drift."""

_LOAD_SECONDS = 0.1
_LOG_LINES = 15


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

    Args:
        side: what it runs.
        plan: how.
        seed: of Python's hashes, which move what lies where in memory: one for both sides of a round.
        log: what it prints is added to.
    """

    def __init__(self, side: Side, plan: Plan, seed: int, log: Path) -> None:
        self.side, self._plan, self._log = side, plan, log
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
            "PYTHONHASHSEED": str(seed),
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
        """End it, if it has not ended."""
        with suppress(OSError):
            self._orders.close()
        os.close(self._answers)
        if self._process.poll() is None:
            self._process.kill()
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
            raise self._ended(f"said {message['event']!r} where {' or '.join(events)} was due")
        return message

    def pin(self, core: int | None) -> None:
        """Keep it on one core, where the system can; None for none in particular."""
        if core is not None and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, {core})

    def burst(self, calls: int) -> float:
        """Have so many calls timed, and give the seconds that one took."""
        self.order(calls=calls)
        return float(self.answer("burst")["seconds"]) / calls

    def _ended(self, how: str) -> ProbeProcessEnded:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return ProbeProcessEnded(f"{self.side.name}: the process of its probes {how}", lines[-_LOG_LINES:])


@dataclass(frozen=True)
class Round:
    """What a pair of fresh processes measured.

    Attributes:
        collected: the probes that each side has, by its name.
        probes: what was measured of those that both have.
        modules: where each side's packages were imported from, by its name.
        timed_seconds: spent on timing; the rest of the round went into starting.
    """

    collected: Mapping[str, Sequence[str]]
    probes: Mapping[str, ProbeRound]
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
        head: the other; who begins a block changes from round to round.
        plan: how.
        calls: in a burst, by probe; those missing are found out, and added.
        number: of the round.
        log: what the processes print is added to.
        probes: which, of those that both sides have, in this order; None for all of them.

    Raises:
        ProbeProcessEnded: one of the processes ended before its time.
    """
    measured: dict[str, ProbeRound] = {}
    with ExitStack() as stack:
        pair = [stack.enter_context(ProbeProcess(side, plan, number, log)) for side in (base, head)]
        collected = {process.side.name: process.answer("collected")["probes"] for process in pair}
        in_both = [name for name in collected[base.name] if name in set(collected[head.name])]
        wanted = in_both if probes is None else probes
        core = quietest_core() if plan.threads == 1 else None
        for process in pair:
            process.order(run=list(wanted))
            process.pin(core)
        began = time.monotonic()
        for probe in wanted:
            measured[probe] = _measure(pair, plan, probe, calls, number)
        took = time.monotonic() - began
        modules = {process.side.name: process.answer("finished")["modules"] for process in pair}
    return Round(collected, measured, modules, took)


def _measure(
    pair: Sequence[ProbeProcess], plan: Plan, probe: str, calls: dict[str, int], number: int
) -> ProbeRound:
    first = [process.answer("ready", "ended") for process in pair]
    found = ProbeRound()
    if all(message["event"] == "ready" for message in first):
        if probe not in calls:
            calls[probe] = _calls(pair[0])
        n = calls[probe]
        # the first burst of each warms it up: one side more than the other would show
        took = n * max(process.burst(n) for process in pair)
        blocks = max(1, round(plan.seconds / (4 * took)))
        one, other = pair if number % 2 else pair[::-1]
        times: dict[str, list[float]] = {"base": found.base, "head": found.head}
        for _ in range(blocks):
            for process in (one, other, other, one):
                times[process.side.name].append(process.burst(n))
    for process, message in zip(pair, first, strict=True):
        ended = message
        if message["event"] == "ready":
            process.order(calls=0)
            ended = process.answer("ended")
        found.extra[process.side.name] = ended["extra"]
        if ended["failed"]:
            found.failed[process.side.name] = ended["failed"]
    return found


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
