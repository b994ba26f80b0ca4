"""Figures of the experiments, drawn from their files alone, in the style of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from bench.perf.experiment import Record
from bench.perf.trials_figure import draw_trials
from bench.report.figures import save
from bench.report.names import METHODS
from bench.report.styles import SANS, SETUP_COLOUR, STYLES
from bench.report.text import bytes_text, digits

GOOD, SHORT, UNDECIDED = "#009e73", "#d55e00", "#4d4d4d"
PHASES = {"send": "#56b4e9", "train": "#0072b2", "receive": "#999933", "aggregate": "#cc79a7"}
PHASES["evaluate"] = "#e69f00"
# A margin further out than this, such as that of nothing at all, is drawn here.
FAR = 100.0
GROUPED, ONE_BY_ONE = STYLES["flora"], STYLES["full_finetune"]

Records = Mapping[str, Record]


def draw_all(records: Records, out: Path) -> dict[str, str]:
    """Draw every figure whose experiments are there; gives a caption by the stem of each file."""
    drawn = {}
    for stem, (needs, draw, caption) in _FIGURES.items():
        if needs <= records.keys():
            with SANS.drawing():
                figure = draw(records)
            save(figure, out / stem)
            drawn[stem] = caption
    # the one figure of all experiments with a target
    checked = {name: record for name, record in records.items() if record.checks}
    if checked:
        with SANS.drawing():
            figure = _targets(checked)
        save(figure, out / "targets")
        drawn = {
            "targets": "How many times better than its target each figure is; left of the line: short of it.",
            **drawn,
        }
    return drawn


def _targets(records: Records) -> Figure:
    rows = [(name, check) for name, record in records.items() for check in record.checks]
    figure = Figure((SANS.page, 0.24 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots()
    for y, (_, check) in enumerate(rows):
        colour = {True: GOOD, False: SHORT, None: UNDECIDED}[check.holds]
        margin = min(max(check.margin, 1 / FAR), FAR)
        axes.plot([1, margin], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(margin, y, "o" if check.holds else "X", color=colour)
        axes.annotate(
            f"{digits(check.value)} ({check.text})", (max(1.0, margin), y), (7, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{name}: {check.figure.replace('_', ' ')}" for name, check in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _logarithmic(axes, "x")
    low, high = axes.get_xlim()
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, FAR])
    axes.set_xlim(low, high * (high / low) ** 0.6)  # room for the values
    axes.set_xlabel("Times better than the target")
    axes.grid(visible=False, axis="y")
    return figure


def _rounds(records: Records) -> Figure:
    """Phases of a round, stacked; a panel for each range of seconds."""
    bars = [("FLoRA, exact", "flora_exact"), ("FLoRA, none", "flora_none")]
    bars += [
        ("Full fine-tuning, exact", "full_finetune_exact"),
        ("Full fine-tuning, none", "full_finetune_none"),
    ]
    phases = records["headline"].figures["phase_seconds"]
    figure = Figure((SANS.page, 1.9), layout="constrained")
    axes = figure.subplots()
    for y, (_, key) in enumerate(bars):
        left = 0.0
        for phase, colour in PHASES.items():
            seconds = phases[key].get(phase, 0.0)
            axes.barh(y, seconds, 0.66, left=left, color=colour, label=phase if y == 0 else None)
            left += seconds
        _value(axes, left, y, f"{digits(left)} s")
    _named_rows(axes, [name for name, _ in bars])
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel("Seconds a round")
    figure.legend(loc="outside upper center", ncols=len(PHASES))
    return figure


def _memory(records: Records) -> Figure:
    """Peaks of both methods, and resident memory by round."""
    figure = Figure((SANS.page, 1.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    peaks = records["headline"].figures["peak_memory_bytes"]
    bars = [("flora", "flora_exact"), ("full_finetune", "full_finetune_exact")]
    for y, (method, key) in enumerate(bars):
        style = STYLES[method]
        left.barh(y, peaks[key], 0.66, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0)
        _value(left, peaks[key], y, bytes_text(peaks[key]))
    _named_rows(left, [METHODS[method] for method, _ in bars])
    left.set_xlim(0, left.get_xlim()[1] * 1.3)
    left.xaxis.set_major_locator(MaxNLocator(4))
    left.xaxis.set_major_formatter(EngFormatter(unit="B"))
    left.set_xlabel("Peak memory, ViT-B/32")
    resident = records["memory"].figures["resident_bytes_by_round"]
    right.plot(range(len(resident)), [size / 1e6 for size in resident], color=STYLES["flora"].colour)
    right.set_ylim(0, 1.15 * max(resident) / 1e6)
    right.set(xlabel="Round (tiny)", ylabel="Resident (MB)")
    return figure


def _clients(records: Records) -> Figure:
    figures = records["grouped"].figures
    figure = Figure((SANS.column, 2.4), layout="constrained")
    axes = figure.subplots()
    for key, name, style in (
        ("one_by_one_ms_per_sample", "one by one", ONE_BY_ONE),
        ("grouped_ms_per_sample", "together", GROUPED),
    ):
        axes.plot(figures["clients"], figures[key], color=style.colour, marker=style.marker, label=name)
    for axis in "xy":
        _logarithmic(axes, axis)
    axes.set_xticks(figures["clients"], [f"{count:,}" for count in figures["clients"]])
    axes.set(xlabel="Clients of 10 images", ylabel="ms a sample, FLoRA")
    axes.legend()
    return figure


def _scaling(records: Records) -> Figure:
    axes_of = records["scaling"].figures["axes"]
    figure = Figure((SANS.page, 2.3), layout="constrained")
    panels = figure.subplots(1, len(axes_of), squeeze=False)[0]
    for panel, (name, swept) in zip(panels, axes_of.items(), strict=True):
        for method, seconds in swept["seconds"].items():
            style = STYLES[method]
            label = METHODS[method] if panel is panels[0] else None
            panel.plot(
                swept["values"],
                seconds,
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                label=label,
            )
        for axis in "xy":
            _logarithmic(panel, axis)
        panel.set_xticks(swept["values"], [f"{value:,}" for value in swept["values"]])
        panel.set_xlabel(name.capitalize())
        panel.set_ylabel("Seconds, all rounds" if name == "rounds" else "Seconds a round")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _roofline(records: Records) -> Figure:
    """Operations a sample by method, with and without kept features, and how far each is from its floor."""
    methods: dict[str, dict[str, Any]] = records["roofline"].figures["methods"]
    figure = Figure((SANS.page, 0.26 * len(methods) + 0.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(methods)
    for y, name in enumerate(names):
        cost = methods[name]
        colour = STYLES[name].colour if name in STYLES else UNDECIDED
        ends = [cost[f"{key}_megaflops_per_sample"] * 1e6 for key in ("exact", "none")]
        left.plot(ends, [y, y], color=SETUP_COLOUR)
        left.plot(ends[0], y, "o", color=colour)
        left.plot(ends[1], y, "o", markerfacecolor="white", color=colour)
        times = [cost["exact_floor_ms_per_sample"] / 1e3, cost["exact_ms_per_sample"] / 1e3]
        right.plot(times, [y, y], color=SETUP_COLOUR)
        right.plot(times[0], y, "|", color=colour, markersize=9)
        right.plot(times[1], y, "o", color=colour)
    _named_rows(left, [METHODS.get(name, name) for name in names])
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(numticks=4))
    left.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
    left.set_xlabel("Operations a sample (filled: exact, open: none)")
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(numticks=5))
    right.xaxis.set_major_formatter(EngFormatter(unit="s"))
    right.set_xlabel("Step a sample (bar: floor, point: reached)")
    return figure


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _value(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (3, 0), textcoords="offset points", va="center")


def _logarithmic(axes: Axes, axis: str) -> None:
    of_axis = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    of_axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    of_axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    of_axis.set_minor_locator(NullLocator())


_FIGURES: dict[str, tuple[set[str], Callable[[Records], Figure], str]] = {
    "rounds": (
        {"headline"},
        _rounds,
        "A round on ViT-B/32 by phase: four clients of 32 images, 64 test images.",
    ),
    "memory": (
        {"headline", "memory"},
        _memory,
        "Left: peak memory of the process; right: resident memory by round, embedded model.",
    ),
    "clients": ({"grouped"}, _clients, "Cost of a sample by the number of clients, together and one by one."),
    "scaling": ({"scaling"}, _scaling, "Cost along one axis at a time, the embedded model."),
    "roofline": (
        {"roofline"},
        _roofline,
        "Operations of a training step a sample, and the step's time against its floor.",
    ),
    "trials": (
        {"same_idle", "slowdowns_idle", "same_busy", "slowdowns_busy"},
        draw_trials,
        "Planted slowdowns as `ab` measured them, with 99 % intervals; lines: planted, dotted: what counts.",
    ),
}
