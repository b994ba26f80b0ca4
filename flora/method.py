"""The contract a method fulfils, and the registry of methods.

A method is a module around a CLIP. It says which tensors train (those that require a gradient after
`prepare`), the loss of a batch and the logits of a batch; everything else about it follows from these. The
defaults are zero-shot CLIP (arXiv 2103.00020), so that a method need state only in what it differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.aggregation import Aggregator, WeightedMean
from flora.clip import Clip
from flora.features import Batch
from flora.prompts import Prompts
from flora.settings import Options

Acceleration = Literal["exact", "none"]


class MatchingOptions(Options):
    """Options of methods that train by matching images with prompts.

    Attributes:
        loss: "contrastive" matches the images of a batch with their own prompts, symmetrically, as CLIP is
            trained (images of one class count as negatives of each other); "cross_entropy" scores each
            image against the prompts of all classes.
    """

    loss: Literal["contrastive", "cross_entropy"] = "contrastive"


class Method(nn.Module, ABC):
    """What is trained in a CLIP, by which loss, and how it classifies.

    Subclasses override `prepare` and `closed_form`, and what they do differently of `image_features`,
    `classifier`, `logits` and `loss`. One instance is used for all clients and the server: the trainable
    tensors are loaded into it.

    Args:
        clip: the model; it is taken over.
        prompts: one prompt a class.
        options: an instance of this class's `Options`.
        generator: for the initial values of what the method adds.
        acceleration: "exact" encodes each distinct prompt once, cut to the longest, and a frozen text
            tower once in all; "none" encodes one prompt an image at full length, every time.
    """

    Options: ClassVar[type[Options]] = Options
    aggregator: ClassVar[type[Aggregator]] = WeightedMean
    options: Any

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
        device = clip.logit_scale.device
        cut = self.exact and clip.reads_prompt_at_end
        self._tokens = (prompts.cut if cut else prompts.tokens).to(device)
        self._kept_text: Tensor | None = None
        self.prepare(generator)
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
    def trainable(self) -> dict[str, nn.Parameter]:
        """The tensors that train and travel, by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def trains_vision(self) -> bool:
        """Whether the image tower changes in training, so that its features may not be kept."""
        return _any_trains(self.clip.vision, self.clip.vision_head)

    @property
    def trains_text(self) -> bool:
        """Whether the text tower changes in training."""
        return _any_trains(self.clip.text, self.clip.text_head)

    @property
    def scale(self) -> Tensor:
        """Factor on cosine similarities, a scalar."""
        return self.clip.logit_scale.exp()

    def encode_images(self, batch: Batch) -> Tensor:
        """Give what the image tower makes of the batch (n, dim), not normalised."""
        return batch.inputs if batch.encoded else self.clip.encode_image(batch.inputs)

    def image_features(self, batch: Batch) -> Tensor:
        """Embed the batch's images as unit rows (n, dim)."""
        return F.normalize(self.encode_images(batch), dim=-1)

    def text_features(self, labels: Tensor) -> Tensor:
        """Embed the prompts of classes `labels` (n,) as unit rows (n, dim)."""
        if not self.exact:
            return self._encode_prompts(labels)
        if self.trains_text:
            distinct, position = labels.unique(return_inverse=True)
            return self._encode_prompts(distinct)[position]
        if self._kept_text is None:
            with torch.no_grad():
                self._kept_text = self._encode_prompts(torch.arange(self.classes, device=labels.device))
        return self._kept_text[labels]

    def classifier(self) -> Tensor:
        """What images are scored against: unit rows (classes, dim), computed once an evaluation."""
        return self.text_features(torch.arange(self.classes, device=self._tokens.device))

    def logits(self, batch: Batch, classifier: Tensor) -> Tensor:
        """Score a batch against `classifier`: (n, classes)."""
        return self.scale * self.image_features(batch) @ classifier.T

    def loss(self, batch: Batch) -> Tensor:
        """Give the mean loss of a batch, a scalar, by the option `loss`."""
        if self.options.loss == "cross_entropy":
            return F.cross_entropy(self.logits(batch, self.classifier()), batch.labels)
        images, texts = self.image_features(batch), self.text_features(batch.labels)
        return contrastive(self.scale * images @ texts.T)

    def forward(self, batch: Batch) -> Tensor:
        """Give the loss, so that functional transforms can call the method as a module."""
        return self.loss(batch)

    def _encode_prompts(self, labels: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_text(self._tokens[labels]), dim=-1)


def contrastive(similarities: Tensor) -> Tensor:
    """Symmetric cross-entropy of (n, n) scaled similarities, the matches on the diagonal (CLIP's loss)."""
    matches = torch.arange(len(similarities), device=similarities.device)
    by_image = F.cross_entropy(similarities, matches)
    by_text = F.cross_entropy(similarities.T, matches)
    return (by_image + by_text) / 2


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
