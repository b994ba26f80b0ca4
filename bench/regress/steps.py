"""Where a series of measurements steps: pure functions, each value one revision's, in order.

What is exact steps wherever it changes. What is noisy is cut into constant pieces (PELT: Killick, Fearnhead
and Eckley 2012, J. Am. Stat. Assoc. 107); a step between two of them counts if it is large enough and neither
a t-test nor a rank test takes it for chance, wherever in the series it might have been. Where a straight line
fits better than levels, the change is a drift: it has no first bad revision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.polynomial import Polynomial
from ruptures import KernelCPD
from scipy.stats import mannwhitneyu
from scipy.stats import t as student

from bench.regress.metrics import NOISY_SHARE

SMALLEST_STEP = NOISY_SHARE / 2
"""What is estimated smaller is no step: of steps of `NOISY_SHARE`, half are estimated below that."""

FEWEST_REVISIONS = 3
"""On each side of a step: one or two values that stand out are outliers until a third says the same."""

FALSE_STEPS = 0.001
"""The t-test's bound on the probability of a step in a constant series."""

FALSE_BY_RANK = 0.05
"""The rank test's, which guards against noise that is not normal; not asked where both sides lie apart."""

PENALTY = 3.0
"""Of a piece in the search, times the logarithm of how many values there are, in variances of the noise."""

PLAUSIBLE = 8.0
"""Squared deviations by which another place of a step may fit worse: 19 of 20 true places are within."""

_NEIGHBOURS = 2  # on each side, that say whether a value is an outlier
_OUTLIER = 3.0  # in deviations of the noise
_TO_DEVIATION = 1.4826  # times the median absolute deviation, of what is normal
_LEAST_NOISE = 0.2  # of the smallest step: what hardly varies would step at every digit
_SEEN = 1.64  # deviations by which an autocorrelation must be above zero: 1 in 20 is by chance
_MOST_CORRELATED = 0.9


@dataclass(frozen=True)
class Piece:
    """Values between two steps: from index `start` up to `stop`, around a `level`, their median."""

    start: int
    stop: int
    level: float


@dataclass(frozen=True)
class Step:
    """A change from one value to the next.

    Attributes:
        index: likeliest of the first value after it.
        earliest, latest: index between which, both included, that value is with 95 % confidence.
        before, after: levels, or texts.
        change: after / before - 1; None for texts and where `before` is zero.
        p_value: of a constant series having such a step anywhere; 0 for what is exact.
    """

    index: int
    earliest: int
    latest: int
    before: float | str
    after: float | str
    change: float | None
    p_value: float = 0.0


@dataclass(frozen=True)
class Drift:
    """A slow change: a straight line from index `start` up to `stop`, from `before` to `after`.

    `change` is after / before - 1; None where `before` is zero.
    """

    start: int
    stop: int
    before: float
    after: float
    change: float | None


@dataclass(frozen=True)
class Fit:
    """A series in constant pieces.

    Attributes:
        pieces: all of them, in order; within a drift they are its stairs. None of texts.
        steps, drifts: what is between them.
        noise: deviation around them, a share where steps are; 0 for what is exact.
    """

    pieces: Sequence[Piece] = ()
    steps: Sequence[Step] = ()
    drifts: Sequence[Drift] = ()
    noise: float = 0.0


def exact_steps(values: Sequence[float | str]) -> Fit:
    """Find every change of what is the same to the last digit wherever it is measured."""
    steps = [
        Step(index, index, index, before, after, _share(before, after))
        for index, (before, after) in enumerate(pairwise(values), 1)
        if before != after
    ]
    if not values or any(isinstance(value, str) for value in values):
        return Fit(steps=steps)
    bounds = [0, *(step.index for step in steps), len(values)]
    return Fit([Piece(start, stop, float(values[start])) for start, stop in pairwise(bounds)], steps)


def noisy_steps(values: Sequence[float], *, smallest: float = SMALLEST_STEP, relative: bool = True) -> Fit:
    """Find the steps of what differs from measurement to measurement.

    Args:
        values: finite.
        smallest: step that counts, as a share if `relative`, else in the values' own unit.
        relative: whether noise and steps are shares, as those of times are; never so with values of zero or
            less.
    """
    known = np.asarray(values, float)
    if not len(known):
        return Fit()
    relative = relative and bool((known > 0).all())
    series = _Series.of(np.log(known) if relative else known, math.log1p(smallest) if relative else smallest)
    candidates = series.candidates()
    creeps = series.creeps_throughout(candidates)
    bounds, p_values = series.confirmed([0, len(known)] if creeps else candidates)
    pieces = [Piece(start, stop, float(np.median(known[start:stop]))) for start, stop in pairwise(bounds)]
    creeping = [series.creeps(*bounds[i : i + 3]) for i in range(len(bounds) - 2)]
    steps = [
        Step(
            right.start,
            *series.plausible(left.start, right.start, right.stop),
            left.level,
            right.level,
            _share(left.level, right.level),
            p_value,
        )
        for (left, right), p_value, no_step in zip(pairwise(pieces), p_values, creeping, strict=True)
        if not no_step
    ]
    drifts = [_drift(known, 0, len(known))] if creeps else list(_drifts(known, pieces, creeping))
    return Fit(pieces, steps, [x for x in drifts if _size(x, relative) >= smallest], series.noise)


def noise_of(values: np.ndarray) -> float:
    """Estimate the deviation of the noise from how neighbours differ: a few steps hardly matter to it."""
    if len(values) < 2:
        return 0.0
    return float(_TO_DEVIATION * np.median(np.abs(np.diff(values))) / math.sqrt(2))


@dataclass(frozen=True)
class _Series:
    """What is searched: logarithms of what is relative, so that a share is a difference.

    Attributes:
        values: in order.
        clipped: the same, what stands out from its neighbours brought nearer.
        least: difference that counts.
        noise: estimated deviation.
        floor: the least deviation taken for granted.
    """

    values: np.ndarray
    clipped: np.ndarray
    least: float
    noise: float
    floor: float

    @classmethod
    def of(cls, values: np.ndarray, least: float) -> _Series:
        noise, floor = noise_of(values), _LEAST_NOISE * least
        return cls(values, _without_outliers(values, max(noise, floor)), least, noise, floor)

    def candidates(self) -> list[int]:
        """Give the bounds of the pieces that fit best, each piece paid for, from 0 to the end."""
        n = len(self.values)
        if n < 2 * FEWEST_REVISIONS:
            return [0, n]
        standard = (self.clipped - self.clipped.mean()) / max(self.noise, self.floor)
        search = KernelCPD(kernel="linear", min_size=FEWEST_REVISIONS)
        return [0, *map(int, search.fit_predict(standard.reshape(-1, 1), pen=PENALTY * math.log(n)))]

    def confirmed(self, bounds: list[int]) -> tuple[list[int], list[float]]:
        """Join pieces, the likest first, until all neighbours differ; with the p-values."""
        while len(bounds) > 2:
            sides = list(zip(bounds, bounds[1:], bounds[2:], strict=False))
            inflation = _inflation(self._rest(bounds), len(bounds) - 1)
            p_values = [self._p_value(*side, inflation) for side in sides]
            alike = [
                index
                for index, (side, p_value) in enumerate(zip(sides, p_values, strict=True))
                if p_value > FALSE_STEPS or not self._differ(*side)
            ]
            if not alike:
                return bounds, p_values
            likest = max(alike, key=p_values.__getitem__)
            bounds = [*bounds[: likest + 1], *bounds[likest + 2 :]]
        return bounds, []

    def _differ(self, start: int, middle: int, stop: int) -> bool:
        """Whether two pieces differ by what counts, and in their ranks as far as so few can."""
        left, right = self.values[start:middle], self.values[middle:stop]
        if abs(float(np.median(right) - np.median(left))) < self.least:
            return False
        if left.max() < right.min() or right.max() < left.min():
            return True
        return bool(self._places * mannwhitneyu(left, right).pvalue <= FALSE_BY_RANK)

    def _p_value(self, start: int, middle: int, stop: int, inflation: float) -> float:
        """Probability of means so different anywhere in a constant series."""
        left, right = self.clipped[start:middle], self.clipped[middle:stop]
        free = stop - start - 2
        variance = max((len(left) * left.var() + len(right) * right.var()) / free, self.floor**2)
        error = math.sqrt(inflation * variance * (1 / len(left) + 1 / len(right)))
        t = abs(float(left.mean() - right.mean())) / error
        return min(1.0, self._places * 2 * float(student.sf(t, free)))

    @property
    def _places(self) -> int:
        """How many places a step may be at: what Bonferroni corrects for."""
        return max(1, len(self.values) - 2 * FEWEST_REVISIONS + 1)

    def _rest(self, bounds: Sequence[int]) -> np.ndarray:
        """What the means of pieces leave."""
        return np.concatenate([self.clipped[a:b] - self.clipped[a:b].mean() for a, b in pairwise(bounds)])

    def creeps_throughout(self, bounds: Sequence[int]) -> bool:
        """Whether one straight line, that does rise or fall, fits better than all pieces: by BIC."""
        n, levels = len(self.clipped), len(bounds) - 1
        if levels < 2:
            return False
        rest = self.clipped - _line(self.clipped)(np.arange(n))
        off_line, off_levels = (max(float(x @ x), n * self.floor**2) for x in (rest, self._rest(bounds)))
        if n * math.log(off_line / off_levels) > (levels - 2) * math.log(n):
            return False
        around_mean = self.clipped - self.clipped.mean()
        explained = max(0.0, float(around_mean @ around_mean) - off_line)
        t = math.sqrt(explained * (n - 2) / off_line / _inflation(rest, 2))
        return 2 * float(student.sf(t, n - 2)) <= FALSE_STEPS

    def plausible(self, start: int, middle: int, stop: int) -> tuple[int, int]:
        """Give the first and the last place that a step may be at, pieces before and after it given."""
        both, n = self.clipped[start:stop], stop - start
        places = np.arange(1, n)
        sums = np.cumsum(both - both.mean())[:-1]
        explained = sums**2 * n / (places * (n - places))
        rest = self._rest([start, middle, stop])
        variance = max(float(rest @ rest) / (n - 2), self.floor**2)
        near = places[explained >= explained[middle - start - 1] - PLAUSIBLE * variance] + start
        return int(min(near.min(), middle)), int(max(near.max(), middle))

    def creeps(self, start: int, middle: int, stop: int) -> bool:
        """Whether a straight line is nearer to the values on both sides than two levels are."""
        both = self.values[start:stop]
        off_line = np.abs(both - _line(both)(np.arange(len(both)))).sum()
        sides = self.values[start:middle], self.values[middle:stop]
        return bool(off_line < sum(np.abs(side - np.median(side)).sum() for side in sides))


def _without_outliers(values: np.ndarray, deviation: float) -> np.ndarray:
    """Bring what stands out from its neighbours up to three deviations from their median."""
    window = min(2 * _NEIGHBOURS + 1, len(values))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    # at either end, the median of the first and of the last window
    around = np.pad(medians, (window // 2, len(values) - len(medians) - window // 2), mode="edge")
    return np.clip(values, around - _OUTLIER * deviation, around + _OUTLIER * deviation)


def _inflation(rest: np.ndarray, fitted: int) -> float:
    """How many times a mean's variance grows as neighbouring values are alike: those of one busy day, say.

    Args:
        rest: what a fit leaves.
        fitted: how many numbers were fitted; each lowers the estimate of the autocorrelation by about 1 / n.
    """
    n, squares = len(rest), float(rest @ rest)
    if not squares:
        return 1.0
    correlation = float(rest[1:] @ rest[:-1]) / squares + fitted / n
    if correlation < _SEEN / math.sqrt(n):
        return 1.0
    correlation = min(correlation, _MOST_CORRELATED)
    return (1 + correlation) / (1 - correlation)


def _drifts(values: np.ndarray, pieces: Sequence[Piece], creeping: Sequence[bool]) -> Iterator[Drift]:
    """Join the pieces between which values creep."""
    for creeps, group in groupby(range(len(creeping)), key=lambda index: creeping[index]):
        if creeps:
            places = list(group)
            yield _drift(values, pieces[places[0]].start, pieces[places[-1] + 1].stop)


def _drift(values: np.ndarray, start: int, stop: int) -> Drift:
    """Say by a straight line from what to what values creep."""
    line = _line(values[start:stop])
    before, after = float(line(0)), float(line(stop - start - 1))
    return Drift(start, stop, before, after, _share(before, after))


def _size(drift: Drift, relative: bool) -> float:
    return abs(drift.change if relative and drift.change is not None else drift.after - drift.before)


def _line(values: np.ndarray) -> Polynomial:
    return Polynomial.fit(np.arange(len(values)), values, 1)


def _share(before: float | str, after: float | str) -> float | None:
    if isinstance(before, str) or isinstance(after, str) or not before:
        return None
    return (after - before) / abs(before)
