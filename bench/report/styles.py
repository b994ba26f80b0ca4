"""How methods look: each keeps its colour, marker, line style and hatch in all figures.

The colours of the paper's methods are Okabe and Ito's: told apart by readers of every colour vision. There
are fewer such colours than methods: where others come close, to whichever reader, they differ in marker, line
style and hatch. Two of like brightness differ in marker or line style, for grey print.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.style as mpl_style
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from bench.report.names import label_runs

# Under all of them: the one style file.
STYLE_FILE = Path(__file__).with_name("flora-bench.mplstyle")
# All come with matplotlib, so that a figure is the same on every machine.
FONTS: dict[str, dict[str, Any]] = {
    "sans": {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"},
    "serif": {"font.family": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix"},
}


@dataclass(frozen=True)
class Look:
    """How figures are set.

    Attributes:
        font: of ``FONTS``.
        width: "column" or "page"; None for a column where the figure fits into one. One that would be higher
            than a page in a column takes the page's width whatever this says.
        column: inches of a column of the paper, by default those of a two-column conference paper.
        page: inches of its text.
    """

    font: Literal["sans", "serif"] = "sans"
    width: Literal["column", "page"] | None = None
    column: float = 3.25
    page: float = 6.875

    def drawing(self) -> AbstractContextManager[None]:
        """Matplotlib's own defaults under ours, whatever the user's matplotlibrc says; undone afterwards."""
        return mpl_style.context(["default", STYLE_FILE, FONTS[self.font]])


SANS = Look()


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
    "peft:lora": Style("#004c00", ">", "-.", "**"),
    "peft:rslora": Style("#000000", "*", (0, (6, 1, 2, 1)), "OO"),
    "peft:dora": Style("#736a3f", "p", (0, (3, 3)), "//.."),
    "peft:vera": Style("#7e7ee6", "d", (0, (9, 1, 1, 1, 1, 1)), "xx--"),
    "peft:ia3": Style("#4c1717", "H", (0, (5, 1, 5, 1, 1, 1)), "\\\\||"),
    "peft:loha": Style("#86bf69", "8", "-.", "..||"),
    "peft:lokr": Style("#226573", "*", "--", "++\\\\"),
    "peft:hra": Style("#99001a", "d", (0, (3, 1, 1, 1, 1, 1)), "oo//"),
    "peft:oft": Style("#73503f", "H", (0, (6, 1)), "--//"),
    "peft:delora": Style("#7300e6", ">", (0, (2, 2)), "OO--"),
    "peft:hira": Style("#4c004c", "p", (0, (1, 1)), "xx.."),
    "peft:randlora": Style("#bf3993", "8", (0, (8, 2, 1, 2)), "oo||"),
}
FEATURES_COLOUR, SETUP_COLOUR = "#f0e442", "#c9c9c9"
# For methods that are not known here.
SPARE = (
    Style("#224b73", "<", (0, (4, 1, 1, 1)), "//"),
    Style("#994c00", "v", (0, (6, 1, 2, 1)), "\\\\"),
    Style("#3f7359", "D", (0, (9, 1, 1, 1, 1, 1)), "++"),
    Style("#997754", "P", (0, (5, 1, 5, 1, 1, 1)), "--"),
    Style("#4c2a3b", "^", (0, (3, 3)), "xx"),
    Style("#bf00e6", "X", "--", ".."),
)
# What variants of a colour are mixed with, 0 for black and 1 for white, and with how much of it: darker and
# paler in turn; but of the dark, by relative luminance, none could be darker, and of the light none paler.
_DARK, _LIGHT = 0.14, 0.35
_OF_DARK, _OF_LIGHT = ((1, 0.35), (1, 0.65), (1, 0.2), (1, 0.5)), ((0, 0.35), (0, 0.6), (0, 0.2), (0, 0.48))
_OF_OTHERS = ((0, 0.4), (1, 0.45), (0, 0.6), (1, 0.6))
_VARIANT_MARKERS = (">", "*", "p", "d", "H", "8", "v", "P", "X", "<", "h")
_VARIANT_LINES: tuple[Any, ...] = ("--", (0, (3, 1, 1, 1, 1, 1)), (0, (6, 1)), (0, (2, 2)))
_VARIANT_HATCHES = ("\\\\\\", "+++", "ooo", "---", "|||")


def styles_of(runs: pd.DataFrame) -> dict[str, Style]:
    """Give every method label of the runs its style.

    A known method has one of its own, whatever else is there; variants of a method (rank 2, rank 8) keep its
    hue, darker and paler in turn, with other markers, lines and hatches. Unknown methods take those of
    ``SPARE``, in order of name.
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


def _stranger(index: int) -> Style:
    return _variant(SPARE[index % len(SPARE)], index // len(SPARE))


def _variant(base: Style, index: int) -> Style:
    if index == 0:
        return base
    rgb = np.array(to_rgb(base.colour))
    luminance = rgb**2.2 @ (0.2126, 0.7152, 0.0722)
    shades = _OF_DARK if luminance < _DARK else _OF_LIGHT if luminance > _LIGHT else _OF_OTHERS
    pools = (shades, _VARIANT_MARKERS, _VARIANT_LINES, _VARIANT_HATCHES)
    (towards, share), marker, line, hatch = (pool[(index - 1) % len(pool)] for pool in pools)
    return Style(to_hex(rgb * (1 - share) + share * towards), marker, line, hatch)
