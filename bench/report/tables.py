"""The accuracy and cost tables: as data frames of numbers, and as text to be set in Markdown or HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from bench.report.names import METHODS, label_runs, shots_label
from bench.report.statistics import mean_interval, ratio_to
from bench.report.text import (
    ABSENT,
    bytes_text,
    digits,
    escape_markdown,
    keep_brackets_whole,
    n_text,
    operations_text,
    slug,
)
from bench.report.times import DEPLOYED_MEANS, which_time, with_times

BELOW = "▼"
BROKEN = "‡"
# Zero-shot accuracies of one model further apart than this were measured on different images.
SAME_TEST_SET = 1e-9
CELL = ["task", "model", "split_label", "shots"]
ROW = [*CELL, "method_label"]


@dataclass(frozen=True)
class Quantity:
    """A measured cost: its column, its heading, how a value is written, and whether it has a ratio.

    One that is ``further`` stands in a table of its own: all of them in one would be too wide.
    """

    column: str
    heading: str
    text: Callable[[float], str]
    compared: bool = True
    further: bool = False


# In what a method as deployed is set beside itself accelerated.
DEPLOYED = (
    Quantity("round_seconds", "Round (s)", digits),
    Quantity("from_nothing_seconds", "Total from nothing (s)", digits),
    Quantity("accuracy", "Accuracy (%)", lambda value: f"{100 * value:.1f}", compared=False),
)

# What a run may be evaluated on besides its test images, by summary column.
BEYOND = {
    "client_mean_accuracy": "Clients, mean",
    "client_worst_accuracy": "Worst client",
    "client_accuracy_spread": "Spread",
    "zero_shot_new_accuracy": "New classes, before",
    "new_accuracy": "New classes, after",
    "harmonic_mean_accuracy": "Harmonic mean",
    "zero_shot_retention_accuracy": "Other task, before",
    "retention_accuracy": "Other task, after",
}


# What a run states of the model as it came, by the accuracy that is compared with it.
BEFORE = {
    "accuracy": "zero_shot_accuracy",
    "best_accuracy": "zero_shot_accuracy",
    "new_accuracy": "zero_shot_new_accuracy",
    "retention_accuracy": "zero_shot_retention_accuracy",
}


@dataclass(frozen=True)
class Cell:
    """One entry of a table: its text, a second text in brackets, and its marks."""

    text: str
    note: str = ""
    best: bool = False
    below: bool = False
    broken: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be set.

    Attributes:
        name: stem of its files.
        caption: what is in it, with its units and n.
        groups: headings that span columns, with the number of columns each spans; may be empty.
        columns: a heading a column, that of the row names first.
        rows: row name and cells.
        data: the numbers behind it, one row an entry.
    """

    name: str
    caption: str
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    data: pd.DataFrame

    def to_markdown(self, label: str = "") -> str:
        """Return the table as a Markdown pipe table under its caption, which ``label`` ("Table 1") opens."""
        template = environment().get_template("table.md.j2")
        return template.render(table=self, label=label, headings=self.headings)

    def to_html(self, label: str = "") -> str:
        """Return the table as an HTML ``figure``; every text in it is escaped."""
        return environment().get_template("table.html.j2").render(table=self, label=label)

    @property
    def headings(self) -> list[str]:
        """One heading a column where there is one line for them: its own, followed by that of its group."""
        spans = [text for text, span in self.groups for _ in range(span)] or [""] * len(self.columns[1:])
        own = [
            f"{text}, {span}" if span else text for text, span in zip(self.columns[1:], spans, strict=True)
        ]
        return [self.columns[0], *own]


def environment() -> jinja2.Environment:
    """The templates beside this module: HTML escapes everything by itself, Markdown through ``md``."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"md": escape_markdown, "whole": keep_brackets_whole}
    return made


def zero_shot_reference(runs: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Mean zero-shot accuracy (0 to 1) of each task, model, split and shots, or by other columns.

    Each run states what its own test set gave before training; a zero-shot run is its own reference.
    """
    runs = label_runs(runs)
    own = runs["accuracy"].where(runs["method"] == "zero_shot")
    stated = runs.get("zero_shot_accuracy", own)
    table = mean_interval(runs.assign(zero_shot=stated.fillna(own)), by, "zero_shot")
    return table.rename(columns={"mean": "zero_shot"})[[*by, "zero_shot"]]


def accuracy_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after the last round: mean over seeds, interval and marks.

    Args:
        runs: one row a complete run.

    Returns:
        One row a task, model, split, shots and method: ``n``, ``mean``, ``std``, ``half_width`` (0 to 1),
        ``zero_shot`` (of the same test sets), ``best`` (highest of the trained methods of its cell, as far
        as the printed digit tells them apart) and ``below_zero_shot`` (likewise). Where the methods of a
        cell were scored on different test sets, as their zero-shot accuracies tell, none is best.
    """
    runs = label_runs(runs)
    table = mean_interval(runs, [*ROW, "method"], "accuracy")
    table = table.merge(zero_shot_reference(runs, ROW), on=ROW, how="left")
    trained = table["method"] != "zero_shot"
    shown = (table["mean"] * 100).round(1).where(trained)
    cells = shown.groupby([table[c] for c in CELL], dropna=False, observed=True)
    # The best of one is no finding.
    table["best"] = trained & (shown == cells.transform("max")) & (cells.transform("count") > 1)
    table["best"] &= ~_scored_apart(table)
    table = table.merge(_broken(runs), on=ROW, how="left")
    table["below_zero_shot"] = trained & (shown < (table["zero_shot"] * 100).round(1))
    return table


def _broken(runs: pd.DataFrame) -> pd.DataFrame:
    """Say of each row whether an invariant did not hold in one of its runs."""
    own = runs["broken"].fillna("") != "" if "broken" in runs else pd.Series(False, index=runs.index)
    return runs.assign(broken=own).groupby(ROW, dropna=False, observed=True)["broken"].any().reset_index()


def below_zero_shot(runs: pd.DataFrame, column: str) -> dict[str, bool]:
    """Say of each method whether an accuracy of it is, as printed, lower than that of the model as it came.

    Args:
        runs: of one task, model, split and shots.
        column: an accuracy: one of ``BEFORE``, whose runs state it of the model too; or another, which is
            then compared with that of the zero-shot runs.

    Returns:
        By label; false for zero-shot itself, and where nothing is known of it.
    """
    runs = label_runs(runs)
    if not column.endswith("accuracy"):
        return {}
    of_zero_shot = runs.loc[runs["method"] == "zero_shot", column].mean()
    found = {}
    for name, mine in runs.groupby("method_label", observed=True):
        stated = mine[BEFORE[column]].mean() if BEFORE.get(column) in mine else float("nan")
        before = of_zero_shot if pd.isna(stated) else stated
        lower = round(100 * mine[column].mean(), 1) < round(100 * before, 1)
        found[str(name)] = bool(lower and (mine["method"] != "zero_shot").all())
    return found


def accuracy_table(runs: pd.DataFrame) -> Table:
    """Method by split, shots as column groups, in percent; for the runs of one task and model.

    The best trained method of a column is marked, and so is every one that lost accuracy against zero-shot.
    Without a zero-shot run, its row is filled from what the other runs measured before training.
    """
    runs = label_runs(runs)
    table = accuracy_frame(runs)
    one_reference = table.assign(zero_shot=table["zero_shot"].where(~_scored_apart(table)))
    cells = one_reference[["shots", "split_label", "zero_shot"]].drop_duplicates(["shots", "split_label"])
    cells = cells.sort_values(["shots", "split_label"], na_position="first")
    levels = [
        (shots_label(s), str(split)) for s, split in zip(cells["shots"], cells["split_label"], strict=True)
    ]
    entries = {
        (row.method_label, shots_label(row.shots), str(row.split_label)): _accuracy_cell(row)
        for row in table.itertuples()
    }
    methods = list(table["method_label"].cat.remove_unused_categories().cat.categories)
    if "zero_shot" not in set(table["method"]) and cells["zero_shot"].notna().any():
        methods.insert(0, METHODS["zero_shot"])
        for level, value in zip(levels, cells["zero_shot"], strict=True):
            entries[METHODS["zero_shot"], *level] = Cell(ABSENT if pd.isna(value) else f"{100 * value:.1f}")
    shots = list(dict.fromkeys(level[0] for level in levels))
    return Table(
        name=f"accuracy-{slug_of(runs)}",
        caption=_accuracy_caption(table),
        groups=[(name, sum(level[0] == name for level in levels)) for name in shots],
        columns=["Method", *(split for _, split in levels)],
        rows=[(name, [entries.get((name, *level), Cell(ABSENT)) for level in levels]) for name in methods],
        data=table,
    )


def _scored_apart(table: pd.DataFrame) -> pd.Series:
    """Whether the methods of each row's cell have different zero-shot accuracies, so different test sets."""
    references = table.groupby([table[c] for c in CELL], dropna=False, observed=True)["zero_shot"]
    return (references.transform("max") - references.transform("min")) > SAME_TEST_SET


def cost_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """What each method costs: means over seeds, intervals, and how many times less than full fine-tuning.

    Returns:
        One row a task, model, split, shots and method: ``n`` and, for each measured quantity q (bytes,
        seconds, parameters; for ``from_nothing_seconds`` and the like see ``times.with_times``), ``q``,
        ``q_half_width`` and ``q_times_less`` (full fine-tuning / this method, both accelerated or both not).
    """
    runs = _with_derived(runs)
    compared = [*CELL, *(["acceleration"] if "acceleration" in runs else [])]
    by = [*compared, "method_label", "method"]
    table = runs.groupby(by, dropna=False, observed=True).size().rename("n").reset_index()
    table = table.sort_values(ROW, kind="stable", ignore_index=True)
    full = table["method"] == "full_finetune"
    reference = full & ~table[full].duplicated(compared).reindex(table.index, fill_value=False)
    for quantity in _quantities(runs):
        name = quantity.column
        means = mean_interval(runs, by, name).rename(
            columns={"mean": name, "half_width": f"{name}_half_width"}
        )
        table = table.merge(means[[*by, name, f"{name}_half_width"]], on=by, how="left")
        if quantity.compared:
            table[f"{name}_times_less"] = ratio_to(table, compared, reference, name)
    return table


def cost_table(runs: pd.DataFrame, only: Sequence[str] = ()) -> Table:
    """Parameters, bytes, seconds and memory by method; for the runs of one task, model, split and shots.

    ``only`` names the quantities to show, by their columns, where that should not be all.

    Where full fine-tuning ran too, each entry says in brackets how many times less it is. The caption says
    which time the seconds are.
    """
    runs = _with_derived(runs)
    quantities = [q for q in _quantities(runs) if (q.column in only if only else not q.further)]
    return _costs(runs, quantities, "cost", "Cost of a run", which_time(runs))


def further_cost_table(runs: pd.DataFrame) -> Table | None:
    """Operations, steps, processor time, energy; else as ``cost_table``. None where none was measured."""
    runs = _with_derived(runs)
    quantities = [q for q in _quantities(runs) if q.further]
    what = (
        "Clients in parallel: the server's work and the slowest client of each round, without evaluation "
        f"({ABSENT} where clients were trained in groups, and none by itself). A step "
        "is one client's or a group's. Needed once: what is frozen, by a client, before its first round."
    )
    return _costs(runs, quantities, "work", "Further costs of a run", what) if quantities else None


def _costs(runs: pd.DataFrame, quantities: Sequence[Quantity], stem: str, title: str, what: str) -> Table:
    table = cost_frame(runs)
    rows = [
        (str(row["method_label"]), [_cost_cell(row, quantity) for quantity in quantities])
        for _, row in table.iterrows()
    ]
    where = where_of(runs)
    full = table.loc[table["method"] == "full_finetune", "method_label"]
    mixed = "acceleration" in table and table["acceleration"].nunique() > 1
    name = f"{METHODS['full_finetune']}, accelerated alike" if mixed else "".join(full[:1])
    compares = len(full) > 0 and len(table) > 1
    ratio = f"In brackets: how many times less than {name} (below 1: more)." if compares else ""
    return Table(
        name=f"{stem}-{slug_of(runs)}-{slug(where)}",
        caption=" ".join(filter(None, (f"{title} ({where}), {n_text(table['n'])}.", what, ratio))),
        groups=[],
        columns=["Method", *(quantity.heading for quantity in quantities)],
        rows=rows,
        data=table,
    )


def deployed_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """What each method gives and costs as deployed and accelerated, over the seeds that ran both ways.

    Returns:
        One row a task, model, split, shots and method: for each quantity q of ``DEPLOYED``, ``q_deployed``
        and ``q_accelerated`` (means), and ``q_ratio`` (the first / the second). No rows where no method
        ran both ways.
    """
    runs, by = _with_derived(runs), [*CELL, "twin_label"]
    if "acceleration" not in runs:
        return pd.DataFrame(columns=by)
    both = runs.groupby([*by, "seed"], dropna=False, observed=True)["acceleration"].transform("nunique") > 1
    table = runs.loc[both, by].drop_duplicates().sort_values(by, ignore_index=True)
    for name in (quantity.column for quantity in DEPLOYED):
        for mode, word in (("none", "deployed"), ("exact", "accelerated")):
            means = mean_interval(runs[both & (runs["acceleration"] == mode)], by, name)
            means = means.rename(columns={"mean": f"{name}_{word}"})[[*by, f"{name}_{word}"]]
            table = table.merge(means, on=by, how="left")
        accelerated = table[f"{name}_accelerated"]
        table[f"{name}_ratio"] = table[f"{name}_deployed"] / accelerated.where(accelerated > 0)
    return table.merge(zero_shot_reference(runs[both], by), on=by, how="left")


def deployed_table(runs: pd.DataFrame, only: Sequence[str] = ()) -> Table | None:
    """Set each method as deployed beside itself accelerated; for the runs of one task, model, split, shots.

    ``only`` names the quantities to show, as in ``cost_table``. None where no method ran both ways.
    """
    shown = [q for q in DEPLOYED if not only or q.column in only]
    table = deployed_frame(runs)
    if table.empty:
        return None
    where = where_of(table)
    table = table.dropna(subset=[f"{q.column}_ratio" for q in shown if q.compared], how="all")
    parts = {q: ["deployed", "accelerated", *(["ratio"] if q.compared else [])] for q in shown}
    rows = [
        (row["twin_label"], [_deployed_cell(row, q, part) for q, names in parts.items() for part in names])
        for row in table.to_dict("records")
    ]
    words = {"deployed": "As deployed", "accelerated": "Accelerated", "ratio": "Ratio"}
    return Table(
        name=f"deployed-{slug_of(table)}-{slug(where)}",
        caption=f"As deployed and accelerated, over the seeds that ran both ways ({where}). As deployed is "
        f"{DEPLOYED_MEANS}; the ratio says how many times more that takes."
        f"{_mark_text(cell for _, cells in rows for cell in cells)}",
        groups=[(quantity.heading, len(names)) for quantity, names in parts.items()],
        columns=["Method", *(words[name] for names in parts.values() for name in names)],
        rows=rows,
        data=table,
    )


def _deployed_cell(row: Mapping[Any, Any], quantity: Quantity, part: str) -> Cell:
    value = row[f"{quantity.column}_{part}"]
    if pd.isna(value):
        return Cell(ABSENT)
    if part == "ratio":
        return Cell(f"{digits(value)}×")
    lower = quantity.column == "accuracy" and round(100 * value, 1) < round(100 * row["zero_shot"], 1)
    return Cell(quantity.text(value), below=lower)


def beyond_table(runs: pd.DataFrame) -> Table | None:
    """Clients apart, new classes and another task; for the runs of one task, model, split and shots.

    None where nothing but the test set was evaluated.
    """
    runs = label_runs(runs)
    measured = [column for column in BEYOND if column in runs and runs[column].notna().any()]
    if not measured:
        return None
    means = {column: mean_interval(runs, [*ROW, "method"], column) for column in measured}
    data = pd.concat([table.assign(quantity=column) for column, table in means.items()], ignore_index=True)
    rows: Any = data.itertuples()
    below = {
        column: {} if column.startswith("zero_shot") else below_zero_shot(runs, column) for column in measured
    }
    by_method = {
        (str(row.method_label), row.quantity): Cell(
            percent(row.mean, row.half_width),
            below=below[row.quantity].get(str(row.method_label), False),
        )
        for row in rows
    }
    methods = runs["method_label"].cat.remove_unused_categories().cat.categories
    where = where_of(runs)
    n = runs.groupby(ROW, dropna=False, observed=True).size()
    interval = " ± half width of the 95 % t-interval" if data["half_width"].notna().any() else ""
    return Table(
        name=f"beyond-{slug_of(runs)}-{slug(where)}",
        caption=f"Beyond the test set, after the last round ({where}, %), {n_text(n)}{interval}. "
        "Before: of the model as it came. Spread: standard deviation over the clients. "
        f"{ABSENT}: not measured, or bound to its own classes.{_mark_text(by_method.values())}",
        groups=[],
        columns=["Method", *(BEYOND[column] for column in measured)],
        rows=[
            (str(name), [by_method.get((str(name), column), Cell(ABSENT)) for column in measured])
            for name in methods
        ],
        data=data,
    )


def cells_of(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs of each split and shots, those of most methods first, then all data before few shots."""
    groups = label_runs(runs).groupby(["split_label", "shots"], dropna=False, observed=True)
    return sorted(
        (cell for _, cell in groups),
        key=lambda cell: (-cell["method_label"].nunique(), bool(cell["shots"].notna().any())),
    )


def where_of(runs: pd.DataFrame) -> str:
    """Name the split and shots of runs that share them."""
    return f"{runs['split_label'].iloc[0]}, {shots_label(runs['shots'].iloc[0])}"


def slug_of(runs: pd.DataFrame) -> str:
    """Name the task and model of runs that share them, for a file."""
    return slug(f"{runs['task'].iloc[0]} {runs['model'].iloc[0]}")


def _with_derived(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs, labelled, with the bytes of both directions and the times that a cache does not change."""
    return with_times(runs).assign(bytes=lambda frame: frame["bytes_up"] + frame["bytes_down"])


def _quantities(runs: pd.DataFrame) -> list[Quantity]:
    """The costs that the runs measured; GPU memory only where there was a GPU, groups only of clients."""
    known = [
        Quantity("trainable_parameters", "Trainable parameters", "{:,.0f}".format),
        *_payloads(runs),
        Quantity("bytes", "Sent, up + down", bytes_text),
        Quantity("train_seconds", "Train (s)", digits),
        Quantity("features_once_seconds", "Features, once (s)", digits, compared=False),
        Quantity("from_nothing_seconds", "Total from nothing (s)", digits),
        Quantity("round_seconds", "Round (s)", digits),
        Quantity("peak_memory_bytes", "Peak memory", bytes_text),
        Quantity("peak_gpu_memory_bytes", "Peak GPU memory", bytes_text),
        Quantity("needed_once_bytes", "Needed once", bytes_text, compared=False, further=True),
        Quantity("train_flops", "Training FLOPs", operations_text, further=True),
        Quantity("deployment_seconds", "Clients in parallel (s)", digits, further=True),
        Quantity("step_median_seconds", "Step, median (s)", digits, compared=False, further=True),
        Quantity("step_p95_seconds", "Step, 95 % (s)", digits, compared=False, further=True),
        Quantity("cpu_seconds", "Processor time (s)", digits, further=True),
        Quantity("energy_joules", "Energy (J)", digits, further=True),
        Quantity("peak_tensor_bytes", "Live tensors", bytes_text, further=True),
    ]
    if "clients_together" in runs and (runs["clients_together"] > 1).any():
        known.append(Quantity("clients_together", "Clients at once", "{:.0f}".format, compared=False))
    return [q for q in known if q.column in runs and runs[q.column].notna().any()]


def _payloads(runs: pd.DataFrame) -> list[Quantity]:
    """One payload; each way apart where a codec makes them differ."""
    ways = [f"payload_bytes_{way}" for way in ("up", "down")]
    if set(ways) <= set(runs.columns) and (runs[ways[0]] != runs[ways[1]]).any():
        return [Quantity(name, f"Payload {name.rpartition('_')[2]}", bytes_text) for name in ways]
    return [Quantity("payload_bytes", "Payload", bytes_text)]


def _accuracy_cell(row: Any) -> Cell:
    text = percent(row.mean, row.half_width)
    return Cell(text, best=bool(row.best), below=bool(row.below_zero_shot), broken=bool(row.broken))


def percent(mean: float, half_width: float) -> str:
    """Write a share as a percentage, with the half width of its interval where that is known."""
    interval = "" if pd.isna(half_width) else f" ± {100 * half_width:.1f}"
    return f"{100 * mean:.1f}{interval}"


def _mark_text(cells: Iterable[Cell]) -> str:
    """Explain the mark where there is one, with a space before it."""
    return f" {BELOW}: below zero-shot." if any(cell.below for cell in cells) else ""


def _cost_cell(row: pd.Series, quantity: Quantity) -> Cell:
    value, ratio = row[quantity.column], row.get(f"{quantity.column}_times_less", float("nan"))
    if pd.isna(value):
        return Cell(ABSENT)
    noted = not pd.isna(ratio) and row["method"] not in ("full_finetune", "zero_shot")
    return Cell(quantity.text(value), note=f"{digits(ratio)}×" if noted else "")


def _accuracy_caption(table: pd.DataFrame) -> str:
    interval = " ± half width of the 95 % t-interval" if table["half_width"].notna().any() else ""
    marks = ["bold: best trained method of the column"] if table["best"].any() else []
    marks += [f"{BELOW}: below zero-shot"] if table["below_zero_shot"].any() else []
    text = f"Accuracy after the last round (%), {n_text(table['n'])}{interval}."
    return f"{text} {'; '.join(marks).capitalize()}." if marks else text
