"""Choosing among stored runs by conditions on their fields."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MISSING = dict.fromkeys(("none", "null"), "null")
"""What is written for a value that is missing, such as the shots of all data; and as JSON has it."""

CONDITION = re.compile(r"\s*([^<>=!\s]+)\s*(<=|>=|!=|=|<|>)\s*([^<>=!]*?)\s*")
"""A condition: field, sign and value."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def selected(runs: DataFrame, where: Sequence[str], option: str = "--where") -> Series[bool]:
    """Say which runs meet all conditions, such as "method=flora" or "accuracy>=0.5".

    ``option`` is what errors call them.

    Raises:
        BadInput: a condition is none, or of a field that there is not, or compares what has no order.
    """
    import pandas as pd

    chosen = pd.Series(True, index=runs.index)
    for condition in where:
        found = CONDITION.fullmatch(condition)
        if not found:
            raise BadInput(f"{option}: {condition!r} must be FIELD=VALUE, or with !=, <, <=, > or >=")
        name, sign, text = found.groups()
        values = runs[field_of(runs, name, option)]
        if sign not in ("=", "!=") and (number_of(text) is None or not values.map(is_ordered).all()):
            raise BadInput(f"{option}: {condition!r} compares what is no number; use = or !=")
        chosen &= values.map(partial(meets, sign=sign, text=text)).astype(bool)
    return chosen


def meets(value: Any, sign: str, text: str) -> bool:
    """Say whether a value meets a condition with this sign and value."""
    known, number = plain(value), number_of(text)
    if known is None:
        return (text in MISSING) == (sign == "=") and sign in ("=", "!=")
    if number is not None and isinstance(known, int | float) and not isinstance(known, bool):
        return _OPERATORS[sign](known, number)
    return _OPERATORS[sign](text_of(known), text.lower() if isinstance(known, bool) else text)


def is_ordered(value: Any) -> bool:
    """Say whether a value is a number, or missing."""
    known = plain(value)
    return known is None or (isinstance(known, int | float) and not isinstance(known, bool))


def number_of(text: str) -> float | None:
    """Read a number; None for what is none."""
    try:
        return float(text)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """Return a cell of a table as JSON knows it; what is missing, as None."""
    if isinstance(value, tuple | list | dict):
        return value
    import pandas as pd

    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which name may be meant, as the end of an error message; nothing where none is like it."""
    alike = get_close_matches(name, list(known), n=1)
    return f"; did you mean {alike[0]!r}?" if alike else ""


def field_of(runs: DataFrame, name: str, option: str) -> str:
    """Find the one column that an option names.

    Raises:
        BadInput: there is none, or several are named.
    """
    found = fields_of(runs, name, option)
    if len(found) > 1:
        raise BadInput(f"{option}: {name!r} must be one field")
    return found[0]


def fields_of(runs: DataFrame, names: str, option: str) -> list[str]:
    """Find the columns that an option names, separated by commas."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise BadInput(f"{option}: {names!r} must be fields, separated by commas")
    known = [str(field) for field in runs]
    for name in found:
        if name not in known:
            alike = [field for field in known if field.endswith(f".{name}")] or get_close_matches(name, known)
            hint = f"did you mean {alike[0]!r}?" if alike else "--json shows all there are"
            raise BadInput(f"{option}: there is no field {name!r}; {hint}")
    return list(dict.fromkeys(found))


def text_of(value: Any) -> str:
    """Write a value as it is given on the command line."""
    if isinstance(value, tuple | list):
        return "+".join(map(text_of, value))
    return value if isinstance(value, str) else json.dumps(value)
