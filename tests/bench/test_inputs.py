"""What a cell starts from, and what it is evaluated on besides the test images."""

import json

import numpy as np
import pytest
from PIL import Image

from bench.cell import run_cell
from bench.config import RunConfig
from bench.inputs import check, load_inputs
from bench.tasks.features import write_features
from flora.errors import BadInput
from flora.events import Listener
from tests.flora import toy

SMALL = {
    "method": "linear_probe",
    "rounds": 2,
    "clients": 4,
    "batch_size": 16,
    "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
    "data": {"max_train": 100, "max_test": 50},
    "device": "cpu",
}
FLORA = {"name": "flora", "rank": 8, "places": ["text.out", "text.head"]}


def configured(**fields):
    return RunConfig.read({**SMALL, **fields})


def run(**fields):
    return run_cell(configured(**fields))


def test_the_papers_protocol_redraws_the_test_set():
    official, paper = (load_inputs(configured(data={"protocol": p})) for p in ("official", "paper"))
    assert len(official.train) + len(official.test) == len(paper.train) + len(paper.test) == 1797
    assert len(paper.test) == pytest.approx(0.2 * 1797, abs=1)
    assert official.sources["data"] != paper.sources["data"]


def test_one_domain_is_left_out_for_testing():
    inputs = load_inputs(configured(task="glyphs", data={"test_domain": "poster"}))
    assert set(inputs.prepared.task.test.domains) == {1}
    assert set(inputs.prepared.task.train.domains) == {0, 2, 3, 4}
    with pytest.raises(BadInput, match=r"data\.test_domain.*did you mean 'poster'"):
        check(configured(task="glyphs", data={"test_domain": "postr"}))
    with pytest.raises(BadInput, match=r"data\.test_domain"):
        check(configured(data={"test_domain": "poster"}))


def test_validation_is_held_out_of_every_clients_training_data():
    whole = load_inputs(configured(data={}))
    held = load_inputs(configured(data={}, evaluation={"set": "validation", "validation_share": 0.25}))
    parts = [set(part) for part in held.division.split.indices]
    for part, before in zip(parts, whole.division.split.indices, strict=True):
        assert part < set(before)
        assert len(part) == pytest.approx(0.75 * len(before), abs=6)
    trained_on = set().union(*parts)
    identity = held.prepared.task.train.images.identity
    scored_on = {held.division.test.images.identity(i) for i in range(len(held.division.test))}
    assert not scored_on & {identity(int(i)) for i in trained_on}
    assert len(scored_on) + len(trained_on) == 1347


def test_clients_are_evaluated_on_images_like_their_own():
    result = run(split={"name": "pathological", "classes_per_client": 5}, evaluation={"per_client": True})
    last, summary = result["rounds"][-1]["client_accuracies"], result["summary"]
    assert len(last) == 4
    assert summary["client_mean_accuracy"] == pytest.approx(np.mean(last))
    assert summary["client_worst_accuracy"] == min(last)
    assert summary["client_accuracy_spread"] == pytest.approx(np.std(last))


def test_base_to_new_trains_on_half_the_classes_and_tests_on_both():
    result = run(method=FLORA, data={"base_to_new": True}, rounds=2)
    summary = result["summary"]
    assert len(result["data"]["class_names"]) == 5
    assert 0 < summary["new_accuracy"] <= 1
    assert 0 < summary["zero_shot_new_accuracy"] <= 1
    base, new = summary["accuracy"], summary["new_accuracy"]
    assert summary["harmonic_mean_accuracy"] == pytest.approx(2 / (1 / base + 1 / new))
    # a classifier over five classes knows no others
    bound = run(data={"base_to_new": True})["summary"]
    assert bound["new_accuracy"] is None
    assert bound["zero_shot_new_accuracy"] == summary["zero_shot_new_accuracy"]


def test_retention_is_zero_shot_accuracy_elsewhere_before_and_after():
    fields = {"evaluation": {"retention": "glyphs"}, "data": {"max_train": 100, "max_test": 72}}
    untouched = run(method="zero_shot", **fields)["summary"]
    alone = run(method="zero_shot", task="glyphs", data={"max_test": 72})["summary"]
    assert untouched["retention_accuracy"] == untouched["zero_shot_retention_accuracy"] == alone["accuracy"]
    trained = run(method=FLORA, rounds=3, optimizer={"lr": 0.05, "weight_decay": 0.0}, **fields)["summary"]
    assert trained["zero_shot_retention_accuracy"] == alone["accuracy"]
    assert trained["retention_accuracy"] < alone["accuracy"]  # a rate that high destroys what was known


def test_limits_meant_for_the_task_do_not_refuse_the_other():
    check(configured(data={"max_train": 20, "max_test": 20}, evaluation={"retention": "glyphs"}))


def test_prompts_that_do_not_fit_the_other_task_are_found_before_training():
    method = {"name": "prompt_tuning", "context": 27}
    phases = []

    class Phases(Listener):
        def phase_started(self, phase):
            phases.append(phase.name)

    with pytest.raises(BadInput, match="27 vectors do not fit"):
        run_cell(configured(method=method, evaluation={"retention": "glyphs"}), [Phases()])
    assert "train" not in phases


def test_local_clients_send_nothing_and_stay_behind_centralised_training():
    fields = {
        "data": {"max_train": 400, "max_test": 200},
        "rounds": 5,
        "split": {"name": "pathological", "classes_per_client": 3},
    }
    local, federated, central = (
        run(mode=mode, **fields)["summary"] for mode in ("local_only", "federated", "centralized")
    )
    assert local["bytes_up"] == local["bytes_down"] == central["bytes_up"] == central["payload_bytes"] == 0
    assert local["accuracy"] < federated["accuracy"] < central["accuracy"]
    assert local["client_worst_accuracy"] <= local["client_mean_accuracy"] == pytest.approx(local["accuracy"])


def test_fedprox_changes_training_from_the_second_step_on():
    plain, held = run(method=FLORA), run(method=FLORA, proximal_mu=10.0)
    losses = [[record["loss"] for record in result["rounds"]] for result in (plain, held)]
    assert losses[0] != losses[1]
    assert plain["summary"]["bytes_up"] == held["summary"]["bytes_up"]


@pytest.fixture
def images(tmp_path):
    """Twelve images of each of two colours, one file of them cut short."""
    stream = np.random.default_rng(0)
    for name, colour in (("red", (220, 30, 30)), ("blue", (20, 20, 120))):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.clip(np.array(colour) + stream.normal(0, 9, (24, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.png")
    damaged = tmp_path / "red" / "05.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return tmp_path


def test_a_damaged_image_is_refused_by_its_path_or_skipped_and_counted(images):
    fields = {"task": f"folder:{images}", "clients": 2, "data": {}}
    with pytest.raises(BadInput, match=r"red/05\.png cannot be read"):
        check(configured(**fields))
    result = run(**fields | {"data": {"on_corrupt": "skip"}})
    assert result["data"]["damaged"] == 1
    assert result["data"]["train"] + result["data"]["test"] == 23


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Features of the digits by the embedded model, as a file."""
    inputs = load_inputs(configured(data={}))
    clip = inputs.model.clip
    train, test = (toy.featured(part, clip) for part in (inputs.train, inputs.test))
    path = tmp_path_factory.mktemp("features") / "digits.safetensors"
    tensors = {"classes": clip.encode_text(inputs.prompts.tokens)}
    for name, part in (("train", train), ("test", test)):
        tensors |= {f"{name}.features": part.features, f"{name}.labels": part.labels}
    scale = clip.logit_scale.exp().item()
    write_features(path, tensors, inputs.prepared.task.class_names, logit_scale=scale)
    return path


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "attention_adapter", "clip_adapter"])
def test_features_alone_give_what_the_images_give(features, method):
    of_images = run(method=method, data={})
    of_rows = run(method=method, task=f"features:{features}", data={})
    assert of_rows["summary"]["zero_shot_accuracy"] == of_images["summary"]["zero_shot_accuracy"]
    for ours, theirs in zip(of_rows["rounds"], of_images["rounds"], strict=True):
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
        assert ours["bytes_up"] == theirs["bytes_up"]
    assert of_rows["config"]["model"]["name"] == "precomputed"
    json.dumps(of_rows, allow_nan=False)


@pytest.mark.parametrize(
    "method", ["flora", "full_finetune", "vision_finetune", "bitfit", "layernorm_tuning"]
)
def test_methods_that_train_a_tower_are_refused_features(features, method):
    with pytest.raises(BadInput) as caught:
        run(method=method, task=f"features:{features}", data={})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "features:x.safetensors", "model": "tiny"}, "model: must be 'precomputed'"),
        ({"model": "precomputed"}, "model.name: 'precomputed' goes with a task features:FILE"),
        ({"mode": "local_only", "proximal_mu": 1.0}, "proximal_mu: 1.0 has no effect in mode local_only"),
        ({"mode": "centralized", "participation": 0.5}, "participation: 0.5 has no effect"),
        (
            {"task": "features:x.safetensors", "evaluation": {"retention": "digits"}},
            "evaluation.retention: another task needs a model",
        ),
        (
            {"task": "glyphs", "data": {"test_domain": "poster"}, "evaluation": {"per_client": True}},
            "evaluation.per_client: no client has images like those of data.test_domain",
        ),
        ({"local_steps": 3, "local_epochs": 2}, "local_epochs: 2 has no effect beside local_steps"),
        ({"evaluation": {"retention": "features:x.safetensors"}}, "evaluation.retention: .* holds no images"),
        ({"mode": "central"}, "mode: 'central'"),
        ({"evaluation": {"per_clients": True}}, "evaluation.per_clients.*did you mean 'per_client'"),
        ({"data": {"protocol": "papers"}}, "data.protocol: 'papers'"),
    ],
)
def test_fields_that_make_no_sense_together_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        configured(**fields)


def test_a_retention_task_that_is_not_there_is_refused_before_training():
    with pytest.raises(BadInput, match="task 'glyph' is unknown; did you mean 'glyphs'"):
        check(configured(evaluation={"retention": "glyph"}))


@pytest.mark.parametrize(
    ("dtype", "method"),
    [("bfloat16", FLORA), ("float16", FLORA), ("bfloat16", "full_finetune"), ("float16", "linear_probe")],
)
def test_half_precision_trains_and_sends_float32(dtype, method):
    fields = {"method": method, "rounds": 3, "optimizer": {"lr": 1e-3, "weight_decay": 0.0}}
    half, single = run(model={"dtype": dtype}, **fields), run(**fields)
    assert half["summary"]["payload_bytes"] == single["summary"]["payload_bytes"]
    for ours, theirs in zip(half["rounds"][1:], single["rounds"][1:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
