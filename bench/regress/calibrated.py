"""Times that were not measured in turn, in units of the kernel set that was measured around each of them.

They say "the same" or "unsure" and stop nothing. What others do on a machine slows a probe and not its
kernel set, in every round of a process and in every run of a session, so that no number of them makes a
verdict; and it is not always seen, as by the guest of a host that does not tell. Of 12 processes with 35
probes on two of four cores, others at work on the machine, every two side by side, 14 % of the probes were
more than a quarter apart in units though nothing had changed, and still 1 of 90 of which neither was seen to
be disturbed.
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


@dataclass(frozen=True)
class Calibrated:
    """What is said of calibrated times.

    Attributes:
        verdict: SAME or UNSURE.
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
    return _unlike(base.kernels, new.kernels)


def _unlike(base: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say why two kernel sets give no common unit; "" if they do."""
    from bench.regress.kernels import STEADY_SHARE, Kernels, same_kind

    one, other = Kernels.read(base), Kernels.read(new)
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
    ratio = median(_in_units(new) / _in_units(base) for base, new in pairs)
    note = f"{CALIBRATED}, not measured in turn"
    if 1 / (1 + share) <= ratio <= 1 + share:
        return Calibrated(Verdict.SAME, ratio, f"{note}: less than {100 * share:.0f} % says nothing")
    return Calibrated(Verdict.UNSURE, ratio, f"{note}: flora-bench ab decides")


def _in_units(timing: Timing) -> float:
    from bench.regress.kernels import Kernels

    return min(timing.rounds) / Kernels.read(timing.kernels or {}).unit_seconds
