"""What it took to reach a target accuracy: seconds, bytes or joules, with the runs that never did counted."""

from __future__ import annotations

import pandas as pd

from bench.report.names import label_rounds, label_runs
from bench.report.statistics import mean_interval
from flora.errors import BadInput, nearest

QUANTITIES = {
    "seconds": "cumulative_seconds",
    "deployment_seconds": "cumulative_deployment_seconds",
    "bytes": "cumulative_bytes",
    "joules": "cumulative_joules",
}
"""Quantities, and the column of `bench.store.load_rounds` that adds each up."""

_BY = ["task", "model", "split_label", "shots", "method_label"]


def to_target(rounds: pd.DataFrame, target: float, quantity: str = "seconds") -> pd.DataFrame:
    """Find for each run what it took until its accuracy first reached a target.

    Whether it stays there is not asked: the round is the first at or above the target, and the amount what
    had been spent at its end. The model as it came is round 0, so a target below zero-shot takes nothing.

    Args:
        rounds: one row a run and round, with ``config_hash``, ``round``, ``accuracy`` and the column of
            ``QUANTITIES``.
        target: accuracy, above 0 and at most 1.
        quantity: of ``QUANTITIES``, or a column of ``rounds`` that adds up.

    Returns:
        One row a run: ``config_hash``, ``reached``, ``round`` and ``amount`` (both missing where it was never
        reached; the amount alone where it was not measured) and ``best_accuracy``, of any round.

    Raises:
        BadInput: the target is no accuracy, or there is no such quantity.
    """
    check_target(target)
    column = QUANTITIES.get(quantity, quantity)
    if column not in rounds:
        raise BadInput(f"quantity: there is no {quantity!r}{nearest(quantity, QUANTITIES)}")
    ordered = rounds.sort_values("round", kind="stable")
    runs = ordered.groupby("config_hash", sort=False)["accuracy"].max().rename("best_accuracy")
    firsts = ordered[ordered["accuracy"] >= target].drop_duplicates("config_hash").set_index("config_hash")
    firsts = firsts[["round", column]].rename(columns={column: "amount"})
    table = runs.to_frame().join(firsts).reset_index()
    table.insert(1, "reached", table["config_hash"].isin(firsts.index))
    return table[["config_hash", "reached", "round", "amount", "best_accuracy"]].sort_values(
        "config_hash", ignore_index=True
    )


def check_target(target: float) -> None:
    """Refuse what is no accuracy.

    Raises:
        BadInput: it is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise BadInput(f"target: {target:g} must be an accuracy above 0 and up to 1, such as 0.8")


def to_target_frame(
    runs: pd.DataFrame, rounds: pd.DataFrame, target: float, quantity: str = "seconds"
) -> pd.DataFrame:
    """What each method took until a target accuracy, over its seeds.

    Args:
        runs: one row a run.
        rounds: of these runs, one row a run and round.
        target: accuracy, above 0 and at most 1.
        quantity: of ``QUANTITIES``.

    Returns:
        One row a task, model, split, shots and method: ``runs`` and how many of them ``reached`` the target;
        ``n``, ``mean``, ``std`` and ``half_width`` of the amounts of those that did, where they are known;
        ``best_not_reached``, the best accuracy of any run that did not. A mean is of those that reached it
        alone: beside runs that did not, it flatters.
    """
    runs = label_runs(runs)
    each = to_target(label_rounds(rounds, runs), target, quantity)
    each = runs[[*_BY, "method", "config_hash"]].merge(each, on="config_hash")
    by = [*_BY, "method"]
    each["missed"] = each["best_accuracy"].where(~each["reached"])
    groups = each.groupby(by, dropna=False, observed=True, sort=True)
    table = groups.agg(
        runs=("reached", "size"), reached=("reached", "sum"), best_not_reached=("missed", "max")
    ).reset_index()
    return table.merge(mean_interval(each, by, "amount"), on=by, how="left").assign(target=target)


def common_target(runs: pd.DataFrame) -> float:
    """Give a target that tells runs of one cell apart: half of what training gained at best.

    Halfway from zero-shot to the mean accuracy of the best method; where that is less than zero-shot, half of
    the best accuracy itself. In whole percent, or tenths, so far as that lies strictly between the two: a
    target that the model had from the start, or that none reaches, tells nothing.
    """
    runs = label_runs(runs)
    best = float(runs.groupby("method_label", observed=True)["accuracy"].mean().max())
    stated = runs["zero_shot_accuracy"].mean() if "zero_shot_accuracy" in runs else float("nan")
    start = 0.0 if pd.isna(stated) or stated >= best else float(stated)
    halfway = (start + best) / 2
    for rounded in (round(halfway, 2), round(halfway, 3)):
        if start < rounded < best:
            return rounded
    return halfway if halfway > 0 else 0.01
