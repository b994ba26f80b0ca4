"""Which cells of two measurements belong together: the same but for the revision, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.regress.gate import Fields, fields_of
from bench.regress.measurements import CellMeasures

# Of the machine: cells that differ in these alone are the same, unless one side has several of them.
_OF_THE_MACHINE = ("device", "compute.threads")
# Of the record, or what is paired apart.
_NOT_OF_THE_CELL = ("seed", "tuning", "data.root")
_SECTIONS = ("model", "split")

Key = tuple[str, str]
"""Of one run: what tells its cell from others, and its seed."""


@dataclass(frozen=True)
class Pair:
    """One cell with one seed, on both sides."""

    seed: str
    base: CellMeasures
    new: CellMeasures


@dataclass(frozen=True)
class Cell:
    """A cell with the seeds that both sides have.

    Attributes:
        subject: in words, with its seeds.
        fields: that conditions of a budget name.
        pairs: one a seed.
    """

    subject: str
    fields: Fields
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Paired:
    """The cells of two sides.

    Attributes:
        cells: that both have, in the order of their subjects.
        only_base, only_new: in words, what the other side lacks.
        new: runs of NEW that BASE lacks, with what they are in words.
        caveats: what had to be left out to pair the others.
    """

    cells: Sequence[Cell] = ()
    only_base: Sequence[str] = ()
    only_new: Sequence[str] = ()
    new: Sequence[tuple[str, CellMeasures]] = ()
    caveats: Sequence[str] = field(default=())


def paired(base: Sequence[CellMeasures], new: Sequence[CellMeasures]) -> Paired:
    """Pair the cells of two sides: those whose configurations agree in every field that both know."""
    sides = [[(cell, _qualified(cell.config)) for cell in side] for side in (base, new)]
    known = [{name for _, values in side for name in values} for side in sides]
    shared = known[0] & known[1]
    keyed = [_by_key(side, shared.difference(_OF_THE_MACHINE)) for side in sides]
    if any(len(cells) > 1 for side in keyed for cells in side.values()):
        keyed = [_by_key(side, shared) for side in sides]
    one, other = ({key: cells[0] for key, cells in side.items() if len(cells) == 1} for side in keyed)
    named = _names({**one, **other})
    cells = _cells(one, other, named)
    return Paired(
        cells,
        _alone(one, other, named),
        _alone(other, one, named),
        [(f"{named[key[0]]}, seed {key[1]}", cell) for key, cell in other.items() if key not in one],
        [*_left_out(cells), *_not_told_apart([*keyed[0].values(), *keyed[1].values()])],
    )


def words(config: Mapping[str, Any]) -> str:
    """Name a cell as people speak of it: "digits, flora, dirichlet, 4-shot"."""
    fields = fields_of(config)
    shots = f"{fields['shots']}-shot" if fields["shots"] else ""
    parts = [fields.get(name) for name in ("task", "method", "split")]
    return ", ".join(str(part) for part in (*parts, shots) if part)


def some(names: Iterable[str], most: int = 4) -> str:
    """Name the first few, each once, and count the others."""
    named = list(dict.fromkeys(names))
    more = len(named) - most
    return "; ".join(named[:most]) + (f"; and {more} more" if more > 0 else "")


def _qualified(config: Mapping[str, Any]) -> dict[str, str]:
    """Give the values of a configuration by field, of an option also by whose it is: "split:iid.overlap"."""
    from bench.store import flattened

    # early results have a name alone where later ones have a section
    whole = {x: {"name": y} if x in _SECTIONS and isinstance(y, str) else y for x, y in config.items()}
    values = {}
    for name, value in flattened(whole).items():
        section, dot, option = name.partition(".")
        owner = whole[section].get("name", "") if dot and option != "name" else ""
        if section not in _NOT_OF_THE_CELL and name not in _NOT_OF_THE_CELL:
            values[f"{section}:{owner}.{option}" if owner else name] = json.dumps(value, sort_keys=True)
    return values


def _by_key(
    side: Iterable[tuple[CellMeasures, Mapping[str, str]]], shared: Iterable[str]
) -> dict[Key, list[CellMeasures]]:
    order = sorted(shared)
    found: dict[Key, list[CellMeasures]] = {}
    for cell, values in side:
        key = json.dumps([values.get(name) for name in order])
        found.setdefault((key, _seed_text(cell.config.get("seed", 0))), []).append(cell)
    return found


def _cells(
    one: Mapping[Key, CellMeasures], other: Mapping[Key, CellMeasures], named: Mapping[str, str]
) -> list[Cell]:
    pairs: dict[str, list[Pair]] = {}
    for key in sorted(one.keys() & other.keys(), key=lambda key: (len(key[1]), key)):
        pairs.setdefault(key[0], []).append(Pair(key[1], one[key], other[key]))
    cells = [
        Cell(f"{named[key]}, {_seeds_text([x.seed for x in group])}", fields_of(group[0].new.config), group)
        for key, group in pairs.items()
    ]
    return sorted(cells, key=lambda cell: cell.subject)


def _seed_text(seed: Any) -> str:
    """Write the one seed of all random streams, or all of them."""
    seeds = list(seed.values()) if isinstance(seed, Mapping) else [seed]
    return "-".join(map(str, seeds if len(set(seeds)) > 1 else seeds[:1]))


def _seeds_text(seeds: Sequence[str]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _names(runs: Mapping[Key, CellMeasures]) -> dict[str, str]:
    """Name cells by what tells them apart; those that would share a name get what they differ in added."""
    configs = {key: cell.config for (key, _), cell in runs.items()}
    alike: dict[str, list[str]] = {}
    for key, config in configs.items():
        alike.setdefault(words(config), []).append(key)
    named = {}
    for name, keys in alike.items():
        fields = {key: fields_of(configs[key]) for key in keys}
        texts = {key: {x: str(value) for x, value in fields[key].items()} for key in keys}
        every = dict.fromkeys(x for key in keys for x in texts[key])
        differ = [
            x for x in every if len({texts[key].get(x) for key in keys}) > 1 and not x.endswith(".name")
        ]
        for key in keys:
            more = [f"{x} {texts[key][x]}" for x in differ if x in texts[key]]
            named[key] = ", ".join([name, *more])
    return named


def _alone(side: Iterable[Key], other: Iterable[Key], named: Mapping[str, str]) -> list[str]:
    """Name what only one side has."""
    seeds: dict[str, list[str]] = {}
    for key, seed in side:
        if (key, seed) not in other:
            seeds.setdefault(named[key], []).append(seed)
    return [f"{name}, {_seeds_text(found)}" for name, found in sorted(seeds.items())]


def _left_out(cells: Iterable[Cell]) -> list[str]:
    """Name the fields that only one side's revision knows, of what was paired."""
    lacking: dict[str, set[str]] = {"BASE": set(), "NEW": set()}
    for pair in (pair for cell in cells for pair in cell.pairs):
        base, new = fields_of(pair.base.config), fields_of(pair.new.config)
        lacking["BASE"] |= {f"{name} ({base[name]})" for name in base.keys() - new.keys()}
        lacking["NEW"] |= {f"{name} ({new[name]})" for name in new.keys() - base.keys()}
    return [
        f"{side} alone knows {some(sorted(names))}: cells were paired without"
        for side, names in lacking.items()
        if names
    ]


def _not_told_apart(runs: Iterable[Sequence[CellMeasures]]) -> list[str]:
    names = [words(cells[0].config) for cells in runs if len(cells) > 1]
    told = f"not compared, as they differ in nothing that both sides know: {some(names)}"
    return [told] if names else []
