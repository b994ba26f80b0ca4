"""What is lost where the factors of a product are averaged apart, as LoRA's are in federated averaging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def aggregation_error(products: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> float | None:
    """Give `||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||`, Frobenius norms of all products together.

    With factors centred on their means, the difference is itself a mean of products,
    `mean((B - mean(B)) (A - mean(A)))`, so that nothing cancels. And the norm of a sum of products follows
    from the factors side by side, by `||L R||^2 = sum((L' L) * (R R'))`; where these are more than the layer
    is wide, the sum itself is smaller.

    Args:
        products: for each, the left factors (clients, out, rank) and the right ones (clients, rank, in).
        weights: one a client, above zero.

    Returns:
        In float64; None where all mean products are zero.
    """
    share = torch.tensor(weights, dtype=torch.float64)
    share = (share / share.sum())[:, None, None]
    lost = whole = 0.0
    for left, right in products:
        left, right = left.double(), right.double()  # noqa: PLW2901
        whole += _squared_norm(left * share, right)
        lost += _squared_norm((left - (share * left).sum(0)) * share, right - (share * right).sum(0))
    return (lost / whole) ** 0.5 if whole else None


def _squared_norm(left: Tensor, right: Tensor) -> float:
    """Squared Frobenius norm of the sum of left @ right over the clients."""
    beside = left.transpose(0, 1).flatten(1)
    below = right.flatten(0, 1)
    if len(below) > min(len(beside), below.shape[1]):
        return float((beside @ below).square_().sum())
    # a hair below zero, by rounding, where products cancel
    return max(0.0, float(((beside.T @ beside) * (below @ below.T)).sum()))
