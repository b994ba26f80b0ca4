"""What `compare` reads: cells and benchmarks of one revision, from results, pytest-benchmark or one file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.regress.metrics import METRICS, Kind, metric_of
from bench.regress.worktrees import Repository
from bench.store import broken_invariants, load_run, nothing_in, read_runs, replacing, run_files
from flora.errors import BadInput

SCHEMA = 1
"""Version of a measurements file; it rises whenever a reader of the last version would misread a field."""

FORMAT = "flora-bench measurements"

KEPT_SECONDS = 101
"""Of a benchmark of more rounds a file keeps so many quantiles; odd, so that the median is one of them."""

Value = float | int | str | None

_SOURCES = "a results folder, a run.json, pytest-benchmark's JSON or what `flora-bench snapshot` wrote"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class CellMeasures:
    """What is compared of one run.

    Attributes:
        config: resolved, as `run.json` has it, without what may differ between two runs of one cell: where
            files lie, which GPU it was, how values were tuned.
        metrics: by name, as `bench.regress.metrics` has them; None for what was not measured.
        losses, accuracies: by round, None where a round has none.
        test_images: what accuracies are shares of.
        kernels: seconds of the kernel set around the run (see `bench.regress.kernels`), or None.
        broken: the invariants that did not hold, in words; empty if all did.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Value]
    losses: Sequence[float | None] = ()
    accuracies: Sequence[float | None] = ()
    test_images: int = 0
    kernels: Mapping[str, Any] | None = None
    broken: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, as pytest-benchmark's JSON has it.

    Attributes:
        name: its full name, such as "tests/perf/test_steps.py::test_local_step[flora]".
        seconds: one call took in each round, or the one median where no rounds were kept; none where nothing
            was measured.
        extra: its `extra_info`: figures by name, and under "kernels" and "interleaved" what times need to be
            compared.
    """

    name: str
    seconds: Sequence[float]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """All that was measured of one revision.

    Attributes:
        name: what it is called in a comparison: its path, or its revision.
        cells: of runs.
        benchmarks: of pytest-benchmark or of `ab`.
        revision: commit, dirty, time (ISO 8601, of the commit); empty where unknown, or of several commits.
        machine: cpu, cores, gpu, python, packages; without what is unknown, or not the same everywhere.
    """

    name: str
    cells: Sequence[CellMeasures] = ()
    benchmarks: Sequence[Benchmark] = ()
    revision: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


# --- reading -------------------------------------------------------------------------------------------


def read_measurements(path: Path) -> Measurements:
    """Read what was measured; numbers that are not finite are missing.

    Args:
        path: a results folder, a run.json, a JSON of pytest-benchmark, or a file of `write_measurements`.

    Raises:
        BadInput: it is none of these, is damaged, holds nothing, or the same cell or benchmark twice.
    """
    if path.is_dir():
        files = sorted(run_files(path))
        if not files:
            raise nothing_in(path)
        return measurements_of_runs(read_runs(files), str(path))
    content = _content_of(path)
    if content.get("format") == FORMAT:
        return _of_file(content, path)
    if "benchmarks" in content:  # pytest-benchmark's has a part of the fields
        return _of_file({**content, "schema": SCHEMA}, path)
    if "config_hash" in content:
        return measurements_of_runs([(path, load_run(path))], str(path))
    raise BadInput(f"{path}: holds neither runs nor benchmarks; give {_SOURCES}")


def measurements_of_runs(runs: Iterable[tuple[Path, Mapping[str, Any]]], name: str) -> Measurements:
    """Put together what was measured of runs.

    Args:
        runs: each with the path of its `run.json`, as `bench.store.read_runs` gives them.
        name: what they are called together.

    Raises:
        BadInput: two are of the same cell, or one holds what cannot be read.
    """
    return join([_of_run(run, str(path)) for path, run in runs], name)


def join(parts: Sequence[Measurements], name: str) -> Measurements:
    """Make one of several.

    Raises:
        BadInput: the same cell or benchmark is in two of them.
    """
    cells = [(cell, part.name) for part in parts for cell in part.cells]
    benchmarks = [(benchmark, part.name) for part in parts for benchmark in part.benchmarks]
    _refuse_twice(
        [*(identity(cell.config) for cell, _ in cells), *(benchmark.name for benchmark, _ in benchmarks)],
        [place for _, place in (*cells, *benchmarks)],
        [*(_words(cell.config) for cell, _ in cells), *(benchmark.name for benchmark, _ in benchmarks)],
    )
    return Measurements(
        name,
        cells=_in_order(cell for cell, _ in cells),
        benchmarks=[benchmark for benchmark, _ in benchmarks],
        revision=_common_revision(part.revision for part in parts),
        machine=_common(part.machine for part in parts),
    )


def without_the_machine(measurements: Measurements) -> Measurements:
    """Leave out what another machine would give otherwise: times, kernels and resident memory."""
    return replace(
        measurements,
        cells=[
            replace(cell, kernels=None, metrics={x: y for x, y in cell.metrics.items() if not _of_machine(x)})
            for cell in measurements.cells
        ],
        benchmarks=[
            Benchmark(benchmark.name, [], {x: y for x, y in benchmark.extra.items() if not _of_machine(x)})
            for benchmark in measurements.benchmarks
        ],
    )


def _of_machine(name: str) -> bool:
    metric = metric_of(name)
    by_kind = metric is not None and metric.kind in (Kind.NOISY, Kind.TIGHT)
    return by_kind or name in ("resident_at_start_bytes", "kernels", "interleaved")


def identity(config: Mapping[str, Any]) -> str:
    """Give one text for all that is of the same cell."""
    return json.dumps(config, sort_keys=True)


# --- writing -------------------------------------------------------------------------------------------


def write_measurements(measurements: Measurements, path: Path) -> None:
    """Write a measurements file so that `path` holds either what it held before or all of it.

    Neither the machine's name nor where files lay is in it.

    Raises:
        BadInput: it cannot be written.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name the file to write")
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "revision": dict(measurements.revision),
        "machine": dict(measurements.machine),
        "cells": [asdict(cell) for cell in measurements.cells],
        "benchmarks": [_written(benchmark) for benchmark in measurements.benchmarks],
    }
    text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from error


def _written(benchmark: Benchmark) -> dict[str, Any]:
    import numpy as np

    seconds = list(benchmark.seconds)
    if len(seconds) > KEPT_SECONDS:
        seconds = np.quantile(seconds, np.linspace(0, 1, KEPT_SECONDS)).tolist()
    return {
        "fullname": benchmark.name,
        "name": benchmark.name.rpartition("::")[2],
        "stats": {"median": float(np.median(seconds)) if seconds else None, "data": seconds},
        "extra_info": dict(benchmark.extra),
    }


# --- files ---------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Kernels(_Part):
    model_config = ConfigDict(strict=True, extra="allow")
    seconds: dict[str, float]
    unit_seconds: float = Field(gt=0)
    machine: dict[str, Any]


class _Cell(_Part):
    config: dict[str, Any]
    metrics: dict[str, Value]
    losses: list[float | None] = []
    accuracies: list[float | None] = []
    test_images: int = Field(0, ge=0)
    kernels: _Kernels | None = None
    broken: str = ""

    @field_validator("config")
    @classmethod
    def _has_seeds(cls, config: dict[str, Any]) -> dict[str, Any]:
        seed = config.get("seed", 0)
        if not all(isinstance(x, int) for x in (seed.values() if isinstance(seed, dict) else [seed])):
            raise ValueError("seed must be a whole number, or one a random stream")
        return config


class _Spread(_Part):
    deviation: float = Field(ge=0)
    degrees: int = Field(ge=0)


class _Interleaved(_Part):
    session: str
    rounds: list[list[float]]
    comparisons: int = Field(1, ge=1)
    spread: _Spread | None = None


class _Extra(_Part):
    model_config = ConfigDict(strict=True, extra="allow")
    kernels: _Kernels | None = None
    interleaved: _Interleaved | None = None


class _Stats(_Part):
    median: float | None = None
    data: list[float | None] = []


class _Benchmark(_Part):
    fullname: str
    stats: _Stats
    extra_info: _Extra = _Extra()


class _Revision(_Part):
    commit: str | None = None
    dirty: bool | None = None
    time: str | None = None


class _Machine(_Part):
    cpu: str | None = None
    cores: int | None = None
    gpu: str | None = None
    python: str | None = None
    packages: dict[str, str | None] | None = None


class _File(_Part):
    version: int = Field(alias="schema", ge=1)
    revision: _Revision = _Revision()
    machine: _Machine = _Machine()
    cells: list[dict[str, Any]] = []
    benchmarks: list[_Benchmark] = []
    # pytest-benchmark's own
    commit_info: dict[str, Any] = {}
    machine_info: dict[str, Any] = {}


def _content_of(path: Path) -> dict[str, Any]:
    try:
        content = finite(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give {_SOURCES}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is no JSON, or was cut short ({error}); give {_SOURCES}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds a {type(content).__name__} and no measurements; give {_SOURCES}")
    return content


def _of_file(content: dict[str, Any], path: Path) -> Measurements:
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(f"{path}: has schema {schema}, this suite reads up to {SCHEMA}; update flora-bench")
    try:
        read = _File.model_validate(content)
    except ValidationError as error:
        raise _explained(error, str(path)) from error
    if not read.cells and not read.benchmarks:
        raise BadInput(f"{path}: holds neither cells nor benchmarks; give {_SOURCES}")
    whole = Measurements(
        str(path),
        cells=[_cell(values, f"{path}: cells.{number}") for number, values in enumerate(read.cells)],
        benchmarks=[_benchmark(benchmark) for benchmark in read.benchmarks],
        revision=_known(read.revision) or _revision_of_pytest(read.commit_info, str(path)),
        machine=_known(read.machine) or _machine_of_pytest(read.machine_info, str(path)),
    )
    return join([whole], str(path))  # which looks for what is there twice


def _cell(values: Mapping[str, Any], place: str) -> CellMeasures:
    try:
        read = _Cell.model_validate(values)
    except ValidationError as error:
        raise _explained(error, place) from error
    return CellMeasures(**read.model_dump())


def _benchmark(read: _Benchmark) -> Benchmark:
    rounds = read.stats.data or [read.stats.median]
    extra = read.extra_info.model_dump(exclude_unset=True)
    return Benchmark(read.fullname, [x for x in rounds if x is not None], extra)


def _explained(error: ValidationError, place: str) -> BadInput:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    return BadInput(f"{place}: {name}: {first['msg']}; measure again")


def finite(value: Any) -> Any:
    """Put None where a number is not finite, or larger than any float: it measures nothing."""
    if isinstance(value, float | int):
        return value if abs(value) <= sys.float_info.max else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


# --- runs ----------------------------------------------------------------------------------------------


def _of_run(run: Mapping[str, Any], place: str) -> Measurements:
    try:
        measured, environment = _measured(run), run.get("environment") or {}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{place}: is no whole result ({error}); measure again") from error
    cell = _cell(measured, place)
    return Measurements(
        place, [cell], revision=_revision(environment, place), machine=_machine(environment, place)
    )


def _measured(run: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of `CellMeasures`, of a run as `load_run` gives it."""
    rounds = run["rounds"]
    return finite(
        {
            "config": _placeless(run["config"]),
            "metrics": _metrics(run),
            "losses": [x.get("loss") for x in rounds],
            "accuracies": [x["accuracy"] for x in rounds],
            "test_images": (run.get("data") or {}).get("test") or 0,
            "kernels": run.get("kernels"),
            "broken": broken_invariants(run),
        }
    )


def _metrics(run: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: run.get(name) or {} for name in ("split", "data", "model", "flops", "memory")}
    # counts that do not follow from the work's sizes depend on what was counted first
    uncertain = (run.get("environment") or {}).get("counts_reason") is not None
    flops = {} if uncertain else parts["flops"]
    peaks = parts["memory"].get("by_phase") or {}
    summary = {name: run["summary"].get(name) for name in METRICS if name not in ("learning", "seconds")}
    return {
        **summary,
        # no metrics themselves: by these it is told whether memory and work are of the same thing
        **{name: run["summary"].get(name) for name in ("resident_at_start_bytes", "clients_together")},
        **{f"{part}_fingerprint": parts[part].get("fingerprint") for part in ("split", "data", "model")},
        "broken_invariants": _broken(run),
        **{f"flops.{phase}": count for phase, count in flops.items()},
        **{f"peak_tensor_bytes.{phase}": peak for phase, peak in peaks.items()},
    }


def _broken(run: Mapping[str, Any]) -> int | None:
    """How many invariants did not hold; None of a run that checked none."""
    checked = run.get("invariants")
    return sum(not x.get("holds", True) for x in checked.values()) if checked else None


def _placeless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what `RunConfig.hash` leaves out, and where files lie that the cell names."""
    placed = {**config, "data": {**config.get("data", {}), "root": None}, "tuning": None}
    placed["device"] = str(config.get("device", "cpu")).partition(":")[0]
    placed["task"] = _last_part(config["task"])
    if isinstance(model := config.get("model"), Mapping):
        placed["model"] = {**model, "name": _last_part(model["name"])}
    evaluation = config.get("evaluation") or {}
    if retention := evaluation.get("retention"):
        placed["evaluation"] = {**evaluation, "retention": _last_part(retention)}
    return placed


def _last_part(name: str) -> str:
    """Leave of an absolute path, such as that in "folder:/data/pets", what it leads to: "folder:pets"."""
    absolute = [(part, part.startswith(("/", "\\"))) for part in name.split(":")]
    return ":".join(re.split(r"[/\\]", x.rstrip("/\\"))[-1] if is_path else x for x, is_path in absolute)


def _words(config: Mapping[str, Any]) -> str:
    """Name a cell in a message."""
    parts = [config.get(name) for name in ("task", "method", "split")]
    names = [part.get("name") if isinstance(part, Mapping) else part for part in parts]
    return ", ".join(str(name) for name in names if name)


def _in_order(cells: Iterable[CellMeasures]) -> list[CellMeasures]:
    """Sort cells by what they are, so that files of the same cells can be told apart line by line."""
    return sorted(cells, key=lambda cell: (_words(cell.config), identity(cell.config)))


def _refuse_twice(keys: Iterable[str], places: Sequence[str], words: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        before = first.setdefault(key, number)
        if before != number:
            one, other = places[before], places[number]
            where = f"twice in {one}" if one == other else f"in {one} and in {other}"
            raise BadInput(f"{words[number]}: is measured {where}; give each once")


# --- revision and machine ------------------------------------------------------------------------------


def _revision(environment: Mapping[str, Any], place: str) -> dict[str, Any]:
    commit, dirty = environment.get("git_commit"), environment.get("git_dirty")
    if not commit:
        return {}
    found = _read(_Revision, place, commit=commit, dirty=dirty)
    return {**found, **_read(_Revision, place, time=_commit_time(commit))}


def _revision_of_pytest(commit_info: Mapping[str, Any], place: str) -> dict[str, Any]:
    dirty, time = commit_info.get("dirty"), commit_info.get("time")
    found = _read(_Revision, place, commit=commit_info.get("id"), dirty=dirty, time=time)
    # outside of a checkout it says "unversioned"
    return found if _COMMIT.fullmatch(found.get("commit", "")) else {}


def _machine(environment: Mapping[str, Any], place: str) -> dict[str, Any]:
    names = {"cpu": "cpu", "cores": "logical_cores", "gpu": "gpu", "python": "python", "packages": "packages"}
    return _read(_Machine, place, **{name: environment.get(of_run) for name, of_run in names.items()})


def _machine_of_pytest(machine_info: Mapping[str, Any], place: str) -> dict[str, Any]:
    cpu = machine_info.get("cpu")
    cpu = cpu if isinstance(cpu, Mapping) else {}
    python = machine_info.get("python_version")
    return _read(_Machine, place, cpu=cpu.get("brand_raw"), cores=cpu.get("count"), python=python)


def _read(part: type[_Part], place: str, **values: Any) -> dict[str, Any]:
    try:
        return _known(part.model_validate(values))
    except ValidationError as error:
        raise _explained(error, place) from error


def _known(part: _Part) -> dict[str, Any]:
    return {name: value for name, value in part if value is not None}


def _common_revision(revisions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the one revision that all are of which know theirs; nothing where they are of several."""
    known = [revision for revision in revisions if revision]
    if len({revision.get("commit") for revision in known}) > 1:
        return {}
    return {**_common(known), **({"dirty": True} if any(x.get("dirty") for x in known) else {})}


def _common(known: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the values that nobody contradicts."""
    found: dict[str, list[Any]] = {}
    for values in known:
        for name, value in values.items():
            of_name = found.setdefault(name, [])
            if value not in of_name:
                of_name.append(value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


@cache
def _commit_time(commit: str) -> str | None:
    """Ask the checkout that this suite runs from when a commit was made; None where it does not know."""
    if not _COMMIT.fullmatch(commit):  # git might take it for an option
        return None
    try:
        here = Repository(Path(__file__).parent)
        return here.git("show", "--no-patch", "--format=%cI", f"{commit}^{{commit}}").strip() or None
    except BadInput:
        return None
