"""How a run is computed changes nothing of what is computed, and nothing behind it."""

import pytest
import torch

from bench import compute
from bench.compute import applied, check, configured, repeated_blocks
from bench.config import Compute, Model, RunConfig
from bench.models import load_model
from flora.errors import BadInput
from tests.flora import toy

COMPILER = RunConfig.read({"compute": {"compile": "default"}}).compute


def has_compiler():
    try:
        check(COMPILER, "cpu")
    except BadInput:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="this machine has no C++ compiler")


def settings():
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


def features_and_gradients(options, dtype):
    built = toy.shake(toy.method({"name": "full_finetune"}, dtype=dtype))
    applied(built.clip, options)
    results = []
    for size in (24, 7):  # the last batch of a pass is smaller
        batch = toy.samples(size, dtype=dtype).batch(torch.arange(size))
        built.zero_grad()
        built.loss(batch).backward()
        results += [built.image_features(batch), built.classifier()]
        results += [p.grad.clone() for p in built.trainable.values() if p.grad is not None]
    return [x.detach() for x in results]


OPTIONS = [
    Compute(threads=1),
    Compute(channels_last=True),
    Compute(matmul_precision="high"),
    pytest.param(Compute(compile="default"), marks=needs_compiler),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_features_and_gradients_stay_what_they_are(options):
    # joined operations round less often: in float32 alone that moves small gradients by 2e-5
    dtype = torch.float64 if options.compile else torch.float32
    plain = features_and_gradients(Compute(), dtype)
    with configured(options, "cpu"):
        other = features_and_gradients(options, dtype)
    assert len(plain) == len(other)
    for one, two in zip(plain, other, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-5)


def test_process_wide_settings_hold_inside_and_are_set_back():
    before = settings()
    with configured(Compute(threads=3, matmul_precision="high"), "cpu"):
        assert settings() == (3, "high")
    assert settings() == before
    with pytest.raises(RuntimeError, match="planted"), configured(Compute(threads=3), "cpu"):
        raise RuntimeError("planted")
    assert settings() == before


def test_without_options_nothing_is_set(monkeypatch):
    torch_default = settings()
    with configured(Compute(), "cpu"):
        assert settings() == torch_default
    model = load_model(Model(), "cpu").clip
    strides = [p.stride() for p in model.parameters()]
    applied(model, Compute())
    assert [p.stride() for p in model.parameters()] == strides


@pytest.mark.parametrize("trains", [False, True])
def test_channels_last_lays_out_images_and_the_convolutions_that_do_not_train(trains):
    model = load_model(Model(), "cpu").clip
    model.vision.conv1.requires_grad_(trains)
    applied(model, Compute(channels_last=True))
    assert model.vision.conv1.weight.is_contiguous(memory_format=torch.channels_last) is not trains
    seen = []
    model.vision.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.zeros(2, 3, 32, 32)
    model.encode_image(images)
    assert images.is_contiguous()
    assert not images.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_the_blocks_of_both_towers_are_found(name):
    found = repeated_blocks(toy.architecture(name))
    kinds = [type(block).__name__ for block in found]
    expected = (
        {"ResidualAttentionBlock": 12 + 12}
        if name == "ViT-B-32"
        else {
            "ResidualAttentionBlock": 12,
            "Bottleneck": 3 + 4 + 6 + 3,
        }
    )
    assert {kind: kinds.count(kind) for kind in set(kinds)} == expected


def test_adapters_are_compiled_with_the_block_they_are_in(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: compiled.append((self, mode)))
    built = toy.method({"name": "flora", "places": ("text.out", "vision.mlp")}, dtype=torch.float32)
    applied(built.clip, Compute(compile="default"))
    inside = {id(module) for block, _ in compiled for module in block.modules()}
    assert all(id(layer) in inside for layer in built._adapted())
    assert {mode for _, mode in compiled} == {"default"}
    assert len(compiled) == 4


def test_a_machine_without_a_compiler_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compute.shutil, "which", lambda name: None)
    before = settings()
    with (
        pytest.raises(
            BadInput, match=r"compute\.compile: 'default' needs the C\+\+ compiler 'no-such"
        ) as caught,
        configured(Compute(compile="default", threads=3), "cpu"),
    ):
        pytest.fail("it ran")
    assert "\n" not in str(caught.value)
    assert settings() == before
    check(Compute(), "cpu")


def test_cuda_graphs_need_a_gpu(monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda name: "/usr/bin/g++")
    check(Compute(compile="reduce-overhead"), "cuda:0")
    with pytest.raises(
        BadInput, match=r"compute\.compile: 'reduce-overhead' is CUDA graphs, not for .*'cpu'"
    ):
        check(Compute(compile="reduce-overhead"), "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": 0}, "compute.threads: 0 "),
        ({"threads": True}, "compute.threads: True must be a number"),
        ({"threads": "many"}, "compute.threads: 'many' "),
        ({"channels_last": "perhaps"}, "compute.channels_last: 'perhaps' "),
        ({"compile": "fast"}, "compute.compile: 'fast' "),
        ({"compile": False}, "compute.compile: False "),
        ({"matmul_precision": "medium"}, "compute.matmul_precision: 'medium' "),
        ({"thread": 2}, "compute.thread: there is no such field; did you mean 'threads'?"),
        ("fast", "compute: 'fast' must be a mapping of fields to values"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(values, message):
    with pytest.raises(BadInput) as caught:
        RunConfig.read({"compute": values})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_every_option_makes_another_run_and_none_leaves_it_the_run_it_was():
    plain = RunConfig.read({})
    assert RunConfig.read({"compute": {}}).hash == plain.hash
    chosen = [{"threads": 2}, {"channels_last": True}, {"compile": "default"}, {"matmul_precision": "high"}]
    hashes = {RunConfig.read({"compute": values}).hash for values in chosen}
    assert len(hashes | {plain.hash}) == 5
