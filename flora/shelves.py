"""How rows computed once lie on disk: on shelves, one a kind of row, in shards that show any damage.

A shelf is a folder named by the SHA-256 of what its rows depend on, `key.json` says it in words. Its shards
are safetensors files that are never changed: each is written to a name of its own, flushed, then renamed, so
a file that exists is whole. Their metadata holds two checksums: one of the header and the images' digests,
which every look-up reads, and one of the rows, which are read only where they are needed.

Nothing here needs torch or numpy, so that a cache can be shown, trimmed and checked at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

SCHEMA = "1"
DIGEST_BYTES = 32
SHARD_SUFFIX = ".safetensors"
UNFINISHED_SUFFIX = ".tmp"
KEY_FILE, USED_FILE, LOCK_FILE = "key.json", "used", "lock"
NAME_LENGTH = 16
# Waiting this long for another process is nothing to speak of.
PATIENCE_SECONDS = 2.0
# A shard's header is a few hundred bytes; a file that claims more is none of ours.
MOST_HEADER_BYTES = 2**20
READ_BYTES = 2**20
# What stands in a header in place of the checksums while they are computed.
ROWS_BLANK, INDEX_BLANK = "r" * 64, "i" * 64


class Damaged(ValueError):
    """A file is not, or no longer, what was written; the message says in what."""


@dataclass(frozen=True)
class Shard:
    """A file of rows whose header and digests have been checked.

    Attributes:
        path: the file.
        count: its rows.
        dtype: of the rows, as safetensors calls it.
        shape: of one row.
        seconds: what computing them took.
        digests: `DIGEST_BYTES` an image, one after another.
        rows_at: offset and size in bytes of the rows.
        rows_sha256: their checksum.
    """

    path: Path
    count: int
    dtype: str
    shape: tuple[int, ...]
    seconds: float
    digests: bytes
    rows_at: tuple[int, int]
    rows_sha256: str

    def check_rows(self) -> None:
        """Read the rows and compare their checksum, once in the life of this process.

        Raises:
            Damaged: they are not what was written.
            OSError: they cannot be read.
        """
        status = self.path.stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if _hash_of_part(self.path, *self.rows_at, version) != self.rows_sha256:
            raise Damaged("its rows do not match their checksum")


@dataclass(frozen=True)
class Shelf:
    """The folder of one kind of row.

    Attributes:
        path: it; it need not exist.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path, kind: Mapping[str, str]) -> Shelf:
        """Give the shelf of a kind of row in a cache's folder."""
        return cls(folder / hashlib.sha256(spelled(kind).encode()).hexdigest()[:NAME_LENGTH])

    def kind(self) -> dict[str, str] | None:
        """Read what its rows depend on; None where that is not written, or written wrong."""
        try:
            kind = json.loads((self.path / KEY_FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(kind, dict) or Shelf.of(self.path.parent, kind) != self:
            return None
        return kind

    def shards(self) -> list[Path]:
        """The files of rows, in an order that stays."""
        return sorted(self.path.glob(f"*{SHARD_SUFFIX}"))

    def size_bytes(self) -> int:
        """What all its files take."""
        size = 0
        for file in self.path.glob("*"):
            with suppress(OSError):
                size += file.stat().st_size
        return size

    def last_used(self) -> float:
        """When its rows were last asked for, in seconds since 1970; 0 where that is not known."""
        for file in (self.path / USED_FILE, self.path):
            with suppress(OSError):
                return file.stat().st_mtime
        return 0.0

    def mark_used(self) -> None:
        """Have `last_used` be now, where the folder can be written."""
        with suppress(OSError):
            (self.path / USED_FILE).touch()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process computes here, and keep others waiting for the time of a `with`.

        Where the folder cannot be written there is no lock, and nothing to protect.
        """
        lock = self._lock()
        try:
            if lock:
                self._tidy()
            yield
        finally:
            if lock:
                lock.release()
                if not self.shards():  # nothing could be kept, and a lock alone is no shelf
                    self.remove()

    def _lock(self) -> FileLock | None:
        lock = FileLock(self.path / LOCK_FILE)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=PATIENCE_SECONDS)
            except Timeout:
                logger.warning("%s: another process is computing the same kind of rows; waiting", self.path)
                lock.acquire()
        except (OSError, NotImplementedError):
            return None
        return lock

    def _tidy(self) -> None:
        """Remove what a process that died was writing; only the holder of the lock writes."""
        for file in self.path.glob(f"*{UNFINISHED_SUFFIX}"):
            with suppress(OSError):
                file.unlink()

    def put(self, kind: Mapping[str, str], content: bytes | bytearray) -> Path:
        """Add a sealed shard.

        Raises:
            OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.kind() is None:
            _write(self.path / KEY_FILE, json.dumps(dict(sorted(kind.items())), indent=1).encode())
        path = self.path / f"{uuid4().hex}{SHARD_SUFFIX}"
        _write(path, content)
        self.mark_used()
        return path

    def remove(self) -> int:
        """Remove it, unless someone is computing there; processes that read from it are not disturbed.

        Returns:
            The bytes that this has freed.
        """
        before = self.size_bytes()
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError):
            return 0
        try:
            # only what is known to be of the cache: whoever keeps something else here keeps it
            for file in (*self.shards(), *(self.path / name for name in (KEY_FILE, USED_FILE))):
                file.unlink(missing_ok=True)
            self._tidy()
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            self.path.rmdir()
        except OSError:
            pass
        finally:
            lock.release()
        return before - self.size_bytes()


@dataclass(frozen=True)
class Checked:
    """What checking a file came to.

    Attributes:
        path: the file.
        size_bytes: its size.
        damage: what is wrong with it; None where nothing is.
        removed: whether it is gone now.
    """

    path: Path
    size_bytes: int
    damage: str | None = None
    removed: bool = False


def shelves(folder: Path) -> list[Shelf]:
    """Every shelf in a cache's folder, the least recently used first."""
    every = [Shelf(path) for path in folder.glob("[0-9a-f]" * NAME_LENGTH) if path.is_dir()]
    return sorted(every, key=lambda shelf: (shelf.last_used(), shelf.path))


def trim(folder: Path, limit_bytes: int) -> tuple[int, int]:
    """Remove the least recently used shelves until those left take `limit_bytes` at most.

    Shelves that someone is computing on stay, so that more than `limit_bytes` may be left.

    Returns:
        Bytes that were removed, and bytes that are left.
    """
    every = shelves(folder)
    sizes = {shelf: shelf.size_bytes() for shelf in every}
    left, removed = sum(sizes.values()), 0
    for shelf in every:
        if left - removed <= limit_bytes:
            break
        removed += shelf.remove()
    return removed, left - removed


def trim_unused(folder: Path, since: float) -> tuple[int, int]:
    """Remove the shelves that were last used before `since`, in seconds since 1970.

    Returns:
        Bytes that were removed, and bytes that are left.
    """
    removed = sum(shelf.remove() for shelf in shelves(folder) if shelf.last_used() < since)
    return removed, sum(shelf.size_bytes() for shelf in shelves(folder))


def files_to_verify(folder: Path) -> int:
    """How many files `verify` will look at."""
    return sum(len(shelf.shards()) + 1 for shelf in shelves(folder))


def verify(folder: Path) -> Iterator[Checked]:
    """Check every file of a cache against its checksums, and remove those that are damaged."""
    for shelf in shelves(folder):
        if (shelf.path / KEY_FILE).exists():
            wrong = None if shelf.kind() else "it is not what its folder is named by"
            yield _checked(shelf.path / KEY_FILE, wrong)
        layout = None
        for path in shelf.shards():
            try:
                shard = read_shard(path)
                shard.check_rows()
                layout = layout or (shard.dtype, shard.shape)
                check_layout((shard.dtype, shard.shape), layout)
            except FileNotFoundError:  # trimmed meanwhile
                continue
            except OSError as error:  # the file may be sound, and readable for others
                yield Checked(path, 0, f"it cannot be read: {error.strerror}")
            except Damaged as error:
                yield _checked(path, str(error))
            else:
                yield _checked(path, None)


def _checked(path: Path, damage: str | None) -> Checked:
    size = path.stat().st_size if path.exists() else 0
    return Checked(path, size, damage, removed=damage is not None and discard(path))


def discard(path: Path) -> bool:
    """Remove a damaged file, if that can be, and say whether it is gone."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return not path.exists()


def check_layout(found: tuple[object, object], expected: tuple[object, object]) -> None:
    """Hold the dtype and the shape of a row against those of others of its shelf.

    Raises:
        Damaged: they differ.
    """
    if found != expected:
        raise Damaged("its rows are {} {}, others here {} {}".format(*found, *expected))


def spelled(kind: Mapping[str, str]) -> str:
    """Spell a kind of row in the one way that is hashed."""
    return json.dumps(dict(kind), sort_keys=True)


def metadata(kind: Mapping[str, str], seconds: float) -> dict[str, str]:
    """What a shard says of itself, its checksums still blank; see `seal`."""
    return {
        "schema": SCHEMA,
        "kind": spelled(kind),
        "seconds": repr(seconds),
        "rows_sha256": ROWS_BLANK,
        "index_sha256": INDEX_BLANK,
    }


def seal(content: bytes) -> bytearray:
    """Fill the checksums in that `metadata` left blank.

    Args:
        content: a safetensors file with the tensors "digests", (n, 32) uint8, and "rows", (n, ...).
    """
    sealed = bytearray(content)
    length = _header_length(sealed[:8], len(sealed))
    data = 8 + length
    header = json.loads(sealed[8:data])
    rows, digests = (header[name]["data_offsets"] for name in ("rows", "digests"))
    view = memoryview(content)
    _fill_in(sealed, data, ROWS_BLANK, hashlib.sha256(view[data + rows[0] : data + rows[1]]))
    index = hashlib.sha256(sealed[8:data])
    index.update(view[data + digests[0] : data + digests[1]])
    _fill_in(sealed, data, INDEX_BLANK, index)
    return sealed


def _fill_in(content: bytearray, header_end: int, blank: str, digest: hashlib._Hash) -> None:
    place = content.index(blank.encode(), 8, header_end)
    content[place : place + len(blank)] = digest.hexdigest().encode()


def read_shard(path: Path) -> Shard:
    """Read a shard's header and digests, and check them; its rows are left alone.

    Raises:
        Damaged: the file is cut short, altered, of another kind than its folder or none of a cache at all.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(_header_length(file.read(8), size))
        try:
            return _parse(path, raw, file, size)
        except Damaged:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Damaged("it is no file of this cache") from None


def _header_length(first: bytes | bytearray, size: int) -> int:
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
    if length > min(size - 8, MOST_HEADER_BYTES):
        raise Damaged("it is cut short or no file of this cache")
    return int(length)


def _parse(path: Path, raw: bytes, file: BinaryIO, size: int) -> Shard:
    """Take a header apart, and check it and the digests it points to."""
    header: dict[str, Any] = json.loads(raw)
    said, rows, digests = header["__metadata__"], header["rows"], header["digests"]
    if said["schema"] != SCHEMA:
        raise Damaged(f"it is of schema {said['schema']}, not {SCHEMA}")
    start, count = 8 + len(raw), rows["shape"][0]
    (rows_from, rows_to), (digests_from, digests_to) = rows["data_offsets"], digests["data_offsets"]
    if start + max(rows_to, digests_to) != size:
        raise Damaged("it is cut short or too long")
    if digests_from < 0 or digests_to - digests_from != count * DIGEST_BYTES:
        raise Damaged("it has another number of digests than of rows")
    file.seek(start + digests_from)
    every_digest = file.read(digests_to - digests_from)
    index = hashlib.sha256(raw.replace(said["index_sha256"].encode(), INDEX_BLANK.encode(), 1))
    index.update(every_digest)
    if index.hexdigest() != said["index_sha256"]:
        raise Damaged("its header and digests do not match their checksum")
    if Shelf.of(path.parent.parent, json.loads(said["kind"])) != Shelf(path.parent):
        raise Damaged("it belongs to another folder")
    return Shard(
        path=path,
        count=count,
        dtype=rows["dtype"],
        shape=tuple(rows["shape"][1:]),
        seconds=float(said["seconds"]),
        digests=every_digest,
        rows_at=(start + rows_from, rows_to - rows_from),
        rows_sha256=said["rows_sha256"],
    )


@cache
def _hash_of_part(path: Path, offset: int, size: int, version: tuple[int, ...]) -> str:
    """Hash a part of a file; `version` is there to tell the file from one that replaced it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size > 0 and (block := file.read(min(size, READ_BYTES))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes | bytearray) -> None:
    """Write a file that either exists whole or not at all, even if the machine stops."""
    unfinished = path.with_name(f"{uuid4().hex}{UNFINISHED_SUFFIX}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
