"""How methods, splits and shots are called in tables and figures, and in which order they stand.

Two runs of one method that differ in an option must not share a name (their mean would be of nothing), and a
name must not carry options that are the same everywhere: so labels are made for a set of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from flora.errors import BadInput

ALL_DATA = "all data"

METHODS = {
    "zero_shot": "Zero-shot",
    "full_finetune": "Full fine-tuning",
    "vision_finetune": "Vision + classifier",
    "linear_probe": "Linear probe",
    "attention_adapter": "Attention adapter",
    "clip_adapter": "CLIP-Adapter",
    "prompt_tuning": "Prompt tuning",
    "layernorm_tuning": "LayerNorm tuning",
    "bitfit": "BitFit",
    "peft:lora": "PEFT LoRA",
    "peft:rslora": "rsLoRA",
    "peft:dora": "DoRA",
    "peft:vera": "VeRA",
    "peft:ia3": "IA³",
    "peft:loha": "LoHa",
    "peft:lokr": "LoKr",
    "peft:hra": "HRA",
    "peft:oft": "OFT",
    "peft:delora": "DeLoRA",
    "peft:hira": "HiRA",
    "peft:randlora": "RandLoRA",
    "flora": "FLoRA",
}
SPLITS = {
    "iid": "IID",
    "dirichlet": "Dirichlet",
    "pathological": "Pathological",
    "quantity": "Quantity",
    "domain": "Domain",
}

# A split cannot be read without these, so they are shown even where only one value occurs.
_SHOWN_ALWAYS = {
    "split.beta": "β = {}",
    "split.alpha": "α = {}",
    "split.classes_per_client": "{} classes",
}
_MEASURED = ("split.fingerprint", "split.label_skew", "split.size_skew")
_SETTINGS = (
    "mode",
    "clients",
    "participation",
    "rounds",
    "local_epochs",
    "local_steps",
    "batch_size",
    "proximal_mu",
    "codec",
    "device",
    "engine",
    "clients_per_batch",
)
_SETTING_SECTIONS = ("optimizer.", "model.", "data.", "evaluation.", "compute.")
_PATHS = ("data.root",)

AS_DEPLOYED = "as deployed"


@dataclass(frozen=True)
class Names:
    """How an author calls things, and in which order they are to stand.

    Attributes:
        tasks, methods, splits: display names, by name; of methods and splits also by the label that would be
            shown otherwise ("FLoRA (rank 8)"), which goes first.
        task_order, method_order, split_order: names, or labels as they would be shown otherwise, from the
            first on; what is not listed follows in the order of the report.
    """

    tasks: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    task_order: Sequence[str] = ()
    method_order: Sequence[str] = ()
    split_order: Sequence[str] = ()


OUR_NAMES = Names()
_CELL = ["task", "model", "split_label", "shots"]


def label_runs(runs: pd.DataFrame, names: Names = OUR_NAMES) -> pd.DataFrame:
    """Add ``method_label``, ``split_label`` and ``task_label``, ordered categories: sorting follows them.

    Options of a method or split that vary within the set are named in its label, as is any other setting
    (learning rate, clients, device) in which runs of one method and cell differ: only seeds share a label.
    Where a set has both, runs with acceleration "none" are called so: as deployed.

    Args:
        runs: one row a run, with ``task``, ``model``, ``method``, ``split``, ``shots`` and dotted options.
        names: an author's own.

    Returns:
        A renumbered copy with the columns, and ``twin_label``, the method's without a word on
        acceleration; the frame itself when it has them already.
    """
    if "method_label" in runs and "split_label" in runs:
        return runs
    runs = runs.reset_index(drop=True)
    if "device" in runs:  # seeds may be spread over the GPUs of one machine
        runs["device"] = runs["device"].str.partition(":")[0]
    if "codec.name" in runs:
        runs["codec"] = _codecs(runs)
    runs["task_label"] = _task_labels(runs, names)
    runs["split_label"] = _labels(
        runs, "split", SPLITS, _shown_of_splits(runs), names.splits, names.split_order
    )
    shown, methods = _shown_of_methods(runs), (names.methods, names.method_order)
    runs["twin_label"] = _labels(runs, "method", METHODS, shown, *methods)
    if "acceleration" in runs and _varies(runs["acceleration"]):
        shown = shown.map(lambda columns: [*columns, "acceleration"])
    runs["method_label"] = _labels(runs, "method", METHODS, shown, *methods)
    return runs


def without_deployed_twins(runs: pd.DataFrame) -> pd.DataFrame:
    """Leave out runs as deployed whose accelerated twin is there too: their accuracies are the same."""
    runs = label_runs(runs)
    if "acceleration" not in runs:
        return runs
    twins = runs.groupby([*_CELL, "twin_label"], dropna=False, observed=True)["acceleration"]
    return runs[(runs["acceleration"] != "none") | (twins.transform("nunique") == 1)]


def label_rounds(rounds: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Give each round the labels and ``zero_shot_accuracy`` of its run; rounds of other runs are left out.

    Args:
        rounds: one row a run and round, with ``config_hash``.
        runs: what ``label_runs`` returned.
    """
    known = ["config_hash", "task_label", "method_label", "split_label", "zero_shot_accuracy"]
    kept = [column for column in known if column in runs]
    return rounds.drop(columns=[c for c in kept[1:] if c in rounds]).merge(runs[kept], on="config_hash")


def shots_label(shots: Any) -> str:
    """Return "all data" for a missing value, else "1 shot", "4 shots"."""
    if pd.isna(shots):
        return ALL_DATA
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def _task_labels(runs: pd.DataFrame, names: Names) -> Any:
    tasks = sorted(set(map(str, runs["task"])), key=lambda task: (_rank(names.task_order, task), task))
    labels = {task: names.tasks.get(task, task) for task in tasks}
    _refuse_twice(labels, "tasks")
    return pd.Categorical(runs["task"].map(labels), categories=list(labels.values()), ordered=True)


def _labels(
    runs: pd.DataFrame,
    column: str,
    known: Mapping[str, str],
    shown: pd.Series,
    own: Mapping[str, str],
    order: Sequence[str],
) -> Any:
    """The display names in ``column`` with, in brackets, the options that ``shown`` lists for each row.

    Rows that agree in these share a label, which ``own`` may replace and ``order`` may put first.
    """
    ranks = {name: index for index, name in enumerate(known)}
    keys, labels, places = [], dict[tuple, str](), dict[tuple, tuple]()
    for columns, row in zip(shown, runs.to_dict("records"), strict=True):
        name = str(row[column])
        present = [c for c in columns if not _missing(row[c])]
        key = (name, *(_option_text(c, row[c]) for c in present))
        keys.append(key)
        if key in labels:
            continue
        options = f" ({text})" if (text := ", ".join(filter(None, key[1:]))) else ""
        standard = known.get(name, name) + options
        labels[key] = own.get(standard, own.get(name, known.get(name, name)) + options)
        first = min(_rank(order, wanted) for wanted in (name, standard, labels[key]))
        places[key] = first, ranks.get(name, len(ranks)), name, [_sort_key(row[c]) for c in present]
    _refuse_twice(labels, f"{column}s")
    categories = dict.fromkeys(labels[key] for key in sorted(labels, key=places.__getitem__))
    return pd.Categorical([labels[key] for key in keys], categories=list(categories), ordered=True)


def _rank(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _refuse_twice(labels: Mapping[Any, str], what: str) -> None:
    """Two that share a name would be averaged; only what is told apart by nothing may share one."""
    owner: dict[str, Any] = {}
    for key, label in labels.items():
        if label in owner:
            one, other = (" ".join(k) if isinstance(k, tuple) else k for k in (owner[label], key))
            raise BadInput(f"names.{what}: {one!r} and {other!r} are both called {label!r}; name them apart")
        owner[label] = key


def _shown_of_splits(runs: pd.DataFrame) -> pd.Series:
    options = [c for c in runs.columns if c.startswith("split.") and c not in _MEASURED]
    shown: pd.Series = pd.Series([[]] * len(runs), index=runs.index, dtype=object)
    for _, group in runs.groupby("split"):
        columns = [c for c in options if c in _SHOWN_ALWAYS or _varies(group[c])]
        shown[group.index] = [columns] * len(group)
    return shown


def _codecs(runs: pd.DataFrame) -> pd.Series:
    """The name of each run's codec, with those of its options in which runs with this codec differ."""
    names = runs["codec.name"].fillna("fp32")  # results from before there was a choice
    words = names.copy()
    options = [c for c in runs.columns if c.startswith("codec.") and c != "codec.name"]
    for _, group in runs.groupby(names):
        for column in (c for c in options if _varies(group[c])):
            words[group.index] += ", " + group[column].map(partial(_option_text, column))
    return words


def _shown_of_methods(runs: pd.DataFrame) -> pd.Series:
    options = [c for c in runs.columns if c.startswith("method.")]
    settings = [
        c for c in runs.columns if c in _SETTINGS or (c.startswith(_SETTING_SECTIONS) and c not in _PATHS)
    ]
    shown: pd.Series = pd.Series([[]] * len(runs), index=runs.index, dtype=object)
    for _, group in runs.groupby("method"):
        # A split may need settings of its own (a client for each domain): they must differ within a cell.
        columns = [c for c in options if _varies(group[c])]
        # What never varies need not be looked for in every cell: of many, that takes seconds.
        columns += [c for c in settings if _varies(group[c]) and _varies_in_a_cell(group, c)]
        shown[group.index] = [columns] * len(group)
    return shown


def _varies_in_a_cell(runs: pd.DataFrame, column: str) -> bool:
    cells = runs.groupby(_CELL, dropna=False, observed=True)
    return any(_varies(cell[column]) for _, cell in cells)


def _varies(values: pd.Series) -> bool:
    return values.map(option_value).nunique() > 1


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def option_value(value: Any) -> str:
    """Write an option's value; nothing for one that is missing."""
    if _missing(value):
        return ""
    if isinstance(value, float):
        short = f"{value:g}"
        # What differs must not be written alike, or its runs would be averaged.
        return short if float(short) == value else repr(value)
    return " + ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _option_text(column: str, value: Any) -> str:
    if column in _SHOWN_ALWAYS:
        return _SHOWN_ALWAYS[column].format(option_value(value))
    if column == "acceleration":
        return AS_DEPLOYED if value == "none" else ""
    section, _, leaf = column.rpartition(".")
    if leaf == "mode":
        return str(value).replace("_", " ")
    return f"{section if leaf == 'name' else leaf} {option_value(value)}".replace("_", " ")


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by size and before words, so that rank 8 stands before rank 16."""
    number = isinstance(value, (int, float, np.number))
    return (0, float(value), "") if number else (1, 0.0, option_value(value))
