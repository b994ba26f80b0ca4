"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8 pixels, ten classes, nothing to download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import ArrayImages, LabelledImages, Task, refuse_argument, stratified_split

SPLIT_SEED = 0
TEST_SHARE = 0.25
DARKEST_INK = 16


def load(argument: str | None, root: str | None) -> Task:
    """The task, three quarters of each class for training.

    Args:
        argument: must be None.
        root: not used; the images come with scikit-learn.
    """
    refuse_argument("digits", argument)
    ink, labels = _scanned()
    pixels = np.round(ink * (255 / DARKEST_INK)).astype(np.uint8)
    everything = LabelledImages(ArrayImages(pixels), labels)
    train, test = stratified_split(labels, TEST_SHARE, SPLIT_SEED)
    return Task(
        name="digits",
        class_names=tuple("0123456789"),
        template="a photo of the number {}",
        train=everything.select(train),
        test=everything.select(test),
    )


def _scanned() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Give (1797, 8, 8) amounts of ink and (1797,) labels.

    They are read from scikit-learn's file, without scikit-learn where it lies as ever: importing that takes a
    second, which every command that looks at a matrix would wait for.
    """
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)
