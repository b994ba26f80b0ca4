"""What the work is: floating-point operations and bytes of live tensors, the same on every machine of a kind.

Counting takes several times as long as what is counted, so not every step is. The operations of a step are
a polynomial in the sizes of its batch: a step is counted where those counted before do not determine it, and
the others follow exactly (`tests/bench/test_work.py` counts every step beside it). The bytes rise with the
sizes: a step is counted where none counted before was as large in every size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from bench.measure.tensors import CAUSES, Counter
from flora.events import Listener, Phase, Work

Sizes = tuple[int, ...]
Holders = Mapping[str, Callable[[], Iterable[Tensor]]]

# The server's phases in which it holds more than it does while clients train.
_SERVER_PHASES = ("send", "receive", "aggregate")


class Polynomial:
    """A linear function of vectors, known where it was measured and in all that these span; exact."""

    def __init__(self) -> None:
        self._rows: list[tuple[list[Fraction], Fraction]] = []
        self._known: dict[Sizes, int] = {}

    def at(self, vector: Sizes) -> int | None:
        """Give the value at `vector`, None where what was measured does not determine it."""
        if vector not in self._known:
            rest, value = self._reduced(vector, Fraction(0))
            if any(rest):
                return None
            self._known[vector] = int(-value)
        return self._known[vector]

    def measured(self, vector: Sizes, value: int) -> None:
        """Take note of the value at a vector that `at` does not know."""
        self._known[vector] = value
        rest, left = self._reduced(vector, Fraction(value))
        pivot = next((x for x in rest if x), None)
        if pivot is not None:
            self._rows.append(([x / pivot for x in rest], left / pivot))

    def _reduced(self, vector: Sizes, value: Fraction) -> tuple[list[Fraction], Fraction]:
        rest = [Fraction(x) for x in vector]
        for row, of_row in self._rows:  # each begins with a one where all later ones have a zero
            factor = rest[next(place for place, x in enumerate(row) if x)]
            rest = [x - factor * y for x, y in zip(rest, row, strict=True)]
            value -= factor * of_row
        return rest, value


class WorkMeter(Listener):
    """Operations by phase and round, and the peak of live tensor bytes by phase and cause.

    What is counted are matrix products, convolutions and attention, by torch's own formulas
    (`torch.utils.flop_counter`), a multiplication and an addition being two operations; element-wise work is
    not. Of memory it counts the tensors that this process holds for the work, whatever an allocator takes
    for them, not the payloads' bytes, nor the optimiser states of clients that are not at work.

    Pass it before listeners that time steps, and set `holders` to what there is before the work begins.
    """

    def __init__(self) -> None:
        self.holders: Holders = {}
        self.peak_by_phase: dict[str, int] = {}
        self.peak_by_cause: dict[str, int] = dict.fromkeys(CAUSES, 0)
        self._flops: dict[int | None, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._open: list[Phase] = []
        self._steps = Polynomial()
        self._largest: list[Sizes] = []
        self._classified: dict[Sizes, int] = {}
        self._sizes: Sizes = ()
        self._counter: Counter | None = None
        self._server: Counter | None = None

    def flops(self, round: int | None) -> dict[str, int]:
        """Operations by phase in `round`; None: outside of rounds."""
        return dict(self._flops.get(round, {}))

    @property
    def flops_by_phase(self) -> dict[str, int]:
        """Operations by phase, over all rounds."""
        total: dict[str, int] = defaultdict(int)
        for phases in self._flops.values():
            for name, flops in phases.items():
                total[name] += flops
        return dict(total)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of live tensors, in any phase."""
        return max(self.peak_by_phase.values(), default=0)

    def add(self, phase: str, flops: int, peak_bytes: int) -> None:
        """Take in what was counted elsewhere, of work outside of rounds."""
        self._flops[None][phase] += flops
        self._peak(phase, peak_bytes, {})

    def phase_started(self, phase: Phase) -> None:
        """Note where the work belongs; watch the server in the first round."""
        self._open.append(phase)
        if phase.round == 1 and phase.side == "server" and phase.name in _SERVER_PHASES:
            if self._server is None:
                self._server = Counter(self._held())
            self._server.__enter__()

    def phase_ended(self, phase: Phase) -> None:
        """Stop watching."""
        self._open.pop()
        if phase.round == 1 and phase.side == "server" and phase.name in _SERVER_PHASES and self._server:
            self._server.__exit__(None, None, None)
            self._peak(phase.name, self._server.peak_bytes, self._server.peak_by_cause)

    def round_ended(self, record: object) -> None:
        """Let go of what the first round's watch holds on to."""
        self._server = None

    def work_started(self, work: Work) -> None:
        """Count the work, unless what it takes is known."""
        self._sizes = _sizes(work)
        if not self._known(work.kind, self._sizes):
            self._counter = Counter(self._held(work), parameters_of(work.optimizer) if work.optimizer else ())
            self._counter.__enter__()

    def work_ended(self, work: Work) -> None:
        """Add up what the work took."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
            self._learn(work.kind, self._sizes, counter)
            self._peak(self._phase.name, counter.peak_bytes, counter.peak_by_cause)
        flops = counter.flops if counter else self._flops_of(work.kind, self._sizes)
        self._flops[self._phase.round][self._phase.name] += flops

    @property
    def _phase(self) -> Phase:
        return self._open[-1] if self._open else Phase("between")

    def _held(self, work: Work | None = None) -> dict[str, list[Tensor]]:
        held = {cause: list(holder()) for cause, holder in self.holders.items()}
        if work is not None and work.optimizer is not None:
            held["parameters"] = [*held.get("parameters", []), *parameters_of(work.optimizer)]
            held["optimizer_state"] = [*held.get("optimizer_state", []), *states_of(work.optimizer)]
        return held

    def _peak(self, phase: str, peak_bytes: int, by_cause: Mapping[str, int]) -> None:
        if by_cause and peak_bytes > self.peak_bytes:
            self.peak_by_cause = dict(by_cause)
        self.peak_by_phase[phase] = max(self.peak_by_phase.get(phase, 0), peak_bytes)

    def _known(self, kind: str, sizes: Sizes) -> bool:
        if kind == "classifier":  # what it takes depends on what was kept of the last time
            return False
        if kind == "classify":
            return sizes in self._classified
        as_large = any(all(x <= y for x, y in zip(sizes, seen, strict=True)) for seen in self._largest)
        return as_large and self._steps.at(_monomials(sizes)) is not None

    def _learn(self, kind: str, sizes: Sizes, counter: Counter) -> None:
        if kind == "classifier":  # of this one, or of other classes, or another method's
            self._classified.clear()
        elif kind == "classify":
            self._classified[sizes] = counter.flops
        elif kind == "step":
            self._largest.append(sizes)
            if self._steps.at(_monomials(sizes)) is None:
                self._steps.measured(_monomials(sizes), counter.flops)

    def _flops_of(self, kind: str, sizes: Sizes) -> int:
        known = self._classified[sizes] if kind == "classify" else self._steps.at(_monomials(sizes))
        assert known is not None
        return known


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give all that an optimiser trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give the tensors that an optimiser keeps."""
    return [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]


def _sizes(work: Work) -> Sizes:
    """Give the sizes that work depends on; of a step: clients stacked, samples, prompts, tokens read.

    The tokens are those of a tree of prompts; attention between them costs the square of each part's, so that
    is a size of its own. The last says whether the optimiser keeps anything yet.
    """
    batch, optimizer = work.batch, work.optimizer
    if batch is None:
        return ()
    if work.kind == "classify":
        return tuple(batch.inputs.shape)
    samples = batch.labels.shape[-1]
    clients = batch.labels.numel() // samples
    distinct = nodes = pairs = 0
    if batch.texts is not None:
        distinct = batch.texts.classes.shape[-1]
        of_parts = [part.nodes.shape[-1] for part in batch.texts.branches]
        nodes, pairs = sum(of_parts), sum(x * x for x in of_parts)
    return clients, samples, distinct, nodes, pairs, int(optimizer is not None and bool(optimizer.state))


def _monomials(sizes: Sizes) -> Sizes:
    """Give what the operations of a step are linear in."""
    clients, samples, distinct, nodes, pairs, _ = sizes
    of_one = (1, samples, samples * samples, distinct, nodes, pairs)
    return (1, *(clients * x for x in of_one))
