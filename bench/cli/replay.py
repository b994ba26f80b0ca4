"""`flora-bench replay`: how long finished runs would have taken on a network, from what they stored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from bench.network import Profile


def replay(
    results: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of results.")] = Path("results"),
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FIELDS|FILE",
            help="lan, wifi, 4g, 3g; up=10,down=50,latency=40,...; 4g,dropout=0.2; or a YAML file. "
            "May be repeated; all four if not given.",
        ),
    ] = None,
    target: Annotated[float | None, typer.Option(help="Accuracy to give the time to, such as 0.8.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="Clients of a larger federation of which a run is a sample.")
    ] = None,
    participants: Annotated[
        int | None,
        typer.Option(help="Of these, how many take part in a round; if not given, the run's share."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds after which a round waits for no further client.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of stragglers, dropouts and samples of clients.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with an entry a row.")] = False,
) -> None:
    """Give the times of finished runs under network profiles, without training again."""
    from bench.network import PROFILES, read_profile
    from bench.report.networks import mean_times, network_times
    from bench.report.targets import check_target
    from bench.store import load_results

    profiles = [read_profile(text) for text in profile or PROFILES]
    _check_names(profiles)
    if target is not None:
        check_target(target)
    left_out: dict[str, list[str]] = {}
    each = network_times(
        load_results(results),
        profiles,
        target,
        seed=seed,
        clients=clients,
        participants=participants,
        deadline=deadline,
        on_left_out=lambda reason, method: left_out.setdefault(reason, []).append(method),
    )
    if left_out:
        reasons = "; ".join(f"{reason}: {_names(methods)}" for reason, methods in left_out.items())
        typer.echo(f"flora-bench: left out, {reasons}", err=True)
    if each.empty:
        raise BadInput(f"results: {str(results)!r} holds no run that can be replayed")
    rows: list[dict[str, Any]] = mean_times(each).to_dict("records")  # type: ignore[assignment]
    for note in _silences(rows):
        typer.echo(f"flora-bench: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([_record(row, target) for row in rows], indent=1))
    else:
        _print(rows, target, _caption(each))


def _check_names(profiles: list[Profile]) -> None:
    """Refuse profiles that one could not tell apart, and whose times would be mixed."""
    counts = Counter(profile.name for profile in profiles)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise BadInput(
            f"--profile: {counts[twice[0]]} are called {twice[0]!r}; name them apart, "
            "with name=... or in the file"
        )


def _silences(rows: list[dict[str, Any]]) -> list[str]:
    """Say where rounds went by that no client reported in."""
    return [
        f"{row['method_label']} ({row['split_label']}) under {row['profile']}: "
        f"in {row['silent_rounds']} rounds of {row['runs']} runs nobody reported; such a round has no "
        "client's time but a deadline's, and the accuracy is that of the stored run"
        for row in rows
        if row["silent_rounds"]
    ]


def _record(row: dict[str, Any], target: float | None) -> dict[str, Any]:
    """Write a row as JSON knows it."""
    import pandas as pd

    names = {"split_label": "split", "method_label": "method"}
    plain = {names.get(key, key): None if pd.isna(value) else value for key, value in row.items()}
    return plain if target is None else {**plain, "target": target}


def _caption(each: pd.DataFrame) -> str:
    """Say what the times are and what is not in them, as far as these runs are concerned."""
    sentences = [
        "Mean over the seeds ± half width of the 95 % t-interval; round: median over the rounds of a run.",
        "Evaluation and the one-off download of the frozen model are left out, and accuracies are those of "
        "the stored runs.",
    ]
    if (each["acceleration"] == "exact").any():
        sentences.append("Of accelerated runs the work of frozen towers is not in a client's time.")
    if (each["client_times"] == "shared").any():
        sentences.append("Clients were trained in groups: a group's time is shared out.")
    return " ".join(sentences)


def _print(rows: list[dict[str, Any]], target: float | None, caption: str) -> None:
    from itertools import groupby

    from rich.console import Console

    from bench.report.names import shots_label

    console = Console()
    for (task, model, split, shots), cell in groupby(rows, key=_cell_of):
        console.rule(f"{task} · {model} · {split}, {shots_label(shots)}", align="left", style="dim")
        console.print(_table(list(cell), target))
    console.print(caption, style="dim", highlight=False)


def _cell_of(row: dict[str, Any]) -> tuple[Any, ...]:
    import pandas as pd

    shots = None if pd.isna(row["shots"]) else row["shots"]
    return row["task"], row["model"], str(row["split_label"]), shots


def _table(rows: list[dict[str, Any]], target: float | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("Method")
    table.add_column("Profile")
    headings = ["Round (s)", "Run (s)", *([f"To {target:.1%} (s)"] if target is not None else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    last = None
    for row in rows:
        name = str(row["method_label"])
        texts = [_seconds(row, quantity) for quantity in ("round_seconds", "total_seconds")]
        if target is not None:
            texts.append(_to_target(row))
        table.add_row("" if name == last else name, str(row["profile"]), *texts)
        last = name
    return table


def _seconds(row: dict[str, Any], quantity: str) -> str:
    import pandas as pd

    from bench.report.text import digits

    half = row[f"{quantity}_half_width"]
    return digits(row[quantity]) + ("" if pd.isna(half) else f" ± {digits(half)}")


def _to_target(row: dict[str, Any]) -> str:
    if not row["reached"]:
        return f"not reached, best {row['best_not_reached']:.1%}"
    missed = "" if row["reached"] == row["runs"] else f" ({row['reached']} of {row['runs']} seeds)"
    return _seconds(row, "to_target_seconds") + missed


def _names(methods: list[str]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in Counter(methods).items())
