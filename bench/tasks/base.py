"""What a task is: labelled images, class names and the template their prompts are made with."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from flora.errors import BadInput

Indices = NDArray[np.int64]

# All that Pillow raises on a damaged file: OSError (unidentified, truncated), SyntaxError (a bad PNG
# chunk), ValueError (a nonsensical header) and its guard against decompression bombs.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Images(ABC):
    """A sequence of RGB images, each made only when it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image: ...

    @abstractmethod
    def identity(self, index: int) -> bytes:
        """Bytes that change when image ``index`` changes; for fingerprints."""

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[index] for index in range(len(self)))


class ArrayImages(Images):
    """Images held in memory.

    Args:
        pixels: uint8 array of shape (n, height, width) in grey or (n, height, width, 3) in RGB.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def identity(self, index: int) -> bytes:
        """The pixels and their shape."""
        pixels = self.pixels[index]
        return repr(pixels.shape).encode() + pixels.tobytes()


class FileImages(Images):
    """Images decoded from disk on demand, so that a set may be larger than memory; turned as EXIF says.

    Args:
        root: the folder that ``paths`` are relative to.
        paths: one relative path an image, with ``/`` between folders.
        sizes: bytes of each file.

    Raises:
        BadInput: from indexing, when a file cannot be decoded.
    """

    def __init__(self, root: str | os.PathLike[str], paths: Sequence[str], sizes: Sequence[int]) -> None:
        self.root = Path(root)
        self.paths = paths
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return _upright(image).convert("RGB")
        except DAMAGED as error:
            raise BadInput(broken_image(path, error)) from error

    def identity(self, index: int) -> bytes:
        """The relative path and the size: reading every file again would cost too much."""
        return os.fsencode(f"{self.paths[index]}\0{self.sizes[index]}")


class ImagesView(Images):
    """Some of the images of another set, in a given order, without a copy.

    Args:
        base: the set looked into.
        indices: (n,) positions in ``base``.
    """

    def __init__(self, base: Images, indices: Indices) -> None:
        self.base = base
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        return self.base[int(self.indices[index])]

    def identity(self, index: int) -> bytes:
        """What the looked-into set says of the image."""
        return self.base.identity(int(self.indices[index]))


def _upright(image: Image.Image) -> Image.Image:
    """A decoded image turned as its EXIF says; as it is where the EXIF is malformed."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises half a dozen kinds, struct.error among them, and the pixels are sound
        return image


def broken_image(path: Path, error: BaseException) -> str:
    """The one line a user reads about an image that cannot be decoded."""
    reason = " ".join(str(error).split())
    return f"image {path} cannot be read ({reason}); repair or remove it"


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with the class of each and, where known, its domain.

    Args:
        images: n images.
        labels: (n,) int64 indices into the task's class names.
        domains: (n,) int64 indices into the task's domain names, or None.

    Raises:
        ValueError: labels or domains do not fit the number of images.
    """

    images: Images
    labels: Indices
    domains: Indices | None = None

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.labels, self.domains) if array is not None}
        if shapes != {(len(self.images),)}:
            raise ValueError(f"{len(self.images)} images with labels and domains of shapes {shapes}")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int] | NDArray[Any]) -> LabelledImages:
        """The images at ``indices``, (m,) and in that order, as a view without a copy of any image."""
        chosen = np.asarray(indices, dtype=np.int64)
        base = self.images
        if isinstance(base, ImagesView):  # a view of a view would be looked through once per layer
            view = ImagesView(base.base, base.indices[chosen])
        else:
            view = ImagesView(base, chosen)
        domains = None if self.domains is None else self.domains[chosen]
        return LabelledImages(view, self.labels[chosen], domains)


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task with names, which is what a vision-language model needs.

    Args:
        name: what the task is called on the command line.
        class_names: one name a class, as it stands in the prompt.
        template: the prompt with one ``{}`` for the class name.
        train: the images that clients share out.
        test: the images every method is scored on.
        domain_names: one name a domain; empty where domains are unknown.
    """

    name: str
    class_names: tuple[str, ...]
    template: str
    train: LabelledImages
    test: LabelledImages
    domain_names: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """The template filled with each class name, in the order of the classes."""
        return [self.template.format(name) for name in self.class_names]

    def limited(self, max_train: int | None, max_test: int | None, seed: int) -> Task:
        """The same task with fewer images, drawn per class as evenly as the classes allow.

        Args:
            max_train: most training images in all; None keeps every one.
            max_test: most test images in all; None keeps every one.
            seed: decides which images are drawn.

        Raises:
            BadInput: a limit below one image a class.
        """
        train_stream, test_stream = np.random.default_rng(seed).spawn(2)
        return replace(
            self,
            train=self._draw("max_train", self.train, max_train, train_stream),
            test=self._draw("max_test", self.test, max_test, test_stream),
        )

    def _draw(
        self, field: str, part: LabelledImages, most: int | None, stream: np.random.Generator
    ) -> LabelledImages:
        if most is None or most >= len(part):
            return part
        if most < len(self.class_names):
            raise BadInput(
                f"data.{field} is {most}, but {self.name} has {len(self.class_names)} classes: "
                f"give {len(self.class_names)} or more"
            )
        return part.select(draw_evenly(part.labels, most, stream))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over names, template, labels, domains and the identity of every image."""
        digest = hashlib.sha256()
        names = (self.name, self.class_names, self.template, self.domain_names)
        digest.update(repr(names).encode())
        for part in (self.train, self.test):
            digest.update(len(part).to_bytes(8, "little"))
            for array in (part.labels, part.domains):
                digest.update(b"none" if array is None else array.astype("<i8").tobytes())
            for index in range(len(part)):
                identity = part.images.identity(index)
                digest.update(len(identity).to_bytes(8, "little") + identity)
        return digest.hexdigest()


def draw_evenly(labels: Indices, most: int, stream: np.random.Generator) -> Indices:
    """Sorted positions of ``most`` images, as many of each class as of any other where classes suffice.

    Args:
        labels: (n,) class of each image.
        most: how many to draw.
        stream: the random numbers, which also decide the classes that get one image more.
    """
    order = stream.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        turn[mine] = np.arange(len(mine))
    # Dealing round by round, one image a class and round, is even by construction.
    dealt = order[np.argsort(turn[order], kind="stable")]
    return np.sort(dealt[:most])


def stratified_split(strata: Indices, test_share: float, seed: int) -> tuple[Indices, Indices]:
    """Sorted train and test positions with the same share of every stratum in test.

    A stratum of two images or more gives at least one to test and keeps at least one for training.

    Args:
        strata: (n,) stratum of each image, such as its class.
        test_share: fraction of each stratum that goes to test.
        seed: decides which.
    """
    stream = np.random.default_rng(seed)
    held_out = np.zeros(len(strata), dtype=bool)
    for stratum in np.unique(strata):
        mine = stream.permutation(np.flatnonzero(strata == stratum))
        count = min(max(round(test_share * len(mine)), 1), len(mine) - 1)
        held_out[mine[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def refuse_argument(task: str, argument: str | None) -> None:
    """Refuse ``task:ARGUMENT`` for a task that takes none."""
    if argument is not None:
        raise BadInput(f"task {task}:{argument} takes nothing after its name; write {task!r}")
