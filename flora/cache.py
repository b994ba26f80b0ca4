"""What a frozen tower gives for an image, computed once and kept on disk across runs and processes.

Rows are kept an image and not a data set, so that whatever asks for some of the same images finds them:
another split, another seed, a part, a whole. What tells one kind of row from another (the weights, the
preprocessing, the dtype, ...) is for the caller to say; see `flora.shelves` for how they lie on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flora.shelves import (
    DIGEST_BYTES,
    Damaged,
    Shard,
    Shelf,
    check_layout,
    discard,
    metadata,
    read_shard,
    seal,
    trim,
)

logger = logging.getLogger(__name__)

# A shard is written when it holds this much or took this long: a build that is killed loses no more.
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 20.0

Compute = Callable[[Iterable[Tensor]], Iterator[Tensor]]
Progress = Callable[[int, int], None]


class KeptRows:
    """The rows of n images, most of them mapped from files and read when they are asked for.

    Attributes:
        found: distinct images whose rows were there already.
        computed: distinct images whose rows were computed now.
        seconds: what computing exactly these rows took, those found included, whenever that was.
    """

    def __init__(
        self, parts: Sequence[Tensor], part: Tensor, place: Tensor, found: int, computed: int, seconds: float
    ) -> None:
        self._parts = parts
        self._part = part
        self._place = place
        self.found = found
        self.computed = computed
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self._part)

    @property
    def shape(self) -> torch.Size:
        """(n, ...)."""
        return torch.Size((len(self), *self._parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of every row."""
        return self._parts[0].dtype

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Gather the rows at `indices` (m,) into a new tensor (m, ...) on the CPU."""
        indices = indices.cpu()
        part, place = self._part[indices], self._place[indices]
        gathered = torch.empty((len(part), *self.shape[1:]), dtype=self.dtype)
        for number in part.unique().tolist():
            mine = (part == number).nonzero().squeeze(1)
            gathered[mine] = self._parts[number][place[mine]]
        return gathered

    def tensor(self) -> Tensor:
        """All rows in order, copied."""
        return self[torch.arange(len(self))]


class FeatureCache:
    """Rows by the image they belong to, in a folder that several processes may share.

    A folder that cannot be written, a full disk or a damaged file never fails a run: rows are computed, and
    kept in memory where they cannot be kept on disk, with a warning.

    Args:
        folder: where the files are; made when the first of them is written.
        limit_bytes: what all files may take; the kinds of rows not used for longest make room. None for any.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def rows(
        self,
        kind: Mapping[str, str],
        digests: NDArray[np.uint8],
        compute: Compute,
        batch_size: int,
        progress: Progress = lambda done, total: None,
    ) -> KeptRows:
        """Give a row an image: those that are kept, and the others computed and kept.

        Processes that ask for rows of the same kind at once compute one after another, so that each row is
        computed once.

        Args:
            kind: all that the rows depend on but the image, in words.
            digests: (n, 32), what tells each image from all others; equal ones share a row.
            compute: for batches of positions (m,) gives rows (m, ...) each, of finite numbers, on any device.
                It is asked for one after another, so that it may prepare the next meanwhile.
            batch_size: most images to compute at a time, in the order of their positions.
            progress: told how many of the distinct images are done, and how many there are: once when those
                kept have been found, and after each batch.

        Raises:
            ValueError: `digests` or what `compute` gave have the wrong shape.
        """
        shelf = Shelf.of(self.folder, kind)
        gathered = _Gathered(digests)
        _find(shelf, gathered)
        if gathered.missing():
            with shelf.alone():
                _find(shelf, gathered)  # what another process has added while this one waited
                progress(gathered.found, gathered.total)
                gathered = self._complete(shelf, kind, gathered, compute, batch_size, progress)
        else:
            progress(gathered.found, gathered.total)
        shelf.mark_used()
        return gathered.rows()

    def missing(self, kind: Mapping[str, str], digests: NDArray[np.uint8]) -> int:
        """Count the distinct images without a row, by what files say of themselves: no row is read.

        Args:
            kind: as `rows` takes it.
            digests: (n, 32), too.

        Raises:
            ValueError: `digests` has the wrong shape.
        """
        absent = np.unique(_as_keys(digests))
        for path in Shelf.of(self.folder, kind).shards():
            with suppress(Damaged, OSError):
                absent = np.setdiff1d(absent, _as_keys(_digests_of(read_shard(path))), assume_unique=True)
        return len(absent)

    def _complete(
        self,
        shelf: Shelf,
        kind: Mapping[str, str],
        gathered: _Gathered,
        compute: Compute,
        batch_size: int,
        progress: Progress,
    ) -> _Gathered:
        """Compute what is missing; all of it anew, should what was found turn out to be of another layout."""
        try:
            _compute(gathered, _Keeper(self, shelf, kind, gathered), compute, batch_size, progress)
        except Damaged as damage:
            logger.warning("%s: %s; all its rows are computed anew", shelf.path, damage)
            for path in shelf.shards():
                discard(path)
            gathered = _Gathered(gathered.digests)
            _compute(gathered, _Keeper(self, shelf, kind, gathered), compute, batch_size, progress)
        return gathered


class _Gathered:
    """Where the row of each wanted image is, as far as it is known.

    Attributes:
        digests: (n, 32) of the images wanted.
        total: how many of them are distinct.
        found: distinct images whose rows were on disk.
        computed: distinct images whose rows were not.
        seconds: what these rows took to compute.
        looked_at: files that need not be looked at again.
    """

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        keys = _as_keys(digests)
        if not len(digests):
            raise ValueError("no digests: there must be an image to give a row for")
        self.digests = digests
        self._keys, self._first, self._key_of = np.unique(keys, return_index=True, return_inverse=True)
        self.total = len(self._keys)
        self._part = np.full(self.total, -1)
        self._place = np.zeros(self.total, dtype=np.int64)
        self._parts: list[Tensor] = []
        self.found = self.computed = 0
        self.seconds = 0.0
        self.looked_at: set[Path] = set()

    def missing(self) -> list[int]:
        """Positions, ascending, of images without a row; of equal ones the first."""
        positions: list[int] = np.sort(self._first[self._part < 0]).tolist()
        return positions

    def wanted(self, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the images `digests` (m, 32): the places of those that are missing here, and their keys."""
        theirs = _as_keys(digests)
        keys = np.searchsorted(self._keys, theirs).clip(max=self.total - 1)
        (places,) = np.nonzero((self._keys[keys] == theirs) & (self._part[keys] < 0))
        return places, keys[places]

    def check(self, rows: Tensor) -> None:
        """Hold the layout of rows against that of those before.

        Raises:
            Damaged: one of the two is not what it should be.
        """
        if self._parts:
            expected = self._parts[0]
            check_layout((rows.dtype, tuple(rows.shape[1:])), (expected.dtype, tuple(expected.shape[1:])))

    def take(self, rows: Tensor, places: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        """Have the images `keys` be at `places` in `rows`."""
        self._part[keys] = len(self._parts)
        self._place[keys] = places
        self._parts.append(rows)

    def rows(self) -> KeptRows:
        """All of them, once none is missing."""
        part, place = (torch.from_numpy(x[self._key_of]) for x in (self._part, self._place))
        return KeptRows(self._parts, part, place, self.found, self.computed, self.seconds)


def _as_keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    """Digests (n, 32) as n items that can be sorted and compared.

    Raises:
        ValueError: they have another shape or dtype.
    """
    if digests.dtype != np.uint8 or digests.ndim != 2 or digests.shape[1] != DIGEST_BYTES:
        raise ValueError(
            f"digests are {digests.dtype} {digests.shape}; they must be uint8 (n, {DIGEST_BYTES})"
        )
    keys: NDArray[np.void] = np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}").reshape(-1)
    return keys


def _find(shelf: Shelf, gathered: _Gathered) -> None:
    """Take what is missing from the shelf's files, and remove those that are damaged."""
    for path in shelf.shards():
        if path in gathered.looked_at:
            continue
        gathered.looked_at.add(path)
        try:
            _take_from(read_shard(path), gathered)
        except FileNotFoundError:  # another process has made room meanwhile
            continue
        except (Damaged, SafetensorError) as damage:
            logger.warning("%s is damaged: %s; its rows are computed anew", path, damage)
            discard(path)
        except OSError as error:
            logger.warning("%s cannot be read: %s; its rows are computed anew", path, error)


def _digests_of(shard: Shard) -> NDArray[np.uint8]:
    """Of its images: (n, 32)."""
    return np.frombuffer(shard.digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _take_from(shard: Shard, gathered: _Gathered) -> None:
    places, keys = gathered.wanted(_digests_of(shard))
    if not len(places):
        return
    shard.check_rows()
    rows = _mapped(shard.path)
    gathered.check(rows)
    gathered.take(rows, places, keys)
    gathered.found += len(places)
    gathered.seconds += shard.seconds * len(places) / shard.count


def _mapped(path: Path) -> Tensor:
    """The rows in a file, mapped: they stay readable when the file is removed."""
    with safe_open(path, framework="pt") as file:
        rows: Tensor = file.get_tensor("rows")
    return rows


def _compute(
    gathered: _Gathered, keeper: _Keeper, compute: Compute, batch_size: int, progress: Progress
) -> None:
    try:
        missing = torch.tensor(gathered.missing(), dtype=torch.int64)
        batches = missing.split(batch_size) if len(missing) else ()
        started = perf_counter()
        for positions, given in zip(batches, compute(batches), strict=True):
            rows = given.detach().cpu().contiguous()
            seconds = perf_counter() - started
            if len(rows) != len(positions):
                raise ValueError(f"compute gave {len(rows)} rows for {len(positions)} images")
            gathered.check(rows)
            keeper.add(positions, rows, seconds)
            progress(gathered.found + gathered.computed, gathered.total)
            started = perf_counter()
    finally:
        # also when it was interrupted: what has been computed by then need not be computed again
        keeper.flush()


class _Keeper:
    """Puts computed rows on disk, a shard at a time; those that the disk does not take stay in memory."""

    def __init__(
        self, cache: FeatureCache, shelf: Shelf, kind: Mapping[str, str], gathered: _Gathered
    ) -> None:
        self.cache = cache
        self.shelf = shelf
        self.kind = kind
        self.gathered = gathered
        self.refused = False
        self._start()

    def _start(self) -> None:
        self.rows: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.bytes = 0
        self.seconds = 0.0

    def add(self, positions: Tensor, rows: Tensor, seconds: float) -> None:
        """Take the rows of the images at `positions`, which took `seconds`."""
        self.rows.append(rows)
        self.positions.append(positions)
        self.bytes += rows.nbytes
        self.seconds += seconds
        self.gathered.computed += len(rows)
        self.gathered.seconds += seconds
        if self.bytes >= SHARD_BYTES or self.seconds >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put away what has been taken since the last time."""
        if not self.rows:
            return
        rows, digests = torch.cat(self.rows), self.gathered.digests[torch.cat(self.positions).numpy()]
        each = self.seconds / len(rows)
        self._start()
        finite = rows.isfinite().reshape(len(rows), -1).all(1)
        if finite.all():
            self._put(digests, self._kept(digests, rows, each))
            return
        logger.warning("%d rows are not finite; they are not kept on disk", int((~finite).sum()))
        self._put(digests[~finite.numpy()], rows[~finite])
        if finite.any():
            digests, rows = digests[finite.numpy()], rows[finite]
            self._put(digests, self._kept(digests, rows, each))

    def _put(self, digests: NDArray[np.uint8], rows: Tensor) -> None:
        self.gathered.take(rows, *self.gathered.wanted(digests))

    def _kept(self, digests: NDArray[np.uint8], rows: Tensor, seconds_each: float) -> Tensor:
        """The rows, mapped from a new file; as they are where there can be none."""
        if self.refused:
            return rows
        described = metadata(self.kind, seconds_each * len(rows))
        content = seal(save({"rows": rows, "digests": torch.from_numpy(digests)}, described))
        try:
            if not self._has_room_for(len(content)):
                self._refuse(f"its limit of {self.cache.limit_bytes:,} bytes is reached")
                return rows
            return _mapped(self.shelf.put(self.kind, content))
        except (OSError, SafetensorError) as error:
            self._refuse(str(error))
            return rows

    def _has_room_for(self, size_bytes: int) -> bool:
        limit = self.cache.limit_bytes
        if limit is None:
            return True
        if self.shelf.size_bytes() + size_bytes > limit:
            return False  # though all others made room
        _, left = trim(self.cache.folder, limit - size_bytes)  # this shelf stays: it is locked
        return left + size_bytes <= limit

    def _refuse(self, reason: str) -> None:
        self.refused = True
        logger.warning("%s cannot keep more rows: %s; they stay in memory", self.cache.folder, reason)
