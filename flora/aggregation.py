"""Ways to make one global state of what the clients sent, one class each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor


class Aggregator(ABC):
    """Takes uploads one at a time, so that no more than one need be in memory.

    Attributes:
        is_weighted_mean: whether what it gives is, but for rounding, the mean of each tensor over the clients
            with their weights; whoever doubts it can then compute the same.
    """

    name: str
    is_weighted_mean: ClassVar[bool] = False

    @abstractmethod
    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Take in one client's tensors, which may be kept and changed, with its weight (> 0).

        A mapping may make each tensor when it is asked for (`flora.payload.Arrived`): ask for one at a time,
        and for each once, and no second model need stand in memory.
        """

    @property
    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """The tensors it holds so far."""

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """Give the new global state; at least one client must have been added."""


class WeightedMean(Aggregator):
    """Mean of each tensor weighted by samples, streaming: FedAvg (arXiv 1602.05629)."""

    name = "weighted_mean"
    is_weighted_mean = True

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Move the running mean towards `tensors` by their share of the weight so far."""
        if weight <= 0:
            raise ValueError(f"a client's weight must be positive, not {weight}")
        self._weight += weight
        if not self._mean:
            self._mean = dict(tensors)
            return
        # Moving by a share of the difference leaves equal tensors exactly as they are; a sum over
        # weights would not.
        for name, mean in self._mean.items():
            mean.lerp_(tensors[name], weight / self._weight)

    @property
    def held(self) -> Iterable[Tensor]:
        """The running mean."""
        return self._mean.values()

    def result(self) -> dict[str, Tensor]:
        """Give the mean."""
        if not self._mean:
            raise ValueError("no client was added")
        return self._mean
