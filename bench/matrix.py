"""Many runs from one file: the fields of `RunConfig`, where a list of values multiplies the runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from bench.config import RunConfig, field_models, label
from flora.errors import BadInput, nearest

PRESETS = Path(__file__).parent / "presets"

# Sections and what a value stands for that is not a mapping: a bare name, or one seed for every stream.
SECTIONS = ("model", "method", "split", "optimizer", "codec", "seed", "data", "evaluation", "compute")
SMOKE_ROUNDS = 2

MANY_CELLS = 10_000
"""Above so many cells a command asks before it expands a matrix, which takes 0.1 ms and 10 KB a cell."""

# What a cell is. An included cell that is another is none of the cells that an override asks for.
IDENTITY = ("task", "method", "split")


class Matrix:
    """The runs that a product of lists gives.

    Args:
        include: mappings that replace fields; each adds the cells of the matrix so changed.
        exclude: mappings; a cell that agrees with all fields of one is dropped.
        fields: fields of `RunConfig`; a list in place of one value multiplies the runs, in sections too.
    """

    def __init__(
        self,
        /,
        *,
        include: Sequence[Mapping[str, Any]] = (),
        exclude: Sequence[Mapping[str, Any]] = (),
        **fields: Any,
    ) -> None:
        self.include = include
        self.exclude = exclude
        self.fields = fields

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"<Matrix of {self._count_text()}: {fields or 'defaults'}>"

    def _repr_html_(self) -> str:
        """Give the fields as a table, for notebooks."""
        rows = {**self.fields, "include": self.include, "exclude": self.exclude}
        body = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(repr(value))}</td></tr>"
            for name, value in rows.items()
            if value
        )
        return f"<table><caption>Matrix of {self._count_text()}</caption>{body}</table>"

    def _count_text(self) -> str:
        count = self.count()
        most = "at most " if self.exclude else ""
        return f"{most}{count:,} cell{'s' * (count != 1)}"

    @classmethod
    def read(cls, source: str, overrides: Sequence[str] = ()) -> Matrix:
        """Read a preset by name or a YAML file by path, and apply `field=value` overrides.

        Raises:
            BadInput: no such preset or file, or what is in it cannot be used.
        """
        matrix = _read(_find(source))
        content, include = matrix.fields, matrix.include
        for override in overrides:
            content, include = _override(content, include, override)
        replaced = {override.partition("=")[0].strip() for override in overrides}
        content, *include = (_without_stale_tuning(entry, replaced) for entry in (content, *include))
        return cls(include=include, exclude=matrix.exclude, **content)

    def count(self) -> int:
        """Count the cells without making them; what `exclude` drops counts too.

        Raises:
            BadInput: a list is empty.
        """
        return sum(_count(fields) for fields in self._variants())

    def _variants(self) -> list[dict[str, Any]]:
        return [self.fields, *({**self.fields, **entry} for entry in self.include)]

    def cells(self) -> list[RunConfig]:
        """Expand to runs, in the order the lists are written in, the first field varying slowest.

        Raises:
            BadInput: a cell is not valid or appears twice, or none is left.
        """
        read = [cell for fields in self._variants() for cell in _read_cells(fields)]
        cells = _without_excluded(read, self.exclude) if self.exclude else read
        if not cells:
            raise BadInput(f"exclude: leaves none of the {len(read)} cells; let its entries name more fields")
        seen: set[str] = set()
        for cell in cells:
            if (key := cell.hash) in seen:
                raise BadInput(f"the matrix holds this cell twice: {label(cell)}; list each value once")
            seen.add(key)
        return cells


def smoke(cells: Sequence[RunConfig]) -> list[RunConfig]:
    """Scale cells down, to see within minutes that all of a matrix works; nothing else of them changes.

    Two rounds and at most two local epochs or steps, the first seed, one shot where there are shots, and as
    many images of a class as there are clients, so that every client can have one.
    """
    small: dict[str, RunConfig] = {}
    for cell in cells:
        values = cell.model_dump()
        values["seed"] = cells[0].seed.model_dump()
        for field in ("rounds", "local_epochs", "local_steps"):
            values[field] = values[field] and min(values[field], SMOKE_ROUNDS)
        values["data"]["max_per_class"] = min(cell.data.max_per_class or cell.clients, cell.clients)
        if cell.split.shots is not None:
            values["split"]["shots"] = 1
        one = RunConfig.read(values)
        small.setdefault(one.hash, one)
    return list(small.values())


def presets() -> dict[str, str]:
    """Describe each preset by the comment on its first line."""
    return {path.stem: path.read_text("utf-8").partition("\n")[0].lstrip("# ") for path in _preset_files()}


def _preset_files() -> list[Path]:
    return sorted(PRESETS.glob("*.yaml"))


def _find(source: str, folder: Path = Path()) -> Path:
    known = {path.stem: path for path in _preset_files()}
    if source in known:
        return known[source]
    if (file := folder / Path(source).expanduser()).is_file():
        return file
    raise BadInput(f"there is no preset and no file {source!r}{nearest(source, known)}")


def _read(path: Path, reached_by: tuple[Path, ...] = ()) -> Matrix:
    """Read a file, on top of what it extends."""
    if path.resolve() in [one.resolve() for one in reached_by]:
        chain = " → ".join(one.name for one in (*reached_by, path))
        raise BadInput(f"extends: {chain} goes round in a circle; let one of them extend nothing")
    content = _read_yaml(path)
    include, exclude = _patterns(content, "include"), _patterns(content, "exclude")
    if "extends" not in content:
        return Matrix(include=include, exclude=exclude, **content)
    base = _read(_extended(path, content.pop("extends")), (*reached_by, path))
    fields = {**_without_stale_tuning(base.fields, content.keys()), **content}
    theirs = [_without_stale_tuning(entry, content.keys() - entry.keys()) for entry in base.include]
    return Matrix(include=[*theirs, *include], exclude=[*base.exclude, *exclude], **fields)


def _extended(path: Path, source: object) -> Path:
    """Find what a file extends: a preset, or a file by its path from that file's folder."""
    if not isinstance(source, str):
        raise BadInput(f"{path}: extends: {source!r} must be one preset's name or one file's path")
    try:
        return _find(source, path.parent)
    except BadInput as error:
        raise BadInput(f"{path}: extends: {error}") from None


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, which YAML 1.1 takes for text, so that `exclude` finds it too.

    Refuses a key given twice, of which YAML keeps the last without a word.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise ComposerError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # what looks like a date or a number but is none
            raise ConstructorError(None, None, str(error), node.start_mark) from error


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise BadInput(f"{path}{_where(mark)}: not valid YAML: {_problem(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"{path}: must hold fields with values, such as 'task: digits'")
    return content


def _where(mark: yaml.Mark | None) -> str:
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _patterns(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Take `include` or `exclude` out of a file's content."""
    entries = content.pop(key, None) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadInput(f"{key}: must be a list of mappings, such as [{{method: flora, clients: 100}}]")
    return entries


def _without_stale_tuning(entry: Mapping[str, Any], replaced: Collection[str]) -> dict[str, Any]:
    """Drop the record of a tuning one of whose values was replaced: it would speak of another run.

    Args:
        entry: fields.
        replaced: which were, by dotted path; a section's name stands for all of it.
    """
    tuning = entry.get("tuning")
    stale = (
        isinstance(tuning, dict)
        and isinstance(chosen := tuning.get("chosen"), dict)
        and any(field in replaced or field.partition(".")[0] in replaced for field in map(str, chosen))
    )
    return {key: value for key, value in entry.items() if key != "tuning" or not stale}


def parse_override(override: str, option: str = "--set") -> tuple[str, Any]:
    """Read `FIELD=VALUE`, the value in YAML.

    Raises:
        BadInput: it is not of that form; the message names `option`.
    """
    field, equals, value = override.partition("=")
    if not equals or not field:
        raise BadInput(f"{option} {override}: must be FIELD=VALUE, such as rounds=5")
    try:
        return field.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"{option} {override}: the value is not valid YAML: {_problem(error)}") from error


def _override(
    fields: Mapping[str, Any], include: Sequence[Mapping[str, Any]], override: str
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Give `fields` and the entries of `include` such that the override holds in every cell."""
    path, value = parse_override(override)
    section, dot, name = path.partition(".")
    if path in ("extends", "include", "exclude"):
        raise BadInput(f"--set {override}: must name a field of a run; {path} belongs in a file")
    if section in IDENTITY and (not dot or name == "name"):
        include = [entry for entry in include if section not in entry]
    if not dot:
        rest = [{key: kept for key, kept in entry.items() if key != section} for entry in include]
        # an entry that said nothing else would repeat the fields' own cells
        return {**fields, section: value}, [entry for entry in rest if entry]
    if section not in SECTIONS:
        sections = ", ".join(SECTIONS)
        raise BadInput(f"--set {path}: {section!r} has no fields within; those that have are {sections}")
    # an entry that does not speak of a section takes it from the fields
    parts = [fields, *(entry for entry in include if section in entry)]
    variants = [variant for part in parts for variant in _variants(part, section)]
    valid = {field for variant in variants for field in _field_names(section, variant)}
    if variants and name not in {"name", *valid}:
        raise BadInput(f"--set {path}: there is no such field{nearest(name, valid)}")
    changed = [_set(entry, section, name, value) if section in entry else entry for entry in include]
    return _set(fields, section, name, value), changed


def _set(fields: Mapping[str, Any], section: str, name: str, value: Any) -> dict[str, Any]:
    """Give `fields` with one replaced in every variant of a section that has such a field."""
    changed: list[dict[str, Any]] = []
    for variant in _variants(fields, section):
        has = name == "name" or name in _field_names(section, variant)
        new = {**variant, name: value} if has else variant
        if new not in changed:  # variants that differed in this field alone have become one
            changed.append(new)
    return {**fields, section: changed}


def _variants(fields: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    present = fields.get(section, RunConfig.model_fields[section].get_default())
    return [_mapping(section, value) for value in (present if isinstance(present, list) else [present])]


def _mapping(section: str, value: Any) -> dict[str, Any]:
    """Spell out what a bare name or seed stands for."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return value
    if section == "seed":
        return dict.fromkeys(field_models("seed")[0].model_fields, value)
    return {"name": value}


def _models(section: str, value: Mapping[str, Any]) -> list[Any]:
    """Give the models of all that a section stands for, whose name may be a list."""
    names = value.get("name")
    variants = [{**value, "name": name} for name in names] if isinstance(names, list) else [value]
    return [model for variant in variants for model in field_models(section, variant)]


def _field_names(section: str, value: Mapping[str, Any]) -> set[str]:
    return {field for model in _models(section, value) for field in model.model_fields}


def _expand(fields: Mapping[str, Any], section: str = "") -> Iterator[dict[str, Any]]:
    choices = [list(_choices(fields, name, section)) for name in fields]
    for values in product(*choices):
        yield dict(zip(fields, values, strict=True))


def _read_cells(fields: Mapping[str, Any]) -> Iterator[RunConfig]:
    """Read the cells of a product; those that differ in their seed alone are read once but for it."""
    alike: dict[tuple[int, ...], RunConfig] = {}
    for values in _expand(fields):
        # the product holds each value that it combines, so that within it one id is one value
        key = tuple(id(value) for name, value in values.items() if name != "seed")
        if key in alike and "seed" in values:
            yield alike[key].with_seed(values["seed"])
        else:
            yield alike.setdefault(key, RunConfig.read(values))


def _count(fields: Mapping[str, Any], section: str = "") -> int:
    """Count what `_expand` gives."""
    return prod(
        sum(
            _count(one, name) if isinstance(one, dict) and not section else 1
            for one in _listed(fields, name, section)
        )
        for name in fields
    )


def _choices(fields: Mapping[str, Any], name: str, section: str) -> Iterator[Any]:
    """Give the single values that a field's value stands for."""
    for one in _listed(fields, name, section):
        if isinstance(one, dict) and not section:
            yield from _expand(one, section=name)
        else:
            yield one


def _listed(fields: Mapping[str, Any], name: str, section: str) -> list[Any]:
    """Give what a field lists: its value alone where that is one; sections in it not expanded."""
    value = fields[name]
    takes_list = isinstance(value, list) and _takes_list(fields, name, section)
    if value == [] and not takes_list:
        field = f"{section}.{name}" if section else name
        raise BadInput(f"{field}: an empty list leaves no cell; give a value or more")
    # for a field whose one value is a list, only a list of lists is many values
    many = isinstance(value, list) and (not takes_list or any(isinstance(v, list) for v in value))
    return value if many else [value]


def _takes_list(fields: Mapping[str, Any], name: str, section: str) -> bool:
    if section not in SECTIONS or name == "name":
        return False
    annotations = [
        model.model_fields[name].annotation
        for model in _models(section, fields)
        if name in model.model_fields
    ]
    return any(get_origin(annotation) in (tuple, list) for annotation in annotations)


def _without_excluded(cells: Sequence[RunConfig], patterns: Sequence[Mapping[str, Any]]) -> list[RunConfig]:
    dumps = [cell.model_dump(mode="json") for cell in cells]
    for pattern in patterns:
        _check_pattern(pattern, dumps)
    return [
        cell
        for cell, dump in zip(cells, dumps, strict=True)
        if not any(_agrees(dump, pattern) for pattern in patterns)
    ]


def _check_pattern(pattern: Mapping[str, Any], dumps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a field that no cell has: it would never match, and nobody would notice."""
    for field, want in pattern.items():
        _check_name(field)
        if field not in RunConfig.model_fields:
            raise BadInput(f"exclude: there is no field {field!r}{nearest(field, RunConfig.model_fields)}")
        valid = {name for dump in dumps if isinstance(dump[field], dict) for name in dump[field]}
        wanted = [one for one in (want if isinstance(want, list) else [want]) if isinstance(one, dict)]
        if wanted and not valid:
            raise BadInput(f"exclude: {field} has no fields within; give a value or a list of values")
        for name in (name for one in wanted for name in one):
            _check_name(name)
            if name not in valid:
                raise BadInput(f"exclude: no cell has a field {field}.{name}{nearest(name, valid)}")


def _check_name(field: object) -> None:
    if not isinstance(field, str):
        raise BadInput(f"exclude: {field!r} must be the name of a field, such as method")


def _agrees(dump: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(_matches(dump[field], value) for field, value in pattern.items())


def _matches(have: Any, want: Any) -> bool:
    """Whether a cell's value is the one wanted: a bare name speaks for a section, a list for any of it."""
    if isinstance(want, list) and not isinstance(have, list):
        return any(_matches(have, one) for one in want)
    if not isinstance(have, dict):
        return bool(have == want)
    if isinstance(want, dict):
        return all(name in have and _matches(have[name], value) for name, value in want.items())
    return all(value == want for value in ([have["name"]] if "name" in have else have.values()))
