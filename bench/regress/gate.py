"""Budgets: by how much a metric may be worse, what was accepted, why and until when; read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from bench.regress.judgement import Judgement, Verdict
from bench.regress.metrics import METRICS, NOISY_SHARE, TIGHT_SHARE, Better, Kind, Metric, metric_of
from bench.selection import CONDITION, did_you_mean, meets, number_of
from flora.errors import BadInput, nearest
from flora.settings import Settings

PYPROJECT = Path("pyproject.toml")
"""What is read where no file is named."""

PROBE = "probe"
"""The field of a benchmark that conditions name; cells have those of their configuration."""

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Limit:
    """By how much a metric may be worse than BASE, and what it must not be above whatever BASE is.

    Attributes:
        relative: share of BASE.
        absolute: in the metric's unit. Of this and `relative`, what allows more counts.
        at_most: the most that NEW may be; None for no such cap.
    """

    relative: float = 0.0
    absolute: float = 0.0
    at_most: float | None = None

    def allowed(self, base: float) -> float:
        """Give by how much NEW may be worse, in the metric's unit."""
        return max(self.relative * abs(base), self.absolute)


def _is_condition(text: str) -> str:
    found = CONDITION.fullmatch(text)
    if not found:
        raise ValueError('must be FIELD=VALUE, or with !=, <, <=, > or >=, such as "method=flora"')
    if found[2] not in ("=", "!=") and number_of(found[3]) is None:
        raise ValueError("compares what is no number; use = or !=")
    return text


Where = list[Annotated[str, AfterValidator(_is_condition)]]
Bound = Annotated[float, Field(ge=0)]


class _Part(Settings):
    """A part of a budget: nothing in it is taken for what it is not."""

    model_config = ConfigDict(strict=True)


class Bounds(_Part):
    """Limits of a metric; what is not given stays as it is.

    Attributes:
        relative, absolute: see `Limit`; any of the two replaces both.
        at_most: see `Limit`.
    """

    relative: Bound | None = None
    absolute: Bound | None = None
    at_most: float | None = None

    def over(self, limit: Limit) -> Limit:
        """Give a limit with these bounds in the place of its own."""
        if self.relative is not None or self.absolute is not None:
            limit = replace(limit, relative=self.relative or 0.0, absolute=self.absolute or 0.0)
        return limit if self.at_most is None else replace(limit, at_most=self.at_most)


class Declared(Bounds):
    """Limits of a metric everywhere, and what it is where it is a benchmark's own figure.

    Attributes:
        kind, better, unit: of a figure that is none of `METRICS`, see `Metric`. Noisy ones are shown only.
    """

    kind: Literal["exact", "tight", "noisy"] | None = None
    better: Literal["lower", "higher", "neither"] | None = None
    unit: str | None = None


class Override(_Part):
    """Limits of metrics in some cells or probes; of several that meet one, the last counts.

    Attributes:
        where: conditions, all of which have to be met.
        metrics: limits, by the metric's name.
    """

    where: Where = Field(min_length=1)
    metrics: dict[str, Bounds] = Field(min_length=1)


class Accepted(_Part):
    """A change for the worse that is let pass for a while.

    Attributes:
        metric: its name, or a pattern such as "payload_bytes*".
        where: conditions, all of which have to be met; everywhere if there is none.
        reason: why.
        until: the last day on which it is let pass.
        at_most: NEW may be at most this; None for anything.
        relative: NEW may be worse than BASE by this share; None for anything.
    """

    metric: str
    where: Where = Field(default_factory=list)
    reason: str = Field(pattern=r"\S")
    until: date
    at_most: float | None = None
    relative: Bound | None = None

    def means(self, judgement: Judgement, fields: Fields) -> bool:
        """Whether it is of this metric of this cell or probe."""
        return fnmatchcase(judgement.metric.name, self.metric) and met(self.where, fields)

    def covers(self, judgement: Judgement) -> bool:
        """Whether the change is within what was accepted."""
        if self.at_most is not None and not _at_most(judgement.new, self.at_most):
            return False
        return self.relative is None or _at_most(_worsening(judgement), self.relative)


class Gate(_Part):
    """All budgets of a project; without any, the metrics' own limits hold and nothing is accepted.

    Attributes:
        metrics: limits by the metric's name, everywhere.
        cells: limits in some cells and probes.
        accepted: what is let pass for a while.
    """

    metrics: dict[str, Declared] = Field(default_factory=dict)
    cells: list[Override] = Field(default_factory=list)
    accepted: list[Accepted] = Field(default_factory=list)

    @model_validator(mode="after")
    def _checked(self) -> Gate:
        for name, declared in self.metrics.items():
            _check_declared(name, declared)
            _check_bounds(f"metrics.{name}", self._known(name, "metrics"), declared)
        for number, override in enumerate(self.cells, 1):
            for name, bounds in override.metrics.items():
                place = f"[[cells]] {number}: metrics"
                _check_bounds(f"{place}.{name}", self._known(name, place), bounds)
        for number, accepted in enumerate(self.accepted, 1):
            self._check_accepted(f"[[accepted]] {number}", accepted)
        return self

    @classmethod
    def find(cls, path: Path | None = None) -> Gate:
        """Read the budgets of a file, or of the nearest pyproject.toml of the repository that has any.

        Args:
            path: a TOML file with them below [tool.flora-bench.gate], below [gate], or at its top; None for
                [tool.flora-bench.gate] in `PYPROJECT`, here or in a folder above, up to the repository's
                root; there may be none.

        Raises:
            BadInput: the file cannot be read, or something in it is none of a budget.
        """
        if path is not None:
            content = _content_of(path)
            budgets = _of_project(content)
            return cls.read(content.get("gate", content) if budgets is None else budgets, str(path))
        here = Path.cwd()
        for folder in (here, *here.parents):
            file = folder / PYPROJECT
            if file.exists() and (budgets := _of_project(_content_of(file))) is not None:
                return cls.read(budgets, str(PYPROJECT if folder == here else file))
            if (folder / ".git").exists():
                break
        return cls()

    @classmethod
    def read(cls, content: Any, place: str) -> Gate:
        """Read budgets from plain values.

        Args:
            content: as TOML has them.
            place: where they are from, for errors.

        Raises:
            BadInput: something is none of a budget.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise BadInput(f"{place}: {_problem(error)}") from error

    def metric(self, name: str) -> Metric | None:
        """Find a metric, or a benchmark's own figure that is declared here, by its name."""
        declared = self.metrics.get(name)
        if declared is None or declared.kind is None:
            return metric_of(name)
        kind, better = Kind(declared.kind), Better(declared.better or Better.LOWER)
        share = {Kind.TIGHT: TIGHT_SHARE, Kind.NOISY: NOISY_SHARE}.get(kind, 0.0)
        return Metric(name, name, kind, better, declared.unit or "", share)

    def limit(self, metric: Metric, fields: Fields) -> Limit:
        """Say by how much a metric of a cell or probe may be worse.

        Args:
            metric: which.
            fields: of the cell (see `fields_of`), or {"probe": its name}.
        """
        limit = Limit(relative=metric.relative)
        if metric.name in self.metrics:
            limit = self.metrics[metric.name].over(limit)
        for override in self.cells:
            if metric.name in override.metrics and met(override.where, fields):
                limit = override.metrics[metric.name].over(limit)
        return limit

    def settle(self, judgement: Judgement, fields: Fields, today: date) -> Judgement:
        """Let pass what was accepted, until its day; what was, and is no longer, fails with its reason.

        Args:
            judgement: of one metric.
            fields: of its cell or probe, as for `limit`.
            today: the day to go by.
        """
        if not judgement.verdict.fails:
            return judgement
        meant = [entry for entry in self.accepted if entry.means(judgement, fields)]
        covering = [entry for entry in meant if entry.covers(judgement)]
        if not meant:
            return judgement
        if not covering:
            return _noted(judgement, f"more than was accepted until {meant[-1].until}: {meant[-1].reason}")
        longest = max(covering, key=lambda entry: entry.until)
        told = f"accepted until {longest.until}: {longest.reason}"
        if today <= longest.until:
            return _noted(judgement, told, Verdict.ACCEPTED)
        return _noted(judgement, f"was {told}", Verdict.EXPIRED)

    def caveats(self, settled: Iterable[tuple[Judgement, Fields]], today: date) -> list[str]:
        """Name the entries that mean nothing that was compared, and those that ran out and are not needed.

        Args:
            settled: all judgements, as `settle` gives them, with the fields of their cells and probes.
            today: the day to go by.
        """
        judged = list(settled)
        said = []
        for number, entry in enumerate(self.accepted, 1):
            name = f"gate: [[accepted]] {number} ({_in_words(entry.metric, entry.where)})"
            meant = [judgement for judgement, fields in judged if entry.means(judgement, fields)]
            needed = any(x.verdict.fails or x.verdict is Verdict.ACCEPTED for x in meant)
            if not meant:
                said.append(f"{name} means nothing that was compared{_unknown(entry.where, judged)}")
            elif today > entry.until and not needed:
                said.append(f"{name} ran out on {entry.until} and is no longer needed: remove it")
        for number, override in enumerate(self.cells, 1):
            name = f"gate: [[cells]] {number} ({' and '.join(override.where)})"
            if not any(met(override.where, fields) for _, fields in judged):
                said.append(f"{name} means nothing that was compared{_unknown(override.where, judged)}")
        return said

    def _check_accepted(self, place: str, accepted: Accepted) -> None:
        """Refuse what means no metric, and a cap where it would let pass whatever is worse."""
        names = [name for name in (*METRICS, *self.metrics) if fnmatchcase(name, accepted.metric)]
        metrics = [self._known(name, f"{place}: metric") for name in names or [accepted.metric]]
        uncapped = [metric.name for metric in metrics if metric.better is not Better.LOWER]
        if accepted.at_most is not None and uncapped:
            raise ValueError(
                f"{place}: at_most: would let pass any loss of {uncapped[0]}, of which less is not better; "
                "give relative"
            )

    def _known(self, name: str, place: str) -> Metric:
        metric = self.metric(name)
        if metric is None:
            declared = [name for name, metric in self.metrics.items() if metric.kind]
            hint = did_you_mean(name, [*METRICS, *declared]) or "; a figure of your own needs its kind"
            raise ValueError(f"{place}: no metric is called {name!r}{hint}")
        return metric


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a cell that conditions name: dotted, and of what has a name also that alone.

    The seed is not among them, as seeds are judged together.
    """
    from bench.store import flattened

    flat = flattened({name: value for name, value in config.items() if name != "seed"})
    named = {name.removesuffix(".name"): value for name, value in flat.items() if name.endswith(".name")}
    return {**flat, **named, "shots": flat.get("split.shots")}


def met(where: Sequence[str], fields: Fields) -> bool:
    """Say whether a cell or probe meets all conditions; a field that it lacks meets none."""
    return all(_meets_one(*_parts(condition), fields) for condition in where)


def _meets_one(name: str, sign: str, text: str, fields: Fields) -> bool:
    if name not in fields:
        return False
    value = fields[name]
    if name == PROBE and sign in ("=", "!="):
        pattern = text.replace("[", "[[]")  # [flora] in a name is no set of letters
        return fnmatchcase(value, pattern) == (sign == "=")
    ordered = sign in ("=", "!=") or (isinstance(value, int | float) and not isinstance(value, bool))
    return ordered and meets(value, sign, text)


def _parts(condition: str) -> tuple[str, str, str]:
    found = CONDITION.fullmatch(condition)
    assert found  # was looked at when it was read
    return found[1], found[2], found[3]


def _unknown(where: Sequence[str], judged: Sequence[tuple[Judgement, Fields]]) -> str:
    """Name the fields of conditions that nothing has."""
    known = {name for _, fields in judged for name in fields}
    missing = [name for name, _, _ in map(_parts, where) if name not in known]
    hints = [did_you_mean(name, known).rstrip("?") for name in missing]
    return "".join(f"; nothing has a field {x!r}{hint}" for x, hint in zip(missing, hints, strict=True))


def _in_words(metric: str, where: Sequence[str]) -> str:
    return f"{metric} where {' and '.join(where)}" if where else metric


def _noted(judgement: Judgement, note: str, verdict: Verdict | None = None) -> Judgement:
    notes = "; ".join(part for part in (note, judgement.note) if part)
    return replace(judgement, verdict=verdict or judgement.verdict, note=notes)


def _at_most(value: object, most: float) -> bool:
    return isinstance(value, int | float) and value <= most


def _worsening(judgement: Judgement) -> float | None:
    """By which share of BASE a metric got worse; None where that cannot be said."""
    if judgement.change is None:
        return None
    sign = {Better.LOWER: 1, Better.HIGHER: -1}.get(judgement.metric.better)
    return abs(judgement.change) if sign is None else sign * judgement.change


# --- reading -------------------------------------------------------------------------------------------


def _of_project(content: dict[str, Any]) -> Any:
    """Give what is below [tool.flora-bench.gate]; None if there is nothing."""
    budgets: Any = content
    for section in ("tool", "flora-bench", "gate"):
        budgets = budgets.get(section) if isinstance(budgets, dict) else None
    return budgets


def _content_of(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); give a TOML file of budgets") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: is no TOML: {error}") from error


def _check_declared(name: str, declared: Declared) -> None:
    given = [field for field in ("kind", "better", "unit") if getattr(declared, field) is not None]
    if given and metric_of(name) is not None:
        raise ValueError(f"metrics.{name}.{given[0]}: is the suite's to say; leave it out")
    if given and declared.kind is None:
        raise ValueError(f"metrics.{name}: has no kind; a figure of your own is exact, tight or noisy")


def _check_bounds(place: str, metric: Metric, bounds: Bounds) -> None:
    """Refuse limits that would mean nothing."""
    for field in Bounds.model_fields:
        if getattr(bounds, field) is not None and (why := _why_no(field, metric)):
            raise ValueError(f"{place}.{field}: {why}")


def _why_no(field: str, metric: Metric) -> str:
    if metric.better is Better.NEITHER:
        return "any change of it counts, so there is no limit; let one pass under [[accepted]]"
    if metric.kind is Kind.STATISTICAL and field != "absolute":
        return "an accuracy has an absolute limit alone: the drop to let pass, such as 0.01 for a point"
    if metric.kind is Kind.NOISY and field == "at_most":
        return "seconds depend on the machine, so there is no cap; give relative"
    if metric.better is Better.HIGHER and field == "at_most":
        return "more is better here, so a cap would guard nothing; give relative or absolute"
    return ""


def _problem(error: ValidationError) -> str:
    """The first thing wrong, in a line: where, what was given, what would be right."""
    first = error.errors(include_url=False)[0]
    loc, kind = first["loc"], first["type"]
    message = str(first["msg"]).removeprefix("Value error, ")
    if kind == "value_error" and not loc:  # says where itself
        return message
    name = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        return f"{_place(loc[:-1])}there is no field {name!r}{nearest(name, _names_at(loc[:-1]))}"
    if kind == "missing":
        return f"{_place(loc)}is missing; {_WANTED[name]}"
    if kind in _TYPES:
        message = _TYPES[kind] + _LISTS.get(name, "") * (kind == "list_type")
    message = message.replace("Input should", "must").replace(" a valid number", " a number")
    given = first["input"]
    told = repr(given) if isinstance(given, str) else str(given)
    return f"{_place(loc)}{told[:60]} {message}"


_TYPES = {
    "string_pattern_mismatch": "says nothing; say why it is accepted",
    "model_type": "must be a table of fields and values",
    "dict_type": "must be a table of fields and values",
    "list_type": "must be a list",
    "too_short": "must have an entry at least",
    "greater_than_equal": "must be at least 0",
    "date_type": "must be a day, such as until = 2027-01-31, without quotes",
}
_WANTED = {
    "reason": "say why it is accepted",
    "until": "say to which day it is accepted, such as until = 2027-01-31",
    "metric": 'say which metric is accepted, such as metric = "payload_bytes"',
    "where": 'say where it holds, such as where = ["method=flora"]',
    "metrics": "say what is limited, such as metrics.payload_bytes.absolute = 8",
}
_LISTS = {
    "where": ' of conditions, such as ["method=flora"]',
    "cells": ": write [[cells]] above each",
    "accepted": ": write [[accepted]] above each",
}


def _place(loc: Sequence[str | int]) -> str:
    """Say where in a file, as TOML has it: "[[accepted]] 2: where: "."""
    parts: Iterator[str | int] = iter(loc)
    said = ""
    for part in parts:
        if part in ("cells", "accepted") and not said and len(loc) > 1:
            said = f"[[{part}]] {int(next(parts)) + 1}: "
        elif isinstance(part, str):
            said += f"{part}."
    return f"{said[:-1]}: " if said.endswith(".") else said


def _names_at(loc: Sequence[str | int]) -> list[str]:
    """Name the fields that there are at a place."""
    part: Any = Gate
    if loc and loc[0] == "metrics":
        part = Declared
    elif loc:
        part = Bounds if "metrics" in loc else {"cells": Override, "accepted": Accepted}[str(loc[0])]
    return [*part.model_fields]
