"""Means over seeds and their confidence intervals: pure functions, nothing printed or drawn.

The interval is Student's: over three seeds its 95 % factor is 4.30, not the 1.96 of the normal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95


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
