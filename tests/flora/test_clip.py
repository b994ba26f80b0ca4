"""The split model against the untouched one, the places adapters can go, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flora.clip import PLACES, SplitAttention
from flora.errors import BadInput
from flora.prompts import Prompts
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


def test_split_draws_no_random_numbers_and_copies_its_weights():
    model = toy.open_clip_model()
    packed = model.text.transformer.resblocks[0].attn
    before = torch.get_rng_state()
    split = SplitAttention(packed)
    assert torch.equal(torch.get_rng_state(), before)
    first = split.q_proj.weight.clone()
    with torch.no_grad():
        packed.in_proj_weight.zero_()
    assert torch.equal(split.q_proj.weight, first)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_split_keeps_the_number_of_parameters_of_real_architectures(name):
    count = sum(p.numel() for p in toy.architecture(name).parameters())
    assert count == {"ViT-B-32": 151_277_313, "ViT-L-14": 427_616_513}[name]


# Any class names, of at most 10 tokens; token 0 is an ordinary one of CLIP's vocabulary, "!".
NAMES = st.lists(st.lists(st.integers(0, 47), max_size=10), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(names=NAMES)
def test_cut_prompts_give_the_same_text_features(names):
    tokens = toy.tokens(names)
    cut = Prompts(tuple(map(str, names)), tokens).cut
    assert cut.shape == (len(names), max(map(len, names)) + 2)
    with torch.no_grad():
        whole, short = CLIP.encode_text(tokens), CLIP.encode_text(cut)
    assert torch.allclose(whole, short, rtol=0, atol=1e-12)


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
        same = torch.allclose(split.encode_text(prompts.cut), split.encode_text(prompts.tokens))
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


@pytest.mark.parametrize("setting", ["qk_norm", "scale_attn"])
def test_a_tower_with_other_blocks_says_where_it_can_be_adapted(setting):
    # open_clip's own attention class keeps query, key and value packed: no Linear layers to adapt
    split = toy.clip(text={**toy.TEXT, setting: True})
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
