"""`flora-bench verify`: whether stored runs are what they say they are."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import store
from flora.errors import BadInput

EXIT_WRONG = 1
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Finding:
    """What was found of a run.

    Attributes:
        path: of its `run.json`, or of what should not be there.
        what: in words.
        wrong: whether it is damage; else it is worth a note.
    """

    path: Path
    what: str
    wrong: bool = True


def verify(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of results.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every run of a folder; exit with 1 if anything is wrong."""
    paths = sorted(store.run_files(folder))
    if not paths:
        raise store.nothing_in(folder)
    findings = [Finding(stray, "was being written when a process ended") for stray in store.strays(folder)]
    findings += [finding for path in _with_bar(paths) for finding in check(path, folder)]
    findings += _unfinished(folder)
    wrong = [finding for finding in findings if finding.wrong]
    notes = Counter(finding.what for finding in findings if not finding.wrong)
    if as_json:
        found = [{"path": str(x.path), "what": x.what, "wrong": x.wrong} for x in findings]
        typer.echo(json.dumps({"folder": str(folder), "runs": len(paths), "findings": found}, indent=1))
    else:
        for finding in wrong:
            typer.echo(f"{finding.path}: {finding.what}")
        for note, count in notes.items():
            typer.echo(f"note: {note} ({count:,} of {len(paths):,} runs)")
        verdict = f"{len(wrong):,} wrong" if wrong else "nothing wrong"
        typer.echo(f"{folder}: {len(paths):,} run{'s' * (len(paths) != 1)}, {verdict}")
    raise typer.Exit(EXIT_WRONG if wrong else 0)


def check(path: Path, results: Path) -> Iterator[Finding]:
    """Check a run: its file, its hashes, the files beside it, its figures and its invariants.

    Args:
        path: of its `run.json`.
        results: the folder that it is in.
    """
    try:
        run = store.load_run(path)
    except BadInput as error:
        yield Finding(path, str(error).removeprefix(f"{path}: "))
        return
    for what in (*_place(path, results, run), *_definition(run), *_figures(run)):
        yield Finding(path, what)
    yield from _config(path, run)
    yield from _files(path, run)
    if broken := store.broken_invariants(run):
        yield Finding(path, f"an invariant does not hold: {broken}")
    yield from _leftovers(path.parent)


def _place(path: Path, results: Path, run: Mapping[str, Any]) -> Iterator[str]:
    own = store.run_path(results, run["config"], run["config_hash"])
    if path != own:
        yield f"lies where another run belongs; its own place is {own}"


def _definition(run: Mapping[str, Any]) -> Iterator[str]:
    from bench.definition import Definition

    kept = run["definition"]
    if not kept.get("hash"):
        return  # from before there were any
    read = Definition.read(kept)
    if read is None or read.hash != kept["hash"]:
        yield "its definition does not have the hash it says"
    if kept.get("config") != run["config_hash"]:
        yield "its definition is of another configuration"


def _config(path: Path, run: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the hash with that of the configuration, as far as today's fields are those of then."""
    from bench.config import RunConfig

    config = run["config"]
    try:
        # the device of then need not be there now
        read = RunConfig.read({**config, "device": "cpu"}).model_copy(update={"device": config["device"]})
    except (BadInput, LookupError) as error:
        yield Finding(path, f"configuration of another version, its hash not checked: {error}", wrong=False)
        return
    if read.hash == run["config_hash"]:
        return
    if read.model_dump(mode="json") == config:
        yield Finding(path, f"its configuration has the hash {read.hash}, not {run['config_hash']}")
    else:
        yield Finding(path, "configuration of an earlier version, its hash not checked", wrong=False)


def _files(path: Path, run: Mapping[str, Any]) -> Iterator[Finding]:
    wrong = store.unlike_saved(path, run)
    for name, what in wrong.items():
        if what == "missing":
            # tensors are large, and left out of what is shared; tables came with schema 2 for good
            optional = name == store.WEIGHTS or not run["definition"].get("hash")
            yield Finding(path, f"{name} is not kept" if optional else f"{name} is missing", not optional)
        else:
            yield Finding(path.with_name(name), "is not what its run.json was saved with")
    sound = {name for name in store.side_files(run) if name not in wrong}
    if "ledger.csv" in sound:
        for what in _ledger(path, run):
            yield Finding(path.with_name("ledger.csv"), what)
    if "rounds.csv" in sound:
        rows = store.load_table(path, "rounds_table")
        table = [(int(row["round"]), float(row["accuracy"])) for row in rows.to_dict("records")]
        if not _same(table, [(x["round"], x["accuracy"]) for x in run["rounds"]]):
            yield Finding(path.with_name("rounds.csv"), "has not the rounds of its run.json")


def _ledger(path: Path, run: Mapping[str, Any]) -> Iterator[str]:
    """Compare what the ledger adds up to with the bytes of each round and of the whole run."""
    ledger = store.load_table(path, "ledger")
    if len(ledger) != run["ledger"].get("rows", len(ledger)):
        yield "has not the rows its run.json says"
    for way in ("up", "down"):
        field = f"bytes_{way}"
        sent = ledger[ledger["direction"] == way] if len(ledger) else ledger
        total = int(sent["payload_bytes"].sum()) if len(sent) else 0
        if total != run["summary"].get(field, total):
            yield f"adds up to {total} {field}, not to {run['summary'][field]}"
        by_round = sent.groupby("round")["payload_bytes"].sum().to_dict() if len(sent) else {}
        for x in run["rounds"]:
            if (added := int(by_round.get(x["round"], 0))) != x.get(field, added):
                yield f"adds up to {added} {field} in round {x['round']}, not to {x[field]}"
                break


def _figures(run: Mapping[str, Any]) -> Iterator[str]:
    """Compare the summary with the rounds."""
    rounds, summary = run["rounds"], run["summary"]
    numbers = [x["round"] for x in rounds]
    if numbers != list(range(len(numbers))):
        yield f"its rounds are not numbered one by one: {numbers[:20]}"
    if not rounds:
        yield "it has no rounds, not even the one before training"
        return
    trains = summary.get("train_seconds") != 0  # of what does not, the round before training is all there is
    if trains and numbers[-1] != run["config"].get("rounds", numbers[-1]):
        yield f"its last round is {numbers[-1]} of {run['config']['rounds']}"
    if rounds[-1]["accuracy"] != summary.get("accuracy"):
        yield "its accuracy is not that of its last round"
    for field in ("bytes_up", "bytes_down"):
        if (total := sum(x.get(field, 0) for x in rounds)) != summary.get(field, total):
            yield f"its rounds add up to {total} {field}, not to {summary[field]}"
    trained = sum((x.get("seconds") or {}).get("train") or 0.0 for x in rounds)
    if not isclose(trained, summary.get("train_seconds", trained), rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield f"its rounds trained for {trained:g} s, not for {summary['train_seconds']:g} s"
    peaks = [peak for x in rounds for peak in (x.get("peak_memory_bytes") or {}).values() if peak]
    if peaks and (summary.get("peak_memory_bytes") or max(peaks)) < max(peaks):
        yield f"its peak memory is {summary['peak_memory_bytes']} bytes, and {max(peaks)} in a round"


def _same(table: Sequence[tuple[int, float]], rounds: Sequence[tuple[int, float | None]]) -> bool:
    """Whether a table has the accuracies of all rounds, as far as text keeps numbers."""
    return len(table) == len(rounds) and all(
        number == of_round and (found is None or isclose(found, accuracy, rel_tol=TOLERANCE))
        for (number, accuracy), (of_round, found) in zip(table, rounds, strict=True)
    )


def _leftovers(folder: Path) -> Iterator[Finding]:
    """Name what a process that is gone has left beside a result."""
    from bench.checkpoints import FOLDER
    from bench.standing import is_running

    left = [path for path in (folder / store.FINISHED, folder / FOLDER) if path.exists()]
    left += store.strays(folder)
    if left and not is_running(folder):
        for path in left:
            yield Finding(path, "is left of a process that ended; `run` its cell again, or remove it")


def _unfinished(results: Path) -> Iterator[Finding]:
    """Name results that were complete and are not in their place yet."""
    from bench.standing import is_running

    for path in sorted(results.glob(f"*/*/*/{store.FINISHED}/{store.RUN}")):
        folder = path.parent.parent
        if not (folder / store.RUN).exists() and not is_running(folder):
            yield Finding(path, "is a complete result not in its place yet; `run` its cell again")


def _with_bar(paths: Sequence[Path]) -> Iterator[Path]:
    """Pass paths on, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from paths
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(paths, "verifying", console=Console(stderr=True), transient=True)
