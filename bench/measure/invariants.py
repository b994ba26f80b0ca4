"""What must be true of every run, watched while it runs and written into its result.

Each check is a second look at something the loop already does, by other means and with as little trust in it
as can be had: the frozen model by its bits, the aggregate by computing it again from the split's own sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.measure.fingerprints import changed, combined, fingerprints
from bench.measure.products import aggregation_error
from flora.events import Listener, Phase, RoundRecord, Work
from flora.method import Method

# Rounds whose steps are asked for their gradients; in all of them only while some tensor has had none.
ROUNDS_LOOKED_AT = 2
# Numbers of a model whose mean is computed again.
PROBED_NUMBERS = 2**16
# Times the precision of the numbers and the square root of how many were averaged: each addition rounds by up
# to half the precision, and roundings add up as a random walk. 3e-6 for ten clients in float32.
MEAN_TOLERANCE = 8.0
# A round of more clients has no aggregation error: it is exact only with all of their factors in memory.
MOST_CLIENTS_WITH_FACTORS = 256
NAMED = 3

Result = dict[str, Any]


class Invariants(Listener):
    """Checks a run, and measures what averaging the factors of products does.

    Pass it before the listeners that measure: what its checks cost then lies outside of the phases, but for
    the gradients of the first steps.

    Args:
        method: the model as it is when training begins, whatever is done to it before being done.
        client_sizes: samples of each client, by the split.
        mode: "federated", or one in which nothing is aggregated.

    Attributes:
        client_sizes: as given.
    """

    def __init__(self, method: Method, client_sizes: Sequence[int], mode: str) -> None:
        self.client_sizes = client_sizes
        self._frozen = _Frozen(method)
        self._moved = _Moved(method)
        self._losses = _Losses()
        federated = mode == "federated" and bool(method.trainable)
        averaged = federated and method.aggregator.is_weighted_mean
        self._evaluated = _Evaluated(method) if federated else None
        self._weights = _Weights(method, client_sizes) if averaged else None
        self._factors = _Factors(method, client_sizes) if averaged and method.products else None

    def phase_started(self, phase: Phase) -> None:
        """Look at the model that is about to be evaluated."""
        if phase.round is None:
            return
        self._moved.round = phase.round
        if self._evaluated is not None and phase.name == "evaluate" and phase.round > 0:
            self._evaluated.check(phase.round)

    def work_started(self, work: Work) -> None:
        """Note what a step begins with."""
        self._moved.step_started()

    def work_ended(self, work: Work) -> None:
        """Look at a step's gradients."""
        if work.kind == "step":
            self._moved.step_ended(work)

    def upload_accepted(self, round: int, client: int, samples: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what the aggregate is to be held against; each tensor is asked for once."""
        if self._weights is None:
            return
        of_factors = () if self._factors is None else self._factors.names
        found = {name: tensors[name] for name in {*self._weights.names, *of_factors}}
        self._weights.add(round, client, samples, found)
        if self._factors is not None:
            self._factors.add(client, found)

    def aggregated(self, round: int, state: Mapping[str, Tensor]) -> None:
        """Hold the new global state against what it was made of."""
        if self._evaluated is not None:
            self._evaluated.aggregated(round, state)
        if self._weights is not None:
            self._weights.check(round, state)
        if self._factors is not None:
            self._factors.measure(round)

    def round_ended(self, record: RoundRecord) -> None:
        """Look at a round's loss."""
        self._losses.add(record)
        self._moved.round_ended(record)

    def aggregation_error(self, round: int) -> float | None:
        """How far the mean of the clients' products is from the product of their mean factors.

        Returns:
            `||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||`, of all layers together, with the aggregate's
            weights; None of a method without products, of a round in which no product was other than zero,
            and of one with more than 256 clients, whose factors would take too much memory.
        """
        return None if self._factors is None else self._factors.errors.get(round)

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {name: part.state() for name, part in self._parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        for name, part in self._parts.items():
            part.restore(state[name])

    @property
    def _parts(self) -> dict[str, _Part]:
        named: dict[str, _Part | None] = {
            "frozen": self._frozen,
            "moved": self._moved,
            "evaluated": self._evaluated,
            "weights": self._weights,
            "factors": self._factors,
            "losses": self._losses,
        }
        return {name: part for name, part in named.items() if part is not None}

    def result(self, trained_state: Mapping[str, Tensor] | None) -> dict[str, Result]:
        """Give what each check found, by its name, without those that had nothing to look at.

        Args:
            trained_state: the one model's trainable tensors after the last round; None where there is none.
        """
        found = {
            "frozen_unchanged": self._frozen.result(),
            "trained_moved": self._moved.result(trained_state),
            "evaluated_is_aggregated": None if self._evaluated is None else self._evaluated.result(),
            "weights_sum_to_one": None if self._weights is None else self._weights.result(),
            "losses_finite": self._losses.result(),
        }
        return {name: result for name, result in found.items() if result is not None}


class _Part:
    """One check; what it has to remember of the rounds so far are plain values in the fields it names."""

    remembered: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.remembered}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in self.remembered:
            setattr(self, name, state[name])


class _Frozen(_Part):
    """Frozen weights and buffers are the same bits at the end, in every process that worked on the run."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._trainable = {name for name, p in method.named_parameters() if p.requires_grad}
        self._before = fingerprints(self._now())

    def state(self) -> dict[str, Any]:
        return {name: found.hex() for name, found in self._before.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._before = {name: bytes.fromhex(found) for name, found in state.items()}

    def _now(self) -> dict[str, Tensor]:
        everything = {**dict(self._method.named_parameters()), **dict(self._method.named_buffers())}
        return {name: x for name, x in everything.items() if name not in self._trainable}

    def result(self) -> Result:
        after = self._now()
        figures = {
            "tensors": len(self._before),
            "numbers": sum(x.numel() for x in after.values()),
            "fingerprint": combined(self._before.values()),
        }
        others = changed(self._before, fingerprints(after))
        return _verdict(f"{_named(others)} changed" if others else None, figures)


class _Moved(_Part):
    """Each trainable tensor ends elsewhere than it began, and some step had a gradient for it.

    A gradient counts that is not zero throughout, however small. One that is exactly zero in the first step
    is no fault (one factor of a product does not matter while the other is zero), so a run that never takes a
    second step from its start is not judged.
    """

    remembered = ("_accepted", "_saw_later_step")

    def __init__(self, method: Method) -> None:
        self.round = 0
        self._start = fingerprints(method.trainable)
        self._without = set(method.trainable)
        self._stepped: set[int] = set()
        self._accepted = self._saw_later_step = False
        self._raised: BaseException | None = None

    def state(self) -> dict[str, Any]:
        return {**super().state(), "without": sorted(self._without)}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._without = set(state["without"])

    def step_started(self) -> None:
        self._raised = sys.exception()

    def step_ended(self, work: Work) -> None:
        if not self._without or self.round > ROUNDS_LOOKED_AT or work.gradients is None:
            return
        if sys.exception() is not self._raised:  # one passes through: there may be no gradients
            return
        self._saw_later_step |= self._accepted or not self._stepped.isdisjoint(work.clients)
        self._stepped.update(work.clients)
        found = {name: x for name, x in work.gradients().items() if name in self._without}
        if found:
            some = torch.stack([x.any() for x in found.values()]).tolist()
            self._without -= {name for name, has in zip(found, some, strict=True) if has}

    def round_ended(self, record: RoundRecord) -> None:
        self._accepted |= len(record.refused) < len(record.clients)
        self._stepped.clear()

    def result(self, trained: Mapping[str, Tensor] | None) -> Result | None:
        if not trained or not self._accepted or (self._without and not self._saw_later_step):
            return None
        after = fingerprints(trained)
        unmoved = [name for name, found in self._start.items() if after[name] == found]
        without = [name for name in self._start if name in self._without]
        reasons = [
            *([f"{_named(unmoved)} did not move"] if unmoved else []),
            *([f"{_named(without)} had no gradient"] if without else []),
        ]
        figures = {
            "tensors": len(self._start),
            "did_not_move": len(unmoved),
            "had_no_gradient": len(without),
        }
        return _verdict("; ".join(reasons), figures)


class _Evaluated(_Part):
    """The model that is evaluated holds the very numbers that were aggregated."""

    remembered = ("_rounds", "_reason")

    def __init__(self, method: Method) -> None:
        self._method = method
        self._aggregated: tuple[int, dict[str, bytes]] = 0, {}
        self._rounds = 0
        self._reason: str | None = None

    def aggregated(self, round: int, state: Mapping[str, Tensor]) -> None:
        self._aggregated = round, fingerprints(state)

    def check(self, round: int) -> None:
        self._rounds += 1
        made_in, expected = self._aggregated
        if self._reason is not None:
            return
        if made_in != round:
            self._reason = f"round {round} was evaluated with nothing aggregated"
        elif others := changed(expected, fingerprints(self._method.trainable)):
            self._reason = f"in round {round} {_named(others)} differed from what was aggregated"

    def result(self) -> Result | None:
        return _verdict(self._reason, {"rounds": self._rounds}) if self._rounds else None


class _Weights(_Part):
    """The aggregate is the mean weighted by the split's sizes, computed again in float64 for a part of it.

    An error is relative to the mean size of what was averaged, number by number, as that is what rounding
    goes by; of a mean near zero it would otherwise say nothing.
    """

    remembered = ("_rounds", "_worst", "_worst_share", "_reason")

    def __init__(self, method: Method, sizes: Sequence[int]) -> None:
        self.names = _probe(method.trainable)
        self._sizes = sizes
        self._clients: list[int] = []
        probed = [method.trainable[name] for name in self.names]
        self._numbers = sum(x.numel() for x in probed)
        # made once, as large new ones would take longer to come by than to fill
        self._values = torch.empty(0)
        self._sum = torch.empty(0, dtype=torch.float64)
        self._magnitude = torch.empty(0)
        precisions = [torch.finfo(x.dtype) for x in probed]
        self._precision = max(x.eps for x in precisions)
        # what is smaller has fewer digits
        self._least = max(x.tiny / x.eps for x in precisions)
        self._rounds = 0
        self._worst = self._worst_share = 0.0
        self._reason: str | None = None

    def add(self, round: int, client: int, samples: int, tensors: Mapping[str, Tensor]) -> None:
        if samples != self._sizes[client]:
            self._broken(f"round {round}: client {client} weighs {samples}, but has {self._sizes[client]}")
        if client in self._clients:
            self._broken(f"round {round}: client {client} counts twice")
        values, weight = self._flat(tensors), self._sizes[client]
        if not len(self._sum):
            self._sum, self._magnitude = (
                torch.empty_like(values, dtype=torch.float64),
                torch.empty_like(values),
            )
        if not self._clients:
            self._sum.zero_()
            self._magnitude.zero_()
        self._sum.add_(values, alpha=weight)
        self._magnitude.add_(values.abs_(), alpha=weight)
        self._clients.append(client)

    def check(self, round: int, state: Mapping[str, Tensor]) -> None:
        if not self._clients:  # all were refused: the state stays as it was
            return
        self._rounds += 1
        total = sum(self._sizes[client] for client in self._clients)
        expected, magnitude = self._sum.div_(total), self._magnitude.div_(total)
        off_by = expected.sub_(self._flat(state)).abs_()
        error = float(off_by.div_(magnitude.clamp_min_(self._least)).amax())
        tolerance = MEAN_TOLERANCE * self._precision * len(self._clients) ** 0.5
        self._worst = max(self._worst, error)
        self._worst_share = max(self._worst_share, error / tolerance)
        if not error <= tolerance:
            self._broken(f"round {round}: the aggregate is off by {error:.1e}, more than {tolerance:.1e}")
        self._clients = []

    def result(self) -> Result | None:
        if not self._rounds:
            return None
        figures = {
            "rounds": self._rounds,
            "probed_numbers": self._numbers,
            "largest_error": self._worst,
            "largest_share_of_tolerance": self._worst_share,
        }
        return _verdict(self._reason, figures)

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy the probed numbers side by side, to where those before them were."""
        parts = [tensors[name].detach().reshape(-1) for name in self.names]
        self._values = torch.cat(parts, out=self._values if len(self._values) else None)
        return self._values

    def _broken(self, reason: str) -> None:
        self._reason = self._reason or reason


class _Factors(_Part):
    """The clients' factors of one round, and what averaging them apart comes to."""

    def __init__(self, method: Method, sizes: Sequence[int]) -> None:
        self.errors: dict[int, float | None] = {}
        self._pairs = method.products
        self.names = [name for pair in self._pairs for name in pair]
        self._sizes = sizes
        self._weights: list[int] = []
        self._kept: list[Mapping[str, Tensor]] = []

    def state(self) -> dict[str, Any]:
        return {"errors": self.errors}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.errors = {int(number): error for number, error in state["errors"].items()}

    def add(self, client: int, tensors: Mapping[str, Tensor]) -> None:
        self._weights.append(self._sizes[client])
        if len(self._weights) > MOST_CLIENTS_WITH_FACTORS:
            self._kept.clear()
            return
        # the aggregator may change what it is given
        self._kept.append({name: tensors[name].detach().cpu().clone() for name in self.names})

    def measure(self, round: int) -> None:
        if self._kept:
            stacked = {name: torch.stack([x[name] for x in self._kept]) for name in self.names}
            pairs = [(stacked[left], stacked[right]) for left, right in self._pairs]
            self.errors[round] = aggregation_error(pairs, self._weights)
        self._weights, self._kept = [], []


class _Losses(_Part):
    """Every loss is a finite number."""

    remembered = ("_rounds", "_reason")

    def __init__(self) -> None:
        self._rounds = 0
        self._reason: str | None = None

    def add(self, record: RoundRecord) -> None:
        if record.loss is None:
            return
        self._rounds += 1
        if not isfinite(record.loss) and self._reason is None:
            self._reason = f"the loss of round {record.round} is {record.loss}"

    def result(self) -> Result | None:
        return _verdict(self._reason, {"rounds": self._rounds}) if self._rounds else None


def _probe(tensors: Mapping[str, Tensor]) -> list[str]:
    """Choose whole tensors, the smallest first, of as many numbers as are probed; at least one."""
    chosen: list[str] = []
    left = PROBED_NUMBERS
    for name in sorted(tensors, key=lambda name: tensors[name].numel()):
        left -= tensors[name].numel()
        if chosen and left < 0:
            break
        chosen.append(name)
    return chosen


def _verdict(reason: str | None, figures: Result) -> Result:
    return {"holds": False, **figures, "reason": reason} if reason else {"holds": True, **figures}


def _named(names: Iterable[str]) -> str:
    """Name the first few of some tensors, and say how many they are in all."""
    given = list(names)
    first = ", ".join(given[:NAMED])
    return first if len(given) <= NAMED else f"{first} and {len(given) - NAMED} more"
