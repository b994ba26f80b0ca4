"""The contract a method fulfils, and the registry of methods.

A method is a module around a CLIP. It says which tensors train (those that require a gradient after
`prepare`), the loss of a batch and the logits of a batch; everything else about it follows from these. The
defaults are zero-shot CLIP (arXiv 2103.00020), so that a method need state only in what it differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.aggregation import Aggregator, WeightedMean
from flora.clip import ENCODED, Clip
from flora.features import Batch, Texts
from flora.prompts import Branches, Prompts, PromptTree
from flora.settings import Options

Acceleration = Literal["exact", "none"]

# Prompts that are read as one sequence where there are more: attention's cost grows with its square.
PROMPTS_AT_ONCE = 128


class MatchingOptions(Options):
    """Options of methods that train by matching images with prompts.

    Attributes:
        loss: "contrastive" matches the images of a batch with their own prompts, symmetrically, as CLIP is
            trained (images of one class count as negatives of each other); "cross_entropy" scores each
            image against the prompts of all classes. Both are softmax losses, of models pretrained with
            a sigmoid loss too, so that methods and models are compared under one loss.
    """

    loss: Literal["contrastive", "cross_entropy"] = "contrastive"


class Method(nn.Module, ABC):
    """What is trained in a CLIP, by which loss, and how it classifies.

    Subclasses override `prepare` and `closed_form`, and what they do differently of `image_features`,
    `classifier`, `logits` and `loss`. One instance is used for all clients and the server: the trainable
    tensors are loaded into it.

    Attributes:
        open_vocabulary: whether it can classify into classes that it was not trained on, by their prompts
            alone; a class of methods may leave it to their options.

    Args:
        clip: the model; it is taken over. One that computes in a lower precision may shrink what the method
            left frozen (`Clip.shrink_frozen`) once no other method will be built on it.
        prompts: one prompt a class.
        options: an instance of this class's `Options`.
        generator: for the initial values of what the method adds.
        acceleration: "exact" encodes each distinct prompt once, up to its end, what prompts begin with alike
            once, and what is frozen once in all; "none" encodes one prompt an image at full length, every
            time.
    """

    Options: ClassVar[type[Options]] = Options
    aggregator: ClassVar[type[Aggregator]] = WeightedMean
    options: Any
    open_vocabulary: bool = True

    def __init__(
        self,
        clip: Clip,
        prompts: Prompts,
        options: Any,
        generator: torch.Generator,
        acceleration: Acceleration = "exact",
    ) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.options = options
        self.exact = acceleration == "exact"
        self._trainable: dict[str, nn.Parameter] = {}
        self._trains_text = False
        self._frozen_blocks = 0
        self._kept_text: Tensor | None = None
        self._kept_nodes: Tensor | None = None
        self._read(prompts)
        self.prepare(generator)
        # settled now, and asked for in every step
        self._trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self._trains_text = self.trains_prompts or _any_trains(self.clip.text, self.clip.text_head)
        if self._tree is not None and self._trains_text and not self.trains_prompts:
            self._frozen_blocks = self.clip.frozen_text_blocks
        self._kept_text = None  # preparing may have asked for it, and nobody else may ever
        self.eval()

    @abstractmethod
    def prepare(self, generator: torch.Generator) -> None:
        """Add what the method adds, and set `requires_grad` on what trains; the CLIP arrives frozen."""

    @abstractmethod
    def closed_form(self) -> int:
        """Count the parameters that are meant to train, from the dimensions of the model and the classes.

        Every run holds what really travels against this.
        """

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._tokens)

    @property
    def prompt_sizes(self) -> tuple[int, ...]:
        """How many classes there are, and how many tokens are read for them: at once, or in each part."""
        read = [part.nodes.numel() for part in self._parts] or [self._tokens.numel()]
        return (self.classes, *read)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The tensors that train and travel, by name, in a fixed order."""
        return self._trainable

    @property
    def frozen_image_stages(self) -> int:
        """How many of the first stages of the image tower may be kept, as `Clip.frozen_image_stages`."""
        return self.clip.frozen_image_stages

    @property
    def shared_tensors(self) -> list[Tensor]:
        """All that a step reads and every client has alike: weights, and what was kept of frozen towers."""
        kept = [x for x in (self._kept_text, self._kept_nodes) if x is not None]
        return [*self.parameters(), *self.buffers(), *kept]

    @property
    def products(self) -> Sequence[tuple[str, str]]:
        """Pairs of trainable tensors, (out, rank) and (rank, in), that act by their product alone."""
        return ()

    @property
    def trains_vision(self) -> bool:
        """Whether any of the image tower changes in training, so that its features may not be kept."""
        return self.frozen_image_stages != ENCODED

    @property
    def trains_prompts(self) -> bool:
        """Whether what goes into the text tower changes in training; a method that trains it says so here."""
        return False

    @property
    def trains_text(self) -> bool:
        """Whether the prompts' embeddings change in training, so that they may not be kept."""
        return self._trains_text

    @property
    def scale(self) -> Tensor:
        """Factor on cosine similarities, a scalar."""
        return self.clip.logit_scale.exp()

    def tokens_of(self, prompts: Prompts) -> Tensor:
        """Give the token ids (classes, length) that the text tower reads for `prompts`."""
        return prompts.tokens

    def tree_of(self, tokens: Tensor) -> PromptTree:
        """Give the prompts of token ids (classes, length) as a tree."""
        return PromptTree(tokens, self.clip.prompt_ends(tokens))

    def _read(self, prompts: Prompts) -> None:
        """Classify into the classes of `prompts` from here on."""
        tokens = self.tokens_of(prompts)
        self._tokens = tokens.to(self.clip.logit_scale.device)
        self._tree = self.tree_of(tokens) if self.exact and self.clip.reads_prompt_at_end else None
        self._parts: list[Branches] = []
        if self._tree is not None:
            self._parts = [part.to(self._tokens.device) for part in self._cut(np.arange(self.classes))]
        self._kept_text = self._kept_nodes = None

    @contextmanager
    def prompted(self, prompts: Prompts) -> Iterator[None]:
        """Classify into the classes of `prompts` meanwhile, whatever was trained on.

        Raises:
            ValueError: the method knows no classes but those it was trained on.
        """
        if not self.open_vocabulary:
            raise ValueError(f"{self.options.name} classifies only into the classes it was trained on")
        before = self._tokens, self._tree, self._parts, self._kept_text, self._kept_nodes
        try:
            self._read(prompts)
            yield
        finally:
            self._tokens, self._tree, self._parts, self._kept_text, self._kept_nodes = before

    def collate(self, batch: Batch) -> Batch:
        """Choose the prompts that the batch needs, which depends on its labels and not on shapes alone.

        The clients' loop calls it before each step. A loss works without, too.
        """
        if not self.exact or batch.texts is not None:
            return batch
        self.keep_frozen()
        if not self.needs_texts:
            return batch
        on_cpu = batch.labels.cpu() if batch.classes is None else batch.classes
        return replace(batch, texts=self.choose_texts(on_cpu).to(batch.labels.device))

    def keep_frozen(self) -> None:
        """Compute what of the text tower stays as it is, before what follows gradients asks for it."""
        if not self.trains_text:
            self._all_prompts()
        elif self._frozen_blocks:
            self._nodes_of_frozen_blocks()

    @property
    def needs_texts(self) -> bool:
        """Whether a step needs its own samples' prompts, to be chosen before it: not where it needs all."""
        return self.exact and self.trains_text and getattr(self.options, "loss", "") != "cross_entropy"

    def choose_texts(self, classes: Tensor, at_once: int = PROMPTS_AT_ONCE) -> Texts:
        """Choose the prompts of samples of these classes (n,), all on the CPU, so many in one sequence."""
        distinct, position = np.unique(classes.numpy(), return_inverse=True)
        parts = () if self._tree is None else tuple(self._cut(distinct, at_once))
        return Texts(torch.from_numpy(distinct), torch.from_numpy(position), parts)

    def encode_images(self, batch: Batch) -> Tensor:
        """Give what the image tower makes of the batch (n, dim), not normalised.

        The tower computes in the model's `compute_dtype`; what follows is in the precision of what trains.
        """
        with self.clip.autocast():
            features = self.clip.encode_image(batch.inputs, batch.stage)
        return features.to(self.clip.logit_scale.dtype)

    def image_features(self, batch: Batch) -> Tensor:
        """Embed the batch's images as unit rows (n, dim)."""
        return F.normalize(self.encode_images(batch), dim=-1)

    def text_features(self, batch: Batch) -> Tensor:
        """Embed each sample's own prompt as unit rows (n, dim)."""
        if not self.exact:
            return self.encode_prompts(batch.labels)
        if not self.trains_text:
            return self._all_prompts()[batch.labels]
        texts = batch.texts
        if texts is None:
            texts = self.choose_texts(batch.labels.cpu()).to(batch.labels.device)
        if not texts.branches:
            return self.encode_prompts(texts.classes)[texts.position]
        return torch.cat([self.encode_branches(part) for part in texts.branches])[texts.position]

    def classifier(self) -> Tensor:
        """What images are scored against: unit rows (classes, dim), computed once an evaluation."""
        return self._all_prompts()

    def logits(self, batch: Batch, classifier: Tensor) -> Tensor:
        """Score a batch against `classifier`: (n, classes)."""
        return self.similarities(self.image_features(batch), classifier)

    def similarities(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scale the cosines of unit rows (n, dim) and (m, dim), and add the bias of a model that has one.

        Returns:
            (n, m); a bias, the same for all, leaves softmax losses and predictions as they are.
        """
        with self.in_full_precision():
            scaled = self.scale * images @ texts.T
        return scaled if self.clip.logit_bias is None else scaled + self.clip.logit_bias

    def in_full_precision(self) -> AbstractContextManager[Any]:
        """Compute in the precision of the operands, even where a caller has set a lower one.

        Similarities need it: scaled by 100, they would be off by up to a half in bfloat16.
        """
        if self.clip.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.clip.logit_scale.device.type, enabled=False)

    def loss(self, batch: Batch) -> Tensor:
        """Give the mean loss of a batch, a scalar, by the option `loss`."""
        if self.options.loss == "cross_entropy":
            return cross_entropy(self.logits(batch, self.classifier()), batch)
        images, texts = self.image_features(batch), self.text_features(batch)
        return contrastive(self.similarities(images, texts), batch.real)

    def forward(self, batch: Batch) -> Tensor:
        """Give the loss, so that functional transforms can call the method as a module."""
        return self.loss(batch)

    def encode_prompts(self, labels: Tensor) -> Tensor:
        """Embed a whole prompt for each of `labels` (n,): unit rows (n, dim)."""
        with self.clip.autocast():
            features = self.clip.encode_text(self._tokens[labels])
        return F.normalize(features.to(self.clip.logit_scale.dtype), dim=-1)

    def encode_branches(self, branches: Branches) -> Tensor:
        """Embed the prompts of a tree: unit rows (n, dim)."""
        with self.clip.autocast():
            if self._frozen_blocks:
                entering = self._nodes_of_frozen_blocks()[branches.nodes]
            else:
                entering = self.embed_branches(branches)
            leaving = self.clip.run_text_blocks(entering, branches, slice(self._frozen_blocks, None))
            features = self.clip.pool_branches(leaving, branches)
        return F.normalize(features.to(self.clip.logit_scale.dtype), dim=-1)

    def embed_branches(self, branches: Branches) -> Tensor:
        """Give what enters the text tower's first block for each node of a tree: (nodes, width)."""
        return self.clip.embed_branches(branches)

    def _cut(self, classes: np.ndarray, at_once: int = PROMPTS_AT_ONCE) -> list[Branches]:
        """Give the prompts of `classes` (n,) as sequences of at most so many, on the CPU."""
        assert self._tree is not None
        starts = range(0, len(classes), at_once)
        return [self._tree.branches(classes[start : start + at_once]) for start in starts]

    def _all_prompts(self) -> Tensor:
        """Embed the prompts of all classes, once in all where they do not change."""
        if not self.exact or self.trains_text:
            return self._encode_all()
        if self._kept_text is None:
            # what is made in inference mode could not take part in a gradient later
            with torch.inference_mode(False), torch.no_grad():
                self._kept_text = self._encode_all()
        return self._kept_text

    def _encode_all(self) -> Tensor:
        if self._tree is None:
            return self.encode_prompts(torch.arange(self.classes, device=self._tokens.device))
        return torch.cat([self.encode_branches(part) for part in self._parts])

    def _nodes_of_frozen_blocks(self) -> Tensor:
        """Give what leaves the text tower's frozen first blocks, for all nodes of the tree, once in all."""
        if self._kept_nodes is None:
            assert self._tree is not None
            frozen = slice(self._frozen_blocks)
            with torch.inference_mode(False), torch.no_grad(), self.clip.autocast():
                parts = [
                    (part.nodes, self.clip.run_text_blocks(self.embed_branches(part), part, frozen))
                    for part in self._parts
                ]
            nodes, rows = (torch.cat(x) for x in zip(*parts, strict=True))
            self._kept_nodes = torch.empty_like(rows[: len(self._tree)]).index_copy_(0, nodes, rows)
        return self._kept_nodes


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of (n, classes) logits over the samples of a batch that count."""
    return _mean(F.cross_entropy(logits, batch.labels, reduction="none"), batch.real)


def contrastive(similarities: Tensor, real: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of (n, n) scaled similarities, the matches on the diagonal (CLIP's loss).

    Args:
        similarities: of images, row by row, with their own prompts and each other's.
        real: (n,) which of them count, also as each other's negatives; None if all do.
    """
    matches = torch.arange(len(similarities), device=similarities.device)

    def one_way(scores: Tensor) -> Tensor:
        if real is not None:
            scores = scores.masked_fill(~real, float("-inf"))
        return _mean(F.cross_entropy(scores, matches, reduction="none"), real)

    return (one_way(similarities) + one_way(similarities.T)) / 2


def _mean(losses: Tensor, real: Tensor | None) -> Tensor:
    """Mean of losses (n,) over those that count."""
    if real is None:
        return losses.mean()
    return torch.where(real, losses, 0).sum() / real.sum()


def _any_trains(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Claim `name` for a method class.

    Raises:
        ValueError: the name is taken.
    """

    def claim(cls: M) -> M:
        if name in METHODS:
            raise ValueError(f"the method name {name!r} is already taken by {METHODS[name].__qualname__}")
        METHODS[name] = cls
        return cls

    return claim
