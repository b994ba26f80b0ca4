"""Whether a report still follows from its runs: it is made again from them alone, and compared."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench import store
from bench.execute import FAILURE
from bench.report.bundle import (
    ASKED,
    COMMANDS,
    MATRIX,
    PAPER,
    README,
    REPORT,
    RUNS,
    SUMS,
    VERSIONS,
    commands_text,
    paper_text,
    read_sums,
    readme_text,
    unpacked,
)
from bench.report.differences import (
    Closely,
    count_numbers,
    differences,
    is_picture,
    printable,
    text_differences,
    why_not_compared,
)
from bench.report.manifest import (
    CODE,
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
        pictures: how many were compared by their data alone, by why.
        words: why those of the page were not compared; "" if they were.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: int = 0
    tables: int = 0
    figures: int = 0
    numbers: int = 0
    pictures: Counter[str] = field(default_factory=Counter)
    words: str = ""

    @property
    def summary(self) -> str:
        """All of it in a line."""
        shown = f"{counted(self.tables, 'table')} and {counted(self.figures, 'figure')}"
        of = f"{counted(self.numbers, 'number')} in {shown}"
        runs = counted(self.runs, "run")
        found = counted(len(self.findings), "finding")
        said = f"{found}; checked {of} of {runs}" if self.findings else f"{of} follow from {runs}"
        for why, n in self.pictures.items():
            said += f"; {counted(n, 'picture')} {'was' if n == 1 else 'were'} not compared ({why})"
        if self.words:
            said += f"; the page was compared by its numbers alone ({self.words})"
        return printable(said)

    def printable(self) -> Verdict:
        """The same, in texts that steer no terminal, whatever files hold."""
        findings = [Finding(printable(one.file), printable(one.what)) for one in self.findings]
        return replace(self, findings=findings, notes=[*map(printable, self.notes)])


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
        BadInput: there is none, or its runs are not to be found; or a bundle is to be checked by other runs
            than its own.
    """
    try:
        return _verdict(path, results).printable()
    except BadInput as error:  # which may quote a file
        raise BadInput(printable(str(error))) from error


def _verdict(path: Path, results: Path | None) -> Verdict:
    if not path.exists():
        raise BadInput(f"--check: there is no {str(path)!r}; give a report's folder or a bundle")
    is_bundle = path.is_file() or (path / SUMS).is_file()
    if is_bundle and results is not None:
        raise BadInput(f"--check: {str(path)!r} is a bundle, checked by the runs inside; leave out {results}")
    if path.is_file():
        return check_bundle(path)
    return _check_unpacked(path) if is_bundle else check_folder(path, results)


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
    place = _Place(out, results, str(out), os.path.normpath(results))
    verdict = _check(place, manifest)
    runs = [path for run in manifest.runs if (path := results / run.path).is_file()]
    # what another process has left beside a run is no matter of the report
    beside = [found for found in _damage(place, runs) if not found.what.startswith("is left of a process")]
    verdict.findings = _once([*verdict.findings, *beside])
    return verdict


def check_bundle(bundle: Path) -> Verdict:
    """Check a bundle by what is in it alone.

    Raises:
        BadInput: it is no bundle, or holds what could do harm.
    """
    with ExitStack() as stack:
        with _status("unpacking"):
            folder = stack.enter_context(unpacked(bundle))
        return _check_unpacked(folder)


def _check_unpacked(folder: Path) -> Verdict:
    sums = read_sums(folder)
    changed = [Finding(name, what) for name, what in _unlike(folder, sums).items()]
    there = _names_in(folder)
    added = [Finding(name, "is not of this bundle") for name in there if name not in {*sums, SUMS}]
    manifest = read_manifest(folder / REPORT)
    place = _Place(folder / REPORT, folder / RUNS, REPORT, RUNS)
    verdict = _check(place, manifest)
    stored = _stored(folder / RUNS, manifest)
    own = _own_names(manifest, stored)
    strange = [
        Finding(name, "belongs neither to the report nor to a run") for name in sums if name not in own
    ]
    of_runs = [*_damage(place, sorted(store.run_files(place.runs))), *verdict.findings]
    told = [
        *_other_settings(folder, manifest),
        *_other_matrix(folder, manifest, stored, verdict.notes),
        *_other_words(folder, manifest, stored, verdict.notes),
    ]
    verdict.findings = _once([*changed, *added, *strange, *of_runs, *told])
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


@contextmanager
def _status(doing: str) -> Iterator[None]:
    """Say on a terminal what takes long; what reads runs and draws says so itself."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


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
    behind = {(shown.csv, shown.sha256) for shown in (*manifest.figures, *manifest.tables)}
    numbers = {
        (name, sha256)
        for name, sha256 in sums.items()
        if name.startswith((f"{FIGURES}/", f"{TABLES}/")) and name.endswith(".csv")
    }
    for name in sorted({name for name, _ in behind ^ numbers}):
        yield Finding(f"{place.report_name}/{MANIFEST}", f"contradicts itself about {name}")
    # an author may keep other things beside a report, but not among its figures and tables
    for name in (f"{kind}/{name}" for kind in (FIGURES, TABLES) for name in _names_in(place.report / kind)):
        if name not in sums:
            yield Finding(f"{place.report_name}/{name}", "is not of this report")


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _stored(runs: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Read the runs of a bundle, by path; of those that cannot be read is told elsewhere."""
    stored = {}
    for run in manifest.runs:
        try:
            stored[run.path] = store.load_run(runs / run.path)
        except BadInput:
            continue
    return stored


def _own_names(manifest: Manifest, stored: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Name the files that a bundle of this report has."""
    told = {README, COMMANDS, VERSIONS, MATRIX, PAPER, SUMS, f"{REPORT}/{MANIFEST}"}
    of_report = {f"{REPORT}/{file.path}" for file in manifest.files}
    of_runs = {f"{RUNS}/{run.path}" for run in manifest.runs}
    beside = {
        f"{RUNS}/{Path(path).with_name(name).as_posix()}"
        for path, run in stored.items()
        for name in store.side_files(run)
        if name.endswith(".csv")
    }
    failed = {f"{RUNS}/{failure.folder}/{FAILURE}" for failure in manifest.failures}
    predicted = {f"{RUNS}/{store.PREDICTIONS}"} if manifest.predictions is not None else set()
    return told | of_report | of_runs | beside | failed | predicted


def _damage(place: _Place, runs: Iterable[Path]) -> Iterator[Finding]:
    """Check each run by itself, as `flora-bench verify` does."""
    from bench.cli import verify

    def checked(path: Path) -> list[verify.Finding]:
        try:
            return list(verify.check(path, place.runs))
        except Exception as error:  # whatever somebody has put into it
            return [verify.Finding(path, f"cannot be a result of ours ({_stumbled(error)})")]

    with _status("checking the files of each run"):
        for found in (found for path in runs for found in checked(path)):
            # an invariant that did not hold is no damage: the report marks such runs
            if found.wrong and not found.what.startswith("an invariant does not hold"):
                what = found.what.replace(f"{place.runs}/", f"{place.runs_name}/")
                name = found.path.relative_to(place.runs).as_posix()
                yield Finding(f"{place.runs_name}/{name}", what)


def _other_settings(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    from bench.report.paper import Paper

    try:
        if Paper.read(folder / PAPER) != Paper.of(manifest.paper):
            yield Finding(PAPER, f"is not how the report is set, which {REPORT}/{MANIFEST} says")
        else:
            yield from _unlike_text(folder, PAPER, lambda: paper_text(manifest))
    except BadInput as error:
        yield Finding(PAPER, str(error).replace(f"{folder}/", ""))


def _other_words(
    folder: Path, manifest: Manifest, stored: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> Iterator[Finding]:
    """Write again what a bundle tells its reader, and compare."""
    from bench.report.repeat import is_command, versions_text

    environments = {path: run.get("environment") or {} for path, run in stored.items()}
    yield from _unlike_text(folder, README, lambda: readme_text(manifest))
    yield from _unlike_text(folder, VERSIONS, lambda: versions_text(environments))
    found = _text_of(folder / COMMANDS)
    # how many runs this suite repeats is not how many that of then did
    which = re.search(r"^([\d,]{1,9}) of [\d,]+ runs; ", found, re.MULTILINE)
    again = int(which[1].replace(",", "") or 0) if which else len(manifest.runs)
    first = found.rpartition(ASKED)[2].splitlines() if ASKED in found else []
    commands = [line[4:] for line in first if line.startswith("    ") and is_command(line[4:])]
    yield from _unlike_text(folder, COMMANDS, lambda: commands_text(manifest, commands, again))
    if commands:
        notes.append(
            f"{COMMANDS}: what the runs were first asked for with stands in no run; it was not compared"
        )


def _unlike_text(folder: Path, name: str, write: Callable[[], str]) -> Iterator[Finding]:
    try:
        what = _first(text_differences(_text_of(folder / name), write()))
    except Exception as error:  # whatever somebody has put into a run
        what = f"cannot be made again: {_stumbled(error)}"
    if what:
        yield Finding(name, what)


def _first(found: Iterator[str]) -> str:
    """Say the first of what was found, and how much more there is."""
    first, *more = [*found] or [""]
    return first + (f" (and {len(more):,} more)" if more else "")


def _text_of(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else ""


def _other_matrix(
    folder: Path, manifest: Manifest, stored: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> Iterator[Finding]:
    """Compare what the matrix of a bundle asks for with its runs, as far as this suite would repeat them."""
    from bench.matrix import Matrix
    from bench.report.repeat import matrix_text

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
    asked = [run["config"] for run in stored.values() if run["config_hash"] in cells]
    if asked and not (others or missing):  # the same runs, but it may say something besides
        yield from _unlike_text(folder, MATRIX, lambda: matrix_text(asked))


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
    from bench.report.figures import check_formats

    then = {"flora-bench": manifest.suite, **manifest.versions}
    here = {"flora-bench": version("flora-bench"), **drawing_versions()}
    others = {name: number for name, number in then.items() if here.get(name) != number}
    others |= {name: "an unknown version" for name in here if name not in then}
    # as many as there are; a forger may have named more
    others = dict(list(others.items())[: len(here)])
    if others:
        told = (f"{name} {number} (here {here.get(name, 'none')})" for name, number in others.items())
        verdict.notes.append(f"was made with {', '.join(told)}: pictures are compared by their data alone")
    made_with = ", ".join(f"{name} {number}" for name, number in others.items())
    words = others.keys().isdisjoint({"flora-bench", CODE, "jinja2"})
    if not words:
        verdict.words = f"made with {made_with}"
    closely = Closely(made_with, words)
    try:
        check_formats(paper.formats)
    except BadInput:
        verdict.notes.append(
            "pgf cannot be drawn here: such pictures are compared by their data alone, documents are not"
        )
        formats = tuple(name for name in paper.formats if name != "pgf") or ("svg",)
        undrawn = frozenset({*formats} ^ {*paper.formats})
        return replace(closely, undrawn=undrawn), paper.model_copy(update={"formats": formats})
    return closely, paper


def _compare(place: _Place, manifest: Manifest, made: Path, closely: Closely, verdict: Verdict) -> None:
    def find(name: str, what: str) -> None:
        verdict.findings.append(Finding(f"{place.report_name}/{name}", what))

    then = {file.path for file in manifest.files}
    now = {*_names_in(made)} - {MANIFEST}
    for name in filter(closely.drawn_by_both, sorted(now - then)):
        find(name, "is missing: the runs give it")
    for name in filter(closely.drawn_by_both, sorted(then - now)):
        find(name, "follows from nothing in the runs")
    with _status("comparing"):
        for name in sorted(name for name in then if (place.report / name).is_file()):
            if what := _first(differences(place.report, made, name, closely)):
                find(name, what)
            elif is_picture(name) and (why := why_not_compared(place.report, made, name, closely)):
                verdict.pictures[why] += 1
    behind = [made / shown.csv for shown in (*manifest.figures, *manifest.tables)]
    verdict.numbers = sum(count_numbers(file.read_text(encoding="utf-8")) for file in behind if file.exists())
