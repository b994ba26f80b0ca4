"""`results.parquet`: the table of a folder's results, so that those that did not change are not read again.

It can be removed at any time, and is made anew from the runs. To other readers it is the table of
`load_results`, with paths relative to its folder. Columns whose values are of several kinds are JSON
text, and named in the metadata.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import migrations, store
from flora.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame

INDEX = "results.parquet"

KEPT_FROM = 100
"""How many results must have changed before the index is written: with fewer, writing costs what it saves."""

_STAMP = ("run_json.bytes", "run_json.mtime_ns", "run_json.ctime_ns", "run_json.inode")
_SHAPE = "run_json.shape"
_DEFINITION = "definition."
_METADATA = b"flora_bench"

Columns = dict[str, list[Any]]
OnDamage = Callable[[BadInput], None] | None


def indexed(results: Path, rebuild: bool = False, on_damage: OnDamage = None) -> DataFrame:
    """Read the results of a folder; the files alone of those that changed since its index was written.

    Args:
        results: the folder. An index that knows too little is written anew if it can be.
        rebuild: read every file, and write the index in any case.
        on_damage: told of each file that cannot be used, which is left out; if None, the first is raised.

    Returns:
        what `bench.store.load_results` describes.

    Raises:
        BadInput: there is no result, or one is damaged; or `rebuild` cannot write.
    """
    columns = _columns(results, rebuild, on_damage)
    if not columns:
        raise store.nothing_in(results)
    columns["path"] = [str(results / path) for path in columns["path"]]
    shapes = columns[_SHAPE]
    return store.frame_of({name: columns[name] for name in store.names_of(shapes)}, shapes)


def definitions(results: Path, on_damage: OnDamage = None) -> dict[Path, dict[str, str]]:
    """Read of which definition the results of a folder are, by the path of their `run.json`.

    Args:
        results: the folder; one that is not there holds none.
        on_damage: as for `indexed`.

    Raises:
        BadInput: a result is damaged.
    """
    columns = _columns(results, on_damage=on_damage, only=_DEFINITION)
    parts = {name.removeprefix(_DEFINITION): name for name in columns if name.startswith(_DEFINITION)}
    return {
        results / path: {
            part: value for part, name in parts.items() if (value := columns[name][i]) is not None
        }
        for i, path in enumerate(columns.get("path", ()))
    }


def _columns(results: Path, rebuild: bool = False, on_damage: OnDamage = None, only: str = "") -> Columns:
    """Give the table of all results and what the index knows besides; `only` what begins so, in any order."""
    stamps = _stamps(results)
    known = {} if rebuild else _known(results / INDEX, only)
    files = known.get("path", [])
    unchanged = [
        i
        for i, (file, *stamp) in enumerate(zip(files, *(known.get(name, ()) for name in _STAMP), strict=True))
        if stamps.get(file) == tuple(stamp)
    ]
    if len(unchanged) == len(files) == len(stamps):
        return known
    fresh = stamps.keys() - {files[i] for i in unchanged}
    changed = len(fresh) + len(files) - len(unchanged)
    if only and changed >= KEPT_FROM:
        return _columns(results, rebuild, on_damage)
    kept = {name: [values[i] for i in unchanged] for name, values in known.items()}
    columns = _joined(kept, list(_read(results, {file: stamps[file] for file in fresh}, on_damage)))
    if not only:
        columns = _sorted(columns)
    if not only and (rebuild or changed >= KEPT_FROM):
        _write(results / INDEX, columns, rebuild)
    return columns


def _stamps(results: Path) -> dict[str, tuple[int, ...]]:
    """Give size, times of change and inode of each `run.json`: one that is changed differs in one of them.

    An editor may keep the size and set the time of writing back, but not that of the last change of either.
    """
    stamps: dict[str, tuple[int, ...]] = {}
    for path in store.run_files(results):
        with suppress(FileNotFoundError):  # removed since
            found = path.stat()
            stamp = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
            stamps[path.relative_to(results).as_posix()] = stamp
    return stamps


def _read(
    results: Path, stamps: Mapping[str, tuple[int, ...]], on_damage: OnDamage
) -> Iterator[dict[str, Any]]:
    """Read results from their files, each as a row of the index."""
    for file, stamp in stamps.items():
        try:
            run = store.load_run(results / file)
        except BadInput as error:
            if not (results / file).exists():  # removed since
                continue
            if on_damage is None:
                raise
            on_damage(error)
            continue
        row = store.row_of(file, run)
        yield {**row.values, **dict(zip(_STAMP, stamp, strict=True)), _SHAPE: row.shape}


def _joined(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Append rows to columns; what either lacks is None."""
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    length = len(columns.get("path", ()))
    return {name: columns.get(name, [None] * length) + [row.get(name) for row in rows] for name in names}


def _sorted(columns: Columns) -> Columns:
    """Sort the rows as `load_results` does."""
    keys = ("task", "method", "split", "shots", "seed", "config_hash", "path")
    if not columns:
        return columns
    rows = [
        dict(zip(keys, values, strict=True)) for values in zip(*(columns[key] for key in keys), strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: store.row_order(rows[i]))
    return {name: [values[i] for i in order] for name, values in columns.items()}


def _reader() -> str:
    """Tell by its source what makes rows of runs: an index that an earlier one made is of no use."""
    modules = store, migrations, sys.modules[__name__]
    return sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()


def _write(file: Path, columns: Columns, needed: bool) -> None:
    """Keep the index; unless it is `needed`, a folder that takes none does without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shapes = {shape: number for number, shape in enumerate(dict.fromkeys(columns[_SHAPE]))}
    arrays, mixed = {}, []
    for name, values in {**columns, _SHAPE: [shapes[shape] for shape in columns[_SHAPE]]}.items():
        array = _array(values)
        if array is None:
            mixed.append(name)
            array = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
        arrays[name] = array
    about = {"reader": _reader(), "json": mixed, "shapes": list(shapes)}
    table = pa.table(arrays, metadata={_METADATA: json.dumps(about)})
    try:
        with store.replacing(file) as temporary:
            pq.write_table(table, temporary)
    except OSError as error:
        if needed:
            raise BadInput(f"results: cannot write {str(file)!r} ({error.strerror or error})") from error


def _array(values: Sequence[Any]) -> pa.Array | None:
    """Give values of one kind as a column; None if they are of several, or do not fit."""
    import pyarrow as pa

    if len({type(value) for value in values} - {type(None)}) > 1:
        return None
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    return None if pa.types.is_nested(array.type) else array


def _known(file: Path, only: str) -> Columns:
    """Read the index back; one that is not there, is damaged or was made by another reader knows nothing."""
    if not file.exists():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:  # `read_table` would load pandas
            names = parquet.schema_arrow.names
            wanted = [name for name in names if name in ("path", *_STAMP) or name.startswith(only)]
            table = parquet.read(columns=wanted)
        about = json.loads(table.schema.metadata[_METADATA])
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return {}
    if about["reader"] != _reader():
        return {}
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for name in set(about["json"]) & set(columns):
        values = {text: store.hashable(json.loads(text)) for text in set(columns[name]) - {None}}
        columns[name] = [values.get(text) for text in columns[name]]
    if _SHAPE in columns:
        shapes = [store.Shape(tuple(names), tuple(summary)) for names, summary in about["shapes"]]
        columns[_SHAPE] = [shapes[number] for number in columns[_SHAPE]]
    return columns
