"""Tables beside those of accuracy and cost: best round and last, paired differences, what a target took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.report.names import label_runs, shots_label, without_deployed_twins
from bench.report.statistics import mean_interval, paired_differences
from bench.report.tables import (
    BELOW,
    CELL,
    ROW,
    Cell,
    Quantity,
    Table,
    below_zero_shot,
    percent,
    slug_of,
    where_of,
)
from bench.report.targets import QUANTITIES, common_target, to_target_frame
from bench.report.text import ABSENT, bytes_text, digits, n_text, slug
from bench.report.times import which_time
from bench.store import ROUND_WORK

SIGNIFICANT = 0.05

_BEST = {
    "accuracy": "Last round",
    "best_accuracy": "Best round",
    "best_round": "Number of the best",
    "macro_accuracy": "Mean over classes",
    "calibration_error": "Calibration error",
    "client_worst_accuracy": "Worst client",
}
_TO_TARGET = {
    "seconds": Quantity("seconds", "Seconds", digits),
    "deployment_seconds": Quantity("deployment_seconds", "Seconds, clients at once", digits),
    "bytes": Quantity("bytes", "Bytes", bytes_text),
    "joules": Quantity("joules", "Joules", digits),
}


def best_round_table(runs: pd.DataFrame) -> Table | None:
    """Accuracy after the last round beside that of the best; for the runs of one task, model, split, shots.

    None where the best round was not kept.
    """
    runs = label_runs(runs)
    measured = [column for column in _BEST if column in runs and runs[column].notna().any()]
    if not {"accuracy", "best_accuracy"} <= set(measured):
        return None
    means = {column: mean_interval(runs, [*ROW, "method"], column) for column in measured}
    data = pd.concat([table.assign(quantity=column) for column, table in means.items()], ignore_index=True)
    below = {column: below_zero_shot(runs, column) for column in measured}
    measures: Any = data.itertuples()
    entries = {
        (str(row.method_label), row.quantity): Cell(
            _round_text(row) if row.quantity == "best_round" else percent(row.mean, row.half_width),
            below=below[row.quantity].get(str(row.method_label), False),
        )
        for row in measures
    }
    methods = [str(name) for name in runs["method_label"].cat.remove_unused_categories().cat.categories]
    where, n = where_of(runs), runs.groupby(ROW, dropna=False, observed=True).size()
    interval = " ± half width of the 95 % t-interval" if data["half_width"].notna().any() else ""
    mark = f" {BELOW}: below zero-shot." if any(cell.below for cell in entries.values()) else ""
    return Table(
        name=f"best-round-{slug_of(runs)}-{slug(where)}",
        caption=f"Last round and best ({where}, %), {n_text(n)}{interval}. The best is chosen on the test "
        f"set itself, so it flatters; all other columns are after the last round.{mark}",
        groups=[],
        columns=["Method", *(_BEST[column] for column in measured)],
        rows=[(name, [entries.get((name, column), Cell(ABSENT)) for column in measured]) for name in methods],
        data=data,
    )


def paired_table(runs: pd.DataFrame) -> Table | None:
    """FLoRA, or the first trained method, against each other one over the same seeds; of one task and model.

    The table shows what is fit to be read; its data hold all pairs. None where nothing can be paired.
    """
    runs = without_deployed_twins(label_runs(runs))
    data = paired_differences(runs)
    reference = _reference(runs)
    data = data.sort_values(["shots", "split_label"], na_position="first", kind="stable")
    mine = data[(data["method_label"] == reference) | (data["other_label"] == reference)]
    if reference is None or mine.empty:
        return None
    levels = [
        (shots_label(shots), str(split))
        for shots, split in mine[["shots", "split_label"]].drop_duplicates().itertuples(index=False)
    ]
    entries: dict[tuple[str, str, str], Cell] = {}
    for row in mine.to_dict("records"):
        turned = row["other_label"] == reference
        other = row["method_label"] if turned else row["other_label"]
        level = shots_label(row["shots"]), str(row["split_label"])
        entries[other, *level] = _difference_cell(row, -1 if turned else 1)
    others = [name for name in map(str, runs["method_label"].cat.categories) if name != reference]
    rows = [
        (name, [entries.get((name, *level), Cell(ABSENT)) for level in levels])
        for name in others
        if any((name, *level) in entries for level in levels)
    ]
    shots = list(dict.fromkeys(level[0] for level in levels))
    return Table(
        name=f"paired-{slug_of(runs)}",
        caption=_paired_caption(reference, data),
        groups=[(name, sum(level[0] == name for level in levels)) for name in shots],
        columns=[f"{reference} minus", *(split for _, split in levels)],
        rows=rows,
        data=data,
    )


def to_target_table(runs: pd.DataFrame, rounds: pd.DataFrame, target: float | None = None) -> Table | None:
    """What each method took until a target accuracy; for the runs of one task, model, split and shots.

    Args:
        runs: one row a run.
        rounds: of these runs, and maybe others.
        target: accuracy, above 0 and at most 1; if not given, `bench.report.targets.common_target`.

    Returns:
        The table, its data one row a method and quantity; None where nothing was trained.
    """
    runs = label_runs(runs)
    trained = runs[runs["method"] != "zero_shot"]
    if trained.empty:
        return None
    target = common_target(runs) if target is None else target
    frames = {
        quantity: to_target_frame(trained, rounds, target, quantity)
        for quantity, column in QUANTITIES.items()
        if column in rounds and rounds.loc[rounds["round"] > 0, column].notna().any()
    }
    shown = {quantity: frame for quantity, frame in frames.items() if len(frame)}
    if not shown:
        return None
    any_frame = next(iter(shown.values()))
    missed = bool(any_frame["best_not_reached"].notna().any())
    amounts = {quantity: frame.to_dict("records") for quantity, frame in shown.items()}
    rows = []
    for index, row in enumerate(any_frame.to_dict("records")):
        cells = [Cell(f"{row['reached']} of {row['runs']}")]
        cells += [_amount_cell(entries[index], _TO_TARGET[key]) for key, entries in amounts.items()]
        if missed:
            # never below zero-shot, as that is round 0
            best = row["best_not_reached"]
            cells.append(Cell(ABSENT if pd.isna(best) else f"{100 * best:.1f}"))
        rows.append((str(row["method_label"]), cells))
    data = pd.concat([frame.assign(quantity=key) for key, frame in shown.items()], ignore_index=True)
    headings = [_TO_TARGET[key].heading for key in shown]
    where = where_of(runs)
    return Table(
        name=f"to-target-{slug_of(runs)}-{slug(where)}",
        caption=_to_target_caption(where, target, trained, set(shown), missed, data),
        groups=[],
        columns=[
            "Method",
            "Seeds that reached it",
            *headings,
            *(["Best that did not (%)"] if missed else []),
        ],
        rows=rows,
        data=data,
    )


def _round_text(row: Any) -> str:
    half = "" if pd.isna(row.half_width) else f" ± {row.half_width:.1f}"
    return f"{row.mean:.1f}{half}" if half else f"{row.mean:.0f}"


def _reference(runs: pd.DataFrame) -> str | None:
    """FLoRA's label, the first of several; else that of the first trained method."""
    trained = runs[runs["method"] != "zero_shot"]
    preferred = trained[trained["method"] == "flora"] if "flora" in set(trained["method"]) else trained
    labels = preferred["method_label"].cat.remove_unused_categories().cat.categories
    return str(labels[0]) if len(labels) else None


def _difference_cell(row: Mapping[Any, Any], sign: int) -> Cell:
    half = "" if pd.isna(row["half_width"]) else f" ± {100 * row['half_width']:.1f}"
    t_p, rank_p = row["t_p_holm"], row["wilcoxon_p_holm"]
    known = not (pd.isna(t_p) and pd.isna(rank_p))
    return Cell(
        f"{100 * sign * row['mean']:+.1f}{half}".replace("-", "\N{MINUS SIGN}"),
        note=f"p {_p_text(t_p)}; {_p_text(rank_p)}" if known else "",
        best=bool(t_p < SIGNIFICANT),
    )


def _p_text(p: float) -> str:
    if pd.isna(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _paired_caption(reference: str, data: pd.DataFrame) -> str:
    seeds = f"over the same seeds and splits of the data, {n_text(data['n'])}"
    text = f"Accuracy of {reference} minus that of each other method (points), {seeds}"
    if data["n"].max() == 1:
        return f"{text}; one difference has no test."
    family = int(data["family"].max())
    return (
        f"{text} ± half width of the 95 % t-interval. In brackets: p of the paired t-test; of Wilcoxon's "
        f"signed-rank test; both after Holm's correction over the {family} pairs of methods, splits and "
        f"shots ({ABSENT}: all differences the same and not zero). Bold: p of the t-test below "
        f"{SIGNIFICANT}. All pairs: see the CSV file of this table."
    )


def _amount_cell(row: Mapping[Any, Any], quantity: Quantity) -> Cell:
    if pd.isna(row["mean"]):
        return Cell(ABSENT)
    half = row["half_width"]
    return Cell(quantity.text(row["mean"]) + ("" if pd.isna(half) else f" ± {quantity.text(half)}"))


def _to_target_caption(
    where: str, target: float, trained: pd.DataFrame, shown: set[str], missed: bool, data: pd.DataFrame
) -> str:
    interval = " ± half width of the 95 % t-interval" if data["half_width"].notna().any() else ""
    n = trained.groupby([*CELL, "method_label"], dropna=False, observed=True).size()
    sentences = [
        f"To an accuracy of {target:.0%} ({where}): what had been spent when a round first ended at or above "
        f"it, {n_text(n)}{interval}, of the seeds that reached it alone."
    ]
    if "seconds" in shown:
        sentences.append(f"Seconds: {', '.join(ROUND_WORK[:-1])} and {ROUND_WORK[-1]}, added up.")
        sentences.append(which_time(trained))
    if "deployment_seconds" in shown:
        sentences.append("Clients at once: the slowest client of each round and the server's work.")
    if missed:
        sentences.append(
            "Last column: the highest accuracy of any round, round 0 too, of seeds that did not."
        )
    return " ".join(filter(None, sentences))
