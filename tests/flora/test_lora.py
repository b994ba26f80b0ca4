"""FLoRA: `W x + alpha * B A x`, where it goes, how it starts, how large it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flora.lora import FLoRAOptions
from tests.flora import toy


def test_the_defaults_are_the_papers():
    options = FLoRAOptions()
    assert (options.rank, options.alpha, options.places, options.loss) == (
        2,
        32,
        ("text.out",),
        "contrastive",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 1.5},
        {"alpha": 0},
        {"alpha": -1},
        {"alpha": float("inf")},
        {"places": ()},
        {"places": ("text.outt",)},
        {"places": ("text.out", "tail")},
    ],
    ids=str,
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError) as refusal:
        FLoRAOptions(**wrong)
    if wrong.get("places") == ("text.outt",):
        assert "did you mean 'text.out'?" in str(refusal.value)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("place", toy.PLACES)
def test_an_adapted_layer_computes_the_formula(place, rank):
    alpha = 3.0
    built = toy.shake(toy.method({"name": "flora", "places": (place,), "rank": rank, "alpha": alpha}))
    untouched = toy.clip()
    weights = built.trainable
    names = untouched.layers_at(place)
    assert len(weights) == 2 * len(names)
    for name in names:
        plain = untouched.get_submodule(name)
        down, up = (weights[f"clip.{name}.lora_{x}.default.weight"] for x in "AB")
        assert down.shape == (rank, plain.in_features)
        assert up.shape == (plain.out_features, rank)
        x = torch.randn(3, plain.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        # not divided by the rank
        expected = plain(x) + alpha * x @ down.T @ up.T
        assert torch.allclose(built.clip.get_submodule(name)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("acceleration", ["exact", "none"])
@pytest.mark.parametrize("place", toy.PLACES)
def test_flora_starts_as_zero_shot_exactly(place, acceleration):
    data = toy.whole(toy.samples(8))
    flora = toy.method({"name": "flora", "places": (place,)}, acceleration)
    zero_shot = toy.method({"name": "zero_shot"}, acceleration)
    assert torch.equal(flora.logits(data, flora.classifier()), zero_shot.logits(data, zero_shot.classifier()))


def test_b_starts_at_zero_and_a_from_a_normal_of_variance_one_over_the_rank():
    wide = {"vision": {**toy.VISION, "width": 64}, "text": {**toy.TEXT, "width": 64}}
    for rank in (2, 8, 32):
        options = {"name": "flora", "rank": rank, "places": ("text.mlp", "vision.mlp")}
        built = toy.method(options, **wide)
        a = torch.cat([p.detach().flatten() for n, p in built.trainable.items() if "lora_A" in n])
        assert not any(p.any() for n, p in built.trainable.items() if "lora_B" in n)
        z = a * rank**0.5
        tolerance = 5 / z.numel() ** 0.5  # five standard errors
        assert abs(z.mean()) < tolerance
        assert abs(z.std() - 1) < tolerance
        assert abs((z.abs() < 1).double().mean() - 0.6827) < tolerance


def test_the_start_is_the_generators_alone():
    def start(seed, dtype=torch.float64):
        # noise on the global stream must not matter
        torch.rand(seed + 1)
        built = toy.method({"name": "flora", "places": ("text.out", "vision.mlp")}, dtype=dtype, seed=seed)
        return torch.cat([p.detach().flatten() for p in built.trainable.values()])

    with torch.random.fork_rng():
        first = start(0)
        assert torch.equal(start(0), first)
        assert not torch.equal(start(1), first)
        assert torch.equal(start(0, torch.float32).double(), first)  # whatever the precision


def on(architecture, **options):
    return toy.built_on(toy.architecture(architecture), {"name": "flora", **options})


@pytest.mark.parametrize(
    ("architecture", "options", "parameters"),
    [
        # layers x (width in + width out) x rank
        ("ViT-B-32", {}, 12 * 2 * 512 * 2),
        ("ViT-B-32", {"places": ["text.out"], "rank": 8}, 12 * 2 * 512 * 8),
        ("ViT-B-32", {"places": ["vision.out"]}, 12 * 2 * 768 * 2),
        ("ViT-B-32", {"places": ["text.mlp"]}, 12 * 2 * (512 + 2048) * 2),
        ("ViT-B-32", {"places": ["vision.head"]}, (768 + 512) * 2),
        ("ViT-B-32", {"places": ["text.query", "text.key", "text.value"]}, 3 * 12 * 2 * 512 * 2),
        (
            "ViT-B-32",
            {"places": toy.PLACES},
            2 * (4 * 12 * 1024 + 24 * 2560 + 1024) + 2 * (4 * 12 * 1536 + 24 * 3840 + 1280),
        ),
        ("ViT-L-14", {}, 36_864),
    ],
)
def test_closed_form_on_real_architectures(architecture, options, parameters):
    built = on(architecture, **options)
    assert built.closed_form() == parameters
    assert sum(p.numel() for p in built.trainable.values()) == parameters
    places = options.get("places", ["text.out"])
    layers = {f"clip.{layer}" for p in places for layer in toy.architecture(architecture).layers_at(p)}
    assert {name.split(".lora_")[0] for name in built.trainable} == layers


def test_bytes_of_the_papers_payload():
    assert 4 * on("ViT-B-32").closed_form() == 98_304
    assert 4 * on("ViT-L-14").closed_form() == 147_456


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rank=st.integers(1, 6), places=st.lists(st.sampled_from(toy.PLACES), min_size=1, max_size=4))
def test_closed_form_is_what_trains_at_any_places(rank, places):
    built = toy.method({"name": "flora", "rank": rank, "places": places})
    linear = {
        "query": 2 * 32,
        "key": 2 * 32,
        "value": 2 * 32,
        "out": 2 * 32,
        "mlp": 4 * (16 + 64),
        "head": 16 + 8,
    }
    expected = rank * sum(linear[place.split(".")[1]] for place in set(places))
    assert built.closed_form() == expected
    assert sum(p.numel() for p in built.trainable.values()) == expected
