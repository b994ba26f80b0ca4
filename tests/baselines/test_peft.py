"""PEFT's adapters: what each adds to a layer, its options, how many parameters it has, and who is refused."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import ValidationError

from baselines import peft
from bench.config import RunConfig
from flora.errors import BadInput
from flora.method import METHODS
from tests.flora import toy

every_variant = pytest.mark.parametrize("variant", peft.VARIANTS)


def options_of(variant):
    return METHODS[f"peft:{variant}"].Options


def test_every_variant_has_a_description_and_a_family():
    assert list(peft.VARIANTS) == list(peft.FAMILIES)
    assert not set(peft.VARIANTS) & set(peft.REFUSED)


@every_variant
def test_options_are_pefts_own_with_its_defaults(variant):
    family, options = peft.FAMILIES[variant], options_of(variant)()
    declared = {field.name: field.default for field in fields(family.config)}
    assert set(options.model_dump()) == {"name", "loss", "places", "blocks", *family.options}
    assert {name: getattr(options, name) for name in family.options} == {
        name: declared[name] for name in family.options
    }
    assert set(family.fixed) <= set(declared)


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ("lora", {"r": 0}),
        ("lora", {"r": 1.5}),
        ("lora", {"lora_alpha": -1}),
        ("lora", {"use_dora": True}),
        ("vera", {"projection_prng_key": -1}),
        ("oft", {"places": ()}),
        ("oft", {"places": ("text.outt",)}),
        ("dora", {"use_rslora": "perhaps"}),
    ],
    ids=str,
)
def test_impossible_options_are_refused(variant, wrong):
    with pytest.raises(ValidationError):
        options_of(variant)(**wrong)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("lora_dropout", "there is no dropout"), ("target_modules", "say which layers by method.places")],
)
def test_options_of_peft_that_have_no_place_here_are_refused_with_the_reason(name, reason):
    with pytest.raises(BadInput, match=rf"^method\.{name}: {reason}"):
        RunConfig.read({"method": {"name": "peft:lora", name: 0.1}})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "peft:oft"}, "Invalid `oft_block_size` (32)"),  # PEFT would take 16 and only warn
        ({"name": "peft:hra", "r": 3}, "symmetric initialization can NOT be performed when r is odd"),
    ],
    ids=str,
)
def test_what_peft_would_change_for_these_layers_is_refused_in_its_own_words(options, reason):
    with pytest.raises(BadInput) as refusal:
        toy.method(options)
    message = str(refusal.value)
    assert message.startswith(f"method: {options['name']} on these layers: ")
    assert reason in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("kind", sorted(str(x.value).lower() for x in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_each_other_adapter_of_peft_is_refused_with_a_reason(kind):
    if kind in peft.VARIANTS:
        return
    message = peft.why_not(kind)
    assert message.startswith(f"peft:{kind} cannot be had")
    assert len(message.splitlines()) == 1


def test_reasons_are_of_adapters_that_there_are():
    known = {str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(peft.REFUSED) <= known
    for family in peft.FAMILIES.values():
        assert family.config is PEFT_TYPE_TO_CONFIG_MAPPING[family.peft_type]


def test_a_prompt_method_is_known_by_its_configuration():
    assert "virtual tokens" in peft.why_not("prefix_tuning")
    assert "prefix_tuning" not in peft.REFUSED


def test_an_unknown_adapter_is_told_the_nearest():
    assert peft.why_not("dorra") == "there is no peft:dorra; did you mean 'peft:dora'?"


def test_an_adapter_that_the_installed_peft_lacks_is_told_so(monkeypatch):
    key = next(kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind == "HIRA")  # an enum, put back as such
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, key)
    assert peft.FAMILIES["hira"].config is None
    assert "peft:hira is not in the installed PEFT" in peft.why_not("hira")


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # twelve layers from 512 to 512
        ({"name": "peft:lora"}, 12 * 8 * 1024),
        ({"name": "peft:rslora", "r": 4}, 12 * 4 * 1024),
        ({"name": "peft:dora"}, 12 * (8 * 1024 + 512)),
        ({"name": "peft:vera"}, 12 * (256 + 512)),
        ({"name": "peft:ia3"}, 12 * 512),
        # the first layer of an MLP by its output, the second by its input: both are the wide side
        ({"name": "peft:ia3", "places": ["text.mlp"]}, 12 * (2048 + 2048)),
        ({"name": "peft:loha"}, 12 * 2 * 8 * 1024),
        # 512 = 16 x 32: 16 x 16 as it is, 32 x 32 of rank 8
        ({"name": "peft:lokr"}, 12 * (256 + 8 * 64)),
        ({"name": "peft:lokr", "r": 4, "decompose_both": True}, 12 * (4 * 32 + 4 * 64)),
        ({"name": "peft:lokr", "r": 64}, 12 * (256 + 1024)),
        ({"name": "peft:hra"}, 12 * 8 * 512),
        # 16 blocks of 32, each with the entries above its diagonal
        ({"name": "peft:oft"}, 12 * 16 * 32 * 31 // 2),
        ({"name": "peft:delora"}, 12 * (8 * 1024 + 1)),
        ({"name": "peft:hira"}, 12 * 32 * 1024),
        # 16 bases of rank 32
        ({"name": "peft:randlora"}, 12 * 16 * (32 + 512)),
        ({"name": "peft:randlora", "r": 100}, 12 * 6 * (100 + 512)),
        # layers that are not square: from 512 to 2048 and back
        ({"name": "peft:dora", "places": ["text.mlp"]}, 12 * (8 * 2 * 2560 + 2048 + 512)),
        ({"name": "peft:vera", "places": ["text.mlp"]}, 12 * (2 * 256 + 2048 + 512)),
        ({"name": "peft:hra", "places": ["text.mlp"]}, 12 * 8 * (512 + 2048)),
        ({"name": "peft:oft", "places": ["text.mlp"]}, 12 * (512 + 2048) * 31 // 2),
        # and from 768 to 512, where input and output cannot be mistaken for each other
        ({"name": "peft:oft", "places": ["vision.head"]}, 768 * 31 // 2),
        ({"name": "peft:hra", "places": ["vision.head"]}, 8 * 768),
        ({"name": "peft:vera", "places": ["vision.head"]}, 256 + 512),
        ({"name": "peft:randlora", "places": ["vision.head"]}, 16 * (32 + 512)),
    ],
    ids=str,
)
def test_closed_forms_on_vit_b_32(options, parameters):
    built = toy.built_on(toy.architecture("ViT-B-32"), options)
    assert built.closed_form() == parameters
    assert sum(p.numel() for p in built.trainable.values()) == parameters


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_closed_forms_are_what_trains_at_any_places_and_sizes(data):
    variant = data.draw(st.sampled_from(sorted(peft.VARIANTS)))
    offered = peft.FAMILIES[variant].options
    places = data.draw(st.lists(st.sampled_from(toy.PLACES), min_size=1, max_size=3))
    options = {"name": f"peft:{variant}", "places": places}
    if "r" in offered:
        options["r"] = data.draw(st.integers(1, 4)) * (2 if variant == "hra" else 1)
    if "oft_block_size" in offered:
        options["oft_block_size"] = data.draw(st.sampled_from([2, 4, 8, 16]))
    if "decompose_both" in offered:
        options["decompose_both"] = data.draw(st.booleans())
    built = toy.method(options)
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values())
    names = [name for place in places for name in toy.clip().layers_at(place)]
    assert all(n.removeprefix("clip.").startswith(tuple(names)) for n in built.trainable)


@pytest.mark.parametrize(("variant", "rank"), [("lora", 2), ("rslora", 4)])
def test_rank_and_alpha_are_pefts(variant, rank):
    """Alpha 6 over rank 2, and over the root of rank 4, is FLoRA's alpha 3, which is not divided."""
    built = toy.shake(toy.method({"name": f"peft:{variant}", "r": rank, "lora_alpha": 6}), scale=0.3)
    flora = toy.method({"name": "flora", "rank": rank, "alpha": 3})
    assert list(built.trainable) == list(flora.trainable)
    with torch.no_grad():
        for name, parameter in flora.trainable.items():
            parameter.copy_(built.trainable[name])
    assert torch.allclose(built.classifier(), flora.classifier(), rtol=0, atol=1e-12)


def test_the_random_matrices_of_vera_are_the_same_for_every_seed_and_do_not_train():
    first, second = (toy.method({"name": "peft:vera", "r": 8}, seed=seed) for seed in (0, 1))
    assert {n.split(".")[-2] for n in first.trainable} == {"vera_lambda_b", "vera_lambda_d"}
    for (name, a), b in zip(first.named_buffers(), second.buffers(), strict=True):
        assert torch.equal(a, b), name
    other = toy.method({"name": "peft:vera", "r": 8, "projection_prng_key": 7})
    name = next(n for n, _ in other.named_buffers() if "vera_A" in n)
    assert not torch.equal(dict(other.named_buffers())[name], dict(first.named_buffers())[name])


@pytest.mark.parametrize("variant", ["lora", "dora", "loha", "lokr", "hra", "delora", "hira"])
def test_the_start_follows_the_seed(variant):
    options = {"name": f"peft:{variant}", "places": ("text.mlp",), "r": 2}
    first, again, other = (toy.method(options, seed=seed).trainable for seed in (0, 0, 1))
    assert all(torch.equal(again[n], p) for n, p in first.items())
    assert not all(torch.equal(other[n], p) for n, p in first.items())
