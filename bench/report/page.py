"""The report as a page: one HTML file that needs nothing else, the same in Markdown, figures and tables."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.comparisons import best_round_table, paired_table, to_target_table
from bench.report.names import AS_DEPLOYED, label_rounds, label_runs, shots_label, without_deployed_twins
from bench.report.overview import notes, overview, run_table
from bench.report.styles import SANS, Style, styles_of
from bench.report.tables import (
    ROW,
    Table,
    accuracy_table,
    beyond_table,
    cells_of,
    cost_table,
    deployed_table,
    environment,
    further_cost_table,
)
from bench.report.text import n_text, slug
from bench.report.times import which_time_in_short
from bench.report.trust import doubts_table, memory_table, predicted_table
from bench.store import load_predictions, load_results, load_rounds
from flora.errors import BadInput

TITLE = "Federated fine-tuning of vision-language models"
_LEVELS_DRAWN = 2


@dataclass(frozen=True)
class Drawn:
    """A figure of the page: stem of its files, what it shows, and for those who cannot see it, in words."""

    name: str
    caption: str
    alt: str
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether it takes the width of the text, not of a column."""
        return bool(self.figure.get_figwidth() > SANS.column)


@dataclass
class Section:
    """What the report says of one task and model."""

    task: str
    model: str
    accuracy: Table
    cost: Table
    deployed: list[Table]
    other_costs: list[Table]
    beyond: list[Table]
    best: list[Table]
    paired: list[Table]
    targets: list[Table]
    other_best: list[Table]
    work: list[Table]
    tensors: list[Table]
    predicted: list[Table]
    accuracy_figures: list[Drawn] = field(default_factory=list)
    cost_figures: list[Drawn] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """In the order of the page."""
        accuracy = [self.accuracy, *self.best, *self.paired, *self.beyond, *self.other_best]
        return [*accuracy, self.cost, *self.cost_details, *self.other_costs]

    @property
    def cost_details(self) -> list[Table]:
        """What stands below the costs."""
        return [*self.work, *self.targets, *self.tensors, *self.predicted, *self.deployed]

    @property
    def drawn(self) -> list[Drawn]:
        """In the order of the page."""
        return [*self.accuracy_figures, *self.cost_figures]


def build_report(results_dir: Path, out: Path, target: float | None = None) -> list[Path]:
    """Write the report of all complete runs below a folder.

    Args:
        results_dir: as ``bench.store`` lays it out.
        out: gets ``index.html``, ``report.md``, ``figures/`` (.png, .pdf) and ``tables/`` (.md, .csv).
            All are made in a folder of their own first and then moved, so that an interrupted report leaves
            an older one whole; other files in it stay.
        target: the accuracy that time, bytes and energy are counted up to; None for one halfway between
            zero-shot and the best method.

    Returns:
        The files written, ``index.html`` first.

    Raises:
        BadInput: there is no complete run, or a stored one is damaged.
    """
    predictions = load_predictions(results_dir)
    return write_report(
        load_results(results_dir), load_rounds(results_dir), out, results_dir, target, predictions
    )


def write_report(
    results: pd.DataFrame,
    rounds: pd.DataFrame,
    out: Path,
    results_dir: Path | None = None,
    target: float | None = None,
    predictions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Path]:
    """Write the report of runs already loaded by ``bench.store``; otherwise as ``build_report``."""
    complete = results["status"] == "complete"
    if not complete.any():
        raise BadInput(
            f"results: none of {len(results)} runs is complete; run them again with `flora-bench run`"
        )
    runs = label_runs(results[complete])
    sections = _sections(runs, label_rounds(rounds, runs), target, predictions)
    listed, doubts = run_table(results, results_dir), doubts_table(runs)
    of_all = _present([doubts, listed])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as folder:
        made = Path(folder)
        _write_parts(sections, of_all, made)
        context: dict[str, Any] = {
            "title": TITLE,
            "overview": overview(runs, results[~complete]),
            "sections": sections,
            "notes": notes(runs),
            "doubts": doubts,
            "runs": listed,
            "number": _numbering(sections, of_all),
        }
        _write(made / "report.md", environment().get_template("report.md.j2").render(context))
        context["image"] = lambda name: _image(made / "figures" / f"{name}.png")
        # The table's own template escapes what is in it.
        context["html"] = lambda table, label="": Markup(table.to_html(label))
        _write(made / "index.html", environment().get_template("page.html.j2").render(context))
        return _move(made, out)


def _present(tables: Iterable[Table | None]) -> list[Table]:
    return [table for table in tables if table is not None]


def _sections(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    target: float | None,
    predictions: Mapping[str, Mapping[str, Any]],
) -> list[Section]:
    styles = styles_of(runs)
    made = []
    for (task, model), part in runs.groupby(["task", "model"], sort=True):
        its_rounds = rounds[rounds["config_hash"].isin(part["config_hash"])]
        cells = cells_of(part)
        costs = [cost_table(cell) for cell in cells]
        beyond = _present(beyond_table(cell) for cell in cells)
        deployed = _present(deployed_table(cell) for cell in cells)
        best = _present(best_round_table(cell) for cell in cells)
        targets = _present(to_target_table(cell, its_rounds, target) for cell in cells)
        work = _present(further_cost_table(cell) for cell in cells)
        tensors = _present(memory_table(cell) for cell in cells)
        predicted = _present(predicted_table(cell, predictions) for cell in cells)
        section = Section(
            str(task),
            str(model),
            accuracy=accuracy_table(part),
            best=best[:1],
            paired=_present([paired_table(part)]),
            beyond=beyond,
            other_best=best[1:],
            cost=costs[0],
            targets=targets[:1],
            work=work[:1],
            tensors=tensors[:1],
            predicted=predicted[:1],
            deployed=deployed,
            other_costs=[*costs[1:], *work[1:], *targets[1:], *tensors[1:], *predicted[1:]],
        )
        _draw(section, part, its_rounds, styles)
        made.append(section)
    return made


def _draw(section: Section, runs: pd.DataFrame, rounds: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Draw what the runs have data for; the section says what is left out, and why."""
    levels = sorted(runs["shots"].drop_duplicates(), key=lambda s: (not pd.isna(s), -1 if pd.isna(s) else -s))
    some = levels if len(levels) <= _LEVELS_DRAWN else [levels[0], levels[-1]]
    omitted = "" if len(levels) <= _LEVELS_DRAWN else " Other numbers of shots: see the curves over shots."
    main = runs[_at(runs, levels[:1])]
    curves = without_deployed_twins(runs)  # their curves would lie on one another
    twins = f" Runs {AS_DEPLOYED}: see the tables." if len(curves) < len(runs) else ""
    rounds = rounds[_at(rounds, some) & rounds["config_hash"].isin(curves["config_hash"])]
    trained = curves[curves["method"] != "zero_shot"]
    zero = " Dashed: zero-shot." if "zero_shot_accuracy" in runs else ""
    band = _interval_text(trained, "band") + zero + omitted + twins
    bar = _interval_text(main, "whisker") + (
        f" Runs with {shots_label(levels[0])}." if len(levels) > 1 else ""
    )
    plans: list[tuple[str, Callable[..., Figure], pd.DataFrame, str]] = [
        ("rounds", figures.accuracy_over_rounds, rounds, f"Test accuracy by round. {band}"),
        ("bytes", figures.accuracy_over_bytes, rounds, f"Test accuracy by bytes sent. {band}"),
        (
            "shots",
            figures.few_shot_curves,
            curves,
            f"Test accuracy after the last round by shots. {_interval_text(trained, 'band')}{zero}{twins}",
        ),
        (
            "time",
            figures.time_bars,
            main,
            f"Training time{which_time_in_short(main)} and, behind the +, all set-up before it, features "
            f"counted as computed. {bar}",
        ),
        ("memory", figures.memory_bars, main, f"Peak memory. {bar}"),
    ]
    for kind, draw, frame, caption in plans:
        try:
            figure = draw(frame, styles=styles)
        except figures.NothingToDraw as missing:
            section.skipped.append(f"{caption.partition('.')[0]}: {missing}.")
            continue
        name = f"{kind}-{slug(f'{section.task} {section.model}')}"
        place = section.cost_figures if kind in ("time", "memory") else section.accuracy_figures
        place.append(Drawn(name, caption, _alt(caption, frame), figure))


def _at(frame: pd.DataFrame, levels: Sequence[Any]) -> pd.Series:
    missing = frame["shots"].isna() & any(pd.isna(level) for level in levels)
    return missing | frame["shots"].isin([level for level in levels if not pd.isna(level)])


def _interval_text(runs: pd.DataFrame, what: str) -> str:
    n = runs.groupby(ROW, dropna=False, observed=True).size()
    if max(n, default=1) == 1:
        return "One seed, so no interval."
    if max(n) < figures.FEWEST_FOR_INTERVAL:
        return f"{n_text(n).capitalize()}; for their wide intervals see the tables."
    cut = ", cut at the frame" if what == "band" else ""
    return f"{n_text(n).capitalize()}; {what}: 95 % t-interval over seeds{cut}."


def _alt(caption: str, frame: pd.DataFrame) -> str:
    methods = ", ".join(map(str, frame["method_label"].cat.remove_unused_categories().cat.categories))
    splits = ", ".join(map(str, frame["split_label"].cat.remove_unused_categories().cat.categories))
    return f"{caption.partition('.')[0]} for {methods}; splits: {splits}. The final values are in the tables."


def _numbering(sections: Sequence[Section], of_all: Sequence[Table]) -> dict[str, str]:
    """Tables and figures are counted through the whole page, in its order."""
    tables = [table.name for section in sections for table in section.tables]
    drawn = [figure.name for section in sections for figure in section.drawn]
    numbered = {
        name: f"Table {index}" for index, name in enumerate([*tables, *(table.name for table in of_all)], 1)
    }
    return numbered | {name: f"Figure {index}" for index, name in enumerate(drawn, 1)}


def _write_parts(sections: Sequence[Section], of_all: Sequence[Table], folder: Path) -> None:
    for name in ("figures", "tables"):
        (folder / name).mkdir()
    for section in sections:
        for drawn in section.drawn:
            figures.save(drawn.figure, folder / "figures" / drawn.name)
    for table in [*(table for section in sections for table in section.tables), *of_all]:
        _write(folder / "tables" / f"{table.name}.md", table.to_markdown())
        _write(folder / "tables" / f"{table.name}.csv", table.data.to_csv(index=False, lineterminator="\n"))


def _image(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _move(made: Path, out: Path) -> list[Path]:
    """Put the files in their places, those that refer to others last."""
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    files.sort(key=lambda path: len(path.parts) == 1)
    for path in files:
        (out / path).parent.mkdir(exist_ok=True)
        os.replace(made / path, out / path)
    return sorted((out / path for path in files), key=lambda path: path != out / "index.html")
