"""Where the time goes: seconds per phase and round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import fmean

from flora.events import Listener, Phase

ROUND_PHASES = ("send", "train", "receive", "aggregate", "evaluate")
"""What `Clock.round_seconds` adds up."""


def _no_wait() -> None:
    """Wait for nothing: on the CPU work is done when its call returns."""


def _synchroniser(device: str) -> Callable[[], None]:
    """Return what waits for the work queued on `device`."""
    if not device.startswith("cuda"):
        return _no_wait
    import torch

    return lambda: torch.cuda.synchronize(device)


class Clock(Listener):
    """Exclusive time of every phase: what an inner phase takes is taken out of the outer one's.

    A GPU works behind the caller's back, so its queue is emptied at each border of a phase, and only
    there. Pass this listener last: `flora.events.Events` starts it last and ends it first, which keeps
    the cost of other listeners out of the phase they measure (an inner phase's goes to the outer one).

    Args:
        device: where the work runs, such as "cpu" or "cuda:0".
        clock: seconds from any origin, never going back.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._synchronise = _synchroniser(device)
        self._open: list[Phase] = []
        self._seconds: dict[int | None, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._constructed = self._border = clock()

    def phase_started(self, phase: Phase) -> None:
        """Charge the time so far to the phase around, if any, and open `phase`."""
        self._charge()
        self._open.append(phase)

    def phase_ended(self, phase: Phase) -> None:
        """Charge the time since the last border to `phase` and close it."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        self._synchronise()
        now = self._clock()
        if self._open:
            phase = self._open[-1]
            self._seconds[phase.round][phase.name] += now - self._border
        self._border = now

    def seconds(self, round: int | None) -> dict[str, float]:
        """Seconds per phase in `round` (None: outside of rounds), summed over the clients."""
        return dict(self._seconds.get(round, {}))

    @property
    def setup_seconds(self) -> dict[str, float]:
        """Seconds per phase outside of rounds: loading, features of frozen towers, zero-shot."""
        return self.seconds(None)

    @property
    def total_seconds(self) -> float:
        """Seconds since construction, whether or not a phase was open."""
        return self._clock() - self._constructed

    @property
    def train_seconds(self) -> float:
        """Seconds of all phases named "train", over all rounds and clients."""
        return sum(phases.get("train", 0.0) for phases in self._seconds.values())

    @property
    def round_seconds(self) -> float | None:
        """Mean over the rounds from 1 on of their send + train + receive + aggregate + evaluate.

        Round 0 (the method before training) is not in it, nor is "rest" (kept optimiser states going
        from and to storage: a matter of one machine playing many clients), nor time outside of phases.
        None where there was no round but 0.
        """
        rounds = [phases for number, phases in self._seconds.items() if number is not None and number > 0]
        if not rounds:
            return None
        return fmean(sum(phases.get(name, 0.0) for name in ROUND_PHASES) for phases in rounds)
