"""What else the machine did during a run: a figure of time means little where others used the cores too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil

BUSY_SHARE = 0.1
"""Share of the cores' time that others may use before a run's times count as disturbed."""

CROWDED_SHARE = 0.02
"""The same where no core was idle for longer than this share: there each second of others is one less."""


@dataclass(frozen=True)
class Sample:
    """Times at one moment, in seconds from any origin.

    Attributes:
        wall: of a clock.
        own: CPU time, user and system, of this process and of its children: those that have ended and were
            waited for, and those that run.
        busy: CPU time that all processes of the machine spent on the cores this process may use, time that
            the host of a virtual machine took from them ("steal") included, waiting for disks left out.
    """

    wall: float
    own: float
    busy: float


class MachineLoad:
    """The CPU time of a run and of all others, from construction to `result`.

    What others used is what the cores were busy less what this process and its children used, so it is rough
    by a few ticks of 10 ms. In a container that may use only some cores, those cores alone are looked at:
    what other containers do on them is seen where `/proc/stat` is the host's. A quota of CPU time
    (cgroup's `cpu.max`) is not looked at, and cores that a sandbox shows as its own may hide what others do.

    Args:
        sample: gives the times now.
        cores: how many cores this process may use.
    """

    def __init__(self, sample: Callable[[], Sample] | None = None, cores: int | None = None) -> None:
        self._sample = sample or take_sample
        self._cores = cores or len(usable_cores())
        self._start = self._sample()
        self._earlier = Sample(0.0, 0.0, 0.0)

    def result(self) -> dict[str, Any]:
        """Say what was used so far.

        Returns:
            `cores` this process may use; `threads` it has now; `others_busy_share`, of the cores' time, in
            [0, 1]; `busy`, whether that is more than `BUSY_SHARE`, or than `CROWDED_SHARE` with hardly a core
            idle; `cpu_seconds` of this process and its children, user and system.
        """
        spent = self._spent()
        own = spent.own
        capacity = spent.wall
        share = _share(spent.busy - own, capacity)
        idle = 1 - share - _share(own, capacity)
        return {
            "cores": self._cores,
            "threads": psutil.Process().num_threads(),
            "others_busy_share": share,
            "busy": share > BUSY_SHARE or (share > CROWDED_SHARE and idle < CROWDED_SHARE),
            "cpu_seconds": own,
        }

    def _spent(self) -> Sample:
        """Give what has passed since construction, and in the processes before of a run that was resumed.

        The wall time is of all cores together, as the machine before may have had another number of them.
        """
        now, start, earlier = self._sample(), self._start, self._earlier
        return Sample(
            self._cores * (now.wall - start.wall) + earlier.wall,
            now.own - start.own + earlier.own,
            now.busy - start.busy + earlier.busy,
        )

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return asdict(self._spent())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        self._earlier = Sample(**state)


def _share(seconds: float, of: float) -> float:
    """Give a share in [0, 1], whatever rounding did to the figures."""
    return min(1.0, max(0.0, seconds / of)) if of > 0 else 0.0


def usable_cores() -> list[int]:
    """Return the numbers of the cores this process may use: all of them where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def take_sample() -> Sample:
    """Read the times of this process and of the cores it may use."""
    process = psutil.Process()
    own = sum(map(_cpu_seconds, [process, *process.children(recursive=True)]))
    by_core = psutil.cpu_times(percpu=True)
    busy = sum(_busy_seconds(by_core[core]) for core in usable_cores() if core < len(by_core))
    return Sample(time.perf_counter(), own, busy)


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of those of its children that it has waited for; 0 if it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _busy_seconds(core: Any) -> float:
    """Time in which a core did not idle; waiting for a disk is idling, and which kinds there are depends."""
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(core, kind, 0.0) for kind in kinds))
