"""How far figures can be trusted: invariants, busy machines, memory by cause, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.measure.causes import CAUSES
from bench.report.names import label_runs, shots_label
from bench.report.statistics import mean_interval
from bench.report.tables import BROKEN, ROW, Cell, Quantity, Table, seeds_of, slug_of, where_of
from bench.report.text import ABSENT, bytes_text, digits, n_text, operations_text, slug

PREDICTED = (
    Quantity("trainable_parameters", "Parameters", "{:,.0f}".format),
    Quantity("payload_bytes", "Payload", bytes_text),
    Quantity("train_flops", "Training FLOPs", operations_text),
    Quantity("peak_tensor_bytes", "Live tensors", bytes_text),
    Quantity("total_seconds", "Whole run (s)", digits),
)

# Predictions of these are of one client at a time.
OF_ONE_CLIENT = ("train_flops", "peak_tensor_bytes", "total_seconds")
OF_ONE_CLIENT_NOTE = (
    " Predictions are of one client at a time; runs whose clients were trained together are left out of "
    "FLOPs, memory and time."
)


def doubts_table(runs: pd.DataFrame) -> Table | None:
    """List the runs in which an invariant did not hold; None if there is none."""
    runs = label_runs(runs)
    affected = runs[runs["broken"].fillna("") != ""] if "broken" in runs else runs[:0]
    if affected.empty:
        return None
    return Table(
        name="doubts",
        caption=f"Runs in which an invariant did not hold ({BROKEN}): their figures may be wrong.",
        groups=[],
        columns=["Method", "Split", "Shots", "Seed", "Why", "Hash"],
        rows=[
            (
                str(row["method_label"]),
                [
                    Cell(text)
                    for text in (str(row["split_label"]), shots_label(row["shots"]), str(row["seed"]))
                ]
                + [Cell(str(row["broken"])), Cell(str(row["config_hash"]))],
            )
            for row in affected.to_dict("records")
        ],
        data=affected[["task", "method", "split", "shots", "seed", "config_hash", "broken"]],
    )


def checks_note(runs: pd.DataFrame) -> str:
    """Say how many runs had their invariants checked, and in how many all held."""
    if "invariants_checked" not in runs or not (checked := runs["invariants_checked"].fillna(0) > 0).any():
        return ""
    broken = int((runs.loc[checked, "broken"].fillna("") != "").sum())
    held = "all held in each" if not broken else f"in {broken} something did not hold ({BROKEN})"
    return (
        f"Invariants were checked in {int(checked.sum())} of {len(runs)} runs (payload sizes, frozen "
        "weights, movement of what trains, the model evaluated, weights of the aggregate, finite losses, no "
        f"test image in training): {held}."
    )


def busy_note(runs: pd.DataFrame) -> str:
    """Say how many runs shared the machine with others, so that their seconds are in doubt."""
    if "load.busy" not in runs or not (busy := runs["load.busy"].eq(True)).any():
        return ""
    most = 100 * runs.loc[busy, "load.others_busy_share"].max()
    return (
        f"Other processes used the machine during {int(busy.sum())} of {len(runs)} runs, up to {most:.0f} % "
        "of its cores' time: doubt their seconds (marked busy in the list of runs)."
    )


def memory_table(runs: pd.DataFrame) -> Table | None:
    """Live tensors at their peak by cause, and by phase; for the runs of one task, model, split and shots.

    None where they were not counted.
    """
    runs = label_runs(runs)
    causes = {f"memory.by_cause.{cause}": cause.replace("_", " ").capitalize() for cause in CAUSES}
    phases = {
        f"memory.by_phase.{phase}": phase.capitalize()
        for phase in ("features", "train", "aggregate", "evaluate")
    }
    shown = {
        name: text for name, text in {**causes, **phases}.items() if name in runs and runs[name].notna().any()
    }
    if not any(name in causes for name in shown):
        return None
    means = {name: mean_interval(runs, [*ROW, "method"], name) for name in shown}
    data = pd.concat([table.assign(quantity=name) for name, table in means.items()], ignore_index=True)
    entries = {
        (str(row["method_label"]), row["quantity"]): Cell(bytes_text(row["mean"]))
        for row in data.to_dict("records")
    }
    methods = [str(name) for name in runs["method_label"].cat.remove_unused_categories().cat.categories]
    n_causes = sum(name in causes for name in shown)
    where, n = where_of(runs), seeds_of(runs)
    return Table(
        name=f"tensors-{slug_of(runs)}-{slug(where)}",
        caption=f"Live tensors ({where}), {n_text(n)}: at "
        "the moment of their peak by cause, and the peak of each phase. Counted tensor by tensor, so without "
        "libraries and allocator; with clients trained together, of all of them.",
        groups=[("By cause, at the peak", n_causes), ("Peak by phase", len(shown) - n_causes)],
        columns=["Method", *shown.values()],
        rows=[(name, [entries.get((name, key), Cell(ABSENT)) for key in shown]) for name in methods],
        data=data,
    )


def predicted_table(runs: pd.DataFrame, predictions: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Set what was predicted beside what was measured; for the runs of one task, model, split and shots.

    Args:
        runs: one row a run.
        predictions: by hash of the configuration, as `flora-bench plan --save` keeps them.
    """
    runs = label_runs(runs)
    known = runs[runs["config_hash"].isin(predictions)]
    if known.empty:
        return None
    for quantity in PREDICTED:
        foretold = [predictions[key].get(quantity.column) for key in known["config_hash"]]
        known = known.assign(
            **{f"predicted_{quantity.column}": pd.to_numeric(pd.Series(foretold, index=known.index))}
        )
    known, together = _one_client_at_a_time(known)
    shown = [
        q
        for q in PREDICTED
        if q.column in known and known[[q.column, f"predicted_{q.column}"]].notna().all(axis=1).any()
    ]
    if not shown:
        return None
    columns = [name for q in shown for name in (f"predicted_{q.column}", q.column)]
    data = known.groupby("method_label", observed=True)[columns].mean().reset_index()
    where = where_of(runs)
    return Table(
        name=f"predicted-{slug_of(runs)}-{slug(where)}",
        caption=f"Predicted by `plan`, and measured ({where}), "
        f"{n_text(seeds_of(known))}." + OF_ONE_CLIENT_NOTE * together,
        groups=[(quantity.heading, 2) for quantity in shown],
        columns=["Method", *(name for _ in shown for name in ("Predicted", "Measured"))],
        rows=[
            (
                str(row["method_label"]),
                [
                    Cell(ABSENT if pd.isna(row[name]) else quantity.text(row[name]))
                    for quantity in shown
                    for name in (f"predicted_{quantity.column}", quantity.column)
                ],
            )
            for row in data.to_dict("records")
        ],
        data=data,
    )


def _one_client_at_a_time(runs: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Leave out what was predicted of one client at a time where several were trained; say if any were."""
    if "clients_together" not in runs or not (together := runs["clients_together"] > 1).any():
        return runs, False
    names = [name for quantity in OF_ONE_CLIENT for name in (quantity, f"predicted_{quantity}")]
    there = [name for name in names if name in runs]
    return runs.assign(**{name: runs[name].where(~together) for name in there}), True
