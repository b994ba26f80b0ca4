"""`flora-bench status`: how far the matrices of a folder are, from any shell, while they run or after."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bench.cli.progress import Headway, Row
    from bench.standing import Standing

KINDS = ("done", "running", "failed", "partial", "left")
ROWS, LINES = 20, 5
"""How many cells that run are shown, and how many that failed or were interrupted."""

SILENT_SECONDS = 60.0
"""A cell that has given no sign for longer may be stuck: it gives one a second while anything moves."""

SAMPLES = 8
"""How many results of each method are read to learn what cells take."""

REFRESH_SECONDS = 2.0
LOOKING_SHARE = 0.1  # and no more of the time than this is spent on looking


def status(
    results: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder the results are kept in.")] = Path(
        "results"
    ),
    every: Annotated[bool, typer.Option("--all", help="Show every matrix, not the latest alone.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 2 s, until every cell is done or failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which cells are done, running, failed or left, and for how long it will go on."""
    if watch and as_json:
        raise BadInput("--watch: has no effect beside --json; ask for JSON again and again instead")
    if as_json:
        typer.echo(json.dumps([view.record() for view in _views(results, every)], indent=1))
    elif watch:
        with suppress(KeyboardInterrupt):
            _watch(results, every)
    else:
        from rich.console import Console

        console = Console()
        console.print(_drawn(_views(results, every), console.width))


def _views(results: Path, every: bool) -> list[View]:
    """Look at the latest matrix or all of them; at whatever cells there are, if there is none.

    Raises:
        BadInput: it is no folder of results.
    """
    from bench.matrices import load_matrices
    from bench.standing import any_cells, standings

    if not results.is_dir():
        raise BadInput(f"results: there is no folder {str(results)!r}; give the one that `run` writes to")
    found: list[tuple[Path | None, dict[str, Any]]] = [*load_matrices(results).items()]
    chosen = found[: None if every else 1] or [(None, any_cells(results))]
    if not any(matrix["cells"] for _, matrix in chosen):
        raise BadInput(f"results: {str(results)!r} holds no cells; give the folder that `run` writes to")
    return [View(results, file, matrix, standings(results, matrix), time.time()) for file, matrix in chosen]


@dataclass(frozen=True)
class View:
    """A matrix at one moment.

    Attributes:
        results: the folder.
        file: of the matrix; None where there is none.
        matrix: what is in it.
        cells: where its cells stand.
        now: that moment, in seconds since the epoch. Clocks may be set back, and those of machines differ:
            no time derived from it is negative.
    """

    results: Path
    file: Path | None
    matrix: Mapping[str, Any]
    cells: Sequence[Standing]
    now: float

    def of(self, kind: str) -> list[Standing]:
        """Give the cells that stand so."""
        return [cell for cell in self.cells if cell.kind == kind]

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many cells stand how."""
        count: Counter[str] = Counter(cell.kind for cell in self.cells)
        return {kind: count[kind] for kind in KINDS}

    @property
    def over(self) -> bool:
        """Whether every cell is done or has failed."""
        return self.counts["done"] + self.counts["failed"] == len(self.cells)

    @cached_property
    def finished(self) -> list[float]:
        """When the results came, in seconds since the matrix began: of those that came since."""
        if (began := self.began) is None:
            return []
        return sorted(
            max(0.0, cell.finished - began)
            for cell in self.cells
            if cell.finished is not None and cell.finished >= began
        )

    @property
    def began(self) -> float | None:
        """When the matrix was last asked for, in seconds since the epoch."""
        from bench.standing import seconds_of

        return seconds_of(self.matrix["began"])

    @property
    def asker_lives(self) -> bool:
        """Whether the process that asked for the matrix is there, as far as that can be seen from here."""
        import psutil

        host, pid = self.matrix.get("host"), self.matrix.get("pid")
        return isinstance(pid, int) and host == platform.node() and psutil.pid_exists(pid)

    @property
    def elapsed(self) -> float:
        """How long it has run; if nothing runs any more, until its last result."""
        if self.counts["running"] and self.began is not None:
            return max(0.0, self.now - self.began)
        return self.finished[-1] if self.finished else 0.0

    @cached_property
    def seconds_left(self) -> float | None:
        """How long the cells left will take, as many at once as run now; None if that cannot be said."""
        from bench.cli.progress import TimeLeft
        from bench.matrices import predicted_totals

        asked = {cell["hash"]: cell.get("predicted_seconds") for cell in self.matrix["cells"]}
        known = {key: seconds for key, seconds in asked.items() if isinstance(seconds, int | float)}
        left = {
            cell.cell["hash"]: _method(cell) for cell in self.cells if cell.kind not in ("done", "failed")
        }
        time_left = TimeLeft(left, {**predicted_totals(self.results), **known}, self.counts["running"])
        for cell, seconds in _took(self.results, self.of("done"), set(left.values())):
            time_left.cell_took(cell.cell["hash"], _method(cell), seconds)
        begun = self.of("running") + self.of("partial")
        return time_left.seconds({cell.cell["hash"]: _headway(cell) for cell in begun})

    def record(self) -> dict[str, Any]:
        """Give all of it as plain values."""
        return {
            "matrix": None if self.file is None else self.file.stem,
            "began": self.matrix["began"],
            "command": self.matrix["command"],
            "cells": len(self.cells),
            **self.counts,
            "elapsed_seconds": self.elapsed,
            "seconds_left": 0.0 if self.over else self.seconds_left,
            "cells_per_minute": 60 * len(self.finished) / self.elapsed if self.elapsed else None,
            "rounds_per_second": self.rounds_per_second,
            **{
                f"{kind}_cells": [self._cell_record(cell) for cell in self.of(kind)]
                for kind in ("running", "failed", "partial")
            },
        }

    @property
    def rounds_per_second(self) -> float:
        """Over all cells that run."""
        return sum(_number(cell, "rounds_per_second") or 0.0 for cell in self.of("running"))

    def _cell_record(self, cell: Standing) -> dict[str, Any]:
        silent = self.silent_seconds(cell)
        return {
            "cell": cell.cell["label"],
            "hash": cell.cell["hash"],
            "path": cell.cell["path"],
            "reason": cell.reason or None,
            "kept_round": cell.kept_round,
            **(cell.progress or {}),
            "seconds_since_sign": silent,
            "stuck": cell.kind == "running" and silent is not None and silent > SILENT_SECONDS,
        }

    def silent_seconds(self, cell: Standing) -> float | None:
        """Say for how long a cell has given no sign; None if it has given none yet."""
        from bench.standing import seconds_of

        updated = seconds_of((cell.progress or {}).get("updated"))
        return None if updated is None else max(0.0, self.now - updated)


def _method(cell: Standing) -> str:
    return Path(cell.cell["path"]).parts[-3]


def _number(cell: Standing, name: str) -> float | None:
    """Read a number from what a process wrote of itself."""
    value = (cell.progress or {}).get(name)
    return value if isinstance(value, int | float) else None


def _headway(cell: Standing) -> Headway:
    from bench.cli.progress import Headway

    rounds = int(_number(cell, "rounds") or 0)
    reached, since = int(_number(cell, "round") or 0), int(_number(cell, "resumed_from") or 0)
    timed, pace = max(0, reached - since), _number(cell, "rounds_per_second")
    goes_on_from = reached if cell.kind == "running" else cell.kept_round or 0
    return Headway.of(goes_on_from, rounds, timed if pace else 0, timed / pace if pace else 0.0)


def _took(results: Path, done: Sequence[Standing], methods: set[str]) -> Iterator[tuple[Standing, float]]:
    """Read what the last few cells of each method took, of methods that have cells left or of any."""
    by_method: dict[str, list[Standing]] = defaultdict(list)
    for cell in sorted(done, key=lambda cell: cell.finished or 0.0, reverse=True):
        by_method[_method(cell)].append(cell)
    for method in methods & set(by_method) or set(by_method):
        for cell in by_method[method][:SAMPLES]:
            with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
                run = json.loads((results / cell.cell["path"]).read_text(encoding="utf-8"))
                yield cell, float(run["summary"]["total_seconds"])


# --- on the terminal -----------------------------------------------------------------------------------


def _watch(results: Path, every: bool) -> None:
    """Show what there is until all of it is over."""
    from rich.console import Console
    from rich.live import Live

    console, said = Console(), ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            views = _views(results, every)
            if console.is_terminal:
                live.update(_drawn(views, console.width), refresh=True)
            elif (line := " | ".join(_counted(view) for view in views)) != said:
                said = line
                console.print(line, highlight=False, soft_wrap=True)
            if all(view.over for view in views):
                return
            time.sleep(max(REFRESH_SECONDS, (time.monotonic() - began) / LOOKING_SHARE))


def _drawn(views: Sequence[View], width: int) -> RenderableType:
    from rich.console import Group

    parts = [part for view in views for part in ("", *_parts(view, width))]
    return Group(*parts[1:])


def _parts(view: View, width: int) -> Iterator[RenderableType]:
    """Give the lines about one matrix."""
    from rich.padding import Padding
    from rich.text import Text

    from bench.cli.progress import cells_bar, facts_text, short_names, table

    yield Text(_headline(view), overflow="ellipsis", no_wrap=True)
    yield cells_bar(view.counts["done"], len(view.cells), width)
    yield facts_text(_facts(view), width)
    names = short_names({cell.cell["hash"]: cell.cell["label"] for cell in view.cells})
    running = sorted(view.of("running"), key=lambda cell: -(_number(cell, "seconds") or 0.0))
    if running:
        yield table([_row(view, cell, names[cell.cell["hash"]]) for cell in running[:ROWS]], width)
    if len(running) > ROWS:
        yield Text(f"and {len(running) - ROWS} more")
    for heading, kind, text in (("failed", "failed", _failed), ("interrupted", "partial", _interrupted)):
        if cells := view.of(kind):
            yield Text(f"{heading}:", style="bold")
            lines = (Text(f"{names[cell.cell['hash']]}: {text(cell)}") for cell in cells[:LINES])
            yield from (Padding(line, (0, 0, 0, 2)) for line in lines)
        if len(cells) > LINES:
            yield Text(f"  and {len(cells) - LINES} more, see --json")


def _headline(view: View) -> str:
    import shlex

    if view.file is None:
        return f"{view.results}: no matrix is noted there; this is what the folder holds"
    command = view.matrix["command"]
    asked = shlex.join(map(str, command)) if command else f"matrix {view.file.stem}"
    return f"{asked} · began {_ago(max(0.0, view.now - (view.began or view.now)))}"


def _ago(seconds: float) -> str:
    from bench.cli.progress import duration

    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def _counted(view: View) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in view.counts.items() if count or kind == "done")


def _facts(view: View) -> Iterator[str]:
    from bench.cli.progress import duration, rate_text, time_left_text

    yield from (f"{count:,} {kind}" for kind, count in view.counts.items() if count or kind == "done")
    if not view.over:
        yield time_left_text(view.seconds_left)
        if not view.counts["running"]:
            of_shard = any(str(word).startswith("--shard") for word in view.matrix["command"] or ())
            again = "the commands of all shards" if of_shard else "the command"
            stopped = f"nothing runs now: give {again} again to go on"
            yield "no cell runs at this moment" if view.asker_lives else stopped
    elif view.finished:
        yield f"over after {duration(view.elapsed)}"
    if view.finished and view.elapsed:
        yield rate_text(len(view.finished), "cells", view.elapsed)
    if rounds := view.rounds_per_second:
        yield rate_text(rounds, "rounds", 1)


def _row(view: View, cell: Standing, name: str) -> Row:
    from rich.filesize import decimal

    from bench.cli.progress import Row, duration

    progress = cell.progress or {}
    silent = view.silent_seconds(cell) or 0.0
    accuracy, memory = _number(cell, "accuracy"), _number(cell, "memory_bytes")
    share, doing = _doing(cell)
    notes = [
        f"no sign for {duration(silent)}" if silent > SILENT_SECONDS else "",
        "" if accuracy is None else f"{accuracy:.1%}",
        f"for {duration((_number(cell, 'seconds') or 0.0) + silent)}",
        "" if memory is None else decimal(int(memory)),
        f"{progress['host']}:{progress['pid']}" if {"host", "pid"} <= set(progress) else "",
    ]
    return Row(name, share, doing, [note for note in notes if note])


def _doing(cell: Standing) -> tuple[float | None, str]:
    """Say what a process is at, and what share of that is done."""
    done, total = _number(cell, "done"), _number(cell, "total")
    round, rounds = _number(cell, "round"), _number(cell, "rounds")
    phase = str((cell.progress or {}).get("phase", "starting")).replace("_", "-")
    if done is not None and total:
        return done / total, f"{phase} {done:,}/{total:,}"
    if round is not None and rounds:
        return round / rounds, f"round {round:,}/{rounds:,}"
    return None, phase


def _failed(cell: Standing) -> str:
    return cell.reason


def _interrupted(cell: Standing) -> str:
    round = _number(cell, "round")
    at = "before its first round" if round is None else f"at round {round:,}"
    if cell.progress is None:
        return f"goes on from round {cell.kept_round:,}"
    return f"interrupted {at}" + (
        "" if cell.kept_round is None else f", goes on from round {cell.kept_round:,}"
    )
