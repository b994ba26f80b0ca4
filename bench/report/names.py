"""How methods, splits and shots are called in tables and figures, and in which order they stand.

Two runs of one method that differ in an option must not share a name (their mean would be of nothing), and a
name must not carry options that are the same everywhere: so labels are made for a set of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

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
_CELL = ["task", "model", "split_label", "shots"]


def label_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Add ``method_label`` and ``split_label``, ordered categories: sorting follows the report's order.

    Options of a method or split that vary within the set are named in its label, as is any other setting
    (learning rate, clients, device) in which runs of one method and cell differ: only seeds share a label.
    Where a set has both, runs with acceleration "none" are called so: as deployed.

    Args:
        runs: one row a run, with ``task``, ``model``, ``method``, ``split``, ``shots`` and dotted options.

    Returns:
        A renumbered copy with the two columns, and ``twin_label``, the method's without a word on
        acceleration; the frame itself when it has them already.
    """
    if "method_label" in runs and "split_label" in runs:
        return runs
    runs = runs.reset_index(drop=True)
    if "device" in runs:  # seeds may be spread over the GPUs of one machine
        runs["device"] = runs["device"].str.partition(":")[0]
    if "codec.name" in runs:
        runs["codec"] = _codecs(runs)
    runs["split_label"] = _labels(runs, "split", SPLITS, _shown_of_splits(runs))
    shown = _shown_of_methods(runs)
    runs["twin_label"] = _labels(runs, "method", METHODS, shown)
    if "acceleration" in runs and _varies(runs["acceleration"]):
        shown = shown.map(lambda columns: [*columns, "acceleration"])
    runs["method_label"] = _labels(runs, "method", METHODS, shown)
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
    known = ["config_hash", "method_label", "split_label", "zero_shot_accuracy"]
    kept = [column for column in known if column in runs]
    return rounds.drop(columns=[c for c in kept[1:] if c in rounds]).merge(runs[kept], on="config_hash")


def shots_label(shots: Any) -> str:
    """Return "all data" for a missing value, else "1 shot", "4 shots"."""
    if pd.isna(shots):
        return ALL_DATA
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def _labels(runs: pd.DataFrame, column: str, names: Mapping[str, str], shown: pd.Series) -> Any:
    """The display names in ``column`` with, in brackets, the options that ``shown`` lists for each row."""
    known = list(names)
    order: dict[str, tuple] = {}
    labels = []
    for (_, row), columns in zip(runs.iterrows(), shown, strict=True):
        name = str(row[column])
        present = [c for c in columns if not _missing(row[c])]
        options = ", ".join(filter(None, (_option_text(c, row[c]) for c in present)))
        labels.append(f"{names.get(name, name)} ({options})" if options else names.get(name, name))
        rank = known.index(name) if name in known else len(known)
        order[labels[-1]] = (rank, name, [_sort_key(row[c]) for c in present])
    return pd.Categorical(labels, categories=sorted(order, key=order.__getitem__), ordered=True)


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
        columns += [c for c in settings if _varies_in_a_cell(group, c)]
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
        return f"{value:g}"
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
