"""In what two reports differ, file by file: numbers as numbers, words as words, pictures by their data."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from math import isclose, isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from bench.report.figures import read_data_sha256
from bench.report.manifest import FIGURES, TABLES, is_as_written

TOLERANCE = 1e-12
"""Relative: a sum that another machine adds up in another order is the same number."""

_PAGE = "index.html"
_LONGEST, _BEFORE = 60, 20
# What parts the cells of a table: in LaTeX, in Markdown, in HTML.
_BETWEEN_CELLS = re.compile(r"[&|<>]|\\\\")
# Of the page: the data that its script shows, and its tables.
_DATA = re.compile(r'(?<=<script type="application/json" id="data">).*?(?=</script>)', re.DOTALL)
_TABLES_OF_PAGE = re.compile(r'<figure class="table">.*?</figure>', re.DOTALL)


@dataclass(frozen=True)
class Closely:
    """How closely reports are compared.

    Attributes:
        made_with: the versions that drew one of the two alone, in words; with any, pictures are not compared
            byte for byte.
        words: the page also word for word, which asks for the code that wrote it.
        undrawn: formats of figures that only one of the two reports has, as a machine cannot draw them.
    """

    made_with: str = ""
    words: bool = True
    undrawn: frozenset[str] = frozenset()

    @property
    def documents(self) -> bool:
        """Whether to compare what puts tables and figures together: it says which formats there are."""
        return not self.undrawn

    def drawn_by_both(self, name: str) -> bool:
        """Whether both reports have to have this file."""
        path = PurePosixPath(name)
        return path.parts[0] != FIGURES or path.suffix.removeprefix(".") not in self.undrawn


def differences(report: Path, expected: Path, name: str, closely: Closely) -> Iterator[str]:
    """Say in what a file of a report is not as expected.

    Args:
        report: the folder of the report.
        expected: the folder of the one that the runs give.
        name: of the file below both.
        closely: how.
    """
    path = PurePosixPath(name)
    files = report / name, expected / name
    if is_picture(name):
        yield from _of_pictures(report, expected, name, closely)
    elif not files[1].exists():  # of a format that cannot be drawn here, or told of already
        return
    elif path.suffix == ".csv":
        yield from csv_differences(*map(_text, files))
    elif name == _PAGE:
        found, should = map(_text, files)
        yield from page_differences(found, should, words=closely.words)
    elif path.parts[0] == TABLES or closely.documents:
        yield from text_differences(*map(_text, files))


def csv_differences(found: str, expected: str) -> Iterator[str]:
    """Compare tables cell by cell; numbers that are written differently may be equal."""
    if found == expected:
        return
    (header, *rows), (other_header, *other_rows) = (_rows(text) or [[]] for text in (found, expected))
    if header != other_header:
        yield f"columns: {_both(','.join(header), ','.join(other_header))}"
        return
    if len(rows) != len(other_rows):
        yield f"has {len(rows):,} rows, the runs give {len(other_rows):,}"
        return
    for number, (row, other) in enumerate(zip(rows, other_rows, strict=True), 2):
        cells = zip_longest(header, row, other, fillvalue="")
        for column, one, two in cells:
            if one != two and not _same_number(one, two):
                yield f"line {number}, {column}: {_both(one, two)}"


def text_differences(found: str, expected: str) -> Iterator[str]:
    """Compare documents and tables line by line, and the cells of a line that has as many as expected."""
    if found == expected:
        return
    lines = zip_longest(found.splitlines(), expected.splitlines(), fillvalue="")
    for number, (one, two) in enumerate(lines, 1):
        if one == two:
            continue
        cells, others = _BETWEEN_CELLS.split(one), _BETWEEN_CELLS.split(two)
        if len(cells) != len(others):
            yield f"line {number}: {_both(one, two)}"
            continue
        for index, (cell, other) in enumerate(zip(cells, others, strict=True), 1):
            if cell != other:
                where = f"line {number}, cell {index}" if len(cells) > 1 else f"line {number}"
                yield f"{where}: {_both(cell, other)}"


def page_differences(found: str, expected: str, words: bool = True) -> Iterator[str]:
    """Compare pages: the data in them number by number, and their tables; the rest line by line.

    Args:
        found: the page.
        expected: what it should be.
        words: compare the rest too.
    """
    if found == expected:
        return
    data, should = _DATA.findall(found), _DATA.findall(expected)
    if len(data) != len(should):
        yield f"has {len(data):,} times data for its script, the runs give {len(should):,}"
        return
    for one, two in zip(data, should, strict=True):
        try:
            yield from _data_differences(json.loads(one), json.loads(two), "data")
        except (ValueError, RecursionError):
            yield "its data cannot be read"
    rest = (_DATA.sub("", found), _DATA.sub("", expected))
    if words:
        yield from text_differences(*rest)
        return
    tables, others = (_TABLES_OF_PAGE.findall(text) for text in rest)
    if len(tables) != len(others):
        yield f"has {len(tables):,} tables, the runs give {len(others):,}"
        return
    for number, (one, two) in enumerate(zip(tables, others, strict=True), 1):
        yield from (f"table {number}, {what}" for what in text_differences(one, two))


def _data_differences(found: Any, expected: Any, where: str) -> Iterator[str]:
    """Compare values as JSON has them."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            yield f"{where}: {_both(', '.join(sorted(found)), ', '.join(sorted(expected)))}"
        for key in expected.keys() & found.keys():
            yield from _data_differences(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (one, two) in enumerate(zip(found, expected, strict=True)):
            yield from _data_differences(one, two, f"{where}.{index}")
    elif type(found) is not type(expected) or found != expected:
        one, two = (json.dumps(value, ensure_ascii=False) for value in (found, expected))
        if not _same_number(one, two):
            yield f"{where}: {_both(one, two)}"


def count_numbers(text: str) -> int:
    """Count the cells of a CSV text that hold a number."""
    return sum(_number(cell) is not None for row in _rows(text)[1:] for cell in row)


def is_picture(name: str) -> bool:
    """Whether a file of a report is a picture."""
    path = PurePosixPath(name)
    return path.parts[0] == FIGURES and path.suffix != ".csv"


def why_not_compared(report: Path, expected: Path, name: str, closely: Closely) -> str:
    """Say why a picture cannot be compared itself, but by the data that it says it shows; "" if it can."""
    if closely.made_with:
        return f"made with {closely.made_with}"
    if not (expected / name).exists():
        return f"{PurePosixPath(name).suffix.removeprefix('.')} cannot be drawn here"
    numbers = PurePosixPath(name).with_suffix(".csv")
    if not _same_bytes(report / numbers, expected / numbers):
        return "their numbers differ in the last digits"
    return ""


def _of_pictures(report: Path, expected: Path, name: str, closely: Closely) -> Iterator[str]:
    """Compare a picture's data by the checksum that it carries, then itself where that can be expected."""
    numbers = PurePosixPath(name).with_suffix(".csv")
    try:
        drawn_from = read_data_sha256(report / name)
    except (OSError, ValueError):
        drawn_from = None
    if drawn_from is None or not is_as_written(report / numbers, drawn_from):
        yield f"was not drawn from the numbers in {numbers}"
    elif not why_not_compared(report, expected, name, closely) and not _same_bytes(
        report / name, expected / name
    ):
        yield "is not the picture that its numbers give"


def printable(text: str) -> str:
    """Return text on one line without what may steer a terminal, as what a forged file holds may."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def _rows(text: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:  # a field as long as no table of ours has
        return [[line] for line in text.splitlines()]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _same_number(one: str, other: str) -> bool:
    numbers = _number(one), _number(other)
    return None not in numbers and isclose(*numbers, rel_tol=TOLERANCE)  # type: ignore[arg-type]


def _both(found: str, expected: str) -> str:
    """Give two texts, of long ones what stands around the first difference."""
    texts = [" ".join(text.split()) for text in (found, expected)]
    if texts[0] == texts[1]:  # they differ in blanks alone
        texts = [found, expected]
    pairs = enumerate(zip(*texts, strict=False))
    alike = next((i for i, pair in pairs if len(set(pair)) > 1), min(map(len, texts)))
    start = max(0, alike - _BEFORE) if max(map(len, texts)) > _LONGEST else 0
    # quoted by Python, as what a forged file holds may steer a terminal; LaTeX stays readable
    one, other = (repr(_cut(text, start)).replace(r"\\", "\\") for text in texts)
    return f"has {one}, the runs give {other}"


def _cut(text: str, start: int) -> str:
    end = start + _LONGEST
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
