"""Whether two revisions learn the same: over seeds by statistics, and round by round but for rounding.

What rounding may come to was measured on the embedded model and digits, clients skewed by Dirichlet(0.1),
with FLoRA, a linear probe and full fine-tuning, 10 to 50 rounds each. In float32, 140 runs with sums in
another order (of clients, samples, threads, kernels; means in double; clients together or not; features kept
or not) differed by at most 4.4 % of what `FINE` lets pass, with the kernels of older processors by 3 %, and
with int8 payloads, where a number may round the other way, by 8.5 %. Bugs differed by more in every seed:
counts ignored in the aggregate by 31 to 720 times, the learning rate halved by 150 to 2,500 times, a test
image in the place of every thirtieth training image by 98 to 750 times. A single leaked image (1.5 times and
more) and a learning rate 1 % off (2.5 times and more) still show; one 0.1 % off may not.

In bfloat16 rounding came to 6 % of `COARSE`, with other kernels to 20 %, bugs to 2 to 76 times; with top-k
payloads rounding came to 52 %, counts ignored to 3 to 7 times. A GPU was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import inf, isfinite
from typing import Any, TypeGuard

import numpy as np
from scipy import optimize, stats

from bench.regress.judgement import Verdict
from bench.regress.measurements import CellMeasures
from bench.regress.pairing import seed_text
from bench.report.statistics import holm, t_factor
from bench.report.text import counted

CONFIDENCE = 0.95
"""Of the interval that decides; one in forty comparisons of equals calls the new side worse."""

POWER = 0.8
"""Chance to find the drop that a note names as the smallest that could have been seen."""

COUNTS = 0.01
"""The drop that counts where no margin is given: one point of accuracy."""

FEWEST_IMAGES = 3
"""So many test images may change sides by rounding, however few there are."""

DOUBLED_EVERY = 10
"""Rounds in which what rounding may come to doubles: each round starts from what the last one rounded."""

DOUBLED_AT_MOST = 10
"""So often and no more, or after enough rounds anything would pass."""


@dataclass(frozen=True)
class Tolerance:
    """What rounding may come to in the first rounds.

    Attributes:
        loss: difference of two losses, relative beyond 1.
        images: share of the test images that change sides, `FEWEST_IMAGES` at least.
    """

    loss: float
    images: float


FINE = Tolerance(loss=1e-4, images=0.002)
"""Of float32, and of float64, whose own rounding is a billion times less."""

COARSE = Tolerance(loss=3e-3, images=0.02)
"""Of half precision, products rounded to TF32, and top-k payloads, where rounding decides what travels."""

# Taken for the number of test images where it is not known.
_FEW = 100


@dataclass(frozen=True)
class Judged:
    """What is said of one metric of one cell.

    Attributes:
        verdict: what became of it.
        base, new: means over the seeds, or what differs first; None where there is none.
        change: new / base - 1; None where that cannot be said.
        interval: of `change`; None where it was not estimated.
        note: in one line what a reader must know.
        p_value: two-sided, that such a change comes by chance; None where nothing was tested.
    """

    verdict: Verdict
    base: float | None
    new: float | None
    change: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    p_value: float | None = None


def judge_accuracy(
    base: Sequence[float | None], new: Sequence[float | None], *, margin: float = 0.0, images: int = 0
) -> Judged:
    """Compare accuracies over the seeds that both sides have, by the t-interval of their mean difference.

    Worse where all of the interval lies below `-margin`, better where it lies above `margin`. Otherwise the
    same if the interval leaves no room for a drop that counts (the margin, or `COUNTS` where that is 0), and
    unsure if it does; the note then names the smallest drop that so many seeds could have seen.

    Differences are taken to spread by one image at least: accuracies are no finer, and a few seeds may differ
    by the same image by chance, though hardly by the same ten.

    Args:
        base: one a seed.
        new: likewise, in the same order; a seed that lacks one of the two does not count.
        margin: drop that is let pass, as a share of all test images.
        images: how many are tested; 0 if that is not known.

    Raises:
        ValueError: the sides have unlike many.
    """
    pairs = [(b, n) for b, n in zip(base, new, strict=True) if _known(b) and _known(n)]
    if not pairs:
        return Judged(Verdict.UNJUDGED, None, None, note="no seed has it on both sides")
    before, after = np.array(pairs, dtype=float).T
    # accuracies are quotients of counts: what is less than this is arithmetic
    differences = (after - before).round(12)
    found = Judged(Verdict.SAME, float(before.mean()), float(after.mean()))
    if found.base:
        found = replace(found, change=float(differences.mean()) / found.base)
    seeds = counted(len(pairs), "seed")
    if not differences.any():
        return replace(found, note=f"the same in {seeds}", p_value=1.0 if len(pairs) > 1 else None)
    if len(pairs) == 1:
        return replace(found, verdict=Verdict.UNJUDGED, note="one seed, whose spread is not known")
    spread = float(differences.std(ddof=1)) if np.ptp(differences) else 0.0
    least = 1 / images if images else 0.0
    over = f"over {seeds}" if spread > least else f"over {seeds}, whose spread is taken for that of one image"
    moved = f"{100 * differences.mean():+.2f} points {over}"
    return _by_interval(found, differences, max(spread, least) or 1 / _FEW, margin, moved)


def _by_interval(
    found: Judged, differences: np.ndarray, deviation: float, margin: float, moved: str
) -> Judged:
    count, mean = len(differences), float(differences.mean())
    error = deviation / count**0.5
    half_width = t_factor(count, CONFIDENCE) * error
    low, high = mean - half_width, mean + half_width
    interval = f"{100 * CONFIDENCE:g} % interval {100 * low:+.2f} to {100 * high:+.2f}"
    drop = margin + smallest_drop(count, deviation)
    seen = f"could have seen a drop of {100 * drop:.2f} points with {100 * POWER:g} % power"
    counts = margin or COUNTS
    if high < -margin:
        verdict, note = Verdict.WORSE, f"{moved}, {interval}"
    elif low > margin:
        verdict, note = Verdict.BETTER, f"{moved}, {interval}"
    else:
        verdict = Verdict.SAME if low > -counts else Verdict.UNSURE
        note = f"{moved}, {interval}; {seen}"
    relative = (low / found.base, high / found.base) if found.base else None
    beyond = mean - float(np.clip(mean, -margin, margin))
    p_value = float(2 * stats.t.sf(abs(beyond) / error, count - 1))
    return replace(found, verdict=verdict, interval=relative, note=note, p_value=p_value)


def smallest_drop(
    count: int, deviation: float, power: float = POWER, confidence: float = CONFIDENCE
) -> float:
    """Give the smallest true drop that a paired t-test finds with this power.

    Args:
        count: seeds, at least two.
        deviation: of the differences from seed to seed (n - 1).
        power: chance to find it.
        confidence: of the two-sided interval that decides.
    """
    bound = t_factor(count, confidence)

    def short(shift: float) -> float:
        return float(stats.nct.sf(bound, count - 1, shift)) - power

    # in units of the mean's standard error; one side's tail, as a rise taken for a drop is no finding
    shift = optimize.brentq(short, 0.0, 10 * bound)
    return float(shift) * deviation / count**0.5


def corrected(judged: Sequence[Judged]) -> list[Judged]:
    """Correct judgements for their number (Holm): what may be chance among so many becomes unsure.

    Any false finding among all of them then has the probability that one has by itself.
    """
    tested = [np.nan if x.p_value is None else x.p_value for x in judged]
    count = int(np.isfinite(tested).sum())
    return [_again(x, float(p), count) for x, p in zip(judged, holm(tested), strict=True)]


def _again(judged: Judged, p_value: float, count: int) -> Judged:
    found = judged.p_value is not None and judged.verdict in (Verdict.WORSE, Verdict.BETTER)
    if not found or p_value < 1 - CONFIDENCE:
        return judged
    note = f"{judged.note}; may be chance among {count} comparisons (Holm: p = {p_value:.2g})"
    return replace(judged, verdict=Verdict.UNSURE, note=note)


@dataclass(frozen=True)
class _Difference:
    """One value of one round, on both sides.

    Attributes:
        seed, round: where.
        what: "loss" or "accuracy".
        base, new: the values; None where a side has none.
        times: how many times what rounding may come to they are apart.
    """

    seed: str
    round: int
    what: str
    base: float | None
    new: float | None
    times: float

    @property
    def text(self) -> str:
        """What is there and what was, in words."""
        return f"{self.what} {_shown(self.new)} instead of {_shown(self.base)}"


def judge_learning(base: Sequence[CellMeasures], new: Sequence[CellMeasures]) -> Judged:
    """Compare losses and accuracies round by round: changed where they differ by more than rounding does.

    Args:
        base: cells that differ in their seed alone.
        new: the same cells in the same order.

    Returns:
        Its `base` and `new` are the values that differ most in the first round that differs beyond
        rounding; where none does, those that differ most of all.

    Raises:
        ValueError: the sides have unlike many.
    """
    compared = [x for pair in zip(base, new, strict=True) for x in _differences(*pair)]
    if not compared:
        return Judged(Verdict.UNJUDGED, None, None, note="no round has a loss or an accuracy on both sides")
    beyond = [difference for difference in compared if difference.times > 1]
    if not beyond:
        most = max(compared, key=lambda x: x.times)
        within = (
            f"at most {100 * most.times:.2f} % of what rounding may do" if most.times else "no digit differs"
        )
        return _judged(Verdict.SAME, most, within)
    first = min(beyond, key=lambda x: (x.round, -x.times))
    changed = len({difference.seed for difference in beyond})
    size = "" if first.times == inf else f", {first.times:.3g} times what rounding may do"
    where = f"from round {first.round} on, in {changed} of {counted(len(base), 'seed')}"
    return _judged(Verdict.CHANGED, first, f"{where}: {first.text} (seed {first.seed}){size}")


def _judged(verdict: Verdict, difference: _Difference, note: str) -> Judged:
    base, new = difference.base, difference.new
    change = new / base - 1 if base and new is not None else None
    return Judged(verdict, base, new, change=change, note=note)


def _differences(base: CellMeasures, new: CellMeasures) -> Iterator[_Difference]:
    """Give every value that one of the sides has; of what BASE has not measured at all, none."""
    values = {"loss": (base.losses, new.losses), "accuracy": (base.accuracies, new.accuracies)}
    for what, (before, after) in values.items():
        if not any(map(_known, before)):
            continue
        for number, (b, n) in enumerate(zip_longest(before, after)):
            if _known(b) or _known(n):
                times = _distance(what, b, n) / _tolerance(what, base, number)
                yield _Difference(seed_text(base.config.get("seed", 0)), number, what, b, n, times)


def _tolerance(what: str, cell: CellMeasures, number: int) -> float:
    """Give by how much the values of a round may differ through rounding."""
    first = COARSE if _is_coarse(cell.config) else FINE
    # accuracies are quotients of counts: half an image more keeps their arithmetic out of it
    of_images = max(first.images, (FEWEST_IMAGES + 0.5) / (cell.test_images or _FEW))
    return (first.loss if what == "loss" else of_images) * 2 ** min(number / DOUBLED_EVERY, DOUBLED_AT_MOST)


def _is_coarse(config: Mapping[str, Any]) -> bool:
    sections = {name: x for name, x in config.items() if isinstance(x, Mapping)}
    found = (
        sections.get("model", {}).get("dtype") in ("bfloat16", "float16"),
        sections.get("compute", {}).get("matmul_precision") == "high",
        sections.get("codec", {}).get("name") == "topk",
    )
    return any(found)


def _distance(what: str, base: float | None, new: float | None) -> float:
    """How far apart: of losses beyond 1 relative; infinitely where one side has none."""
    if not (_known(base) and _known(new)):
        return inf
    return abs(new - base) / (max(1.0, abs(base)) if what == "loss" else 1.0)


def _shown(value: float | None) -> str:
    return "none" if value is None or not isfinite(value) else f"{value:.6g}"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and isfinite(value)
