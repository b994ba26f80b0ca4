"""What a task is: labelled images, class names and the template their prompts are made with."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from flora.errors import BadInput, nearest

Indices = NDArray[np.int64]

# FLoRA's published code tests on a fifth of everything, drawn at random.
REDRAWN_TEST_SHARE = 0.2
# Keeps that draw apart from the other draws made by the split's seed.
REDRAW_STREAM = 3
# Images that one thread checks before the next thread's are looked at.
CHECKED_AT_ONCE = 64


class Images(ABC):
    """A sequence of RGB images, each made only when it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image: ...

    @abstractmethod
    def identity(self, index: int) -> bytes:
        """Bytes that change when image ``index`` changes; for fingerprints."""

    def digest(self, index: int) -> bytes:
        """32 bytes that tell image ``index`` from all others on this machine; for what is kept of it here."""
        return hashlib.sha256(self.identity(index)).digest()

    def content(self, index: int) -> bytes:
        """32 bytes that alike images of one set share, whatever they are called; here, of their pixels."""
        image = self[index]
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()

    def place(self) -> Path | None:
        """The file or folder that the images are read from; None of images made or held in memory."""
        return None

    def damage(self, index: int) -> str | None:
        """Decode image ``index`` and say in one line what is wrong with it; None where nothing is.

        Images that are made or held in memory cannot be damaged.
        """
        return None

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

    def content(self, index: int) -> bytes:
        """Of the pixels, as they are held."""
        return hashlib.sha256(self.identity(index)).digest()


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
            return decode(path)
        except Exception as error:  # see `decode`
            raise BadInput(broken_image(path, error)) from error

    def identity(self, index: int) -> bytes:
        """The relative path and the size: reading every file of a published set would cost too much."""
        return os.fsencode(f"{self.paths[index]}\0{self.sizes[index]}")

    def digest(self, index: int) -> bytes:
        """Of the identity, the absolute path and when the file was changed."""
        path = (self.root / self.paths[index]).absolute()
        try:
            changed = path.stat().st_mtime_ns
        except OSError as error:
            raise BadInput(broken_image(path, error)) from error
        return hashlib.sha256(self.identity(index) + os.fsencode(f"\0{path}\0{changed}")).digest()

    def content(self, index: int) -> bytes:
        """Of the bytes of the file, which are read far faster than decoded."""
        path = self.root / self.paths[index]
        try:
            return hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise BadInput(broken_image(path, error)) from error

    def place(self) -> Path | None:
        """The folder."""
        return self.root

    def damage(self, index: int) -> str | None:
        """What Pillow cannot make of the file."""
        return refused(self, index)


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

    def digest(self, index: int) -> bytes:
        """That of the looked-into set."""
        return self.base.digest(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        """That of the looked-into set."""
        return self.base.content(int(self.indices[index]))

    def place(self) -> Path | None:
        """That of the looked-into set."""
        return self.base.place()

    def damage(self, index: int) -> str | None:
        """What the looked-into set finds wrong with the image."""
        return self.base.damage(int(self.indices[index]))


class JoinedImages(Images):
    """Several sets one after another, without a copy.

    Args:
        sets: the sets, in order.
    """

    def __init__(self, sets: Sequence[Images]) -> None:
        self.sets = tuple(sets)
        self._starts = np.cumsum([0, *map(len, self.sets)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Image.Image:
        part, position = self._find(index)
        return part[position]

    def identity(self, index: int) -> bytes:
        """What the set that holds the image says of it."""
        part, position = self._find(index)
        return part.identity(position)

    def digest(self, index: int) -> bytes:
        """That of the set that holds the image."""
        part, position = self._find(index)
        return part.digest(position)

    def content(self, index: int) -> bytes:
        """That of the set that holds the image."""
        part, position = self._find(index)
        return part.content(position)

    def place(self) -> Path | None:
        """That of all the sets; None where they have no one place."""
        places = {part.place() for part in self.sets}
        return places.pop() if len(places) == 1 else None

    def damage(self, index: int) -> str | None:
        """What the set that holds the image finds wrong with it."""
        part, position = self._find(index)
        return part.damage(position)

    def _find(self, index: int) -> tuple[Images, int]:
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[which], index - int(self._starts[which])


def decode(source: Path | BinaryIO) -> Image.Image:
    """The image in a file as RGB, turned as EXIF says; of an animation the first frame.

    Raises:
        Exception: it cannot be decoded. Of a damaged file Pillow's plugins raise whatever their parsing runs
            into: OSError, SyntaxError, ValueError, TypeError, struct.error, IndexError, KeyError and more.
    """
    with Image.open(source) as image:
        image.load()
        return _eight_bits(_upright(image)).convert("RGB")


def refused(images: Images, index: int) -> str | None:
    """The line that asking for an image is refused with; None where it can be had."""
    try:
        images[index]  # `verify` of Pillow would not decode, and so miss a truncated file
    except BadInput as error:
        return str(error)
    return None


def _upright(image: Image.Image) -> Image.Image:
    """A decoded image turned as its EXIF says; as it is where the EXIF is malformed."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises half a dozen kinds, struct.error among them, and the pixels are sound
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits scaled to 8: Pillow's own conversion to RGB would turn all above 255 into white.

    Older versions of Pillow read greys of 16 bits as mode I.
    """
    if not image.mode.startswith("I"):
        return image
    sixteen = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((sixteen + 128) // 257).astype(np.uint8))


def broken_image(what: object, error: BaseException) -> str:
    """The one line a user reads about an image, at a path or in a set, that cannot be decoded."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"image {what} cannot be read ({reason}); repair or remove it"


def damages(images: Images) -> Iterator[str | None]:
    """What is wrong with each image, in order, found by decoding them in parallel."""
    Image.init()  # the formats register themselves here; doing it once keeps the threads from racing for it

    def check(start: int) -> list[str | None]:
        return [images.damage(index) for index in range(start, min(start + CHECKED_AT_ONCE, len(images)))]

    with ThreadPoolExecutor(thread_name_prefix="check") as pool:
        for found in pool.map(check, range(0, len(images), CHECKED_AT_ONCE)):
            yield from found


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

    def joined(self, other: LabelledImages) -> LabelledImages:
        """These images and then the other's, without a copy of any; domains where both have them."""
        mine, others = self.images, other.images
        images: Images
        if isinstance(mine, ImagesView) and isinstance(others, ImagesView) and mine.base is others.base:
            images = ImagesView(mine.base, np.concatenate([mine.indices, others.indices]))
        else:
            images = JoinedImages([mine, others])
        domains = None
        if self.domains is not None and other.domains is not None:
            domains = np.concatenate([self.domains, other.domains])
        return LabelledImages(images, np.concatenate([self.labels, other.labels]), domains)


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

    Raises:
        BadInput: a class name is empty or given twice, or a label has no class name.
    """

    name: str
    class_names: tuple[str, ...]
    template: str
    train: LabelledImages
    test: LabelledImages
    domain_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse_names(self.name, self.class_names)
        _refuse_labels(self.name, self.class_names, np.concatenate([self.train.labels, self.test.labels]))

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

    def redrawn(self, seed: int) -> Task:
        """The protocol of FLoRA's published code (arXiv 2404.15182): train and test merged, then parted anew.

        A fifth of all images is the test set, drawn at random and not class by class, so that a rare class
        may be missing from it.

        Args:
            seed: decides which images are drawn.
        """
        everything = self.train.joined(self.test)
        order = np.random.default_rng([REDRAW_STREAM, seed]).permutation(len(everything))
        in_test = round(REDRAWN_TEST_SHARE * len(everything))
        test, train = np.sort(order[:in_test]), np.sort(order[in_test:])
        return replace(self, train=everything.select(train), test=everything.select(test))

    def leaving_out(self, domain: str) -> Task:
        """Leave-one-domain-out: all images of one domain are the test set, all others the training set.

        Args:
            domain: one of ``domain_names``.

        Raises:
            BadInput: the task has no domains, none of that name, or that one alone.
        """
        everything = self.train.joined(self.test)
        if everything.domains is None:
            raise BadInput(
                f"data.test_domain: {domain!r} needs a task with domains, and {self.name} has none; "
                "leave it out or use folder:PATH with PATH/domain/class/image"
            )
        if domain not in self.domain_names:
            raise BadInput(
                f"data.test_domain: {domain!r} is no domain of {self.name}"
                f"{nearest(domain, self.domain_names)}"
            )
        left_out = everything.domains == self.domain_names.index(domain)
        train, test = np.flatnonzero(~left_out), np.flatnonzero(left_out)
        if not len(train) or not len(test):
            raise BadInput(
                f"data.test_domain: {domain!r} leaves no images for "
                f"{'testing' if len(train) else 'training'}; choose another domain of {self.name}"
            )
        return replace(self, train=everything.select(train), test=everything.select(test))

    def base_and_new(self) -> tuple[Task, Task]:
        """The base-to-new protocol of CoOp and CoCoOp (arXiv 2109.01134, 2203.05557).

        Returns:
            The task of the first half of the classes (the larger half where they are odd), to train and
            test on, and the task of the rest, to test on; the labels of each count from 0.

        Raises:
            BadInput: fewer than four classes.
        """
        if len(self.class_names) < 4:
            raise BadInput(
                f"data.base_to_new: {self.name} has {len(self.class_names)} classes; "
                "4 or more are needed, 2 a half"
            )
        middle = -(-len(self.class_names) // 2)
        return self._with_classes(0, middle), self._with_classes(middle, len(self.class_names))

    def _with_classes(self, start: int, end: int) -> Task:
        def part(whole: LabelledImages) -> LabelledImages:
            some = whole.select(np.flatnonzero((start <= whole.labels) & (whole.labels < end)))
            return replace(some, labels=some.labels - start)

        train, test = part(self.train), part(self.test)
        return replace(self, class_names=self.class_names[start:end], train=train, test=test)

    def verified(self) -> Task:
        """The same task once every image has been decoded, so that damage shows now and not hours into a run.

        Raises:
            BadInput: naming the first damaged image.
        """
        for found in chain(damages(self.train.images), damages(self.test.images)):
            if found is not None:
                raise BadInput(found)
        return self

    def without_damaged(self) -> tuple[Task, int]:
        """The task without the images that cannot be decoded, and how many these are.

        Every image is decoded once to find out.

        Raises:
            BadInput: a class is left without training images, or nothing is left to test on.
        """
        train, test = _sound(self.train), _sound(self.test)
        dropped = len(self.train) + len(self.test) - len(train) - len(test)
        if not dropped:
            return self, 0
        if gone := set(self.train.labels.tolist()) - set(train.labels.tolist()):
            raise BadInput(
                f"data.on_corrupt: skip leaves no training image of {self.class_names[min(gone)]!r} in "
                f"{self.name}; repair its images or remove the class"
            )
        if not len(test):
            raise BadInput(
                f"data.on_corrupt: skip leaves no test image in {self.name}; repair some of its images"
            )
        return replace(self, train=train, test=test), dropped

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over names, template, labels, domains and the identity of every image.

        Of the task's name what follows the colon is left out: it may be a path, and the same images may be
        reached by several.
        """
        digest = hashlib.sha256()
        names = (self.name.partition(":")[0], self.class_names, self.template, self.domain_names)
        digest.update(repr(names).encode())
        for part in (self.train, self.test):
            digest.update(len(part).to_bytes(8, "little"))
            for array in (part.labels, part.domains):
                digest.update(b"none" if array is None else array.astype("<i8").tobytes())
            for index in range(len(part)):
                identity = part.images.identity(index)
                digest.update(len(identity).to_bytes(8, "little") + identity)
        return digest.hexdigest()


def _sound(part: LabelledImages) -> LabelledImages:
    """A part without its damaged images."""
    return part.select([index for index, wrong in enumerate(damages(part.images)) if wrong is None])


def _refuse_names(task: str, class_names: Sequence[str]) -> None:
    """Refuse class names that prompts could not tell apart."""
    seen: set[str] = set()
    for label, name in enumerate(class_names):
        if not name.strip():
            raise BadInput(f"task {task}: the name of class {label} is empty; give every class a name")
        if name in seen:
            raise BadInput(f"task {task} has two classes called {name!r}; give every class a name of its own")
        seen.add(name)


def _refuse_labels(task: str, class_names: Sequence[str], labels: Indices) -> None:
    """Refuse labels without a class name."""
    if not len(labels):
        return
    if labels.min() < 0:
        raise BadInput(f"task {task} has the label {labels.min()}; labels count from 0")
    if labels.max() >= len(class_names):
        raise BadInput(
            f"task {task} has {labels.max() + 1} labels but {len(class_names)} class names; "
            "give one name a label"
        )


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


def readable(name: str) -> str:
    """A class name as prompts spell it; bytes that are not UTF-8, which no tokenizer takes, escaped."""
    return " ".join(name.replace("_", " ").split()).encode(errors="backslashreplace").decode()


def refuse_argument(task: str, argument: str | None) -> None:
    """Refuse ``task:ARGUMENT`` for a task that takes none."""
    if argument is not None:
        raise BadInput(f"task {task}:{argument} takes nothing after its name; write {task!r}")
