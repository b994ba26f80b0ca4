"""What finished runs would have taken on networks: each run under each profile, and means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bench.network import PROFILES, Profile, check_stored, replay
from bench.report.names import label_runs
from bench.report.statistics import mean_interval
from bench.report.targets import to_target
from bench.store import load_run, load_table

BY = ["task", "model", "split_label", "shots", "method_label", "profile"]
"""The columns that tell cells of ``network_times`` apart."""

QUANTITIES = ("round_seconds", "total_seconds", "to_target_seconds")
"""Seconds of the median round, of the whole run, and until the target (where there is one)."""


def network_times(
    runs: pd.DataFrame,
    profiles: Sequence[Profile] = tuple(PROFILES.values()),
    target: float | None = None,
    *,
    seed: int = 0,
    clients: int | None = None,
    participants: int | None = None,
    deadline: float | None = None,
    on_left_out: Callable[[str, str], None] | None = None,
) -> pd.DataFrame:
    """Replay runs under networks, nothing trained again; see ``bench.network.replay``.

    Args:
        runs: one row a run, with the ``path`` of its ``run.json``; its tables lie beside it.
        profiles: the networks, each of another name.
        target: accuracy, above 0 and at most 1, to give the time to.
        seed: of stragglers, dropouts and samples of clients.
        clients: of a larger federation of which each run is a sample.
        participants: of these, how many take part in a round; if None, the run's share.
        deadline: seconds after which a round waits for no further client.
        on_left_out: told, for each run that cannot be replayed, the reason and its method's label.

    Returns:
        One row a run and profile: ``BY``, ``method`` and ``config_hash``; ``round_seconds`` (the median) and
        ``total_seconds``; how many clients were chosen (``participants``) and ``dropped``, over all rounds,
        and rounds in which none reported (``silent_rounds``); ``client_times`` and ``acceleration`` of the
        run. With a target also ``target``, ``to_target_seconds``, ``reached`` and, where it was not, the best
        accuracy (``missed``).

    Raises:
        BadInput: a file of a run is damaged or missing, or a number cannot be.
    """
    runs = label_runs(runs)
    scale = {"clients_total": clients, "participants": participants, "deadline": deadline}
    rows = []
    for run in runs.to_dict("records"):
        stored = load_run(run["path"])
        if reason := _cannot(stored):
            if on_left_out is not None:
                on_left_out(reason, str(run["method_label"]))
            continue
        keys = {name: run[name] for name in (*BY[:-1], "method", "config_hash")}
        keys["client_times"] = stored.get("client_times")
        keys["acceleration"] = stored["config"].get("acceleration")
        rows += [{**keys, **found} for found in _under(run["path"], stored, profiles, target, seed, scale)]
    times = pd.DataFrame(rows)
    if rows:
        for name in ("split_label", "method_label"):
            times[name] = times[name].astype(runs[name].dtype)
        order = list(dict.fromkeys(profile.name for profile in profiles))
        times["profile"] = pd.Categorical(times["profile"], order, ordered=True)
        times["shots"] = times["shots"].astype("Int64")
    return times


def mean_times(times: pd.DataFrame) -> pd.DataFrame:
    """Means of ``network_times`` over seeds, with their 95 % t-intervals.

    Args:
        times: of at least one run.

    Returns:
        One row a method, cell and profile: ``BY``; ``runs``, how many; each of ``QUANTITIES`` there is, and
        its ``..._half_width``; the sums of ``participants``, ``dropped`` and ``silent_rounds``. With a
        target also how many runs ``reached`` it, the only ones in the mean of ``to_target_seconds``, and the
        best accuracy of any run that did not (``best_not_reached``).
    """
    groups = times.groupby(BY, dropna=False, observed=True, sort=True)
    counted = {name: (name, "sum") for name in ("participants", "dropped", "silent_rounds")}
    table = groups.agg(runs=("round_seconds", "size"), **counted).reset_index()
    if "target" in times:
        counts = groups.agg(reached=("reached", "sum"), best_not_reached=("missed", "max")).reset_index()
        table = table.merge(counts, on=BY)
    for name in (name for name in QUANTITIES if name in times):
        means = mean_interval(times, BY, name)[[*BY, "mean", "half_width"]]
        renamed = means.rename(columns={"mean": name, "half_width": f"{name}_half_width"})
        table = table.merge(renamed, on=BY, how="left")
    return table.sort_values(BY, ignore_index=True)


def _cannot(stored: dict[str, Any]) -> str:
    """Say why a run cannot be replayed; nothing if it can."""
    if stored["status"] != "complete":
        return "not complete"
    if not any(record["round"] > 0 for record in stored["rounds"]):
        return "nothing trained"
    if stored["config"].get("mode") == "centralized":
        return "no clients in mode centralized"
    if any(not stored.get(name) for name in ("ledger", "clients")):
        return "made before ledger and client times were kept (run again with --fresh)"
    return ""


def _under(
    path: str,
    stored: dict[str, Any],
    profiles: Sequence[Profile],
    target: float | None,
    seed: int,
    scale: dict[str, Any],
) -> list[dict[str, Any]]:
    """Replay one run under each profile."""
    config = stored["config"]
    own = config.get("seed", 0)
    if scale["clients_total"] is not None and scale["participants"] is None:
        share = config.get("participation", 1.0)
        scale = {**scale, "participants": max(1, round(scale["clients_total"] * share))}
    clients, ledger = (load_table(path, name) for name in ("clients", "ledger"))
    check_stored(path, stored["rounds"], clients, ledger)
    drawn = [seed, own["participation"] if isinstance(own, dict) else own]
    frames = {
        profile.name: replay(stored["rounds"], clients, ledger, profile, seed=drawn, **scale)
        for profile in profiles
    }
    found = [{"profile": name, **_totals(frame)} for name, frame in frames.items()]
    if target is None:
        return found
    # to_target tells curves apart by this column
    curves = pd.concat([frame.assign(config_hash=name) for name, frame in frames.items()])
    ends = to_target(curves, target, "cumulative_seconds").set_index("config_hash")
    for row in found:
        one = ends.loc[row["profile"]]
        row |= {"target": target, "to_target_seconds": one["amount"], "reached": one["reached"]}
        row["missed"] = None if one["reached"] else one["best_accuracy"]
    return found


def _totals(frame: pd.DataFrame) -> dict[str, Any]:
    """Add up the rounds of a replay."""
    trained = frame[frame["round"] > 0]
    silent = (trained["participants"] > 0) & (trained["dropped"] == trained["participants"])
    return {
        "round_seconds": trained["seconds"].median(),
        "total_seconds": frame["cumulative_seconds"].iloc[-1],
        "participants": trained["participants"].sum(),
        "dropped": trained["dropped"].sum(),
        "silent_rounds": silent.sum(),
    }
