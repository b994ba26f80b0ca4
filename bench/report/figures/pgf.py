"""Figures as PGF, whose texts the author's own LaTeX sets: in the font of the document they are put into."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.backends.backend_pgf import FigureCanvasPgf, LatexError
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import Formatter

from bench.report.latex import escape_latex
from flora.errors import BadInput

LATEX = "pdflatex"
# Fonts are the document's, so texts are measured in LaTeX's own.
_SETTINGS = {"pgf.texsystem": LATEX, "pgf.rcfonts": False, "pgf.preamble": r"\usepackage{amssymb}"}


def check_latex() -> None:
    """Raise BadInput where there is no LaTeX to measure texts with."""
    if shutil.which(LATEX) is None:
        raise BadInput(
            f"format pgf needs {LATEX}, which is not on the PATH; install a LaTeX (texlive-latex-recommended "
            "and texlive-pictures), or leave pgf out of the formats"
        )


def write_pgf(figure: Figure, path: Path, mark: str = "") -> None:
    r"""Write a laid-out figure for ``\input``, under a comment with ``mark``.

    A document needs the package pgf for it, and amssymb where a text holds a sign such as ▼.

    Raises:
        BadInput: there is no LaTeX, or it cannot set one of the texts.
    """
    check_latex()
    try:
        with (
            mpl.rc_context(_SETTINGS),
            _texts_in_latex(figure),
            _thin_hatches(figure),
            path.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.write(f"% {mark}\n" if mark else "")
            FigureCanvasPgf(figure).print_pgf(file)
    except (LatexError, ValueError) as error:
        failed = error if isinstance(error, LatexError) else error.__cause__
        if not isinstance(failed, LatexError):
            raise
        path.unlink()
        raise BadInput(f"format pgf: {_complaint(failed)}; leave pgf out of the formats") from error


def _complaint(error: LatexError) -> str:
    """What LaTeX says first, in one line."""
    found = re.search(r"^! (.+?)(?:\n\n|\n[^ ]|\Z)", error.latex_output, re.M | re.S)
    return " ".join((found[1] if found else str(error.args[0])).split())


@contextmanager
def _texts_in_latex(figure: Figure) -> Iterator[None]:
    """Every text of the figure, also those its axes have yet to make, as LaTeX is to read it."""
    texts = [(text, text.get_text()) for text in figure.findobj(Text)]
    # axes that share an axis share its ticker
    tickers = {id(ticker): ticker for axis in figure.findobj(Axis) for ticker in (axis.major, axis.minor)}
    formatters = [(ticker, ticker.formatter) for ticker in tickers.values() if ticker.formatter]
    try:
        for text, own in texts:
            text.set_text(in_latex(own))
        for ticker, formatter in formatters:
            ticker.formatter = _InLatex(formatter)
        yield
    finally:
        for text, own in texts:
            text.set_text(own)
        for ticker, formatter in formatters:
            ticker.formatter = formatter


@contextmanager
def _thin_hatches(figure: Figure) -> Iterator[None]:
    """Each sign of a hatch once: LaTeX takes minutes to draw the dots and rings of dense ones."""
    hatched = [(patch, patch.get_hatch()) for patch in figure.findobj(Patch) if patch.get_hatch()]
    try:
        for patch, hatch in hatched:
            patch.set_hatch("".join(dict.fromkeys(hatch)))
        yield
    finally:
        for patch, hatch in hatched:
            patch.set_hatch(hatch)


class _InLatex(Formatter):
    """What another formatter writes at ticks, as LaTeX is to read it."""

    def __init__(self, own: Formatter) -> None:
        self.own = own

    def __call__(self, x: float, pos: int | None = None) -> str:
        return in_latex(self.own(x, pos))

    def format_ticks(self, values: list[float]) -> list[str]:
        return [in_latex(text) for text in self.own.format_ticks(values)]

    def get_offset(self) -> str:
        return in_latex(self.own.get_offset())

    def set_locs(self, locs: list[float]) -> None:
        self.own.set_locs(locs)


def in_latex(text: str) -> str:
    r"""Return LaTeX that sets what matplotlib shows: ``$...$`` is mathematics, ``\$`` a dollar."""
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0:  # matplotlib takes an odd number of dollars for dollars
        parts = [text]
    # \mathdefault is matplotlib's own, not known to a document
    formulas = ["$" + part.replace(r"\mathdefault", "") + "$" for part in parts[1::2]]
    texts = [_escaped(part.replace(r"\$", "$")) for part in parts[::2]]
    return texts[0] + "".join(formula + text for formula, text in zip(formulas, texts[1:], strict=True))


def _escaped(text: str) -> str:
    """Escape each line, with the spaces around it left."""
    lines = re.sub(r"\S(?:.*\S)?", lambda line: escape_latex(line[0]), text)
    # matplotlib would make a dollar of \$; not every encoding of fonts has a straight quotation mark
    return lines.replace(r"\$", r"\textdollar{}").replace(r"\textquotedbl{}", r"{\char34}")
