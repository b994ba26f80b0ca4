"""Full fine-tuning: FedAvg over every weight (arXiv 1602.05629; "FedFFT" in arXiv 2404.15182)."""

from __future__ import annotations

from typing import Literal

import torch

from flora.method import MatchingOptions, Method, register


class FullFinetuneOptions(MatchingOptions):
    """Only the loss is to be chosen."""

    name: Literal["full_finetune"] = "full_finetune"


@register("full_finetune")
class FullFinetune(Method):
    """Every weight trains, the logit scale included."""

    Options = FullFinetuneOptions
    options: FullFinetuneOptions

    def prepare(self, generator: torch.Generator) -> None:
        """Let every weight train."""
        self.clip.requires_grad_(True)

    def closed_form(self) -> int:
        """Count every weight."""
        return sum(p.numel() for p in self.clip.parameters())
