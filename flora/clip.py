"""An open_clip model whose attention is split into separate query, key, value and output layers.

open_clip's blocks use `torch.nn.MultiheadAttention`: one packed matrix for query, key and value, and an
output layer whose weight a fused kernel reads past the module. Neither can be adapted by PEFT without
merging on every forward. `split` puts four `nn.Linear` layers in the place of each, and one `nn.Linear` in
the place of each tower's projection matrix; the function computed stays the same.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.errors import BadInput, nearest

# A place of a block, as papers name it, and the layers it stands for in the split model.
BLOCK_LAYERS = {
    "query": ("attn.q_proj",),
    "key": ("attn.k_proj",),
    "value": ("attn.v_proj",),
    "out": ("attn.out_proj",),
    "mlp": ("mlp.c_fc", "mlp.c_proj"),
}
PLACES = tuple(f"{tower}.{part}" for tower in ("text", "vision") for part in (*BLOCK_LAYERS, "head"))


class SplitAttention(nn.Module):
    """Multi-head attention through four Linear layers, a drop-in for a batch-first `nn.MultiheadAttention`.

    Args:
        packed: the module to take weights from; its tensors are copied once, here.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        if packed.bias_k is not None or packed.add_zero_attn or not packed.batch_first or packed.dropout:
            raise ValueError("only a batch-first attention without dropout or added keys can be split")
        self.heads = packed.num_heads
        if packed.in_proj_weight is not None:
            weights = packed.in_proj_weight.chunk(3)
        else:
            weights = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        biases = packed.in_proj_bias.chunk(3) if packed.in_proj_bias is not None else (None,) * 3
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)

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
        if attn_mask is not None:
            attn_mask = attn_mask[..., : query.shape[1], : key.shape[1]]
            if attn_mask.ndim == 3:  # open_clip stacks the heads along the batch
                attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        attended = F.scaled_dot_product_attention(
            self._by_head(self.q_proj(query)),
            self._by_head(self.k_proj(key)),
            self._by_head(self.v_proj(value)),
            attn_mask=attn_mask,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Clip(nn.Module):
    """The two towers of a CLIP, their heads and the logit scale, each an ordinary submodule.

    Args:
        model: an open_clip model with `visual`, `text` and `logit_scale` (built with
            `force_custom_text=True`); it is taken over and must not be used afterwards.

    Attributes:
        vision, text: the towers up to their pooled output.
        vision_head, text_head: the projections into the shared space; `nn.Identity` where a tower has its
            projection inside.
        logit_scale: log of the factor on cosine similarities, a scalar.
    """

    vision: nn.Module
    text: nn.Module
    logit_scale: nn.Parameter

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.text = model.visual, model.text
        self._dim = int(model.text.output_dim)
        self.vision_head = _take_head(self.vision, "proj")
        self.text_head = _take_head(self.text, "text_projection")
        self.logit_scale = model.logit_scale
        _split_attention(self)
        self.eval()

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed preprocessed images (n, 3, height, width) as (n, dim), not normalised."""
        return self.vision_head(self.vision(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed token ids (n, length) as (n, dim), not normalised."""
        return self.text_head(self.text(tokens))

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self._dim

    @property
    def reads_prompt_at_end(self) -> bool:
        """Whether tokens behind the end token cannot change a text's embedding, so that they may be cut.

        True of causal text towers that pool at the end token.
        """
        return (
            getattr(self.text, "attn_mask", None) is not None
            and getattr(self.text, "cls_emb", None) is None
            and getattr(self.text, "pool_type", None) in ("argmax", "eos")
        )

    def layers_at(self, place: str) -> list[str]:
        """Names of the Linear layers that `place` (one of `PLACES`) stands for in this model.

        Raises:
            BadInput: no such place, or this model has no layers there.
        """
        if place not in PLACES:
            raise BadInput(f"method.places: {place!r} is no place in a CLIP{nearest(place, PLACES)}")
        found = self._layers_at(place)
        if not found:
            available = [p for p in PLACES if self._layers_at(p)]
            raise BadInput(
                f"method.places: this model has no adaptable layers at {place!r}; "
                f"it has them at {', '.join(available)}"
            )
        return found

    def _layers_at(self, place: str) -> list[str]:
        tower, part = place.split(".")
        linear = {name for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        if part == "head":
            return sorted({f"{tower}_head"} & linear)
        suffixes = tuple(f".{layer}" for layer in BLOCK_LAYERS[part])
        return sorted(name for name in linear if name.startswith(f"{tower}.") and name.endswith(suffixes))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a Linear layer holding copies of these tensors, drawing no random numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _take_head(tower: nn.Module, name: str) -> nn.Module:
    """Take a tower's projection, a (width, dim) matrix or a Linear layer, out of it as a Linear layer."""
    projection = getattr(tower, name, None)
    if projection is None:
        return nn.Identity()
    setattr(tower, name, None)
    return projection if isinstance(projection, nn.Linear) else _linear(projection.T.contiguous(), None)


def _split_attention(root: nn.Module) -> None:
    packed = [(n, m) for n, m in root.named_modules() if isinstance(m, nn.MultiheadAttention)]
    for name, module in packed:
        parent, _, attribute = name.rpartition(".")
        setattr(root.get_submodule(parent), attribute, SplitAttention(module))
