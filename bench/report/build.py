"""The report: its sections with their tables and figures, and the files they are written to."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from bench.measure.load import usable_cores
from bench.report import drawings, figures, latex, page
from bench.report.comparisons import best_round_table, paired_table, ranks_table, to_target_table
from bench.report.data import ReportData, read_data
from bench.report.drawings import Drawn, Material, draw_all
from bench.report.manifest import files_of_earlier, write_manifest
from bench.report.overview import notes, overview, run_table
from bench.report.paper import Paper
from bench.report.patience import patiently
from bench.report.styles import Style, styles_of
from bench.report.tables import (
    Table,
    accuracy_table,
    beyond_table,
    cells_of,
    cost_table,
    deployed_table,
    environment,
    few_shot_table,
    further_cost_table,
    main_accuracy_tables,
)
from bench.report.text import slug
from bench.report.trust import doubts_table, memory_table, predicted_table
from bench.selection import did_you_mean
from bench.store import load_predictions
from flora.errors import BadInput

MANY_SECTIONS = 4
"""With more tasks than this, figures that few readers look for are drawn if asked for alone."""

_UNFINISHED, _ABANDONED_SECONDS = ".report-", 3600.0

PROCESSES = 4
"""Sections drawn at once, at most: each process takes 0.25 GB."""

Predictions = Mapping[str, Mapping[str, Any]]
Keep = Callable[[Drawn, Figure], None]


@dataclass(frozen=True)
class Part:
    """A part of a section: its heading, tables and figures in reading order, and what stands folded below.

    Attributes:
        heading: such as "Accuracy".
        tables: shown.
        drawn: the figures after them.
        folded: the same tables of other splits and shots.
        skipped: figures that there is no data for, and what is missing.
    """

    heading: str
    tables: Sequence[Table] = ()
    drawn: Sequence[Drawn] = ()
    folded: Sequence[Table] = ()
    skipped: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """What the report says of one task and model, or of all tasks together."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """A report, before it is written.

    Attributes:
        title, overview, notes: what it says in words.
        sections: its parts.
        doubts: runs in which something did not hold; None if there are none.
        runs: the list of all runs.
        styles: of each method label.
        paper: how it is set.
    """

    title: str
    overview: str
    notes: Sequence[str]
    sections: Sequence[Section]
    doubts: Table | None
    runs: Table
    styles: Mapping[str, Style]
    paper: Paper = field(default_factory=Paper)

    @property
    def parts(self) -> list[Part]:
        """Those of all sections, in the order of the page."""
        return [part for section in self.sections for part in section.parts]

    @property
    def tables(self) -> list[Table]:
        """In the order of the page."""
        of_parts = [table for part in self.parts for table in (*part.tables, *part.folded)]
        return [*of_parts, *_present([self.doubts]), self.runs]

    @property
    def drawn(self) -> list[Drawn]:
        """In the order of the page."""
        return [drawn for part in self.parts for drawn in part.drawn]

    @property
    def absent(self) -> list[str]:
        """Kinds of tables and figures that the author asks for and the runs have no data for."""
        tables, drawn = {_kind(table) for table in self.tables}, {figure.kind for figure in self.drawn}
        return [
            *(kind for kind in self.paper.tables or () if kind not in tables),
            *(kind for kind in self.paper.figures or () if kind not in drawn),
        ]

    @property
    def number(self) -> dict[str, str]:
        """What tables and figures are called, by name; counted through the whole page."""
        numbered = {table.name: f"Table {index}" for index, table in enumerate(self.tables, 1)}
        return numbered | {drawn.name: f"Figure {index}" for index, drawn in enumerate(self.drawn, 1)}


def _tell_nobody(line: str) -> None:
    """Keep a line to oneself."""


def build_report(results: Path, out: Path, paper: Paper | None = None) -> list[Path]:
    """Write the report of the complete runs below a folder.

    Args:
        results: as ``bench.store`` lays it out.
        out: gets ``index.html``, ``report.md``, ``report.tex``, ``report.json``, ``figures/`` and
            ``tables/``, each with the CSV file behind it. All are made in a folder of their own first and
            then moved, so that an interrupted report leaves an older one whole. What an earlier report left
            there and this one lacks is removed; other files stay.
        paper: how it is to be set.

    Returns:
        The files written, ``index.html`` first.

    Raises:
        BadInput: there is no complete run, or a stored one is damaged, or nothing is selected.
    """
    paper = paper or Paper()
    data = read_data(results, paper.choose, paper.called)
    return write_report(data, out, paper, load_predictions(results))


def write_report(
    data: ReportData,
    out: Path,
    paper: Paper | None = None,
    predictions: Predictions = MappingProxyType({}),
    tell: Callable[[str], None] = _tell_nobody,
) -> list[Path]:
    """Write the report of data already read; otherwise as ``build_report``.

    ``tell`` gets a line for each kind of table or figure that is asked for and the runs have no data for.
    """
    paper = paper or Paper()
    figures.check_formats(paper.formats)
    out.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=out) as folder:
        made = Path(folder)
        for name in ("figures", "tables"):
            (made / name).mkdir()
        report = make_report(data, paper, predictions, Saver(made / "figures", paper))
        for kind in report.absent:
            tell(f"there is no {kind} of these runs")
        _write_tables(report, made / "tables")
        _write(made / "report.md", environment().get_template("report.md.j2").render(_context(report)))
        _write(made / "report.tex", _latex(report))
        _write(made / "index.html", page.render_page(report, data))
        if data.folder is not None:
            write_manifest(made, data, paper, data.folder, out)
        return _move(made, out)


def _keep_none(drawn: Drawn, figure: Figure) -> None:
    """Let a figure go."""


def make_report(
    data: ReportData,
    paper: Paper | None = None,
    predictions: Predictions = MappingProxyType({}),
    keep: Keep = _keep_none,
) -> Report:
    """Make the tables and figures of a report; nothing is written but by ``keep``, which gets each figure."""
    paper = paper or Paper()
    _check_kinds(paper)
    styles = styles_of(data.runs)
    doubts, listed = doubts_table(data.runs), run_table(data)
    return Report(
        title=paper.title,
        overview=overview(data, paper.selection),
        notes=notes(data.runs),
        sections=[*_overall(data, paper, styles, keep), *_sections(data, paper, styles, predictions, keep)],
        doubts=doubts,
        runs=listed,
        styles=styles,
        paper=paper,
    )


def _check_kinds(paper: Paper) -> None:
    for field_name, wanted, known in (
        ("figures", paper.figures, [*drawings.known_kinds(), "sensitivity-OPTION"]),
        ("tables", paper.tables, [*TABLES]),
    ):
        for kind in wanted or []:
            if kind not in known and not (field_name == "figures" and kind.startswith("sensitivity-")):
                meant = did_you_mean(kind, known)
                raise BadInput(f"{field_name}: there is no {kind!r}{meant}; there is {', '.join(known)}")


TABLES = (
    *("main-accuracy", "ranks", "accuracy", "few-shot", "paired", "best-round", "beyond"),
    *("cost", "work", "to-target", "tensors", "predicted", "deployed"),
)
"""Kinds of tables, by which their names begin."""


def _present(tables: Iterable[Table | None]) -> list[Table]:
    return [table for table in tables if table is not None]


def _wanted(tables: Iterable[Table | None], paper: Paper) -> list[Table]:
    """Leave out the kinds of tables that the author does not ask for."""
    there = _present(tables)
    return there if paper.tables is None else [table for table in there if _kind(table) in paper.tables]


def _kind(table: Table) -> str:
    """The kind of a table, by which its name begins; "main-accuracy" before "accuracy"."""
    kinds = sorted(TABLES, key=len, reverse=True)
    return next((kind for kind in kinds if table.name.startswith(f"{kind}-")), table.name)


def _overall(data: ReportData, paper: Paper, styles: Mapping[str, Style], keep: Keep) -> Iterator[Section]:
    """What several tasks show together, a section a model."""
    for model, runs in data.runs.groupby("model", sort=True):
        if runs["task"].nunique() < 2:
            continue
        ranks = ranks_table(runs)
        named = replace(ranks, name=f"ranks-{slug(str(model))}") if ranks else None
        tables = [*main_accuracy_tables(runs, digits=paper.written), named]
        material = Material(f"all {model}", _of(data, runs), paper, styles)
        drawn, skipped = draw_all(drawings.OVERALL, material, keep)
        accuracy = Part("Accuracy", _wanted(tables, paper), drawn, (), skipped)
        yield Section(f"All data sets with {model}", [accuracy])


def _sections(
    data: ReportData, paper: Paper, styles: Mapping[str, Style], predictions: Predictions, keep: Keep
) -> Iterator[Section]:
    """A section a task and model; of many, several at once."""
    groups = [runs for _, runs in data.runs.groupby(["task_label", "model"], sort=True, observed=True)]
    many = len(groups) > MANY_SECTIONS
    materials = [Material(_name(runs), _of(data, runs), paper, styles, sparing=many) for runs in groups]
    make = partial(_section, predictions=dict(predictions), keep=keep)
    if not many:
        yield from patiently(map(make, materials), "drawing", len(materials))
        return
    # Drawing is the interpreter's own work, so that threads would not help.
    parallel = Parallel(min(len(usable_cores()), PROCESSES), return_as="generator", max_nbytes=None)
    yield from patiently(parallel(map(delayed(make), materials)), "drawing", len(materials))


def _name(runs: pd.DataFrame) -> str:
    return f"{runs['task'].iloc[0]} {runs['model'].iloc[0]}"


def _section(material: Material, predictions: Predictions, keep: Keep) -> Section:
    plans = [*drawings.ACCURACY, *drawings.sensitivities(material)]
    parts = [
        _with_figures(_accuracy_part(material), plans, material, keep),
        _with_figures(_cost_part(material, predictions), drawings.COST, material, keep),
        _with_figures(Part("Data"), drawings.DATA, material, keep),
    ]
    runs = material.data.runs
    title = f"{runs['task_label'].iloc[0]} with {runs['model'].iloc[0]}"
    return Section(title, [part for part in parts if part.tables or part.drawn])


def _with_figures(part: Part, plans: Iterable[drawings.Plan], material: Material, keep: Keep) -> Part:
    drawn, skipped = draw_all(plans, material, keep)
    return replace(part, drawn=drawn, skipped=skipped)


def _accuracy_part(material: Material) -> Part:
    runs, paper = material.data.runs, material.paper
    cells, digits = cells_of(runs), paper.written
    best = _present(best_round_table(cell, digits=digits) for cell in cells)
    shown = [
        accuracy_table(runs, digits=digits),
        few_shot_table(runs, digits=digits),
        paired_table(runs, digits=digits),
        *best[:1],
        *(beyond_table(cell, digits=digits) for cell in cells),
    ]
    return Part("Accuracy", _wanted(shown, paper), folded=_wanted(best[1:], paper))


def _cost_part(material: Material, predictions: Predictions) -> Part:
    data, paper = material.data, material.paper
    cells, digits, reference = cells_of(data.runs), paper.written, paper.reference
    by_kind = [
        [cost_table(cell, digits=digits, reference=reference) for cell in cells],
        _present(further_cost_table(cell, digits=digits, reference=reference) for cell in cells),
        _present(to_target_table(cell, data.rounds, paper.target, digits=digits) for cell in cells),
        _present(memory_table(cell) for cell in cells),
        _present(predicted_table(cell, predictions) for cell in cells),
    ]
    deployed = _present(deployed_table(cell, digits=digits) for cell in cells)
    shown = [*(table for tables in by_kind for table in tables[:1]), *deployed]
    folded = [table for tables in by_kind for table in tables[1:]]
    return Part("Cost", _wanted(shown, paper), folded=_wanted(folded, paper))


def _of(data: ReportData, runs: pd.DataFrame) -> ReportData:
    """The part of the data that is of these runs."""
    hashes = set(runs["config_hash"])
    prints = set(runs["split.fingerprint"].dropna()) if "split.fingerprint" in runs else set()
    clients = data.clients[data.clients["config_hash"].isin(hashes)] if len(data.clients) else data.clients
    return replace(
        data,
        runs=runs,
        rounds=data.rounds[data.rounds["config_hash"].isin(hashes)],
        divisions=data.divisions[data.divisions["fingerprint"].isin(prints)],
        clients=clients,
        stored={},  # large, and of no use to a figure
    )


@dataclass(frozen=True)
class Saver:
    """Writes each figure to a folder, and the numbers it is drawn from beside it."""

    folder: Path
    paper: Paper

    def __call__(self, drawn: Drawn, figure: Figure) -> None:
        """Write one."""
        text = _csv(drawn.points)
        _write(self.folder / f"{drawn.name}.csv", text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        figures.save(figure, self.folder / drawn.name, self.paper.formats, self.paper.look, sha256)


def _csv(frame: pd.DataFrame) -> str:
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _write_tables(report: Report, folder: Path) -> None:
    number = report.number
    for table in report.tables:
        _write(folder / f"{table.name}.md", table.to_markdown())
        _write(folder / f"{table.name}.html", table.to_html(number[table.name]))
        _write(folder / f"{table.name}.tex", table.to_latex(report.paper.look, floating=report.paper.floats))
        _write(folder / f"{table.name}.csv", table.to_csv())


def _context(report: Report) -> dict[str, Any]:
    shown = [name for name in ("svg", "png") if name in report.paper.formats]
    return {
        "report": report,
        "number": report.number,
        "image": shown[0] if shown else None,
        "formats": report.paper.formats,
    }


def _latex(report: Report) -> str:
    """All tables and figures as one document; the list of runs is no table for paper."""
    how = next((name for name in ("pgf", "pdf") if name in report.paper.formats), None)
    drawn = [
        (f"figures/{drawn.name}", drawn.caption, drawn.page_wide, how)
        for drawn in report.drawn
        if how is not None
    ]
    return latex.latex_document(
        [table for table in report.tables if table is not report.runs], drawn, report.paper.look
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _remove_abandoned(out: Path) -> None:
    """Remove what a report that was killed an hour ago or more left behind."""
    for folder in out.glob(f"{_UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _move(made: Path, out: Path) -> list[Path]:
    """Put the files in their places, those that refer to others last; remove those of an earlier report."""
    outdated = files_of_earlier(out)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    files.sort(key=lambda path: len(path.parts) == 1)
    for path in files:
        (out / path).parent.mkdir(exist_ok=True)
        os.replace(made / path, out / path)
    for path in outdated - set(files):
        (out / path).unlink(missing_ok=True)
    return sorted((out / path for path in files), key=lambda path: path != out / "index.html")
