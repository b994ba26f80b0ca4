"""Accuracy by class and overall, and calibration, each against a second instrument."""

from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from flora.evaluation import (
    IMAGES_AT_ONCE,
    Predictions,
    accuracy,
    calibration_error,
    class_accuracies,
    evaluate,
    macro_accuracy,
    mean_scores,
    predict,
    scores,
)
from flora.events import Events, Listener
from tests.flora import toy

PROBE = {"name": "linear_probe"}


def predictions(labels, predicted, confidence=None):
    confidence = torch.ones(len(labels)) if confidence is None else confidence
    return Predictions(torch.tensor(labels), torch.tensor(predicted), confidence)


def naive_calibration_error(confidence, correct, bins=15):
    """The definition, sample by sample and bin by bin."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [(c, hit) for c, hit in zip(confidence, correct, strict=True) if low < c <= high]
        if inside:
            mean_confidence = sum(c for c, _ in inside) / len(inside)
            share = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(share - mean_confidence)
    return total


# --- what is predicted ---------------------------------------------------------------------------------


def test_predictions_are_those_of_the_logits():
    built, data = toy.shake(toy.method(PROBE)), toy.samples(2 * IMAGES_AT_ONCE + 5)
    found = predict(built, data)
    with torch.no_grad():
        logits = built.logits(toy.whole(data), built.classifier())
    assert torch.equal(found.labels, data.labels)
    assert torch.equal(found.predicted, logits.argmax(1))
    assert torch.allclose(found.confidence, logits.softmax(1).amax(1), rtol=1e-12)
    assert (
        evaluate(built, data) == accuracy(found.correct) == (logits.argmax(1) == data.labels).double().mean()
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_confidence_is_in_single_precision_at_least(monkeypatch, dtype, expected):
    built = toy.method(PROBE)
    logits = type(built).logits
    monkeypatch.setattr(type(built), "logits", lambda *given: logits(*given).to(dtype))
    assert predict(built, toy.samples()).confidence.dtype == expected


def test_a_winner_that_rounding_hides_in_the_probabilities_is_found(monkeypatch):
    built = toy.method(PROBE)
    close = torch.tensor([0, 0, 0, 0, 1e-17], dtype=torch.float64).repeat(24, 1)
    assert close.softmax(1).unique().tolist() == [0.2]
    monkeypatch.setattr(type(built), "logits", lambda *_: close)
    assert predict(built, toy.samples()).predicted.tolist() == [4] * 24


def test_the_work_is_announced():
    class Works(Listener):
        def __init__(self):
            self.heard = []

        def work_started(self, work):
            self.heard.append(("started", work.kind, None if work.batch is None else len(work.batch.labels)))

        def work_ended(self, work):
            self.heard.append(("ended", work.kind, None if work.batch is None else len(work.batch.labels)))

    works, count = Works(), IMAGES_AT_ONCE + 3
    predict(toy.method(PROBE), toy.samples(count), Events((works,)))
    pieces = [("classifier", None), ("classify", IMAGES_AT_ONCE), ("classify", 3)]
    assert works.heard == [(edge, *piece) for piece in pieces for edge in ("started", "ended")]


# --- accuracies ----------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40))
def test_accuracies_are_scikit_learns(pairs):
    labels, predicted = (list(x) for x in zip(*pairs, strict=True))
    found = predictions(labels, predicted)
    of_classes = class_accuracies(found, 7)
    present = sorted(set(labels))
    recalls = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert [of_classes[label] for label in present] == pytest.approx(recalls.tolist())
    assert all(of_classes[label] is None for label in set(range(7)) - set(present))
    assert macro_accuracy(of_classes) == pytest.approx(
        recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    )
    assert accuracy(found.correct) == pytest.approx(accuracy_score(labels, predicted))


def test_macro_accuracy_is_the_balanced_accuracy_and_not_the_accuracy():
    labels, predicted = [0] * 90 + [1] * 10, [0] * 95 + [1] * 5
    found = predictions(labels, predicted)
    assert accuracy(found.correct) == 0.95
    balanced = macro_accuracy(class_accuracies(found, 2))
    assert balanced == pytest.approx(balanced_accuracy_score(labels, predicted)) == 0.75


def test_of_nothing_there_is_no_figure():
    nothing = predictions([], [])
    assert accuracy(torch.zeros(0, dtype=torch.bool)) is None
    assert macro_accuracy((None, None)) is None
    assert calibration_error(nothing.confidence, torch.zeros(0, dtype=torch.bool)) is None


# --- calibration ---------------------------------------------------------------------------------------


CONFIDENCES = st.floats(1e-6, 1) | st.sampled_from([k / 15 for k in range(1, 16)])


@settings(max_examples=80, derandomize=True)
@given(st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_its_definition(pairs):
    confidence, correct = (list(x) for x in zip(*pairs, strict=True))
    found = calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct))
    assert found == pytest.approx(naive_calibration_error(confidence, correct), abs=1e-12)


def test_calibration_error_of_a_planted_case():
    confidence, correct = torch.full((10,), 0.9, dtype=torch.float64), torch.arange(10) < 6
    assert calibration_error(confidence, correct) == pytest.approx(0.3, abs=1e-12)


def test_a_calibrated_classifier_has_no_calibration_error_and_a_shifted_one_its_shift():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.2, 1, 200_000)
    correct = torch.from_numpy(generator.uniform(size=len(confidence)) < confidence)
    assert calibration_error(torch.from_numpy(confidence), correct) < 0.01
    assert calibration_error(torch.from_numpy(confidence * 0.8), correct) == pytest.approx(0.12, abs=0.01)


def test_errors_of_bins_do_not_cancel():
    confidence = torch.tensor([0.95, 0.35], dtype=torch.float64)
    correct = torch.tensor([False, True])
    assert calibration_error(confidence, correct) == pytest.approx((0.95 + 0.65) / 2)


def test_a_confidence_that_is_not_a_number_leaves_the_error_unknown():
    assert calibration_error(torch.tensor([0.5, torch.nan]), torch.tensor([True, True])) is None


# --- what a round's record gets ------------------------------------------------------------------------


def test_a_federations_record_has_the_scores_of_its_model():
    federation = toy.federation(toy.method(PROBE))
    for record in federation.rounds(1):
        expected = scores(predict(federation.method, federation.test), toy.CLASSES)
        assert {name: getattr(record, name) for name in expected} == expected
        assert record.macro_accuracy == pytest.approx(fmean(record.class_accuracies))
        assert 0 < record.calibration_error < 1


def test_a_class_that_the_test_set_lacks_has_no_accuracy():
    federation = toy.federation(toy.method(PROBE))
    federation.test = federation.test.select(torch.nonzero(federation.test.labels != 2).flatten())
    (record,) = federation.rounds(0)
    assert [x is None for x in record.class_accuracies] == [False, False, True, False, False]


def test_scores_of_several_models_are_means():
    data = toy.samples(30)
    found = [scores(predict(toy.shake(toy.method(PROBE), seed=s), data), toy.CLASSES) for s in (1, 2)]
    together = mean_scores(found)
    for name in ("accuracy", "macro_accuracy", "calibration_error"):
        assert together[name] == pytest.approx((found[0][name] + found[1][name]) / 2)
    assert together["class_accuracies"] == pytest.approx(
        np.mean([x["class_accuracies"] for x in found], axis=0).tolist()
    )
    unknown = {**found[1], "calibration_error": None}
    assert mean_scores([found[0], unknown])["calibration_error"] is None
