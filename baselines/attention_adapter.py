"""Attention adapter: image features weighted by a small trained network (FedCLIP, arXiv 2302.13485; "FedAA").

The network is Linear, Tanh, Linear, Softmax over the feature's entries; its output multiplies the feature,
and the product is normalised. Both linear layers start at the identity.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flora.features import Batch
from flora.method import MatchingOptions, Method, register


class AttentionAdapterOptions(MatchingOptions):
    """Only the loss is to be chosen."""

    name: Literal["attention_adapter"] = "attention_adapter"


@register("attention_adapter")
class AttentionAdapter(Method):
    """Both towers stay frozen; the adapter sits behind the image tower."""

    Options = AttentionAdapterOptions
    options: AttentionAdapterOptions

    def prepare(self, generator: torch.Generator) -> None:
        """Build the adapter, both of its layers the identity."""
        self.first, self.second = self._identity(), self._identity()

    def closed_form(self) -> int:
        """Count two square layers of the shared width with their biases."""
        return 2 * self.clip.dim * (self.clip.dim + 1)

    def image_features(self, batch: Batch) -> Tensor:
        """Embed the images and weigh the entries of each embedding: unit rows (n, dim)."""
        features = self.encode_images(batch)
        attention = self.second(torch.tanh(self.first(features))).softmax(dim=-1)
        return F.normalize(attention * features, dim=-1)

    def _identity(self) -> nn.Linear:
        like = self.clip.logit_scale
        layer = nn.Linear(self.clip.dim, self.clip.dim, device="meta")
        layer.weight = nn.Parameter(torch.eye(self.clip.dim, dtype=like.dtype, device=like.device))
        layer.bias = nn.Parameter(torch.zeros_like(layer.weight[0]))
        return layer
