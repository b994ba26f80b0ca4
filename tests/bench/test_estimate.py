"""What is foretold of a cell, against a real run of it and real steps."""

import json
from dataclasses import replace

import pytest
import torch

from bench import calibration, estimate
from bench.calibration import Calibration
from bench.catalogue import method_modules
from bench.cell import make_method, run_cell
from bench.config import RunConfig
from bench.inputs import load_inputs
from bench.measure.tensors import Counter
from flora import client
from flora.clip import ENCODED
from flora.errors import BadInput
from flora.payload import size_of

SMALL = {
    "rounds": 1,
    "clients": 2,
    "batch_size": 8,
    "optimizer": {"lr": 1e-4},
    "data": {"max_train": 24, "max_test": 10},
    "device": "cpu",
}
TRAINED = [name for name in method_modules() if name != "zero_shot"]
SOME = ["flora", "full_finetune", "linear_probe"]
SPEED = Calibration((10, 10**9), (1e9, 1e10), 1e9, (10, 10**6), (1e9, 1e9), 1e-5)


def configured(**fields):
    return RunConfig.read({**SMALL, **fields})


def real_step(config, again):
    """A real step as a client takes it, under the counter."""
    inputs = load_inputs(config)
    method = make_method(config, inputs)
    batch = inputs.train.batch(torch.arange(config.batch_size))
    stage = method.frozen_image_stages if config.acceleration == "exact" else 0
    if stage == ENCODED or (stage and method.clip.image_stages[stage - 1].name != "patches"):
        (rows,) = inputs.train.encoded(method.clip, [torch.arange(config.batch_size)], stage)
        batch = replace(batch, inputs=rows, stage=stage)
    values = {name: p.detach().clone() for name, p in method.trainable.items()}
    state = client.start(method, values, config.training, None)
    del values
    batch = method.collate(batch)
    if again:
        client.step(state, batch)
        state.optimizer.zero_grad(set_to_none=True)
    states = [x for of in state.optimizer.state.values() for x in of.values()]
    held = {
        "parameters": method.parameters(),
        "optimizer_state": states,
        "buffers": [*method.shared_tensors, batch.inputs],
    }
    with Counter(held, method.trainable.values()) as counter:
        client.step(state, batch)
    classes = len(set(batch.labels.tolist()))
    return counter, classes


@pytest.mark.parametrize(
    ("name", "acceleration"), [*((name, "exact") for name in TRAINED), *((name, "none") for name in SOME)]
)
def test_a_step_of_fake_tensors_takes_what_a_real_one_does(name, acceleration):
    config = configured(method=name, acceleration=acceleration)
    real, classes = real_step(config, again=True)
    task = estimate._task(config, None)
    built = estimate._built(*estimate._key(config, task))
    fake = estimate._step(built, config.training, config.batch_size, classes, again=True)
    assert fake.flops == pytest.approx(real.flops, rel=0.02)
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.05)
    assert fake.peak_by_cause["parameters"] == real.peak_by_cause["parameters"]


@pytest.mark.parametrize("name", method_modules())
def test_parameters_and_bytes_of_a_run_are_foretold_exactly(name):
    config = configured(method=name)
    found, summary = estimate.estimate(config), run_cell(config)["summary"]
    assert found.how == "fake tensors"
    for figure in ("trainable_parameters", "payload_bytes", "bytes_up", "bytes_down"):
        assert getattr(found, figure) == summary[figure], figure


@pytest.mark.parametrize("name", SOME)
def test_flops_of_a_whole_run_are_foretold(name):
    config = configured(method=name, rounds=2, clients_per_batch=1)
    found, summary = estimate.estimate(config), run_cell(config)["summary"]
    assert found.train_flops == pytest.approx(summary["train_flops"], rel=0.02)
    assert found.peak_tensor_bytes == pytest.approx(summary["peak_tensor_bytes"], rel=0.05)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_precisions_can_be_foretold(dtype):
    found = estimate.estimate(configured(model={"name": "tiny", "dtype": dtype}))
    wide = dtype == "float64"
    assert (found.how, found.trainable_bytes) == ("fake tensors", 1536 * (8 if wide else 4))
    frozen = found.peak_by_cause["parameters"]
    assert frozen > 9 * 10**6 if wide else frozen < 4 * 10**6


@pytest.mark.parametrize("model", ["ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_every_kind_of_model_is_built_without_weights(model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = estimate.estimate(configured(model=f"{model}:random", method="linear_probe"))
    assert found.how == "fake tensors"
    assert found.feature_flops > 10**9
    assert found.peak_by_cause["parameters"] > 10**8


def test_published_figures_of_the_paper_are_met():
    found = estimate.estimate(configured(model="ViT-L-14:random"))
    assert found.trainable_parameters == 36_864
    full = estimate.estimate(configured(model="ViT-B-32:random", method="full_finetune"))
    assert (full.trainable_parameters, full.trainable_bytes) == (151_277_313, 605_109_252)


def test_the_largest_batch_fits_and_one_more_does_not():
    config, room = configured(method="full_finetune"), 40 * 10**6
    largest = estimate.largest_batch(config, room)
    task = estimate._task(config, None)
    built = estimate._built(*estimate._key(config, task))
    held = estimate._held_bytes(built, task, estimate._servers(config, task, built.method))

    def peak(size):
        return held + estimate._step(built, config.training, size, min(size, 10), True).peak_bytes

    assert peak(largest) <= room < peak(largest + 1)
    assert estimate.largest_batch(config, 10**6) == 0


@pytest.mark.parametrize("name", ["full_finetune", "linear_probe"])
def test_the_largest_batch_has_the_peak_that_is_printed(name):
    config = configured(method=name, rounds=2)
    printed = estimate.estimate(config).peak_tensor_bytes
    assert estimate.largest_batch(config, printed - 1) < config.batch_size
    whole = configured(method=name, rounds=2, data={"max_train": 200, "max_test": 10})
    room = estimate.estimate(whole).peak_tensor_bytes + 10**7
    largest = estimate.largest_batch(whole, room)
    assert estimate.estimate(whole.model_copy(update={"batch_size": largest})).peak_tensor_bytes <= room


@pytest.mark.parametrize("mode", ["local_only", "centralized"])
def test_formulas_send_nothing_where_nothing_is_sent(monkeypatch, mode):
    def fails(*_):
        raise RuntimeError("no numbers here")

    monkeypatch.setattr(estimate, "_counted", fails)
    found = estimate.estimate(configured(mode=mode))
    assert found.how == "formulas"
    assert (found.round_bytes_up, found.round_bytes_down, found.bytes_up, found.bytes_down) == (0, 0, 0, 0)
    assert estimate.estimate(configured()).round_bytes_up > 0


def test_what_only_a_part_was_counted_of_is_said(monkeypatch):
    config = configured(rounds=2)
    assert estimate.estimate(config).notes == ()
    monkeypatch.setattr(estimate, "CLIENTS_LOOKED_AT", 1)
    monkeypatch.setattr(estimate, "STEPS_LOOKED_AT", 1)
    clients, rounds = estimate.estimate(config).notes
    assert "1 of 2 clients" in clients
    assert "1 of 2 rounds" in rounds


def test_splits_of_a_task_share_a_method_and_its_counts():
    one, other = configured(), configured(data={"max_train": 16, "max_test": 10})
    built = [estimate._built(*estimate._key(x, estimate._task(x, None))) for x in (one, other)]
    assert built[0] == built[1]
    assert built[0].method is built[1].method


def test_samples_of_clients_may_be_given():
    one = estimate.estimate(configured(), samples=[8, 16, 24])
    assert one.steps == 1 + 2 + 3
    assert one.round_flops == one.train_flops


def test_a_task_that_is_not_at_hand_has_a_stand_in_and_no_totals(tmp_path):
    found = estimate.estimate(configured(task="cifar100", data={"root": str(tmp_path)}))
    assert "stand in" in found.notes[0]
    assert found.train_flops is None
    assert found.trainable_parameters == 1536


def test_a_model_that_cannot_be_tried_falls_back_to_formulas(monkeypatch):
    def fails(*_):
        raise RuntimeError("no numbers\nhere")

    monkeypatch.setattr(estimate, "_counted", fails)
    found = estimate.estimate(configured())
    real = size_of(make_method(configured(), load_inputs(configured())).trainable)
    assert (found.how, found.trainable_parameters, found.payload_bytes) == ("formulas", 1536, real)
    assert found.notes[-1] == "it cannot be built of fake tensors: no numbers here"
    assert found.peak_tensor_bytes is None


def test_unknown_names_are_bad_input():
    with pytest.raises(BadInput, match="did you mean"):
        estimate.estimate(configured(model="ViT-B-33:random"))


def test_times_add_up_and_grow_with_the_work():
    small = estimate.estimate(configured(method="full_finetune"))
    large = estimate.estimate(configured(method="full_finetune", batch_size=12))
    seconds = estimate.predicted_seconds(small, SPEED)
    assert seconds["total"] == pytest.approx(sum(seconds[x] for x in ("train", "features", "evaluate")))
    assert 0 < seconds["step"] < estimate.predicted_seconds(large, SPEED)["step"]
    assert estimate.predicted_seconds(replace(small, steps=None), SPEED)["total"] is None


def test_calibration_is_paid_once(monkeypatch, tmp_path):
    monkeypatch.setenv("FLORA_BENCH_CACHE", str(tmp_path / "features"))
    measured = calibration.calibrate(0.05)
    assert min(*measured.rates, *measured.making, measured.reading, measured.operation_seconds) > 0
    asked = []
    monkeypatch.setattr(calibration, "calibrate", lambda **more: asked.append(more) or measured)
    assert calibration.calibration() == calibration.calibration() == measured
    assert len(asked) == 1
    calibration.calibration(anew=True)
    assert len(asked) == 2
    (tmp_path / calibration.FILE).write_text("{broken")
    assert calibration.calibration() == measured
    assert json.loads((tmp_path / calibration.FILE).read_text())
