"""Which time is shown: that of the accelerated simulation, its features apart, or that of a run as deployed.

A run that finds its features in the cache took less than one that had to compute them. So that the order of
runs flatters no method, what is compared counts the features as computed: as from an empty cache.
"""

from __future__ import annotations

import pandas as pd

from bench.report.names import AS_DEPLOYED, label_runs

DEPLOYED_MEANS = "each image through the model each time, each prompt at full length"
_ACCELERATED = "of the simulation, accelerated: features of frozen towers are computed once, and stand apart"


def with_times(runs: pd.DataFrame) -> pd.DataFrame:
    """Add the seconds that do not depend on what the cache held.

    Args:
        runs: one row a run.

    Returns:
        A labelled copy with ``features_once_seconds`` (missing where nothing is kept),
        ``other_setup_seconds`` (without features) and ``from_nothing_seconds`` (the whole run, features
        counted as computed).
    """
    runs = label_runs(runs)
    spent = _column(runs, "features_seconds").fillna(0.0)
    # before results told the two apart there was no cache: what a run spent was the one-off time
    once = _column(runs, "extraction_seconds").fillna(spent.where(spent > 0))
    return runs.assign(
        features_once_seconds=once,
        other_setup_seconds=_column(runs, "setup_seconds") - spent,
        from_nothing_seconds=_column(runs, "total_seconds") - spent + once.fillna(0.0),
    )


def which_time(runs: pd.DataFrame) -> str:
    """Say in a sentence which time the seconds of these runs are; nothing where they do not tell."""
    texts = {
        ("exact",): f"Seconds are {_ACCELERATED}.",
        ("none",): f"Seconds are {AS_DEPLOYED}: {DEPLOYED_MEANS}.",
        ("exact", "none"): f"Seconds are {_ACCELERATED}; in rows “{AS_DEPLOYED}”: {DEPLOYED_MEANS}.",
    }
    return texts.get(_modes(runs), "")


def which_time_in_short(runs: pd.DataFrame) -> str:
    """Say the same in a few words in brackets, with a space before them."""
    texts = {
        ("exact",): " (accelerated)",
        ("none",): f" ({AS_DEPLOYED})",
        ("exact", "none"): f" (accelerated, where not named as {AS_DEPLOYED.removeprefix('as ')})",
    }
    return texts.get(_modes(runs), "")


def _modes(runs: pd.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(set(runs["acceleration"].dropna()))) if "acceleration" in runs else ()


def _column(runs: pd.DataFrame, name: str) -> pd.Series:
    """The column as numbers, all missing where there is none."""
    return pd.to_numeric(runs[name]) if name in runs else pd.Series(float("nan"), index=runs.index)
