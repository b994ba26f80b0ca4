"""How many floating-point operations training takes, by torch's own counter."""

from __future__ import annotations

from flora.features import Batch
from flora.method import Method


def step_flops(method: Method, batch: Batch) -> int:
    """Count one forward and backward pass over `batch`; the gradients are cleared, nothing else changes.

    The counter knows matrix products, convolutions and attention, which is where the operations are; a
    multiplication and an addition count as two.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        method(batch).backward()
    method.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())
