"""Models load by name with what their inputs need, or are refused in a line; no test needs a network."""

import contextlib
import hashlib
import json
import pickle
import random
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, RobertaConfig

from bench import models
from bench import tiny as embedded
from bench import weights as hub
from bench.config import Model
from bench.images import Pixels
from bench.models import (
    check_name,
    checkpoint_state,
    describe_models,
    fetch_model,
    load_model,
    model_fingerprint,
    open_clip_config,
)
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


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32:random", "ViT-B-32:openai", "ViT-B-16-SigLIP:webli"])
def test_a_name_that_can_be_loaded_passes(name):
    check_name(name)


BAD_NAMES = [
    ("tyny", "model.name: open_clip has no architecture 'tyny'; did you mean 'tiny'?"),
    ("ViT-B-23:random", "model.name: open_clip has no architecture 'ViT-B-23'; did you mean 'ViT-B-"),
    ("vit-l-14:openai", "model.name: open_clip has no architecture 'vit-l-14'; did you mean 'ViT-L-14'?"),
    ("vit-b-32:random", "model.name: open_clip has no architecture 'vit-b-32'; did you mean 'ViT-B-32'?"),
    ("", "model.name: open_clip has no architecture ''; see `flora-bench list models`"),
    ("ViT-B-32", "model.name: 'ViT-B-32' does not say which weights; it must be 'tiny', "),
    ("ViT-B-32:", "model.name: 'ViT-B-32:' does not say which weights; it must be 'tiny', "),
    (
        "ViT-B-32:opneai",
        "model.name: open_clip has no weights 'opneai' of 'ViT-B-32'; did you mean 'openai'?",
    ),
    ("ViT-B-32:webli", "model.name: open_clip has no weights 'webli' of 'ViT-B-32'; see "),
    (
        "ViT-S-32:openai",
        "model.name: open_clip has no published weights of 'ViT-S-32', such as 'openai'; give ",
    ),
    ("ViT-B-32:/no/such.pt", "model.name: there is no file '/no/such.pt' to read weights from"),
    ("ViT-B-32:such.safetensors", "model.name: there is no file 'such.safetensors' to read weights from"),
    ("ViT-B-32:/no/such.npz", "model.name: '/no/such.npz' must end in one of .safetensors, .pt, .pth, .bin"),
    ("/no/such.json:random", "model.name: there is no config file '/no/such.json'"),
    ("/no/such.json", "model.name: '/no/such.json' does not say which weights"),
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


def test_every_random_weight_of_a_caption_decoder_is_drawn(toys):
    torch.use_deterministic_algorithms(True)  # memory that nobody has written holds nan then
    try:
        state = models._random_model(models._parse("toy-coca:random")).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in state.values())


# --- what is asked of open_clip ------------------------------------------------------------------------


def test_every_architecture_is_listed_with_its_tags():
    listed = describe_models()
    assert set(open_clip.list_models()) < set(listed)
    assert "openai, laion400m_e31" in listed["ViT-B-32"]
    for architecture, tag in open_clip.list_pretrained():
        assert tag in listed[architecture].split(", ")
        check_name(f"{architecture}:{tag}")


def test_published_weights_get_their_activation_and_preprocessing():
    for architecture, tag in open_clip.list_pretrained():
        published = open_clip.get_pretrained_cfg(architecture, tag)
        config = open_clip_config(f"{architecture}:{tag}")
        if published.get("quick_gelu"):
            assert config["model_cfg"]["quick_gelu"]
        for setting in ("mean", "std", "interpolation", "resize_mode"):
            assert config["preprocess_cfg"][setting] == published[setting], (architecture, tag)
    assert open_clip_config("ViT-B-32:openai")["model_cfg"]["quick_gelu"]
    assert not open_clip_config("ViT-B-32:laion2b_e16")["model_cfg"].get("quick_gelu")
    assert open_clip_config("ViT-L-14-336:openai")["preprocess_cfg"]["size"] == 336


def test_a_local_file_is_preprocessed_as_the_published_ones_of_its_architecture():
    # SigLIP's images are not normalised as CLIP's are
    assert open_clip_config("ViT-B-16-SigLIP:random")["preprocess_cfg"]["mean"] == (0.5, 0.5, 0.5)
    # of ViT-L-14's some are, some are not: open_clip's default
    default = open_clip_config("ViT-L-14:random")["preprocess_cfg"]
    assert default["mean"] == open_clip.OPENAI_DATASET_MEAN


# --- small architectures, as if they were open_clip's --------------------------------------------------

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 16, "width": 24, "heads": 2, "layers": 2},
}
CONFIGS = {
    "toy": SMALL,
    "toy-quickgelu": {**SMALL, "quick_gelu": True},
    "toy-custom": {**SMALL, "custom_text": True, "init_logit_bias": -10},
    "toy-wide": {**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "width": 48}},
    "toy-coca": {
        **SMALL,
        "custom_text": True,
        "text_cfg": {**SMALL["text_cfg"], "embed_cls": True, "output_tokens": True},
        "vision_cfg": {**SMALL["vision_cfg"], "attentional_pool": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
    },
    "toy-words": {**SMALL, "text_cfg": {**SMALL["text_cfg"], "hf_tokenizer_name": "somebody/words"}},
    "toy-language": {**SMALL, "text_cfg": {"hf_model_name": "somebody/language"}},
}
PUBLISHED = {
    "hf_hub": "somebody/toy/",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "quick_gelu": True,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory, monkeypatch):
    """An empty cache of the hub, which is out of reach."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def toys(monkeypatch):
    for name, config in CONFIGS.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "toy", {"published": PUBLISHED})


def made(name):
    """An open_clip model of a toy architecture with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return open_clip.create_model(name).eval()


def saved(state, file):
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)
    return file


def cached(state, cache, repository="somebody/toy", name="open_clip_model.safetensors"):
    """Put a file where the hub's library would have put it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    return saved(state, folder / "snapshots" / "c0ffee" / name)


def refusal(name):
    with pytest.raises(BadInput) as caught:
        load_model(Model(name=name), "cpu")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def assert_computes_as(loaded, model):
    tokens = loaded.tokenize(["a photo of a cat.", "x"])
    with torch.no_grad():
        assert torch.allclose(loaded.clip.encode_image(IMAGES), model.encode_image(IMAGES), atol=1e-5)
        assert torch.allclose(loaded.clip.encode_text(tokens), model.encode_text(tokens), atol=1e-5)
    assert torch.equal(loaded.clip.logit_scale, model.logit_scale)


# --- local checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("name", ["toy", "toy-custom"])
def test_a_local_checkpoint_computes_what_open_clips_model_does(toys, tmp_path, name, suffix):
    model = made(name)
    file = saved(model.state_dict(), tmp_path / f"weights{suffix}")
    loaded = load_model(Model(name=f"{name}:{file}"), "cpu")
    assert_computes_as(loaded, model)
    assert not any(p.requires_grad for p in loaded.clip.parameters())
    assert (loaded.clip.logit_bias is None) == (name == "toy")
    assert model_fingerprint(f"{name}:{file}") == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["toy", "toy-custom", "toy-coca"])
def test_the_weights_of_a_file_come_without_a_model_of_random_ones_beside_them(
    toys, tmp_path, monkeypatch, name, suffix
):
    monkeypatch.setattr(models, "RANDOM_WEIGHTS_SEED", 1)
    whole = models._random_model(models._parse(f"{name}:random"))
    file = saved(whole.state_dict(), tmp_path / f"weights{suffix}")
    read, kept = [], models.read_tensors

    def reading(file):
        tensors = kept(file)
        read.extend(tensor.data_ptr() for tensor in tensors.values())
        return tensors

    monkeypatch.setattr(models, "read_tensors", reading)
    monkeypatch.setattr(models, "RANDOM_WEIGHTS_SEED", 0)
    loaded = models._build(models._parse(f"{name}:{file}"))
    assert {p.data_ptr() for p in loaded.parameters()} <= set(read)
    # buffers that do not come with the weights have been computed all the same
    tensors = {**dict(loaded.named_buffers()), **loaded.state_dict()}
    expected = {**dict(whole.named_buffers()), **whole.state_dict()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[x], expected[x]) for x in expected)


def test_a_checkpoint_in_half_precision_is_computed_with_in_full(toys, tmp_path):
    model = made("toy").half()
    file = saved(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(Model(name=f"toy:{file}"), "cpu")
    assert {p.dtype for p in loaded.clip.parameters()} == {torch.float32}
    assert_computes_as(loaded, model.float())


@pytest.mark.parametrize("failing", [False, True])
def test_modules_built_afterwards_have_memory(failing):
    with contextlib.suppress(RuntimeError), models._parameters_without_memory():
        assert torch.nn.Linear(2, 2).weight.is_meta
        if failing:
            raise RuntimeError("planted")
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_a_checkpoint_of_open_clips_training_is_read(toys, tmp_path):
    model = made("toy")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    file = saved({"epoch": 3, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_3.pt")
    assert_computes_as(load_model(Model(name=f"toy:{file}"), "cpu"), model)


def test_the_fingerprint_follows_the_file(toys, tmp_path):
    file = saved(made("toy").state_dict(), tmp_path / "weights.safetensors")
    before = model_fingerprint(f"toy:{file}")
    saved({**made("toy").state_dict(), "logit_scale": torch.tensor(1.0)}, file)
    assert model_fingerprint(f"toy:{file}") != before


def test_a_checkpoint_of_another_architecture_is_refused_by_its_first_tensors(toys, tmp_path):
    file = saved(made("toy").state_dict(), tmp_path / "weights.pt")
    message = refusal(f"toy-wide:{file}")
    assert message.startswith(
        f"model.name: '{file}' holds no weights of 'toy-wide': visual.class_embedding is (32,), not (48,); "
        "visual.positional_embedding is (5, 32), not (5, 48); visual.proj is (32, 16), not (48, 16); and "
    )


def test_missing_and_superfluous_weights_are_named(toys, tmp_path):
    state = made("toy").state_dict()
    del state["visual.proj"]
    file = saved(state | {"visual.extra": torch.zeros(2)}, tmp_path / "weights.pt")
    assert refusal(f"toy:{file}").endswith(
        "of 'toy': visual.proj is missing; visual.extra has no place in it"
    )


class Code:
    """A pickle that leaves a trace when it is read as one."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(toys, tmp_path, legacy):
    file, trace = tmp_path / "weights.pt", tmp_path / "trace"
    if legacy:
        file.write_bytes(pickle.dumps(Code(trace)))
    else:
        torch.save({"visual.proj": torch.zeros(2), "x": Code(trace)}, file)
    assert refusal(f"toy:{file}").startswith(f"model.name: '{file}' is refused, for it cannot be read as ")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()  # it would have been seen


def test_a_torchscript_archive_is_refused(toys, tmp_path):
    file = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    message = refusal(f"toy:{file}")
    assert "is a TorchScript archive, which holds code and is refused" in message
    assert "'ViT-B-32:openai'" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80"])
def test_a_broken_file_is_refused(toys, tmp_path, suffix, content):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    assert str(file) in refusal(f"toy:{file}")


def test_half_a_file_is_refused(toys, tmp_path):
    for file in (tmp_path / "weights.safetensors", tmp_path / "weights.pt"):
        saved(made("toy").state_dict(), file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert str(file) in refusal(f"toy:{file}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_the_system_does_not_give_is_refused_for_its_reason(toys, tmp_path, monkeypatch, suffix):
    file = tmp_path / f"weights{suffix}"
    file.mkdir()  # which nobody may read as a file, not even root
    with pytest.raises(BadInput, match="cannot be read: ") as caught:
        hub.read_tensors(file)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(BadInput, match=r"cannot be read: Is a directory$"):
        model_fingerprint(f"toy:{file}")


def test_an_archive_that_is_not_whole_is_refused(toys, tmp_path):
    file = tmp_path / "weights.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    content = bytearray(file.read_bytes())
    content[-10:-6] = (10**6).to_bytes(4, "little")  # how long the list of its files is said to be
    file.write_bytes(content)
    assert zipfile.is_zipfile(file)
    assert "is no whole archive of tensors: " in refusal(f"toy:{file}")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], {"a": 1}, torch.zeros(2), {1: torch.zeros(2)}],
    ids=["list", "number", "tensor", "key"],
)
def test_a_file_without_tensors_by_name_is_refused(toys, tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    assert refusal(f"toy:{tmp_path / 'weights.pt'}").endswith("must hold a state dict: tensors by name")


# --- published weights ---------------------------------------------------------------------------------


def test_published_weights_come_from_the_cache_with_the_activation_they_need(toys, hub_cache):
    model = made("toy-quickgelu")
    file = cached(model.state_dict(), hub_cache)
    loaded = load_model(Model(name="toy:published"), "cpu")
    assert_computes_as(loaded, model)
    assert sum(isinstance(module, QuickGELU) for module in loaded.clip.modules()) == 4
    assert loaded.preprocess.transforms[-1].mean == PUBLISHED["mean"]
    assert loaded.preprocess.transforms[-1].std == PUBLISHED["std"]
    assert model_fingerprint("toy:published") == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_older_published_file_is_found_under_its_older_name(toys, hub_cache):
    model = made("toy-quickgelu")
    cached(model.state_dict(), hub_cache, name="open_clip_pytorch_model.bin")
    assert_computes_as(load_model(Model(name="toy:published"), "cpu"), model)


def test_without_a_network_the_missing_file_is_named(toys, hub_cache):
    expected = (
        "model.name: 'toy:published' needs open_clip_model.safetensors of somebody/toy, which is not in "
        f"{hub_cache} and https://huggingface.co is out of reach: run `hf download somebody/toy "
        "open_clip_model.safetensors` where it is not, and copy that cache here (HF_HOME says where); "
        "or give the file itself as 'toy-quickgelu:/path/to/open_clip_model.safetensors'"
    )
    # `toy-quickgelu` has the same preprocessing only if it is published under it, as open_clip does
    open_clip.pretrained._PRETRAINED["toy-quickgelu"] = {"published": PUBLISHED}
    try:
        assert refusal("toy:published") == expected
        with pytest.raises(BadInput, match=r"needs open_clip_model\.safetensors of somebody/toy"):
            model_fingerprint("toy:published")
    finally:
        del open_clip.pretrained._PRETRAINED["toy-quickgelu"]


def test_where_a_path_would_not_say_the_preprocessing_none_is_offered(toys):
    assert "or give the file itself" not in refusal("toy:published")


@pytest.fixture
def reachable(monkeypatch, tmp_path):
    """A hub that answers and has the files put into this folder."""
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(hub, "file_exists", lambda repository, file: (tmp_path / file).exists())
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, file: str(tmp_path / file))
    return tmp_path


def test_published_weights_are_downloaded_safetensors_first(toys, reachable):
    saved({"logit_scale": torch.zeros(())}, reachable / "open_clip_pytorch_model.bin")
    assert "visual.class_embedding is missing" in refusal("toy:published")
    model = made("toy-quickgelu")
    saved(model.state_dict(), reachable / "open_clip_model.safetensors")
    assert_computes_as(load_model(Model(name="toy:published"), "cpu"), model)


def test_a_repository_without_the_file_is_refused(toys, reachable):
    assert "there is no open_clip_model.safetensors or open_clip_pytorch_model.bin at" in refusal(
        "toy:published"
    )


def test_a_download_that_fails_is_refused(toys, reachable, monkeypatch):
    def fails(repository, file):
        raise OSError("no space left\non the disk")

    saved(made("toy").state_dict(), reachable / "open_clip_model.safetensors")
    monkeypatch.setattr(hub, "hf_hub_download", fails)
    assert refusal("toy:published").endswith("open_clip_model.safetensors of somebody/toy: no space left")


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("toy-words:random", "tokenizer of somebody/words"),
        ("toy-language:random", "text tower of somebody/language"),
    ],
)
def test_a_missing_tokenizer_or_language_model_is_named(toys, name, need):
    message = refusal(name)
    assert message.startswith(f"model.name: {name!r} needs the {need}, which is not in ")
    assert f"`hf download {need.split()[-1]}`" in message


def test_fetching_refuses_what_is_missing_and_builds_nothing(toys, monkeypatch):
    monkeypatch.setattr(models, "_build", None)
    for name, need in (
        ("toy:published", "open_clip_model.safetensors of somebody/toy"),
        ("toy-words:random", "the tokenizer of somebody/words"),
        ("toy-language:random", "the text tower of somebody/language"),
    ):
        with pytest.raises(BadInput) as caught:
            fetch_model(name)
        assert str(caught.value).startswith(f"model.name: {name!r} needs {need}, which is not in ")
        assert len(str(caught.value).splitlines()) == 1
    fetch_model("toy:random")


def words(folder):
    """Save a tokenizer of a few words, as the hub has them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3, "photo": 4, "cat": 5}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    whole.save_pretrained(folder)


def test_a_tokenizer_comes_from_the_cache_with_its_context_length(toys, hub_cache):
    words(cached({}, hub_cache, "somebody/words", "unused.pt").parent)
    tokens = load_model(Model(name="toy-words:random"), "cpu").tokenize(["a cat", "a photo of a cat"])
    assert tokens.tolist() == [[3, 5, *[0] * 14], [3, 4, 2, 3, 5, *[0] * 11]]


def test_tokenizers_of_the_hub_are_made_as_open_clip_makes_them(monkeypatch):
    def record(name, cache_dir=None, **settings):
        return name, settings

    monkeypatch.setattr(open_clip.factory, "HFTokenizer", record)
    monkeypatch.setattr(models, "HFTokenizer", record)
    monkeypatch.setattr(models, "from_hub", lambda load, repository, need: load(repository))
    compared = 0
    for name in open_clip.list_models():
        if open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name"):
            repository, settings = models._tokenizer(models._parse(f"{name}:random"))
            assert settings.pop("trust_remote_code") is False
            assert (repository, settings) == open_clip.get_tokenizer(name)
            compared += 1
    assert compared > 20


def test_a_tokenizer_may_lie_beside_a_config_file(toys, tmp_path):
    words(tmp_path)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": CONFIGS["toy-words"]}))
    tokens = load_model(Model(name=f"{file}:random"), "cpu").tokenize(["photo"])
    assert tokens.tolist() == [[4, *[0] * 15]]


def test_a_language_model_comes_from_the_cache_with_random_weights(toys, hub_cache):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = cached({}, hub_cache, "somebody/language", "unused.pt").parent
    RobertaConfig(vocab_size=49408, **small).save_pretrained(folder)
    first, second = (load_model(Model(name="toy-language:random"), "cpu") for _ in range(2))
    tokens = first.tokenize(["a cat"])
    with torch.no_grad():
        assert first.clip.encode_text(tokens).shape == (1, 16)
    for name, tensor in first.clip.state_dict().items():
        assert torch.equal(tensor, second.clip.state_dict()[name])


def test_the_hub_is_asked_only_where_the_cache_does_not_do(hub_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)

    def load(where):
        asked.append((huggingface_hub.constants.HF_HUB_OFFLINE, where))
        if not complete:
            raise OSError("not in the cache")
        return "loaded"

    complete = True
    assert hub.from_hub(load, "somebody/toy", "x needs the y") == "loaded"
    assert asked == [(False, "somebody/toy")]
    folder = str(cached({}, hub_cache, name="x.pt").parent)
    assert hub.from_hub(load, "somebody/toy", "x needs the y") == "loaded"
    assert asked[1:] == [(True, folder)]
    complete = False
    with pytest.raises(
        BadInput, match=r"^model\.name: x needs the y of somebody/toy, which cannot be loaded: not"
    ):
        hub.from_hub(load, "somebody/toy", "x needs the y")
    assert asked[2:] == [(True, folder), (False, "somebody/toy")]


# --- local config files --------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "with:colon.json"
    file.write_text(json.dumps(SMALL))
    return file


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """What the code in this folder, `code_of_its_own.py`, touches; whoever is asked agrees to run it."""
    trace = tmp_path / "trace"
    (tmp_path / "code_of_its_own.py").write_text(f"open({str(trace)!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return trace


def test_code_that_comes_with_a_tokenizer_is_never_run(config_file, trace):
    folder = config_file.parent
    words(folder)
    of_words = json.loads((folder / "tokenizer_config.json").read_text())
    of_words |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "code_of_its_own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(of_words))
    text = {**SMALL["text_cfg"], "hf_tokenizer_name": str(folder)}
    config_file.write_text(json.dumps({**SMALL, "text_cfg": text}))
    message = refusal(f"{config_file}:random")
    assert "needs the tokenizer" in message
    assert "contains custom code" in message
    text["tokenizer_kwargs"] = {"trust_remote_code": True}
    config_file.write_text(json.dumps({**SMALL, "text_cfg": text}))
    assert "tokenizer_kwargs has no setting 'trust_remote_code'" in refusal(f"{config_file}:random")
    assert not trace.exists()
    with pytest.raises(AttributeError, match="Own"):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()  # it would have been seen


def test_code_that_comes_with_a_language_model_is_never_run(config_file, trace):
    folder = config_file.parent
    config_file.write_text(json.dumps({**SMALL, "text_cfg": {"hf_model_name": str(folder)}}))
    own = {"model_type": "own", "auto_map": {"AutoConfig": "code_of_its_own.Own"}}
    (folder / "config.json").write_text(json.dumps(own))
    assert "contains custom code" in refusal(f"{config_file}:random")
    # a kind whose config transformers knows, with code of its own for the model alone
    own = {"model_type": "timesformer", "auto_map": {"AutoModel": "code_of_its_own.Own"}}
    (folder / "config.json").write_text(json.dumps(own))
    assert "open_clip has no text tower of kind 'timesformer'" in refusal(f"{config_file}:random")
    assert not trace.exists()
    own = {"model_type": "own", "auto_map": {"AutoConfig": "code_of_its_own.Own"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(AttributeError, match="Own"):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()  # it would have been seen


@pytest.mark.parametrize("source", ["hf-hub:timm/vit_tiny", "local-dir:/tmp/vit_tiny", "timm/vit_tiny"])
def test_a_timm_tower_is_one_of_timms_own_architectures(config_file, source):
    config_file.write_text(json.dumps({**SMALL, "vision_cfg": {"timm_model_name": source}}))
    with pytest.raises(BadInput, match=f"timm_model_name: timm has no architecture '{source}'; "):
        check_name(f"{config_file}:random")
    config_file.write_text(json.dumps({**SMALL, "vision_cfg": {"timm_model_name": "convnext_tiny.fb_in22k"}}))
    check_name(f"{config_file}:random")


def test_a_config_file_stands_in_for_an_architecture(toys, tmp_path, config_file):
    model = made("toy")
    weights = saved(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(Model(name=f"{config_file}:{weights}"), "cpu")
    assert_computes_as(loaded, model)
    assert loaded.tokenize(["x"]).shape == (1, SMALL["text_cfg"]["context_length"])
    of_a_name = load_model(Model(name="toy:random"), "cpu").clip.state_dict()
    for name, tensor in load_model(Model(name=f"{config_file}:random"), "cpu").clip.state_dict().items():
        assert torch.equal(tensor, of_a_name[name])


def test_a_config_file_may_say_the_preprocessing(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    normalise = load_model(Model(name=f"{file}:random"), "cpu").preprocess.transforms[-1]
    assert list(normalise.mean) == [0.5] * 3
    assert list(normalise.std) == [0.25] * 3


def test_the_fingerprint_follows_the_config_file(config_file):
    before = model_fingerprint(f"{config_file}:random")
    config_file.write_text(json.dumps({**SMALL, "quick_gelu": True}))
    assert model_fingerprint(f"{config_file}:random") != before


def config(**settings):
    """The text of a config whose parts have these settings, too."""
    parts = {
        key: {**SMALL[key], **settings.pop(key)} for key in ("vision_cfg", "text_cfg") if key in settings
    }
    return json.dumps({**SMALL, **parts, **settings})


def preprocessing(settings):
    return json.dumps({"model_cfg": SMALL, "preprocess_cfg": settings})


BAD_CONFIGS = {
    "no JSON": ("{", "is no JSON: "),
    "a list": ("[]", "an open_clip config must be a mapping of settings, not []"),
    "no text tower": (json.dumps({"embed_dim": 1, "vision_cfg": {}}), "it has no 'text_cfg'"),
    "misspelt": (
        json.dumps({**SMALL, "vision_cfg": {"widht": 3}}),
        "vision_cfg has no setting 'widht'; did you mean 'width'",
    ),
    "impossible": (
        json.dumps({**SMALL, "text_cfg": {**SMALL["text_cfg"], "heads": 7}}),
        "open_clip cannot build ",
    ),
    "dividing by zero": (config(vision_cfg={"patch_size": 0}), "open_clip cannot build "),
}
# What is found before anything is downloaded or built.
BAD_SETTINGS = {
    "unknown": (
        config(embed_dimm=3),
        "an open_clip config has no setting 'embed_dimm'; did you mean 'embed_dim'",
    ),
    "unknown beside": (
        json.dumps({"model_cfg": SMALL, "foo": 1}),
        "has no setting 'foo'; choose from model_cfg, preprocess_cfg",
    ),
    "null for a model": (
        '{"model_cfg": null}',
        "an open_clip config must be a mapping of settings, not null",
    ),
    "null for a tower": (
        json.dumps({**SMALL, "vision_cfg": None}),
        "vision_cfg must be a mapping of settings, not null",
    ),
    "text for a tower": (
        json.dumps({**SMALL, "text_cfg": "abc"}),
        'text_cfg must be a mapping of settings, not "abc"',
    ),
    "decoder": (
        config(multimodal_cfg={"widht": 3}),
        "multimodal_cfg has no setting 'widht'; did you mean 'width'",
    ),
    "no width": (config(embed_dim=0), "embed_dim must be a positive integer, not 0"),
    "half a width": (config(embed_dim=1.5), "embed_dim must be a positive integer, not 1.5"),
    "true width": (config(embed_dim=True), "embed_dim must be a positive integer, not true"),
    "number for a name": (config(text_cfg={"hf_model_name": 5}), "hf_model_name must be a name, not 5"),
    "list for tokenizing": (
        config(text_cfg={"tokenizer_kwargs": [1]}),
        "tokenizer_kwargs must be a mapping of settings, not [1]",
    ),
    "code": (
        config(text_cfg={"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}),
        "tokenizer_kwargs has no setting 'trust_remote_code'; choose from clean, strip_sep_token",
    ),
    "not of this tokenizer": (
        config(text_cfg={"tokenizer_kwargs": {"strip_sep_token": True}}),
        "tokenizer_kwargs has no setting 'strip_sep_token'; choose from clean",
    ),
    "cleaning": (
        config(text_cfg={"tokenizer_kwargs": {"clean": "upper"}}),
        'clean must be one of "canonicalize", "lower", "whitespace", not "upper"',
    ),
    "list": (preprocessing([1]), "preprocess_cfg must be a mapping of settings, not [1]"),
    "preprocessing": (
        preprocessing({"means": 1}),
        "preprocess_cfg has no setting 'means'; did you mean 'mean'",
    ),
    "two": (preprocessing({"mean": [0.5, 0.5]}), "mean must be three numbers, not [0.5, 0.5]"),
    "one": (preprocessing({"std": 0.5}), "std must be three numbers, not 0.5"),
    "words": (preprocessing({"std": ["a", 1, 1]}), 'std must be three numbers, not ["a", 1, 1]'),
    "infinite": (
        preprocessing({"mean": [0, 0, float("nan")]}),
        "mean must be three numbers, not [0, 0, NaN]",
    ),
    "zero": (preprocessing({"std": [1, 1, 0]}), "std must be above zero, not [1, 1, 0]"),
    "interpolation": (
        preprocessing({"interpolation": "cubic"}),
        'interpolation must be one of "bicubic", "bilinear", "random", not "cubic"',
    ),
    "resizing": (
        preprocessing({"resize_mode": [1]}),
        'resize_mode must be one of "shortest", "longest", "squash", not [1]',
    ),
    "colours": (preprocessing({"mode": "L"}), 'mode must be one of "RGB", not "L"'),
    "colour": (preprocessing({"fill_color": "red"}), 'fill_color must be an integer, not "red"'),
}


@pytest.mark.parametrize(("text", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_bad_setting_is_refused_by_the_name_alone(config_file, text, message):
    config_file.write_text(text)
    with pytest.raises(BadInput) as caught:
        check_name(f"{config_file}:random")
    assert str(caught.value).startswith(f"model.name: '{config_file}': ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_open_clips_own_configs_set_is_let_through(config_file):
    for name in open_clip.list_models():
        config_file.write_text(json.dumps(open_clip.get_model_config(name)))
        check_name(f"{config_file}:random")
    config_file.write_text(preprocessing({"mean": None, "size": 32, "fill_color": 0, "mode": "RGB"}))
    check_name(f"{config_file}:random")


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_bad_config_file_is_refused(config_file, text, message):
    config_file.write_text(text)
    found = refusal(f"{config_file}:random")
    assert str(config_file) in found
    assert message in found


# --- back to open_clip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "toy-custom"])
def test_weights_are_given_back_as_open_clip_loads_them(toys, tmp_path, name):
    loaded = load_model(Model(name=f"{name}:random"), "cpu")
    file = saved(checkpoint_state(loaded.clip, f"{name}:random"), tmp_path / "weights.safetensors")
    assert_computes_as(loaded, open_clip.create_model(name, pretrained=str(file)).eval())


@pytest.mark.parametrize("name", ["toy:published", "tiny"])
def test_config_and_weights_make_a_folder_that_open_clip_loads(toys, hub_cache, tmp_path, name):
    cached(made("toy-quickgelu").state_dict(), hub_cache)
    loaded = load_model(Model(name=name), "cpu")
    saved(checkpoint_state(loaded.clip, name), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(name)))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert_computes_as(loaded, model.eval())
    image = load_task("digits").train.images[0]
    assert torch.equal(preprocess(image), loaded.preprocess(image))


def test_a_caption_decoder_is_given_back_as_it_came(toys, tmp_path):
    model = made("toy-coca")
    torch.nn.init.ones_(model.text_decoder.text_projection)  # open_clip leaves it as it finds the memory
    file = saved(model.state_dict(), tmp_path / "weights.safetensors")
    clip = load_model(Model(name=f"toy-coca:{file}"), "cpu").clip
    assert not any("decoder" in name for name in clip.state_dict())
    with torch.no_grad():
        clip.logit_scale += 1
    state = checkpoint_state(clip, f"toy-coca:{file}")
    theirs = load_file(file)
    assert set(state) == set(theirs)
    assert [name for name in theirs if not torch.equal(state[name], theirs[name])] == ["logit_scale"]


def test_tiny_is_given_back_as_it_lies():
    state = checkpoint_state(load_model(Model(), "cpu").clip, "tiny")
    theirs = load_file(embedded.WEIGHTS)
    assert set(state) == set(theirs)
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in theirs.items())


# --- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_arrives_in_float32_and_computes_in_half(tiny, dtype):
    clip = load_model(Model(dtype=dtype), "cpu").clip
    assert clip.compute_dtype == getattr(torch, dtype)
    assert all(p.dtype == torch.float32 for p in clip.parameters())
    clip.shrink_frozen()
    tokens = tiny.tokenize(load_task("digits").prompts)
    with torch.no_grad(), clip.autocast():
        found = clip.encode_text(tokens)
    with torch.no_grad():
        expected = tiny.clip.encode_text(tokens)
    assert found.dtype == clip.compute_dtype
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.999


def test_full_precision_has_no_compute_dtype(tiny):
    assert tiny.clip.compute_dtype is None
    assert load_model(Model(dtype="float64"), "cpu").clip.compute_dtype is None
