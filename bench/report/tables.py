"""The accuracy and cost tables: as data frames of numbers, and as text in LaTeX, Markdown, HTML and CSV."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
import pandas as pd

from bench.report.leads import PAIRED, UNKNOWN, UNPAIRED, mark_leads, printed
from bench.report.names import METHODS, label_runs, shots_label, without_deployed_twins
from bench.report.statistics import mean_interval, ratio_to, t_factor
from bench.report.text import (
    ABSENT,
    Digits,
    bytes_text,
    escape_markdown,
    keep_brackets_whole,
    n_text,
    operations_text,
    slug,
)
from bench.report.text import digits as digits_text
from bench.report.times import DEPLOYED_MEANS, which_time, with_times

if TYPE_CHECKING:
    from bench.report.styles import Look

_COMPARED = {
    PAIRED: "paired by seed and split of the data",
    UNPAIRED: "unpaired (Welch) where fewer than two seeds are shared",
    UNKNOWN: "unknown where one of the two has a single seed",
}
BELOW = "▼"
BROKEN = "‡"
OUR_DIGITS = Digits()
# Zero-shot accuracies of one model further apart than this were measured on different images.
SAME_TEST_SET = 1e-9
CELL = ["task", "model", "split_label", "shots"]
ROW = [*CELL, "method_label"]
_ACROSS = ["model", "split_label", "shots"]
_MEAN = "mean over data sets"


@dataclass(frozen=True)
class Quantity:
    """A measured cost: its column, its heading, how a value is written, and whether it has a ratio.

    One that is ``further`` stands in a table of its own: all of them in one would be too wide.
    """

    column: str
    heading: str
    text: Callable[..., str]
    compared: bool = True
    further: bool = False

    def written(self, value: float, digits: Digits) -> str:
        """Return a value as text, with as many significant digits as asked for unless it is a count."""
        if self.text in (digits_text, bytes_text, operations_text):
            return self.text(value, digits.cost)
        return self.text(value)


# In what a method as deployed is set beside itself accelerated.
DEPLOYED = (
    Quantity("round_seconds", "Round (s)", digits_text),
    Quantity("from_nothing_seconds", "Total from nothing (s)", digits_text),
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
    """One entry of a table: its text, a second text in brackets, and its marks.

    The ``best`` is bold; ``second``, the next or all that are level with the highest, is underlined.
    """

    text: str
    note: str = ""
    best: bool = False
    second: bool = False
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
        foot: how many of the last rows sum up the others and stand apart.
    """

    name: str
    caption: str
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    data: pd.DataFrame
    foot: int = 0

    def to_latex(self, look: Look | None = None, *, floating: bool = True) -> str:
        """Return the table as a LaTeX float, as wide as it must be of ``look``'s column and page.

        It needs `bench.report.latex.PREAMBLE`, which it names in a comment. If not ``floating``, it has
        neither float nor caption nor label: these are the author's.
        """
        from bench.report.latex import table_latex
        from bench.report.styles import SANS

        return table_latex(self, look or SANS, floating=floating)

    def to_csv(self) -> str:
        """Return the numbers behind the table, unrounded."""
        return self.data.to_csv(index=False, lineterminator="\n")

    def to_markdown(self, label: str = "") -> str:
        """Return the table as a Markdown pipe table under its caption, which ``label`` ("Table 1") opens."""
        template = environment().get_template("table.md.j2")
        return template.render(table=self, label=label, headings=self.headings)

    def to_html(self, label: str = "") -> str:
        """Return the table as an HTML ``figure``; every text in it is escaped."""
        return environment().get_template("table.html.j2").render(table=self, label=label)

    @property
    def body(self) -> list[tuple[str, list[Cell]]]:
        """The rows that are not the foot."""
        return self.rows[: len(self.rows) - self.foot]

    @property
    def summary(self) -> list[tuple[str, list[Cell]]]:
        """The rows of the foot."""
        return self.rows[len(self.rows) - self.foot :]

    @property
    def headings(self) -> list[str]:
        """One heading a column where there is one line for them: its own, followed by that of its group."""
        spans = [text for text, span in self.groups for _ in range(span)] or [""] * len(self.columns[1:])
        own = [
            f"{text}, {span}" if span else text for text, span in zip(self.columns[1:], spans, strict=True)
        ]
        return [self.columns[0], *own]


@cache
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


def accuracy_frame(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> pd.DataFrame:
    """Accuracy after the last round: mean over seeds, interval and marks.

    Args:
        runs: one row a complete run.
        digits: how exactly accuracies are printed: what prints the same is level.

    Returns:
        One row a task, model, split, shots and method: ``n``, ``mean``, ``std``, ``half_width`` (0 to 1),
        ``zero_shot`` (of the same test sets; where runs do not state it, of the zero-shot runs of the cell),
        ``best``, ``second`` and ``compared`` (of the trained methods of its cell, see ``leads.mark_leads``)
        and ``below_zero_shot``. Where the methods of a cell were ``scored_apart`` none is best.
    """
    runs = label_runs(runs)
    table = mean_interval(runs, [*ROW, "twin_label", "method"], "accuracy")
    table = _with_zero_shot(table, runs, runs, ROW)
    trained = table["method"] != "zero_shot"
    table = table.merge(scored_apart(runs), on=CELL, how="left")
    rivals = table[trained & ~table["scored_apart"]]
    table = table.join(mark_leads(rivals, runs, CELL, decimals=digits.accuracy))
    for mark in ("best", "second"):
        table[mark] = table[mark].eq(True)
    table = table.merge(_broken(runs), on=ROW, how="left")
    lower = [_prints_lower(*pair, digits) for pair in zip(table["mean"], table["zero_shot"], strict=True)]
    table["below_zero_shot"] = trained & np.array(lower, dtype=bool)
    return table


def _with_zero_shot(
    table: pd.DataFrame, runs: pd.DataFrame, all_runs: pd.DataFrame, by: Sequence[str]
) -> pd.DataFrame:
    """Add ``zero_shot``: what the runs of each row state, else what the zero-shot runs of its cell gave."""
    ran = zero_shot_reference(all_runs[all_runs["method"] == "zero_shot"], CELL)
    table = table.merge(zero_shot_reference(runs, by), on=list(by), how="left")
    table = table.merge(ran.rename(columns={"zero_shot": "of_runs"}), on=CELL, how="left")
    return table.assign(zero_shot=table["zero_shot"].fillna(table["of_runs"])).drop(columns="of_runs")


def scored_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Say of each cell whether its methods were scored on different test sets, so that nothing compares them.

    Zero-shot accuracies tell: of one model and test set there is one. Test images may be drawn by the seed:
    methods are compared seed by seed, and by their means only where no seed is shared.

    Returns:
        One row a task, model, split and shots, with ``scored_apart``.
    """
    runs = label_runs(runs)
    own = runs["accuracy"].where(runs["method"] == "zero_shot")
    stated = runs.assign(stated=runs.get("zero_shot_accuracy", own).fillna(own).astype(float))
    seed = ["seed"] if "seed" in runs else []
    values = stated.groupby([*ROW, *seed], dropna=False, observed=True)["stated"].mean().reset_index()
    by_seed = values.groupby([*CELL, *seed], dropna=False, observed=True)["stated"]
    spread = (by_seed.max() - by_seed.min()).where(by_seed.count() > 1)
    shared = spread.groupby(CELL, dropna=False, observed=True).max()
    by_method = values.groupby(ROW, dropna=False, observed=True)["stated"].mean()
    of_means = by_method.groupby(CELL, dropna=False, observed=True)
    found = shared.fillna(of_means.max() - of_means.min()) > SAME_TEST_SET
    return found.rename("scored_apart").reset_index()


def on_same_test_sets(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the cells whose methods were scored on different test sets: nothing there can be compared.

    Returns:
        The runs, labelled, of the other cells; and the names of those left out: task, split and shots.
    """
    runs = label_runs(runs)
    cells = scored_apart(runs)
    left_out = cells.loc[cells["scored_apart"], CELL]
    if left_out.empty:
        return runs, []
    apart = runs[CELL].merge(left_out, on=CELL, how="left", indicator=True)["_merge"] == "both"
    names = [
        f"{row['task']}, {row['split_label']}, {shots_label(row['shots'])}"
        for row in left_out.to_dict("records")
    ]
    return runs[~apart.to_numpy()], names


def _prints_lower(value: float, other: float, digits: Digits) -> bool:
    """Whether a share is, in percent and as printed, lower than another; not where one is missing."""
    return printed(value, digits.accuracy) < printed(other, digits.accuracy)


def _broken(runs: pd.DataFrame) -> pd.DataFrame:
    """Say of each row whether an invariant did not hold in one of its runs."""
    own = runs["broken"].fillna("") != "" if "broken" in runs else pd.Series(False, index=runs.index)
    return runs.assign(broken=own).groupby(ROW, dropna=False, observed=True)["broken"].any().reset_index()


def below_zero_shot(runs: pd.DataFrame, column: str, digits: Digits = OUR_DIGITS) -> dict[str, bool]:
    """Say of each method whether an accuracy of it is, as printed, lower than that of the model as it came.

    Args:
        runs: of one task, model, split and shots.
        column: an accuracy: one of ``BEFORE``, whose runs state it of the model too; or another, which is
            then compared with that of the zero-shot runs.
        digits: how exactly it is printed.

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
        lower = _prints_lower(mine[column].mean(), before, digits)
        found[str(name)] = bool(lower and (mine["method"] != "zero_shot").all())
    return found


def accuracy_table(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> Table:
    """Method by split, shots as column groups, in percent; for the runs of one task and model.

    The best trained method of a column is marked, and so is every one that lost accuracy against zero-shot.
    Where zero-shot did not run, its row is filled from what the other runs measured before training.
    """
    table = accuracy_frame(runs, digits)
    levels = _levels(table, ["shots", "split_label"], "first")
    return Table(
        name=f"accuracy-{slug_of(table)}",
        caption=_accuracy_caption(table, "Accuracy after the last round (%)", "column"),
        groups=spans([shots for shots, _ in levels]),
        columns=["Method", *(split for _, split in levels)],
        rows=_accuracy_rows(table, levels, digits),
        data=table,
    )


def few_shot_table(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> Table | None:
    """Method by shots, splits as column groups, in percent; for the runs of one task and model.

    Only splits with few-shot runs; their runs on all data come last. None for fewer than two numbers of
    shots. Marks as in ``accuracy_table``.
    """
    runs = label_runs(runs)
    if runs["shots"].nunique() < 2:
        return None
    few = runs.loc[runs["shots"].notna(), "split_label"].unique()
    table = accuracy_frame(runs[runs["split_label"].isin(few)], digits)
    levels = _levels(table, ["split_label", "shots"], "last")
    return Table(
        name=f"few-shot-{slug_of(table)}",
        caption=_accuracy_caption(table, "Accuracy after the last round (%) by images per class", "column"),
        groups=spans([split for _, split in levels]),
        columns=["Method", *(shots for shots, _ in levels)],
        rows=_accuracy_rows(table, levels, digits),
        data=table,
    )


def main_accuracy_tables(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> list[Table]:
    """Data set by method, in percent, with the mean over the data sets: one a model, split and shots.

    The best trained method of each row is marked, as in ``accuracy_table``; of runs both as deployed and
    accelerated the latter alone are shown. The mean is of methods that ran on every data set. Nothing for
    fewer than two data sets.
    """
    runs = without_deployed_twins(label_runs(runs))
    parts = runs.groupby(_ACROSS, dropna=False, observed=True, sort=True)
    return [_main_accuracy_table(part, digits) for _, part in parts if part["task"].nunique() > 1]


def _main_accuracy_table(runs: pd.DataFrame, digits: Digits) -> Table:
    table = accuracy_frame(runs, digits)
    means = _means_frame(runs, table, digits)
    zero_shot = _zero_shot_name(table)
    methods, entries = _accuracy_cells(table, lambda row: row.task, digits, zero_shot)
    _, of_means = _accuracy_cells(means, lambda _: None, digits, zero_shot)
    label = "task_label" if "task_label" in runs else "task"
    names = runs[["task", label]].drop_duplicates().sort_values(label).set_index("task")[label]
    model, where = str(runs["model"].iloc[0]), where_of(runs)
    what = f"Accuracy after the last round (%) on {len(names)} data sets ({model}, {where})"
    whole = {method for method in methods if all((method, task) in entries for task in names.index)}
    foot = [
        of_means.get((method, None), Cell(ABSENT)) if method in whole else Cell(ABSENT) for method in methods
    ]
    return Table(
        name=f"main-accuracy-{slug(model)}-{slug(where)}",
        caption=_accuracy_caption(table, what, "row") + _means_text(table, means),
        groups=[],
        columns=["Data set", *methods],
        rows=[
            *(
                (str(name), [entries.get((method, task), Cell(ABSENT)) for method in methods])
                for task, name in names.items()
            ),
            ("Mean", foot),
        ],
        data=pd.concat([table, means], ignore_index=True),
        foot=1,
    )


def _means_frame(runs: pd.DataFrame, table: pd.DataFrame, digits: Digits) -> pd.DataFrame:
    """The mean over the data sets, as ``accuracy_frame`` gives a data set; of methods that ran on all.

    Where a method ran the same seeds on each, they are what its interval is over; else it has none, and
    nothing is marked best. Nor is anything where methods were scored on different test sets.
    """
    by, n_tasks = [*_ACROSS, "method_label", "twin_label", "method"], runs["task"].nunique()
    of_method = table.groupby(by, dropna=False, observed=True)
    whole = of_method.agg(
        accuracy=("mean", "mean"),
        zero_shot_accuracy=("zero_shot", lambda values: values.mean(skipna=False)),
        broken=("broken", "any"),
        tasks=("task", "size"),
        entries=("n", "sum"),
    )
    whole = whole.reset_index().query("tasks == @n_tasks")
    if whole.empty:
        return table[:0]
    each = runs.dropna(subset=["accuracy"]).groupby([*by, "seed"], dropna=False, observed=True)
    seeds = each.agg(mean=("accuracy", "mean"), found=("task", "nunique"), rows=("task", "size"))
    seeds = seeds.reset_index().query("found == @n_tasks and rows == @n_tasks")
    means = whole.merge(seeds, on=by, how="left")
    n_seeds = means.groupby("method_label", observed=True)["seed"].transform("count")
    level = means["entries"] == n_tasks * n_seeds
    means["accuracy"] = means["mean"].where(level, means["accuracy"])
    means = means[level | ~means.duplicated("method_label")].assign(task=_MEAN)
    made = accuracy_frame(means.assign(broken=means["broken"].map({True: "on one of them"})), digits)
    comparable = level.all() and not table["scored_apart"].any()
    return made if comparable else made.assign(best=False, second=False)


def _means_text(table: pd.DataFrame, means: pd.DataFrame) -> str:
    """Say of which methods the last row is."""
    lacking = table["method_label"].nunique() - len(means)
    if not lacking:
        return " Mean: over the data sets."
    methods = "1 method" if lacking == 1 else f"{lacking} methods"
    return f" Mean: over the data sets; {ABSENT} for {methods} that did not run on all."


def _levels(table: pd.DataFrame, by: list[str], all_data: Literal["first", "last"]) -> list[tuple[str, str]]:
    """The shots and splits of the columns, sorted, with all data first or last."""
    cells = table[["shots", "split_label"]].drop_duplicates()
    cells = cells.sort_values(by, na_position=all_data)
    return [(shots_label(shots), str(split)) for shots, split in cells.itertuples(index=False)]


def spans(names: Sequence[str]) -> list[tuple[str, int]]:
    """Group headings: neighbours of one name, with their number."""
    return [(name, len(list(group))) for name, group in itertools.groupby(names)]


def _accuracy_rows(
    table: pd.DataFrame, levels: list[tuple[str, str]], digits: Digits
) -> list[tuple[str, list[Cell]]]:
    methods, entries = _accuracy_cells(
        table, lambda row: (shots_label(row.shots), str(row.split_label)), digits, _zero_shot_name(table)
    )
    return [(name, [entries.get((name, level), Cell(ABSENT)) for level in levels]) for name in methods]


def _accuracy_cells(
    table: pd.DataFrame, place: Callable[[Any], Hashable], digits: Digits, zero_shot: str | None
) -> tuple[list[str], dict[tuple[str, Hashable], Cell]]:
    """The methods in order, and the cell of each and place; of ``zero_shot``, if not run, as others tell."""
    rows: Any = list(table.itertuples())
    entries = {(str(row.method_label), place(row)): _accuracy_cell(row, digits) for row in rows}
    methods = [str(name) for name in table["method_label"].cat.remove_unused_categories().cat.categories]
    stated: Any = table[~table["scored_apart"] & table["zero_shot"].notna()]
    if zero_shot is None or stated.empty:
        return methods, entries
    told = {
        (zero_shot, place(row)): Cell(percent(row.zero_shot, float("nan"), digits))
        for row in stated.itertuples()
    }
    return methods if zero_shot in methods else [zero_shot, *methods], told | entries


def _zero_shot_name(table: pd.DataFrame) -> str | None:
    """How the row of zero-shot is called; None for several such methods, or where another has its name."""
    own = set(table.loc[table["method"] == "zero_shot", "method_label"].astype(str))
    name = own.pop() if own else METHODS["zero_shot"]
    others = table.loc[table["method"] != "zero_shot", "method_label"].astype(str)
    return None if own or name in set(others) else name


def cost_frame(runs: pd.DataFrame, reference: str = "full_finetune") -> pd.DataFrame:
    """What each method costs: means over seeds, intervals, and how many times less than a reference.

    Args:
        runs: one row a complete run.
        reference: a method, by name or label; of several variants their first.

    Returns:
        One row a task, model, split, shots and method: ``n``, ``reference`` (whether it is that) and, for
        each measured quantity q (bytes, seconds, parameters; for ``from_nothing_seconds`` and the like see
        ``times.with_times``), ``q``, ``q_half_width`` and ``q_times_less`` (reference / this method, both
        accelerated or both not).
    """
    runs = _with_derived(runs)
    compared = [*CELL, *(["acceleration"] if "acceleration" in runs else [])]
    by = [*compared, "method_label", "twin_label", "method"]
    quantities = [quantity.column for quantity in _quantities(runs)]
    numbers = runs[by].join(runs[quantities].apply(pd.to_numeric))
    groups = numbers.groupby(by, dropna=False, observed=True)
    table = groups.size().rename("n").reset_index()
    means, deviations, counts = groups.mean(), groups.std(), groups.count()
    factors = {int(n): t_factor(int(n)) for n in np.unique(counts)}
    halves = counts.map(lambda n: factors[n]) * deviations / counts**0.5
    for name in quantities:
        table[name] = means[name].to_numpy()
        table[f"{name}_half_width"] = halves[name].to_numpy()
    table = table.sort_values(ROW, kind="stable", ignore_index=True)
    asked = (table[["method", "method_label", "twin_label"]].astype(str) == reference).any(axis=1)
    table["reference"] = asked & ~table[asked].duplicated(compared).reindex(table.index, fill_value=False)
    cell = table.groupby(compared, dropna=False, observed=True).ngroup()  # one key: joined in no time
    for name in (quantity.column for quantity in _quantities(runs) if quantity.compared):
        values = pd.DataFrame({"cell": cell, "value": table[name]})
        table[f"{name}_times_less"] = ratio_to(values, ["cell"], table["reference"], "value")
    return table


def cost_table(
    runs: pd.DataFrame,
    only: Sequence[str] = (),
    digits: Digits = OUR_DIGITS,
    reference: str = "full_finetune",
) -> Table:
    """Time, memory, bytes, operations, energy by method; for the runs of one task, model, split and shots.

    ``only`` names the quantities to show, by their columns, where that should not be all that were measured.

    Where the ``reference``, a method by name or label, ran too, each entry says in brackets how many times
    less it is. The caption says which time the seconds are.
    """
    runs = _with_derived(runs)
    quantities = [q for q in _quantities(runs) if (q.column in only if only else not q.further)]
    return _costs(runs, quantities, ("cost", "Cost of a run", which_time(runs)), digits, reference)


def further_cost_table(
    runs: pd.DataFrame, digits: Digits = OUR_DIGITS, reference: str = "full_finetune"
) -> Table | None:
    """Steps, processor time, clients in parallel; else as ``cost_table``. None where none was measured."""
    runs = _with_derived(runs)
    quantities = [q for q in _quantities(runs) if q.further]
    what = (
        "Clients in parallel: the server's work and the slowest client of each round, without evaluation "
        f"({ABSENT} where clients were trained in groups, and none by itself). A step "
        "is one client's or a group's. Needed once: what is frozen, by a client, before its first round."
    )
    words = ("work", "Further costs of a run", what)
    return _costs(runs, quantities, words, digits, reference) if quantities else None


def _costs(
    runs: pd.DataFrame,
    quantities: Sequence[Quantity],
    words: tuple[str, str, str],
    digits: Digits,
    reference: str,
) -> Table:
    """``words`` are the stem of the name, the title, and what the caption says besides."""
    (stem, title, what), where = words, where_of(runs)
    table = cost_frame(runs, reference)
    rows = [
        (str(row["method_label"]), [_cost_cell(row, quantity, digits) for quantity in quantities])
        for row in table.to_dict("records")
    ]
    first = table[table["reference"]][:1]
    mixed = "acceleration" in table and table["acceleration"].nunique() > 1
    names = first["twin_label"].astype(str) + ", accelerated alike" if mixed else first["method_label"]
    name = "".join(names)
    ratio = (
        f"In brackets: how many times less than {name} (below 1: more)." if name and len(table) > 1 else ""
    )
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
    if not both.any():
        return pd.DataFrame(columns=by)
    table = runs.loc[both, by].drop_duplicates().sort_values(by, ignore_index=True)
    for name in (quantity.column for quantity in DEPLOYED):
        for mode, word in (("none", "deployed"), ("exact", "accelerated")):
            means = mean_interval(runs[both & (runs["acceleration"] == mode)], by, name)
            means = means.rename(columns={"mean": f"{name}_{word}"})[[*by, f"{name}_{word}"]]
            table = table.merge(means, on=by, how="left")
        accelerated = table[f"{name}_accelerated"]
        table[f"{name}_ratio"] = table[f"{name}_deployed"] / accelerated.where(accelerated > 0)
    return _with_zero_shot(table, runs[both], runs, by)


def deployed_table(runs: pd.DataFrame, only: Sequence[str] = (), digits: Digits = OUR_DIGITS) -> Table | None:
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
        (
            str(row["twin_label"]),
            [_deployed_cell(row, q, part, digits) for q, names in parts.items() for part in names],
        )
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


def _deployed_cell(row: Mapping[Any, Any], quantity: Quantity, part: str, digits: Digits) -> Cell:
    value = row[f"{quantity.column}_{part}"]
    if pd.isna(value):
        return Cell(ABSENT)
    if part == "ratio":
        return Cell(f"{digits_text(value, digits.cost)}×")
    if quantity.column == "accuracy":
        below = _prints_lower(value, row["zero_shot"], digits)
        return Cell(percent(value, float("nan"), digits), below=below)
    return Cell(quantity.written(value, digits))


def beyond_table(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> Table | None:
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
        column: {} if column.startswith("zero_shot") else below_zero_shot(runs, column, digits)
        for column in measured
    }
    by_method = {
        (str(row.method_label), row.quantity): Cell(
            percent(row.mean, row.half_width, digits),
            below=below[row.quantity].get(str(row.method_label), False),
        )
        for row in rows
    }
    methods = runs["method_label"].cat.remove_unused_categories().cat.categories
    where = where_of(runs)
    n = seeds_of(runs)
    return Table(
        name=f"beyond-{slug_of(runs)}-{slug(where)}",
        caption=f"Beyond the test set, after the last round ({where}, %), {n_text(n)}{interval_text(data)}. "
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
    """The runs of each split and shots: those of most methods first, then all data, then most shots."""
    groups = label_runs(runs).groupby(["split_label", "shots"], dropna=False, observed=True)
    return sorted(
        (cell for _, cell in groups),
        key=lambda cell: (-cell["method_label"].nunique(), *_most_first(cell["shots"].iloc[0])),
    )


def _most_first(shots: Any) -> tuple[int, int]:
    return (0, 0) if pd.isna(shots) else (1, -int(shots))


def seeds_of(runs: pd.DataFrame) -> pd.Series:
    """Count the runs, which are seeds, of each task, model, split, shots and method."""
    return label_runs(runs).groupby(ROW, dropna=False, observed=True).size()


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
        Quantity("train_seconds", "Train (s)", digits_text),
        Quantity("features_once_seconds", "Features, once (s)", digits_text, compared=False),
        Quantity("from_nothing_seconds", "Total from nothing (s)", digits_text),
        Quantity("round_seconds", "Round (s)", digits_text),
        Quantity("peak_memory_bytes", "Peak memory", bytes_text),
        Quantity("peak_gpu_memory_bytes", "Peak GPU memory", bytes_text),
        Quantity("train_flops", "Training FLOPs", operations_text),
        Quantity("energy_joules", "Energy (J)", digits_text),
        Quantity("needed_once_bytes", "Needed once", bytes_text, compared=False, further=True),
        Quantity("deployment_seconds", "Clients in parallel (s)", digits_text, further=True),
        Quantity("step_median_seconds", "Step, median (s)", digits_text, compared=False, further=True),
        Quantity("step_p95_seconds", "Step, 95 % (s)", digits_text, compared=False, further=True),
        Quantity("cpu_seconds", "Processor time (s)", digits_text, further=True),
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


def _accuracy_cell(row: Any, digits: Digits) -> Cell:
    return Cell(
        percent(row.mean, row.half_width, digits),
        best=bool(row.best),
        second=bool(row.second),
        below=bool(row.below_zero_shot),
        broken=bool(row.broken),
    )


def percent(mean: float, half_width: float, digits: Digits = OUR_DIGITS) -> str:
    """Write a share as a percentage, with the half width of its interval where that is known."""
    interval = "" if pd.isna(half_width) else f" ± {100 * half_width:.{digits.accuracy}f}"
    return f"{100 * mean:.{digits.accuracy}f}{interval}"


def interval_text(table: pd.DataFrame) -> str:
    """Say what stands behind a ±, with a space before it; nothing where there is none."""
    return " ± half width of the 95 % t-interval" if table["half_width"].notna().any() else ""


def _mark_text(cells: Iterable[Cell]) -> str:
    """Explain the mark where there is one, with a space before it."""
    return f" {BELOW}: below zero-shot." if any(cell.below for cell in cells) else ""


def _cost_cell(row: Mapping[Any, Any], quantity: Quantity, digits: Digits) -> Cell:
    value, ratio = row[quantity.column], row.get(f"{quantity.column}_times_less", float("nan"))
    if pd.isna(value):
        return Cell(ABSENT)
    noted = not pd.isna(ratio) and not row["reference"] and row["method"] != "zero_shot"
    note = f"{digits_text(ratio, digits.cost)}×" if noted else ""
    return Cell(quantity.written(value, digits), note=note)


def _accuracy_caption(table: pd.DataFrame, what: str, line: str) -> str:
    """``line`` is what the methods that are compared share: a column or a row."""
    sentences = [
        f"{what}, {n_text(table['n'])}{interval_text(table)}.",
        *_leads_text(table, line),
        *([f"{BELOW}: below zero-shot."] if table["below_zero_shot"].any() else []),
        *([f"{BROKEN}: an invariant did not hold."] if table["broken"].any() else []),
    ]
    return " ".join(sentences)


def _leads_text(table: pd.DataFrame, line: str) -> list[str]:
    """Say what bold and underlined mean, as far as they occur."""
    cells = table.groupby([table[c] for c in CELL], dropna=False, observed=True)
    decided, one_seed = cells["best"].transform("any"), cells["n"].transform("max") == 1
    compared = set(table.loc[table["second"] | decided, "compared"].dropna())
    interval = "the 95 % interval of their differences"
    found = []
    if (table["best"] & ~one_seed).any():
        found.append(
            f"Bold: best trained method of the {line}, its lead over each other beyond {interval}; "
            "underlined: the next."
        )
    if (table["second"] & ~decided).any():
        by = "as printed" if one_seed.all() else f"by {interval}, or higher than one of these"
        found.append(f"Underlined without a bold one: the highest and all not told from it {by}.")
    if (how := [_COMPARED[name] for name in _COMPARED if name in compared]) and not one_seed.all():
        found.append(f"Differences are {'; '.join(how)}.")
    if (table["best"] & one_seed).any():
        found.append(
            f"Where methods have one seed, bold is the highest of the {line} and underlined the next, which "
            "establishes nothing."
        )
    return found
