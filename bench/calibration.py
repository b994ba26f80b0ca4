"""How fast this machine is at what a step is made of: measured once in ten seconds, and kept.

A step's time is taken to be the sum of three: its matrix products, each at the rate that products of its size
reach once their operands are read; the tensors that it makes and that its optimiser goes through; and a
constant an operation.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bench.caching import default_folder
from bench.measure.tensors import Counter

if TYPE_CHECKING:
    from bench.estimate import Work

# Rows, inner and outer width of the products measured: from heads of a small attention to an MLP of a large.
SHAPES = (
    (16, 32, 16),
    (64, 64, 64),
    (128, 128, 128),
    (256, 256, 512),
    (512, 768, 768),
    (1600, 768, 3072),
)
# A product that is all reading: a step reads each weight once, and a model's do not fit into a cache.
READ_SHAPE, READ_BYTES = (4, 512, 2048), 128 * 2**20
# Sizes of tensors that are made and written: they stay in the caches, or do not.
MADE_BYTES = (2**14, 2**20, 2**25)
# How often an optimiser with two moments goes through what trains: it reads four tensors and writes three.
PASSES = 7
FILE = "calibration.json"
DTYPES = {"float16": torch.bfloat16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Calibration:
    """What this machine does.

    Attributes:
        sizes: FLOPs of the products measured, ascending.
        rates: FLOPs a second that each of them ran at.
        reading: bytes a second at which a product reads weights.
        made_sizes: bytes of the tensors made, ascending.
        making: bytes a second at which tensors of these sizes are made.
        operation_seconds: what an operation takes besides.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    reading: float
    made_sizes: tuple[int, ...]
    making: tuple[float, ...]
    operation_seconds: float

    def seconds(self, work: Work, trainable_bytes: int = 0) -> float:
        """Foretell how long a piece of work takes, and going through what trains of so many bytes."""
        flops, sizes, counts = (
            np.array([(*of, n) for of, n in work.products.items()], dtype=float).reshape(-1, 3).T
        )
        rates = np.interp(np.log(np.maximum(flops, 1)), np.log(self.sizes), self.rates)
        products = (counts * (flops / rates + sizes / self.reading)).sum()
        one = max(work.created_bytes / max(work.operations, 1), 1)
        made = work.created_bytes / np.interp(np.log(one), np.log(self.made_sizes), self.making)
        moved = PASSES * trainable_bytes / self.reading
        return float(products + made + moved + work.operations * self.operation_seconds)


def calibration(dtype: str = "float32", anew: bool = False) -> Calibration:
    """Give this machine's calibration, measured if it never was with these threads and this torch.

    Args:
        dtype: the precision of what is computed.
        anew: measure even if it was.
    """
    file = default_folder().parent / FILE
    key = f"{platform.node()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}"
    kept = _read(file)
    if anew or key not in kept:
        kept[key] = asdict(calibrate(dtype=dtype))
        _write(file, kept)
    found: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in kept[key].items()}
    return Calibration(**found)


def calibrate(seconds: float = 10.0, dtype: str = "float32") -> Calibration:
    """Measure how fast this machine is, in about so many seconds."""
    each = seconds / (len(SHAPES) + len(MADE_BYTES) + 2)
    precision = DTYPES.get(dtype, torch.float32)
    sizes, rates = zip(*(_product(shape, precision, each) for shape in SHAPES), strict=True)
    return Calibration(
        sizes,
        rates,
        _reading(precision, each),
        MADE_BYTES,
        tuple(_making(size, each) for size in MADE_BYTES),
        _operation_seconds(each),
    )


def _product(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float) -> tuple[int, float]:
    rows, inner, outer = shape
    x, weight = torch.ones(rows, inner, dtype=dtype), torch.ones(outer, inner, dtype=dtype)
    flops = 2 * rows * inner * outer
    return flops, flops / _median_seconds(lambda: nn.functional.linear(x, weight), seconds)


def _reading(dtype: torch.dtype, seconds: float) -> float:
    rows, inner, outer = READ_SHAPE
    x, size = torch.ones(rows, inner, dtype=dtype), inner * outer * dtype.itemsize
    weights = cycle(torch.ones(READ_BYTES // size, outer, inner, dtype=dtype).unbind())
    return size / _median_seconds(lambda: nn.functional.linear(x, next(weights)), seconds)


def _making(size: int, seconds: float) -> float:
    x = torch.ones(size // 4)
    return size / _median_seconds(lambda: x + 1, seconds)


def _operation_seconds(seconds: float) -> float:
    """Measure a step of a network so small that its operations' cost is all there is."""
    with torch.random.fork_rng(devices=[]):
        blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in "1234")
        )
    x = torch.ones(2, 4, 16)
    optimizer = torch.optim.Adam(blocks.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        blocks(x).square().mean().backward()
        optimizer.step()

    step()
    with Counter() as counter:
        step()
    return _median_seconds(step, seconds) / counter.operations


def _median_seconds(work: Callable[[], Any], seconds: float) -> float:
    """Run `work` for so long, and give the median of single runs."""
    taken: list[float] = []
    work()
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _read(file: Path) -> dict[str, Any]:
    """Read what was kept; what cannot be read is measured anew."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(file: Path, kept: dict[str, Any]) -> None:
    """Replace the file at once; where it cannot be written nothing is kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as stream:
            json.dump(kept, stream, indent=1)
        os.replace(stream.name, file)
    except OSError:
        return
