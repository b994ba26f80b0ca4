"""How well a method classifies: what it predicts, how sure it is, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flora.events import Events, Work
from flora.features import Samples
from flora.method import Method

# Images that are evaluated together; more take memory and save no time. And features, of which one is little.
IMAGES_AT_ONCE = 32
FEATURES_AT_ONCE = 2048

# Bins of confidence, all equally wide, as the paper on calibration has it in its tables.
CALIBRATION_BINS = 15

_NOBODY = Events()


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a method makes of some samples; all on the CPU, in the samples' order.

    Attributes:
        labels: (n,) int64, the right class of each.
        predicted: (n,) int64, the class that scores highest.
        confidence: (n,) float32 or float64, the probability that the softmax over all classes gives to it.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor

    @cached_property
    def correct(self) -> Tensor:
        """Whether each is right: (n,) bool."""
        return self.predicted == self.labels


def predict(method: Method, samples: Samples, events: Events = _NOBODY) -> Predictions:
    """Classify `samples`; there must be some.

    Args:
        method: the model as it is now.
        samples: what is classified, into the classes the method reads at the moment.
        events: told of the work it takes.
    """
    size = IMAGES_AT_ONCE if samples.features is None else FEATURES_AT_ONCE
    predicted, confidence = [], []
    with torch.inference_mode():
        with events.work(Work("classifier", prompts=method.prompt_sizes, replay=method.classifier)):
            classifier = method.classifier()
        for batch in samples.batches(size):
            again = partial(method.logits, batch, classifier)
            with events.work(Work("classify", batch, replay=again)):
                logits = method.logits(batch, classifier)
                # of the logits: equal probabilities may be of logits that differ
                predicted.append(logits.argmax(dim=-1))
                precision = torch.promote_types(logits.dtype, torch.float32)
                confidence.append(logits.softmax(dim=-1, dtype=precision).amax(dim=-1))
        # copied once, or each batch would wait for the device
        return Predictions(samples.classes, torch.cat(predicted).cpu(), torch.cat(confidence).cpu())


def evaluate(method: Method, samples: Samples) -> float:
    """Measure top-1 accuracy on `samples`, in [0, 1]; there must be some."""
    return int(predict(method, samples).correct.sum()) / len(samples)


def scores(predictions: Predictions, classes: int) -> dict[str, Any]:
    """Give all figures of a `RoundRecord` that are of one model: accuracies and calibration error."""
    of_classes = class_accuracies(predictions, classes)
    return {
        "accuracy": accuracy(predictions.correct),
        "macro_accuracy": macro_accuracy(of_classes),
        "calibration_error": calibration_error(predictions.confidence, predictions.correct),
        "class_accuracies": of_classes,
    }


def mean_scores(of_models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the mean of each of the `scores` of several models on the same samples."""
    by_class = zip(*(found["class_accuracies"] for found in of_models), strict=True)
    figures = ("accuracy", "macro_accuracy", "calibration_error")
    return {
        **{name: _mean([found[name] for found in of_models]) for name in figures},
        "class_accuracies": tuple(map(_mean, by_class)),
    }


def accuracy(correct: Tensor) -> float | None:
    """Share of hits (n,), None of none."""
    return int(correct.sum()) / len(correct) if len(correct) else None


def class_accuracies(predictions: Predictions, classes: int) -> tuple[float | None, ...]:
    """Give for each class the share of its own samples that are right, None for one without samples."""
    labels, correct = predictions.labels, predictions.correct
    of_class = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[correct], minlength=classes).tolist()
    return tuple(hits / count if count else None for hits, count in zip(right, of_class, strict=True))


def macro_accuracy(of_classes: Sequence[float | None]) -> float | None:
    """Mean accuracy over the classes that have samples, all counting alike; None if none has."""
    found = [share for share in of_classes if share is not None]
    return fmean(found) if found else None


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> float | None:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Samples are put into equally wide bins of confidence, (0, 1/bins], (1/bins, 2/bins], ...; the error is
    the mean over the bins, weighted by their samples, of |accuracy - mean confidence|.

    Args:
        confidence: (n,) in (0, 1].
        correct: (n,) bool.
        bins: how many.

    Returns:
        In [0, 1]; None of no samples, and where a confidence is not a number.
    """
    if not len(confidence) or not confidence.isfinite().all():
        return None
    confidence = confidence.double()
    borders = torch.arange(bins + 1, dtype=torch.float64) / bins
    # the first border not below a confidence closes its bin; rounding may put one a hair above 1
    bin_of = (torch.searchsorted(borders, confidence) - 1).clamp(0, bins - 1)
    surplus = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, correct.double() - confidence)
    # a bin's weight cancels against the mean over its samples
    return float(surplus.abs().sum()) / len(confidence)


def _mean(figures: Sequence[float | None]) -> float | None:
    """Mean of figures, None if one of them is unknown."""
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known and len(known) == len(figures) else None
