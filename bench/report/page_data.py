"""What the page's script shows: runs and rounds by column, each distinct value of a setting kept once.

Names and settings are written as their distinct values and, for each run, the place of its own among them;
counts that grow evenly as their differences. So 1,000 runs of 50 rounds take some 3 MB. Accuracies of runs
and counts are exact; other numbers are rounded to more digits than are shown (``PRECISION``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from bench.report.data import ReportData
from bench.report.figures.canvas import FEWEST_FOR_INTERVAL
from bench.report.names import shots_label
from bench.report.paper import Paper
from bench.report.statistics import t_factor
from bench.report.styles import Style, styles_of
from bench.report.tables import BEYOND, seeds_of
from bench.report.times import with_times
from bench.store import ROUND_WORK, flattened

PRECISION = (
    "The page carries accuracies of runs, bytes and other counts exactly; other figures of runs to 6 digits, "
    "accuracies of single rounds to 0.01 %, losses to 4 and seconds of rounds to 3 digits. All digits are in "
    "the runs' own files and in the CSV beside each table and figure."
)
# Beyond so many numbers, divisions of the data are shown by the clients' sizes alone.
MOST_COUNTS = 300_000

LIGHT, DARK = "#ffffff", "#16181b"  # the page's backgrounds, as in page.css
_SEEN = 3.0  # contrast that WCAG asks of what is drawn


class Shown(NamedTuple):
    """A figure of a run: its column, heading and unit; costs can be chosen for figures."""

    column: str
    heading: str
    unit: str
    cost: bool = False


SHOWN = (
    Shown("accuracy", "Accuracy", "share"),
    Shown("best_accuracy", "Best round", "share"),
    Shown("zero_shot_accuracy", "Zero-shot", "share"),
    Shown("macro_accuracy", "Mean over classes", "share"),
    Shown("calibration_error", "Calibration error", "share"),
    *(Shown(column, heading, "share") for column, heading in BEYOND.items()),
    Shown("bytes", "Sent, up + down", "bytes", cost=True),
    Shown("bytes_up", "Sent up", "bytes"),
    Shown("bytes_down", "Sent down", "bytes"),
    Shown("payload_bytes", "Payload", "bytes", cost=True),
    Shown("payload_bytes_up", "Payload up", "bytes"),
    Shown("payload_bytes_down", "Payload down", "bytes"),
    Shown("needed_once_bytes", "Needed once", "bytes"),
    Shown("refused_uploads", "Refused uploads", "count"),
    Shown("trainable_parameters", "Trainable parameters", "count", cost=True),
    Shown("train_seconds", "Train", "seconds", cost=True),
    Shown("round_seconds", "Round", "seconds", cost=True),
    Shown("from_nothing_seconds", "Total from nothing", "seconds", cost=True),
    Shown("total_seconds", "Took", "seconds"),
    Shown("setup_seconds", "Set-up", "seconds"),
    Shown("features_once_seconds", "Features, once", "seconds"),
    Shown("features_seconds", "Features, in this run", "seconds"),
    Shown("deployment_seconds", "Clients in parallel", "seconds", cost=True),
    Shown("server_seconds", "Server", "seconds"),
    Shown("client_seconds", "Clients, added up", "seconds"),
    Shown("step_median_seconds", "Step, median", "seconds"),
    Shown("step_p95_seconds", "Step, 95 %", "seconds"),
    Shown("cpu_seconds", "Processor time", "seconds", cost=True),
    Shown("check_seconds", "Checks", "seconds"),
    Shown("peak_memory_bytes", "Peak memory", "bytes", cost=True),
    Shown("peak_gpu_memory_bytes", "Peak GPU memory", "bytes", cost=True),
    Shown("peak_tensor_bytes", "Live tensors", "bytes", cost=True),
    Shown("train_flops", "Training FLOPs", "operations", cost=True),
    Shown("total_flops", "All FLOPs", "operations"),
    Shown("energy_joules", "Energy", "joules", cost=True),
    Shown("clients_together", "Clients at once", "count"),
)


def page_data(data: ReportData, paper: Paper | None = None) -> dict[str, Any]:
    """Put what the page's script needs into plain values that JSON knows.

    Args:
        data: of the report; what its runs did not store is left out.
        paper: how the report is set.

    Returns:
        ``runs`` (by column), ``rounds`` (by column, all runs in one), ``config``, ``environment``,
        ``definition`` and ``invariants`` (by field), ``sittings`` (of each run), ``divisions``, ``methods``
        (how each is drawn, by label), ``shown`` (columns of runs that are measured), ``t_factors`` (of the
        interval, by number of seeds), ``fewest`` (seeds for one to be drawn), ``digits`` and ``reference``
        (of the paper). A field by value is ``{"values": [...], "of": [...]}``: of each run the place of its
        value, -1 for none.
    """
    paper = paper or Paper()
    runs = with_times(data.runs)
    runs = runs.assign(bytes=runs["bytes_up"] + runs["bytes_down"])
    shown = [each for each in SHOWN if each.column in runs and runs[each.column].notna().any()]
    kept = [data.stored.get(key, {}) for key in runs["config_hash"]]
    divisions = _divisions(data.divisions)
    return {
        "runs": _runs(runs, shown, data),
        "rounds": _rounds(data.rounds, runs["config_hash"]),
        "methods": _methods(styles_of(runs)),
        "shown": [each._asdict() for each in shown],
        "t_factors": _t_factors(seeds_of(runs).max()),
        "fewest": FEWEST_FOR_INTERVAL,
        "digits": {"accuracy": paper.written.accuracy, "cost": paper.written.cost},
        "reference": paper.reference,
        "config": _by_field(_config(run) for run in kept),
        "environment": _by_field(flattened(run.get("environment", {})) for run in kept),
        "definition": _by_field(run.get("definition", {}) for run in kept),
        "invariants": _by_field(_held(run) for run in kept),
        "sittings": [run.get("sittings", []) for run in kept],
        "classes": _coded(run.get("data", {}).get("class_names") for run in kept),
        "divisions": divisions,
        "division": _places(_split_of(runs), list(divisions)),
    }


def as_json(values: Any) -> str:
    """Write plain values as JSON that can stand in a page: nothing in it begins or ends a tag."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _runs(runs: pd.DataFrame, shown: Sequence[Shown], data: ReportData) -> dict[str, Any]:
    """Names and settings by value, figures by column."""
    task = "task_label" if "task_label" in runs else "task"
    labels = {"task": task, "split": "split_label", "method": "method_label"}
    named = {name: _labels(runs[column]) for name, column in labels.items()}
    named["model"] = _coded(runs["model"].astype(str))
    few = sorted(runs["shots"].drop_duplicates(), key=lambda s: (not pd.isna(s), 0 if pd.isna(s) else s))
    named["shots"] = _coded(map(shots_label, runs["shots"]), [shots_label(s) for s in few])
    settings = {name: runs[name] for name in ("seed", "acceleration", "broken", "load.busy") if name in runs}
    return {
        **named,
        **{name: _coded(map(_plain, column)) for name, column in settings.items()},
        "kind": _coded(runs["method"]),
        "images": [_plain(shots) for shots in few],
        "hash": list(runs["config_hash"]),
        "file": [data.seen_from_folder(path) for path in runs.get("path", [""] * len(runs))],
        "figures": {each.column: _column(runs[each.column], _digits_of(each)) for each in shown},
    }


def _digits_of(shown: Shown) -> int | None:
    """Digits that are kept: all of accuracies, which are quotients of counts, and of counts."""
    return None if shown.unit in ("share", "bytes", "count", "operations") else 6


def _rounds(rounds: pd.DataFrame, hashes: pd.Series) -> dict[str, Any]:
    """The rounds of all runs one after another, in the runs' order; ``count`` says how many are whose."""
    place = {key: index for index, key in enumerate(hashes)}
    rounds = rounds[rounds["config_hash"].isin(place)]
    rounds = rounds.iloc[rounds["config_hash"].map(place).to_numpy().argsort(kind="stable")]
    counts = rounds["config_hash"].value_counts()
    stepped = ("round", "bytes_up", "bytes_down", "cumulative_bytes")
    return {
        "count": [int(counts.get(key, 0)) for key in hashes],
        **{name: _steps(rounds[name]) for name in stepped if name in rounds},
        "accuracy": _column((rounds["accuracy"] * 1e4).round()),
        **{
            name: _column(rounds[name], kept)
            for name, kept in (("loss", 4), ("cumulative_seconds", 4))
            if name in rounds
        },
        "seconds": _phases(rounds),
    }


def _phases(rounds: pd.DataFrame) -> dict[str, list[float | None]]:
    """Seconds of a round by phase; those of the instruments and of what rests between rounds as one."""
    phases = {str(name).partition(".")[2]: name for name in rounds if str(name).startswith("seconds.")}
    named = [*ROUND_WORK, "evaluate"]
    seconds = {phase: rounds[phases[phase]] for phase in named if phase in phases}
    others = [column for phase, column in phases.items() if phase not in named]
    if others:
        seconds["other"] = rounds[others].sum(axis=1, min_count=1)
    return {name: _column(column, 3) for name, column in seconds.items() if column.gt(0).any()}


def _config(run: Mapping[str, Any]) -> dict[str, Any]:
    """Every field but where the data lay, which is no part of what the run is."""
    return {name: value for name, value in flattened(run.get("config", {})).items() if name != "data.root"}


def _held(run: Mapping[str, Any]) -> dict[str, str]:
    """Of each invariant nothing if it held, else why not."""
    return {
        name: "" if found.get("holds", True) else str(found.get("reason") or "it did not hold")
        for name, found in run.get("invariants", {}).items()
    }


def _divisions(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each division how many images each client holds, and of each class as far as there is room."""
    if frame.empty:
        return {}
    sizes = frame.groupby("fingerprint", sort=False).size().sort_values(kind="stable")
    roomy = set(sizes.index[sizes.cumsum() <= MOST_COUNTS])
    return {str(key): _division(part, key in roomy) for key, part in frame.groupby("fingerprint", sort=False)}


def _division(part: pd.DataFrame, roomy: bool) -> dict[str, Any]:
    sizes = part.groupby("client")["samples"].sum()
    found: dict[str, Any] = {"sizes": [int(size) for size in sizes]}
    if part["class_index"].notna().all() and roomy:
        counts = part.pivot(index="client", columns="class_index", values="samples")
        found["counts"] = counts.to_numpy(dtype=int).tolist()
    return found


def _split_of(runs: pd.DataFrame) -> Iterable[Any]:
    return runs["split.fingerprint"] if "split.fingerprint" in runs else [None] * len(runs)


def _methods(styles: Mapping[str, Style]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: its colour on white and on dark, marker, and dashes in widths of the line."""
    return {
        label: {
            "light": style.colour,
            "dark": _lightened(style.colour),
            "marker": style.marker,
            "dashes": _dashes(style.line),
        }
        for label, style in styles.items()
    }


def _dashes(line: Any) -> list[float]:
    named: dict[str, list[float]] = {"-": [], "--": [3.7, 1.6], ":": [1, 1.65], "-.": [6.4, 1.6, 1, 1.6]}
    return named[line] if isinstance(line, str) else [float(length) for length in line[1]]


def _lightened(colour: str) -> str:
    """The same hue, as much paler as it takes to be seen on the dark page."""
    rgb = to_rgb(colour)
    for share in (step / 20 for step in range(20)):
        paler = tuple(part + (1 - part) * share for part in rgb)
        if contrast(to_hex(paler), DARK) >= _SEEN:
            return to_hex(paler)
    return LIGHT


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _t_factors(most: int) -> list[float | None]:
    """By number of seeds, from none on."""
    return [None, None, *(t_factor(n) for n in range(2, most + 1))]


def _by_field(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Records as one ``_coded`` column a field."""
    records = list(records)
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _coded([record.get(name, _Absent) for record in records]) for name in names}


class _Absent:
    """Stands for a field that a record lacks, as None is a value."""


def _coded(values: Iterable[Any], order: Sequence[Any] = ()) -> dict[str, list[Any]]:
    """Distinct values, those of ``order`` first, and the place of each value among them."""
    places: dict[str, int] = {}
    distinct: list[Any] = []
    of = []
    for value in [*order, *values]:
        key = "" if value is _Absent else json.dumps(value)
        if value is not _Absent and key not in places:
            places[key] = len(distinct)
            distinct.append(value)
        of.append(places.get(key, -1))
    return {"values": distinct, "of": of[len(order) :]}


def _labels(column: pd.Series) -> dict[str, list[Any]]:
    """As ``_coded``, in the report's order."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return _coded(column.astype(str), sorted(set(column.astype(str))))
    used = column.cat.remove_unused_categories()
    return _coded(used.astype(str), [str(label) for label in used.cat.categories])


def _places(values: Iterable[Any], among: Sequence[Any]) -> list[int]:
    place = {value: index for index, value in enumerate(among)}
    return [place.get(value, -1) for value in values]


def _column(values: pd.Series, kept: int | None = None) -> list[float | None]:
    """Numbers, rounded to so many digits; None where one is missing."""
    return [
        _number(value, kept) for value in pd.to_numeric(values).to_numpy(dtype=float, na_value=float("nan"))
    ]


def _number(value: float, kept: int | None) -> float | None:
    if not isfinite(value):
        return None
    number = float(value) if kept is None else float(f"{value:.{kept}g}")
    return int(number) if number.is_integer() else number


def _steps(values: pd.Series) -> list[int]:
    """Whole numbers by how much each exceeds the one before: difference, how often, next difference ..."""
    numbers = [int(value) for value in values.fillna(0)]
    steps = [number - before for number, before in zip(numbers, [0, *numbers], strict=False)]
    return [part for step, same in groupby(steps) for part in (step, len(list(same)))]


def _plain(value: Any) -> Any:
    """A value of a frame as JSON knows it."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
