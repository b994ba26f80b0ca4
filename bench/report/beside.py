"""Two folders of results side by side: yesterday's and today's, machine A's and B's; nothing is judged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.report import figures
from bench.report.mixture import mixture
from bench.report.names import OUR_NAMES, Names, label_runs, shots_label
from bench.report.overview import machine_text
from bench.report.paper import Paper
from bench.report.statistics import t_factor
from bench.report.styles import Style, styles_of
from bench.report.tables import Cell, Quantity, Table, environment, percent, slug_of
from bench.report.text import ABSENT, Digits, bytes_text
from bench.report.text import digits as digits_text
from bench.report.trust import busy_note
from bench.store import load_results
from flora.errors import BadInput

_BY = ["task", "model", "split_label", "shots", "method_label"]
# Where the same is run on another machine or with other code, this is what may differ.
_OF_THE_MACHINE = ["device"]

COMPARED = (
    Quantity("accuracy", "Accuracy (%)", lambda value: f"{100 * value:.1f}", compared=False),
    Quantity("train_seconds", "Train (s)", digits_text),
    Quantity("round_seconds", "Round (s)", digits_text),
    Quantity("bytes", "Sent, up + down", bytes_text),
    Quantity("peak_memory_bytes", "Peak memory", bytes_text),
    Quantity("peak_gpu_memory_bytes", "Peak GPU memory", bytes_text),
    Quantity("energy_joules", "Energy (J)", digits_text),
)
"""What is set side by side: accuracy by its difference, the rest by its ratio."""


@dataclass(frozen=True)
class Beside:
    """Two sets of results.

    Attributes:
        names: what they are called.
        styles: of each method label.
        frame: one row a cell, method and quantity; see ``side_by_side``.
        alone: labels of what only one of the two ran, by its name.
        notes: what either was made on, and where its runs are not alike.
        digits: how exactly numbers are written.
    """

    names: tuple[str, str]
    styles: Mapping[str, Style]
    frame: pd.DataFrame
    alone: dict[str, list[str]]
    notes: list[str]
    digits: Digits = field(default_factory=Digits)

    @property
    def tables(self) -> list[Table]:
        """A table a task and model."""
        groups = self.frame.groupby(["task", "model"], sort=True)
        return [_table(part, self.names, self.digits) for _, part in groups]


def side_by_side(first: pd.DataFrame, second: pd.DataFrame, names: Names = OUR_NAMES) -> pd.DataFrame:
    """Set the runs of two folders side by side.

    Runs belong together if they agree in all that a configuration says but the device and the seed. They are
    compared over the seeds that both ran on the same division of the data, and where there are none, over
    each side's own.

    Args:
        first: one row a complete run.
        second: likewise.
        names: an author's own.

    Returns:
        One row a task, model, split, shots, method and quantity of ``COMPARED``: ``n`` seeds in common,
        ``n_first`` and ``n_second`` that the means are over; ``mean_first``, ``mean_second``, their
        ``difference`` (second minus first) and ``ratio`` (second / first); ``difference_half_width`` of the
        paired 95 % t-interval; ``same``: every seed in common gave the very same number.
    """
    runs = _both(first, second, names)
    rows = []
    for key, cell in runs.groupby(_BY, dropna=False, observed=True, sort=True):
        # seeds that ran on several devices of a side count once, by their mean
        sides = [cell[cell["side"] == side].groupby("draw")[_columns(cell)].mean() for side in (0, 1)]
        if all(len(side) for side in sides):
            rows += [dict(zip(_BY, key, strict=True)) | row for row in _quantities(*sides)]
    table = pd.DataFrame(rows, columns=None if rows else [*_BY, "quantity"])
    kept = {name: runs[name].dtype for name in ("split_label", "method_label")}
    return table.astype(kept | {"shots": "Int64"})


def read_beside(first: Path, second: Path, names: tuple[str, str], paper: Paper) -> Beside:
    """Read two folders of results.

    Raises:
        BadInput: one holds no complete run, or they have nothing in common.
    """
    sides = _complete(first, paper), _complete(second, paper)
    frame = side_by_side(sides[0], sides[1], paper.called)
    runs = _both(sides[0], sides[1], paper.called)
    parts = [runs[runs["side"] == side] for side in (0, 1)]
    if frame.empty:
        raise BadInput(
            f"--beside: {str(first)!r} and {str(second)!r} have no configuration in common; the first has "
            f"{_cells_text(parts[0])}, the second {_cells_text(parts[1])}"
        )
    ran = [set(map(_cell_text, part[_BY].itertuples(index=False))) for part in parts]
    alone = {names[0]: sorted(ran[0] - ran[1]), names[1]: sorted(ran[1] - ran[0])}
    notes = [f"{name}: {text}" for name, side in zip(names, sides, strict=True) for text in _made_on(side)]
    return Beside(names, styles_of(runs), frame, alone, notes, paper.written)


def write_beside(beside: Beside, out: Path, paper: Paper) -> list[Path]:
    """Write ``beside.html``, ``beside.md`` and the tables and figure they show; gives the files."""
    figures.check_formats(paper.formats)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".beside-", dir=out) as folder:
        made = Path(folder)
        figure = figures.ratios(beside.frame, beside.names, styles=beside.styles, look=paper.look)
        figures.save(figure, made / "beside", paper.formats, paper.look)
        svg = figures.save(figure, made / "inline", ("svg",), paper.look)[0]
        shown = [name for name in ("svg", "png") if name in paper.formats]
        # the figure is matplotlib's, the tables' own template escapes what is in them
        context = {
            "beside": beside,
            "svg": Markup("".join(svg.read_text("utf-8").partition("<svg")[1:])),
            "html": lambda table: Markup(table.to_html()),
            "image": shown[0] if shown else None,
        }
        svg.unlink()
        for suffix in ("html", "md"):
            text = environment().get_template(f"beside.{suffix}.j2").render(context)
            (made / f"beside.{suffix}").write_text(text, encoding="utf-8", newline="\n")
        beside.frame.to_csv(made / "beside.csv", index=False, lineterminator="\n")
        for table in beside.tables:
            latex = table.to_latex(paper.look, floating=paper.floats)
            (made / f"{table.name}.tex").write_text(latex, encoding="utf-8", newline="\n")
        files = sorted(made.iterdir(), key=lambda path: path.suffix == ".html")
        return [path.rename(out / path.name) for path in files]


def _complete(folder: Path, paper: Paper) -> pd.DataFrame:
    runs = paper.choose(load_results(folder))
    complete = runs[runs["status"] == "complete"]
    if complete.empty:
        raise BadInput(f"results: none of {len(runs)} runs of {str(folder)!r} is complete")
    return complete


def _both(first: pd.DataFrame, second: pd.DataFrame, names: Names) -> pd.DataFrame:
    """All runs, labelled together, so that one label means one thing."""
    sides = [runs.assign(side=index) for index, runs in enumerate((first, second))]
    runs = pd.concat(sides, ignore_index=True).drop(columns=_OF_THE_MACHINE, errors="ignore")
    prints = runs["split.fingerprint"].fillna("") if "split.fingerprint" in runs else ""
    draws = runs["seed"].astype(str) + "/" + prints
    return label_runs(runs.assign(bytes=runs["bytes_up"] + runs["bytes_down"], draw=draws), names)


def _columns(runs: pd.DataFrame) -> list[str]:
    """The quantities that the runs have."""
    return [quantity.column for quantity in COMPARED if quantity.column in runs]


def _quantities(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Compare two sides, one row a seed each, index alike where they belong together."""
    for name in first.columns:
        one, other = first[name].dropna().astype(float), second[name].dropna().astype(float)
        common = one.index.intersection(other.index)
        if len(common):
            one, other = one[common], other[common]
        if one.empty or other.empty:
            continue
        differences = other[common] - one[common]
        yield {
            "quantity": name,
            "n": len(common),
            "n_first": len(one),
            "n_second": len(other),
            "mean_first": one.mean(),
            "mean_second": other.mean(),
            "difference": other.mean() - one.mean(),
            "ratio": other.mean() / one.mean() if one.mean() else float("nan"),
            "difference_half_width": _half_width(differences),
            "same": bool(len(common)) and bool((differences == 0).all()),
        }


def _half_width(values: pd.Series) -> float:
    n = len(values)
    return float(t_factor(n) * values.std() / n**0.5) if n > 1 else float("nan")


def _table(part: pd.DataFrame, names: tuple[str, str], digits: Digits) -> Table:
    shown = [q for q in COMPARED if q.column in set(part["quantity"])]
    entries: dict[str, list[Cell]] = {}
    groups = part.groupby(["shots", "split_label", "method_label"], dropna=False, observed=True)
    parts: list[tuple[Any, pd.DataFrame]] = list(groups)
    for key, rows in sorted(parts, key=lambda part: not pd.isna(part[0][0])):  # all data first
        found = rows.set_index("quantity").to_dict("index")
        cells = [cell for q in shown for cell in _cells(found.get(q.column), q, digits)]
        common, one, other = (rows[name].max() for name in ("n", "n_first", "n_second"))
        n = str(common) if common else f"{one}; {other}"
        entries[f"{key[2]}, {key[1]}, {shots_label(key[0])}"] = [Cell(n), *cells]
    where = f"{part['task'].iloc[0]}, {part['model'].iloc[0]}"
    return Table(
        name=f"beside-{slug_of(part)}",
        caption=f"{names[0]} beside {names[1]} ({where}): means over the seeds that both ran (n), or over "
        "each side's own where they share none (two numbers). Change of accuracy in points ± half width of "
        "the paired 95 % t-interval; of the rest the second divided by the first; =: the very same number "
        "with every seed.",
        groups=[("", 1), *((quantity.heading, 3) for quantity in shown)],
        columns=["Method, split, shots", "n", *([*names, "Change"] * len(shown))],
        rows=list(entries.items()),
        data=part,
    )


def _cells(row: dict[Any, Any] | None, quantity: Quantity, digits: Digits) -> list[Cell]:
    if row is None:
        return [Cell(ABSENT)] * 3
    means = row["mean_first"], row["mean_second"]
    if quantity.compared:
        shown = [quantity.written(value, digits) for value in means]
        change = ABSENT if pd.isna(row["ratio"]) else f"{digits_text(row['ratio'], digits.cost)}×"
    else:
        shown = [percent(value, float("nan"), digits) for value in means]
        half, decimals = row["difference_half_width"], digits.accuracy
        change = f"{100 * row['difference']:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")
        change += "" if pd.isna(half) else f" ± {100 * half:.{decimals}f}"
    return [*map(Cell, shown), Cell("=" if row["same"] else change)]


def _made_on(runs: pd.DataFrame) -> list[str]:
    """Say what a side was made on, and where its runs are not alike."""
    return [text for text in (machine_text(runs), *mixture(runs), busy_note(runs)) if text]


def _cells_text(runs: pd.DataFrame, most: int = 4) -> str:
    cells = sorted({_cell_text(row) for row in runs[_BY].itertuples(index=False)})
    return "; ".join(cells[:most]) + (f"; and {len(cells) - most} more" if len(cells) > most else "")


def _cell_text(row: Sequence[Any]) -> str:
    task, model, split, shots, method = row
    return f"{task}, {model}, {split}, {shots_label(shots)}, {method}"
