"""One cell from its configuration to what is kept of it."""

import copy
import json
import os
import pkgutil
import random
import subprocess
import sys
from math import isclose

import numpy as np
import pytest
import torch
from PIL import Image

from bench import store, tiny
from bench.catalogue import load_method
from bench.cell import run_cell
from bench.config import RunConfig
from bench.inputs import check
from bench.measure.clock import CHECKS, Clock
from bench.measure.traffic import HEADER_BYTES_PER_TENSOR, PayloadMismatch
from flora.errors import BadInput
from flora.events import Listener

# one of each kind; the others go through the harness in tests/baselines/test_on_real_data.py
METHODS = ["attention_adapter", "flora", "full_finetune", "linear_probe", "prompt_tuning", "zero_shot"]
TRAINED = [name for name in METHODS if name != "zero_shot"]
SMALL = {
    "rounds": 2,
    "clients": 4,
    "batch_size": 16,
    "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
    "data": {"max_train": 100, "max_test": 50},
    "device": "cpu",
}


def configured(**fields):
    return RunConfig.read({**SMALL, **fields})


def run(**fields):
    return run_cell(configured(**fields))


@pytest.fixture(scope="module")
def results():
    """One small cell of each method, by method."""
    return {method: run(method=method) for method in METHODS}


REPEATED = ("config", "config_hash", "summary", "rounds", "split", "data", "invariants", "evaluation")
REPEATED += ("flops", "memory", "client_times")
MEASURED = ("seconds", "joules", "memory_bytes", "resident_at_start_bytes")


def without_costs(result):
    """What of a result does not depend on the machine or the moment."""
    kept = copy.deepcopy({key: result[key] for key in REPEATED})
    for part in (kept["summary"], *kept["rounds"]):
        for key in [key for key in part if key.endswith(MEASURED)]:
            del part[key]
        if "steps" in part:
            part["steps"] = part["steps"]["count"]
    return kept


# --- what is in a result -------------------------------------------------------------------------------

TOP = {"status", "config", "config_hash", "summary", "rounds", "split", "environment", "invariants"}
SUMMARY = {
    "accuracy",
    "best_accuracy",
    "zero_shot_accuracy",
    "train_seconds",
    "round_seconds",
    "total_seconds",
    "setup_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "bytes_up",
    "bytes_down",
    "payload_bytes",
    "trainable_parameters",
    "train_flops",
}
ROUND = {"round", "accuracy", "loss", "bytes_up", "bytes_down", "seconds", "peak_memory_bytes"}
PHASES = {"send", "train", "receive", "aggregate", "evaluate"}


@pytest.mark.parametrize("method", METHODS)
def test_a_result_has_every_field_readers_rely_on(results, method):
    result = results[method]
    assert set(result) >= TOP
    assert set(result["summary"]) >= SUMMARY
    assert all(set(record) >= ROUND for record in result["rounds"])
    assert [record["round"] for record in result["rounds"]] == ([0, 1, 2] if method != "zero_shot" else [0])
    assert all(set(record["seconds"]) >= PHASES for record in result["rounds"][1:])
    assert all(set(record["peak_memory_bytes"]) >= PHASES for record in result["rounds"][1:])
    assert result["config_hash"] == RunConfig.read(result["config"]).hash == configured(method=method).hash
    assert result["split"]["client_sizes"] == [25, 25, 25, 25]
    counts = np.array(result["split"]["class_counts"])
    assert counts.shape == (4, len(result["data"]["class_names"]))
    assert counts.sum(axis=1).tolist() == result["split"]["client_sizes"]
    assert (result["data"]["train"], result["data"]["test"]) == (100, 50)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("method", METHODS)
def test_its_figures_agree_with_one_another(results, method):
    result = results[method]
    summary, rounds = result["summary"], result["rounds"]
    accuracies = [record["accuracy"] for record in rounds]
    assert all(0 <= accuracy <= 1 and isclose(accuracy * 50, round(accuracy * 50)) for accuracy in accuracies)
    assert summary["accuracy"] == accuracies[-1]
    assert summary["best_accuracy"] == max(accuracies)
    for direction in ("bytes_up", "bytes_down"):
        assert summary[direction] == sum(record[direction] for record in rounds)
    train = sum(record["seconds"].get("train", 0.0) for record in rounds)
    assert isclose(summary["train_seconds"], train)
    assert summary["peak_memory_bytes"] >= max(max(record["peak_memory_bytes"].values()) for record in rounds)
    assert summary["peak_memory_bytes"] >= 0.99 * summary["resident_at_start_bytes"] > 0
    assert summary["peak_gpu_memory_bytes"] is None
    work = sum(sum(record["seconds"].values()) for record in rounds)
    assert summary["setup_seconds"] + work <= summary["total_seconds"] + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_it_is_kept_and_read_back(results, method, tmp_path):
    path = store.run_path(tmp_path, results[method]["config"], results[method]["config_hash"])
    store.save_run(path, results[method])
    assert store.load_run(path)["summary"] == results[method]["summary"]


def test_round_zero_is_the_method_before_training(results):
    for method in METHODS:
        first = results[method]["rounds"][0]
        assert (first["loss"], first["bytes_up"], first["samples_seen"]) == (None, 0, 0)
        assert set(first["seconds"]) == {"evaluate", "count"}
    for method in ("zero_shot", "flora", "full_finetune", "linear_probe"):  # these start from zero-shot
        assert results[method]["rounds"][0]["accuracy"] == results[method]["summary"]["zero_shot_accuracy"]


@pytest.mark.parametrize("method", TRAINED)
def test_training_sees_every_sample_once_an_epoch(results, method):
    for record in results[method]["rounds"][1:]:
        assert record["samples_seen"] == 100
        assert record["clients"] == (0, 1, 2, 3)
        assert record["refused"] == ()
        assert record["loss"] > 0


def test_zero_shot_trains_and_sends_nothing(results):
    summary = results["zero_shot"]["summary"]
    assert summary["accuracy"] == summary["zero_shot_accuracy"]
    for figure in (
        "bytes_up",
        "bytes_down",
        "payload_bytes",
        "trainable_parameters",
        "train_seconds",
        "refused_uploads",
    ):
        assert summary[figure] == 0
    assert summary["round_seconds"] is None


WORK = {
    "flora.client.step": 100,
    "flora.payload.encode": 1,
    "flora.payload.decode": 1,
    "flora.aggregation.WeightedMean.add": 10,
    "flora.evaluation.predict": 1000,
    "flora.federation.predict": 1000,
    "bench.cell.predict": 7,
    "bench.inputs.load_model": 5,
}


def test_all_work_is_timed_in_its_phase(monkeypatch):
    now = [0]  # moves on when work is done, and by that alone

    def taking(seconds, function):
        def timed(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        return timed

    for name, seconds in WORK.items():
        monkeypatch.setattr(name, taking(seconds, pkgutil.resolve_name(name)))
    monkeypatch.setattr("bench.measure.instruments.Clock", lambda device: Clock(device, clock=lambda: now[0]))
    result = run(method="linear_probe", clients_per_batch=1)

    # four clients of two batches each: a payload is encoded once and decoded by each, then the other way
    in_round = {
        "send": 1 + 4,
        "rest": 0,
        "train": 4 * 2 * 100,
        "receive": 4 + 4,
        "aggregate": 4 * 10,
        "evaluate": 1000,
    }
    timed = [{name: x for name, x in r["seconds"].items() if name not in CHECKS} for r in result["rounds"]]
    assert timed == [{"evaluate": 1000}, in_round, in_round]
    summary = result["summary"]
    assert summary["train_seconds"] == 2 * 800
    assert summary["round_seconds"] == sum(in_round.values())
    assert summary["setup_seconds"] == 7 + 5
    assert summary["total_seconds"] == summary["setup_seconds"] + 1000 + 2 * sum(in_round.values())


# --- the same again, and otherwise ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_same_configuration_gives_the_same_numbers(results, method):
    assert without_costs(run(method=method)) == without_costs(results[method])


@pytest.mark.parametrize("method", TRAINED)
def test_another_batch_order_gives_other_losses_and_nothing_else(results, method):
    other = run(method=method, seed={"order": 1})
    losses = [[record["loss"] for record in r["rounds"]] for r in (other, results[method])]
    assert losses[0] != losses[1]
    assert other["split"] == results[method]["split"]
    assert other["summary"]["bytes_up"] == results[method]["summary"]["bytes_up"]


def test_each_seed_moves_its_own_stream_alone(results):
    base = results["flora"]
    by_init = run(method="flora", seed={"init": 1})
    assert by_init["split"] == base["split"]
    assert by_init["rounds"][0]["accuracy"] == base["rounds"][0]["accuracy"]
    # the first step of all starts from B = 0, where A makes no difference to the loss; later ones differ
    assert by_init["rounds"][2]["loss"] != base["rounds"][2]["loss"]
    by_split = run(method="zero_shot", seed={"split": 1})
    assert by_split["split"]["fingerprint"] != base["split"]["fingerprint"]


def test_participation_draws_the_share_asked_for():
    few = run(method="linear_probe", participation=0.5, rounds=4)
    chosen = [record["clients"] for record in few["rounds"][1:]]
    assert all(len(clients) == 2 for clients in chosen)
    other = run(method="linear_probe", participation=0.5, rounds=4, seed={"participation": 1})
    assert [record["clients"] for record in other["rounds"][1:]] != chosen


def test_the_global_streams_are_left_alone():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for method in METHODS:
        run(method=method, rounds=1, clients=1, data={"max_train": 20, "max_test": 20})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_global_streams_do_not_matter(results):
    torch.manual_seed(9), np.random.seed(9)  # noqa: NPY002
    assert without_costs(run(method="flora")) == without_costs(results["flora"])


@pytest.mark.parametrize("method", METHODS)
def test_acceleration_changes_cost_and_nothing_else(method):
    tiny = {
        "method": method,
        "clients": 2,
        "data": {"max_train": 20, "max_test": 20},
        "model": {"dtype": "float64"},
    }
    exact, plain = run(**tiny), run(**tiny, acceleration="none")
    for ours, theirs in zip(exact["rounds"], plain["rounds"], strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert (ours["bytes_up"], ours["bytes_down"]) == (theirs["bytes_up"], theirs["bytes_down"])
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-8)
    assert exact["config_hash"] != plain["config_hash"]


# --- bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRAINED)
def test_a_payload_is_its_tensors_and_a_small_header(results, method):
    summary, invariant = results[method]["summary"], results[method]["invariants"]["payload_closed_form"]
    assert invariant["holds"]
    assert invariant["payloads"] == 2 * 2 * 4  # both ways, rounds, clients
    assert invariant["tensor_bytes"] == 4 * summary["trainable_parameters"]
    assert summary["payload_bytes"] == invariant["tensor_bytes"] + invariant["header_bytes"]
    tensors = {"linear_probe": 2, "attention_adapter": 4}.get(method)
    if tensors:
        assert 0 < invariant["header_bytes"] <= HEADER_BYTES_PER_TENSOR * tensors
    assert summary["bytes_up"] == summary["bytes_down"] == 8 * summary["payload_bytes"]


def test_payloads_have_the_sizes_of_the_closed_forms(results):
    config = json.loads((tiny.FOLDER / "open_clip_config.json").read_text())
    model = config["model_cfg"]
    text, dim = model["text_cfg"], model["embed_dim"]
    closed = {
        "flora": text["layers"] * 2 * text["width"] * 2,
        "linear_probe": 10 * (dim + 1),
        "attention_adapter": 2 * dim * (dim + 1),
    }
    for method, parameters in closed.items():
        assert results[method]["summary"]["trainable_parameters"] == parameters


def test_double_precision_takes_twice_the_bytes(results):
    double = run(method="linear_probe", model={"dtype": "float64"})
    invariants = [r["invariants"]["payload_closed_form"] for r in (double, results["linear_probe"])]
    assert invariants[0]["tensor_bytes"] == 2 * invariants[1]["tensor_bytes"]
    assert invariants[0]["holds"]


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_payload_that_is_not_of_its_closed_form_stops_the_run(monkeypatch, method, factor):
    cls = load_method(method)
    right = cls.closed_form
    monkeypatch.setattr(cls, "closed_form", lambda self: int(right(self) * factor))
    with pytest.raises(PayloadMismatch, match="payload down in round 1, client 0"):
        run(method=method)


def test_a_tensor_that_should_not_travel_stops_the_run(monkeypatch):
    cls = load_method("flora")
    right = cls.prepare

    def also_the_image_head(self, generator):
        right(self, generator)
        self.clip.vision_head.requires_grad_(True)
        next(self.clip.vision.parameters()).requires_grad_(True)

    monkeypatch.setattr(cls, "prepare", also_the_image_head)
    with pytest.raises(PayloadMismatch):
        run(method="flora")


# --- what it trains on ---------------------------------------------------------------------------------


class Phases(Listener):
    def __init__(self):
        self.names = []

    def phase_started(self, phase):
        self.names.append(phase.name)


@pytest.mark.parametrize(
    ("method", "acceleration", "expected"),
    [
        # of the test images for zero-shot, and of the training images for training
        (
            "flora",
            "exact",
            ["load", "prepare", "features", "zero_shot", "prepare", "features", "check", "prepare"],
        ),
        (
            "full_finetune",
            "exact",
            ["load", "prepare", "features", "zero_shot", "prepare", "decode", "decode", "check"],
        ),
        ("flora", "none", ["load", "prepare", "zero_shot", "prepare", "decode", "check", "prepare"]),
    ],
)
def test_features_are_kept_where_the_image_tower_is_frozen(method, acceleration, expected):
    phases = Phases()
    result = run_cell(configured(method=method, acceleration=acceleration, rounds=0), [phases])
    assert [name for name in phases.names if name != "count"][: len(expected)] == expected
    assert (result["features"] is not None) == (expected.count("features") == 2)
    assert (result["summary"]["extraction_seconds"] is not None) == ("features" in expected)


def test_the_domain_split_gives_each_client_styles_of_its_own():
    result = run(task="glyphs", split="domain", clients=5, rounds=1, method="linear_probe",
                 data={"max_train": 180, "max_test": 72})  # fmt: skip
    assert sum(result["split"]["client_sizes"]) == 180
    assert len(result["data"]["class_names"]) == 36
    with pytest.raises(BadInput, match="domain"):
        check(configured(task="digits", split="domain"))


@pytest.fixture
def folder(tmp_path):
    """Eight images of each of two colours, as PATH/class/image."""
    stream = np.random.default_rng(0)
    for name, colour in (("bright red", (220, 30, 30)), ("dark_blue", (20, 20, 120))):
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = np.clip(np.array(colour) + stream.normal(0, 10, (24, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_folder_of_images_is_a_task(folder):
    result = run(task=f"folder:{folder}", method="linear_probe", clients=2, data={}, rounds=3)
    assert result["data"]["class_names"] == ["bright red", "dark blue"]
    assert result["data"]["train"] + result["data"]["test"] == 16
    assert len(result["rounds"]) == 4


def test_a_relative_folder_starts_at_the_root_which_is_not_in_the_hash(folder):
    at_root = configured(task=f"folder:{folder.name}", data={"root": str(folder.parent)})
    check(at_root)
    assert at_root.hash == configured(task=f"folder:{folder.name}", data={}).hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "digts"}, "task 'digts' is unknown; did you mean 'digits'"),
        ({"task": "folder:/nowhere"}, "task folder:/nowhere names no folder"),
        ({"model": "tyny"}, "model.name: open_clip has no architecture 'tyny'; did you mean 'tiny'"),
        ({"clients": 2000, "data": {}}, "clients"),
        ({"data": {"max_test": 3}}, "data.max_test is 3, but digits has 10 classes"),
        ({"split": {"name": "iid", "shots": 4}, "clients": 40}, "shots"),
    ],
)
def test_what_cannot_be_had_is_refused_before_training(fields, message):
    with pytest.raises(BadInput) as caught:
        check(configured(**fields))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- memory does not grow with the number of clients ---------------------------------------------------

PEAKS = """
import os, sys
import torch
torch.set_num_threads(1)
from bench.config import RunConfig
from bench.cell import run_cell

def peak(method, clients):
    config = RunConfig.read({"method": method, "clients": clients, "rounds": 1, "device": "cpu",
                             "data": {"max_train": 400, "max_test": 20}, "batch_size": 2, "local_steps": 1,
                             "clients_per_batch": 8 if method == "flora" else 1})
    return run_cell(config)["summary"]["peak_memory_bytes"]

def in_child(*cell):
    # a process of its own, so that neither sees what the other left behind
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(peak(*cell)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 64))

print(in_child(sys.argv[1], 10), in_child(sys.argv[1], 200))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("method", ["flora", pytest.param("full_finetune", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_clients(method):
    output = subprocess.run(
        [sys.executable, "-c", PEAKS, method], capture_output=True, text=True, check=True
    ).stdout
    few, many = map(int, output.split())
    assert many < 1.1 * few
