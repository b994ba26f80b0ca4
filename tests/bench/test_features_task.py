"""Precomputed features: the task, what stands for its model, the file's every refusal."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file

from bench.config import Model
from bench.tasks import load_task
from bench.tasks.features import (
    FeatureRows,
    feature_rows,
    load_precomputed,
    precomputed_clip,
    precomputed_prompts,
    write_features,
)
from flora.clip import ENCODED
from flora.errors import BadInput
from flora.features import Batch, Samples
from flora.method import METHODS
from tests.flora import toy  # noqa: F401 (registers every baseline)

CLASSES, DIM = 5, 6
NAMES = ["ant", "bee", "cow", "dog", "eel"]


def content(seed=0, dtype=torch.float32, domains=False):
    """Features around their class's embedding: 40 rows for training and 20 for testing."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(CLASSES, DIM, generator=generator)
    tensors = {"classes": classes}
    for part, count in (("train", 40), ("test", 20)):
        labels = torch.arange(count) % CLASSES
        noise = 0.3 * torch.randn(count, DIM, generator=generator)
        tensors |= {f"{part}.features": (classes[labels] + noise).to(dtype), f"{part}.labels": labels}
        if domains:
            tensors[f"{part}.domains"] = torch.arange(count) // CLASSES % 2
    return tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.safetensors"


def write(path, tensors=None, **more):
    write_features(path, content() if tensors is None else tensors, NAMES, **more)
    return load_task(f"features:{path}")


# --- the task -------------------------------------------------------------------------------------------


def test_features_labels_and_names_come_back_as_they_were_written(path):
    task = write(path, template="a photo of a {}.", model="ViT-B-32:openai", name="pets")
    tensors = content()
    assert task.class_names == tuple(NAMES)
    assert task.prompts[0] == "a photo of a ant."
    for name, part in (("train", task.train), ("test", task.test)):
        assert torch.equal(feature_rows(part), tensors[f"{name}.features"])
        assert np.array_equal(part.labels, tensors[f"{name}.labels"].numpy())
        assert part.domains is None
    file = task.train.images.file
    assert (file.model, file.name, file.logit_scale) == ("ViT-B-32:openai", "pets", 100.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_kept_and_has_a_fingerprint(path, dtype):
    task = write(path, content(dtype=dtype))
    assert feature_rows(task.train).dtype == dtype
    assert len(task.fingerprint) == 64


def test_views_of_every_kind_give_the_rows_of_their_images(path):
    task = write(path, content(domains=True), domain_names=["indoors", "outdoors"])
    every = torch.cat([feature_rows(task.train), feature_rows(task.test)])
    chosen = task.train.select([7, 3, 3]).select([2, 0])
    assert torch.equal(feature_rows(chosen), every[[3, 7]])
    drawn = task.redrawn(0)
    assert torch.equal(feature_rows(drawn.test), every[drawn.test.images.indices])
    left = task.leaving_out("outdoors")
    assert torch.equal(feature_rows(left.test), every[left.test.images.indices])
    assert len(left.train) == len(left.test) == 30
    new = task.base_and_new()[1]
    assert torch.equal(feature_rows(new.test), every[40:][task.test.labels >= 3])
    assert feature_rows(load_task("digits").train) is None
    assert feature_rows(load_task("digits").redrawn(0).train) is None


def test_rows_are_mapped_from_the_disk_and_not_copied(path):
    """What is written into the file behind the tensor's back shows in the tensor."""
    task = write(path)
    row = feature_rows(task.train)[:1].clone()
    raw = path.read_bytes()
    at = raw.index(row.numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(np.full(DIM, 7, np.float32).tobytes())
    assert torch.equal(feature_rows(task.train)[0], torch.full((DIM,), 7.0))


def test_there_are_no_pixels_and_nothing_to_verify(path):
    task = write(path)
    with pytest.raises(BadInput, match="holds features and no pixels"):
        task.train.images[0]
    assert task.verified().without_damaged() == (task, 0)


def test_the_fingerprint_sees_rows_class_embeddings_and_the_factor(tmp_path):
    def fingerprint(change=lambda tensors: None, **more):
        tensors = content()
        change(tensors)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_features(folder / "f.safetensors", tensors, NAMES, **more)
        return load_task("features:f.safetensors", root=str(folder)).fingerprint

    def add(key):
        return lambda tensors: tensors[key][1].add_(1)

    prints = [
        fingerprint(),
        *(fingerprint(add(key)) for key in ("train.features", "test.features", "classes")),
        fingerprint(logit_scale=50),
        fingerprint(template="a {}"),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == prints[0]


def test_domains_without_names_are_numbered(path):
    assert write(path, content(domains=True)).domain_names == ("domain 0", "domain 1")


def test_domains_without_names_are_those_that_occur_however_large_their_numbers(path):
    tensors = content(domains=True)
    for part in ("train", "test"):
        tensors[f"{part}.domains"] = tensors[f"{part}.domains"] * 10**12 + 7
    task = write(path, tensors)
    assert task.domain_names == ("domain 7", "domain 1000000000007")
    assert task.train.domains.tolist() == content(domains=True)["train.domains"].tolist()
    assert len(task.leaving_out("domain 7").test) == 30


def test_a_file_is_searched_for_numbers_that_are_not_finite_once_and_again_when_it_changes(path, monkeypatch):
    searched = []
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda *given: searched.append(given) or split(*given))
    write(path)
    assert len(searched) == 3  # train, test, classes
    load_task(f"features:{path}")
    precomputed_clip(path)
    assert len(searched) == 3
    tensors = content()
    tensors["train.features"][0, 0] = torch.inf
    with pytest.raises(BadInput, match="not finite"):
        write(path, tensors, name="of another size")


def test_a_relative_path_starts_at_the_data_root_or_the_folder_of_the_environment(path, monkeypatch):
    write(path)
    assert len(load_task("features:set.safetensors", root=str(path.parent)).train) == 40
    monkeypatch.setenv("FLORA_BENCH_DATA", str(path.parent))
    assert load_precomputed("set.safetensors", None, Model(name="precomputed"), "cpu").clip.dim == DIM


# --- what stands for the model --------------------------------------------------------------------------


def test_the_clip_gives_rows_and_class_embeddings_as_they_are(path):
    task = write(path, logit_scale=42.0)
    clip, prompts = precomputed_clip(path), precomputed_prompts(task)
    tensors = content()
    assert clip.dim == DIM
    assert not clip.reads_prompt_at_end
    assert torch.equal(clip.encode_image(tensors["train.features"]), tensors["train.features"])
    assert torch.equal(clip.encode_text(prompts.tokens), tensors["classes"])
    assert clip.logit_scale.exp().item() == pytest.approx(42)
    assert sum(p.numel() for p in clip.parameters()) == 1  # the logit scale
    assert prompts.texts == tuple(NAMES)


def test_class_embeddings_follow_the_classes_into_every_view(path):
    task = write(path)
    clip, classes = precomputed_clip(path), content()["classes"]
    base, new = task.base_and_new()
    assert torch.equal(clip.encode_text(precomputed_prompts(base).tokens), classes[:3])
    assert torch.equal(clip.encode_text(precomputed_prompts(new).tokens), classes[3:])
    turned = replace(task, class_names=task.class_names[::-1]).redrawn(0)
    assert torch.equal(clip.encode_text(precomputed_prompts(turned).tokens), classes.flip(0))
    assert precomputed_prompts(load_task("digits")) is None


def test_a_loaded_model_has_the_precision_asked_for_and_takes_neither_images_nor_texts(path):
    write(path)
    model = load_precomputed(str(path), None, Model(name="precomputed", dtype="float64"), "cpu")
    assert model.clip.text.embeddings.dtype == model.clip.logit_scale.dtype == torch.float64
    assert not any(p.requires_grad for p in model.clip.parameters())
    with pytest.raises(BadInput, match="no pixels"):
        model.preprocess(None)
    with pytest.raises(BadInput, match="holds no model that could read the prompt 'a cat'"):
        model.tokenize(["a cat"])


def built(name, path, task, acceleration="exact"):
    method = METHODS[name]
    clip, prompts = precomputed_clip(path), precomputed_prompts(task)
    options = method.Options(name=name)
    return method(clip, prompts, options, torch.Generator().manual_seed(0), acceleration)


@pytest.mark.parametrize("acceleration", ["exact", "none"])
@pytest.mark.parametrize("encoded", [False, True])
def test_zero_shot_is_the_nearest_class_embedding(path, acceleration, encoded):
    task = write(path, logit_scale=10.0)
    method = built("zero_shot", path, task, acceleration)
    rows = feature_rows(task.test)
    batch = Batch(rows, torch.from_numpy(task.test.labels), ENCODED if encoded else 0)
    cosine = F.normalize(rows, dim=-1) @ F.normalize(content()["classes"], dim=-1).T
    torch.testing.assert_close(method.logits(batch, method.classifier()), 10 * cosine)


@pytest.mark.parametrize("name", ["linear_probe", "attention_adapter"])
def test_methods_on_frozen_towers_start_and_learn_on_features_alone(path, name):
    task = write(path)
    method = built(name, path, task)
    samples = Samples(None, torch.from_numpy(task.train.labels), feature_rows(task.train))
    batch = samples.batch(torch.arange(len(samples)))
    assert sum(p.numel() for p in method.trainable.values()) == method.closed_form()
    optimizer = torch.optim.Adam(method.trainable.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(method(batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


# --- refusals -------------------------------------------------------------------------------------------


def spoiled(path, change, **metadata):
    """Write a file that `write_features` would refuse, and give what is said of it."""
    tensors = content(domains=True)
    change(tensors)
    whole = {"class_names": json.dumps(NAMES), **metadata}
    save_file(tensors, path, {key: value for key, value in whole.items() if value is not None})
    with pytest.raises(BadInput) as caught:
        load_task(f"features:{path}")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def put(key, value):
    return lambda tensors: tensors.update({key: value})


def nothing(tensors):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("test.labels"), "test.labels of .* is missing; did you mean 'train.labels'"),
        (lambda t: t.pop("classes"), "classes of .* is missing"),
        (lambda t: t.pop("test.domains"), "test.domains of .* is missing"),
        (put("train.features", torch.ones(40)), r"train.features of .* is float32 of shape \(40,\); must be"),
        (put("train.features", torch.ones(40, 6, dtype=torch.int64)), "train.features of .* is int64"),
        (put("test.features", torch.ones(0, 6)), r"test.features of .* of shape \(0, 6\)"),
        (put("test.features", torch.ones(20, 7)), "test.features of .* has rows of 7 numbers; must have 6"),
        (put("classes", torch.ones(5, 7)), "classes of .* has rows of 7 numbers; must have 6"),
        (put("classes", torch.full((5, 6), torch.nan)), "classes of .* holds a number that is not finite"),
        (put("train.features", torch.full((40, 6), torch.inf)), "train.features of .* is not finite"),
        (put("train.labels", torch.ones(40)), r"train.labels of .* is float32 .* whole numbers of shape"),
        (put("train.labels", torch.ones(40, dtype=torch.bool)), "train.labels of .* is bool"),
        (put("train.labels", torch.zeros(39, dtype=torch.int64)), "has 39 numbers for 40 rows of features"),
        (
            put("test.labels", torch.full((20,), 5)),
            "test.labels of .* holds 5; must be 0 to 4, as there are 5",
        ),
        (put("test.labels", torch.full((20,), -1)), "test.labels of .* holds -1"),
        (put("test.domains", torch.full((20,), -1)), "test.domains of .* holds -1; must be 0 or more"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_the_file(path, change, message):
    assert re.search(message, spoiled(path, change))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"class_names": None}, "metadata class_names of .* has 0 names for 5 rows of classes"),
        ({"class_names": '["a"]'}, "has 1 names for 5 rows of classes; give one a row"),
        ({"class_names": "ant, bee"}, "metadata class_names of .* is no JSON list of texts"),
        ({"class_names": "[1, 2, 3, 4, 5]"}, "is no JSON list of texts"),
        (
            {"domain_names": '["x"]'},
            "train.domains of .* holds 1; must be 0 to 0, as there are 1 domain_names",
        ),
        ({"logit_scale": "hot"}, "metadata logit_scale of .* is 'hot'; must be a number above 0"),
        ({"logit_scale": "-1"}, "is '-1'; must be"),
        ({"logit_scale": "nan"}, "is 'nan'; must be"),
        ({"logit_scale": "inf"}, "is 'inf'; must be"),
        ({"template": "a photo"}, "metadata template of .* is 'a photo'; must hold one {} for"),
        ({"template": "{} {kind}"}, "metadata template of"),
    ],
)
def test_metadata_that_does_not_fit_is_named_with_the_file(path, metadata, message):
    assert re.search(message, spoiled(path, nothing, **metadata))


def test_class_names_given_twice_are_refused(path):
    message = spoiled(path, nothing, class_names=json.dumps(["ant", "ant", "c", "d", "e"]))
    assert "two classes called 'ant'" in message


def test_one_non_finite_number_in_the_last_of_many_rows_is_found(path, monkeypatch):
    monkeypatch.setattr("bench.tasks.features.ROWS_AT_ONCE", 7)
    tensors = content()
    tensors["train.features"][-1, -1] = torch.nan
    with pytest.raises(BadInput, match="not finite"):
        write(path, tensors)


@pytest.mark.parametrize("raw", [b"", b"no safetensors at all", b"\x10" + b"\x00" * 7 + b"{" * 16])
def test_what_is_no_safetensors_file_is_refused(path, raw):
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=f"{path} cannot be read as safetensors"):
        load_task(f"features:{path}")


def test_a_file_cut_short_is_refused(path):
    write(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        load_task(f"features:{path}")


def test_a_missing_file_is_refused(path):
    for given in (path, path.parent):
        with pytest.raises(BadInput, match=f"{given} is no file"):
            load_task(f"features:{given}")


def test_a_written_file_is_whole(path):
    write(path, content(domains=True))
    assert set(load_file(path)) == set(content(domains=True))
    assert isinstance(load_task(f"features:{path}").train.images, FeatureRows)
