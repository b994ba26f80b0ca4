"""The samples that clients train on, as batches; and what a frozen tower gives for them, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from typing import Protocol

import torch
from torch import Tensor

from flora.clip import ENCODED, Clip
from flora.prompts import Branches


class ImageSource(Protocol):
    """Preprocessed images by index."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Give the images at `indices` (n,) as (n, 3, height, width) floats."""

    def ahead(self, chosen: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the images at each of `chosen` in turn, those to come being decoded meanwhile."""

    def kept(self) -> ImageSource:
        """Give a source of the same images that need not be decoded each time; or itself."""

    def select(self, indices: Tensor) -> ImageSource:
        """Give a source of the images at `indices` (n,) alone."""


class Rows(Protocol):
    """What the first stages of an image tower gave, by index: a tensor (n, ...), or what reads like one."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Give the rows at `indices` (n,)."""


@dataclass(frozen=True)
class Texts:
    """The prompts that a batch needs, each once.

    Attributes:
        classes: (d,) the distinct classes.
        position: (n,) for each sample, which of these is its own.
        branches: their prompts as parts of a tree, one after another; empty where the text tower cannot read
            them so.
    """

    classes: Tensor
    position: Tensor
    branches: tuple[Branches, ...]

    def to(self, device: torch.device) -> Texts:
        """Move all tensors to `device`."""
        parts = tuple(part.to(device) for part in self.branches)
        return Texts(self.classes.to(device), self.position.to(device), parts)


@dataclass(frozen=True)
class Batch:
    """Samples of one step.

    Attributes:
        inputs: images (n, 3, height, width); or, of a later `stage`, what the stages of the image tower
            before it, all frozen, gave for them (of the whole tower (n, dim), not normalised).
        labels: (n,) int64 class indices.
        stage: which of `Clip.image_stages` comes next; `flora.clip.ENCODED` if none does.
        classes: the labels on the CPU, where what follows from them is chosen without waiting for a GPU.
        texts: the prompts it needs, once a method has chosen them (`Method.collate`).
        real: (n,) which samples count, where a batch was filled up to the size of others; None if all do.
    """

    inputs: Tensor
    labels: Tensor
    stage: int = 0
    classes: Tensor | None = None
    texts: Texts | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Labelled images, or what the first stages of an image tower, frozen, gave for them.

    Attributes:
        images: the images by index.
        labels: (n,) int64, on the device.
        features: (n, ...) by index, or None.
        stage: what `features` enter, of `Clip.image_stages`.
    """

    images: ImageSource
    labels: Tensor
    features: Rows | None = None
    stage: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def classes(self) -> Tensor:
        """The labels on the CPU."""
        return self.labels.cpu()

    def batch(self, indices: Tensor) -> Batch:
        """Gather the samples at `indices` (n,), on the labels' device."""
        (batch,) = self.batches_of([indices])
        return batch

    def batches_of(self, chosen: Iterable[Tensor]) -> Iterator[Batch]:
        """Gather the samples at each of `chosen` (n,) in turn; images to come are decoded meanwhile."""
        if self.features is not None:
            for indices in chosen:
                yield self._batch(indices, self._rows(self.features, indices))
            return
        given, again = tee(chosen)
        for indices, images in zip(given, self.images.ahead(again), strict=True):
            yield self._batch(indices, images)

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through all samples in order, `size` at a time."""
        return self.batches_of(torch.arange(len(self)).split(size))

    def select(self, indices: Tensor) -> Samples:
        """Keep the samples at `indices` (n,) alone, before anything was computed of them."""
        labels = self.labels[indices.to(self.labels.device)]
        return Samples(self.images.select(indices), labels)

    def with_images_kept(self) -> Samples:
        """Have the images decoded once and kept, where their source can do so within bounds."""
        return replace(self, images=self.images.kept())

    def with_features(self, features: Rows, stage: int) -> Samples:
        """Have batches of `features`, which enter `stage` of the image tower, instead of images."""
        return replace(self, features=features, stage=stage)

    def encoded(self, clip: Clip, chosen: Iterable[Tensor], stage: int = ENCODED) -> Iterator[Tensor]:
        """Take the images at each of `chosen` (n,) through the stages of the tower before `stage`: (n, ...).

        What the whole tower gives is in the precision of what trains.
        """
        for batch in self.batches_of(chosen):
            with torch.inference_mode(), clip.autocast():
                rows = clip.run_image_stages(batch.inputs, slice(batch.stage, stage))
            # a tensor made in inference mode could not be saved for a backward pass: copy it out
            yield rows.to(clip.logit_scale.dtype if stage == ENCODED else rows.dtype, copy=True)

    def _batch(self, indices: Tensor, inputs: Tensor) -> Batch:
        classes = self.classes[indices]
        device = self.labels.device
        return Batch(inputs.to(device), classes.to(device), self.stage, classes)

    def _rows(self, features: Rows, indices: Tensor) -> Tensor:
        return features[indices.to(features.device) if isinstance(features, Tensor) else indices]
