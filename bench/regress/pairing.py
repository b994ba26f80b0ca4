"""Which cells of two measurements belong together: the same but for the revision, seed by seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.regress.gate import Fields, fields_of
from bench.regress.measurements import CellMeasures, identity
from bench.selection import text_of

# Of the machine: cells that differ in these alone are the same, unless one side has several of them.
_OF_THE_MACHINE = ("device", "compute.threads")
# Of the record, or what is paired apart.
_NOT_OF_THE_CELL = ("seed", "tuning", "data.root")
_SECTIONS = ("model", "split")
# Without these there is no cell to tell from others.
_OF_EVERY_CELL = {("task", ""), ("method.name", "")}

Key = tuple[str, str]
"""Of one run: what tells its cell from others, and its seed."""

Field = tuple[str, str]
"""Of a configuration: its dotted name, and of an option whose it is: ("split.overlap", "iid")."""

Values = Mapping[Field, str]
Runs = Mapping[Key, CellMeasures]


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
    sides = [[(cell, _values(cell.config)) for cell in side] for side in (base, new)]
    known = [{x for _, values in side for x in values} for side in sides]
    shared = known[0] & known[1] | _OF_EVERY_CELL
    keyed = [_by_key(side, {x for x in shared if x[0] not in _OF_THE_MACHINE}) for side in sides]
    if any(len(cells) > 1 for side in keyed for cells in side.values()):
        keyed = [_by_key(side, shared) for side in sides]
    (one, one_alike), (other, other_alike) = map(_told_apart, keyed)
    named = _names({**one, **other}, shared) | _names({**one_alike, **other_alike}, known[0] | known[1])
    cells = _cells(one, other, named)
    lost, added = _without({**one, **one_alike}, other), _without({**other, **other_alike}, one)
    return Paired(
        cells,
        _alone(lost, named),
        _alone(added, named),
        [(f"{named[key[0]]}, seed {key[1]}", cell) for key, cell in added.items()],
        [*_left_out(cells), *_not_told_apart([*keyed[0].values(), *keyed[1].values()])],
    )


def words(config: Mapping[str, Any]) -> str:
    """Name a cell as people speak of it: "digits, flora, dirichlet, 4-shot"."""
    fields = fields_of(config)
    shots = f"{fields['shots']}-shot" if fields["shots"] else ""
    parts = [fields.get(name) for name in ("task", "method", "split")]
    return ", ".join(str(part) for part in (*parts, shots) if part)


def seed_text(seed: Any) -> str:
    """Write the one seed of all random streams, or all of them: "0", "0-1-2-3"."""
    seeds = [str(x) for x in (seed.values() if isinstance(seed, Mapping) else [seed])]
    return "-".join(seeds if len(set(seeds)) > 1 else seeds[:1])


def some(names: Iterable[str], most: int = 4) -> str:
    """Name the first few, each once, and count the others."""
    named = list(dict.fromkeys(names))
    more = len(named) - most
    return "; ".join(named[:most]) + (f"; and {more} more" if more > 0 else "")


def _values(config: Mapping[str, Any]) -> dict[Field, str]:
    """Give the values of a configuration by field, as JSON."""
    from bench.store import flattened

    # early results have a name alone where later ones have a section
    whole = {x: {"name": y} if x in _SECTIONS and isinstance(y, str) else y for x, y in config.items()}
    values = {}
    for name, value in flattened(whole).items():
        section, dot, option = name.partition(".")
        if section in _NOT_OF_THE_CELL or name in _NOT_OF_THE_CELL:
            continue
        options = whole.get(section)
        owner = options.get("name", "") if dot and option != "name" and isinstance(options, Mapping) else ""
        values[name, str(owner)] = json.dumps(value, sort_keys=True)
    return values


def _by_key(
    side: Iterable[tuple[CellMeasures, Values]], shared: Iterable[Field]
) -> dict[Key, list[CellMeasures]]:
    order = sorted(shared)
    found: dict[Key, list[CellMeasures]] = {}
    for cell, values in side:
        key = json.dumps([values.get(x) for x in order])
        found.setdefault((key, seed_text(cell.config.get("seed", 0))), []).append(cell)
    return found


def _told_apart(keyed: Mapping[Key, Sequence[CellMeasures]]) -> tuple[Runs, Runs]:
    """Give the runs that have a key to themselves, and the others, by all that they are."""
    alike = {
        (identity(cell.config), key[1]): cell
        for key, cells in keyed.items()
        if len(cells) > 1
        for cell in cells
    }
    return {key: cells[0] for key, cells in keyed.items() if len(cells) == 1}, alike


def _cells(one: Runs, other: Runs, named: Mapping[str, str]) -> list[Cell]:
    pairs: dict[str, list[Pair]] = {}
    for key in sorted(one.keys() & other.keys(), key=lambda key: (len(key[1]), key)):
        pairs.setdefault(key[0], []).append(Pair(key[1], one[key], other[key]))
    cells = [
        Cell(f"{named[key]}, {_seeds_text([x.seed for x in group])}", fields_of(group[0].new.config), group)
        for key, group in pairs.items()
    ]
    return sorted(cells, key=lambda cell: cell.subject)


def _seeds_text(seeds: Sequence[str]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _names(runs: Runs, by: Collection[Field]) -> dict[str, str]:
    """Name cells; of those that would share a name, each also by what most of them have otherwise."""
    configs = {key: cell.config for (key, _), cell in runs.items()}
    alike: dict[str, list[str]] = {}
    for key, config in configs.items():
        alike.setdefault(words(config), []).append(key)
    named = {}
    for name, keys in alike.items():
        values = {key: {x: y for x, y in _values(configs[key]).items() if x in by} for key in keys}
        usual = _usual(list(values.values()))
        for key in keys:
            unlike = [
                _valued(x, values[key].get(x))
                for x, value in usual.items()
                if _can_have(values[key], x) and values[key].get(x) != value
            ]
            named[key] = ", ".join([name, *unlike])
    return named


def _usual(cells: Sequence[Values]) -> dict[Field, str | None]:
    """Give of each field the value of more than half of the cells that it can be of; "" where there is none.

    Of these cells, those that lack it have None.
    """
    usual: dict[Field, str | None] = {}
    for option in dict.fromkeys(x for values in cells for x in values):
        counts = Counter(values.get(option) for values in cells if _can_have(values, option))
        value, n = counts.most_common(1)[0]
        usual[option] = value if 2 * n > counts.total() else ""
    return usual


def _can_have(values: Values, field: Field) -> bool:
    """Whether a cell has a field, or lacks it though it has what that is an option of."""
    section, owner = field[0].partition(".")[0], field[1]
    return field in values or not owner or values.get((f"{section}.name", "")) == json.dumps(owner)


def _valued(field: Field, value: str | None) -> str:
    """Write a field with its value, or that it is lacking."""
    name = field[0].removesuffix(".name")
    return f"no {name}" if value is None else f"{name} {text_of(json.loads(value))}"


def _without(one: Runs, other: Runs) -> dict[Key, CellMeasures]:
    return {key: cell for key, cell in one.items() if key not in other}


def _alone(side: Iterable[Key], named: Mapping[str, str]) -> list[str]:
    """Name what only one side has."""
    seeds: dict[str, list[str]] = {}
    for key, seed in side:
        seeds.setdefault(named[key], []).append(seed)
    return [f"{name}, {_seeds_text(found)}" for name, found in sorted(seeds.items())]


def _left_out(cells: Iterable[Cell]) -> list[str]:
    """Name the fields that only one side's revision knows, of what was paired."""
    lacking: dict[str, set[str]] = {"BASE": set(), "NEW": set()}
    for pair in (pair for cell in cells for pair in cell.pairs):
        base, new = _values(pair.base.config), _values(pair.new.config)
        lacking["BASE"] |= {_valued(x, base[x]) for x in base.keys() - new.keys()}
        lacking["NEW"] |= {_valued(x, new[x]) for x in new.keys() - base.keys()}
    return [
        f"{side} alone knows {some(sorted(names))}: cells were paired without"
        for side, names in lacking.items()
        if names
    ]


def _not_told_apart(runs: Iterable[Sequence[CellMeasures]]) -> list[str]:
    names = [words(cells[0].config) for cells in runs if len(cells) > 1]
    told = f"not compared, as they differ in nothing that both sides know: {some(names)}"
    return [told] if names else []
