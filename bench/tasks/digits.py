"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8 pixels, ten classes, nothing to download."""

from __future__ import annotations

import numpy as np

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
    from sklearn.datasets import load_digits

    refuse_argument("digits", argument)
    digits = load_digits()
    pixels = np.round(digits.images * (255 / DARKEST_INK)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    everything = LabelledImages(ArrayImages(pixels), labels)
    train, test = stratified_split(labels, TEST_SHARE, SPLIT_SEED)
    return Task(
        name="digits",
        class_names=tuple("0123456789"),
        template="a photo of the number {}",
        train=everything.select(train),
        test=everything.select(test),
    )
