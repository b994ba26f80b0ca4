"""What an author decides about tables and figures: a small YAML file, which makes them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from bench.report.names import Names, label_runs
from bench.report.styles import Look
from bench.report.text import Digits
from bench.selection import MISSING, did_you_mean, field_of, plain, selected, text_of
from flora.errors import BadInput, nearest
from flora.settings import Settings


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> Any:
    """One text for a list of one."""
    return [value] if isinstance(value, str) else value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable text")
    return value


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("must be an accuracy above 0 and up to 1, such as 0.8")
    return value


def _some_formats(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError("must name at least one of pdf, svg, png and pgf")
    return value


Format = Literal["pdf", "svg", "png", "pgf"]
Formats = Annotated[tuple[Format, ...], BeforeValidator(_texts), AfterValidator(_some_formats)]
Listed = Annotated[list[Any], BeforeValidator(_listed)]
Printable = Annotated[str, AfterValidator(_printable)]
Share = Annotated[StrictFloat, AfterValidator(_share)]
Texts = Annotated[tuple[Printable, ...], BeforeValidator(_texts)]
Mapped = Annotated[dict[str, Printable], BeforeValidator(lambda value: {} if value is None else value)]


class Calls(Settings):
    """Display names, by name; those of methods and splits also by the label that would be shown otherwise."""

    tasks: Mapped = Field(default_factory=dict)
    methods: Mapped = Field(default_factory=dict)
    splits: Mapped = Field(default_factory=dict)


class Order(Settings):
    """What stands first, by name or label; the rest follows in the order of the report."""

    tasks: Texts = ()
    methods: Texts = ()
    splits: Texts = ()


class Exactness(Settings):
    """Decimals of accuracies in percent, significant digits of costs."""

    accuracy: StrictInt = Field(1, ge=0, le=4)
    cost: StrictInt = Field(3, ge=2, le=8)


class Widths(Settings):
    """Inches of a column of the paper, and of its text."""

    column: float = Field(3.25, gt=1, lt=20)
    page: float = Field(6.875, gt=1, lt=30)

    @model_validator(mode="after")
    def _column_fits(self) -> Widths:
        if self.page < self.column:
            raise ValueError(
                f"page {self.page:g} is narrower than a column of {self.column:g}; exchange the two"
            )
        return self


# Fields for which null says something.
_NULLS = ("width", "target", "tables", "figures")


class Paper(Settings):
    """How a report is to be set. With no field given it is the report's own way.

    Attributes:
        title: of the page.
        where: conditions on the runs, such as "method=flora" or "accuracy>0.5"; all must hold.
        select: by field, the value or values to report.
        names: what tasks, methods and splits are called.
        order: which of them come first.
        digits: how exactly numbers are written.
        font: of the figures.
        width: of the figures; null for a column where one fits.
        inches: of a column and of the page's text.
        formats: of the figures' files.
        reference: the method that costs are set against.
        target: accuracy that time, bytes and energy are counted up to; null for one halfway between zero-shot
            and the best method.
        floats: whether LaTeX tables are floats with a caption and a label, or tabulars alone.
        tables, figures: kinds to make; null for all that the runs have data for.
    """

    title: Printable = "Federated fine-tuning of vision-language models"
    where: Texts = ()
    select: dict[str, Listed] = Field(default_factory=dict)
    names: Calls = Calls()
    order: Order = Order()
    digits: Exactness = Exactness()
    font: Literal["sans", "serif"] = "sans"
    width: Literal["column", "page"] | None = None
    inches: Widths = Widths()
    formats: Formats = ("pdf", "svg")
    reference: str = "full_finetune"
    target: Share | None = None
    floats: StrictBool = True
    tables: Texts | None = None
    figures: Texts | None = None

    @classmethod
    def read(cls, path: Path) -> Paper:
        """Read a YAML file.

        Raises:
            BadInput: it cannot be read, or holds what is no field or cannot be its value.
        """
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict | None):
            raise BadInput(f"{path}: must hold fields with values, such as 'font: serif'")
        return cls.of(content or {}, str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "paper") -> Paper:
        """Check settings; ``where`` is where errors are from: a file, or one field's option."""
        try:
            # a section left empty is one that is not there
            return cls.model_validate(
                {name: x for name, x in values.items() if x is not None or name in _NULLS}
            )
        except ValidationError as error:
            problem = _problem(error)
            # an option says which field it is by its own name
            own = problem.removeprefix(f"{next(iter(values))} ") if len(values) == 1 else problem
            raise BadInput(f"{where}: {own if where.startswith('--') else problem}") from error

    @property
    def look(self) -> Look:
        """Type and width of the figures."""
        return Look(self.font, self.width, self.inches.column, self.inches.page)

    @property
    def written(self) -> Digits:
        """How exactly numbers are written."""
        return Digits(self.digits.accuracy, self.digits.cost)

    @property
    def called(self) -> Names:
        """Names and order, as ``label_runs`` takes them."""
        return Names(
            self.names.tasks,
            self.names.methods,
            self.names.splits,
            self.order.tasks,
            self.order.methods,
            self.order.splits,
        )

    def choose(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Give the runs that are to be reported.

        Raises:
            BadInput: there is no such field or value, or nothing is left.
        """
        chosen = selected(runs, self.where, "where")
        for name, values in self.select.items():
            column = field_of(runs, name, "select")
            own = [text_of(plain(value)) for value in runs[column]]
            wanted = {MISSING.get(text, text) for text in map(text_of, values)}
            if unknown := sorted(wanted - set(own)):
                raise BadInput(
                    f"select.{name}: no run has {unknown[0]!r}{did_you_mean(unknown[0], own)}; "
                    f"there is {_some(own)}"
                )
            chosen &= pd.Series([text in wanted for text in own], index=runs.index)
        if not chosen.any():
            raise BadInput(f"{self.selection}: matches none of {len(runs)} runs; there is {_present(runs)}")
        return runs[chosen]

    @property
    def selection(self) -> str:
        """What the runs are chosen by, in words; empty where all are."""
        chosen = [f"{name} {' or '.join(map(text_of, values))}" for name, values in self.select.items()]
        return " and ".join([*self.where, *chosen])

    def unmatched(self, runs: pd.DataFrame) -> list[str]:
        """Say which names of this file are those of nothing in the runs, a line each.

        Args:
            runs: labelled with the names and order of this file, before any selection.
        """
        found = []
        for kind in ("tasks", "methods", "splits"):
            column = kind.removesuffix("s")
            usual = label_runs(runs[[name for name in runs if not str(name).endswith("_label")]])
            known = {
                *map(str, runs[column]),
                *map(str, usual[f"{column}_label"]),
                *map(str, runs[f"{column}_label"]),
            }
            for section in ("names", "order"):
                for name in getattr(getattr(self, section), kind):
                    if name not in known:
                        found.append(f"{section}.{kind}: no run is of {name!r}{did_you_mean(name, known)}")
        methods = {*map(str, runs["method"]), *map(str, runs["method_label"])}
        if self.reference not in methods and "reference" in self.model_fields_set:
            found.append(f"reference: no run is of {self.reference!r}{did_you_mean(self.reference, methods)}")
        return found


def _problem(error: ValidationError) -> str:
    """The first thing wrong, in a line: where, what was given, what would be right."""
    first = error.errors(include_url=False)[0]
    place = [part for part in first["loc"] if isinstance(part, str)]
    field = ".".join(place)
    if first["type"] == "extra_forbidden":
        model: Any = Paper
        for part in place[:-1]:
            model = model.model_fields[part].annotation
        return f"there is no field {field!r}{nearest(place[-1], model.model_fields)}"
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        problem = "must be a mapping of fields to values"
    elif first["type"] in ("tuple_type", "list_type"):
        problem = "must be a list"
    else:
        problem = first["msg"].removeprefix("Value error, ")
        problem = problem.replace("Input should", "must").replace(" a valid number", " a number")
    return f"{field} {first['input']!r} {problem}"


def _present(runs: pd.DataFrame) -> str:
    """Name what a selection could have named."""
    return "; ".join(
        f"{name} {_some([text_of(plain(value)) for value in runs[name]])}"
        for name in ("task", "method", "split", "shots")
    )


def _some(values: Any, most: int = 8) -> str:
    names = sorted(map(str, dict.fromkeys(values)))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
