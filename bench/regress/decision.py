"""When one of two revisions is slower: the statistics alone, of times measured in turn.

A round is a fresh process of each revision, and gives one log-ratio: the median over its blocks A B B A of
what the two B took over what the two A took. Drift within a block cancels; what a process happens to have
(where its memory lies, say) is drawn anew each round, so rounds are the observations, and not bursts.

A revision is slower if all three hold:

- the median of the rounds' ratios is beyond a threshold: the smallest slowdown that counts, or more where the
  rounds spread so much that such a median would come by chance more often than false alarms may;
- its bootstrap interval, of rounds drawn with replacement, leaves out 1;
- the bursts of the two differ by the Mann-Whitney test at the level that asv uses (p < 0.002).

A round in which the machine did something else neither alarms nor hides: medians, and a spread that draws
what lies far out in to the others.

How often it alarms falsely holds for rounds that spread about their middle as normal or heavy-tailed values
do. In simulated comparisons of five probes, looked at after each round from 6 to 16, 0.3 to 1.4 in 1,000
alarmed where rounds spread by 10 %, 0.05 where they spread by 3 %. It does not hold where processes come in
two kinds that differ by more than what counts: with one in five, or half, 6 % slower than the others, 1 %
and 6 % alarmed. Comparing a revision with itself shows whether a machine is such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy import stats

from bench.regress.judgement import Verdict
from bench.regress.metrics import NOISY_SHARE

FALSE_ALARMS = 0.001
"""How often the last look at the same revision twice may call it slower, over all its probes."""

EARLY = 0.1
"""Share of that rate which one look before the last may use up (after Haybittle and Peto)."""

MIN_ROUNDS = 6
"""Fewer rounds say nothing of their spread."""

INTERVAL = 0.99
POWER = 0.95
MANN_WHITNEY_P = 0.002
_MEDIAN_ERROR = math.sqrt(math.pi / 2)  # of a median of normal values, in units of that of their mean
_FAR = 3.0  # median absolute deviations
_DRAWS = 4000
_SEED = 0

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Spread:
    """How much log-ratios of rounds differ from one another.

    Attributes:
        deviation: their standard deviation.
        degrees: of freedom: how well that is known.
    """

    deviation: float
    degrees: int


@dataclass(frozen=True)
class Decision:
    """What the rounds of one probe say.

    Attributes:
        verdict: WORSE (slower), BETTER, SAME (surely slower by less than what counts), UNSURE, or UNJUDGED
            with too few rounds.
        ratio: time of the new revision over that of the base, median of rounds; NaN if unjudged.
        low, high: its bootstrap interval at `INTERVAL`.
        p_value: of Mann-Whitney, two-sided.
        threshold: from which ratio on it would count as slower.
        seen: the smallest ratio that would be called slower with a probability of `POWER`.
        rounds: behind it.
    """

    verdict: Verdict
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    threshold: float = math.nan
    seen: float = math.nan
    rounds: int = 0

    @property
    def note(self) -> str:
        """Say in a line what it rests on."""
        if self.verdict is Verdict.UNJUDGED:
            return f"{self.rounds} round{'s' * (self.rounds != 1)}; {MIN_ROUNDS} are needed"
        return (
            f"{100 * INTERVAL:.0f} % interval, {self.rounds} rounds; counts from {_percent(self.threshold)}; "
            f"could have seen {_percent(self.seen)}"
        )


def decide(
    base: Rounds,
    new: Rounds,
    *,
    smallest: float = NOISY_SHARE,
    false_alarms: float = FALSE_ALARMS,
    comparisons: int = 1,
    known: Spread | None = None,
) -> Decision:
    """Say whether the new revision is slower.

    Args:
        base: seconds a call of each burst, a list a round.
        new: the same of the revision that may be slower; a block A B B A gives two bursts to each.
        smallest: the smallest slowdown that counts, as a share of the base.
        false_alarms: how often this look may call it slower with no difference, over all `comparisons`; and
            as often faster.
        comparisons: how many probes are judged together.
        known: the spread of rounds on this machine, from comparing a revision with itself.

    Raises:
        ValueError: the rounds of the two are not alike, or a time is not positive.
    """
    ratios = [log_ratio(one, other) for one, other in zip(base, new, strict=True)]
    n = len(ratios)
    if n < MIN_ROUNDS:
        return Decision(Verdict.UNJUDGED, rounds=n)
    middle = median(ratios)
    error, degrees = _error(ratios, known)
    least = math.log1p(smallest)
    threshold = max(least, float(stats.t.ppf(1 - false_alarms / comparisons, degrees)) * error)
    low, high = _bootstrap(ratios)
    p_value = _mann_whitney(base, new)
    surely = p_value < MANN_WHITNEY_P and abs(middle) > threshold
    if surely and low > 0:
        verdict = Verdict.WORSE
    elif surely and high < 0:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME if high < least else Verdict.UNSURE
    seen = threshold + float(stats.norm.ppf(POWER)) * error
    return Decision(
        verdict,
        ratio=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high),
        p_value=p_value,
        threshold=math.exp(threshold),
        seen=math.exp(seen),
        rounds=n,
    )


def log_ratio(base: Sequence[float], new: Sequence[float]) -> float:
    """Logarithm of the time of the new over that of the base in one round: the median over its blocks."""
    if len(base) != len(new) or not base or len(base) % 2 or min(*base, *new) <= 0:
        raise ValueError("a round must hold blocks of two positive times a side")
    blocks = range(0, len(base), 2)
    return median(math.log(sum(new[i : i + 2]) / sum(base[i : i + 2])) for i in blocks)


def spread_of(ratios: Sequence[float], centre: float | None = None) -> Spread:
    """Estimate how rounds spread around their median, or around a known centre (0 for the same revision).

    What lies further out than three median absolute deviations is drawn in to there: a round in which the
    machine did something else is no measure of the others. (The median absolute deviation alone is known so
    badly from ten rounds that it alarms several times as often as it may.)
    """
    values = np.asarray(ratios, dtype=float)
    middle = np.median(values) if centre is None else centre
    far = _FAR * float(np.median(np.abs(values - middle))) / float(stats.norm.ppf(0.75))
    drawn_in = np.clip(values, middle - far, middle + far)
    if centre is None:
        return Spread(float(np.std(drawn_in, ddof=1)) if len(values) > 1 else math.nan, len(values) - 1)
    return Spread(float(np.sqrt(np.mean((drawn_in - centre) ** 2))), len(values))


def _error(ratios: Sequence[float], known: Spread | None) -> tuple[float, int]:
    """Standard error of the median of rounds, and its degrees of freedom.

    What is known of the machine is used too, unless these rounds are noisier than it says.
    """
    own = spread_of(ratios)
    if known is not None and known.degrees and own.deviation <= known.deviation:
        degrees = own.degrees + known.degrees
        squares = own.degrees * own.deviation**2 + known.degrees * known.deviation**2
        own = Spread(math.sqrt(squares / degrees), degrees)
    return _MEDIAN_ERROR * own.deviation / math.sqrt(len(ratios)), own.degrees


def _bootstrap(ratios: Sequence[float]) -> tuple[float, float]:
    """Percentile interval of the median of rounds drawn with replacement."""
    drawn = np.random.default_rng(_SEED).choice(ratios, size=(_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def _mann_whitney(base: Rounds, new: Rounds) -> float:
    """Two-sided p of the bursts, each over the geometric mean of its round: rounds may drift."""
    sides: tuple[list[float], list[float]] = [], []
    for one, other in zip(base, new, strict=True):
        logs = np.log(one), np.log(other)
        centre = (logs[0].mean() + logs[1].mean()) / 2
        for side, values in zip(sides, logs, strict=True):
            side.extend(values - centre)
    return float(stats.mannwhitneyu(*sides).pvalue)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
