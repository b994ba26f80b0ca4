"""Times that were not measured in turn, in units of the kernel set that was measured around each of them.

What keeps a machine busy for a moment slows a probe and not its kernel set. So the fastest rounds count, and
nothing is called slower or faster on the word of one run, or where its rounds differ by what counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.regress.judgement import Verdict

PLAIN_TIME = "plain times are not compared; flora-bench ab measures them in turn"

CALIBRATED = "calibrated"
"""With what the note of each time begins that was compared so."""

ENOUGH_RUNS = 3
"""So many runs that agree are believed, where none has rounds of its own."""


@dataclass(frozen=True)
class Timing:
    """What one thing took.

    Attributes:
        rounds: seconds; one of a run, none where it was not timed.
        kernels: measured around it, as `Kernels.to_dict` gives them; None where they were not.
    """

    rounds: Sequence[float]
    kernels: Mapping[str, Any] | None

    @property
    def fastest(self) -> float | None:
        """Seconds of the fastest round."""
        return min(self.rounds, default=None)

    @property
    def spread(self) -> float:
        """By which share the median round is slower than the fastest."""
        return median(self.rounds) / min(self.rounds) - 1


@dataclass(frozen=True)
class Calibrated:
    """What is said of calibrated times.

    Attributes:
        verdict: what became of them.
        ratio: of NEW's to BASE's, each in units of its kernel set; the median over runs.
        note: what a reader must know.
    """

    verdict: Verdict
    ratio: float
    note: str


def why_not(base: Timing, new: Timing) -> str:
    """Say why two times are not compared; "" if they are.

    Raises:
        BadInput: what was kept of a kernel set is none.
    """
    if not base.rounds or not new.rounds:
        return f"{'NEW' if base.rounds else 'BASE'} lacks it"
    if min(*base.rounds, *new.rounds) <= 0:
        return "a time of zero has no ratio"
    if base.kernels is None or new.kernels is None:
        return PLAIN_TIME
    from bench.regress.kernels import STEADY_SHARE, Kernels, same_kind

    one, other = Kernels.read(base.kernels), Kernels.read(new.kernels)
    if not same_kind(one.machine, other.machine):
        return "times of machines of two kinds are not compared"
    if one.busy or other.busy:
        return "others used the machine meanwhile"
    if max(abs(one.drift), abs(other.drift)) > STEADY_SHARE:
        return "the machine's speed changed while it was measured"
    return ""


def judge_calibrated(pairs: Sequence[tuple[Timing, Timing]], smallest: float) -> Calibrated:
    """Judge times of which `why_not` says nothing.

    Args:
        pairs: of BASE and NEW, one a run.
        smallest: the smallest slowdown that counts, as a share; where that is less than
            `CALIBRATED_SHARE`, that.
    """
    from bench.regress.kernels import CALIBRATED_SHARE

    share = max(smallest, CALIBRATED_SHARE)
    ratios = [_in_units(new) / _in_units(base) for base, new in pairs]
    ratio = median(ratios)
    note = f"{CALIBRATED}, not interleaved: counts from {100 * share:+.0f} %"
    slower, faster = min(ratios) > 1 + share, max(ratios) < 1 / (1 + share)
    if not slower and not faster:
        unsure = not 1 / (1 + share) <= ratio <= 1 + share
        return Calibrated(Verdict.UNSURE if unsure else Verdict.SAME, ratio, note)
    if doubt := _doubt(pairs, share):
        return Calibrated(Verdict.UNSURE, ratio, f"{note}; {doubt}")
    return Calibrated(Verdict.WORSE if slower else Verdict.BETTER, ratio, note)


def _in_units(timing: Timing) -> float:
    from bench.regress.kernels import Kernels

    return min(timing.rounds) / Kernels.read(timing.kernels or {}).unit_seconds


def _doubt(pairs: Sequence[tuple[Timing, Timing]], share: float) -> str:
    if len(pairs) >= ENOUGH_RUNS:
        return ""
    sides = [timing for pair in pairs for timing in pair]
    if min(len(timing.rounds) for timing in sides) == 1:
        return f"fewer than {ENOUGH_RUNS} runs"
    spread = max(timing.spread for timing in sides)
    return f"but rounds of one side differ by {100 * spread:.0f} % themselves" if spread > share else ""
