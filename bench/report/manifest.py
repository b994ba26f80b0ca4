"""`report.json`: what a report was made of and what it consists of, each file by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bench import store
from bench.code_version import DIGITS, code_version, imported
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

    from bench.report.data import ReportData
    from bench.report.paper import Paper

MANIFEST = "report.json"
"""The file that makes a folder a report."""

SCHEMA = 1
"""Version of `report.json`; it rises whenever a reader of the last version would misread or miss a field."""

FIGURES, TABLES = "figures", "tables"
"""Folders of a report. Each figure and table has the numbers behind it beside it, as NAME.csv."""

_PACKAGES = ("matplotlib", "pandas", "numpy", "scipy", "jinja2")
CODE = "bench.report"
_HERE = Path(__file__).parent


def inside(path: str) -> str:
    """Return a path, unless it could lead out of the folder that it is in, on whatever system.

    Raises:
        ValueError: it could, or is not written as we write paths.
    """
    parts = PurePosixPath(path).parts
    if not parts or "\\" in path or ":" in path or not path.isprintable() or str(PurePosixPath(path)) != path:
        raise ValueError("must be the path of a file, parts joined by /")
    if path.startswith("/") or ".." in parts:
        raise ValueError("must lie within the folder")
    return path


Inside = Annotated[str, AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Field(pattern=r"^[\w.+!-]{1,64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RunFile(_Part):
    """A run that the report speaks of.

    Attributes:
        path: of its `run.json` below the folder of results.
        config_hash: of its configuration.
        status: "complete", or why it is only mentioned.
        sha256: of its `run.json`, which names those of the files beside it.
    """

    path: Inside
    config_hash: str
    status: str
    sha256: Sha256


class FailedCell(_Part):
    """A cell that has no result: its folder below that of the results, and why."""

    folder: Inside
    reason: str


class Shown(_Part):
    """A figure or a table: its name, the CSV of the numbers behind it, and that file's checksum."""

    name: str
    csv: Inside
    sha256: Sha256


class ReportFile(_Part):
    """A file of the report: its path below the report's folder, length in bytes and checksum."""

    path: Inside
    bytes: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Part):
    """What `report.json` says.

    Attributes:
        version: of this schema; "schema" in the file.
        suite: version of flora-bench that wrote the report.
        versions: of Python, of the packages that draw and calculate, and of the code that made the report.
        paper: all settings, as `Paper` dumps them.
        results: the folder of results as seen from the report's; None where that would tell of a home.
        runs: all that the report is made of, complete or not.
        failures: cells without a result that it mentions.
        predictions: SHA-256 of the folder's predictions; None if there are none.
        figures, tables: each with the numbers behind it.
        files: all but `report.json` itself.
    """

    model_config = ConfigDict(populate_by_name=True)

    version: int = Field(SCHEMA, alias="schema", ge=1)
    suite: Version
    versions: dict[str, Version]
    paper: dict[str, Any]
    results: str | None
    runs: list[RunFile]
    failures: list[FailedCell]
    predictions: Sha256 | None
    figures: list[Shown]
    tables: list[Shown]
    files: list[ReportFile]


def write_manifest(folder: Path, data: ReportData, paper: Paper, results: Path, out: Path) -> Path:
    """Describe a report whose other files are all written.

    Args:
        folder: where they are.
        data: what they were made of.
        paper: the settings they were made with.
        results: the folder that the runs are in.
        out: where `folder` will lie, to say from there where the results are.

    Returns:
        the file written.
    """
    files = [_described(path, folder) for path in _files_of(folder)]
    manifest = Manifest(
        suite=version("flora-bench"),
        versions=drawing_versions(),
        paper=paper.model_dump(mode="json"),
        results=_as_seen_from(out, results),
        runs=run_files(data, results),
        failures=[FailedCell(folder=x.folder, reason=x.reason) for x in data.failures],
        predictions=predictions_sha256(results),
        figures=list(_shown(files, FIGURES)),
        tables=list(_shown(files, TABLES)),
        files=files,
    )
    path = folder / MANIFEST
    with store.replacing(path) as temporary:
        temporary.write_text(manifest_text(manifest), encoding="utf-8", newline="\n")
    return path


def manifest_text(manifest: Manifest) -> str:
    """Give what `report.json` holds."""
    return json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read what a report says of itself; none of it is taken on trust.

    Args:
        folder: the report's.

    Raises:
        BadInput: it is no report, or one of a newer schema, or what it says cannot be.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: is no report, it holds no {MANIFEST}; make one with `flora-bench report`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); make the report again") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(f"{path}: has schema {schema}, this suite reads up to {SCHEMA}; update flora-bench")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "all of it"
        raise BadInput(
            f"{path}: {field}: {str(first['input'])[:60]!r} {first['msg']}; make the report again"
        ) from error


def drawing_versions() -> dict[str, str]:
    """Give the versions of Python, of the packages that draw and calculate, and of the report's own code."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, CODE: _code_of_reports()}


@cache
def _code_of_reports() -> str:
    """Hash what makes reports: modules by what they compute, templates and styles by their bytes."""
    modules = {name for name in imported(f"{CODE}.build") if name.startswith(CODE)}
    files = [*_HERE.glob("templates/*"), *_HERE.glob("*.mplstyle")]
    digests = [code_version(modules), *(f"{path.name} {sha256_of(path)}" for path in sorted(files))]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:DIGITS]


def run_files(data: ReportData, results: Path) -> list[RunFile]:
    """Describe the runs that a report is made of, complete or not, by path below the folder they are in."""
    described = [one for frame in (data.runs, data.left_out) for one in _runs_of(frame, results)]
    return sorted(described, key=lambda run: run.path)


def _runs_of(frame: DataFrame, results: Path) -> Iterator[RunFile]:
    for row in frame[["path", "config_hash", "status"]].to_dict("records"):
        path = Path(row["path"])
        yield RunFile(
            path=path.relative_to(results).as_posix(),
            config_hash=row["config_hash"],
            status=row["status"],
            sha256=sha256_of(path),
        )


def files_of_earlier(out: Path) -> set[Path]:
    """Name the files, below its folder, that an earlier report wrote and nobody has changed since."""
    try:
        files = read_manifest(out).files
    except BadInput:
        return set()
    return {Path(file.path) for file in files if is_as_written(out / file.path, file.sha256)}


def is_as_written(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this checksum."""
    return path.is_file() and sha256_of(path) == sha256


def predictions_sha256(results: Path) -> str | None:
    """Give the checksum of what was predicted of the runs; None if nothing was."""
    file = results / store.PREDICTIONS
    return sha256_of(file) if file.exists() else None


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _described(path: Path, folder: Path) -> ReportFile:
    name = path.relative_to(folder).as_posix()
    return ReportFile(path=name, bytes=path.stat().st_size, sha256=sha256_of(path))


def _shown(files: list[ReportFile], kind: str) -> Iterator[Shown]:
    for file in files:
        path = PurePosixPath(file.path)
        if path.parts[0] == kind and path.suffix == ".csv":
            yield Shown(name=path.stem, csv=file.path, sha256=file.sha256)


def _as_seen_from(out: Path, results: Path) -> str | None:
    """Say where results are without naming a home, nor the whole of a disk."""
    home, here, there = Path.home(), out.resolve(), results.resolve()
    try:
        shared = Path(os.path.commonpath([here, there]))
    except ValueError:  # on two drives
        return None
    if shared == Path(shared.anchor) or (there.is_relative_to(home) and not here.is_relative_to(home)):
        return None
    return Path(os.path.relpath(there, here)).as_posix()
