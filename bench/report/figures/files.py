"""The files of a figure. The same figure gives the same bytes: none carries a date or a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bench.report.figures.pgf import check_latex, write_pgf
from bench.report.styles import SANS, Look
from flora.errors import BadInput

FORMATS = ("pdf", "svg", "png", "pgf")
RESOLUTION = 200  # dots per inch
# What files of every format hold, uncompressed, where the checksum of a figure's data was given.
_MARK = "data-sha256"
_MARKED = re.compile(rb"data-sha256[:\0]([0-9a-f]{64})")


def check_formats(names: Iterable[str]) -> None:
    """Raise BadInput for a format that is not of ``FORMATS``, or that needs a LaTeX where there is none."""
    for name in names:
        if name not in FORMATS:
            raise BadInput(
                f"format: {name!r} is none that figures come in; must be one of {', '.join(FORMATS)}"
            )
        if name == "pgf":
            check_latex()


def save(
    figure: Figure,
    stem: Path,
    formats: Sequence[str] = ("png", "pdf"),
    look: Look = SANS,
    data_sha256: str | None = None,
) -> list[Path]:
    """Write a figure to ``stem`` with the ending of each format.

    Args:
        figure: as a function of ``bench.report.figures`` gives it; is left as it was.
        stem: path of the files without their ending.
        formats: of ``FORMATS``.
        look: that the figure was drawn with.
        data_sha256: checksum of the data it shows; goes into each file, see ``read_data_sha256``.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        BadInput: a format is not known, or needs a LaTeX that is not there or cannot set one of the texts.
    """
    check_formats(formats)
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    with look.drawing(), mpl.rc_context({"svg.hashsalt": "flora-bench"}), _laid_out(figure):
        for name, path in zip(formats, paths, strict=True):
            _write(figure, name, path, data_sha256)
    return paths


def read_data_sha256(path: Path) -> str | None:
    """Return the checksum of the data that a saved figure shows; None where it holds none."""
    found = _MARKED.search(path.read_bytes())
    return found[1].decode("ascii") if found else None


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay the figure out, once for all formats: it is what takes longest in drawing."""
    engine, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.set_canvas(canvas)
        figure.dpi = dpi


def _write(figure: Figure, name: str, path: Path, sha256: str | None) -> None:
    """Write one format. A canvas's own method draws once, where ``savefig`` would draw twice."""
    mark = f"{_MARK}:{sha256}" if sha256 else None
    if name == "pdf":
        unsaid = {"Creator": None, "Producer": None, "CreationDate": None}
        FigureCanvasPdf(figure).print_pdf(path, metadata={**unsaid, "Keywords": mark})
    elif name == "svg":
        FigureCanvasSVG(figure).print_svg(path, metadata={"Creator": None, "Date": None, "Keywords": mark})
    elif name == "png":
        figure.dpi = RESOLUTION
        said = {_MARK: sha256} if sha256 else {}
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None, **said})
    else:
        write_pgf(figure, path, mark or "")
