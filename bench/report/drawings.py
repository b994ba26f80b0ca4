"""Which figures a report has, of which data, with what caption; `bench.report.figures` draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.network import PROFILES
from bench.report import figures
from bench.report.data import ReportData
from bench.report.names import AS_DEPLOYED, shots_label, without_deployed_twins
from bench.report.networks import network_times
from bench.report.paper import Paper
from bench.report.styles import Style
from bench.report.tables import cells_of, seeds_of, where_of
from bench.report.targets import common_target
from bench.report.text import n_text, slug
from bench.report.times import which_time_in_short
from flora.errors import BadInput

LEVELS_DRAWN = 2
"""Numbers of shots that curves over rounds have panels for; the curves over shots have them all."""


@dataclass(frozen=True)
class Drawn:
    """A figure of the report.

    Attributes:
        name: stem of its files.
        kind: which figure it is, such as "bytes".
        caption: what it shows.
        alt: the same for those who cannot see it.
        points: the numbers drawn, a row a mark.
        page_wide: whether it takes the width of the text, not of a column.
    """

    name: str
    kind: str
    caption: str
    alt: str
    points: pd.DataFrame
    page_wide: bool


@dataclass(frozen=True)
class Material:
    """What the figures of a section are drawn of: its part of the data.

    Attributes:
        name: of the section, for files.
        data: of its runs alone.
        paper: how the report is set.
        styles: of each method label of the whole report.
        sparing: leave out what a report of many sections has no room for.
    """

    name: str
    data: ReportData
    paper: Paper
    styles: Mapping[str, Style]
    sparing: bool = False

    @cached_property
    def levels(self) -> list[Any]:
        """Numbers of shots: all data first, then from many to few."""
        shots = self.data.runs["shots"].drop_duplicates()
        return sorted(shots, key=lambda s: (not pd.isna(s), -1 if pd.isna(s) else -s))

    @cached_property
    def main(self) -> pd.DataFrame:
        """The runs with most data, of which costs are shown."""
        return self.data.runs[_at(self.data.runs, self.levels[:1])]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The runs whose curves do not lie on those of others."""
        return without_deployed_twins(self.data.runs)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The rounds of these, with most data and with least."""
        rounds = self.data.rounds
        some = self.levels if len(self.levels) <= LEVELS_DRAWN else [self.levels[0], self.levels[-1]]
        return rounds[_at(rounds, some) & rounds["config_hash"].isin(self.curves["config_hash"])]

    @cached_property
    def cell(self) -> pd.DataFrame:
        """The runs of the split and shots that most methods ran on."""
        return cells_of(self.curves)[0]

    @cached_property
    def target(self) -> float:
        """Accuracy that times are counted up to."""
        return self.paper.target or common_target(self.cell)

    def interval(self, runs: pd.DataFrame, mark: str) -> str:
        """Say over how many seeds a figure of these runs is, and what its ``mark`` ("band") means."""
        n = seeds_of(runs)
        if max(n, default=1) == 1:
            return "One seed, so no interval."
        if max(n) < figures.FEWEST_FOR_INTERVAL:
            return f"{n_text(n).capitalize()}; for their wide intervals see the tables."
        cut = ", cut at the frame" if mark == "band" else ""
        return f"{n_text(n).capitalize()}; {mark}: 95 % t-interval over seeds{cut}."

    @property
    def curves_text(self) -> str:
        """What is to be said of all curves."""
        trained = self.curves[self.curves["method"] != "zero_shot"]
        few = len(self.levels) > LEVELS_DRAWN
        omitted = " Other numbers of shots: see the curves over shots." if few else ""
        return self.interval(trained, "band") + self.dashed + omitted + self.twins

    @property
    def dashed(self) -> str:
        """What the dashed line is, if there is one."""
        return " Dashed: zero-shot." if "zero_shot_accuracy" in self.data.runs else ""

    @property
    def twins(self) -> str:
        """Where the runs are that curves leave out."""
        return f" Runs {AS_DEPLOYED}: see the tables." if len(self.curves) < len(self.data.runs) else ""

    @property
    def most_data(self) -> str:
        """Which runs costs are of, where there are others."""
        return f" Runs with {shots_label(self.levels[0])}." if len(self.levels) > 1 else ""

    def whiskers(self, runs: pd.DataFrame) -> str:
        """What is to be said of bars of these runs."""
        return self.interval(runs, "whisker") + self.most_data


@dataclass(frozen=True)
class Plan:
    """A figure that a section has if its runs have the data.

    Attributes:
        kind: its name, as in ``--paper``.
        draw: of `bench.report.figures`.
        points: gives the numbers that ``draw`` draws.
        frame: what both are given.
        caption: what to say below it.
        options: of ``draw`` and ``points``, made of the material.
        spare: whether a report of many sections does without.
    """

    kind: str
    draw: Callable[..., Figure]
    points: Callable[..., pd.DataFrame]
    frame: Callable[[Material], pd.DataFrame]
    caption: Callable[[Material], str]
    options: Callable[[Material], Mapping[str, Any]] = lambda material: {}
    spare: bool = False

    def drawn(self, material: Material) -> tuple[Drawn, Figure]:
        """Draw it.

        Raises:
            NothingToDraw: the runs lack its data.
        """
        frame, look, options = self.frame(material), material.paper.look, self.options(material)
        figure = self.draw(frame, styles=material.styles, look=look, **options)
        caption = self.caption(material)
        drawn = Drawn(
            name=f"{self.kind}-{slug(material.name)}",
            kind=self.kind,
            caption=caption,
            alt=_alt(caption, frame),
            points=self.points(frame, **options),
            page_wide=bool(figure.get_figwidth() > look.column),
        )
        return drawn, figure


def draw_all(
    plans: Iterable[Plan], material: Material, keep: Callable[[Drawn, Figure], None]
) -> tuple[list[Drawn], list[str]]:
    """Draw what the material has data for, and say what is left out, and why.

    ``keep`` gets every figure as soon as it is drawn: a hundred of them held at once take a gigabyte.
    """
    made, skipped = [], []
    for plan in plans:
        wanted = material.paper.figures
        if plan.kind not in wanted if wanted is not None else plan.spare and material.sparing:
            continue
        try:
            drawn, figure = plan.drawn(material)
        except figures.NothingToDraw as missing:
            skipped.append(f"{plan.kind.replace('-', ' ').capitalize()}: {missing}.")
            continue
        keep(drawn, figure)
        made.append(drawn)
    return made, skipped


def _at(frame: pd.DataFrame, levels: Sequence[Any]) -> pd.Series:
    missing = frame["shots"].isna() & any(pd.isna(level) for level in levels)
    return missing | frame["shots"].isin([level for level in levels if not pd.isna(level)])


def _alt(caption: str, frame: pd.DataFrame) -> str:
    parts = [caption.partition(". ")[0].removesuffix(".")]
    for column, what in (("method_label", "for"), ("split_label", "splits:")):
        if column in frame and len(frame):
            names = frame[column].cat.remove_unused_categories().cat.categories
            parts.append(f"{what} {', '.join(map(str, names))}")
    return "; ".join(parts) + ". The numbers drawn are in the CSV file of its name."


def _given(material: Material, **options: Any) -> Mapping[str, Any]:
    return options


def _against(material: Material) -> Mapping[str, Any]:
    return {"reference": material.paper.reference}


def _front_caption(cost: str) -> Callable[[Material], str]:
    what = {
        "bytes": "bytes sent, up and down, all clients and rounds",
        "memory": "peak memory",
        "time": "time, features counted as computed",
        "energy": "energy",
    }[cost]
    return lambda m: (
        f"Test accuracy after the last round against {what}. Line and filled marks: what neither another "
        "method nor zero-shot betters in both. "
        f"{m.interval(m.main, 'bars')}{m.dashed}{m.most_data}"
    )


def _times(material: Material) -> pd.DataFrame:
    """What the runs of one cell would have taken on each network, where their files are at hand."""
    if material.data.folder is None:
        raise figures.NothingToDraw("the runs' ledgers are not at hand")
    try:
        return network_times(material.cell, list(PROFILES.values()), material.target)
    except BadInput as error:  # a result without its ledger is still a result
        raise figures.NothingToDraw(str(error)) from error


ACCURACY = (
    Plan(
        "rounds",
        figures.accuracy_over_rounds,
        figures.accuracy_over_rounds_points,
        lambda m: m.rounds,
        lambda m: f"Test accuracy by round. {m.curves_text}",
    ),
    Plan(
        "bytes",
        figures.accuracy_over_bytes,
        figures.accuracy_over_bytes_points,
        lambda m: m.rounds,
        lambda m: f"Test accuracy by bytes sent. {m.curves_text}",
    ),
    Plan(
        "seconds",
        figures.accuracy_over_seconds,
        figures.accuracy_over_seconds_points,
        lambda m: m.rounds,
        lambda m: (
            f"Test accuracy by seconds of the rounds, evaluation left out{which_time_in_short(m.curves)}. "
            f"{m.curves_text}"
        ),
    ),
    Plan(
        "shots",
        figures.few_shot_curves,
        figures.few_shot_curves_points,
        lambda m: m.curves,
        lambda m: (
            "Test accuracy after the last round by shots. "
            f"{m.interval(m.curves[m.curves['method'] != 'zero_shot'], 'band')}{m.dashed}{m.twins}"
        ),
    ),
    Plan(
        "heat",
        figures.heat_map,
        figures.heat_map_points,
        lambda m: m.curves,
        lambda m: (
            "Test accuracy (%) after the last round by method and split. "
            f"{n_text(seeds_of(m.curves)).capitalize()}."
        ),
    ),
    Plan(
        "clients",
        figures.client_accuracies,
        figures.client_accuracies_points,
        lambda m: m.data.clients[_at(m.data.clients, m.levels[:1])],
        lambda m: (
            "Accuracy of each client's own test images after the last round; mean and worst client are means "
            f"over seeds.{m.most_data}"
        ),
        spare=True,
    ),
)
COST = (
    Plan(
        "time",
        figures.time_bars,
        figures.time_bars_points,
        lambda m: m.main,
        lambda m: (
            f"Training time{which_time_in_short(m.main)} and, behind the +, all set-up before it, features "
            f"counted as computed.{_ratio(m, ' in all')} {m.whiskers(m.main)}"
        ),
        _against,
    ),
    Plan(
        "memory",
        figures.memory_bars,
        figures.memory_bars_points,
        lambda m: m.main,
        lambda m: f"Peak memory.{_ratio(m)} {m.whiskers(m.main)}",
        _against,
    ),
    Plan(
        "traffic",
        figures.bytes_bars,
        figures.bytes_bars_points,
        lambda m: m.main,
        lambda m: f"Bytes sent, up and down, all clients and rounds.{_ratio(m)} {m.whiskers(m.main)}",
        _against,
    ),
    *(
        Plan(
            f"front-{cost}",
            figures.pareto_front,
            figures.pareto_front_points,
            lambda m: m.main,
            _front_caption(cost),
            partial(_given, cost=cost),
            spare=cost != "bytes",
        )
        for cost in figures.COSTS
    ),
    Plan(
        "phases",
        figures.phase_times,
        figures.phase_times_points,
        lambda m: m.data.rounds[m.data.rounds["config_hash"].isin(m.cell["config_hash"])],
        lambda m: (
            f"Mean seconds a round by phase{which_time_in_short(m.cell)} ({where_of(m.cell)}). "
            f"{m.interval(m.cell, 'whisker')}"
        ),
        spare=True,
    ),
    Plan(
        "causes",
        figures.memory_by_cause,
        figures.memory_by_cause_points,
        lambda m: m.cell,
        lambda m: (
            f"Live tensors at their peak, by cause ({where_of(m.cell)}). {m.interval(m.cell, 'whisker')}"
        ),
        spare=True,
    ),
    Plan(
        "networks",
        figures.time_to_accuracy,
        figures.time_to_accuracy_points,
        _times,
        lambda m: (
            f"Time to an accuracy of {100 * m.target:g} % on four networks, replayed from what the runs "
            f"stored ({where_of(m.cell)}). {m.interval(m.cell, 'whisker')} Hollow marks: of the seeds that "
            "reached it alone; “never”: no seed did."
        ),
        spare=True,
    ),
)
DATA = (
    Plan(
        "split",
        figures.split_picture,
        figures.split_picture_points,
        lambda m: m.data.divisions[_at(m.data.divisions, m.levels[:1])],
        lambda m: (
            "What every client holds: its samples, in all and of each class (with many classes or clients: "
            f"each class's share of the client), of the first seed.{m.most_data}"
        ),
        spare=True,
    ),
)
OVERALL = (
    Plan(
        "heat-tasks",
        figures.heat_map,
        figures.heat_map_points,
        lambda m: m.main,
        lambda m: f"Test accuracy (%) after the last round by method and data set.{m.most_data}",
        lambda m: {"columns": "task"},
    ),
    Plan(
        "ranks",
        figures.critical_difference_diagram,
        figures.critical_difference_diagram_points,
        lambda m: m.main,
        lambda m: (
            "Mean ranks over data sets (1 is best). Methods joined by a bar are not told apart by Nemenyi's "
            f"test at 5 %.{m.most_data}"
        ),
    ),
)


def sensitivities(material: Material) -> Iterator[Plan]:
    """Plan a figure for each option of a method that the runs vary."""
    for option in figures.varied_options(material.curves):
        name = option.rpartition(".")[2]
        yield Plan(
            f"sensitivity-{slug(name)}",
            figures.sensitivity,
            figures.sensitivity_points,
            lambda m: m.curves,
            partial(_sensitivity_caption, name=name),
            partial(_given, option=option),
        )


def _sensitivity_caption(material: Material, name: str) -> str:
    return f"Test accuracy after the last round by {name}. {material.curves_text}"


def known_kinds() -> list[str]:
    """Name the figures that a report can have; those of varied options are sensitivity-OPTION."""
    return [plan.kind for plan in (*OVERALL, *ACCURACY, *COST, *DATA)]


def _ratio(material: Material, of: str = "") -> str:
    """What the factor beside a bar says, where there is one."""
    runs, reference = material.main, material.paper.reference
    its = runs[(runs["method"] == reference) | (runs["method_label"].astype(str) == reference)]
    if its.empty or runs["method_label"].nunique() < 2:
        return ""
    called = str(its["method_label"].iloc[0])
    return f" ×: how many times less{of} than {called} (below 1: more)."
