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

_BY = ["task", "model", "split_label", "shots", "method_label", "profile"]
_QUANTITIES = ("round_seconds", "total_seconds", "to_target_seconds")


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
    from bench.report.targets import check_target

    profiles = [read_profile(text) for text in profile or PROFILES]
    _check_names(profiles)
    if target is not None:
        check_target(target)
    scale = {"clients": clients, "participants": participants, "deadline": deadline}
    each, left_out = _replayed(results, profiles, target, seed, scale)
    if left_out:
        reasons = "; ".join(f"{reason}: {_names(methods)}" for reason, methods in left_out.items())
        typer.echo(f"flora-bench: left out, {reasons}", err=True)
    if each.empty:
        raise BadInput(f"results: {str(results)!r} holds no run that can be replayed")
    rows = _summarised(each, target)
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


def _replayed(
    results: Path,
    profiles: list[Profile],
    target: float | None,
    seed: int,
    scale: dict[str, Any],
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Give one row a run and profile, and the methods of the runs left out by reason."""
    import pandas as pd

    from bench.report.names import label_runs
    from bench.store import load_results, load_run

    runs = label_runs(load_results(results))
    rows, left_out = [], dict[str, list[str]]()
    for run in runs.to_dict("records"):
        stored = load_run(run["path"])
        if reason := _cannot(stored):
            left_out.setdefault(reason, []).append(str(run["method_label"]))
            continue
        keys = {name: run[name] for name in _BY[:-1]}
        keys["client_times"] = stored.get("client_times")
        keys["acceleration"] = stored["config"].get("acceleration")
        for under, found in _under(run["path"], stored, profiles, target, seed, scale):
            rows.append({**keys, "profile": under, **found})
    each = pd.DataFrame(rows)
    if len(each):
        for name in ("split_label", "method_label"):
            each[name] = each[name].astype(runs[name].dtype)
        order = [one.name for one in profiles]
        each["profile"] = pd.Categorical(each["profile"], list(dict.fromkeys(order)), ordered=True)
        each["shots"] = each["shots"].astype("Int64")
    return each, left_out


def _cannot(stored: dict[str, Any]) -> str:
    """Say why a run cannot be replayed; nothing if it can."""
    if stored["status"] != "complete":
        return "not complete"
    if not any(record["round"] > 0 for record in stored["rounds"]):
        return "nothing trained"
    if stored["config"].get("mode") == "centralized":
        return "no clients in mode centralized"
    if any(not stored.get(name) for name in ("ledger", "clients")):
        return "made before ledger and client times were kept (run again with --fresh)"
    return ""


def _under(
    path: str,
    stored: dict[str, Any],
    profiles: list[Profile],
    target: float | None,
    seed: int,
    scale: dict[str, Any],
) -> list[tuple[str, dict[str, Any]]]:
    """Replay one run under each profile."""
    from bench.network import check_stored
    from bench.network import replay as replayed
    from bench.report.targets import to_target
    from bench.store import load_table

    config = stored["config"]
    own = config.get("seed", 0)
    participants = scale["participants"]
    if scale["clients"] is not None and participants is None:
        participants = max(1, round(scale["clients"] * config.get("participation", 1.0)))
    clients, ledger = (load_table(path, name) for name in ("clients", "ledger"))
    check_stored(path, stored["rounds"], clients, ledger)
    found = []
    for profile in profiles:
        frame = replayed(
            stored["rounds"],
            clients,
            ledger,
            profile,
            seed=[seed, own["participation"] if isinstance(own, dict) else own],
            clients_total=scale["clients"],
            participants=participants,
            deadline=scale["deadline"],
        )
        trained = frame[frame["round"] > 0]
        row: dict[str, Any] = {
            "round_seconds": trained["seconds"].median(),
            "total_seconds": frame["cumulative_seconds"].iloc[-1],
            "participants": trained["participants"].sum(),
            "dropped": trained["dropped"].sum(),
            "silent_rounds": (
                (trained["participants"] > 0) & (trained["dropped"] == trained["participants"])
            ).sum(),
        }
        if target is not None:
            one = to_target(frame.assign(config_hash=""), target, "cumulative_seconds").iloc[0]
            missed = None if one["reached"] else one["best_accuracy"]
            row |= {"to_target_seconds": one["amount"], "reached": one["reached"], "missed": missed}
        found.append((profile.name, row))
    return found


def _summarised(each: pd.DataFrame, target: float | None) -> list[dict[str, Any]]:
    """Give one row a method, cell and profile: means over its seeds, with intervals."""
    from bench.report.statistics import mean_interval

    groups = each.groupby(_BY, dropna=False, observed=True, sort=True)
    counted = {name: (name, "sum") for name in ("participants", "dropped", "silent_rounds")}
    table = groups.agg(runs=("round_seconds", "size"), **counted).reset_index()
    if target is not None:
        counts = groups.agg(reached=("reached", "sum"), best_not_reached=("missed", "max")).reset_index()
        table = table.merge(counts, on=_BY)
    for name in _QUANTITIES[: 2 + (target is not None)]:
        means = mean_interval(each, _BY, name)[[*_BY, "mean", "half_width"]]
        renamed = means.rename(columns={"mean": name, "half_width": f"{name}_half_width"})
        table = table.merge(renamed, on=_BY, how="left")
    rows: Any = table.sort_values(_BY).to_dict("records")
    return list(rows)


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
        texts = [_seconds(row, quantity) for quantity in _QUANTITIES[:2]]
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
