"""An open_clip model whose attention is split into separate query, key, value and output layers.

open_clip's blocks use `torch.nn.MultiheadAttention`: one packed matrix for query, key and value, and an
output layer whose weight a fused kernel reads past the module. Neither can be adapted by PEFT without
merging on every forward. Four `nn.Linear` layers are put in the place of each, and one `nn.Linear` in the
place of each tower's projection matrix; the function computed stays the same. Towers of other make (timm's,
Hugging Face's, open_clip's ResNets) are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.errors import BadInput, nearest
from flora.prompts import Branches

# A place of a block, as papers name it, and the layers it stands for: in open_clip's blocks once they are
# split, and in timm's, of whose layers only those are named that are called as the modules they are.
BLOCK_LAYERS = {
    "query": ("attn.q_proj",),
    "key": ("attn.k_proj",),
    "value": ("attn.v_proj",),
    "out": ("attn.out_proj", "attn.proj"),
    "mlp": ("mlp.c_fc", "mlp.c_proj", "mlp.fc1", "mlp.fc2"),
}
# The projection into the shared space: taken out of open_clip's towers, inside of timm's.
HEAD_LAYERS = ("{tower}_head", "{tower}.head.proj", "{tower}.trunk.head")
PLACES = tuple(f"{tower}.{part}" for tower in ("text", "vision") for part in (*BLOCK_LAYERS, "head"))

# What `Clip` calls open_clip's projections.
_PROJECTIONS = {"vision_head": "visual.proj", "text_head": "text.text_projection"}
# Parts of a text tower that `open_clip.CLIP` has at its top, where `CustomTextCLIP` has them in `text`.
_PLAIN_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
# Parts of open_clip's image tower that come before its blocks.
_BEFORE_BLOCKS = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")

# The stage of an image that has been through the whole image tower.
ENCODED = 1_000_000


@dataclass(frozen=True)
class Stage:
    """A part of a tower that is computed after the one before it and before the next.

    Attributes:
        name: for people.
        parameters: what it computes with.
        compute: its output of the output of the stage before.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    compute: Callable[[Tensor], Tensor]

    @property
    def trains(self) -> bool:
        """Whether any of its parameters requires a gradient."""
        return any(p.requires_grad for p in self.parameters)


class _FourLayers(nn.Module):
    """What both kinds of split attention have: four Linear layers that hold the packed weights."""

    def __init__(
        self,
        heads: int,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        out: nn.Linear,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.separate = separate
        biases = bias.chunk(3) if bias is not None else (None,) * 3
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(out.weight, out.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Project and part into heads: (n, length, width) to (n, heads, length, width of a head) each."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        return [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected]

    def fit(self, mask: Tensor | None, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Cut an additive mask to these sequences, in their precision."""
        if mask is None:
            return None
        if mask.dtype == torch.bool:  # it would be added as 0 and 1
            raise ValueError("a split attention takes an additive mask, not a boolean one")
        mask = mask[..., : queries.shape[2], : keys.shape[2]].to(queries.dtype)
        # open_clip stacks the heads along the batch
        return mask.unflatten(0, (-1, self.heads)) if mask.ndim == 3 else mask

    def repack(self, state: dict[str, Tensor], prefix: str) -> None:
        """Pack the weights in `state` whose names start with `prefix`, this module's, again."""
        weights = {f"{x}_proj_weight": state.pop(f"{prefix}{x}_proj.weight") for x in "qkv"}
        if not self.separate:
            weights = {"in_proj_weight": torch.cat(list(weights.values()))}
        state |= {prefix + name: weight for name, weight in weights.items()}
        if self.q_proj.bias is not None:
            state[f"{prefix}in_proj_bias"] = torch.cat([state.pop(f"{prefix}{x}_proj.bias") for x in "qkv"])


class SplitAttention(_FourLayers):
    """Multi-head attention through four Linear layers, a drop-in for a batch-first `nn.MultiheadAttention`.

    Args:
        packed: the module to take weights from; its tensors are taken over, not copied.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        if packed.bias_k is not None or packed.add_zero_attn or not packed.batch_first or packed.dropout:
            raise ValueError("only a batch-first attention without dropout or added keys can be split")
        separate = packed.in_proj_weight is None
        weights: Sequence[Tensor] = [packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight]
        if not separate:
            weights = packed.in_proj_weight.chunk(3)
        super().__init__(packed.num_heads, weights, packed.in_proj_bias, packed.out_proj, separate)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend from `query` (n, q, width) to `key` and `value` (n, k, width).

        `attn_mask` is additive and may be made for longer sequences: its leading part is used, which is
        right for a causal mask.
        """
        if need_weights:
            raise ValueError("a split attention does not return its weights")
        queries, keys, values = self.project(query, key, value)
        mask = self.fit(attn_mask, queries, keys)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class SplitSelfAttention(_FourLayers):
    """The same in the place of open_clip's own `Attention`, which may normalise and scale each head.

    Args:
        packed: the module to take weights from; its tensors and norms are taken over, not copied.
    """

    def __init__(self, packed: Any) -> None:
        if packed.scaled_cosine or packed.attn_drop.p or packed.out_drop.p:
            raise ValueError("only an attention without dropout and scaled cosines can be split")
        weights = packed.in_proj_weight.chunk(3)
        super().__init__(packed.num_heads, weights, packed.in_proj_bias, packed.out_proj)
        self.ln_q, self.ln_k, self.ln_inner = packed.ln_q, packed.ln_k, packed.ln_inner
        self.head_scale = packed.head_scale

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend within `x` (n, length, width); the mask as for `SplitAttention`."""
        queries, keys, values = self.project(x, x, x)
        mask = self.fit(attn_mask, queries, keys)
        attended = F.scaled_dot_product_attention(self.ln_q(queries), self.ln_k(keys), values, attn_mask=mask)
        if self.head_scale is not None:
            attended = attended * self.head_scale
        return self.out_proj(self.ln_inner(attended.transpose(1, 2).flatten(2)))


class Clip(nn.Module):
    """The two towers of a CLIP, their heads and the logit scale, each an ordinary submodule.

    A caption decoder (CoCa's) is left out: no method here has a use for it.

    Args:
        model: an open_clip model with `visual`, `text` and `logit_scale` (a `CustomTextCLIP` or a `CoCa`);
            it is taken over and must not be used afterwards.
        compute_dtype: the precision that `autocast` sets, or None for that of the weights.

    Attributes:
        vision, text: the towers up to their pooled output.
        vision_head, text_head: the projections into the shared space; `nn.Identity` where a tower has its
            projection inside.
        logit_scale: log of the factor on cosine similarities, a scalar.
        logit_bias: what is added to the scaled similarities, a scalar (SigLIP), or None. The same for all
            pairs, so that it changes neither a softmax over classes nor which one is predicted.
    """

    vision: nn.Module
    text: nn.Module
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(self, model: Any, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.vision, self.text = model.visual, model.text
        self.compute_dtype = compute_dtype
        self._dim = int(model.text.output_dim)
        self.vision_head = _take_head(self.vision, "proj")
        self.text_head = _take_head(self.text, "text_projection")
        self.logit_scale = model.logit_scale
        self.register_parameter("logit_bias", getattr(model, "logit_bias", None))
        for tower in (model.visual, model.text):
            if getattr(tower, "output_tokens", False):
                tower.output_tokens = False  # CoCa's towers give their tokens too, for its decoder
        _split_attention(self)
        self.eval()

    def encode_image(self, images: Tensor, stage: int = 0) -> Tensor:
        """Embed preprocessed images (n, 3, height, width) as (n, dim), not normalised.

        Args:
            images: the images; or, with a later `stage`, what enters that one of `image_stages`.
            stage: where to go on from; `ENCODED` to return what was given.
        """
        return images if stage == ENCODED else self.run_image_stages(images, slice(stage, None))

    def run_image_stages(self, entering: Tensor, stages: slice) -> Tensor:
        """Take images, or what enters a later stage, through some of `image_stages`."""
        for stage in self.image_stages[stages]:
            entering = stage.compute(entering)
        return entering

    @property
    def image_stages(self) -> list[Stage]:
        """The image tower in parts: of open_clip's own the patches, each block and the pooling; its head."""
        return [*_tower_stages(self.vision), _stage("head", self.vision_head)]

    @property
    def frozen_image_stages(self) -> int:
        """How many of the first `image_stages` do not change in training; `ENCODED` if none does."""
        training = [number for number, stage in enumerate(self.image_stages) if stage.trains]
        return training[0] if training else ENCODED

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed token ids (n, length) as (n, dim), not normalised."""
        return self.text_head(self.text(tokens))

    def embed_branches(self, branches: Branches) -> Tensor:
        """Give what enters the text tower's first block, for each node of a tree: (nodes, width)."""
        text: Any = self.text
        dtype = text.transformer.get_cast_dtype()
        positions = text.positional_embedding[branches.positions]
        return text.token_embedding(branches.tokens).to(dtype) + positions.to(dtype)

    def run_text_blocks(self, entering: Tensor, branches: Branches, blocks: slice) -> Tensor:
        """Take the nodes (nodes, width) of a tree through some of the text tower's blocks."""
        text: Any = self.text
        x, mask = entering[None], branches.mask.to(entering.dtype)
        for block in text.transformer.resblocks[blocks]:
            x = block(x, attn_mask=mask)
        return x[0]

    def pool_branches(self, leaving: Tensor, branches: Branches) -> Tensor:
        """Embed the prompts of a tree by what leaves the last block at its nodes (nodes, width): (n, dim)."""
        text: Any = self.text
        return self.text_head(text.ln_final(leaving[branches.ends]))

    @property
    def text_blocks(self) -> int:
        """Number of the text tower's blocks; it must be one of open_clip's own."""
        text: Any = self.text
        return len(text.transformer.resblocks)

    @property
    def frozen_text_blocks(self) -> int:
        """How many of the first blocks, and all that is before them, do not change in training."""
        text: Any = self.text
        embedding = (text.token_embedding.weight, text.positional_embedding)
        if any(p.requires_grad for p in embedding):
            return 0
        training = [i for i, block in enumerate(text.transformer.resblocks) if _trains(block)]
        return training[0] if training else self.text_blocks

    def prompt_ends(self, tokens: Tensor) -> Tensor:
        """Find the end token in each row of (n, length) token ids: (n,) positions.

        Only where `reads_prompt_at_end` holds.
        """
        text: Any = self.text
        if text.pool_type == "eos":
            return (tokens == text.eos_id).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)  # the end token has the highest number

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self._dim

    @property
    def reads_prompt_at_end(self) -> bool:
        """Whether tokens behind the end token cannot change a text's embedding, so that they may be cut.

        True of causal text towers that pool at the end token.
        """
        text: Any = self.text
        if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
            return False
        if getattr(text, "use_pad_mask", False):
            return False
        # an end token of id 0 could not be told from what is behind it
        return text.pool_type == "argmax" or (text.pool_type == "eos" and text.eos_id != 0)

    def autocast(self) -> AbstractContextManager[Any]:
        """Have matrix products computed in `compute_dtype`; without effect where that is None.

        The encoders do not enter it by themselves. Once `shrink_frozen` was called they need it.
        """
        if self.compute_dtype is None:
            return nullcontext()
        # no cache: it would hand out weights cast before a step, or cast without a gradient
        return torch.autocast(self.logit_scale.device.type, self.compute_dtype, cache_enabled=False)

    def shrink_frozen(self) -> None:
        """Store the frozen matrices of Linear, convolution and embedding layers in `compute_dtype`.

        Norms, biases, positional embeddings and all that trains keep their precision. Call it once it is
        settled what trains. Without effect where `compute_dtype` is None.
        """
        if self.compute_dtype is None:
            return
        for module in self.modules():
            has_matrix = isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d))
            if has_matrix and not module.weight.requires_grad:
                module.weight.data = module.weight.data.to(self.compute_dtype)

    def open_clip_state(self, plain: bool = False) -> dict[str, Tensor]:
        """Give the weights as the open_clip model had them, bit for bit where nothing was trained.

        Adapters must have been merged and removed before. A CoCa's decoder is not among the weights. Tensors
        that need no rearranging share memory with this model.

        Args:
            plain: name the text tower's weights as `open_clip.CLIP` does, instead of `CustomTextCLIP`.

        Raises:
            ValueError: `plain`, but the text tower has parts that `open_clip.CLIP` has no place for.
        """
        state = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, _FourLayers):
                module.repack(state, f"{name}.")
        for head, name in _PROJECTIONS.items():
            # with a bias it was a Linear layer in open_clip too, without it a matrix on the right-hand side
            if f"{head}.bias" in state:
                state |= {f"{name}.{x}": state.pop(f"{head}.{x}") for x in ("weight", "bias")}
            elif f"{head}.weight" in state:
                state[name] = state.pop(f"{head}.weight").T.contiguous()
        state = {re.sub(r"^vision\.", "visual.", name): tensor for name, tensor in state.items()}
        return _plainly_named(state) if plain else state

    def layers_at(self, place: str, last_blocks: int | None = None) -> list[str]:
        """Names of the Linear layers that `place` (one of `PLACES`) stands for in this model.

        Args:
            place: the place.
            last_blocks: of layers within blocks only those of the last so many; None for all.

        Raises:
            BadInput: no such place, or this model has no layers there, or has fewer blocks.
        """
        if place not in PLACES:
            raise BadInput(f"method.places: {place!r} is no place in a CLIP{nearest(place, PLACES)}")
        found = self._layers_at(place)
        if not found:
            available = ", ".join(p for p in PLACES if self._layers_at(p))
            raise BadInput(
                f"method.places: this model has no adaptable layers at {place!r}; "
                + (f"it has them at {available}" if available else "it has none anywhere")
            )
        if last_blocks is None or place.endswith(".head"):
            return found
        blocks = sorted({_block_of(name) for name in found})
        if last_blocks > len(blocks):
            raise BadInput(
                f"method.blocks: {last_blocks} is more than this model's {len(blocks)} at {place!r}"
            )
        return [name for name in found if _block_of(name) in blocks[-last_blocks:]]

    def _layers_at(self, place: str) -> list[str]:
        tower, part = place.split(".")
        linear = {name for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        if part == "head":
            return sorted({name.format(tower=tower) for name in HEAD_LAYERS} & linear)
        suffixes = tuple(f".{layer}" for layer in BLOCK_LAYERS[part])
        return sorted(name for name in linear if name.startswith(f"{tower}.") and name.endswith(suffixes))


def _block_of(layer: str) -> tuple[int, ...]:
    """Give the numbers in a layer's name: its block's, and before it, in towers of several parts, theirs."""
    return tuple(int(part) for part in layer.split(".") if part.isdigit())


def _tower_stages(tower: Any) -> Iterator[Stage]:
    """Part an image tower of open_clip's own into its stages; any other is one stage."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(tower, VisionTransformer):
        yield _stage("tower", tower)
        return
    blocks = tower.transformer.resblocks
    named = dict(tower.named_parameters())
    before = [p for name, p in named.items() if name.startswith(_BEFORE_BLOCKS)]
    behind = [p for name, p in named.items() if not name.startswith((*_BEFORE_BLOCKS, "transformer."))]
    yield Stage("patches", before, tower._embeds)
    for number, block in enumerate(blocks, start=1):
        yield _stage(f"block {number} of {len(blocks)}", block)
    yield Stage("pooling", behind, lambda x: tower._pool(x)[0])


def _stage(name: str, module: nn.Module) -> Stage:
    return Stage(name, list(module.parameters()), module)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a Linear layer holding these very tensors, drawing no random numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def _take_head(tower: nn.Module, name: str) -> nn.Module:
    """Take a tower's projection, a (width, dim) matrix or a Linear layer, out of it as a Linear layer."""
    projection = getattr(tower, name, None)
    if projection is None:
        return nn.Identity()
    setattr(tower, name, None)
    return projection if isinstance(projection, nn.Linear) else _linear(projection.T.contiguous(), None)


def _split_attention(root: nn.Module) -> None:
    """Split every attention of open_clip's own blocks and poolers; the modules of others are left alone."""
    # the model that came in is open_clip's, so that this loads nothing
    from open_clip.transformer import Attention, AttentionalPooler, ResidualAttentionBlock

    for parent in list(root.modules()):
        if isinstance(parent, (ResidualAttentionBlock, AttentionalPooler)):
            parent.attn = SplitAttention(parent.attn)
        # open_clip itself fails to compute scaled cosine attention
        elif (
            isinstance(attention := getattr(parent, "attn", None), Attention) and not attention.scaled_cosine
        ):
            parent.attn = SplitSelfAttention(attention)


def _plainly_named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    other = [
        x for x in state if x.startswith("text.") and not x.removeprefix("text.").startswith(_PLAIN_TEXT)
    ]
    if other:
        raise ValueError(f"open_clip.CLIP has no place for {', '.join(other[:3])}")
    return named
