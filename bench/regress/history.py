"""What many revisions measured: a small file a measurement, read back as series in the order of commits.

A file holds one JSON line: one revision on one machine. Its name is made of the commit and of what was
measured, so that two jobs that add at once never write the same file, and git merges what they did without a
conflict; adding the same measurement twice changes nothing, and another one of the same revision lies beside
the first. Files may be joined (`cat`), nested in folders and renamed: only their lines count.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.regress.gate import Gate
from bench.regress.measurements import CellMeasures, Measurements, finite, identity
from bench.regress.metrics import Better, Kind, Metric, metric_of
from bench.regress.pairing import paired, seed_text
from bench.regress.worktrees import Repository
from bench.report.text import slug
from bench.store import replacing
from flora.errors import BadInput

SCHEMA = 1
"""Version of a line; it rises whenever a reader of the last version would misread a field."""

FORMAT = "flora-bench history"
ENDING = ".jsonl"

Value = float | int | str | None
Values = dict[str, dict[str, Value]]
Quartiles = Annotated[list[float], Field(min_length=2, max_length=2)]

_FEWEST_FOR_QUARTILES = 4
# What makers add to the names of processors.
_ADORNED = re.compile(r"\((?:R|TM)\)| (?:CPU|Processor|\d+-Core)\b")
# What a cell is; where an early result lacks one of these, it is not known, whatever the default is now.
_CELL = ("task", "method", "split")
# Their options depend on which they are.
_SECTIONS = ("method", "split", "optimizer", "codec")
_NOT_OF_THE_CELL = ("seed", "tuning")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Revision(_Part):
    """A state of the sources.

    Attributes:
        commit: its whole hash.
        time: of the commit, ISO 8601.
        subject: the first line of its message; empty where unknown.
        dirty: whether there were changes besides it.
    """

    commit: str = Field(pattern=r"^[0-9a-f]{40,64}$")
    time: str
    subject: str = ""
    dirty: bool = False

    @field_validator("time")
    @classmethod
    def _is_time(cls, time: str) -> str:
        datetime.fromisoformat(time)
        return time

    @property
    def name(self) -> str:
        """The start of its hash; with a plus sign where there were changes."""
        return self.commit[:7] + "+" * self.dirty

    @property
    def seconds(self) -> float:
        """Its time since 1970."""
        time = datetime.fromisoformat(self.time)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    @property
    def day(self) -> str:
        """The date of the commit."""
        return self.time[:10]


class Line(_Part):
    """One revision on one machine, as a line of JSON holds it.

    Attributes:
        format, version: what it is ("schema" in the file).
        revision: what was measured.
        measured: when it was added, ISO 8601.
        machine: cpu, cores, gpu, python, packages.
        cells: by subject, for those that are cells: the configuration, with its seeds as a list of texts. By
            this they are known again in other lines, where they may have another name.
        values: by subject (a cell with its seeds, or a probe) and metric: the median of times, the mean of
            what differs from seed to seed.
        units: the same times in units of the kernel set measured around them.
        spread: quartiles of times.
    """

    format: Literal["flora-bench history"] = "flora-bench history"
    version: int = Field(SCHEMA, alias="schema")
    revision: Revision
    measured: str
    machine: dict[str, Any] = {}
    cells: dict[str, dict[str, Any]] = {}
    values: Values
    units: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, Quartiles]] = {}

    @field_validator("cells")
    @classmethod
    def _has_seeds(cls, cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for subject, config in cells.items():
            seeds = config.get("seed")
            if not isinstance(seeds, list) or not all(isinstance(seed, str) for seed in seeds):
                raise ValueError(f"{subject}: seed: must be a list of texts")
        return cells

    @property
    def kind(self) -> str:
        """Which machines' values are set side by side: those of one processor, its cores and GPU."""
        cores = self.machine.get("cores")
        cpu = _ADORNED.sub("", str(self.machine.get("cpu") or ""))
        parts = [cpu, f"{cores} cores" if cores else None, self.machine.get("gpu")]
        return ", ".join(str(part) for part in parts if part) or "unknown machine"

    @property
    def file(self) -> Path:
        """Where it is kept, below the folder of the history."""
        what = self.model_dump(mode="json", by_alias=True, exclude={"measured"})
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        dirty = "-dirty" * self.revision.dirty
        return Path(slug(self.kind), f"{self.revision.commit[:12]}{dirty}-{digest}{ENDING}")


@dataclass(frozen=True)
class Point:
    """One value of a series.

    Attributes:
        place: of its revision among those of the history.
        revision: measured.
        value: finite, or a text.
        low, high: quartiles, or the least and greatest of several measurements; None where unknown.
        software: python and packages, by name.
    """

    place: int
    revision: Revision
    value: float | str
    low: float | None = None
    high: float | None = None
    software: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """One metric of one subject on machines of one kind, revision by revision.

    Attributes:
        subject: a cell with its seeds, or a probe.
        metric: what is measured.
        machine: the kind.
        points: in the order of the revisions, those with changes besides their commit among them.
        calibrated: whether times are those of a machine as fast as these were at their median, by the kernel
            set.
        judged: whether steps are looked for: not in a benchmark's own figure that no budget declares, as it
            is not known how exact it is.
    """

    subject: str
    metric: Metric
    machine: str
    points: Sequence[Point]
    calibrated: bool = False
    judged: bool = True

    @property
    def committed(self) -> list[Point]:
        """The points whose revision is a commit and nothing else: only these say where a step is."""
        return [point for point in self.points if not point.revision.dirty]


@dataclass(frozen=True)
class History:
    """All that was measured.

    Attributes:
        revisions: in order.
        series: by subject, metric and machine.
        repository: that knows commits, whose order then is that of git; None if there is none.
    """

    revisions: Sequence[Revision]
    series: Sequence[Series]
    repository: Repository | None = None

    @property
    def machines(self) -> list[str]:
        """The kinds of machines."""
        return sorted({one.machine for one in self.series})

    @property
    def subjects(self) -> list[str]:
        """What was measured."""
        return sorted({one.subject for one in self.series})


# --- adding --------------------------------------------------------------------------------------------


def add(folder: Path, measurements: Measurements) -> Path | None:
    """Keep what was measured of a revision.

    Args:
        folder: of the history; made if need be.
        measurements: of one revision.

    Returns:
        The file; None if the same measurement is there already.

    Raises:
        BadInput: they do not say of which commit they are, or hold nothing that can be followed, or cannot be
            written.
    """
    line = line_of(measurements, repository_of([str(measurements.revision.get("commit"))], folder))
    path = folder / line.file
    if path.exists():
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = json.dumps(line.model_dump(mode="json", by_alias=True), sort_keys=True, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return path


def line_of(measurements: Measurements, repository: Repository | None = None) -> Line:
    """Sum up what was measured of a revision; errors as of `add`."""
    values: Values = {}
    units: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, list[float]]] = {}
    by_subject = _by_subject(measurements.cells)
    for subject, (_, cells) in by_subject.items():
        values[subject], units[subject] = _of_cells(cells)
    for benchmark in measurements.benchmarks:
        own = values[benchmark.name] = finite({x: y for x, y in benchmark.extra.items() if _is_value(y)})
        if benchmark.seconds:
            own["seconds"] = median(benchmark.seconds)
            kernels = benchmark.extra.get("kernels")
            units[benchmark.name] = _in_units({"seconds": own["seconds"]}, kernels)
            spread[benchmark.name] = {"seconds": _quartiles(benchmark.seconds)}
    return Line(
        revision=_revision(measurements, repository),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=dict(measurements.machine),
        cells={subject: config for subject, (config, _) in by_subject.items() if values[subject]},
        values={subject: own for subject, own in values.items() if own},
        units={subject: own for subject, own in units.items() if own},
        spread={subject: own for subject, own in spread.items() if own["seconds"]},
    )


def _revision(measurements: Measurements, repository: Repository | None) -> Revision:
    told = dict(measurements.revision)
    place = f"{measurements.name}: revision"
    if not told.get("commit"):
        raise BadInput(f"{place}: is unknown, or of several commits; measure one commit of a git checkout")
    if repository is not None:
        shown = repository.git("show", "--no-patch", "--format=%cI%x00%s", str(told["commit"]))
        told["time"], told["subject"] = shown.strip("\n").split("\0", 1)
    try:
        return Revision(
            commit=told["commit"],
            time=told.get("time"),  # type: ignore[arg-type]
            subject=told.get("subject", ""),
            dirty=bool(told.get("dirty")),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = first["loc"][0]
        raise BadInput(f"{place}.{name}: {str(told.get(str(name)))[:60]!r}: {first['msg']}") from error


def _by_subject(cells: Iterable[CellMeasures]) -> dict[str, tuple[dict[str, Any], list[CellMeasures]]]:
    """Gather the seeds of each cell; with them, its configuration as a line has it."""
    alike: dict[str, list[tuple[str, CellMeasures]]] = {}
    wholes: dict[str, dict[str, Any]] = {}
    for cell in cells:
        whole = _whole(cell.config)
        key = identity(whole)
        wholes[key] = whole
        alike.setdefault(key, []).append((seed_text(cell.config.get("seed", 0)), cell))
    names = _names(wholes)
    found = {}
    for key, seeded in alike.items():
        seeded.sort(key=lambda pair: (len(pair[0]), pair[0]))
        seeds = [seed for seed, _ in seeded]
        config = {**wholes[key], "seed": seeds}
        found[_with_seeds(names[key], seeds)] = config, [cell for _, cell in seeded]
    return found


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what tells a cell from others: no seeds or places, and what early results lack at its default."""
    own = {name: value for name, value in config.items() if name not in _NOT_OF_THE_CELL}
    own |= {name: {"name": own[name]} for name in (*_SECTIONS, "model") if isinstance(own.get(name), str)}
    usual = _usual(own)
    whole = {**usual, **own}
    for name, options in usual.items():
        if isinstance(options, Mapping) and isinstance(whole[name], Mapping):
            whole[name] = {**options, **whole[name]}
    if isinstance(whole.get("data"), Mapping):
        whole["data"] = {**whole["data"], "root": None}
    return whole


def _usual(own: Mapping[str, Any]) -> dict[str, Any]:
    """Give the defaults of a cell's fields, those of options by what they are of."""
    from bench.config import RunConfig

    sections = {name: own[name] for name in _SECTIONS if isinstance(own.get(name), Mapping)}
    named = {name: options["name"] for name, options in sections.items() if "name" in options}
    try:
        usual = RunConfig.read({**named, "device": "cpu"}).model_dump(mode="json")
    except BadInput:  # of a method, split, optimizer or codec that is no more
        return {}
    left_out = {*_NOT_OF_THE_CELL, *(name for name in _CELL if name not in own)}
    return {name: value for name, value in usual.items() if name not in left_out}


def _names(wholes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name cells as a comparison does: in a few words, and by what most cells of these words have otherwise.

    Args:
        wholes: configurations as of `_whole`, by their identity.
    """
    keys = {identity({**whole, "seed": 0}): key for key, whole in wholes.items()}
    cells = [CellMeasures({**whole, "seed": 0}, {}) for whole in wholes.values()]
    names = {key: key for key in wholes}  # where no comparison tells it from another
    for cell in paired(cells, cells).cells:
        names[keys[identity(cell.pairs[0].new.config)]] = cell.subject.removesuffix(", seed 0")
    return names


def _with_seeds(name: str, seeds: Sequence[str]) -> str:
    return f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def _of_cells(cells: Sequence[CellMeasures]) -> tuple[dict[str, Value], dict[str, float]]:
    """Sum up the seeds of a cell: values by metric, and times in units of the kernel set."""
    values, units = {}, {}
    for name in dict.fromkeys(name for cell in cells for name in cell.metrics):
        metric = metric_of(name)
        if metric is None:
            continue
        values[name] = _together([finite(cell.metrics.get(name)) for cell in cells], metric)
        if metric.kind is Kind.NOISY:
            calibrated = [_in_units({name: cell.metrics.get(name)}, cell.kernels).get(name) for cell in cells]
            known = [x for x in calibrated if x is not None]
            if len(known) == len(cells):
                units[name] = median(known)
    return {name: value for name, value in values.items() if value is not None}, units


def _together(values: Sequence[Value], metric: Metric) -> Value:
    """Make one value of those of several seeds; None unless all have one."""
    if len(set(values)) == 1:
        return values[0]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        return median(numbers) if metric.kind in (Kind.NOISY, Kind.TIGHT) else fmean(numbers)
    if None in values:
        return None
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _in_units(seconds: Mapping[str, Any], kernels: Mapping[str, Any] | None) -> dict[str, float]:
    unit = (kernels or {}).get("unit_seconds")
    if not unit:
        return {}
    units = {name: value / unit for name, value in seconds.items() if isinstance(value, int | float)}
    return {name: value for name, value in units.items() if finite(value) is not None}


def _quartiles(seconds: Sequence[float]) -> list[float]:
    if len(seconds) < _FEWEST_FOR_QUARTILES:
        return []
    import numpy as np

    return [float(x) for x in np.quantile(seconds, [0.25, 0.75])]


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


# --- reading -------------------------------------------------------------------------------------------


def read_lines(folder: Path) -> list[Line]:
    """Read all lines of the files in a folder and below.

    Raises:
        BadInput: there is no such folder, or a line is damaged or of another schema.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: is no folder; give that of a history, or --add SOURCE to begin one")
    return [line for path in sorted(folder.rglob(f"*{ENDING}")) for line in _lines_of(path)]


def _lines_of(path: Path) -> Iterator[Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); remove it or measure again") from error
    for number, content in enumerate(text.split("\n"), 1):
        if content.strip():
            yield _line(content, f"{path}, line {number}")


def _line(content: str, place: str) -> Line:
    try:
        found = finite(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: is no JSON, or was cut short ({error}); remove it") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BadInput(f"{place}: is no line of a history; remove it, or give another folder")
    if found.get("schema") != SCHEMA:
        raise BadInput(
            f"{place}: has schema {found.get('schema')!r}, this suite reads {SCHEMA}; measure again, or use "
            "the suite that wrote it"
        )
    try:
        return Line.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise BadInput(f"{place}: {name}: {first['msg']}; remove the line, or measure again") from error


def read_history(folder: Path, gate: Gate | None = None) -> History:
    """Read the series of a folder, revisions in the order of git, or of their times where it knows none.

    Args:
        folder: of the history.
        gate: budgets that declare benchmarks' own figures; those that it does not are not judged.

    Raises:
        BadInput: as of `read_lines`, or there is nothing.
    """
    lines = _named_alike(read_lines(folder))
    gate = gate or Gate()
    if not lines:
        raise BadInput(f"{folder}: holds no measurements yet; add some by --add SOURCE")
    repository = repository_of([line.revision.commit for line in lines], folder)
    revisions = in_order([line.revision for line in lines], repository)
    place = {(x.commit, x.dirty): number for number, x in enumerate(revisions)}
    cells: dict[tuple[str, str, str], dict[int, list[Line]]] = {}
    for line in lines:
        number = place[line.revision.commit, line.revision.dirty]
        for subject, values in line.values.items():
            for name, value in values.items():
                # a text that nobody declared is a remark
                if value is not None and (not isinstance(value, str) or gate.metric(name)):
                    cells.setdefault((subject, name, line.kind), {}).setdefault(number, []).append(line)
    series = []
    for (subject, name, machine), by_place in sorted(cells.items()):
        metric = gate.metric(name)
        shown = metric or Metric(name, name, Kind.NOISY, Better.NEITHER)
        found = _series(subject, shown, machine, by_place, revisions)
        series.append(replace(found, judged=metric is not None))
    return History(revisions, series, repository)


def _named_alike(lines: Sequence[Line]) -> list[Line]:
    """Give the cells of one configuration one name in all lines, in which they may have several."""
    # most lines have the same cells: each is looked at once
    texts = {id(config): identity(config) for line in lines for config in line.cells.values()}
    parts = {text: json.loads(text) for text in texts.values()}
    seeds = {text: config.pop("seed") for text, config in parts.items()}
    wholes = {text: _whole(config) for text, config in parts.items()}
    keys = {text: identity(whole) for text, whole in wholes.items()}
    names = _names({keys[text]: whole for text, whole in wholes.items()})
    named = {text: _with_seeds(names[keys[text]], seeds[text]) for text in texts.values()}

    def renamed(line: Line) -> Line:
        new = {subject: named[texts[id(config)]] for subject, config in line.cells.items()}
        parts = ("cells", "values", "units", "spread")
        own = {part: {new.get(x, x): y for x, y in getattr(line, part).items()} for part in parts}
        return line.model_copy(update=own)

    return [renamed(line) for line in lines]


def repository_of(commits: Sequence[str], folder: Path) -> Repository | None:
    """Find the repository that knows any of the commits: that of the folder, else that worked in."""
    for place in (folder, Path.cwd()):
        try:
            repository = Repository(place)
            if _known(repository, commits):
                return repository
        except BadInput:
            continue
    return None


def _known(repository: Repository, commits: Iterable[str]) -> list[str]:
    """Give those of the commits that a repository knows, parents before their children."""
    asked = {commit for commit in commits if set(commit) <= set("0123456789abcdef")}
    if not asked:
        return []
    listed = repository.git("rev-list", "--topo-order", "--reverse", "--ignore-missing", *sorted(asked))
    return [commit for commit in listed.split() if commit in asked]


def in_order(revisions: Iterable[Revision], repository: Repository | None = None) -> list[Revision]:
    """Sort revisions, each once: parents first; what git does not know goes by the time of its commit.

    Changes besides a commit come after it; commits of one time, by their hash.
    """
    distinct = {(x.commit, x.dirty): x for x in sorted(revisions, key=lambda x: x.subject)}
    known = [] if repository is None else _known(repository, [commit for commit, _ in distinct])
    place = {commit: number for number, commit in enumerate(known)}
    times = {x.commit: x.seconds for x in distinct.values()}

    def key(revision: Revision) -> tuple[int, float, str, bool]:
        commit, own = revision.commit, times[revision.commit]
        if commit in place:
            return place[commit], -math.inf, commit, revision.dirty
        before = [number for other, number in place.items() if times[other] <= own]
        return max(before, default=-1), own, commit, revision.dirty

    return sorted(distinct.values(), key=key)


def _series(
    subject: str,
    metric: Metric,
    machine: str,
    by_place: Mapping[int, Sequence[Line]],
    revisions: Sequence[Revision],
) -> Series:
    """Put the values of one metric in order; every line has one."""
    lines = [line for of_revision in by_place.values() for line in of_revision]
    unit = _unit_seconds(lines, subject, metric) if metric.kind is Kind.NOISY else 0.0
    points = []
    for place, of_revision in sorted(by_place.items()):
        newest = sorted(of_revision, key=lambda line: line.measured)
        measured = [_measured(line, subject, metric.name, unit) for line in newest]
        value, low, high = _pooled(measured, metric)
        points.append(Point(place, revisions[place], value, low, high, _software(newest[-1].machine)))
    return Series(subject, metric, machine, points, calibrated=bool(unit))


def _unit_seconds(lines: Sequence[Line], subject: str, metric: Metric) -> float:
    """Give what the kernel set took, at the median of lines; 0 unless all of them have their time in it."""
    found = []
    for line in lines:
        value, units = line.values[subject][metric.name], line.units.get(subject, {}).get(metric.name, 0.0)
        if not isinstance(value, int | float) or min(value, units) <= 0:
            return 0.0
        found.append(value / units)
    return median(found)


_Spread = tuple[float | str, float | None, float | None]


def _measured(line: Line, subject: str, name: str, unit: float) -> _Spread:
    """Give a line's value with its quartiles, times scaled to a machine whose unit takes so many seconds."""
    value = line.values[subject][name]
    assert value is not None  # is in no series
    low, high = line.spread.get(subject, {}).get(name) or (None, None)
    if not unit or isinstance(value, str):
        return value, low, high
    scale = line.units[subject][name] * unit / value
    return value * scale, low and low * scale, high and high * scale


def _pooled(measured: Sequence[_Spread], metric: Metric) -> _Spread:
    """Make one of several measurements of a revision: the newest of what is exact, else the median."""
    values = [value for value, _, _ in measured if not isinstance(value, str)]
    if len(measured) == 1 or metric.kind is Kind.EXACT or len(values) < len(measured):
        return measured[-1]
    ends = [x for _, low, high in measured for x in (low, high) if x is not None]
    return median(values), min([*values, *ends]), max([*values, *ends])


def _software(machine: Mapping[str, Any]) -> dict[str, str]:
    packages = machine.get("packages")
    named = {**packages} if isinstance(packages, Mapping) else {}
    return {
        name: str(version) for name, version in {"python": machine.get("python"), **named}.items() if version
    }
