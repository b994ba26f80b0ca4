"""A thousand test images classified, and the figures made of it."""

from __future__ import annotations

import pytest
import torch

from bench.images import Kept
from flora.clip import ENCODED
from flora.evaluation import Predictions, predict, scores
from flora.features import Samples
from tests.perf.made import make_method, random

IMAGES = 1000
LABELS = torch.arange(IMAGES) % 10


@pytest.mark.parametrize("name", ["flora", "linear_probe", "attention_adapter"])
def test_evaluation(benchmark, name):
    method = make_method(name)
    samples = Samples(Kept(torch.empty(IMAGES, 0)), LABELS, random(IMAGES, method.clip.dim), ENCODED)
    predictions = benchmark(predict, method, samples)
    assert len(predictions.predicted) == IMAGES


def test_scores(benchmark):
    predicted, confidence = LABELS.roll(3) % 7, torch.linspace(0.1, 1.0, IMAGES)
    found = benchmark(scores, Predictions(LABELS, predicted, confidence), 10)
    assert 0 <= found["calibration_error"] <= 1
