"""FLoRA: low-rank adapters in a frozen CLIP, averaged across clients (arXiv 2404.15182).

The adapters are PEFT's. FLoRA computes `W x + alpha * B A x` without dividing by the rank, which in PEFT's
terms is `lora_alpha = alpha * rank`; A starts from N(0, 1 / rank), B from zero. A and B are averaged apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from flora.clip import PLACES, Clip
from flora.errors import nearest
from flora.method import MatchingOptions, Method, register

if TYPE_CHECKING:  # PEFT takes seconds to import, and most who read options build no adapter
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer


def _check_place(place: str) -> str:
    if place not in PLACES:
        raise ValueError(f"{place!r} is no place in a CLIP{nearest(place, PLACES)}")
    return place


def _in_order(places: tuple[str, ...]) -> tuple[str, ...]:
    """Let places be a set, written in one way: adapters are drawn in the model's own order."""
    return tuple(place for place in PLACES if place in places)


Places = Annotated[
    tuple[Annotated[str, AfterValidator(_check_place)], ...], Field(min_length=1), AfterValidator(_in_order)
]


class AdapterOptions(MatchingOptions):
    """Options of methods that adapt Linear layers of the towers.

    Attributes:
        places: which layers are adapted, of `flora.clip.PLACES`.
        blocks: only in the last so many blocks of each tower; None for all of them. In towers of
            open_clip's own, what is before the first adapted block is then computed once.
    """

    places: Places = ("text.out",)
    blocks: int | None = Field(None, ge=1)

    def layers(self, clip: Clip) -> list[str]:
        """Name the layers, each once, in the order of the places.

        Raises:
            BadInput: this model has none at one of the places, or fewer blocks.
        """
        found = [layer for place in self.places for layer in clip.layers_at(place, self.blocks)]
        return list(dict.fromkeys(found))


class FLoRAOptions(AdapterOptions):
    """The defaults are the paper's: rank 2, alpha 32, on the output projection of every text layer.

    Attributes:
        rank: rank of each update.
        alpha: factor on each update, not divided by the rank.
    """

    name: Literal["flora"] = "flora"
    rank: int = Field(2, ge=1)
    alpha: float = Field(32.0, gt=0)


@register("flora")
class FLoRA(Method):
    """LoRA on the layers at the chosen places."""

    Options = FLoRAOptions
    options: FLoRAOptions

    def _peft_config(self) -> LoraConfig:
        """Say in PEFT's terms which layers are adapted, and how."""
        from peft import LoraConfig

        rank, layers = self.options.rank, self.options.layers(self.clip)
        return LoraConfig(r=rank, lora_alpha=self.options.alpha * rank, target_modules=layers)

    def prepare(self, generator: torch.Generator) -> None:
        """Inject the adapters and draw their initial values."""
        from peft import inject_adapter_in_model

        # PEFT fills new adapters from the global stream; keep it untouched, ours overwrite them below
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(self._peft_config(), self.clip)
        for layer in self._adapted():
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            # drawn in float32 on the CPU: the same start on every device and in every precision
            start = torch.randn(down.shape, generator=generator) / self.options.rank**0.5
            with torch.no_grad():
                down.copy_(start)
                nn.init.zeros_(up)

    def closed_form(self) -> int:
        """Sum rank x (width in + width out) over the adapted layers."""
        return sum(self.options.rank * (x.in_features + x.out_features) for x in self._adapted())

    @property
    def products(self) -> Sequence[tuple[str, str]]:
        """B and A of each adapted layer."""
        return factors(self.trainable)

    def _adapted(self) -> list[LoraLayer]:
        from peft.tuners.lora import LoraLayer

        return [module for module in self.clip.modules() if isinstance(module, LoraLayer)]


def factors(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pair up the tensors of PEFT's LoRA layers, those named B with those named A."""
    return [(name.replace(".lora_A.", ".lora_B."), name) for name in names if ".lora_A." in name]
