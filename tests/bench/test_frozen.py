"""What frozen towers give: the same numbers whatever is kept, and read by those alone who may."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.cell import Leftovers, run_cell
from bench.config import RunConfig
from bench.frozen import AT_ONCE, FrozenFeatures, kind_of_rows
from bench.inputs import load_inputs
from bench.models import open_clip_config
from bench.tasks.base import ArrayImages
from flora.cache import FeatureCache
from flora.events import Events, Listener
from flora.shelves import Shelf

SMALL = {"rounds": 2, "clients": 3, "batch_size": 8, "data": {"max_train": 50, "max_test": 37}}


def configured(**fields):
    return RunConfig.read({"device": "cpu", **SMALL, **fields})


def run(cache=None, **fields):
    leftovers = Leftovers()
    return run_cell(configured(**fields), leftovers=leftovers, cache=cache), leftovers.weights


def numbers(result, weights):
    rounds = [(r["accuracy"], r["loss"], r["bytes_up"]) for r in result["rounds"]]
    tensors = {name: x.numpy().tobytes() for name, x in weights.items()}
    return rounds, result["summary"]["zero_shot_accuracy"], tensors


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.mark.parametrize("method", ["flora", {"name": "flora", "places": ["vision.out"], "blocks": 1}])
def test_a_cold_a_warm_and_no_cache_give_the_same_to_the_last_bit(method, cache):
    alone = run(method=method)
    cold, warm = run(cache, method=method), run(cache, method=method)
    assert numbers(*cold) == numbers(*warm) == numbers(*alone)
    assert cold[0]["features"]["from_cache"] == 0
    assert warm[0]["features"]["computed"] == 0
    seconds = [result["summary"]["extraction_seconds"] for result, _ in (cold, warm)]
    assert seconds[0] == pytest.approx(seconds[1])


def test_what_other_cells_left_behind_changes_no_bit(cache):
    expected = run()
    run(cache, data={"max_train": 21, "max_test": 10})  # other batches of the same images
    result, weights = run(cache)
    assert 0 < result["features"]["from_cache"] < result["features"]["images"]
    assert numbers(result, weights) == numbers(*expected)


def test_images_that_no_client_has_are_not_computed():
    result, _ = run(split={"name": "iid", "shots": 1}, clients=2)
    assert result["features"]["images"] == 2 * 10 + 37
    assert result["data"]["train"] == 50


def test_one_extraction_serves_methods_splits_and_seeds(cache):
    run(cache)
    for fields in ({"method": "linear_probe"}, {"split": "dirichlet"}, {"seed": {"order": 3, "init": 1}}):
        assert run(cache, **fields)[0]["features"]["computed"] == 0


def poison(cache):
    """Put rows that are whole but wrong into the cache, for all images of the small runs."""
    inputs = load_inputs(configured())
    kind = kind_of_rows(configured(), inputs.sources["model"], open_clip_config("tiny"))
    frozen = FrozenFeatures(inputs.model.clip, kind, cache, Events())
    generator = torch.Generator().manual_seed(0)
    frozen._compute = lambda part, stage: (
        lambda batches: (
            torch.randn(len(indices), inputs.model.clip.dim, generator=generator) for indices in batches
        )
    )
    for part in (inputs.train, inputs.test):
        frozen.of(part)


@pytest.mark.parametrize("method", ["full_finetune", "vision_finetune"])
def test_a_method_that_trains_the_image_tower_reads_no_kept_features(method, cache):
    expected, weights = run(method=method)
    poison(cache)
    found, with_poison = run(cache, method=method)
    assert [r["accuracy"] for r in found["rounds"]] == [r["accuracy"] for r in expected["rounds"]]
    assert all(torch.equal(with_poison[name], tensor) for name, tensor in weights.items())
    assert found["features"] is None
    # the poison is there: the zero-shot accuracy beside it, of the frozen model, is read from it
    assert found["summary"]["zero_shot_accuracy"] < expected["summary"]["zero_shot_accuracy"]


@pytest.mark.parametrize("acceleration", ["exact", "none"])
def test_poison_changes_a_method_that_may_read_it_and_none_that_is_unaccelerated(acceleration, cache):
    expected = run(acceleration=acceleration)
    poison(cache)
    assert (numbers(*run(cache, acceleration=acceleration)) == numbers(*expected)) == (acceleration == "none")


def test_adapters_in_the_last_blocks_train_on_what_enters_them(cache):
    method = {"name": "flora", "places": ["vision.out", "text.out"], "blocks": 1}
    plain, expected = run(acceleration="none", method=method)
    result, weights = run(cache, method=method)
    assert result["features"]["stage"] == "block 4 of 4"
    assert [r["accuracy"] for r in result["rounds"]] == [r["accuracy"] for r in plain["rounds"]]
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=1e-4, atol=1e-6)
    assert set(weights) == {name for name in weights if ".resblocks.3." in name or ".resblocks.2." in name}


def test_what_takes_too_much_room_is_not_kept(monkeypatch, cache):
    monkeypatch.setattr("bench.frozen.KEPT_BYTES", 100)
    method = {"name": "flora", "places": ["vision.out"], "blocks": 1}
    assert run(method=method, rounds=1)[0]["features"] is None
    assert run(cache, method=method, rounds=1)[0]["features"]["stage"] == "block 4 of 4"  # stays in its files
    cache.limit_bytes = 1000
    assert run(cache, method=method, rounds=1)[0]["features"] is None


class Advances(Listener):
    def __init__(self):
        self.heard = []

    def advanced(self, phase, done, total):
        self.heard.append((phase.name, done, total))


@pytest.mark.parametrize("kept", [True, False])
def test_progress_is_told(kept, cache):
    advances = Advances()
    run_cell(configured(rounds=0), [advances], cache=cache if kept else None)
    assert advances.heard[-1] == ("features", 50, 50)
    assert ("features", AT_ONCE, 37) in advances.heard  # of the test images


# --- the key -------------------------------------------------------------------------------------------


KIND = {"weights": "abc", "model": {"model_cfg": {}, "preprocess_cfg": {"size": 32}}, "fields": {}}
OTHERS = [
    {"weights": "abd"},
    {"model": {"model_cfg": {}, "preprocess_cfg": {"size": 33}}},
    {"model": {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"size": 32}}},
    {"fields": {"model": {"dtype": "float64"}}},
    {"fields": {"compute": {"threads": 3}}},
    {"fields": {"compute": {"matmul_precision": "high"}}},
]


def shelf(tmp_path, weights, model, fields):
    return Shelf.of(tmp_path, kind_of_rows(configured(**fields), weights, model)).path


@pytest.mark.parametrize("other", OTHERS, ids=json.dumps)
def test_weights_preprocessing_and_precision_are_part_of_the_key(other, tmp_path):
    assert shelf(tmp_path, **KIND) == shelf(tmp_path, **KIND)
    assert shelf(tmp_path, **{**KIND, **other}) != shelf(tmp_path, **KIND)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    before=st.binary(min_size=12, max_size=12),
    position=st.integers(0, 11),
    change=st.integers(1, 255),
)
def test_a_change_of_any_pixel_changes_the_digest(before, position, change):
    pixels = np.frombuffer(before, dtype=np.uint8).reshape(1, 2, 2, 3).copy()
    digest = ArrayImages(pixels).digest(0)
    pixels.reshape(-1)[position] ^= change
    assert ArrayImages(pixels).digest(0) != digest


def test_a_file_that_is_written_anew_is_another_image(tmp_path, cache):
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.bmp")
    fields = {"task": f"folder:{tmp_path / 'images'}", "data": {}, "clients": 2, "rounds": 0}
    first, _ = run(cache, **fields)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "cat" / "3.bmp")
    again, _ = run(cache, **fields)
    assert (first["features"]["computed"], again["features"]["computed"]) == (16, 1)
