"""A task's images as the model's input: decoded and preprocessed in parallel, by index."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.tasks.base import Images, ImagesView
from flora.features import ImageSource, Samples

if TYPE_CHECKING:
    from PIL.Image import Image

# Preprocessed images of this size are kept in memory, for each part (training, test, ...) by itself; larger
# parts are decoded whenever asked for.
KEPT_BYTES = 256 * 2**20
# Images decoded together to be kept: what is in flight counts on top of what is kept.
DECODED_AT_ONCE = 256

# Batches decoded while the model computes on the one before them.
BATCHES_AHEAD = 1

# Pillow lets go of the interpreter while it decodes and resizes, so that threads do run side by side.
# Of each image, by its digest: many cells have the same ones.
_CONTENTS: dict[bytes, bytes] = {}
_DECODERS = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="decode")


@dataclass(frozen=True)
class Pixels:
    """Images decoded anew each time they are asked for; memory holds one batch.

    Attributes:
        images: the images.
        preprocess: an RGB image as a (3, height, width) tensor.
        dtype: of the batches.
    """

    images: Images
    preprocess: Callable[[Image], Tensor]
    dtype: torch.dtype

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Give the images at `indices` (n,) as (n, 3, height, width)."""
        return torch.stack(list(_DECODERS.map(self._one, indices.tolist())))

    def _one(self, index: int) -> Tensor:
        return self.preprocess(self.images[index]).to(self.dtype)

    def ahead(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the images of each batch of indices in turn, the next being decoded meanwhile.

        No more than `BATCHES_AHEAD` batches are decoded beyond the one given last. An error in decoding is
        raised in the place of the batch it belongs to. Decoding stops where the caller does.
        """
        waiting: deque[list[Future[Tensor]]] = deque()
        try:
            for indices in batches:
                waiting.append([_DECODERS.submit(self._one, index) for index in indices.tolist()])
                if len(waiting) > BATCHES_AHEAD:
                    yield _stacked(waiting.popleft())
            while waiting:
                yield _stacked(waiting.popleft())
        finally:
            for image in chain.from_iterable(waiting):
                image.cancel()

    def select(self, indices: Tensor) -> Pixels:
        """Give the images at `indices` (n,) alone."""
        return replace(self, images=ImagesView(self.images, indices.numpy()))

    def kept(self) -> Pixels | Kept:
        """Decode all images into one tensor, for methods that need them every round, if that is small."""
        one = self._one(0)
        if len(self.images) * one.numel() * one.element_size() > KEPT_BYTES:
            return self
        pixels = torch.empty((len(self.images), *one.shape), dtype=one.dtype)
        for chosen in torch.arange(len(pixels)).split(DECODED_AT_ONCE):
            pixels[chosen] = self[chosen]
        return Kept(pixels)


@dataclass(frozen=True)
class Kept:
    """Images held in memory, (n, 3, height, width)."""

    pixels: Tensor

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Give the images at `indices` (n,) as (n, 3, height, width)."""
        return self.pixels[indices]

    def ahead(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the images of each batch of indices in turn."""
        return map(self.__getitem__, batches)

    def select(self, indices: Tensor) -> Kept:
        """Give the images at `indices` (n,) alone."""
        return Kept(self.pixels[indices])

    def kept(self) -> Kept:
        """Give itself."""
        return self


def leaked_images(train: Samples, test: Samples) -> int:
    """Count the images of `test` that are among those of `train`, by what they hold and not by their place.

    Images in memory are alike if their pixels are, files if their bytes are (so that the same picture saved
    anew is not found), images that a data set decodes by their pixels, and rows of features by their numbers.

    Args:
        train: all that any client trains on, before it was decoded or features were computed of it.
        test: what is evaluated on, likewise.

    Raises:
        ValueError: one has decoded images and the other has not, so that they cannot be compared.
        BadInput: a file cannot be read.
    """
    if type(train.images) is not type(test.images):
        raise ValueError("training and test images must both be decoded, or neither")
    seen = set(_contents(train.images))
    return sum(content in seen for content in _contents(test.images))


def _contents(source: ImageSource) -> Iterator[bytes]:
    """Give what tells each image by what it holds, in order, found in parallel."""
    if isinstance(source, Kept):
        yield from (sha256(row.numpy().data).digest() for row in source.pixels.contiguous())
        return
    assert isinstance(source, Pixels)
    images = source.images

    def some(start: int) -> list[bytes]:
        stop = min(start + DECODED_AT_ONCE, len(images))
        return [_content(images, index) for index in range(start, stop)]

    yield from chain.from_iterable(_DECODERS.map(some, range(0, len(images), DECODED_AT_ONCE)))


def _content(images: Images, index: int) -> bytes:
    """Read an image's content once in all cells: its digest changes if the image does."""
    digest = images.digest(index)
    if digest not in _CONTENTS:
        _CONTENTS[digest] = images.content(index)
    return _CONTENTS[digest]


def _stacked(images: list[Future[Tensor]]) -> Tensor:
    """Wait for the images of a batch; where one fails, let go of those that have not begun."""
    try:
        return torch.stack([image.result() for image in images])
    finally:
        for image in images:
            image.cancel()
