"""What a report is made of: stored results, each read once, as data frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench import store
from bench.execute import FAILURE, read_failure
from bench.report.names import OUR_NAMES, Names, label_rounds, label_runs
from bench.report.patience import patiently
from bench.report.text import counted
from bench.standing import reason_in
from flora.errors import BadInput

_LABELS = ["task", "task_label", "model", "method", "split_label", "method_label", "shots", "seed"]


@dataclass(frozen=True)
class Failure:
    """A cell that has no result because it failed: its folder below that of the results, and why."""

    folder: str
    reason: str


@dataclass(frozen=True)
class ReportData:
    """The runs of a report and what they stored.

    Attributes:
        runs: the complete ones, a row each, as ``load_results`` gives them and ``label_runs`` labels them.
        rounds: of these, a row a round, as ``load_rounds`` gives them, labelled.
        left_out: runs that are not complete, as in ``runs``.
        divisions: a row a division of the data, client and class: ``fingerprint, task, client, class_index,
            class_name, samples``, and ``split_label, shots, seed`` of the first run that has it. Results of
            before classes were counted have one row a client, without a class.
        clients: a row a run and client that was evaluated apart: its run's labels, ``config_hash, client,
            samples, accuracy`` (0 to 1, after the last round).
        stored: by hash of the configuration, what else ``run.json`` says; without its rounds.
        failures: cells that failed and have no result; none where the runs are a selection.
        folder: of the results; None for runs that come from elsewhere.
        names: an author's own.
    """

    runs: pd.DataFrame
    rounds: pd.DataFrame
    left_out: pd.DataFrame
    divisions: pd.DataFrame = field(default_factory=lambda: _divisions({}, pd.DataFrame()))
    clients: pd.DataFrame = field(default_factory=pd.DataFrame)
    stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    folder: Path | None = None
    names: Names = OUR_NAMES

    def seen_from_folder(self, path: Any) -> str:
        """A file as seen from the results, so that a report does not tell where they lie."""
        file = Path(str(path))
        if self.folder is not None and file.is_relative_to(self.folder):
            file = file.relative_to(self.folder)
        return file.as_posix()


def read_data(
    results: Path,
    choose: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs,
    names: Names = OUR_NAMES,
    on_damage: Callable[[BadInput], None] | None = None,
) -> ReportData:
    """Read what a report of a folder needs.

    Args:
        results: as ``bench.store`` lays it out.
        choose: gives the runs to report, of all there are.
        names: an author's own.
        on_damage: told of each ``run.json`` that cannot be used, which is left out; if None, the first is
            raised.

    Raises:
        BadInput: there is no complete run, or a stored one is damaged.
    """
    paths = sorted(store.run_files(results))
    rows, rounds, stored = [], list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for path, run in store.read_runs(patiently(paths, "reading results", len(paths)), on_damage):
        rows.append(store.row_of(path, run))
        rounds += store.round_rows(run)
        last = run["rounds"][-1] if run["rounds"] else {}
        stored[run["config_hash"]] = {
            **{name: part for name, part in run.items() if name != "rounds"},
            "last_round": last,
        }
    failures = _failures(results)
    if not rows:
        raise _nothing(results, failures)
    every = store.results_frame(rows)
    chosen = choose(every)
    # of a selection nobody knows whether cells without a result would belong to it
    failures = failures if len(chosen) == len(every) else []
    return assemble(chosen, store.rounds_frame(rounds), names, stored, failures, results)


def assemble(
    results: pd.DataFrame,
    rounds: pd.DataFrame,
    names: Names = OUR_NAMES,
    stored: Mapping[str, Mapping[str, Any]] | None = None,
    failures: Sequence[Failure] = (),
    folder: Path | None = None,
) -> ReportData:
    """Put together a report's data of frames that are loaded already; arguments as in ``ReportData``.

    Raises:
        BadInput: no run is complete.
    """
    complete = results["status"] == "complete"
    if not complete.any():
        raise BadInput(
            f"results: none of {len(results)} runs is complete; run them again with `flora-bench run`"
        )
    runs = label_runs(results[complete], names)
    kept = {key: value for key, value in (stored or {}).items() if key in set(results["config_hash"])}
    return ReportData(
        runs=runs,
        rounds=label_rounds(rounds, runs),
        left_out=results[~complete],
        divisions=_divisions(kept, runs),
        clients=_clients(kept, runs),
        stored=kept,
        failures=failures,
        folder=folder,
        names=names,
    )


def _divisions(stored: Mapping[str, Mapping[str, Any]], runs: pd.DataFrame) -> pd.DataFrame:
    """One division a fingerprint, whichever runs share it."""
    columns = ["fingerprint", "task", "split_label", "shots", "seed"]
    columns += ["client", "class_index", "class_name", "samples"]
    rows: list[dict[str, Any]] = []
    seen = set()
    for run in runs.to_dict("records"):
        split = stored.get(run["config_hash"], {}).get("split", {})
        if not split or split["fingerprint"] in seen:
            continue
        seen.add(split["fingerprint"])
        shared = {"fingerprint": split["fingerprint"]} | {name: run[name] for name in columns[1:5]}
        names = stored[run["config_hash"]].get("data", {}).get("class_names", [])
        rows += [shared | row for row in _held(split, names)]
    frame = pd.DataFrame(rows, columns=columns)
    if len(frame):
        frame["split_label"] = frame["split_label"].astype(runs["split_label"].dtype)
    return frame.astype({"shots": "Int64", "class_index": "Int64"})


def _held(split: Mapping[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each client holds: of each class, or where that was not kept, in all."""
    counts = split.get("class_counts")
    if counts is None:
        for client, size in enumerate(split.get("client_sizes", ())):
            yield {"client": client, "class_index": None, "class_name": None, "samples": size}
        return
    for client, row in enumerate(counts):
        for index, samples in enumerate(row):
            yield {"client": client, "class_index": index, "class_name": names[index], "samples": samples}


def _clients(stored: Mapping[str, Mapping[str, Any]], runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for run in runs.to_dict("records"):
        kept = stored.get(run["config_hash"], {})
        accuracies = kept.get("last_round", {}).get("client_accuracies") or []
        sizes = kept.get("split", {}).get("client_sizes", [])
        shared = {name: run[name] for name in [*_LABELS, "config_hash"]}
        rows += [
            {**shared, "client": client, "samples": sizes[client], "accuracy": accuracy}
            for client, accuracy in enumerate(accuracies)
        ]
    frame = pd.DataFrame(rows, columns=[*_LABELS, "config_hash", "client", "samples", "accuracy"])
    labels = {name: runs[name].dtype for name in _LABELS if name.endswith("_label")} if rows else {}
    return frame.astype({"shots": "Int64", "accuracy": float, **labels})


def _failures(results: Path) -> list[Failure]:
    """Cells with a note of their failure and no result."""
    notes = sorted(results.glob(f"*/*/*/{FAILURE}"))
    return [
        Failure(note.parent.relative_to(results).as_posix(), reason_in(read_failure(note.parent) or {}))
        for note in notes
        if not (note.parent / store.RUN).exists()
    ]


def _nothing(results: Path, failures: Sequence[Failure]) -> BadInput:
    if not failures:
        return store.nothing_in(results)
    return BadInput(
        f"results: {str(results)!r} holds no result, only {counted(len(failures), 'cell')} that failed "
        f"({failures[0].folder}: {failures[0].reason})"
    )
