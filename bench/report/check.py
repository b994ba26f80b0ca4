"""Whether a report still follows from its runs: it is made again from them alone, and compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench import store
from bench.report.bundle import MATRIX, PAPER, REPORT, RUNS, SUMS, read_sums, unpacked
from bench.report.manifest import (
    FIGURES,
    MANIFEST,
    TABLES,
    Manifest,
    drawing_versions,
    is_as_written,
    predictions_sha256,
    read_manifest,
    run_files,
)
from bench.report.text import counted
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.report.data import ReportData
    from bench.report.differences import Closely
    from bench.report.paper import Paper

CHANGED = "was changed since the report was made"


@dataclass(frozen=True)
class Finding:
    """Something that is not as the report says: in which file, and what."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Verdict:
    """What a check found, and how much it looked at.

    Attributes:
        findings: what is wrong or out of date; none if all follows.
        notes: what could not be compared, or not as closely as usual.
        runs, tables, figures: how many the report is made of.
        numbers: compared one by one, in the CSV files behind tables and figures.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: int = 0
    tables: int = 0
    figures: int = 0
    numbers: int = 0

    @property
    def summary(self) -> str:
        """All of it in a line."""
        shown = f"{counted(self.tables, 'table')} and {counted(self.figures, 'figure')}"
        of = f"{counted(self.numbers, 'number')} in {shown}"
        if self.findings:
            return f"{counted(len(self.findings), 'finding')}; checked {of} of {counted(self.runs, 'run')}"
        return f"{of} follow from {counted(self.runs, 'run')}"


@dataclass(frozen=True)
class _Place:
    """Where a report and its runs lie, and how findings name the two folders."""

    report: Path
    runs: Path
    report_name: str
    runs_name: str


def run_check(path: Path, results: Path | None = None) -> Verdict:
    """Check a report's folder, or a bundle, packed or unpacked.

    Args:
        path: of it.
        results: the folder of the runs, for a report that lies elsewhere than when it was made.

    Raises:
        BadInput: there is none, or its runs are not to be found.
    """
    if path.is_file():
        return check_bundle(path)
    if (path / SUMS).is_file():
        return _check_unpacked(path)
    if not path.exists():
        raise BadInput(f"--check: there is no {str(path)!r}; give a report's folder or a bundle")
    return check_folder(path, results)


def check_folder(out: Path, results: Path | None = None) -> Verdict:
    """Check a report against its runs as they are today: files that were changed, runs that are new.

    Args:
        out: the report's folder.
        results: of its runs; if None, where they lay when the report was made.

    Raises:
        BadInput: it is no report, or its runs are not to be found.
    """
    manifest = read_manifest(out)
    if results is None and manifest.results is not None:
        results = out / manifest.results
    if results is None or not results.is_dir():
        where = "" if results is None else f" in {os.path.normpath(results)!r}"
        raise BadInput(f"results: the runs of this report are not found{where}; name their folder")
    return _check(_Place(out, results, str(out), os.path.normpath(results)), manifest)


def check_bundle(bundle: Path) -> Verdict:
    """Check a bundle by what is in it alone.

    Raises:
        BadInput: it is no bundle, or holds what could do harm.
    """
    with unpacked(bundle) as folder:
        return _check_unpacked(folder)


def _check_unpacked(folder: Path) -> Verdict:
    sums = read_sums(folder)
    changed = [Finding(name, what) for name, what in _unlike(folder, sums).items()]
    added = [
        Finding(name, "is not of this bundle") for name in _names_in(folder) if name not in {*sums, SUMS}
    ]
    manifest = read_manifest(folder / REPORT)
    verdict = _check(_Place(folder / REPORT, folder / RUNS, REPORT, RUNS), manifest)
    of_runs = [*_damage(folder), *verdict.findings]
    told = [*_other_settings(folder, manifest), *_other_matrix(folder, manifest, verdict.notes)]
    verdict.findings = _once([*changed, *added, *of_runs, *told])
    return verdict


def _check(place: _Place, manifest: Manifest) -> Verdict:
    verdict = Verdict(
        runs=sum(run.status == "complete" for run in manifest.runs),
        tables=len(manifest.tables),
        figures=len(manifest.figures),
    )
    verdict.findings += _changed_files(place, manifest)
    _make_again(place, manifest, verdict)
    verdict.findings = _once(verdict.findings)
    return verdict


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


# --- files ---------------------------------------------------------------------------------------------


def _unlike(folder: Path, sums: dict[str, str]) -> dict[str, str]:
    """Say of files that are not as their checksums say what is wrong with them."""
    return {
        name: CHANGED if (folder / name).is_file() else "is missing"
        for name, sha256 in sums.items()
        if not is_as_written(folder / name, sha256)
    }


def _changed_files(place: _Place, manifest: Manifest) -> Iterator[Finding]:
    sums = {file.path: file.sha256 for file in manifest.files}
    for name, what in _unlike(place.report, sums).items():
        yield Finding(f"{place.report_name}/{name}", what)
    behind = {shown.csv: shown.sha256 for shown in (*manifest.figures, *manifest.tables)}
    for name in sorted(name for name, sha256 in behind.items() if sums.get(name) != sha256):
        yield Finding(f"{place.report_name}/{MANIFEST}", f"contradicts itself about {name}")
    # an author may keep other things beside a report, but not among its figures and tables
    for name in (f"{kind}/{name}" for kind in (FIGURES, TABLES) for name in _names_in(place.report / kind)):
        if name not in sums:
            yield Finding(f"{place.report_name}/{name}", "is not of this report")


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _damage(folder: Path) -> Iterator[Finding]:
    """Check each run of a bundle by itself, as `flora-bench verify` does."""
    from bench.cli import verify

    def checked(path: Path) -> list[verify.Finding]:
        try:
            return list(verify.check(path, folder / RUNS))
        except Exception as error:  # whatever somebody has put into it
            return [verify.Finding(path, f"cannot be a result of ours ({_stumbled(error)})")]

    for path in sorted(store.run_files(folder / RUNS)):
        for found in checked(path):
            # an invariant that did not hold is no damage: the report marks such runs
            if found.wrong and not found.what.startswith("an invariant does not hold"):
                what = found.what.replace(f"{folder}/", "")
                yield Finding(found.path.relative_to(folder).as_posix(), what)


def _other_settings(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    from bench.report.paper import Paper

    try:
        if Paper.read(folder / PAPER) != Paper.of(manifest.paper):
            yield Finding(PAPER, f"is not how the report is set, which {REPORT}/{MANIFEST} says")
    except BadInput as error:
        yield Finding(PAPER, str(error).replace(f"{folder}/", ""))


def _other_matrix(folder: Path, manifest: Manifest, notes: list[str]) -> Iterator[Finding]:
    """Compare what the matrix of a bundle asks for with its runs, as far as this suite would repeat them."""
    from bench.matrix import Matrix

    cells: set[str] = set()
    if (folder / MATRIX).exists():
        try:
            matrix = Matrix.read(str(folder / MATRIX))
            if (count := matrix.count()) > len(manifest.runs):  # it may be more than any machine can expand
                yield Finding(
                    MATRIX, f"asks for {count:,} runs, the report is made of {len(manifest.runs):,}"
                )
                return
            cells = {cell.hash for cell in matrix.cells()}
        except BadInput as error:
            notes.append(f"{MATRIX} cannot be read on this machine: {error}".replace(f"{folder}/", ""))
            return
    if others := cells - {run.config_hash for run in manifest.runs}:
        yield Finding(MATRIX, f"asks for {counted(len(others), 'run')} that the report is not made of")
    left_out = [run for run in manifest.runs if run.config_hash not in cells]
    if missing := sum(_repeatable(folder / RUNS / run.path) for run in left_out):
        yield Finding(MATRIX, f"does not ask for {counted(missing, 'run')} of the report")


def _repeatable(path: Path) -> bool:
    from bench.report.repeat import repeatable

    try:
        run = store.load_run(path)
    except BadInput:  # told of already
        return False
    return repeatable(run["config"], run["config_hash"])


# --- runs ----------------------------------------------------------------------------------------------


def _changed_runs(place: _Place, manifest: Manifest, data: ReportData) -> Iterator[Finding]:
    """Say which runs are not those that the report was made of."""
    then, now = ({run.path: run for run in runs} for runs in (manifest.runs, run_files(data, place.runs)))
    for path in sorted({*then, *now}):
        name = f"{place.runs_name}/{path}"
        if path not in now:
            there = (place.runs / path).exists()
            yield Finding(name, "cannot be used, or is not chosen any more" if there else "is missing")
        elif path not in then:
            yield Finding(name, "is new: the report was made without it")
        elif then[path].sha256 != now[path].sha256:
            yield Finding(name, CHANGED)
    reasons = [
        {failed.folder: failed.reason for failed in failures}
        for failures in (manifest.failures, data.failures)
    ]
    for folder in sorted(folder for folder in {**reasons[0], **reasons[1]}):
        if reasons[0].get(folder) != reasons[1].get(folder):
            yield Finding(f"{place.runs_name}/{folder}", "has not failed as the report says")
    if manifest.predictions != predictions_sha256(place.runs):
        yield Finding(f"{place.runs_name}/{store.PREDICTIONS}", CHANGED)


# --- made again ----------------------------------------------------------------------------------------


def _make_again(place: _Place, manifest: Manifest, verdict: Verdict) -> None:
    """Make the report of today's runs with its own settings, and compare each file."""
    from bench.report.build import write_report
    from bench.report.data import read_data
    from bench.report.paper import Paper

    def damaged(error: BadInput) -> None:
        file, _, what = str(error).removeprefix(f"{place.runs}/").partition(": ")
        verdict.findings.append(Finding(f"{place.runs_name}/{file}", what))

    try:
        paper = Paper.of(manifest.paper, f"{MANIFEST}: paper")
        data = read_data(place.runs, paper.choose, paper.called, damaged)
        verdict.findings += _changed_runs(place, manifest, data)
        closely, drawable = _closely(manifest, paper, verdict)
        with TemporaryDirectory(prefix="flora-bench-") as folder:
            made = Path(folder)
            write_report(data, made, drawable, store.load_predictions(place.runs))
            _compare(place, manifest, made, closely, verdict)
    except OSError as error:
        raise BadInput(f"--check: {place.report_name} cannot be made again here ({error})") from error
    except Exception as error:  # whatever somebody has put into a run
        verdict.findings.append(Finding(place.report_name, f"cannot be made again: {_stumbled(error)}"))


def _stumbled(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"


def _closely(manifest: Manifest, paper: Paper, verdict: Verdict) -> tuple[Closely, Paper]:
    """Say how closely this machine can compare, and how it can set the report to do so."""
    from bench.report.differences import Closely
    from bench.report.figures import check_formats

    then = {"flora-bench": manifest.suite, **manifest.versions}
    here = {"flora-bench": version("flora-bench"), **drawing_versions()}
    others = [
        f"{name} {number} (here {here.get(name, 'none')})"
        for name, number in then.items()
        if here.get(name) != number
    ]
    if others:
        verdict.notes.append(
            f"was made with {', '.join(others)}: pictures are compared by their data alone, the page is not"
        )
    try:
        check_formats(paper.formats)
    except BadInput:
        verdict.notes.append(
            "pgf cannot be drawn here: such pictures are compared by their data alone, documents are not"
        )
        formats = tuple(name for name in paper.formats if name != "pgf") or ("svg",)
        undrawn = frozenset({*formats} ^ {*paper.formats})
        return Closely(not others, undrawn), paper.model_copy(update={"formats": formats})
    return Closely(not others), paper


def _compare(place: _Place, manifest: Manifest, made: Path, closely: Closely, verdict: Verdict) -> None:
    from bench.report.differences import count_numbers, differences

    def find(name: str, what: str) -> None:
        verdict.findings.append(Finding(f"{place.report_name}/{name}", what))

    then = {file.path for file in manifest.files}
    now = {*_names_in(made)} - {MANIFEST}
    for name in filter(closely.drawn_by_both, sorted(now - then)):
        find(name, "is missing: the runs give it")
    for name in filter(closely.drawn_by_both, sorted(then - now)):
        find(name, "follows from nothing in the runs")
    for name in sorted(name for name in then if (place.report / name).is_file()):
        first, *more = [*differences(place.report, made, name, closely)] or [""]
        if first:
            find(name, first + (f" (and {len(more):,} more)" if more else ""))
    behind = [made / shown.csv for shown in (*manifest.figures, *manifest.tables)]
    verdict.numbers = sum(count_numbers(file.read_text(encoding="utf-8")) for file in behind if file.exists())
