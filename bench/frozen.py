"""What the frozen part of the image tower gives for a cell's images: computed once, kept across cells."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from bench.config import RunConfig
from bench.images import KEPT_BYTES, Pixels
from flora.cache import Compute, FeatureCache
from flora.clip import ENCODED, Clip
from flora.events import Events, Phase
from flora.features import Rows, Samples
from flora.method import Method

# Images that go through the tower together. Always so many: with another number of them torch may choose
# other kernels, and a row's last bits would depend on which images happened to be missing from the cache.
AT_ONCE = 32
# Files of activations are only made where at least this much stays free on the disk.
DISK_LEFT_FREE_BYTES = 2 * 10**9


@dataclass
class Found:
    """Where rows came from.

    Attributes:
        images: how many have a row.
        from_cache: of these, how many rows were kept from before.
        computed: and how many were computed now; equal images share a row.
        bytes: size of the rows.
        extraction_seconds: what computing exactly these rows took, whenever that was.
    """

    images: int = 0
    from_cache: int = 0
    computed: int = 0
    bytes: int = 0
    extraction_seconds: float = 0.0


class FrozenFeatures:
    """Gives samples their features, each part once, and adds up where they came from.

    Args:
        clip: the model.
        kind: all that a row depends on besides the image and the stage.
        cache: where rows are kept across cells; None for nowhere.
        events: told of the progress.
    """

    def __init__(self, clip: Clip, kind: dict[str, str], cache: FeatureCache | None, events: Events) -> None:
        self._clip = clip
        self._kind = kind
        self._cache = cache
        self._events = events
        self._had: dict[tuple[int, int], Samples] = {}
        self._parts: list[Samples] = []  # held, so that no other can take one's identity
        self.found = Found()

    def of(self, part: Samples, stage: int = ENCODED) -> Samples:
        """Give `part` with what the first stages of the tower, which must be frozen, give for its images."""
        key = id(part), stage
        if key not in self._had:
            self._parts.append(part)
            with self._events.phase("features"):
                self._had[key] = part.with_features(self._rows(part, stage), stage)
        return self._had[key]

    def for_training(self, method: Method, part: Samples) -> Samples:
        """Give `part` as `method` trains on it: with all that is frozen in its image tower behind it.

        What enters a block takes a hundred times the room of a feature; where it is too much, and where
        nothing of weight is frozen, these are the images.
        """
        stage = method.frozen_image_stages
        if stage == ENCODED:
            return self.of(part)
        if self._clip.image_stages[:stage] and self._clip.image_stages[stage - 1].name != "patches":
            with self._events.phase("features"):
                one = next(part.encoded(self._clip, [torch.tensor([0])], stage))
            if self._has_room_for(one.nbytes * len(part)):
                return self.of(part, stage)
        with self._events.phase("decode"):
            return part.with_images_kept()

    def stage_name(self, stage: int) -> str:
        """Say what is kept: "features", or what it enters, such as "block 9 of 12"."""
        return "features" if stage == ENCODED else self._clip.image_stages[stage].name

    def _has_room_for(self, needed: int) -> bool:
        if needed <= KEPT_BYTES:
            return True
        if self._cache is None:
            return False
        folder = next(p for p in (self._cache.folder, *self._cache.folder.parents) if p.exists())
        limit = self._cache.limit_bytes
        free = shutil.disk_usage(folder).free - DISK_LEFT_FREE_BYTES
        return needed <= (free if limit is None else min(free, limit // 2))

    def _rows(self, part: Samples, stage: int) -> Rows:
        if not isinstance(part.images, Pixels):  # rows of a file already, all that is frozen behind them
            return torch.cat([*part.encoded(self._clip, torch.arange(len(part)).split(AT_ONCE), stage)])
        if self._cache is None:
            return self._computed_now(part, stage)
        kind = {**self._kind, "stage": self.stage_name(stage)}
        rows = self._cache.rows(
            kind, _digests(part.images), self._compute(part, stage), AT_ONCE, self._progress
        )
        row_bytes = rows[torch.tensor([0])].nbytes
        self._add(Found(len(part), rows.found, rows.computed, row_bytes * len(part), rows.seconds))
        if row_bytes * len(part) > KEPT_BYTES:
            return rows  # stays in its files, of which what is asked for is read
        return rows.tensor().to(part.labels.device)

    def _computed_now(self, part: Samples, stage: int) -> Tensor:
        started = perf_counter()
        rows = []
        for given in self._compute(part, stage)(torch.arange(len(part)).split(AT_ONCE)):
            rows.append(given)
            self._progress(min(len(rows) * AT_ONCE, len(part)), len(part))
        together = torch.cat(rows)
        seconds = perf_counter() - started
        self._add(Found(len(part), 0, len(part), together.nbytes, seconds))
        return together

    def _compute(self, part: Samples, stage: int) -> Compute:
        def compute(batches: Iterable[Tensor]) -> Iterator[Tensor]:
            given, again = tee(batches)
            filled = (torch.cat([x, x[:1].expand(AT_ONCE - len(x))]) for x in again)
            for indices, rows in zip(given, part.encoded(self._clip, filled, stage), strict=True):
                yield rows[: len(indices)]

        return compute

    def _progress(self, done: int, total: int) -> None:
        self._events.advance(Phase("features"), done, total)

    def _add(self, found: Found) -> None:
        mine = self.found
        self.found = Found(*(a + b for a, b in zip(vars(mine).values(), vars(found).values(), strict=True)))


def kind_of_rows(config: RunConfig, weights: str, preprocess: Any) -> dict[str, str]:
    """Say all that a row depends on besides the image and the stage.

    Args:
        config: the cell.
        weights: fingerprint of its model.
        preprocess: of the model's images; its `repr` must tell all of its settings.
    """
    return {
        "weights": weights,
        "preprocessing": " ".join(repr(preprocess).split()),
        "dtype": config.model.dtype,
        "device": config.device.partition(":")[0],
        "compute": config.compute.model_dump_json(),
        "batch": str(AT_ONCE),
        "libraries": f"torch {torch.__version__}, open_clip {open_clip.__version__}",
    }


def _digests(pixels: Pixels) -> np.ndarray:
    images = pixels.images
    joined = b"".join(images.digest(index) for index in range(len(images)))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(images), -1)


def cache_in(folder: Path | None = None) -> FeatureCache:
    """Open the cache in `folder`, by default the user's own."""
    from bench.caching import default_folder, default_limit_bytes

    return FeatureCache(folder or default_folder(), default_limit_bytes())
