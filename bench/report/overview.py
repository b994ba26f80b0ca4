"""What the page says in words: what was run, how to read it, and the list of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from bench.report.data import Failure, ReportData
from bench.report.leads import printed
from bench.report.mixture import mixture
from bench.report.names import AS_DEPLOYED, label_runs, option_value, shots_label
from bench.report.statistics import t_factor
from bench.report.tables import BELOW, Cell, Table, seeds_of
from bench.report.text import ABSENT, counted, digits
from bench.report.times import DEPLOYED_MEANS
from bench.report.trust import busy_note, checks_note

_MACHINE = {
    "environment.cpu": "processor {}",
    "environment.gpu": "GPU {}",
    "environment.packages.torch": "torch {}",
    "environment.python": "Python {}",
    "environment.git_commit": "commit {:.12}",
}


FAILURES_NAMED = 3

_FEATURES_NOTE = (
    "Accelerated runs compute the features of a frozen tower once: that time stands apart, under “features, "
    "once”, and is not in train or round. Total from nothing counts it in full even where a run found its "
    "features in the cache, so that no method gains by the order of runs; what each run took is listed last. "
    "The ratio of training times alone favours methods with features; that of the totals does not."
)
_DEPLOYED_NOTE = (
    f"Runs {AS_DEPLOYED} (acceleration “none”) do all that a client without storage would: "
    f"{DEPLOYED_MEANS}. The work of frozen towers is then within train and round."
)


def overview(data: ReportData, selection: str = "") -> str:
    """Say in one paragraph what was run, how often and on what, and what is left out.

    ``selection`` is what the runs were chosen by, in words.
    """
    runs = data.runs
    shots = [shots_label(s) for s in sorted(runs["shots"].drop_duplicates(), key=_few_last)]
    n_methods, n_splits = runs["twin_label"].nunique(), runs["split_label"].nunique()
    sentences = [
        f"{counted(len(runs), 'complete run')} of {counted(n_methods, 'method')} on "
        f"{counted(runs['task'].nunique(), 'task')} ({_labels(runs['task_label'])}) with "
        f"{counted(runs['model'].nunique(), 'model')} ({_join(runs['model'])}), over "
        f"{counted(n_splits, 'split')} ({_labels(runs['split_label'])}) with {_and(shots)}, "
        f"{'seed' if runs['seed'].nunique() == 1 else 'seeds'} {_join(runs['seed'])}.",
        f"Clients: {_join(runs['clients'])}; rounds: {_join(runs['rounds'])}; "
        f"batch size: {_join(runs['batch_size'])}.",
        f"Only runs with {selection}." if selection else "",
        machine_text(runs),
        _left_out(data.left_out),
        _failed(data.failures),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def notes(runs: pd.DataFrame) -> list[str]:
    """Say what the numbers mean and where they could mislead, as far as these runs are concerned."""
    n = seeds_of(runs)
    return [
        _interval_note(sorted(set(n))),
        "Every accuracy is that of the global model on the task's test set after the last round, unless a "
        f"column says best round.{_exceptions(runs)} Zero-shot is the same model before any training; a "
        "trained method below it lost by training.",
        *_seconds_notes(runs),
        "Peak memory is that of the whole process on one machine, interpreter and libraries included; peak "
        "GPU memory, where given, is what was allocated on the device.",
        "Bytes are lengths of the payloads that were really serialised, summed over rounds and clients; "
        "1 kB is 1,000 bytes.",
        *_machine_notes(runs),
        *filter(None, (_settings_note(runs), _refusal_note(runs), busy_note(runs), checks_note(runs))),
    ]


def _exceptions(runs: pd.DataFrame) -> str:
    """Say whose accuracy is another than that of one global model on the test set."""
    texts = {
        ("mode", "local_only"): " Of runs without communication it is the mean over the clients' own models.",
        ("evaluation.set", "validation"): " Of some runs it is that on held-out training data instead.",
    }
    return "".join(text for (column, value), text in texts.items() if value in set(runs.get(column, ())))


def run_table(data: ReportData) -> Table:
    """List every run, complete or not, with its hash and file."""
    results = data.runs.drop(columns=[name for name in data.runs if str(name).endswith("_label")])
    if len(data.left_out):
        results = pd.concat([results, data.left_out], ignore_index=True)
    # Within a method and split the store's order stays: shots, then seeds.
    runs = label_runs(results, data.names)
    runs = runs.sort_values(["task_label", "model", "method_label", "split_label"], kind="stable")
    columns: dict[str, list[str]] = {}
    for name in ("task", "model"):
        if runs[name].nunique() > 1:
            columns[name.capitalize()] = [str(value) for value in runs[name]]
    columns |= {
        "Split": [str(label) for label in runs["split_label"]],
        "Shots": [shots_label(shots) for shots in runs["shots"]],
        "Seed": [str(seed) for seed in runs["seed"]],
        "Status": [str(status) for status in runs["status"]],
        "Accuracy (%)": [ABSENT if pd.isna(a) else f"{100 * a:.1f}" for a in runs["accuracy"]],
        "Took (s)": _took(runs),
        "Hash": [str(key) for key in runs["config_hash"]],
        "File": [data.seen_from_folder(path) for path in runs["path"]],
    }
    lower = _below_zero_shot(runs)
    entries = [
        [
            Cell(text, below=below and name == "Accuracy (%)")
            for name, text in zip(columns, texts, strict=True)
        ]
        for *texts, below in zip(*columns.values(), lower, strict=True)
    ]
    return Table(
        name="runs",
        caption="All runs, with the hash of their configuration and their file."
        + (f" {BELOW}: below zero-shot." if any(lower) else ""),
        groups=[],
        columns=["Method", *columns],
        rows=list(zip(runs["method_label"].astype(str), entries, strict=True)),
        data=results.assign(path=[data.seen_from_folder(path) for path in results["path"]]),
    )


def _took(runs: pd.DataFrame) -> list[str]:
    """What each run took, with a word where others used the machine meanwhile."""
    busy = runs["load.busy"].eq(True) if "load.busy" in runs else [False] * len(runs)
    return [
        (ABSENT if pd.isna(seconds) else digits(seconds)) + (", busy" if shared else "")
        for seconds, shared in zip(runs["total_seconds"], busy, strict=True)
    ]


def _below_zero_shot(runs: pd.DataFrame) -> list[bool]:
    """Whether each run ended, as printed, below what its model was before training."""
    if "zero_shot_accuracy" not in runs:
        return [False] * len(runs)
    shares = zip(runs["accuracy"], runs["zero_shot_accuracy"], strict=True)
    return [printed(last, 1) < printed(before, 1) for last, before in shares]


def _interval_note(counts: list[int]) -> str:
    if counts == [1]:
        return "Every entry is one run: nothing here says how far another seed would differ."
    factors = ", ".join(f"n = {n}: {t_factor(n):.2f}" for n in counts if n > 1)
    return (
        "± and bands are 95 % confidence intervals of the mean over seeds by Student's t "
        f"(factors of the standard error: {factors}); entries of one run have none."
    )


def _seconds_notes(runs: pd.DataFrame) -> list[str]:
    modes = set(runs["acceleration"].dropna()) if "acceleration" in runs else set()
    return [
        f"Train is the time of local training, over all clients and rounds, {_trained(runs)} on one machine; "
        "round is the mean time of a round from sending to evaluation; set-up is what comes before the first "
        "round (loading, zero-shot evaluation, features or decoded images); total is the whole run.",
        *([_FEATURES_NOTE + _cache_text(runs)] if "exact" in modes else []),
        *([_DEPLOYED_NOTE] if "none" in modes else []),
    ]


def _trained(runs: pd.DataFrame) -> str:
    """Say how many clients were trained together."""
    most = runs["clients_together"].max() if "clients_together" in runs else 1
    return f"up to {most:.0f} clients together" if most > 1 else "one client after another"


def _cache_text(runs: pd.DataFrame) -> str:
    """Say how many runs found features in the cache."""
    if "features.from_cache" not in runs or not (found := int((runs["features.from_cache"] > 0).sum())):
        return ""
    return f" {counted(found, 'run')} of {len(runs)} read features from the cache of an earlier run."


def _settings_note(runs: pd.DataFrame) -> str:
    """Say what each method was run with, as methods need not share an optimiser."""
    columns = [c for c in runs.columns if c.startswith(("method.", "optimizer."))]
    texts = []
    for name, group in runs.groupby("twin_label", observed=True):
        if (group["method"] == "zero_shot").all():
            continue
        values = {c: [v for v in group[c].map(option_value).unique() if v] for c in columns}
        told = [f"{c.rpartition('.')[2].replace('_', ' ')} {' or '.join(v)}" for c, v in values.items() if v]
        texts.append(f"{name}: {', '.join(told)}")
    return f"Settings. {'; '.join(texts)}." if texts else ""


def _refusal_note(runs: pd.DataFrame) -> str:
    """Say where uploads were left out: such a run may look whole and not be."""
    if "refused_uploads" not in runs or not (affected := runs[runs["refused_uploads"] > 0]).size:
        return ""
    methods = _labels(affected["method_label"])
    return (
        f"In {counted(len(affected), 'run')} ({methods}) the server refused uploads, "
        "mostly for values that are not finite: those accuracies are of a training that diverged."
    )


def _machine_notes(runs: pd.DataFrame) -> list[str]:
    texts = mixture(runs)
    known = runs["environment.git_commit"].notna() if "environment.git_commit" in runs else False
    if "environment.git_dirty" in runs and (known & runs["environment.git_dirty"].eq(True)).any():
        texts.append("Some runs were made from sources that differ from the commit named.")
    return texts


def machine_text(runs: pd.DataFrame) -> str:
    """Say in a sentence what the runs were measured on and with."""
    known = [(text, runs[c].dropna().unique()) for c, text in _MACHINE.items() if c in runs]
    parts = [f"device {_join(runs['device'])}"] if "device" in runs else []
    parts += [_and([text.format(str(value)) for value in values]) for text, values in known if len(values)]
    return f"Measured on {', '.join(parts)}."


def _left_out(runs: pd.DataFrame) -> str:
    if runs.empty:
        return ""
    verb = "is" if len(runs) == 1 else "are"
    return f"{counted(len(runs), 'run')} ({_join(runs['status'])}) {verb} left out."


def _failed(failures: Sequence[Failure]) -> str:
    """Name the cells without a result, and why; of many, the first few."""
    if not failures:
        return ""
    named = "; ".join(f"{failure.folder}: {failure.reason}" for failure in failures[:FAILURES_NAMED])
    rest = f"; and {len(failures) - FAILURES_NAMED} more" if len(failures) > FAILURES_NAMED else ""
    verb = "has" if len(failures) == 1 else "have"
    return f"{counted(len(failures), 'cell')} failed and {verb} no result ({named}{rest})."


def _few_last(shots: Any) -> tuple[bool, int]:
    return not pd.isna(shots), 0 if pd.isna(shots) else int(shots)


def _join(values: pd.Series) -> str:
    """The distinct values in words: numbers before words (four seeds joined by hyphens are a word)."""
    known = sorted(values.dropna().drop_duplicates(), key=lambda value: (isinstance(value, str), value))
    return _and([str(value) for value in known])


def _labels(values: pd.Series) -> str:
    return _and([str(label) for label in values.cat.remove_unused_categories().cat.categories])


def _and(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
