"""What an author decides about tables and figures: a small YAML file, which makes them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from bench.report.names import Names
from bench.report.styles import Look
from bench.report.text import Digits
from bench.selection import fields_of, plain, selected, text_of
from flora.errors import BadInput, nearest
from flora.settings import Settings

Listed = Annotated[list[Any], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
Strings = Annotated[dict[str, str], BeforeValidator(lambda value: value or {})]


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("must be an accuracy above 0 and up to 1, such as 0.8")
    return value


Share = Annotated[float, AfterValidator(_share)]
Conditions = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]


class Calls(Settings):
    """Display names, by name; those of methods and splits also by the label that would be shown otherwise."""

    tasks: Strings = Field(default_factory=dict)
    methods: Strings = Field(default_factory=dict)
    splits: Strings = Field(default_factory=dict)


class Order(Settings):
    """What stands first, by name or label; the rest follows in the order of the report."""

    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


class Exactness(Settings):
    """Decimals of accuracies in percent, significant digits of costs."""

    accuracy: int = Field(1, ge=0, le=4)
    cost: int = Field(3, ge=2, le=8)


class Widths(Settings):
    """Inches of a column of the paper, and of its text."""

    column: float = Field(3.25, gt=1, lt=20)
    page: float = Field(6.875, gt=1, lt=30)


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
        tables, figures: kinds to make; null for all that the runs have data for.
    """

    title: str = "Federated fine-tuning of vision-language models"
    where: Conditions = ()
    select: dict[str, Listed] = Field(default_factory=dict)
    names: Calls = Calls()
    order: Order = Order()
    digits: Exactness = Exactness()
    font: Literal["sans", "serif"] = "sans"
    width: Literal["column", "page"] | None = None
    inches: Widths = Widths()
    formats: tuple[Literal["pdf", "svg", "png", "pgf"], ...] = Field(("pdf", "svg"), min_length=1)
    reference: str = "full_finetune"
    target: Share | None = None
    tables: tuple[str, ...] | None = None
    figures: tuple[str, ...] | None = None

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
            return cls.model_validate(dict(values))
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
            (column,) = fields_of(runs, name, "select")
            known = {text_of(plain(value)): plain(value) for value in runs[column]}
            wanted = {text_of(value) for value in values}
            if unknown := sorted(wanted - set(known)):
                raise BadInput(
                    f"select.{name}: no run has {unknown[0]!r}{nearest(unknown[0], known)}; "
                    f"there is {_some(known)}"
                )
            chosen &= (
                runs[column].map(lambda value, wanted=wanted: text_of(plain(value)) in wanted).astype(bool)
            )
        if not chosen.any():
            raise BadInput(
                f"{self._selection()}: matches none of {len(runs)} runs; there is {_present(runs)}"
            )
        return runs[chosen]

    def _selection(self) -> str:
        chosen = [f"{name}={'|'.join(map(text_of, values))}" for name, values in self.select.items()]
        return " and ".join([*self.where, *chosen])


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
    problem = first["msg"].replace("Input should", "must").removeprefix("Value error, ")
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
