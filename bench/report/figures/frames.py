"""The frames that figures are given: others, which would be drawn as nonsense, are refused in a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pandas as pd

from bench.report.figures.canvas import NothingToDraw
from bench.report.names import label_runs
from bench.report.tables import CELL, ROW, scored_apart, zero_shot_reference
from flora.errors import BadInput

_GPU, _PROCESS = "peak_gpu_memory_bytes", "peak_memory_bytes"
# What tells a frame of another kind: what it has a row of, by its column.
_ROWS = {
    "round": "run and round",
    "class_index": "division, client and class",
    "client": "run and client",
    "profile": "run and network",
}


@dataclass(frozen=True)
class _Kind:
    """A kind of frame: what it has a row of, where it comes from, and columns that it cannot do without."""

    row: str
    source: str
    needs: tuple[str, ...]
    empty: str


_RUN = ("task", "model", "method", "shots")
_KINDS = {
    "runs": _Kind("run", "bench.load_results", _RUN, "there is no run"),
    "rounds": _Kind(
        "run and round", "bench.load_rounds", ("round", *_RUN, "config_hash"), "there is no round of a run"
    ),
    "clients": _Kind(
        "run and client",
        "bench.report.data.read_data(folder).clients",
        ("client", "accuracy", "samples", "method_label", "split_label", *_RUN),
        "no run evaluated its clients apart",
    ),
    "divisions": _Kind(
        "division, client and class",
        "bench.report.data.read_data(folder).divisions",
        ("fingerprint", "class_index", "client", "samples", "split_label", "shots", "task"),
        "no run says how the data was divided",
    ),
    "times": _Kind(
        "run and network",
        "bench.report.networks.network_times",
        ("profile", "round_seconds", "method_label", "split_label", *_RUN),
        "no run was replayed on a network with a target accuracy",
    ),
}


def check_frame(frame: pd.DataFrame, kind: str) -> None:
    """Refuse a frame that is not what a figure draws.

    Args:
        frame: as a figure was given it.
        kind: "runs", "rounds", "clients", "divisions" or "times".

    Raises:
        NothingToDraw: it has no rows.
        BadInput: it is of another kind.
    """
    asked = _KINDS[kind]
    if not isinstance(frame, pd.DataFrame):
        raise BadInput(f"{kind}: {type(frame).__name__} must be a data frame, as `{asked.source}` gives")
    if frame.empty:
        raise NothingToDraw(asked.empty)
    wanted = f"{kind}: needs a row a {asked.row}, as `{asked.source}` gives"
    other = next((row for name, row in _ROWS.items() if name in frame and name not in asked.needs), None)
    if other is not None and other != asked.row:
        raise BadInput(f"{wanted}; this has a row a {other}")
    if missing := [name for name in asked.needs if name not in frame]:
        raise BadInput(f"{wanted}; this has none of {', '.join(map(repr, missing))}")


def labelled_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Label runs that a figure was given; errors as of ``check_frame``."""
    check_frame(runs, "runs")
    return label_runs(runs)


def labelled_rounds(rounds: pd.DataFrame) -> pd.DataFrame:
    """Label rounds that a figure was given; errors as of ``check_frame``.

    Raises:
        BadInput: they are not labelled, and runs that would share a label differ in more than their seed:
            rounds hold no options that could tell them apart, and their mean would be of nothing.
    """
    check_frame(rounds, "rounds")
    labelled = label_runs(rounds)
    if labelled is rounds or "seed" not in rounds:
        return labelled
    seeds = labelled.assign(seed=labelled["seed"].astype(str))
    runs = seeds.groupby([*ROW, "seed"], dropna=False, observed=True)["config_hash"].nunique()
    if (runs > 1).any():
        _, _, split, _, method, _ = cast(tuple, runs.idxmax())
        raise BadInput(
            f"rounds: runs of {method} on {split} differ in more than their seed, and rounds do not say in "
            "what; give `bench.report.data.read_data(folder).rounds`, or label them by "
            "`bench.report.names.label_rounds`"
        )
    return labelled


def zero_shot_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Give the accuracy before any training where there is one to compare with.

    Returns:
        One row a task, model, split and shots: ``zero_shot`` (0 to 1), missing where the methods were
        ``scored_apart``, on different test sets, as their zero-shot accuracies tell.
    """
    table = zero_shot_reference(runs).merge(scored_apart(runs), on=CELL)
    return table.assign(zero_shot=table["zero_shot"].mask(table["scored_apart"]))


def memory_column(runs: pd.DataFrame) -> str:
    """Name the column of peak memory: the GPU's where every trained run states it, else the process's."""
    trained = runs[runs["method"] != "zero_shot"]
    asked = trained if len(trained) else runs
    return _GPU if _GPU in runs and asked[_GPU].notna().all() else _PROCESS


def memory_name(column: str) -> str:
    """Give the name of an axis of that memory."""
    return {_GPU: "Peak GPU memory", _PROCESS: "Peak memory of the process"}[column]
