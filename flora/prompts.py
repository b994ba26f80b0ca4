"""Class names and a template, as token ids; and prompts as a tree, their common beginnings written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """One prompt a class.

    Attributes:
        texts: the prompts, in the order of the class indices.
        tokens: (classes, context length) int64 token ids, zero behind the end token.
        names: likewise of the class names alone, for methods that learn what stands around a name.
    """

    texts: tuple[str, ...]
    tokens: Tensor
    names: Tensor | None = None

    @classmethod
    def tokenize(
        cls,
        texts: Sequence[str],
        tokenizer: Callable[[list[str]], Tensor],
        class_names: Sequence[str] | None = None,
    ) -> Prompts:
        """Tokenise `texts`, and the class names in them, with a tokenizer of open_clip."""
        names = None if class_names is None else tokenizer(list(class_names))
        return cls(tuple(texts), tokenizer(list(texts)), names)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, start and end included."""
        return int((self.tokens != 0).any(dim=0).nonzero().max()) + 1

    @property
    def bare(self) -> Prompts:
        """The class names without anything around them; the prompts as they are where these are not known."""
        return self if self.names is None else replace(self, tokens=self.names)

    def with_room(self, places: int) -> Prompts:
        """Move all but the start token `places` back.

        In between stand copies of the start token, to be overwritten once they are embedded.

        Raises:
            ValueError: the longest prompt would not fit any more.
        """
        length = self.tokens.shape[1]
        if self.longest + places > length:
            raise ValueError(f"{places} more tokens do not fit into {length} beside {self.longest}")
        start = self.tokens[:, :1]
        moved = torch.cat([start, start.expand(-1, places), self.tokens[:, 1:]], dim=1)
        return replace(self, tokens=moved[:, :length])

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Branches:
    """Some prompts of a tree, as one sequence that a causal text tower reads at once.

    Attributes:
        tokens: (nodes,) token ids.
        positions: (nodes,) each token's place in its prompts, 0 for the start token.
        owners: (nodes,) a class whose prompt goes through the node; the only one, where nothing is shared.
        mask: (nodes, nodes) added to attention scores: 0 where a node is attended to, itself and those before
            it in its prompts, and minus infinity elsewhere.
        ends: (prompts,) node of each prompt's end token.
        nodes: (nodes,) their numbers in the whole tree.
    """

    tokens: Tensor
    positions: Tensor
    owners: Tensor
    mask: Tensor
    ends: Tensor
    nodes: Tensor

    def to(self, device: torch.device) -> Branches:
        """Move all tensors to `device`."""
        return Branches(**{name: x.to(device, non_blocking=True) for name, x in vars(self).items()})


class PromptTree:
    """Prompts up to their end tokens, what several begin with alike standing there once.

    In a causal text tower a token's activations depend on the tokens up to it alone: those of a common
    beginning are the same in every prompt that has it. "a photo of a cat." and "a photo of a dog." share
    five of their eight tokens.

    Args:
        tokens: (classes, length) token ids.
        ends: (classes,) position of each end token.
        shared: False keeps the prompts apart all the same, for methods that put something of each class's
            own into them.
    """

    def __init__(self, tokens: Tensor, ends: Tensor, shared: bool = True) -> None:
        known: dict[tuple[int, ...], int] = {}
        nodes: list[tuple[int, int, int]] = []
        paths = []
        for owner, (prompt, end) in enumerate(zip(tokens.tolist(), ends.tolist(), strict=True)):
            path = []
            for position in range(end + 1):
                beginning = (*(() if shared else (-owner,)), *prompt[: position + 1])
                if beginning not in known:
                    known[beginning] = len(nodes)
                    nodes.append((prompt[position], position, owner))
                path.append(known[beginning])
            paths.append(path)
        self._tokens, self._positions, self._owners = np.array(nodes, dtype=np.int64).T
        self._ends = np.array([path[-1] for path in paths])
        # row by row the nodes up to and with each node, filled up with the node itself
        self._before = np.tile(np.arange(len(nodes))[:, None], (1, max(map(len, paths))))
        for path in paths:
            for position, node in enumerate(path):
                self._before[node, :position] = path[:position]

    def __len__(self) -> int:
        return len(self._tokens)

    def branches(self, classes: np.ndarray) -> Branches:
        """Give the prompts of `classes` (n,), distinct, with the nodes they go through in ascending order."""
        ends = self._ends[classes]
        nodes = np.unique(self._before[ends])
        mask = np.full((len(nodes), len(nodes)), -np.inf, dtype=np.float32)
        np.put_along_axis(mask, np.searchsorted(nodes, self._before[nodes]), 0, axis=1)
        of_nodes = (self._tokens[nodes], self._positions[nodes], self._owners[nodes])
        return Branches(*map(torch.from_numpy, (*of_nodes, mask, np.searchsorted(nodes, ends), nodes)))
