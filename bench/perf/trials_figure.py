"""What `ab` measured of planted slowdowns, trial by trial, and what it said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.perf.experiment import Record
from bench.regress.judgement import Verdict
from bench.regress.metrics import NOISY_SHARE
from bench.report.styles import SANS

PANELS = {"idle": "Otherwise idle", "busy": "One core of two kept busy"}
PLANTED = {"same": 0.0, "planted_5": 0.05, "planted_10": 0.10, "planted_20": 0.20}

# shapes as well as colours: what decides must be told apart in grey, too
_LOOKS = {
    Verdict.WORSE: ("#d55e00", "o", "called slower"),
    Verdict.UNSURE: ("#999933", "s", "unsure"),
    Verdict.SAME: ("#0072b2", "D", "the same"),
    Verdict.BETTER: ("#009e73", "^", "called faster"),
}
_WIDTH = 0.72


def draw_trials(records: Mapping[str, Record]) -> Figure:
    """Draw each trial's slowdown with its interval, in a column for each that was planted."""
    figure = Figure((SANS.page, 2.9), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (machine, title) in zip(panels, PANELS.items(), strict=True):
        found: dict[str, Any] = {}
        for name in (f"same_{machine}", f"slowdowns_{machine}"):
            found |= records[name].figures
        for x, (name, planted) in enumerate(PLANTED.items()):
            _column(axes, x, found, name, planted)
        axes.axhline(100 * NOISY_SHARE, color="#222222", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(PLANTED)), [f"{100 * planted:.0f} %" for planted in PLANTED.values()])
        axes.set_xlim(-0.5, len(PLANTED) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set(title=title, xlabel="Planted")
    panels[0].set_ylabel("Measured slowdown (%)")
    handles = {
        text: panels[0].plot([], [], marker, color=colour)[0] for colour, marker, text in _LOOKS.values()
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def _column(axes: Axes, x: int, found: Mapping[str, Any], name: str, planted: float) -> None:
    ratios, verdicts, intervals = (found[f"{name}_{what}"] for what in ("ratios", "verdicts", "intervals"))
    axes.plot([x - 0.45, x + 0.45], [100 * planted] * 2, color="#222222", linewidth=0.8)
    for place, (ratio, verdict, interval) in enumerate(zip(ratios, verdicts, intervals, strict=True)):
        colour, marker, _ = _LOOKS[Verdict(verdict)]
        at = x + _WIDTH * ((place + 0.5) / len(ratios) - 0.5)
        axes.plot([at, at], [100 * (end - 1) for end in interval], color=colour, linewidth=0.7)
        axes.plot(at, 100 * (ratio - 1), marker, color=colour, markersize=3)
