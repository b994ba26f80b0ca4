"""What the frozen part of the image tower gives for a cell's images: computed once, kept across cells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import tee
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.config import RunConfig
from bench.images import KEPT_BYTES, Pixels
from bench.measure.clock import COUNT
from bench.measure.tensors import Counter
from flora.cache import Compute, FeatureCache
from flora.clip import ENCODED, Clip
from flora.events import Events, Phase
from flora.features import Rows, Samples
from flora.method import Method

# Images that go through the tower together. Always so many: with another number of them torch may choose
# other kernels, and a row's last bits would depend on which images happened to be missing from the cache.
AT_ONCE = 32
# What one batch takes, by the kind of its rows: cells of a matrix mostly share it.
_COUNTED: dict[str, tuple[int, dict[str, int]]] = {}
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

    Attributes:
        flops: operations of computing all rows given.
        peak_by_cause: most bytes of live tensors while one batch is computed.

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
        self._found: dict[int, Found] = {}
        self.flops = 0
        self.peak_by_cause: dict[str, int] = {}

    @property
    def extraction_seconds(self) -> float | None:
        """What computing all rows given took, whenever that was; None where there were none to compute."""
        return sum(found.extraction_seconds for found in self._found.values()) if self._found else None

    def _count(self, part: Samples, stage: int) -> None:
        """Count what computing the rows of `part` takes on the model as it is, wherever they come from."""
        once, peak = self._one_batch(part, stage)
        self.flops += once * -(-len(part) // AT_ONCE)
        if sum(peak.values()) > sum(self.peak_by_cause.values()):
            self.peak_by_cause = peak

    def _one_batch(self, part: Samples, stage: int) -> tuple[int, dict[str, int]]:
        """Count one batch's way through the tower, on tensors without numbers."""
        model = list(self._clip.named_parameters())
        adapted = str([(name, tuple(x.shape), x.dtype) for name, x in model])
        key = json.dumps(self._kind_at(stage), sort_keys=True) + adapted
        if key not in _COUNTED:
            like = part.images[torch.tensor([0])]
            with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), self._clip.autocast():
                images = torch.empty(AT_ONCE, *like.shape[1:], dtype=like.dtype)
                with Counter({"parameters": [x for _, x in model], "buffers": [images]}) as counter:
                    self._clip.run_image_stages(images, slice(0, stage))
            _COUNTED[key] = counter.flops, counter.peak_by_cause
        return _COUNTED[key]

    def describe(self, stage: int) -> dict[str, Any]:
        """Say what of the rows that enter `stage` was kept from before, and what stage that is."""
        found = asdict(self._found.get(stage, Found()))
        del found["extraction_seconds"]
        return {**found, "stage": self._stage_name(stage)}

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
                has_room = self._has_room_for(part, stage, one.nbytes)
            if has_room:
                return self.of(part, stage)
        with self._events.phase("decode"):
            return part.with_images_kept()

    def _stage_name(self, stage: int) -> str:
        """Name what is kept: "features", or what it enters, such as "block 9 of 12"."""
        return "features" if stage == ENCODED else self._clip.image_stages[stage].name

    def _has_room_for(self, part: Samples, stage: int, row_bytes: int) -> bool:
        """Say whether the rows of `part` may be kept: in memory, or those not yet kept on the disk."""
        needed = row_bytes * len(part)
        if needed <= KEPT_BYTES:
            return True
        if self._cache is None or not isinstance(part.images, Pixels):
            return False
        limit = self._cache.limit_bytes
        if limit is not None and needed > limit:
            return False
        folder = next(p for p in (self._cache.folder, *self._cache.folder.parents) if p.exists())
        missing = self._cache.missing(self._kind_at(stage), _digests(part.images))
        return row_bytes * missing <= shutil.disk_usage(folder).free - DISK_LEFT_FREE_BYTES

    def _kind_at(self, stage: int) -> dict[str, str]:
        return {**self._kind, "stage": self._stage_name(stage)}

    def _rows(self, part: Samples, stage: int) -> Rows:
        if not isinstance(part.images, Pixels):  # rows of a file already, all that is frozen behind them
            return torch.cat([*part.encoded(self._clip, torch.arange(len(part)).split(AT_ONCE), stage)])
        with self._events.phase(COUNT):
            self._count(part, stage)
        if self._cache is None:
            return self._computed_now(part, stage)
        rows = self._cache.rows(
            self._kind_at(stage), _digests(part.images), self._compute(part, stage), AT_ONCE, self._progress
        )
        row_bytes = rows[torch.tensor([0])].nbytes
        self._add(stage, Found(len(part), rows.found, rows.computed, row_bytes * len(part), rows.seconds))
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
        self._add(stage, Found(len(part), 0, len(part), together.nbytes, seconds))
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

    def _add(self, stage: int, found: Found) -> None:
        so_far = vars(self._found.get(stage, Found())).values()
        self._found[stage] = Found(*(a + b for a, b in zip(so_far, vars(found).values(), strict=True)))


# What decodes and prepares images, and what towers are made of.
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow")


def kind_of_rows(config: RunConfig, weights: str, model: Mapping[str, Any]) -> dict[str, str]:
    """Say all that a row depends on besides the image and the stage.

    What `compute` compiles or lays out otherwise does not count: it is applied once the rows are there.

    Args:
        config: the cell.
        weights: fingerprint of its model's.
        model: open_clip's configuration of the model and of its preprocessing.
    """
    cuda = config.device.startswith("cuda")
    return {
        "name": config.model.name,
        "weights": weights,
        "model": json.dumps(model, sort_keys=True, default=str),
        "dtype": config.model.dtype,
        "device": torch.cuda.get_device_name(config.device) if cuda else config.device,
        "threads": str(config.compute.threads),
        "matmul_precision": config.compute.matmul_precision,
        "batch": str(AT_ONCE),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def _digests(pixels: Pixels) -> np.ndarray:
    images = pixels.images
    joined = b"".join(images.digest(index) for index in range(len(images)))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(images), -1)


def cache_in(folder: Path | None = None) -> FeatureCache:
    """Open the cache in `folder`, by default the user's own."""
    from bench.caching import default_folder, default_limit_bytes

    return FeatureCache(folder or default_folder(), default_limit_bytes())
