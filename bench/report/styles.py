"""How methods look: each keeps its colour, marker, line style and hatch in all figures.

The colours are Okabe and Ito's and, where these run out, Paul Tol's: told apart by readers of every colour
vision. The rest is for grey print, and for more methods than there are such colours.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style as mpl_style
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from bench.report.names import label_runs

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "figure.labelsize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn, the same in every figure."""

    colour: str
    marker: str
    line: Any
    hatch: str


STYLES = {
    "zero_shot": Style("#4d4d4d", "", (0, (5, 2.5)), ""),
    "full_finetune": Style("#0072b2", "s", "-", "///"),
    "linear_probe": Style("#009e73", "^", (0, (4, 1, 1, 1)), "..."),
    "attention_adapter": Style("#cc79a7", "D", (0, (1, 1)), "xxx"),
    "flora": Style("#d55e00", "o", "-", ""),
    "vision_finetune": Style("#56b4e9", "h", (0, (6, 1)), "\\\\\\"),
    "clip_adapter": Style("#882255", "P", (0, (2, 2)), "+++"),
    "prompt_tuning": Style("#e69f00", "v", "--", "ooo"),
    "layernorm_tuning": Style("#999933", "<", (0, (3, 1, 1, 1, 1, 1)), "---"),
    "bitfit": Style("#332288", "X", (0, (8, 2, 1, 2)), "|||"),
}
FEATURES_COLOUR, SETUP_COLOUR = "#f0e442", "#c9c9c9"
_OTHER_COLOURS = ("#000000", "#44aa99", "#aa4499", "#b8a800", "#8b5a2b", "#117733", "#cc6677")
_OTHER_MARKERS = (">", "*", "p", "d", "H", "8", "v", "P", "X", "<", "h")
_OTHER_LINES: tuple[Any, ...] = ("--", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 1)), (0, (2, 2)))
_OTHER_HATCHES = ("\\\\\\", "+++", "ooo", "---", "|||")


def styles_of(runs: pd.DataFrame) -> dict[str, Style]:
    """Give every method label of the runs its style.

    A known method has one of its own; variants of a method (rank 2, rank 8) keep its hue, paler one by one,
    with other markers, lines and hatches. Unknown methods take the remaining colours in order of name.
    """
    runs = label_runs(runs)
    pairs = runs[["method", "method_label"]].drop_duplicates().sort_values("method_label")
    strangers = sorted(set(pairs["method"]) - set(STYLES))
    styles = {}
    for method, group in pairs.groupby("method", sort=False):
        base = STYLES.get(str(method)) or _stranger(strangers.index(method))
        for variant, label in enumerate(group["method_label"]):
            styles[str(label)] = _variant(base, variant)
    return styles


def drawing() -> AbstractContextManager[None]:
    """Matplotlib's own defaults under ours, whatever the user's matplotlibrc says; undone afterwards."""
    return mpl_style.context(["default", _RC])


def _stranger(index: int) -> Style:
    return Style(
        *(pool[index % len(pool)] for pool in (_OTHER_COLOURS, _OTHER_MARKERS, _OTHER_LINES, _OTHER_HATCHES))
    )


def _variant(base: Style, index: int) -> Style:
    if index == 0:
        return base
    pale = min(0.25 * index, 0.6)
    colour = to_hex(np.array(to_rgb(base.colour)) * (1 - pale) + pale)
    pools = (_OTHER_MARKERS, _OTHER_LINES, _OTHER_HATCHES)
    marker, line, hatch = (pool[(index - 1) % len(pool)] for pool in pools)
    return Style(colour, marker, line, hatch)
