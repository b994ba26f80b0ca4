"""The figures: each a function of a data frame, drawn on a canvas of its own; usable in a notebook.

Bands and whiskers are 95 % t-intervals over seeds. Methods look as ``bench.report.styles`` says.
"""

from bench.report.figures.bars import memory_bars, time_bars
from bench.report.figures.canvas import (
    FEWEST_FOR_INTERVAL,
    NothingToDraw,
    save,
)
from bench.report.figures.curves import accuracy_over_bytes, accuracy_over_rounds, few_shot_curves

__all__ = [
    "FEWEST_FOR_INTERVAL",
    "NothingToDraw",
    "accuracy_over_bytes",
    "accuracy_over_rounds",
    "few_shot_curves",
    "memory_bars",
    "save",
    "time_bars",
]
