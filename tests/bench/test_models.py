"""Models load by name with what their inputs need, and leave the global random streams alone."""

import random

import numpy as np
import open_clip
import pytest
import torch

from bench.config import Model
from bench.images import Pixels
from bench.models import check_name, load_model
from bench.tasks import load_task
from flora.errors import BadInput

SMALL_ARCHITECTURE = "ViT-S-32-alt"  # 43 million parameters, half a second

needs_small_architecture = pytest.mark.skipif(
    SMALL_ARCHITECTURE not in open_clip.list_models(), reason=f"this open_clip has no {SMALL_ARCHITECTURE}"
)


@pytest.fixture(scope="module")
def tiny():
    return load_model(Model(), "cpu")


@pytest.fixture(scope="module")
def small():
    return load_model(Model(name=f"{SMALL_ARCHITECTURE}:random"), "cpu")


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32:random", f"{SMALL_ARCHITECTURE}:random"])
def test_a_name_that_can_be_loaded_passes(name):
    check_name(name)


BAD_NAMES = [
    ("tyny", "model.name: open_clip has no architecture 'tyny'; did you mean 'tiny'?"),
    ("ViT-B-23:random", "model.name: open_clip has no architecture 'ViT-B-23'; did you mean 'ViT-B-"),
    ("", "model.name: open_clip has no architecture ''"),
    ("ViT-B-32", "model.name: 'ViT-B-32' must be 'tiny' or 'ViT-B-32:random'"),
    ("ViT-B-32:", "model.name: 'ViT-B-32:' must be 'tiny' or 'ViT-B-32:random'"),
    ("ViT-B-32:openai", "model.name: 'ViT-B-32:openai' must be 'tiny' or 'ViT-B-32:random'"),
    ("tiny:random", "model.name: 'tiny:random' must be 'tiny'"),
    ("tiny:", "model.name: 'tiny:' must be 'tiny'"),
]


@pytest.mark.parametrize(("name", "message"), BAD_NAMES, ids=[repr(name) for name, _ in BAD_NAMES])
def test_a_name_that_cannot_be_loaded_is_refused_in_one_line(name, message):
    with pytest.raises(BadInput) as caught:
        check_name(name)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_loading_checks_the_name():
    with pytest.raises(BadInput, match="did you mean 'tiny'"):
        load_model(Model(name="tyny"), "cpu")


# --- the embedded model --------------------------------------------------------------------------------


def test_tiny_arrives_frozen_and_small(tiny):
    assert not any(p.requires_grad for p in tiny.clip.parameters())
    assert sum(p.numel() for p in tiny.clip.parameters()) < 2_000_000
    assert all(p.isfinite().all() for p in tiny.clip.parameters())


def test_tiny_tells_digits_apart_untrained(tiny):
    task = load_task("digits")
    pixels = Pixels(task.test.images, tiny.preprocess, torch.float32)
    with torch.inference_mode():
        images = torch.nn.functional.normalize(tiny.clip.encode_image(pixels[torch.arange(200)]), dim=-1)
        texts = torch.nn.functional.normalize(tiny.clip.encode_text(tiny.tokenize(task.prompts)), dim=-1)
    right = (images @ texts.T).argmax(dim=-1).numpy() == task.test.labels[:200]
    assert right.mean() > 0.25  # chance is 0.1


def test_tiny_is_the_same_each_time_and_changes_with_nobody_else(tiny):
    again = load_model(Model(), "cpu")
    with torch.no_grad():
        again.clip.logit_scale += 1
    third = load_model(Model(), "cpu").clip.state_dict()
    for name, tensor in tiny.clip.state_dict().items():
        assert torch.equal(tensor, third[name])


def test_double_precision_holds_the_same_values(tiny):
    double = load_model(Model(dtype="float64"), "cpu").clip.state_dict()
    for name, tensor in tiny.clip.state_dict().items():
        if tensor.is_floating_point():
            assert double[name].dtype == torch.float64
            assert torch.equal(double[name].float(), tensor)


def test_its_inputs_fit_it(tiny):
    image = tiny.preprocess(load_task("digits").train.images[0])
    tokens = tiny.tokenize(["a photo of the number 3.", "x"])
    assert image.dtype == torch.float32
    assert image.shape[0] == 3
    with torch.inference_mode():
        assert tiny.clip.encode_image(image[None]).shape == (1, tiny.clip.dim)
        assert tiny.clip.encode_text(tokens).shape == (2, tiny.clip.dim)


def test_preprocessing_draws_nothing_at_random(tiny):
    image = load_task("digits").train.images[0]
    assert torch.equal(tiny.preprocess(image), tiny.preprocess(image))


# --- random weights ------------------------------------------------------------------------------------


@needs_small_architecture
def test_random_weights_are_the_same_whatever_the_global_stream(small):
    torch.manual_seed(123)
    again = load_model(Model(name=f"{SMALL_ARCHITECTURE}:random"), "cpu").clip.state_dict()
    for name, tensor in small.clip.state_dict().items():
        assert torch.equal(tensor, again[name])


@needs_small_architecture
@pytest.mark.parametrize("name", ["tiny", f"{SMALL_ARCHITECTURE}:random"])
def test_loading_leaves_the_global_streams_alone(name):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    load_model(Model(name=name), "cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@needs_small_architecture
def test_an_open_clip_architecture_comes_whole(small):
    assert not any(p.requires_grad for p in small.clip.parameters())
    image = small.preprocess(load_task("digits").train.images[0])
    with torch.inference_mode():
        assert small.clip.encode_image(image[None]).isfinite().all()
        assert small.clip.encode_text(small.tokenize(["a photo of a cat."])).isfinite().all()
