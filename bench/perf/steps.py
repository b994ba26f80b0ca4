"""How well `flora-bench history` finds steps, and how often where there are none, in simulated series."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.perf.experiment import Measured, Setting
from bench.regress.steps import Fit, noisy_steps

logger = logging.getLogger(__name__)

LENGTHS, NOISES, STEPS = (20, 50, 100), (0.01, 0.02, 0.03), (0.05, 0.1, 0.2)
FROM_AN_END = 5
"""Revisions before and after a planted step, at least: what has just happened is confirmed by as many."""

NEAR = 2
"""A step found so many revisions from where it is counts as found."""

DRIFT = 0.2
LIKE_NEIGHBOURS = 0.5
HEAVY_DEGREES = 3
OUTLIER, PER_OUTLIER = 10, 25

Noise = Callable[[np.random.Generator, int], np.ndarray]


def history_steps(setting: Setting) -> Measured:
    """Look for steps in constant series, in series with a planted step, and in others that have none."""
    constant, stepping = (20, 10) if setting.quick else (1000, 200)
    found = {
        f"{n}_revisions": {
            f"{noise:.0%}": {f"{step:.0%}": _detection(n, noise, step, stepping) for step in STEPS}
            for noise in NOISES
        }
        for n in LENGTHS
    }
    false = {f"{n}_revisions": _false_steps(n, _white, constant) for n in LENGTHS}
    every = {
        (n, noise, step): found[f"{n}_revisions"][f"{noise:.0%}"][f"{step:.0%}"]
        for n in LENGTHS
        for noise in NOISES
        for step in STEPS
    }
    return Measured(
        figures={
            "false_steps_in_1000_constant_series": max(
                1000 * x["series_with_a_step"] / x["series"] for x in false.values()
            ),
            "found_20_percent": min(x["found"] for (_, _, step), x in every.items() if step == 0.2),
            "found_10_percent_in_50": min(
                x["found"] for (n, _, step), x in every.items() if step == 0.1 and n >= 50
            ),
            "found_5_percent_in_50_at_noise_1_percent": min(
                x["found"]
                for (n, noise, step), x in every.items()
                if (noise, step) == (0.01, 0.05) and n >= 50
            ),
            "in_range_if_found": min(x["in_range_if_found"] for x in every.values() if x["found"] >= 0.5),
            "detection": found,
            "constant": false,
            "constant_heavy_tails": _false_steps(50, _heavy, constant),
            "constant_like_neighbours": _false_steps(50, _autocorrelated, constant),
            "outliers": _false_steps(50, _with_outliers, constant),
            "drift": _drifting(50, stepping),
        },
        samples=stepping,
        notes=[
            f"noise: of a revision's value, as a share; steps are {FROM_AN_END} or more revisions in",
            f"found: a step within {NEAR} revisions of the planted one; exactly: between the right two; in "
            "range: within the commits that are named",
            "constant: a third of the series with each noise of 1, 2 and 3 %",
            f"heavy tails: Student's t with {HEAVY_DEGREES} degrees of freedom; like neighbours: noise that "
            f"correlates by {LIKE_NEIGHBOURS} from one revision to the next; outliers: one value in "
            f"{PER_OUTLIER} lies {OUTLIER} deviations higher",
            f"drift: {DRIFT:.0%} more at the end than at the beginning, at noise 1 %",
        ],
    )


def _detection(n: int, noise: float, step: float, trials: int) -> dict[str, float]:
    """Say which share of planted steps is found, and how often another is found beside it."""
    logger.info("steps of %.0f %% in %d revisions at noise %.0f %%", 100 * step, n, 100 * noise)
    rng = np.random.default_rng([n, round(1e4 * noise), round(1e4 * step)])
    near, exactly, within, others = [], [], [], []
    for _ in range(trials):
        at = int(rng.integers(FROM_AN_END, n - FROM_AN_END + 1))
        sign = rng.choice((-1, 1))
        values = np.exp(noise * _white(rng, n)) * np.where(np.arange(n) < at, 1, (1 + step) ** sign)
        steps = noisy_steps(values.tolist()).steps
        off = [abs(step.index - at) for step in steps]
        if any(x <= NEAR for x in off):
            within.append(any(step.earliest <= at <= step.latest for step in steps))
        near.append(any(x <= NEAR for x in off))
        exactly.append(0 in off)
        others.append(any(x > NEAR for x in off))
    return {
        "found": _share(near),
        "exactly": _share(exactly),
        "in_range_if_found": _share(within) if within else 1.0,
        "others": _share(others),
    }


def _false_steps(n: int, noise: Noise, trials: int) -> dict[str, Any]:
    """Count series without a step in which one is found."""
    logger.info("%d series of %d revisions without a step", trials, n)
    rng = np.random.default_rng(n)
    fits = [_fit(np.exp(NOISES[trial % len(NOISES)] * noise(rng, n))) for trial in range(trials)]
    return {"series": trials, **_counts(fits)}


def _drifting(n: int, trials: int) -> dict[str, Any]:
    """Count what is found in series that creep."""
    rng = np.random.default_rng(n)
    slope = np.linspace(1, 1 + DRIFT, n)
    return {"series": trials, **_counts([_fit(np.exp(0.01 * _white(rng, n)) * slope) for _ in range(trials)])}


def _fit(values: np.ndarray) -> Fit:
    return noisy_steps(values.tolist())


def _counts(fits: list[Fit]) -> dict[str, int]:
    return {
        "series_with_a_step": sum(bool(fit.steps) for fit in fits),
        "series_with_a_drift": sum(bool(fit.drifts) for fit in fits),
    }


def _white(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(HEAVY_DEGREES, n) / np.sqrt(HEAVY_DEGREES / (HEAVY_DEGREES - 2))


def _autocorrelated(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.standard_normal(n)
    for index in range(1, n):
        noise[index] = LIKE_NEIGHBOURS * noise[index - 1] + np.sqrt(1 - LIKE_NEIGHBOURS**2) * noise[index]
    return noise


def _with_outliers(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.standard_normal(n)
    noise[rng.choice(n, n // PER_OUTLIER, replace=False)] += OUTLIER
    return noise


def _share(outcomes: list[bool]) -> float:
    return float(np.mean(outcomes))
