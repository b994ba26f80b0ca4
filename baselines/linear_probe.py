"""Linear probe: a linear classifier on the frozen image features ("FedLC" in arXiv 2404.15182).

It starts from the zero-shot classifier, the text embeddings of the class prompts, so that before training it
predicts what zero-shot CLIP predicts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.features import Batch
from flora.method import Method, cross_entropy, register
from flora.settings import Options


class LinearProbeOptions(Options):
    """There is nothing to choose."""

    name: Literal["linear_probe"] = "linear_probe"


@register("linear_probe")
class LinearProbe(Method):
    """Weights (classes, dim) and biases (classes) on unit image features, under the frozen logit scale."""

    Options = LinearProbeOptions
    open_vocabulary = False

    def prepare(self, generator: torch.Generator) -> None:
        """Take the zero-shot classifier over as weights."""
        self.weight = nn.Parameter(super().classifier().clone())
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))

    def closed_form(self) -> int:
        """Count classes x dim weights and a bias a class."""
        return self.classes * (self.clip.dim + 1)

    def classifier(self) -> Tensor:
        """Give the trained weights (classes, dim)."""
        return self.weight

    def logits(self, batch: Batch, classifier: Tensor) -> Tensor:
        """Score by the trained layer: (n, classes)."""
        features = self.image_features(batch)
        with self.in_full_precision():
            return self.scale * F.linear(features, classifier, self.bias)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the classes."""
        return cross_entropy(self.logits(batch, self.weight), batch)
