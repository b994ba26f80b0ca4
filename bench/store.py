"""Results on disk: one `run.json` a run, written whole or not at all, read back as tidy tables.

The layout is `DIR/<task>/<method>/<hash>/run.json`, with tables and tensors beside it. Nothing is pickled, so
a result from anywhere can be read without running anything in it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.migrations import migrated
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

SCHEMA = 2
"""Version of `run.json`; it rises whenever a reader of the last version would misread or miss a field, and
`bench.migrations` gains a step then."""

RUN = "run.json"
"""The file that makes a folder a result."""

ROUND_WORK = ("send", "train", "receive", "aggregate")
"""Phases that `cumulative_seconds` adds up: what a federation has to do, evaluation left out."""

PREDICTIONS = "predictions.json"
"""What `flora-bench plan --save` foretold of the runs of a results folder."""

WEIGHTS = "weights.safetensors"
"""The trained tensors of a run, beside its `run.json`."""

WEIGHTS_KEPT_BYTES = {"none": 0, "small": 16 * 2**20, "all": math.inf}
"""Up to which size trained tensors are kept, by the name of the choice."""

FINISHED = ".finished"
"""Where a complete result is written before it takes its place."""

_TABLES = ("ledger", "clients", "rounds")
_SIDE_FILES = (WEIGHTS, *(f"{name}.csv" for name in _TABLES))
_KEYS = ("task", "model", "method", "split", "shots", "seed")
_NAMED = ("method", "split", "model")


class _Record(BaseModel):
    """A part of `run.json`: the fields that readers rely on, and any others."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Named(_Record):
    name: str


class _Split(_Named):
    shots: int | None = None


class _Seeds(_Record):
    split: int
    participation: int
    init: int
    order: int


class _Config(_Record):
    task: str
    method: _Named
    model: str | _Named = ""
    split: str | _Split = ""
    seed: int | _Seeds = 0


class _Round(_Record):
    round: int
    accuracy: float | None
    loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float | None] = {}
    peak_memory_bytes: dict[str, int | None] = {}


class _Run(_Record):
    version: int = Field(alias="schema", ge=1)
    status: str
    config: _Config
    config_hash: str
    summary: dict[str, Any]
    rounds: list[_Round]
    split: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    invariants: dict[str, Any] = {}
    definition: dict[str, str]
    sittings: list[dict[str, Any]]


def run_path(results_dir: Path | str, config: dict[str, Any], config_hash: str) -> Path:
    """Return where the run of `config` is kept: `results_dir/<task>/<method>/<hash>/run.json`.

    Args:
        results_dir: where results are kept.
        config: the resolved configuration; `task` and `method.name` are read.
        config_hash: hash of its content, which alone makes the path unique.
    """
    folders = _file_name(config["task"]), _file_name(config["method"]["name"]), config_hash
    return Path(results_dir).joinpath(*folders, RUN)


def _file_name(name: str) -> str:
    """Make `name` safe on every file system; of a path after "kind:" only the last part is kept."""
    kind, colon, rest = name.partition(":")
    last = re.split(r"[/\\]", rest.rstrip("/\\"))[-1]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", f"{kind}-{last}" if colon else kind)
    return re.sub(r"^\.", "_", safe)[:100]


def save_run(path: Path | str, result: dict[str, Any]) -> None:
    """Write `result` so that `path` holds either what it held before or all of it, whatever happens.

    NaN and infinities have no place in JSON and become null. What is of an earlier schema is brought to
    today's; `schema`, `definition` and `sittings` are added, the latter two empty, if they are not there.

    Args:
        path: the file, as `run_path` gives it or below `staged`; its folders are made.
        result: the fields of `run.json`; plain values and numpy scalars.

    Raises:
        TypeError: if it holds anything else, such as a tensor or an array.
        ValueError: if `load_run` would refuse it.
        OSError: if it cannot be written.
    """
    newest = migrated({"schema": SCHEMA, **result})
    plain = _plain({"definition": {}, "sittings": [], **newest}, "result")
    _Run.model_validate(plain)
    text = json.dumps(plain, indent=1, allow_nan=False) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_weights(path: Path | str, tensors: Mapping[str, Tensor], which: str) -> dict[str, Any] | None:
    """Keep the trained tensors of the run at `path` beside it, whole or not at all.

    Args:
        path: of its `run.json`.
        tensors: by name.
        which: of `WEIGHTS_KEPT_BYTES`; larger ones are not kept, and those of an earlier run removed.

    Returns:
        what `run.json` says of them: file, bytes and SHA-256; None if they are not kept.
    """
    file = Path(path).with_name(WEIGHTS)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if not 0 < size <= WEIGHTS_KEPT_BYTES[which]:
        file.unlink(missing_ok=True)
        return None
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        with temporary.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
    return {"file": WEIGHTS, "bytes": file.stat().st_size, "sha256": digest}


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the trained tensors of the run at `path` back.

    Raises:
        BadInput: they were not kept, or are not those of the run.
    """
    from safetensors.torch import load

    kept = load_run(path).get("weights")
    if not kept:
        raise BadInput(
            f"{path}: no trained tensors were kept. Nothing trains in zero_shot, and mode local_only has no "
            "one model; else run its cell again with --fresh --weights all"
        )
    file = Path(path).with_name(WEIGHTS)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); run its cell again") from error
    if hashlib.sha256(content).hexdigest() != kept["sha256"]:
        raise BadInput(f"{file}: is not what {path} was saved with; run its cell again")
    return load(content)


def save_table(path: Path | str, name: str, rows: Sequence[Mapping[str, Any]] | DataFrame) -> dict[str, Any]:
    """Keep a table of the run at `path` beside it as CSV, whole or not at all.

    Args:
        path: of its `run.json`; its folder is made if need be.
        name: of the table; the file's is `name`.csv.
        rows: each with the same fields, those of the first naming the columns; None is an empty field.

    Returns:
        what `run.json` says of it under `name`: file, rows and SHA-256.
    """
    text = io.StringIO(newline="")
    if isinstance(rows, Sequence):
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        rows.to_csv(text, index=False, lineterminator="\n")
    content = text.getvalue().encode()
    file = Path(path).with_name(f"{name}.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    return {"file": file.name, "rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}


def save_rounds(path: Path | str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the rounds of a result as rounds.csv beside its `run.json`: one row a round, the columns flat.

    Args:
        path: of its `run.json`.
        result: its fields; only the rounds are read.

    Returns:
        what `run.json` says of it under `rounds_table`, as `save_table`; the columns are those of
        `load_rounds` without the ones that tell runs apart.
    """
    rows = [_plain(flattened(row), "rounds") for row in _round_rows(result)]
    columns = dict.fromkeys(name for row in rows for name in row)
    return save_table(path, "rounds", [{name: row.get(name) for name in columns} for row in rows])


def load_table(path: Path | str, name: str) -> DataFrame:
    """Read a table of the run at `path` back.

    Args:
        path: of its `run.json`.
        name: the field of `run.json` that describes it: "ledger", "clients" or "rounds_table".

    Raises:
        BadInput: it was not kept, or is not that of the run.
    """
    import pandas as pd

    kept = load_run(path).get(name)
    if not isinstance(kept, dict):
        raise BadInput(f"{path}: no {name} was kept; run its cell again with --fresh")
    file = Path(path).with_name(Path(str(kept.get("file"))).name)  # what a file says never leads elsewhere
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); run its cell again") from error
    if hashlib.sha256(content).hexdigest() != kept.get("sha256"):
        raise BadInput(f"{file}: is not what {path} was saved with; run its cell again")
    return pd.read_csv(io.BytesIO(content)) if content.strip() else pd.DataFrame()


def load_predictions(results_dir: Path | str) -> dict[str, dict[str, Any]]:
    """Read what was predicted of runs before they ran, by hash of the configuration; empty if nothing was.

    Raises:
        BadInput: the file cannot be read or holds something else.
    """
    file = Path(results_dir) / PREDICTIONS
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: holds no predictions ({error}); remove it") from error
    if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
        raise BadInput(f"{file}: holds no predictions by configuration; remove it")
    for key, values in found.items():
        for name, value in values.items():
            if not _is_amount(value):
                raise BadInput(
                    f"{file}: {key}: {name} {str(value)[:60]!r} must be a number of at least 0, or null; "
                    "remove it"
                )
    return found


def _is_amount(value: object) -> bool:
    """Whether it is missing, or finite and not negative."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and 0 <= value <= sys.float_info.max)  # type: ignore[operator]


def save_predictions(results_dir: Path | str, predictions: Mapping[str, Mapping[str, Any]]) -> Path:
    """Keep predictions beside the results they are of, together with those that are there.

    Raises:
        BadInput: as `load_predictions`.
        OSError: if they cannot be written.
    """
    kept = load_predictions(results_dir)
    file = Path(results_dir) / PREDICTIONS
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({**kept, **predictions}, indent=1, sort_keys=True), encoding="utf-8")
    return file


def side_files(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give what `run.json` says of the files beside it, by their names: bytes or rows, and SHA-256."""
    described = [
        value for value in run.values() if isinstance(value, dict) and {"file", "sha256"} <= set(value)
    ]
    named = {Path(str(value["file"])).name: value for value in described}
    return {name: value for name, value in named.items() if name not in ("", RUN)}


def unlike_saved(path: Path | str, run: Mapping[str, Any]) -> dict[str, str]:
    """Say of the files beside a run what is wrong with them, by their names: "missing" or "damaged".

    Args:
        path: of its `run.json`.
        run: as `load_run` gives it.
    """
    wrong = {}
    for name, described in side_files(run).items():
        file = Path(path).with_name(name)
        if not file.exists():
            wrong[name] = "missing"
        else:
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != described["sha256"]:
                    wrong[name] = "damaged"
    return wrong


@contextmanager
def staged(path: Path | str) -> Iterator[Path]:
    """Let a run's result take the place of an earlier one as a whole, or not at all.

    All that `save_weights`, `save_table` and `save_run` write to the path given lies apart until the block
    ends, then takes its place. Whenever the process is killed, `recover` gives the old result or the new one.

    Args:
        path: of the run's `run.json`. Nobody else may write there meanwhile: hold the cell's lock.

    Yields:
        the path to save to instead.
    """
    folder = Path(path).parent
    recover(folder)
    staging = folder / FINISHED
    try:
        staging.mkdir(parents=True)
        flush_folder(folder)
        yield staging / RUN
    except BaseException:
        if not (staging / RUN).exists():  # a complete result is `recover`'s to put in its place
            shutil.rmtree(staging, ignore_errors=True)
        raise
    publish(folder)


def publish(folder: Path) -> None:
    """Move the complete result in `folder/.finished` to its place; what was cut off goes on.

    No `run.json` is ever beside files not its own: an earlier one goes first, the new one comes last.

    Raises:
        BadInput: there is no complete result.
        OSError: it cannot be moved; it stays where it is, for `recover`.
    """
    staging = folder / FINISHED
    own = side_files(load_run(staging / RUN))
    (folder / RUN).unlink(missing_ok=True)
    flush_folder(folder)
    for name in _SIDE_FILES:
        if name not in own:
            (folder / name).unlink(missing_ok=True)
    moved = {name: value for name, value in own.items() if not (staging / name).exists()}
    for name, what in unlike_saved(folder / RUN, moved).items():
        if what == "damaged":  # an earlier result's, where this one's was not kept
            (folder / name).unlink()
    for name in own.keys() - moved.keys():
        os.replace(staging / name, folder / name)
    flush_folder(folder)
    os.replace(staging / RUN, folder / RUN)
    flush_folder(folder)
    shutil.rmtree(staging)


def recover(folder: Path) -> None:
    """Make good what a killed process left in the folder of a run, whose lock the caller holds.

    A result that was complete takes its place; one that was not, and files that were being written, go.

    Raises:
        OSError: that cannot be done.
    """
    staging = folder / FINISHED
    try:
        if (staging / RUN).exists():
            publish(folder)
    except BadInput:  # complete once and damaged since: as good as none
        pass
    if staging.exists():
        shutil.rmtree(staging)
    for left in strays(folder):
        left.unlink(missing_ok=True)


def strays(folder: Path) -> list[Path]:
    """Name the temporary files that processes killed while writing left in a folder."""
    return sorted(folder.glob(".*.tmp"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` that takes its place at the end, flushed, or is gone if anything fails."""
    # not tempfile: its files are readable by their owner alone, and results are shared
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Let the new name itself survive a power cut, where folders can be flushed (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any, where: str) -> Any:
    """Return `value` as JSON knows it: numpy scalars unwrapped, tuples as lists, not finite as None."""
    import numpy as np

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} cannot be kept as JSON: {type(value).__name__} {str(value)[:60]!r}")


def load_run(path: Path | str) -> dict[str, Any]:
    """Read a result back, whatever schema it was written with.

    Returns:
        the fields of `run.json` as of today's schema, unknown ones included.

    Raises:
        BadInput: if the file cannot be read, is cut short, is of a newer schema or lacks a field.
    """
    again = "delete it and run its cell again"
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged or cut short ({error}); {again}") from error
    if not isinstance(result, dict):
        raise BadInput(f"{path}: holds a {type(result).__name__} and no result; {again}")
    schema = result.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(f"{path}: has schema {schema}, this suite reads up to {SCHEMA}; update flora-bench")
    try:
        result = migrated(result)
        _Run.model_validate(result)
    except (LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: no whole result of schema {schema} ({error}); {again}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: no whole result, {field}: {first['msg']}; {again}") from error
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def stored(path: Path | str) -> dict[str, Any] | None:
    """Return the result at `path`, None if there is none.

    Raises:
        BadInput: as `load_run`.
    """
    return load_run(path) if Path(path).exists() else None


def check_writable(results_dir: Path | str, field: str = "results") -> None:
    """Make `results_dir` if need be, and find out before hours of work whether it takes files.

    ``field`` is what errors call it.

    Raises:
        BadInput: if it does not.
    """
    try:
        Path(results_dir).mkdir(parents=True, exist_ok=True)
        # permissions say little to root or on a read-only file system, so a file is tried
        with tempfile.NamedTemporaryFile(dir=results_dir, prefix=".writable-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise BadInput(
            f"{field}: cannot write to {str(results_dir)!r} ({error.strerror}); choose another folder"
        ) from error


def load_results(
    results: Path | str | Sequence[Path], *, on_damage: Callable[[BadInput], None] | None = None
) -> DataFrame:
    """Read results into one table.

    Args:
        results: a folder laid out as `<task>/<method>/<hash>/run.json`, all of which are read, through its
            index where it has one (see `bench.index`); or the paths of such files.
        on_damage: told of each file that cannot be used, which is left out; if None, the first is raised.

    Returns:
        one row a run, sorted by task, method, split, shots, seed and hash. Columns: `task, model, method,
        split, shots` (nullable Int64), `seed` (int, or the four joined as "split-participation-init-order"
        where they differ), `status, config_hash, path`; every other option by its dotted path, such as
        `clients` or `method.rank`; every field of `summary` by its name; `split.fingerprint`,
        `split.label_skew`, `memory.*`, `flops.*`, `load.*`, `environment.*`, `definition.*`;
        `sittings` (how many processes worked on it), `invariants_checked` (how many) and `broken` (those that
        did not hold, in words). What a run lacks is missing (NaN or None).

    Raises:
        BadInput: if there is none, or one of them is damaged.
    """
    from bench.index import indexed

    if isinstance(results, Path | str):
        return indexed(Path(results), on_damage=on_damage)
    rows = [row_of(path, run) for path, run in read_runs(results, on_damage)]
    if not rows:
        raise nothing_in(results)
    return results_frame(rows)


def load_rounds(results: Path | str | Sequence[Path]) -> DataFrame:
    """Read the rounds of results into one table.

    Args:
        results: a folder laid out as `<task>/<method>/<hash>/run.json`, or the paths of such files.

    Returns:
        one row a run and round, in the order of `load_results`. Columns: `task, model, method, split,
        shots, seed, config_hash, round, accuracy, loss, bytes_up, bytes_down`; `cumulative_bytes` (both
        ways), `cumulative_seconds` (send + train + receive + aggregate), `cumulative_deployment_seconds` and
        `cumulative_joules` (both from round 1 on, missing from the first round that lacks them), this round
        included; `seconds.<phase>` and `peak_memory_bytes.<phase>`.

    Raises:
        BadInput: if there is none, or one of them is damaged.
    """
    paths = run_files(results) if isinstance(results, Path | str) else results
    runs = sorted(read_runs(paths), key=lambda read: row_order(row_of(*read).values))
    if not runs:
        raise nothing_in(results)
    return rounds_frame(row for _, run in runs for row in round_rows(run))


def results_frame(rows: Sequence[Row]) -> DataFrame:
    """Make the table of `load_results` of its rows, in whatever order they come."""
    ordered = sorted(rows, key=lambda row: row_order(row.values))
    shapes = [row.shape for row in ordered]
    return frame_of({name: [row.values.get(name) for row in ordered] for name in names_of(shapes)}, shapes)


def rounds_frame(rows: Iterable[dict[str, Any]]) -> DataFrame:
    """Make the table of `load_rounds` of its rows, as `round_rows` gives them."""
    import pandas as pd

    frame = pd.json_normalize(list(rows))
    return _with_integer_shots(frame.astype({name: float for name in ("accuracy", "loss") if name in frame}))


def _with_integer_shots(frame: DataFrame) -> DataFrame:
    import pandas as pd

    if "shots" in frame:  # a table of no rows has no columns either
        frame["shots"] = pd.array(
            [None if pd.isna(value) else int(value) for value in frame["shots"]], dtype="Int64"
        )
    return frame


def run_files(results_dir: Path | str) -> list[Path]:
    """Find the `run.json` of every result in a folder; what begins with a dot is none of them."""
    found = Path(results_dir).glob(f"*/*/*/{RUN}")
    return [path for path in found if not any(part.startswith(".") for part in path.parts[-4:])]


def read_runs(
    paths: Iterable[Path], on_damage: Callable[[BadInput], None] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read results one by one, each with its path.

    Args:
        paths: of their `run.json`.
        on_damage: told of each that cannot be used; if None, the first is raised.
    """
    for path in paths:
        try:
            yield path, load_run(path)
        except BadInput as error:
            if on_damage is None:
                raise
            on_damage(error)


def nothing_in(results: Path | str | Sequence[Path]) -> BadInput:
    """Say that a folder holds no result."""
    folder = Path(str(results))
    missing = f"holds no <task>/<method>/<hash>/{RUN}" if folder.is_dir() else "is no folder"
    for depth in range(3):
        if next(folder.glob("/".join([*["*"] * depth, RUN])), None) is not None:
            whole = folder.resolve().parents[2 - depth]
            return BadInput(f"results: {str(results)!r} is a part of {str(whole)!r}; give that")
    return BadInput(f"results: {str(results)!r} {missing}; make some with `flora-bench run`")


class Shape(NamedTuple):
    """What a row consists of; most rows of a folder share theirs.

    Attributes:
        names: of its columns, in order.
        summary: those of the run's summary: numbers, even where no run has one.
    """

    names: tuple[str, ...]
    summary: tuple[str, ...]


class Row(NamedTuple):
    """A run in the table of `load_results`: its values by column, and its shape."""

    values: dict[str, Any]
    shape: Shape


def names_of(shapes: Iterable[Shape]) -> list[str]:
    """Give the columns of a table whose rows have these shapes, each where it first comes up."""
    return list(dict.fromkeys(name for shape in dict.fromkeys(shapes) for name in shape.names))


def frame_of(columns: Mapping[str, Sequence[Any]], shapes: Iterable[Shape]) -> DataFrame:
    """Make the table of `load_results` of its columns; pandas tells their types from the values."""
    import pandas as pd

    frame = pd.DataFrame({name: pd.Series(values) for name, values in columns.items()})
    for name in dict.fromkeys(name for shape in dict.fromkeys(shapes) for name in shape.summary):
        if frame[name].isna().all():
            frame[name] = frame[name].astype(float)
    return _with_integer_shots(frame)


def row_order(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give what rows are sorted by, of the values of one: task, method, split, shots, seed, hash and path."""
    shots = -1 if values["shots"] is None else values["shots"]
    seed = values["seed"]
    # joined seeds come after plain ones, with which they cannot be compared
    seed_order = (1, 0, seed) if isinstance(seed, str) else (0, seed, "")
    names = values["task"], values["method"], values["split"]
    return *names, shots, seed_order, values["config_hash"], values["path"]


def _keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a run to a reader: the names of its parts, its shots and its seed."""
    split = config.get("split", "")
    shots = split.get("shots") if isinstance(split, dict) else None
    named = {"task": config["task"], "shots": shots, "seed": _seed(config.get("seed", 0))}
    named |= {part: _name(config.get(part, "")) for part in _NAMED}
    return {key: named[key] for key in _KEYS}


def _name(part: str | dict[str, Any]) -> str:
    return str(part.get("name", "")) if isinstance(part, dict) else part


def _seed(seed: int | dict[str, int]) -> int | str:
    """Return the one seed of all four random streams, or the four joined by hyphens."""
    if isinstance(seed, int):
        return seed
    seeds = [seed[stream] for stream in _Seeds.model_fields]
    return seeds[0] if len(set(seeds)) == 1 else "-".join(map(str, seeds))


def row_of(path: Path | str, run: dict[str, Any]) -> Row:
    """Put a run into one row.

    Args:
        path: of its `run.json`, as the row is to name it.
        run: as `load_run` gives it.
    """
    config = run["config"]
    options = {key: value for key, value in config.items() if key not in (*_KEYS, "split")}
    # of a part with a name the other fields are its options
    parts = {part: config[part] for part in _NAMED if isinstance(config.get(part), dict)}
    dotted = {
        f"{part}.{option}": hashable(value)
        for part, options_of_part in parts.items()
        for option, value in options_of_part.items()
        if option != "name" and (part, option) != ("split", "shots")
    }
    split = {f"split.{field}": run.get("split", {}).get(field) for field in ("fingerprint", "label_skew")}
    nested = {
        **_keys(config),
        "status": run["status"],
        "config_hash": run["config_hash"],
        "path": str(path),
        "features": run.get("features") or {},
        **hashable(options),
        **dotted,
        **run["summary"],
        **split,
        **{part: run.get(part) or {} for part in ("memory", "flops", "load", "environment", "definition")},
        "sittings": len(run["sittings"]) or None,
        "invariants_checked": len(run.get("invariants", {})),
        "broken": broken_invariants(run),
    }
    values = flattened(dict(sorted(nested.items(), key=lambda item: isinstance(item[1], dict))))
    return Row(values, Shape(tuple(values), tuple(run["summary"])))


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Join the keys of nested dictionaries with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def broken_invariants(run: Mapping[str, Any]) -> str:
    """Name the invariants that a run's result says did not hold, each with its reason; empty if all held."""
    broken = [(name, x) for name, x in run.get("invariants", {}).items() if not x.get("holds", True)]
    return "; ".join(
        f"{name.replace('_', ' ')}: {x['reason']}" if x.get("reason") else name.replace("_", " ")
        for name, x in broken
    )


def hashable(value: Any) -> Any:
    """Return `value` with its lists as tuples, which a table can group by."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    if isinstance(value, dict):
        return {key: hashable(item) for key, item in value.items()}
    return value


def round_rows(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the rows of `load_rounds` that a run makes."""
    keys = {**_keys(run["config"]), "config_hash": run["config_hash"]}
    return (keys | row for row in _round_rows(run))


def _round_rows(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    total_bytes, total_seconds = 0, 0.0
    deployment_seconds, joules = 0.0, 0.0
    for record in run["rounds"]:
        up, down = record.get("bytes_up", 0), record.get("bytes_down", 0)
        seconds = record.get("seconds", {})
        total_bytes += up + down
        total_seconds += sum(seconds.get(phase) or 0.0 for phase in ROUND_WORK)
        if record["round"] > 0:  # before the first round no client has done anything
            deployment_seconds += _known(record.get("deployment_seconds"))
            joules += _known(record.get("energy_joules"))
        yield {
            "round": record["round"],
            "accuracy": record["accuracy"],
            "loss": record.get("loss"),
            "bytes_up": up,
            "bytes_down": down,
            "cumulative_bytes": total_bytes,
            "cumulative_seconds": total_seconds,
            "cumulative_deployment_seconds": deployment_seconds,
            "cumulative_joules": joules,
            "seconds": seconds,
            "peak_memory_bytes": record.get("peak_memory_bytes", {}),
        }


def _known(value: float | None) -> float:
    """Return a value that makes every sum with it missing if it is missing itself."""
    return math.nan if value is None else value
