"""How long training steps take, one by one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flora.events import Listener, Phase, Work


class StepTimes(Listener):
    """How long each training step takes, of one client or of a group.

    On a GPU a step is timed by events in its queue, read once the queue is empty anyway, at the end of the
    phase: no step waits.

    Args:
        device: where the work runs.
        clock: seconds from any origin; of a CPU.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._cuda = device.startswith("cuda")
        self._clock = clock
        self._started: Any = None
        self._queued: list[tuple[Any, Any]] = []
        self._seconds: dict[int | None, list[float]] = defaultdict(list)

    def _mark(self) -> Any:
        if not self._cuda:
            return self._clock()
        import torch

        mark = torch.cuda.Event(enable_timing=True)
        mark.record(torch.cuda.current_stream(self._device))
        return mark

    def work_started(self, work: Work) -> None:
        """Start the step's clock."""
        if work.kind == "step":
            self._started = self._mark()

    def work_ended(self, work: Work) -> None:
        """Stop it."""
        if work.kind == "step":
            self._queued.append((self._started, self._mark()))

    def phase_ended(self, phase: Phase) -> None:
        """Read the clocks of the phase's steps."""
        if phase.name != "train" or not self._queued:
            return
        if self._cuda:
            self._queued[-1][1].synchronize()
            taken = [start.elapsed_time(end) / 1000 for start, end in self._queued]
        else:
            taken = [end - start for start, end in self._queued]
        self._seconds[phase.round] += taken
        self._queued.clear()

    def of(self, round: int) -> dict[str, float | int | None]:
        """How many steps a round had, their median and their 95th percentile."""
        return describe(self._seconds.get(round, []))

    @property
    def all(self) -> dict[str, float | int | None]:
        """The same of all rounds together."""
        return describe([x for taken in self._seconds.values() for x in taken])

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {"seconds": {number: x for number, x in self._seconds.items() if number is not None}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        for number, taken in state["seconds"].items():
            self._seconds[int(number)] = list(taken)


def describe(taken: Sequence[float]) -> dict[str, float | int | None]:
    """Count, median and 95th percentile (the nearest rank, so a step that was) of seconds."""
    if not taken:
        return {"count": 0, "median_seconds": None, "p95_seconds": None}
    median, high = np.median(taken), np.quantile(taken, 0.95, method="inverted_cdf")
    return {"count": len(taken), "median_seconds": float(median), "p95_seconds": float(high)}
