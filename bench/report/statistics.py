"""Means over seeds, their confidence intervals, and paired tests: pure functions, nothing printed or drawn.

The interval is Student's: over three seeds its 95 % factor is 4.30, not the 1.96 of the normal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bench.report.names import label_runs
from flora.errors import BadInput, nearest

CONFIDENCE = 0.95

_CELL = ["task", "model", "split_label", "shots"]
_PAIR = ["method_label", "other_label", "n", "mean", "std", "half_width", "wins", "ties", "losses"]
_PAIR += ["t_p", "wilcoxon_p"]
_ENUMERATED = 12  # the 4,096 choices of signs take no time


@cache
def t_factor(n: int, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided quantile of Student's t for a mean of ``n`` values, NaN for fewer than two."""
    return float(stats.t.ppf((1 + confidence) / 2, n - 1)) if n > 1 else float("nan")


def mean_interval(
    frame: pd.DataFrame, by: Sequence[str], value: str, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Mean of ``value`` in each group of rows, with the half width of its t-interval.

    Args:
        frame: one row a run (or a run and round); the seed is what differs within a group.
        by: the columns that make a group; a missing value (shots = all data) is a group of its own.
        value: the measured column; rows where it is missing do not count.
        confidence: the probability the interval is made for, 0 to 1.

    Returns:
        One row a group, sorted by ``by``: these columns, ``n``, ``mean``, ``std`` (of the values, n - 1) and
        ``half_width``, both NaN where n = 1: one value says nothing of its spread.
    """
    known = frame.assign(**{value: pd.to_numeric(frame[value])}).dropna(subset=[value])
    groups = known.groupby(list(by), dropna=False, observed=True, sort=True)[value]
    table = groups.agg(n="count", mean="mean", std="std").reset_index()
    factors = np.array([t_factor(n, confidence) for n in table["n"]], dtype=float)
    table["half_width"] = factors * table["std"] / np.sqrt(table["n"])
    return table


def ratio_to(table: pd.DataFrame, by: Sequence[str], rows: pd.Series, value: str) -> pd.Series:
    """How many times less each row's ``value`` is than that of the reference row in its group.

    Args:
        table: one row a method and group.
        by: the columns that make a group.
        rows: boolean, one a row of ``table``: the reference, at most one in a group.
        value: the column compared.

    Returns:
        reference / value, one a row in the order of ``table``; NaN where the group has no reference or either
        of the two is zero (no time and no bytes: there is no factor to speak of).
    """
    reference = table.loc[rows, [*by, value]].rename(columns={value: "reference"})
    # A left join keeps the order of the rows; groups are told apart by every column of ``by``.
    joined = table[[*by, value]].merge(reference, on=list(by), how="left", validate="many_to_one")
    own, other = joined[value].astype(float), joined["reference"].astype(float)
    ratio = other.where(other > 0) / own.where(own > 0)
    return pd.Series(ratio.to_numpy(), index=table.index)


def deviation_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Standard deviation (n - 1) of values and its chi-square interval.

    Args:
        values: at least one; taken for draws from one normal distribution, which is what the interval needs.
        confidence: the probability the interval is made for, 0 to 1.

    Returns:
        The deviation, and the lower and upper end of the interval; all NaN for one value.
    """
    n = len(values)
    if n < 2:
        return float("nan"), float("nan"), float("nan")
    deviation = float(np.std(values, ddof=1))
    tails = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], n - 1)
    low, high = deviation * np.sqrt((n - 1) / tails)
    return deviation, float(low), float(high)


def paired_differences(
    runs: pd.DataFrame, metric: str = "accuracy", reference: str | None = None
) -> pd.DataFrame:
    """Differences between methods over the seeds that both ran on the same split of the data.

    Args:
        runs: one row a run.
        metric: the measured column.
        reference: a method by its name or label; then each other is subtracted from it alone. If not given,
            all pairs.

    Returns:
        One row a task, model, split, shots and pair (``method_label`` minus ``other_label``): ``n`` seeds in
        common, ``mean``, ``std`` and ``half_width`` of the 95 % t-interval of the differences, ``wins``,
        ``ties``, ``losses`` of the first (higher counts as won), ``t_p`` and ``wilcoxon_p`` of the paired
        t-test and the signed-rank test (two-sided; missing for one seed), and both after Holm's correction,
        ``t_p_holm`` and ``wilcoxon_p_holm``. The family corrected for is all rows of a task and model, so all
        pairs over all its splits and shots; ``family`` counts those that have a p-value.

    Raises:
        BadInput: there is no such measured column or method.
    """
    runs = label_runs(runs)
    _check_metric(runs, metric)
    references = _references(runs, reference)
    known = runs.assign(**{metric: pd.to_numeric(runs[metric])}).dropna(subset=[metric])
    rows = [
        {**dict(zip(_CELL, key, strict=True)), **row}
        for key, cell in known.groupby(_CELL, dropna=False, observed=True, sort=True)
        for row in _pairs(cell, metric, references)
    ]
    table = pd.DataFrame(rows, columns=[*_CELL, *_PAIR])
    table = table.astype({"shots": "Int64", "split_label": runs["split_label"].dtype})
    families = table.groupby(["task", "model"], sort=False)
    for p in ("t_p", "wilcoxon_p"):
        table[f"{p}_holm"] = families[p].transform(lambda values: holm(values.to_numpy(float)))
    return table.assign(family=families["t_p"].transform("count"))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Correct p-values for their number so that any false finding among them has the stated probability.

    Step-down (Holm 1979, Scand. J. Stat. 6): the k-th smallest of m is multiplied by m - k + 1, and none ends
    up below a smaller one. Missing values stay missing and do not count.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected


def paired_t_p(differences: np.ndarray) -> float:
    """Two-sided p of the paired t-test.

    Missing for one difference, and where all are the same but not zero: a spread of nothing is no evidence of
    certainty. Where all are zero nothing speaks for a difference: 1.
    """
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    if np.ptp(differences) == 0:
        return float("nan")
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are left out, as Wilcoxon did.

    Up to ``_ENUMERATED`` differences it is exact, also with ties: every choice of signs is counted. Beyond it
    is what scipy gives. Missing for one difference; 1 where all are zero.
    """
    if len(differences) < 2:
        return float("nan")
    left = differences[differences != 0]
    if not len(left):
        return 1.0
    if len(left) > _ENUMERATED:
        return float(stats.wilcoxon(left).pvalue)
    ranks = stats.rankdata(np.abs(left))
    signs = (np.arange(2 ** len(left))[:, None] >> np.arange(len(left))) & 1
    # ranks are multiples of a half: their sums compare exactly
    from_middle = np.abs(signs @ ranks - ranks.sum() / 2)
    return float(np.mean(from_middle >= abs(ranks[left > 0].sum() - ranks.sum() / 2)))


def _check_metric(runs: pd.DataFrame, metric: str) -> None:
    measured = [str(c) for c in runs if runs[c].dtype.kind in "if" and runs[c].notna().any()]
    if metric not in measured:
        raise BadInput(f"metric: nothing measured is called {metric!r}{nearest(metric, measured)}")


def _references(runs: pd.DataFrame, reference: str | None) -> set[str] | None:
    if reference is None:
        return None
    labels = runs["method_label"].astype(str)
    found = set(labels[(labels == reference) | (runs["method"] == reference)])
    if not found:
        known = {*labels, *runs["method"].astype(str)}
        raise BadInput(f"reference: no run is of {reference!r}{nearest(reference, known)}")
    return found


def _pairs(cell: pd.DataFrame, metric: str, references: set[str] | None) -> Iterator[dict[str, Any]]:
    # results of before splits had fingerprints are paired by their seed alone
    prints = cell["split.fingerprint"].fillna("") if "split.fingerprint" in cell else ""
    cell = cell.assign(fingerprint=prints)
    by_method = {
        str(name): runs.groupby(["seed", "fingerprint"])[metric].mean()
        for name, runs in cell.groupby("method_label", observed=True, sort=True)
    }
    for first, second in combinations(by_method, 2):
        if references is None or first in references:
            pair = first, second
        elif second in references:
            pair = second, first
        else:
            continue
        one, other = (by_method[name] for name in pair)
        joined = pd.concat([one, other], axis=1, join="inner", keys=["one", "other"])
        # accuracies are quotients of counts: what is less than this is arithmetic
        found = (joined["one"] - joined["other"]).to_numpy(float).round(12)
        if len(found):
            yield {"method_label": pair[0], "other_label": pair[1], **_of_differences(found)}


def _of_differences(differences: np.ndarray) -> dict[str, Any]:
    n = len(differences)
    deviation = float(np.std(differences, ddof=1)) if n > 1 else float("nan")
    return {
        "n": n,
        "mean": float(np.mean(differences)),
        "std": deviation,
        "half_width": t_factor(n) * deviation / np.sqrt(n),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        "t_p": paired_t_p(differences),
        "wilcoxon_p": signed_rank_p(differences),
    }
