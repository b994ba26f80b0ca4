"""`flora-bench diff`: in what two stored runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flora.errors import BadInput

EXIT_DIFFER = 1
ROUND_FIGURES = ("accuracy", "loss", "bytes_up", "bytes_down")
Pair = tuple[Any, Any]


def diff(
    one: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, its run.json, or the start of its hash.")
    ],
    other: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with.")],
    results: Annotated[Path, typer.Option(help="Folder in which hashes are looked for.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say in what two runs differ; exit with 0 if accuracies, losses and bytes are the same, else with 1."""
    from bench.merging import figures
    from bench.store import flattened, load_run

    paths = found(one, results), found(other, results)
    runs = load_run(paths[0]), load_run(paths[1])
    parts = {
        part: _differences(flattened(runs[0].get(part) or {}), flattened(runs[1].get(part) or {}))
        for part in ("config", "definition", "environment", "summary")
    }
    rounds = _first_rounds(*runs)
    same = figures(runs[0]) == figures(runs[1])
    if as_json:
        differing = {
            part: {name: list(pair) for name, pair in pairs.items()} for part, pairs in parts.items()
        }
        whole = {"runs": [str(path) for path in paths], "same_figures": same, **differing, "rounds": rounds}
        typer.echo(json.dumps(whole, indent=1))
    else:
        for part, pairs in parts.items():
            _print(part, {name: _in_words(pair, part == "summary") for name, pair in pairs.items()})
        _print("rounds", {name: f"first in round {number}" for name, number in rounds.items()})
        typer.echo(f"accuracies, losses and bytes {'are the same' if same else 'differ'}")
    raise typer.Exit(0 if same else EXIT_DIFFER)


def found(run: str, results: Path) -> Path:
    """Find the `run.json` that a folder, a file or the start of a hash means.

    Raises:
        BadInput: there is none, or several.
    """
    from bench.store import RUN, run_files

    path = Path(run)
    if run and path.exists():
        return path / RUN if path.is_dir() else path
    if not run or not set(run) <= set("0123456789abcdef"):
        raise BadInput(f"run: there is no {run!r}; give a run's folder, its {RUN}, or the start of its hash")
    alike = sorted(path for path in run_files(results) if path.parent.name.startswith(run))
    if not alike:
        raise BadInput(
            f"run: no hash in {str(results)!r} begins with {run!r}; name the folder with --results"
        )
    if len(alike) > 1:
        raise BadInput(f"run: {len(alike)} hashes begin with {run!r}; give more than {run!r} of one of them")
    return alike[0]


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    names = {**one, **other}
    return {x: (one.get(x), other.get(x)) for x in names if one.get(x) != other.get(x)}


def _first_rounds(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, int]:
    """Say of each figure in which round it differs first; a round that one of them lacks differs too."""
    known, given = ({x["round"]: x for x in run["rounds"]} for run in (one, other))
    first: dict[str, int] = {}
    for number in sorted({*known, *given}):
        rounds = known.get(number), given.get(number)
        for name in ROUND_FIGURES:
            values = [None if x is None else (x.get(name),) for x in rounds]
            if values[0] != values[1]:
                first.setdefault(name, number)
    return first


def _in_words(pair: Pair, figures: bool) -> str:
    texts = ["none" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in pair]
    # what differs further behind is written out
    text = " -> ".join(texts if texts[0] != texts[1] else map(str, pair))
    numbers = [x for x in pair if isinstance(x, int | float) and not isinstance(x, bool)]
    if not figures or len(numbers) < len(pair):
        return text
    change = numbers[1] - numbers[0]
    relative = f", {100 * change / abs(numbers[0]):+.3g} %" if numbers[0] else ""
    return f"{text} ({change:+.6g}{relative})"


def _print(part: str, lines: Mapping[str, str]) -> None:
    """Print a part's differences, aligned; a part without any not at all."""
    if not lines:
        return
    typer.echo(f"{part}:")
    width = max(map(len, lines))
    for name, line in lines.items():
        typer.echo(f"  {name.ljust(width)}  {line}")
