"""What the work is: floating-point operations and bytes of live tensors, the same on every machine of a kind.

Counting takes several times as long as what is counted, so not every step is. The operations of a step are
a polynomial in the sizes of its batch: a step is counted where those counted before do not determine it, and
the others follow exactly (`tests/bench/test_work.py` counts every step beside it). The bytes rise with the
sizes and with what is held: a step is counted where none counted before was as large in every respect.

No timed step is counted on a small model, where counting would show in its time: the step's work is done once
more, in a phase of its own. A step of a large model takes hundreds of times what counting it adds; there the
step itself is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from bench.measure.causes import CAUSES
from bench.measure.clock import COUNT
from bench.measure.tensors import Counter
from flora.events import Events, Listener, Phase, Work
from flora.features import Batch

Sizes = tuple[int, ...]
Holders = Mapping[str, Callable[[], Iterable[Tensor]]]
_NOBODY = Events()

# A model with more parameters is large: with full fine-tuning of one with 20 million, counting adds 1 %.
LARGE = 20_000_000
# The server's phases, in which it holds more than it does while clients train.
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
            if value.denominator != 1:
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

    Pass it before listeners that time steps, and say by `watch` what there is before the work begins.

    Args:
        aside: whom to tell of the phase in which work is done again; the clock.
    """

    def __init__(self, aside: Events = _NOBODY) -> None:
        self._aside = aside
        self._holders: Holders = {}
        self._server: Callable[[], Iterable[Tensor]] = tuple
        self._every_step = self._large = False
        self.peak_by_phase: dict[str, int] = {}
        self.peak_by_cause: dict[str, int] = dict.fromkeys(CAUSES, 0)
        self.consistent = True
        self._flops: dict[int | None, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._open: list[Phase] = []
        self._forget()

    def _forget(self) -> None:
        """Forget what pieces of work take: others follow, of another method or other classes."""
        self._steps = Polynomial()
        self._largest: list[Sizes] = []
        self._learned: list[tuple[str, Sizes, int]] = []
        self._evaluated: dict[Sizes, int] = {}
        self._sizes: Sizes = ()
        self._found: int | None = None
        self._counter: Counter | None = None

    def watch(
        self,
        holders: Holders,
        server: Callable[[], Iterable[Tensor]] = tuple,
        every_step: bool = False,
    ) -> None:
        """Say which tensors are there before a piece of work begins; what follows is other work than before.

        Args:
            holders: by cause, what stays.
            server: the server's tensors, which come and go.
            every_step: count each step, as it may try several times.
        """
        self._holders, self._server, self._every_step = holders, server, every_step
        self._large = sum(x.numel() for x in holders.get("parameters", tuple)()) > LARGE
        self._forget()

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

    def add(self, phase: str, flops: int, peak_by_cause: Mapping[str, int]) -> None:
        """Take in what was counted elsewhere, of work outside of rounds."""
        self._flops[None][phase] += flops
        self._peak(phase, sum(peak_by_cause.values()), peak_by_cause)

    def phase_started(self, phase: Phase) -> None:
        """Note where the work belongs."""
        self._open.append(phase)

    def phase_ended(self, phase: Phase) -> None:
        """Look at what the server holds, in the first round."""
        self._open.pop()
        if phase.round == 1 and phase.side == "server" and phase.name in _SERVER_PHASES:
            held = Counter(self._held())
            self._peak(phase.name, held.live_bytes, held.peak_by_cause)

    def work_started(self, work: Work) -> None:
        """Count the work, unless what it takes is known."""
        self._sizes, self._found = self._sizes_of(work), None
        if self._known(work.kind, self._sizes):
            return
        counter = Counter(self._held(work), parameters_of(work.optimizer) if work.optimizer else ())
        if self._large or work.replay is None:
            self._counter = counter
            counter.__enter__()
            return
        phase = self._phase
        with self._aside.phase(COUNT, phase.round, phase.client, phase.side), counter:
            work.replay()
        self._take(work.kind, counter)

    def work_ended(self, work: Work) -> None:
        """Add up what the work took."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
            self._take(work.kind, counter)
        found = self._flops_of(work.kind, self._sizes) if self._found is None else self._found
        self._flops[self._phase.round][self._phase.name] += found

    def _take(self, kind: str, counter: Counter) -> None:
        """Learn from what was counted."""
        self._found = counter.flops
        self._learn(kind, self._sizes, counter.flops)
        self._peak(self._phase.name, counter.peak_bytes, counter.peak_by_cause)

    @property
    def _phase(self) -> Phase:
        return self._open[-1] if self._open else Phase("between")

    def _held(self, work: Work | None = None) -> dict[str, list[Tensor]]:
        held = {cause: list(holder()) for cause, holder in self._holders.items()}
        held["buffers"] = [*held.get("buffers", ()), *self._server()]
        if work is None:
            return held
        held["buffers"] += [*tensors_of(work.batch), *work.held]
        if work.optimizer is not None:
            held["parameters"] = [*held.get("parameters", ()), *parameters_of(work.optimizer)]
            held["optimizer_state"] = states_of(work.optimizer)
        return held

    def _peak(self, phase: str, peak_bytes: int, by_cause: Mapping[str, int]) -> None:
        if peak_bytes > self.peak_bytes:
            self.peak_by_cause = dict(by_cause)
        self.peak_by_phase[phase] = max(self.peak_by_phase.get(phase, 0), peak_bytes)

    def _known(self, kind: str, sizes: Sizes) -> bool:
        if kind != "step":
            return sizes in self._evaluated
        if self._every_step:
            return False
        as_large = any(all(x <= y for x, y in zip(sizes, seen, strict=True)) for seen in self._largest)
        return as_large and self._steps.at(_monomials(sizes)) is not None

    def _learn(self, kind: str, sizes: Sizes, flops: int) -> None:
        if kind == "step" and self._every_step:
            return
        self._learned.append((kind, sizes, flops))
        if kind != "step":
            self._evaluated[sizes] = flops
            return
        self._largest.append(sizes)
        foretold = self._steps.at(_monomials(sizes))
        if foretold is None:
            self._steps.measured(_monomials(sizes), flops)
        elif foretold != flops:  # then its operations follow from something else than its sizes
            self.consistent = False

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {
            "flops": {number: phases for number, phases in self._flops.items() if number is not None},
            "peak_by_phase": self.peak_by_phase,
            "peak_by_cause": self.peak_by_cause,
            "consistent": self.consistent,
            "learned": self._learned,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process., after `watch`: the work is the same still."""
        for number, phases in state["flops"].items():
            self._flops[int(number)] = defaultdict(int, phases)
        if max(state["peak_by_phase"].values(), default=0) >= self.peak_bytes:
            self.peak_by_cause = dict(state["peak_by_cause"])
        for phase, peak in state["peak_by_phase"].items():
            self.peak_by_phase[phase] = max(self.peak_by_phase.get(phase, 0), peak)
        for kind, sizes, flops in state["learned"]:
            self._learn(kind, tuple(sizes), flops)
        self.consistent = state["consistent"]

    def _flops_of(self, kind: str, sizes: Sizes) -> int:
        found = self._evaluated[sizes] if kind != "step" else self._steps.at(_monomials(sizes))
        assert found is not None
        return found

    def _sizes_of(self, work: Work) -> Sizes:
        """Give the sizes that work depends on.

        Of a step: clients stacked, samples, distinct prompts, tokens read (those of a tree of prompts), the
        sum of their squares by part (attention costs that); and, for the bytes alone, whether the optimiser
        keeps anything yet, and what the server holds.
        """
        batch, optimizer = work.batch, work.optimizer
        if work.kind == "classifier":
            return work.prompts
        assert batch is not None
        if work.kind == "classify":
            return tuple(batch.inputs.shape)
        samples = batch.labels.shape[-1]
        clients = batch.labels.numel() // samples
        distinct = nodes = pairs = 0
        if batch.texts is not None:
            distinct = batch.texts.classes.shape[-1]
            of_parts = [part.nodes.shape[-1] for part in batch.texts.branches]
            nodes, pairs = sum(of_parts), sum(x * x for x in of_parts)
        has_state = int(optimizer is not None and bool(optimizer.state))
        at_server = sum(x.nbytes for x in self._server())
        return clients, samples, distinct, nodes, pairs, has_state, at_server


def tensors_of(batch: Batch | None) -> list[Tensor]:
    """Give a batch's own tensors."""
    if batch is None:
        return []
    texts = () if batch.texts is None else (batch.texts.classes, batch.texts.position)
    branches = () if batch.texts is None else batch.texts.branches
    of_branches = [x for part in branches for x in vars(part).values() if isinstance(x, Tensor)]
    rest = () if batch.real is None else (batch.real,)
    return [batch.inputs, batch.labels, *rest, *texts, *of_branches]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give all that an optimiser trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give the tensors that an optimiser keeps."""
    return [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]


def _monomials(sizes: Sizes) -> Sizes:
    """Give what the operations of a step are linear in."""
    clients, samples, distinct, nodes, pairs, *_ = sizes
    of_one = (1, samples, samples * samples, distinct, nodes, pairs)
    return (1, *(clients * x for x in of_one))
