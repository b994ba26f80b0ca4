"""Prompt tuning: learned vectors in place of a template (CoOp, arXiv 2109.01134; PromptFL 2208.11625).

The vectors stand between the start token and the class name, in the space of token embeddings; both towers
stay frozen, and the gradient reaches the vectors through the text tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flora.errors import BadInput
from flora.method import MatchingOptions, Method, register
from flora.prompts import Branches, Prompts, PromptTree

START_STD = 0.02


class PromptTuningOptions(MatchingOptions):
    """The defaults are CoOp's: 16 vectors that all classes share, trained by cross-entropy.

    Attributes:
        context: how many vectors.
        class_specific: whether each class has vectors of its own; such a method knows no other classes.
    """

    name: Literal["prompt_tuning"] = "prompt_tuning"
    loss: Literal["contrastive", "cross_entropy"] = "cross_entropy"
    context: int = Field(16, ge=1)
    class_specific: bool = False


@register("prompt_tuning")
class PromptTuning(Method):
    """Context vectors (context, width), or as many for each class: (classes, context, width)."""

    Options = PromptTuningOptions
    options: PromptTuningOptions

    def prepare(self, generator: torch.Generator) -> None:
        """Draw the vectors from N(0, 0.02^2)."""
        shape = *self._sets(), self.options.context, self._embedding.embedding_dim
        # in float32 on the CPU: the same start on every device and in every precision
        start = START_STD * torch.randn(shape, generator=generator)
        self.context = nn.Parameter(start.to(self.clip.logit_scale))
        self.open_vocabulary = not self.options.class_specific

    def closed_form(self) -> int:
        """Count context x width, times the classes if each has its own."""
        return prod(self._sets()) * self.options.context * self._embedding.embedding_dim

    @property
    def trains_prompts(self) -> bool:
        """Yes: what goes into the frozen text tower changes."""
        return True

    def tokens_of(self, prompts: Prompts) -> Tensor:
        """Keep places for the vectors behind the start token.

        Raises:
            BadInput: the text tower is none of CLIP's own, or the prompts grow longer than it reads.
        """
        if not (hasattr(self.clip.text, "token_embedding") and self.clip.reads_prompt_at_end):
            raise BadInput(
                "method.name: prompt_tuning needs a causal text tower that is read at its end token, as "
                "CLIP's own; this model has another"
            )
        names, context = prompts.bare, self.options.context
        if (room := names.tokens.shape[1] - names.longest) < context:
            raise BadInput(
                f"method.context: {context} vectors do not fit beside the longest class of {names.longest} "
                f"tokens into this model's {names.tokens.shape[1]}; at most {room} do"
            )
        return super().tokens_of(names.with_room(context))

    @property
    def _embedding(self) -> nn.Embedding:
        layer = self.clip.text.token_embedding
        assert isinstance(layer, nn.Embedding)
        return layer

    def _sets(self) -> tuple[int, ...]:
        return (self.classes,) if self.options.class_specific else ()

    def tree_of(self, tokens: Tensor) -> PromptTree:
        """Give the prompts as a tree; vectors of each class's own are in its own branch."""
        return PromptTree(tokens, self.clip.prompt_ends(tokens), shared=not self.options.class_specific)

    def encode_prompts(self, labels: Tensor) -> Tensor:
        """Embed a whole prompt for each of `labels` (n,): unit rows (n, dim)."""
        places = torch.arange(self._tokens.shape[1], device=labels.device)
        with self._put_in(places, labels[:, None]):
            return super().encode_prompts(labels)

    def embed_branches(self, branches: Branches) -> Tensor:
        """Give what enters the text tower's first block for each node of a tree: (nodes, width)."""
        with self._put_in(branches.positions, branches.owners):
            return super().embed_branches(branches)

    @contextmanager
    def _put_in(self, positions: Tensor, owners: Tensor) -> Iterator[None]:
        """Have the vectors stand where there is room for them.

        Args:
            positions: each token's place in its prompt.
            owners: its class; of a shape that broadcasts with `positions` to that of the tokens.
        """
        last = self.options.context
        which = positions.clamp(1, last) - 1
        context = self.context[owners, which] if self.options.class_specific else self.context[which]
        is_learned = ((positions >= 1) & (positions <= last))[..., None]

        def replaced(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            return torch.where(is_learned, context.to(embedded.dtype), embedded)

        hook = self._embedding.register_forward_hook(replaced)
        try:
            yield
        finally:
            hook.remove()
