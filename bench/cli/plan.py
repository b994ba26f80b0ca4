"""`flora-bench plan`: where the cells of a matrix stand, and what those left will take; nothing runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.confirm import Yes, confirmed
from bench.cli.estimate import Calibrate, NoTime, calibrated
from bench.cli.run import Overrides, Source
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.definition import Fingerprints
    from bench.states import State

# Many small clients may be trained in one stack, which takes less time and more memory.
ONE_BY_ONE = "with one client trained at a time"

PREDICTED = 100
"""Most kinds of cells to predict unasked, at half a second each."""

ROOMY = 100
"""Width of a terminal from which on the table itself says why cells stand as they do."""

# Of cells that stand alike the table says at most so much, and of those that do not at most so many things.
STATE_WIDTH, STATES = 32, 3
# And so many reasons are given below it.
DETAILS = 8

NOT_PREDICTED = "not predicted"
TIME, TRAINABLE = "time\na run", "trainable"


@dataclass(frozen=True)
class Planned:
    """Cells that differ in their seed alone.

    Attributes:
        cells: these.
        states: where each stands.
        how: the prediction's way, "fake tensors", "formulas" or "saved before"; or why there is none.
        prediction: of each of them.
    """

    cells: Sequence[RunConfig]
    states: Sequence[State]
    how: str
    prediction: Mapping[str, Any]

    @property
    def left(self) -> int:
        """How many of them `run` would run: all that are not done, and that no other process is on."""
        return sum(state.kind not in ("done", "running") for state in self.states)


def plan(
    source: Source = "quick",
    overrides: Overrides = None,
    results: Annotated[Path, typer.Option(help="Folder the results are kept in.")] = Path("results"),
    states: Annotated[
        bool, typer.Option("--states", help="Say where the cells stand alone, and predict nothing.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Of the matrix as `run --smoke` has it.")] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Predict all cells, and keep it beside their results.")
    ] = False,
    no_time: NoTime = False,
    calibrate: Calibrate = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where the cells of a matrix stand and what those left will take, and run nothing."""
    from bench.matrix import Matrix
    from bench.matrix import smoke as scaled_down

    if results.exists() and not results.is_dir():
        raise BadInput(f"--results: {str(results)!r} is a file; name a folder, there or yet to be made")
    if states and save:
        raise BadInput("--save: has nothing to keep with --states; leave one of them out")
    cells = confirmed(Matrix.read(source, overrides or []), yes).cells()
    cells = scaled_down(cells) if smoke else cells
    groups = _standing(cells, results)
    planned = groups if states else _predicted(groups, results, save, no_time, calibrate)
    if save:
        _save(results, {cell.hash: dict(x.prediction) for x in planned for cell in x.cells if x.prediction})
    if as_json:
        typer.echo(json.dumps(_records(planned), indent=1))
    else:
        _print(planned, states)


def _standing(cells: Sequence[RunConfig], results: Path) -> list[Planned]:
    """Put cells together that only differ in their seed, and say where they stand."""
    from bench.config import but_for_seed
    from bench.states import states

    found = states(cells, results)
    groups: dict[str, list[int]] = {}
    for i, cell in enumerate(cells):
        groups.setdefault(but_for_seed(cell), []).append(i)
    return [
        Planned([cells[i] for i in group], [found[i] for i in group], NOT_PREDICTED, {})
        for group in groups.values()
    ]


def _predicted(
    groups: Sequence[Planned], results: Path, everything: bool, no_time: bool, calibrate: bool
) -> list[Planned]:
    """Add what cells will take: what was saved, else of those that are left, unless these are too many."""
    from bench.store import load_predictions

    kept = load_predictions(results)
    planned = [_with_saved(group, kept, no_time) for group in groups]
    unknown = [
        i
        for i, x in enumerate(planned)
        if (everything or x.left) and (calibrate or not _is_whole(x.prediction, no_time))
    ]
    if everything or len(unknown) <= PREDICTED:
        for i in _watched(unknown):
            how, prediction = _estimated(planned[i].cells[0], no_time, calibrate and i == unknown[0])
            planned[i] = replace(planned[i], how=how, prediction=prediction)
    return planned


def _with_saved(group: Planned, kept: Mapping[str, Mapping[str, Any]], no_time: bool) -> Planned:
    saved = next((kept[cell.hash] for cell in group.cells if cell.hash in kept), {})
    shown = {name: x for name, x in saved.items() if not (no_time and name == "total_seconds")}
    return replace(group, how="saved before", prediction=shown) if shown else group


def _is_whole(prediction: Mapping[str, Any], no_time: bool) -> bool:
    return bool(prediction) and (no_time or prediction.get("total_seconds") is not None)


def _watched(unknown: Sequence[int]) -> Iterator[int]:
    """Show how far predicting is, on a terminal."""
    from rich.console import Console
    from rich.progress import track

    shown = len(unknown) > 1 and sys.stderr.isatty()
    console = Console(stderr=True)
    yield from track(unknown, "predicting", console=console, transient=True, disable=not shown)


def _estimated(cell: RunConfig, no_time: bool, calibrate: bool) -> tuple[str, dict[str, Any]]:
    from bench.estimate import estimate, predicted_seconds

    try:
        found = estimate(cell)
    except BadInput as error:
        if str(error).startswith(("model", "method")):
            raise
        return str(error), {}
    speed = calibrated(cell, found, no_time, calibrate)
    seconds = None if speed is None else predicted_seconds(found, speed)["total"]
    return found.how, {**found.predictions, "total_seconds": seconds}


def _records(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    from bench.config import label

    seen: Fingerprints = {}
    return [
        {
            "cell": label(x.cells[0]),
            "config_hashes": [cell.hash for cell in x.cells],
            "done": sum(state.kind == "done" for state in x.states),
            "states": [
                {
                    "config_hash": cell.hash,
                    "definition_hash": _definition_hash(cell, seen),
                    "state": state.kind,
                    "detail": state.detail,
                }
                for cell, state in zip(x.cells, x.states, strict=True)
            ],
            "how": x.how,
            **x.prediction,
        }
        for x in planned
    ]


def _definition_hash(cell: RunConfig, seen: Fingerprints) -> str | None:
    """Give what tells a cell from all others; None where its images or weights are not at hand."""
    from bench.definition import definition_of

    try:
        return definition_of(cell, seen).hash
    except BadInput:
        return None


def _save(results: Path, predictions: dict[str, dict[str, Any]]) -> None:
    from bench.store import save_predictions

    try:
        save_predictions(results, predictions)
    except OSError as error:
        raise BadInput(f"results: cannot write to {str(results)!r} ({error.strerror})") from error


def _print(planned: Sequence[Planned], states_alone: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    roomy = console.width >= ROOMY
    names = _names([x.cells[0] for x in planned])
    stand = [_states_text(x.states, roomy) for x in planned]
    differ = states_alone or len(set(stand)) > 1  # else the line below the table says it of all
    predicted = any(x.prediction for x in planned)
    quantities = [_quantities(x.prediction) if predicted else {} for x in planned]
    left_out = {TIME} if not _timed(planned) else {TRAINABLE} if differ and not roomy else set()
    shown = [name for name in quantities[0] if name not in left_out]
    table = Table(box=box.SIMPLE)
    table.add_column("cell", min_width=max(len(word) for name in names for word in name.split()))
    table.add_column("runs", justify="right", no_wrap=True)
    for name in ["state"] * differ:
        table.add_column(name)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for i, x in enumerate(planned):
        parts = [names[i], str(len(x.cells)), *[stand[i]] * differ, *(quantities[i][name] for name in shown)]
        table.add_row(*map(Text, parts))  # what a method or an error is called is no markup
    console.print(table)
    for line in (*_details(planned), _total(planned, states_alone)):
        console.print(line, highlight=False, markup=False)


def _timed(planned: Sequence[Planned]) -> bool:
    return any(x.prediction.get("total_seconds") is not None for x in planned)


def _quantities(known: Mapping[str, Any]) -> dict[str, str]:
    """Write what is predicted of a run, by column; nothing where nothing was."""
    from bench.report.text import bytes_text, duration_text

    sent = _sum(known.get("bytes_up"), known.get("bytes_down"))
    written = {
        TIME: _text(known.get("total_seconds"), duration_text),
        "live\ntensors": _text(known.get("peak_tensor_bytes"), bytes_text),
        "sent": _text(sent, bytes_text),
        TRAINABLE: _text(known.get("trainable_parameters"), "{:,}".format),
    }
    return written if known else dict.fromkeys(written, "")


def _states_text(states: Sequence[State], detailed: bool) -> str:
    """Say where cells stand: how many alike, or where they differ in too much, how many of each kind."""
    alike = Counter(str(state) if detailed else state.kind for state in states)
    if len(alike) > STATES:
        alike = Counter(state.kind for state in states)
    if len(alike) == 1:
        return _cut(next(iter(alike)))
    return ", ".join(f"{count} {_cut(text)}" for text, count in alike.items())


def _cut(text: str) -> str:
    return text if len(text) <= STATE_WIDTH else f"{text[: STATE_WIDTH - 1].rstrip()}…"


def _details(planned: Sequence[Planned]) -> list[str]:
    """Say in whole what the table has no room for: why cells are not done, frequent reasons first."""
    counts = Counter(str(state) for x in planned for state in x.states if state.detail)
    lines = [f"{text} ({count} run{'s' * (count != 1)})" for text, count in counts.most_common(DETAILS)]
    more = len(counts) - len(lines)
    return [*lines, f"and {more} more such reasons, in --json"] if more else lines


def _names(cells: Sequence[RunConfig]) -> list[str]:
    """Name cells without their seeds, and without a task that all of them have."""
    from bench.config import label, labels

    told_apart, named = labels(cells), []
    for cell in cells:
        plain = label(cell)
        named.append(plain.rpartition(" · ")[0] + told_apart[cell.hash].removeprefix(plain))
    if len({cell.task for cell in cells}) > 1:
        return named
    return [name.partition(" · ")[2] for name in named]


def _total(planned: Sequence[Planned], states_alone: bool) -> str:
    """Say where all cells stand, what is left to run, and how long it will take as far as that is known."""
    from bench.report.text import duration_text

    kinds = Counter(state.kind for x in planned for state in x.states)
    runs = sum(x.left for x in planned)
    stand = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    to_do = f"{stand}: {runs} run{'s' * (runs != 1)} to do" if set(kinds) != {"new"} else f"{runs} runs to do"
    if states_alone or not runs:
        return to_do
    unpredicted = sum(x.left > 0 and x.how == NOT_PREDICTED for x in planned)
    if unpredicted:
        return f"{to_do}; {unpredicted} kinds of cells are not predicted, as it takes a while; --save does it"
    if not _timed(planned):
        return f"{to_do}; bytes are of one run each, {ONE_BY_ONE}"
    left = [(x.prediction.get("total_seconds"), x.left) for x in planned]
    unknown = sum(count for seconds, count in left if seconds is None)
    more = f", besides {unknown} runs of which it is not known" if unknown else ""
    total = sum((seconds or 0.0) * count for seconds, count in left)
    about = f"{to_do}: about {duration_text(total)}{more}"
    return f"{about}; times and bytes are of one run each, {ONE_BY_ONE}"


def _sum(up: int | None, down: int | None) -> int | None:
    return None if up is None or down is None else up + down


def _text(value: Any, write: Any) -> str:
    return "unknown" if value is None else str(write(value))
