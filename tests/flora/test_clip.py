"""The split model against the untouched one and back, the places adapters can go, and half precision."""

from copy import deepcopy
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP
from open_clip.transformer import Attention
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import RobertaConfig

from flora.clip import PLACES, Clip, SplitAttention, SplitSelfAttention
from flora.errors import BadInput
from flora.prompts import PromptTree
from tests.flora import toy

IMAGES = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
TOKENS = toy.prompts().tokens
CLIP = toy.clip()
# Variants of open_clip's towers that take other ways through attention, pooling and projection.
VARIANTS = {
    "default": {},
    "quick_gelu": {"quick_gelu": True},
    "average pooling": {"vision": {**toy.VISION, "pool_type": "avg", "final_ln_after_pool": True}},
    "attentional pooling": {
        "vision": {**toy.VISION, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    },
    "layer scale": {"vision": {**toy.VISION, "ls_init_value": 0.5}},
    "end token by id": {"text": {**toy.TEXT, "pool_type": "eos", "eos_id": toy.END}},
    "last position": {"text": {**toy.TEXT, "pool_type": "last"}},
    "projection with bias": {"text": {**toy.TEXT, "proj_bias": True}},
    "class token": {"text": {**toy.TEXT, "embed_cls": True}},
    "no causal mask": {"text": {**toy.TEXT, "no_causal_mask": True}},
    "no projection": {"text": {**toy.TEXT, "width": toy.DIM, "proj_type": "none"}},
    "logit bias": {"init_logit_bias": -10.0},
    "normed queries": {"text": {**toy.TEXT, "qk_norm": True}, "vision": {**toy.VISION, "qk_norm": True}},
    "scaled heads": {"text": {**toy.TEXT, "scale_heads": True}},
    "normed attention": {
        "text": {**toy.TEXT, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
    },
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@variants
def test_split_computes_what_the_untouched_model_computes(variant):
    untouched, split = toy.open_clip_model(**variant), toy.clip(**variant)
    with torch.no_grad():
        for mine, theirs in [
            (split.encode_image(IMAGES), untouched.encode_image(IMAGES)),
            (split.encode_text(TOKENS), untouched.encode_text(TOKENS)),
        ]:
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)
            assert mine.std() > 0.1
    assert split.dim == toy.DIM
    assert torch.equal(split.logit_scale, untouched.logit_scale)


@variants
def test_split_has_the_same_gradients(variant):
    untouched, split = toy.open_clip_model(**variant), toy.clip(**variant)
    for model in (untouched, split):
        images, texts = model.encode_image(IMAGES), model.encode_text(TOKENS)
        (images @ texts.T).square().mean().backward()
    theirs = {n: p.grad for n, p in untouched.named_parameters() if p.grad is not None}
    mine = {n: p.grad for n, p in split.named_parameters() if p.grad is not None}
    assert sum(g.numel() for g in mine.values()) == sum(g.numel() for g in theirs.values())
    # Splitting only rearranges entries, so both hold the same numbers.
    for gradients in (mine, theirs):
        assert all(g.any() for n, g in gradients.items() if "k_proj.bias" not in n)
    for tower, head in (("visual", "vision"), ("text", "text")):
        block = "transformer.resblocks.1"
        packed = theirs[f"{tower}.{block}.attn.in_proj_weight"]
        parts = torch.cat([mine[f"{head}.{block}.attn.{x}_proj.weight"] for x in "qkv"])
        assert torch.allclose(parts, packed, rtol=0, atol=1e-10)
    same = {n: g for n, g in mine.items() if n.replace("vision.", "visual.") in theirs}
    assert len(same) > 50
    for name, gradient in same.items():
        assert torch.allclose(gradient, theirs[name.replace("vision.", "visual.")], rtol=0, atol=1e-10), name
    if "visual.proj" in theirs:
        assert torch.allclose(mine["vision_head.weight"].T, theirs["visual.proj"], rtol=0, atol=1e-10)


@variants
def test_the_weights_come_back_as_open_clip_had_them(variant):
    untouched = toy.open_clip_model(**variant).state_dict()
    state = toy.clip(**variant).open_clip_state()
    assert set(state) == set(untouched)
    for name, tensor in untouched.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].is_contiguous()


def test_trained_weights_arrive_in_open_clips_model():
    split = toy.clip()
    with torch.no_grad():
        for parameter in split.parameters():
            parameter.mul_(1.1)
        expected = split.encode_image(IMAGES), split.encode_text(TOKENS)
    model = toy.open_clip_model()
    model.load_state_dict(split.open_clip_state())
    assert torch.allclose(model.encode_image(IMAGES), expected[0], rtol=0, atol=1e-10)
    assert torch.allclose(model.encode_text(TOKENS), expected[1], rtol=0, atol=1e-10)


def test_the_weights_fit_an_open_clip_model_whose_text_tower_has_no_name_of_its_own():
    state = toy.clip().open_clip_state(plain=True)
    plain = open_clip.CLIP(toy.DIM, toy.VISION, toy.TEXT).double().eval()
    plain.load_state_dict(state)
    assert torch.allclose(plain.encode_text(TOKENS), CLIP.encode_text(TOKENS), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"no place for text\.cls_emb"):
        toy.clip(**VARIANTS["class token"]).open_clip_state(plain=True)


def test_split_draws_no_random_numbers_and_takes_its_weights_over():
    model = toy.open_clip_model()
    packed = model.text.transformer.resblocks[0].attn
    before = torch.get_rng_state()
    split = SplitAttention(packed)
    assert torch.equal(torch.get_rng_state(), before)
    packed_storage = packed.in_proj_weight.untyped_storage().data_ptr()
    for layer in (split.q_proj, split.k_proj, split.v_proj):
        assert layer.weight.untyped_storage().data_ptr() == packed_storage


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_split_keeps_the_number_of_parameters_of_real_architectures(name):
    count = sum(p.numel() for p in toy.architecture(name).parameters())
    assert count == {"ViT-B-32": 151_277_313, "ViT-L-14": 427_616_513}[name]


# Any class names, of at most 10 tokens; token 0 is an ordinary one of CLIP's vocabulary, "!".
NAMES = st.lists(st.lists(st.integers(0, 47), max_size=10), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(names=NAMES, shared=st.booleans())
def test_prompts_as_a_tree_give_the_same_text_features(names, shared):
    tokens = toy.tokens(names)
    branches = PromptTree(tokens, CLIP.prompt_ends(tokens), shared).branches(np.arange(len(names)))
    with torch.no_grad():
        leaving = CLIP.run_text_blocks(CLIP.embed_branches(branches), branches, slice(None))
        assert torch.allclose(
            CLIP.pool_branches(leaving, branches), CLIP.encode_text(tokens), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("variant", "at_end"),
    [
        ("default", True),
        ("end token by id", True),
        ("last position", False),
        ("class token", False),
        ("no causal mask", False),
    ],
)
def test_only_causal_towers_read_at_the_end_token_may_have_prompts_cut(variant, at_end):
    split = toy.clip(**VARIANTS[variant])
    assert split.reads_prompt_at_end == at_end
    prompts = toy.prompts()
    with torch.no_grad():
        cut = split.encode_text(prompts.tokens[:, : prompts.longest])
        same = torch.allclose(cut, split.encode_text(prompts.tokens))
    assert same == at_end


@pytest.mark.parametrize("place", PLACES)
def test_layers_at_every_place(place):
    tower, part = place.split(".")
    found = CLIP.layers_at(place)
    blocks = [f"{tower}.transformer.resblocks.{i}" for i in range(2)]
    expected = {
        "query": [f"{b}.attn.q_proj" for b in blocks],
        "key": [f"{b}.attn.k_proj" for b in blocks],
        "value": [f"{b}.attn.v_proj" for b in blocks],
        "out": [f"{b}.attn.out_proj" for b in blocks],
        "mlp": [f"{b}.mlp.{x}" for b in blocks for x in ("c_fc", "c_proj")],
        "head": [f"{tower}_head"],
    }[part]
    assert found == expected
    assert all(isinstance(CLIP.get_submodule(name), nn.Linear) for name in found)


def test_every_place_of_the_paper_is_offered_for_both_towers():
    assert sorted(PLACES) == sorted(toy.PLACES)


@pytest.mark.parametrize("place", ["text.outt", "txt.out", "out", "", "text.", "text.out.proj"])
def test_unknown_places_are_refused(place):
    with pytest.raises(BadInput, match=r"^method\.places: '.*' is no place in a CLIP; ") as refusal:
        CLIP.layers_at(place)
    assert "\n" not in str(refusal.value)
    if place == "text.outt":
        assert "'text.out'" in str(refusal.value)


def test_a_tower_that_cannot_be_split_says_where_the_model_can_be_adapted():
    # open_clip itself fails to compute this kind, so that it is left packed
    split = toy.clip(text={**toy.TEXT, "scaled_cosine_attn": True})
    with pytest.raises(BadInput, match=r"no adaptable layers at 'text\.query'.*text\.out") as refusal:
        split.layers_at("text.query")
    assert "vision.query" in str(refusal.value)
    assert "text.key" not in str(refusal.value)


@pytest.mark.parametrize(
    "packed",
    [
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True),
    ],
    ids=["sequence first", "dropout", "added key", "zero key"],
)
def test_attention_that_cannot_be_split_is_refused(packed):
    with pytest.raises(ValueError, match="can be split"):
        SplitAttention(packed)


@pytest.mark.parametrize("setting", [{"scaled_cosine": True}, {"attn_drop": 0.1}, {"proj_drop": 0.1}])
def test_open_clips_own_attention_that_cannot_be_split_is_refused(setting):
    with pytest.raises(ValueError, match="can be split"):
        SplitSelfAttention(Attention(8, 2, **setting))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_alone_without_biases_and_across_sequences(masked):
    packed = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, kdim=6, vdim=5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, n, w, dtype=torch.float64, generator=generator) for n, w in ((3, 8), (4, 6), (4, 5))
    )
    mask = torch.randn(2 * 2, 3, 4, dtype=torch.float64, generator=generator) if masked else None
    expected, _ = packed(query, key, value, need_weights=False, attn_mask=mask)
    found, weights = SplitAttention(packed)(query, key, value, attn_mask=mask)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert weights is None
    with pytest.raises(ValueError, match="weights"):
        SplitAttention(packed)(query, key, value, need_weights=True)


@pytest.mark.parametrize("kind", [SplitAttention, SplitSelfAttention])
def test_a_boolean_mask_is_refused(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 8, generator=generator)
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    if kind is SplitAttention:
        attend = partial(kind(nn.MultiheadAttention(8, 2, batch_first=True)), x, x, x)
    else:
        attend = partial(kind(Attention(8, 2)), x)
    attend(attn_mask=torch.zeros(3, 3).masked_fill(causal, -torch.inf))
    with pytest.raises(ValueError, match="additive mask"):
        attend(attn_mask=causal)


# --- architectures of open_clip ------------------------------------------------------------------------

ALL = {"query", "key", "value", "out", "mlp", "head"}
# Where the image tower can be adapted, the text tower taking all places, and whether prompts may be cut.
ARCHITECTURES = {
    "ViT-B-32": (ALL, True),
    "ViT-B-32-quickgelu": (ALL, True),
    "ViT-B-16-SigLIP": ({"out", "mlp"}, False),
    "coca_ViT-B-32": (ALL, False),
    "RN50": (set(), True),
    "convnext_base": ({"mlp", "head"}, True),
    "EVA02-B-16": (ALL, True),
}
architectures = pytest.mark.parametrize("name", ARCHITECTURES)


def shallow(name):
    """An architecture of open_clip with few layers, a small vocabulary, and no vector at zero or one."""
    config = open_clip.get_model_config(name)
    config.pop("custom_text", None)
    vision = config["vision_cfg"]
    for tower in (config["text_cfg"], config.get("multimodal_cfg", {}), vision):
        tower["layers"] = 2
    config["text_cfg"]["vocab_size"] = 300
    if name == "RN50":
        vision["layers"] = [1, 1, 1, 1]
    if name == "convnext_base":
        vision["timm_model_name"] = "convnext_tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (CoCa if "multimodal_cfg" in config else CustomTextCLIP)(**config)
        if blocks := getattr(getattr(model.visual, "trunk", None), "blocks", None):
            model.visual.trunk.blocks = blocks[:2]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.02)
    return model.double().eval()


def inputs_of(model, size=224):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 298, (2, model.text.context_length), generator=generator)
    for row, end in zip(tokens, (5, 9), strict=True):
        row[end], row[end + 1 :] = 299, 0
    return images, tokens


@architectures
def test_an_architecture_is_split_exactly_and_whole(name):
    model = shallow(name)
    untouched = deepcopy(model)
    images, tokens = inputs_of(model, 64 if name == "convnext_base" else 224)
    split = Clip(model)
    places = {place: split._layers_at(place) for place in PLACES}
    called = set()
    for layers in places.values():
        for layer in layers:
            hook = lambda *_, layer=layer: called.add(layer)  # noqa: E731
            split.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        unscaled = {"normalize": False} if isinstance(untouched, CoCa) else {}
        for mine, theirs in [
            (split.encode_image(images), untouched.encode_image(images, **unscaled)),
            (split.encode_text(tokens), untouched.encode_text(tokens, **unscaled)),
        ]:
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)
            assert mine.shape == (2, split.dim)
            assert mine.std() > 0.01
    # what is offered is really computed with: an adapter there has an effect
    assert called == {layer for layers in places.values() for layer in layers}
    in_vision, cut = ARCHITECTURES[name]
    offered = {place for place in PLACES if places[place]}
    assert offered == {f"text.{x}" for x in ALL} | {f"vision.{x}" for x in in_vision}
    assert split.reads_prompt_at_end == cut
    state = split.open_clip_state()
    theirs = {n: t for n, t in untouched.state_dict().items() if not n.startswith("text_decoder.")}
    assert set(state) == set(theirs)
    assert all(torch.equal(state[n], tensor) for n, tensor in theirs.items())


def test_a_resnet_cannot_be_adapted_and_says_where_instead():
    with torch.device("meta"):
        split = Clip(CustomTextCLIP(**open_clip.get_model_config("RN50")))
    with pytest.raises(BadInput) as refusal:
        split.layers_at("vision.out")
    assert str(refusal.value) == (
        "method.places: this model has no adaptable layers at 'vision.out'; "
        "it has them at text.query, text.key, text.value, text.out, text.mlp, text.head"
    )


def test_a_language_model_of_other_make_is_left_as_it_is(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    RobertaConfig(vocab_size=60, **small).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "output_tokens": True}
    model = toy.open_clip_model(text={**text, "hf_proj_type": "linear"})
    untouched = deepcopy(model)
    split = Clip(model)
    with torch.no_grad():
        expected, _ = untouched.encode_text(TOKENS)
        assert torch.allclose(split.encode_text(TOKENS), expected, rtol=0, atol=1e-10)
    assert not split.reads_prompt_at_end
    with pytest.raises(BadInput, match=r"at 'text\.out'; it has them at vision\.query, "):
        split.layers_at("text.out")
    theirs = untouched.state_dict()
    assert set(split.open_clip_state()) == set(theirs)
    half = Clip(untouched.float(), compute_dtype=torch.bfloat16).requires_grad_(False)
    half.shrink_frozen()
    with half.autocast():
        assert F.cosine_similarity(half.encode_text(TOKENS).double(), expected).min() > 0.999


def test_a_logit_bias_is_kept():
    assert (
        toy.clip(**VARIANTS["logit bias"]).logit_bias.item()
        == toy.open_clip_model(**VARIANTS["logit bias"]).logit_bias.item()
    )
    assert CLIP.logit_bias is None


# --- half precision ------------------------------------------------------------------------------------

half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ADAPTED = ("text.out", "text.mlp", "vision.query", "vision.mlp")


def adapted(dtype, **variant):
    """A float32 toy that computes in `dtype`, with adapters that already do something."""
    split = Clip(toy.open_clip_model(torch.float32, **variant), compute_dtype=dtype).requires_grad_(False)
    layers = [layer for place in ADAPTED for layer in split.layers_at(place)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=layers), split)
        with torch.no_grad():
            for name, parameter in split.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return split


def features_and_gradients(split):
    with split.autocast():
        images, texts = split.encode_image(IMAGES.float()), split.encode_text(TOKENS)
        similarity = F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        (similarity.square().mean() * 1024).backward()
    gradients = {name: p.grad for name, p in split.named_parameters() if p.requires_grad}
    return images.detach().float(), texts.detach().float(), gradients


@half
@variants
def test_half_precision_stays_close_and_trains_adapters_in_float32(variant, dtype):
    reference = features_and_gradients(adapted(None, **variant))
    split = adapted(dtype, **variant)
    split.shrink_frozen()
    images, texts, gradients = features_and_gradients(split)
    assert F.cosine_similarity(images, reference[0]).min() > 0.999
    assert F.cosine_similarity(texts, reference[1]).min() > 0.999
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    flat = [torch.cat([g.flatten() for g in x.values()]) for x in (gradients, reference[2])]
    assert F.cosine_similarity(*flat, dim=0) > 0.99


@half
def test_only_frozen_matrices_are_shrunk(dtype):
    split = adapted(dtype)
    split.text_head.requires_grad_(True)
    before = {name: p.clone() for name, p in split.named_parameters()}
    split.shrink_frozen()
    for name, parameter in split.named_parameters():
        kept = parameter.ndim < 2 or parameter.requires_grad or "positional" in name or "class" in name
        assert parameter.dtype == (torch.float32 if kept else dtype), name
        assert torch.equal(parameter, before[name].to(parameter.dtype))
    assert sum(p.dtype == dtype for p in split.parameters()) > 20


def test_without_half_precision_nothing_is_cast():
    split = toy.clip(torch.float32)
    split.shrink_frozen()
    with split.autocast():
        assert not torch.is_autocast_enabled("cpu")
        assert split.encode_text(TOKENS).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in split.parameters())


@half
def test_autocast_sees_weights_that_were_changed_within_it(dtype):
    split = adapted(dtype)
    with split.autocast():
        before = split.encode_text(TOKENS)
        with torch.no_grad():
            for name, parameter in split.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-1)
        assert not torch.equal(split.encode_text(TOKENS), before)


@half
def test_kept_features_are_computed_in_half_precision_and_kept_in_float32(dtype):
    samples = toy.samples(dtype=torch.float32)
    split = adapted(dtype)
    split.shrink_frozen()
    found = toy.featured(samples, split).features
    exact = toy.featured(samples, adapted(None)).features
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert F.cosine_similarity(found, exact).min() > 0.999
    assert not found.is_inference()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@half
def test_half_precision_on_a_gpu(dtype):
    reference = adapted(None).encode_image(IMAGES.float())
    split = adapted(dtype).cuda()
    split.shrink_frozen()
    with split.autocast():
        found = split.encode_image(IMAGES.float().cuda())
    assert found.dtype == dtype
    assert F.cosine_similarity(found.float().cpu(), reference).min() > 0.999
