"""Which trained method leads its cell, and whether its seeds establish that: pure functions.

The highest mean is a finding only where its lead over every other method is beyond the interval of their
differences. Otherwise the highest and those that cannot be told from it are level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from bench.report.statistics import CONFIDENCE

PAIRED, UNPAIRED, ONE_SEED, UNKNOWN = "paired", "unpaired", "one seed", "unknown"
"""How a method was compared with the highest: ``UNKNOWN`` where one of the two has a single seed."""


def printed(share: float, decimals: int) -> float:
    """Return a share in percent as it is printed: rounded as text is, which numpy rounds otherwise."""
    return float(f"{100 * share:.{decimals}f}")


def mark_leads(
    table: pd.DataFrame, runs: pd.DataFrame, by: Sequence[str], metric: str = "accuracy", decimals: int = 1
) -> pd.DataFrame:
    """Say of each method whether it leads its cell, and whether it is next or level with the highest.

    Args:
        table: one row a cell and method that competes: ``by``, ``method_label``, ``twin_label``, ``n``,
            ``mean`` and ``std`` of the metric.
        runs: the labelled runs behind it.
        by: the columns that make a cell.
        metric: a share, higher is better.
        decimals: of the metric in percent, as printed: what prints the same is level.

    Returns:
        In the rows of ``table``: ``best``, at most one method a cell (and its twin, as deployed, where that
        prints the same), whose lead over each other is established; ``second``, the next highest where there
        is a best, else the highest and all that cannot be told from it, and in either case all that print
        higher than one of these; ``compared``, with the highest how, missing for itself. In a cell of one
        seed a method nothing can be established: the highest as printed is best. Alone is nothing best.
    """
    by = list(by)
    shown = table["mean"].map(lambda share: printed(share, decimals))
    top = table.sort_values("mean", ascending=False, kind="stable").drop_duplicates(by)
    columns = ["method_label", "twin_label", "n", "mean", "std"]
    beside = table[by].merge(top[[*by, *columns]], on=by, how="left").set_axis(table.index)
    rival = table["twin_label"].astype(str) != beside["twin_label"].astype(str)
    pairs = _paired(table, beside, runs, by, metric)
    lead, half, unknown = _intervals(table, beside, pairs)

    def over_cell(values: pd.Series, how: Literal["max", "min", "any", "all"]) -> pd.Series:
        return values.groupby([table[c] for c in by], dropna=False, observed=True).transform(how)

    one_seed = over_cell(table["n"], "max") == 1
    apart = over_cell(shown, "max") != shown
    told = apart & (one_seed | (~unknown & (lead > half)))
    established = over_cell(told | ~rival, "all") & over_cell(rival, "any")
    compared = pd.Series(
        np.select([one_seed, pairs["n"] > 1, unknown], [ONE_SEED, PAIRED, UNKNOWN], UNPAIRED)
    )
    best = established & ~rival & ~apart
    following = rival & (shown == over_cell(shown.where(rival), "max"))
    level = (established & following) | (~established & over_cell(rival, "any") & ~told)
    # of few or uneven seeds a lower mean may be level with the highest where one above it is not
    return pd.DataFrame(
        {
            "best": best,
            "second": ~best & (shown >= over_cell(shown.where(level), "min")),
            "compared": compared.set_axis(table.index).where(rival),
        }
    )


def welch(
    one: pd.DataFrame, other: pd.DataFrame, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare means of independent seeds without assuming that they spread alike (Welch 1947, Biometrika 34).

    Args:
        one: ``n``, ``mean`` and ``std`` (n - 1), one row a comparison.
        other: those of the methods compared with.
        confidence: the probability the interval is made for, 0 to 1.

    Returns:
        The differences, one minus other; half the widths of their intervals; and the two-sided p-values. Of
        one seed there is no interval. Where neither has any spread its half width is 0, and p is missing, as
        a spread of nothing is no evidence of certainty.
    """
    (n, mean, std), (of_n, of_mean, of_std) = (
        frame[["n", "mean", "std"]].to_numpy(float, na_value=np.nan).T for frame in (one, other)
    )
    # accuracies are quotients of counts: what is less than this is arithmetic
    difference = (mean - of_mean).round(12)
    mine, others = std**2 / n, of_std**2 / of_n
    error = np.sqrt(mine + others)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (mine + others) ** 2 / (mine**2 / (n - 1) + others**2 / (of_n - 1))
        half = stats.t.ppf((1 + confidence) / 2, freedom) * error
        p = 2 * stats.t.sf(np.abs(difference / error), freedom)
    return difference, np.where(error == 0, 0.0, half), p


def _paired(
    table: pd.DataFrame, beside: pd.DataFrame, runs: pd.DataFrame, by: list[str], metric: str
) -> pd.DataFrame:
    """``n``, ``mean`` and ``std`` of the highest minus each method, over the seeds and splits both have."""
    # results of before splits had fingerprints are paired by their seed alone
    prints = runs["split.fingerprint"].fillna("") if "split.fingerprint" in runs else ""
    runs = runs.assign(fingerprint=prints, value=pd.to_numeric(runs[metric])).dropna(subset=["value"])
    seed = ["seed", "fingerprint"]
    keys = [*by, "method_label"]
    values = runs.groupby([*keys, *seed], dropna=False, observed=True)["value"].mean().reset_index()
    wanted = table[keys].assign(row=table.index, top=beside["method_label"])
    mine = values.merge(wanted, on=keys)
    of_top = values.rename(columns={"method_label": "top", "value": "highest"})
    both = mine.merge(of_top, on=[*by, "top", *seed])
    differences = (both["highest"] - both["value"]).round(12).groupby(both["row"])
    found = pd.DataFrame({"n": differences.count(), "mean": differences.mean(), "std": differences.std()})
    return found.reindex(table.index).fillna({"n": 0})


def _intervals(
    table: pd.DataFrame, beside: pd.DataFrame, pairs: pd.DataFrame
) -> tuple[pd.Series, pd.Series, pd.Series]:
    """The lead of the highest over each method, half the width of its interval, and where there is none."""
    several = pairs["n"] > 1
    factor = stats.t.ppf((1 + CONFIDENCE) / 2, (pairs["n"] - 1).where(several))
    paired = factor * pairs["std"] / np.sqrt(pairs["n"].where(several))
    difference, unpaired, _ = welch(beside, table)
    lead = pairs["mean"].where(several, pd.Series(difference, table.index))
    half = paired.where(several, pd.Series(unpaired, table.index)).round(12)
    return lead, half, half.isna()
