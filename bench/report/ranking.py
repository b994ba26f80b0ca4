"""Mean ranks of methods over data sets, and which of them these tell apart: pure functions.

After Demšar (2006, JMLR 7): Friedman's test says whether the methods differ at all, Nemenyi's critical
difference which of them do. A data set is one observation, whatever the number of its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from bench.report.names import label_runs, without_deployed_twins
from bench.report.statistics import mean_interval

# With fewer, not even methods in the same order on every data set are told apart reliably.
FEWEST_DATA_SETS = 5
FEWEST_METHODS = 3

RANK_CELL = ["model", "split_label", "shots"]


def mean_ranks(runs: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Rank the methods within every data set and average the ranks over the data sets.

    Args:
        runs: one row a run; zero-shot is a method like any other.
        metric: the measured column, of which more is better.

    Returns:
        One row a model, split, shots and method: ``n`` data sets that all methods of the cell ran and
        ``mean_rank`` over these (1 is best; ties share the mean of their ranks; missing where n = 0).
    """
    runs = without_deployed_twins(label_runs(runs))
    tables = []
    for key, cell in runs.groupby(RANK_CELL, dropna=False, observed=True):
        where = pd.DataFrame([key], columns=RANK_CELL)
        tables.append(where.merge(mean_rank_of(score_matrix(cell, metric)), how="cross"))
    columns = [*RANK_CELL, "method_label", "n", "mean_rank"]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)[columns].astype({"shots": "Int64"})
    table = table.astype({name: runs[name].dtype for name in ("split_label", "method_label")})
    return table.sort_values([*RANK_CELL, "method_label"], ignore_index=True)


def score_matrix(cell: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Return the mean over seeds, data sets by methods; data sets that some method did not run are left out.

    Args:
        cell: labelled runs of one model, split and shots.
        metric: the measured column.
    """
    means = mean_interval(cell, ["task", "method_label"], metric)
    # accuracies are quotients of counts: what is less than this is arithmetic, and a tie
    means["mean"] = means["mean"].round(12)
    return means.pivot(index="task", columns="method_label", values="mean").dropna()


def mean_rank_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Return ``method_label``, ``n`` and ``mean_rank`` of a matrix of ``score_matrix``, in its order."""
    ranks = scores.rank(axis="columns", ascending=False).mean()
    labels = [str(name) for name in scores.columns]
    return pd.DataFrame({"method_label": labels, "n": len(scores), "mean_rank": ranks.to_numpy(float)})


def friedman_p(scores: pd.DataFrame) -> float:
    """Return the p-value of Friedman's test that the methods differ in nothing but chance.

    Args:
        scores: data sets by methods, as ``score_matrix`` makes it.

    Returns:
        From the chi-square approximation; missing below ``FEWEST_METHODS`` methods or ``FEWEST_DATA_SETS``
        data sets, and 1 where all methods are level on every data set.
    """
    n_data_sets, n_methods = scores.shape
    if n_methods < FEWEST_METHODS or n_data_sets < FEWEST_DATA_SETS:
        return float("nan")
    values = scores.to_numpy(float)
    if not np.ptp(values, axis=1).any():
        return 1.0
    return float(stats.friedmanchisquare(*values.T).pvalue)


def critical_difference(n_methods: int, n_data_sets: int, alpha: float = 0.05) -> float:
    """Return by how much two mean ranks must differ for Nemenyi's test to tell their methods apart.

    Missing for fewer than two methods or no data set.
    """
    if n_methods < 2 or n_data_sets < 1:
        return float("nan")
    return _nemenyi_factor(n_methods, alpha) * math.sqrt(n_methods * (n_methods + 1) / (6 * n_data_sets))


@cache
def _nemenyi_factor(n_methods: int, alpha: float) -> float:
    return float(stats.studentized_range.ppf(1 - alpha, n_methods, np.inf)) / math.sqrt(2)


def indistinct_groups(ranks: Mapping[str, float], difference: float) -> list[list[str]]:
    """Find the groups of methods whose mean ranks all lie less than ``difference`` apart.

    Args:
        ranks: the mean rank of each method.
        difference: the critical difference.

    Returns:
        The groups of two or more that are part of no other, best rank first, as are their methods.
    """
    order = sorted(ranks, key=ranks.__getitem__)
    groups: list[list[str]] = []
    reached = 0  # how many of the order the groups so far cover: a group that goes no further is part of one
    for start, first in enumerate(order):
        group = [name for name in order[start:] if ranks[name] - ranks[first] < difference]
        if len(group) > 1 and start + len(group) > reached:
            groups.append(group)
            reached = start + len(group)
    return groups
