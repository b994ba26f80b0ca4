"""`flora-bench cache`: what is kept of frozen towers between runs; shown, trimmed and checked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from flora.cache import FeatureCache
    from flora.shelves import Checked, Shelf

ACTIONS = ("show", "trim", "verify")
EXIT_DAMAGED = 1
# Hashes are told apart by fewer digits than they have.
SHOWN_CHARACTERS = 40
# What tells people one kind of row from another; the rest of it is in its key.json.
SHOWN = ("name", "dtype", "stage", "device", "threads", "matmul_precision")

# What commands that run cells take.
CacheFolder = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="FOLDER", help="Folder for what frozen towers give; default: the user's own."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep none of it beyond the run of each cell.")]


def opened(folder: str | None, no_cache: bool) -> FeatureCache | None:
    """Open the cache that a command's options ask for; None for none.

    Raises:
        BadInput: they exclude each other, or there can be no folder where one is named.
    """
    from bench.caching import folder_for_runs

    if no_cache:
        if folder is not None:
            raise BadInput("--cache and --no-cache exclude each other; give one of them")
        return None
    place = folder_for_runs(folder)
    from bench.frozen import cache_in  # what needs torch takes seconds

    return cache_in(place)


def cache(
    action: Annotated[str, typer.Argument(help="show, trim or verify.", metavar="[ACTION]")] = "show",
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the cache; if not given, $FLORA_BENCH_CACHE, else ~/.cache/flora-bench/features."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="trim: size to get down to, such as 5GB; if not given, $FLORA_BENCH_CACHE_LIMIT, else 20GB."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="trim: remove all there is.")] = False,
    older_than: Annotated[
        str | None, typer.Option(help="trim: remove what was not used for so long, such as 30d.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Show the features kept on disk; trim those not used for longest; or verify that none is damaged."""
    if action not in ACTIONS:
        raise BadInput(f"cache: there is no action {action!r}{nearest(action, ACTIONS)}")
    bounds = {"--to": to, "--all": everything or None, "--older-than": older_than}
    given = [name for name, value in bounds.items() if value is not None]
    if given and action != "trim":
        raise BadInput(f"cache {action}: {given[0]} belongs to `cache trim`")
    if len(given) > 1:
        raise BadInput(f"cache trim: {given[0]} and {given[1]} exclude each other; give one of them")
    place = _place(folder)
    if action == "trim":
        _trim(place, "0" if everything else to, older_than, as_json)
    elif action == "verify":
        _verify(place, as_json)
    else:
        _show(place, as_json)


def _place(folder: Path | None) -> Path:
    """The cache's folder; where it is the default it need not be there yet."""
    from bench.caching import default_folder

    place = default_folder() if folder is None else folder.expanduser().absolute()
    if not place.is_dir() and (folder is not None or place.exists()):
        raise BadInput(f"--folder: {str(place)!r} is no folder; name one that a run has used as its cache")
    return place


def _show(place: Path, as_json: bool) -> None:
    from bench.caching import bytes_text, default_limit_bytes
    from flora.shelves import shelves

    found = [_described(shelf) for shelf in reversed(shelves(place))]
    limit, total = default_limit_bytes(), sum(entry["bytes"] for entry in found)
    if as_json:
        whole = {"folder": str(place), "bytes": total, "limit_bytes": limit, "shelves": found}
        typer.echo(json.dumps(whole, indent=1))
        return
    typer.echo(f"{place}: {bytes_text(total)} of at most {bytes_text(limit)}")
    for entry in found:
        typer.echo(_in_words(entry))


def _described(shelf: Shelf) -> dict[str, Any]:
    """A shelf from the headers of its files; those damaged are left to `verify`."""
    from flora.shelves import Damaged, read_shard

    shards = []
    for path in shelf.shards():
        try:
            shards.append(read_shard(path))
        except (Damaged, OSError):
            continue
    return {
        "name": shelf.path.name,
        "kind": shelf.kind(),
        "images": sum(shard.count for shard in shards),
        "dtype": shards[0].dtype if shards else None,
        "shape": list(shards[0].shape) if shards else None,
        "seconds": sum(shard.seconds for shard in shards),
        "bytes": shelf.size_bytes(),
        "used": datetime.fromtimestamp(shelf.last_used(), UTC).isoformat(timespec="seconds"),
    }


def _in_words(entry: dict[str, Any]) -> str:
    from bench.caching import bytes_text

    kind = entry["kind"] or {}
    known = [kind[name] for name in SHOWN if name in kind] or list(kind.values())
    details = ", ".join(value[:SHOWN_CHARACTERS] for value in known if value not in ("None", "highest"))
    rows = f"{entry['images']:,} x {entry['dtype']} {entry['shape']}" if entry["images"] else "empty"
    return (
        f"{entry['name']}: {rows}, {bytes_text(entry['bytes'])}, took {entry['seconds']:,.1f} s, "
        f"used {entry['used']}{f' ({details})' if details else ''}"
    )


def _trim(place: Path, to: str | None, older_than: str | None, as_json: bool) -> None:
    from bench.caching import bytes_text, default_limit_bytes, parse_bytes, parse_seconds
    from flora.shelves import trim, trim_unused

    if older_than is not None:
        removed, left = trim_unused(place, time.time() - parse_seconds(older_than, "--older-than"))
    else:
        limit = default_limit_bytes() if to is None else parse_bytes(to, "--to")
        removed, left = trim(place, limit)
    if as_json:
        typer.echo(json.dumps({"folder": str(place), "removed_bytes": removed, "left_bytes": left}, indent=1))
    else:
        typer.echo(f"{place}: {bytes_text(removed)} removed, {bytes_text(left)} left")


def _verify(place: Path, as_json: bool) -> None:
    from bench.caching import bytes_text

    count = size = 0
    damaged = []
    for checked in _with_bar(place):
        count, size = count + 1, size + checked.size_bytes
        if checked.damage:
            damaged.append(checked)
    if as_json:
        entries = [
            {"file": str(file.path), "damage": file.damage, "removed": file.removed} for file in damaged
        ]
        whole = {"folder": str(place), "files": count, "bytes": size, "damaged": entries}
        typer.echo(json.dumps(whole, indent=1))
    else:
        for file in damaged:
            typer.echo(f"{file.path}: {file.damage}; {'removed' if file.removed else 'it stays'}")
        verdict = f"{len(damaged):,} damaged" if damaged else "all sound"
        typer.echo(f"{place}: {count:,} files, {bytes_text(size)}, {verdict}")
    raise typer.Exit(EXIT_DAMAGED if damaged else 0)


def _with_bar(place: Path) -> Iterator[Checked]:
    """Check every file, with a bar on a terminal."""
    from flora.shelves import files_to_verify, verify

    found = verify(place)
    if not sys.stderr.isatty():
        yield from found
        return
    from rich.console import Console
    from rich.progress import track

    total, console = files_to_verify(place), Console(stderr=True)
    yield from track(found, "checking the cache", total=total, console=console, transient=True)
