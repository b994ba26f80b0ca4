"""What a frozen image tower gives, and the images that go into it."""

from __future__ import annotations

import torch

from bench.config import Model
from bench.frozen import AT_ONCE
from bench.images import Kept, Pixels
from bench.models import load_model
from bench.tasks import load_task
from flora.clip import ENCODED
from flora.features import Samples
from tests.perf.made import random

IMAGES = 4 * AT_ONCE


def test_feature_extraction(benchmark):
    model = load_model(Model(), "cpu")
    samples = Samples(Kept(random(IMAGES, 3, 32, 32)), torch.zeros(IMAGES, dtype=torch.int64))
    batches = torch.arange(IMAGES).split(AT_ONCE)
    features = torch.cat(benchmark(lambda: list(samples.encoded(model.clip, batches, ENCODED))))
    assert features.shape == (IMAGES, model.clip.dim)
    assert features.isfinite().all()


def test_preprocessing(benchmark):
    images = load_task("digits").test.images
    pixels = Pixels(images, load_model(Model(), "cpu").preprocess, torch.float32)
    prepared = benchmark(pixels.__getitem__, torch.arange(AT_ONCE))
    assert prepared.shape == (AT_ONCE, 3, 32, 32)
