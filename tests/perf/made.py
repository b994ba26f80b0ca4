"""What probes work on: methods around the embedded model, and tensors of the shapes that travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flora.method import Method

DIGITS = tuple(f"a photo of the number {digit}." for digit in range(10))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_method(name: str, texts: tuple[str, ...] = DIGITS) -> Method:
    from bench.catalogue import load_method
    from bench.config import Model
    from bench.models import load_model
    from flora.prompts import Prompts

    model = load_model(Model(), "cpu")
    prompts = Prompts.tokenize(texts, model.tokenize)
    cls = load_method(name)
    return cls(model.clip, prompts, cls.Options(name=name), torch.Generator().manual_seed(0))


def flora_tensors(seed: int = 0) -> dict[str, Tensor]:
    """What FLoRA sends of ViT-B/32: A (2, 512) and B (512, 2) for each of the 12 blocks of its text tower."""
    blocks, rank, width = 12, 2, 512
    shapes = {"lora_A": (rank, width), "lora_B": (width, rank)}
    name = "clip.text.transformer.resblocks.{}.attn.out_proj.{}.default.weight"
    return {name.format(i, part): random(*shapes[part], seed=seed) for i in range(blocks) for part in shapes}


def block_tensors(seed: int = 0) -> dict[str, Tensor]:
    """What full fine-tuning sends of one block of that tower: 12.6 MB of its 605."""
    width = 512
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    return {name: random(*shape, seed=seed) for name, shape in shapes.items()}
