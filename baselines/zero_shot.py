"""Zero-shot CLIP: nothing is trained, the floor of every comparison (arXiv 2103.00020)."""

from __future__ import annotations

from typing import Literal

import torch

from flora.method import Method, register
from flora.settings import Options


class ZeroShotOptions(Options):
    """There is nothing to choose."""

    name: Literal["zero_shot"] = "zero_shot"


@register("zero_shot")
class ZeroShot(Method):
    """The model as it came."""

    Options = ZeroShotOptions
    options: ZeroShotOptions

    def prepare(self, generator: torch.Generator) -> None:
        """Leave everything frozen."""

    def closed_form(self) -> int:
        """Nothing trains."""
        return 0
