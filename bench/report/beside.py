"""Two folders of results side by side: yesterday's and today's, machine A's and B's; nothing is judged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.report import figures
from bench.report.mixture import mixture
from bench.report.names import label_runs, shots_label
from bench.report.paper import Paper
from bench.report.statistics import mean_interval, t_factor
from bench.report.styles import Style, styles_of
from bench.report.tables import Cell, Quantity, Table, environment, percent, slug_of
from bench.report.text import ABSENT, bytes_text, digits
from bench.store import load_results
from flora.errors import BadInput

_BY = ["task", "model", "split_label", "shots", "method_label"]
# Where the same is run on another machine or with other code, this is what may differ.
_OF_THE_MACHINE = ["device"]

COMPARED = (
    Quantity("accuracy", "Accuracy (%)", lambda value: f"{100 * value:.1f}", compared=False),
    Quantity("train_seconds", "Train (s)", digits),
    Quantity("round_seconds", "Round (s)", digits),
    Quantity("bytes", "Sent, up + down", bytes_text),
    Quantity("peak_memory_bytes", "Peak memory", bytes_text),
    Quantity("peak_gpu_memory_bytes", "Peak GPU memory", bytes_text),
    Quantity("energy_joules", "Energy (J)", digits),
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
        notes: what either consists of that is mixed.
    """

    names: tuple[str, str]
    styles: Mapping[str, Style]
    frame: pd.DataFrame
    alone: dict[str, list[str]]
    notes: list[str]

    @property
    def tables(self) -> list[Table]:
        """A table a task and model."""
        groups = self.frame.groupby(["task", "model"], sort=True)
        return [_table(part, self.names) for _, part in groups]


def side_by_side(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Set the runs of two folders side by side.

    Runs belong together if they agree in all that a configuration says but the device and the seed. Means are
    of each side's own seeds; differences and ratios of the seeds that both ran, where there are any.

    Args:
        first: one row a complete run.
        second: likewise.

    Returns:
        One row a task, model, split, shots, method and quantity of ``COMPARED``: ``n_first``, ``mean_first``,
        ``half_width_first`` and the same of the second; ``n`` seeds in common; ``difference`` (second minus
        first) and ``ratio`` (second / first, of the means over these seeds), ``difference_half_width`` of
        the paired 95 % t-interval; ``same``: every seed in common gave the very same number.
    """
    runs = _both(first, second)
    rows = []
    for key, cell in runs.groupby(_BY, dropna=False, observed=True, sort=True):
        sides = [cell[cell["side"] == side].drop_duplicates("seed").set_index("seed") for side in (0, 1)]
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
    sides = [_complete(folder, paper) for folder in (first, second)]
    frame = side_by_side(*sides)
    runs = _both(*sides)
    if frame.empty:
        raise BadInput(
            f"--beside: {str(first)!r} and {str(second)!r} have no configuration in common; the first has "
            f"{_cells_text(runs[runs['side'] == 0])}, the second {_cells_text(runs[runs['side'] == 1])}"
        )
    ran = {
        side: set(map(_cell_text, part[_BY].itertuples(index=False))) for side, part in runs.groupby("side")
    }
    alone = {names[0]: sorted(ran[0] - ran[1]), names[1]: sorted(ran[1] - ran[0])}
    notes = [f"{name}: {text}" for name, side in zip(names, sides, strict=True) for text in _machine(side)]
    return Beside(names, styles_of(runs), frame, alone, notes)


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
            (made / f"{table.name}.tex").write_text(table.to_latex(), encoding="utf-8", newline="\n")
        files = sorted(made.iterdir(), key=lambda path: path.suffix == ".html")
        return [path.rename(out / path.name) for path in files]


def _complete(folder: Path, paper: Paper) -> pd.DataFrame:
    runs = paper.choose(load_results(folder))
    complete = runs[runs["status"] == "complete"]
    if complete.empty:
        raise BadInput(f"results: none of {len(runs)} runs of {str(folder)!r} is complete")
    return complete.assign(bytes=complete["bytes_up"] + complete["bytes_down"])


def _both(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """All runs, labelled together, so that one label means one thing."""
    sides = [runs.assign(side=index) for index, runs in enumerate((first, second))]
    runs = pd.concat(sides, ignore_index=True).drop(columns=_OF_THE_MACHINE, errors="ignore")
    if "bytes" not in runs:
        runs["bytes"] = runs["bytes_up"] + runs["bytes_down"]
    return label_runs(runs)


def _quantities(first: pd.DataFrame, second: pd.DataFrame) -> Iterator[dict[str, Any]]:
    common = first.index.intersection(second.index)
    for quantity in COMPARED:
        name = quantity.column
        if name not in first or first[name].isna().all() or second[name].isna().all():
            continue
        one, other = (side.loc[common, name].astype(float) for side in (first, second))
        differences = (other - one).dropna()
        whole = first[name].mean() if differences.empty else one[differences.index].mean()
        changed = second[name].mean() if differences.empty else other[differences.index].mean()
        yield {
            "quantity": name,
            **_side(first, name, "first"),
            **_side(second, name, "second"),
            "n": len(differences),
            "difference": changed - whole,
            "ratio": changed / whole if whole else float("nan"),
            "difference_half_width": _half_width(differences),
            "same": bool(len(differences)) and bool((differences == 0).all()),
        }


def _side(runs: pd.DataFrame, name: str, which: str) -> dict[str, float]:
    found = mean_interval(runs.assign(all=0), ["all"], name).iloc[0]
    return {f"{part}_{which}": found[part] for part in ("n", "mean", "half_width")}


def _half_width(values: pd.Series) -> float:
    return (
        float(t_factor(len(values)) * values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    )


def _table(part: pd.DataFrame, names: tuple[str, str]) -> Table:
    shown = [q for q in COMPARED if q.column in set(part["quantity"])]
    entries: dict[str, dict[str, list[Cell]]] = {}
    for row in part.to_dict("records"):
        quantity = next(q for q in shown if q.column == row["quantity"])
        name = f"{row['method_label']}, {row['split_label']}, {shots_label(row['shots'])}"
        entries.setdefault(name, {})[quantity.column] = _cells(row, quantity)
    absent = [Cell(ABSENT)] * 3
    return Table(
        name=f"beside-{slug_of(part)}",
        caption=f"{names[0]} beside {names[1]} ({part['task'].iloc[0]}, {part['model'].iloc[0]}): means over "
        "each side's seeds; change over the seeds that both ran: of accuracy in points (± half width of the "
        "paired 95 % t-interval), of the rest as the second divided by the first; =: the very same number "
        "with every seed.",
        groups=[(quantity.heading, 3) for quantity in shown],
        columns=["Method, split, shots", *([*names, "Change"] * len(shown))],
        rows=[
            (name, [cell for q in shown for cell in found.get(q.column, absent)])
            for name, found in entries.items()
        ],
        data=part,
    )


def _cells(row: dict[Any, Any], quantity: Quantity) -> list[Cell]:
    means = [row["mean_first"], row["mean_second"]]
    if quantity.compared:
        change = ABSENT if pd.isna(row["ratio"]) else f"{digits(row['ratio'])}×"
    else:
        change = f"{100 * row['difference']:+.1f}".replace("-", "\N{MINUS SIGN}")
        half = row["difference_half_width"]
        change += "" if pd.isna(half) else f" ± {100 * half:.1f}"
    shown = [
        percent(value, float("nan")) if not quantity.compared else quantity.text(value) for value in means
    ]
    return [*(Cell(text) for text in shown), Cell("=" if row["same"] else change)]


def _machine(runs: pd.DataFrame) -> list[str]:
    """Say what a side was made on and with."""
    columns = ("environment.cpu", "environment.gpu", "environment.packages.torch", "environment.git_commit")
    made = [", ".join(sorted(map(str, runs[name].dropna().unique()))) for name in columns if name in runs]
    return ["; ".join(filter(None, made)), *mixture(runs)]


def _cells_text(runs: pd.DataFrame, most: int = 4) -> str:
    cells = sorted({_cell_text(row) for row in runs[_BY].itertuples(index=False)})
    return "; ".join(cells[:most]) + (f"; and {len(cells) - most} more" if len(cells) > most else "")


def _cell_text(row: Sequence[Any]) -> str:
    task, model, split, shots, method = row
    return f"{task}, {model}, {split}, {shots_label(shots)}, {method}"
