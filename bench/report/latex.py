"""Tables and whole reports in LaTeX, for pdflatex and lualatex: every text escaped, as wide as they need."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jinja2
import pandas as pd

from bench.report.styles import SANS, Look
from bench.report.tables import BELOW, BROKEN, Cell, environment
from bench.report.text import ABSENT

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from bench.report.tables import Table

PREAMBLE = r"""\usepackage{amssymb}
\usepackage{array}
\usepackage{booktabs}
\usepackage{siunitx}[2021/05/17]
\usepackage{adjustbox}"""
"""What a document must load for the tables; siunitx since its version 3, of that day."""

_NUMBERS = (
    "mode=match, reset-text-series=false, separate-uncertainty=true, group-digits=integer, "
    "group-separator={,}, group-minimum-digits=4, retain-explicit-plus=true, retain-zero-uncertainty=true, "
    "table-align-text-after=false"
)
# The bold of Latin Modern and Times whose digits are as wide as those of the upright: columns stay aligned.
_BOLD = r"fontseries: {b}\selectfont;"
_MARKS = {BELOW: r"\blacktriangledown", BROKEN: r"\ddagger"}
_MARK_EMS = {BELOW: 0.56, BROKEN: 0.34}

_NUMBER = re.compile(r"([+\N{MINUS SIGN}]?)([\d,]+)(?:\.(\d+))?(?: ± ([\d,]+)(?:\.(\d+))?)?")
_LONGEST_WORD = 16  # of more letters lines may break anywhere
_WIDEST_TEXT = 34  # characters of a column before its lines break
_SHORT_BRACKET = 14  # characters
_HEADING_LINES, _SHORTEST_HEADING = 3, 8
_PAGE_POINTS = 520.0  # of a page, left to the rows of a table


class _Size(NamedTuple):
    """A size of type.

    Its command; in points two digits beside each other, a line, and the space on either side of a column.
    """

    command: str
    em: float
    line: float
    gap: float


# Small type of the Latin Modern family is wider than its size says.
_SMALL = _Size(r"\small", 9.25, 11.0, 4.0)
_SMALLER = _Size(r"\footnotesize", 8.5, 9.5, 3.5)
_SMALLEST = _Size(r"\scriptsize", 7.97, 8.0, 3.0)
_LAYOUTS = (
    ("table", _SMALL),
    ("table", _SMALLER),
    ("table*", _SMALL),
    ("table*", _SMALLER),
    ("table*", _SMALLEST),
)

_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_LATEX = {
    **{c: rf"\ensuremath{{\{name}}}" for c, name in zip(_GREEK, _GREEK_NAMES.split(), strict=True)},
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    **{c: f"\\{c}" for c in "_%$&#"},
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{THIN SPACE}": r"\,",
    "\N{ZERO WIDTH SPACE}": r"\allowbreak{}",
    "\N{ZERO WIDTH NON-JOINER}": "{}",
    "\N{NON-BREAKING HYPHEN}": "-",
    "–": "--",
    "—": "---",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\ldots{}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "±": r"\ensuremath{\pm}",
    "·": r"\ensuremath{\cdot}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "≈": r"\ensuremath{\approx}",
    "→": r"\ensuremath{\rightarrow}",
    "∞": r"\ensuremath{\infty}",
    "°": r"\ensuremath{^\circ}",
    "µ": r"\ensuremath{\mu}",
    "¹": r"\textsuperscript{1}",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
    "†": r"\ensuremath{\dagger}",
    **{mark: rf"\ensuremath{{{command}}}" for mark, command in _MARKS.items()},
}
# What both engines set as it is, in any of their usual fonts.
_LETTERS = set("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿß")
_LETTERS |= set("ĂăĄąĆćČčĎďĐđĘęĚěĞğİıŁłŃńŇňŐőŒœŔŕŘřŚśŞşŠšŤťŮůŰűŸŹźŻżŽž")


def escape_latex(text: object) -> str:
    """Return text that LaTeX sets as it is, on one line, breakable within words that are very long.

    A character of a script that the usual fonts do not have is named by its code: U+4E2D.
    """
    line = re.sub(r"[\t\n\v\f\r ]+", " ", str(text)).strip(" ")
    line = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", line)
    line = re.sub(rf"[^\s\u00a0]{{{_LONGEST_WORD + 1},}}", _breakable, line)
    line = re.sub(r"([-',])(?=\1)", "\\1\N{ZERO WIDTH NON-JOINER}", line)  # else they join: -- is a dash
    return "".join(map(_character, line))


def _breakable(word: re.Match[str]) -> str:
    parts = re.split(r"(?<=[/_.:=+-])(?=\w)", word[0])
    pieces = (textwrap.wrap(part, _LONGEST_WORD, break_on_hyphens=False) or [part] for part in parts)
    return "\N{ZERO WIDTH SPACE}".join(itertools.chain.from_iterable(pieces))


@cache
def _character(c: str) -> str:
    if c in _LATEX:
        return _LATEX[c]
    if c in _LETTERS or (c.isascii() and c.isprintable()):
        return c
    plain = [
        letter for letter in unicodedata.normalize("NFKD", c) if letter.isascii() and letter.isprintable()
    ]
    return "".join(map(_character, plain)) or f"U+{ord(c):04X}"


def table_latex(table: Table, look: Look = SANS, floating: bool = True) -> str:
    """Return a table as one float, or as several where it is longer than a page.

    It is as wide as a column where that holds it, else as the page, in smaller type where need be. One too
    wide for the page is cut into blocks of columns below one another.

    Args:
        table: of numbers and texts.
        look: how wide a column and the page are.
        floating: whether to make floats with caption and label; else the bare tabulars, for a float of the
            author's own.

    Returns:
        LaTeX that needs ``PREAMBLE``, as a comment at its top says.
    """
    columns = [_column(table, index) for index in range(len(table.columns))]
    kind, size, blocks = _layout(table, columns, look)
    pages = _pages(table, columns, size)
    floats = [[_tabular(table, columns, block, rows) for block in blocks] for rows in pages]
    if len(blocks) * len(table.rows) * size.line > _PAGE_POINTS:
        floats = [[block] for each in floats for block in each]
    return _templates().get_template("table.tex.j2").render(
        preamble=PREAMBLE,
        environment=kind if floating else None,
        caption=escape_latex(table.caption),
        name=table.name,
        size=size.command,
        gap=size.gap,
        numbers=_NUMBERS,
        floats=floats,
    )  # fmt: skip


class Placed(NamedTuple):
    """A figure of a document: its file without the suffix, its caption, and how it is set."""

    path: str
    caption: str
    wide: bool
    how: Literal["pgf", "pdf"]


def latex_document(
    tables: Iterable[Table],
    figures: Iterable[tuple[str, str, bool, Literal["pgf", "pdf"]]],
    look: Look = SANS,
) -> str:
    """Return a document of two columns with all tables and figures.

    Args:
        tables: in order.
        figures: of each its path without the suffix, seen from the document's folder; its caption; whether it
            takes the width of the page; and "pgf" or "pdf": which file of it to include.
        look: how wide a column and the page are.

    Returns:
        LaTeX that pdflatex and lualatex compile.
    """
    placed = list(itertools.starmap(Placed, figures))
    folders = dict.fromkeys(str(PurePosixPath(figure.path).parent) for figure in placed)
    return _templates().get_template("report.tex.j2").render(
        preamble=PREAMBLE,
        look=look,
        floats=[table_latex(table, look) for table in tables],
        figures=[
            {
                "environment": "figure*" if figure.wide else "figure",
                "path": figure.path,
                "name": PurePosixPath(figure.path).name,
                "caption": escape_latex(figure.caption),
                "how": figure.how,
            }
            for figure in placed
        ],
        ways={figure.how for figure in placed},
        folders=[folder for folder in folders if folder != "."],
    )  # fmt: skip


@cache
def _templates() -> jinja2.Environment:
    """The same templates, with brackets that LaTeX does not use."""
    return environment().overlay(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )


@dataclass(frozen=True)
class _Column:
    """How a column is set.

    Attributes:
        number: siunitx's format of its numbers; empty for a column of texts.
        spec: as ``tabular`` takes it.
        heading: its lines.
        width: of its widest line, in ems, and of its marks.
        breaks: whether its lines break there.
        room: what stands beside it so that its marks, which take none themselves, touch nothing.
    """

    number: str
    spec: str
    heading: list[str]
    width: float
    breaks: bool = False
    room: str = ""


def _column(table: Table, index: int) -> _Column:
    cells = [_cells(row)[index] for row in table.rows]
    column, most = _unmarked(table, index, cells), max(map(_marks, cells), key=_marks_width, default=[])
    if not most:
        return column
    room = rf"\hphantom{{{_raised(most)}}}"
    return replace(column, width=column.width + _marks_width(most), room=room)


def _unmarked(table: Table, index: int, cells: Sequence[Cell]) -> _Column:
    texts = [line for cell in cells for line in _lines(cell)]
    longest = max(map(len, texts), default=0)
    heading = _heading(table.columns[index], min(longest, _WIDEST_TEXT))
    head = max(map(_width, heading))
    numbers = [match for cell in cells if (match := _NUMBER.fullmatch(cell.text))]
    mostly = index > 0 and 2 * len(numbers) > sum(cell.text != ABSENT for cell in cells)
    if mostly and (found := _number_format(numbers)):
        others = [text for text in texts if not _NUMBER.fullmatch(text)]
        return _Column(
            found[0], f"S[table-format={found[0]}]", heading, max(head, found[1], *map(_width, others), 0)
        )
    if longest > _WIDEST_TEXT:
        width = _WIDEST_TEXT / 2
        return _Column(
            "", rf">{{\raggedright\arraybackslash}}p{{{width:.1f}em}}", heading, width, breaks=True
        )
    figures = index > 0 and any(cell.text[:1].isdigit() for cell in cells)
    return _Column("", "r" if figures else "l", heading, max([head, *map(_width, texts)]))


def _cells(row: tuple[str, list[Cell]]) -> list[Cell]:
    return [Cell(row[0]), *row[1]]


def _marks(cell: Cell) -> list[str]:
    return [mark for mark, there in ((BELOW, cell.below), (BROKEN, cell.broken)) if there]


def _marks_width(marks: Sequence[str]) -> float:
    return sum(_MARK_EMS[mark] for mark in marks)


def _raised(marks: Sequence[str]) -> str:
    return f"$^{{{''.join(_MARKS[mark] for mark in marks)}}}$"


def _lines(cell: Cell) -> list[str]:
    """What stands in a cell, without marks: their room is beside the column."""
    return [cell.text, f"({cell.note})"] if cell.note else [cell.text]


def _heading(text: str, length: int) -> list[str]:
    """A heading in few lines not much longer than what is below it, words and short brackets kept whole."""
    whole = re.sub(
        rf"\([^)]{{,{_SHORT_BRACKET}}}\)|\d %", lambda found: found[0].replace(" ", "\u00a0"), text
    )
    longest = max(map(len, whole.split(" ")))
    for width in itertools.count(max(length, longest, _SHORTEST_HEADING)):
        lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= _HEADING_LINES:
            return lines or [""]
    raise AssertionError


def _number_format(numbers: Sequence[re.Match[str]]) -> tuple[str, float] | None:
    """The format for siunitx and its width in ems; None where value and interval differ in decimals."""
    uncertain = [match for match in numbers if match[4]]
    if any(len(match[3] or "") != len(match[5] or "") for match in uncertain):
        return None
    sign = any(match[1] for match in numbers)
    whole = max(len(match[2].replace(",", "")) for match in numbers)
    decimals = max(len(match[3] or "") for match in numbers)
    of_interval = max((len(match[4].replace(",", "")) for match in uncertain), default=0)
    text = f"{'+' * sign}{whole}.{decimals}" + (f"({of_interval + decimals})" if uncertain else "")
    width = 0.78 * sign + _digits_width(whole, decimals)
    return text, width + (1.23 + _digits_width(of_interval, decimals) if uncertain else 0.0)


def _digits_width(whole: int, decimals: int) -> float:
    commas = (whole - 1) // 3
    return 0.5 * (whole + decimals) + 0.28 * (commas + (decimals > 0))


@cache
def _advance(c: str) -> float:
    """The width of a character in ems of Computer Modern; of others, of a wide letter or their code."""
    font = _computer_modern()
    if font.get_char_index(ord(c)):
        return font.load_char(ord(c)).linearHoriAdvance / 65536 / 100
    code = _character(c)
    return _width(code) if code.startswith("U+") else 1.0


@cache
def _computer_modern() -> Any:
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / "cmr10.ttf"))
    font.set_size(100, 72)
    return font


def _width(text: str) -> float:
    return sum(map(_advance, text))


def _layout(table: Table, columns: Sequence[_Column], look: Look) -> tuple[str, _Size, list[list[int]]]:
    """Environment, size of type, and the columns of each block, that of the row names first."""
    everything = list(range(len(columns)))
    for name, size in _LAYOUTS:
        points = 72.27 * (look.column if name == "table" else look.page)
        if _needs(table, columns, everything, size) <= points:
            return name, size, [everything]
    for n_blocks in itertools.count(2):
        step = math.ceil((len(columns) - 1) / n_blocks)
        blocks = [[0, *everything[start : start + step]] for start in everything[1::step]]
        if step == 1 or all(_needs(table, columns, block, _SMALLER) <= points for block in blocks):
            break
    return "table*", _SMALLER, blocks


def _needs(table: Table, columns: Sequence[_Column], block: Sequence[int], size: _Size) -> float:
    """Points that these columns take, with the gaps between them."""
    widths = {index: size.em * columns[index].width for index in block}
    spare = 0.0
    for text, members in _groups(table, block):
        own = sum(widths[index] for index in members) + 2 * size.gap * (len(members) - 1)
        spare += max(0.0, size.em * _width(text) - own)
    return sum(widths.values()) + 2 * size.gap * (len(block) - 1) + spare


def _groups(table: Table, block: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The groups of a block's columns: heading and columns."""
    spans = [(number, text) for number, (text, span) in enumerate(table.groups) for _ in range(span)]
    members = [(spans[index - 1], index) for index in block if index and spans]
    grouped = itertools.groupby(members, key=lambda member: member[0])
    return [(text, [index for _, index in group]) for (_, text), group in grouped]


def _pages(table: Table, columns: Sequence[_Column], size: _Size) -> list[range]:
    """The rows of each float, so that none is longer than a page."""
    pages, start, room = [], 0, _PAGE_POINTS
    for number, row in enumerate(table.rows):
        height = size.line * _row_lines(row, columns)
        if height > room and number > start:
            pages.append(range(start, number))
            start, room = number, _PAGE_POINTS
        room -= height
    return [*pages, range(start, len(table.rows))]


def _row_lines(row: tuple[str, list[Cell]], columns: Sequence[_Column]) -> int:
    cells = _cells(row)
    broken = [
        math.ceil(1.2 * _width(cell.text) / column.width)
        for cell, column in zip(cells, columns, strict=True)
        if column.breaks
    ]
    return max([1, *broken]) + any(cell.note for cell in cells)


def _tabular(table: Table, columns: Sequence[_Column], block: Sequence[int], rows: range) -> str:
    """The ``tabular`` of some columns and rows, set by pandas."""
    lines, bold = [], []
    for number in rows:
        cells = _cells(table.rows[number])
        lines.append([_entry(cells[index], columns[index]) for index in block])
        bold.append([_BOLD if cells[index].best else "" for index in block])
        if number == len(table.rows) - table.foot:
            lines[-1][0] = f"\\midrule\n{lines[-1][0]}"
        if any(cells[index].note for index in block):
            lines.append([f"{{({escape_latex(cells[i].note)})}}" if cells[i].note else "" for i in block])
            bold.append([""] * len(block))
    groups = _groups(table, block)
    frame = pd.DataFrame(lines, columns=_header(groups, len(block)), dtype=object)
    headings = [_stacked(columns[index]) for index in block]
    styler = _named(frame.style.hide(axis="index"), headings, level=int(bool(groups)))
    if groups:
        styler = _named(styler, [*(escape_latex(text) for text, _ in groups), ""], level=0)
    styler = styler.apply(lambda _: pd.DataFrame(bold, frame.index, frame.columns), axis=None)
    text = styler.to_latex(
        column_format=_specs([columns[index] for index in block]),
        hrules=True,
        siunitx=True,
        multicol_align="c",
    ).strip()
    return text.replace("\\\\\n", f"\\\\\n{_rules(groups)}\n", 1) if groups else text


def _specs(columns: Sequence[_Column]) -> str:
    """The columns as ``tabular`` takes them, with the room for the marks beside them."""
    *inner, last = columns
    within = "".join(column.spec + (f"!{{{column.room}}}" if column.room else "") for column in inner)
    return f"@{{}}{within}{last.spec}@{{{last.room}}}"


def _named(styler: Styler, names: Sequence[str], level: int) -> Styler:
    """Call the columns, or groups of them, by their numbers' names."""
    return styler.format_index(lambda number: names[int(str(number))], axis="columns", level=level)


def _header(groups: Sequence[tuple[str, list[int]]], n_columns: int) -> pd.Index:
    """Numbers for pandas to tell the columns apart, which the headings are then set for."""
    numbers = range(n_columns)
    if not groups:
        return pd.Index(numbers)
    of_column = [-1, *(number for number, (_, members) in enumerate(groups) for _ in members)]
    return pd.MultiIndex.from_arrays([of_column, numbers])


def _rules(groups: Sequence[tuple[str, list[int]]]) -> str:
    """A line under each group's heading."""
    ends = list(itertools.accumulate((len(members) for _, members in groups), initial=1))
    return " ".join(
        rf"\cmidrule(lr){{{before + 1}-{end}}}"
        for (text, _), (before, end) in zip(groups, itertools.pairwise(ends), strict=True)
        if text
    )


def _stacked(column: _Column) -> str:
    """A heading, its lines below one another."""
    lines = [escape_latex(line) for line in column.heading]
    if len(lines) == 1 or column.breaks:
        return " ".join(lines)
    align = "c" if column.number else column.spec[-1] if len(column.spec) == 1 else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{align}@{{}}}}" + r"\\ ".join(lines) + r"\end{tabular}"


def _entry(cell: Cell, column: _Column) -> str:
    """A cell as LaTeX. Bold is left to pandas, as it must stand before a number."""
    match = _NUMBER.fullmatch(cell.text) if column.number else None
    raised = rf"\rlap{{{_raised(marks)}}}" if (marks := _marks(cell)) else ""
    if match:
        number = cell.text.replace("\N{MINUS SIGN}", "-").replace(",", "").replace("±", r"\pm")
        if cell.second:
            return rf"{{\underline{{\tablenum[table-format={column.number}]{{{number}}}}}{raised}}}"
        return f"{number} {{{raised}}}" if raised else number
    text = escape_latex(cell.text)
    text = rf"\underline{{{text}}}" if cell.second else text
    return f"{{{text}{raised}}}" if column.number else f"{text}{raised}"
