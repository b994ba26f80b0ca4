"""How the machine computes a run: threads, memory format, compiled blocks, precision of matrix products.

None of it is on unless asked for. What an option changes is at most the order in which numbers are added up
or, with TF32, their precision; what is computed stays the same.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.config import Compute
from flora.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from flora.clip import Clip


def check(compute: Compute, device: str) -> None:
    """Refuse what this machine cannot do, before anything is loaded or run.

    Raises:
        BadInput: blocks are to be compiled, and there is nothing to compile them with.
    """
    if compute.compile is None:
        return
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise BadInput(
            f"compute.compile: {compute.compile!r} needs the C++ compiler {compiler!r}, which is not on this "
            "machine; install it, name another in CXX, or leave compute.compile out"
        )
    if compute.compile == "reduce-overhead" and not device.startswith("cuda"):
        raise BadInput(
            f"compute.compile: 'reduce-overhead' is CUDA graphs, not for device {device!r}; use default"
        )


@contextmanager
def configured(compute: Compute, device: str) -> Iterator[None]:
    """Set what holds for the whole process, and set it back as it was.

    Raises:
        BadInput: see `check`.
    """
    import torch

    check(compute, device)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        torch.set_float32_matmul_precision(compute.matmul_precision)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def applied(clip: Clip, compute: Compute) -> Clip:
    """Set what belongs to the model, in place: call it once a method has settled what it adds and trains.

    The blocks that a tower repeats are compiled one by one, PyTorch's regional compilation: what is compiled
    for the first serves those of its shape after it, and hooks and adapters inside them stay as they are.
    """
    if compute.channels_last:
        _channels_last(clip.vision)
    if compute.compile is not None:
        for block in repeated_blocks(clip):
            block.compile(mode=compute.compile)
    return clip


def _channels_last(tower: nn.Module) -> None:
    """Lay out what enters the tower's convolutions, and their weights that do not train.

    The hooks are the convolutions' own, as `Clip` runs the stages of a tower without calling the tower.
    What trains keeps its layout: fused optimisers go through weights and moments side by side as they lie in
    memory, and moments that were put away come back in the plain layout.
    """
    import torch

    def lay_out(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        images, *rest = inputs
        return images.contiguous(memory_format=torch.channels_last), *rest

    for module in tower.modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        module.register_forward_pre_hook(lay_out)
        if not module.weight.requires_grad:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def repeated_blocks(root: nn.Module) -> list[nn.Module]:
    """Give the modules with weights that stand in a row of their kind; of nested rows the outermost."""
    from torch import nn

    found: list[nn.Module] = []
    for module in root.children():
        row = list(module.children())
        alike = len({type(block) for block in row}) == 1 and len(row) > 1
        weights = alike and next(row[0].parameters(), None) is not None
        if isinstance(module, nn.ModuleList | nn.Sequential) and weights:
            found += row
        else:
            found += repeated_blocks(module)
    return found
