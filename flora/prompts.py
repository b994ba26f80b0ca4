"""Class names and a template, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """One prompt a class.

    Attributes:
        texts: the prompts, in the order of the class indices.
        tokens: (classes, context length) int64 token ids, zero behind the end token.
    """

    texts: tuple[str, ...]
    tokens: Tensor

    @classmethod
    def tokenize(cls, texts: Sequence[str], tokenizer: Callable[[list[str]], Tensor]) -> Prompts:
        """Tokenise `texts` with a tokenizer of open_clip."""
        return cls(tuple(texts), tokenizer(list(texts)))

    @property
    def cut(self) -> Tensor:
        """The tokens up to the end of the longest prompt, (classes, longest).

        Exact in place of `tokens` wherever `Clip.reads_prompt_at_end` holds.
        """
        longest = int((self.tokens != 0).any(dim=0).nonzero().max()) + 1
        return self.tokens[:, :longest]

    def __len__(self) -> int:
        return len(self.texts)
