"""What a federation tells those who listen: phases and steps that begin and end, payloads that pass, rounds.

The loop itself holds no clock and no counter. Whoever wants to measure it passes listeners; without any,
an event costs a loop over an empty tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from flora.features import Batch

Direction = Literal["down", "up"]
Side = Literal["server", "client"]


@dataclass(frozen=True)
class Phase:
    """A stretch of work.

    Attributes:
        name: what is done.
        round: None outside of rounds.
        client: whose payload or training it is about; None where it is about none or several.
        side: who would do it in a deployment.
    """

    name: str
    round: int | None = None
    client: int | None = None
    side: Side = "server"


@dataclass(frozen=True, eq=False)
class Work:
    """A piece of work whose cost follows from its kind and from the shapes in its batch.

    Attributes:
        kind: "step", a training step; "classifier", what images are scored against; "classify", scoring them.
        batch: what it is done on; None of a classifier.
        clients: whose step it is, stacked if they are several.
        gradients: gives, once a step is done, the gradients it followed, by trainable tensor.
        optimizer: of a step.
        held: tensors that a step needs besides the model, the batch and the optimiser's.
        prompts: of a classifier, how many classes and tokens it reads.
        replay: does the same again, or before, and changes nothing that counts.
    """

    kind: Literal["step", "classifier", "classify"]
    batch: Batch | None = None
    clients: Sequence[int] = ()
    gradients: Callable[[], Mapping[str, Tensor]] | None = None
    optimizer: Optimizer | None = None
    held: Sequence[Tensor] = ()
    prompts: tuple[int, ...] = ()
    replay: Callable[[], object] | None = None


@dataclass(frozen=True)
class Refusal:
    """An upload the server did not accept, and why."""

    client: int
    reason: str


@dataclass(frozen=True)
class RoundRecord:
    """What one round came to. Round 0 is the method before any training.

    Attributes:
        round: its number.
        accuracy: top-1 on the test set after the round's aggregation, in [0, 1].
        loss: mean training loss of the clients not refused, weighted by their samples; None if there is none.
        clients: who took part, in the order served.
        refused: uploads that were left out of the aggregate.
        samples_seen: samples that steps were taken on, over all clients who took part.
        client_accuracies: top-1 for each client, where clients are evaluated apart: of the model it uses, on
            its own part of the test set if there are parts; None for a client whose part is empty.
        macro_accuracy: mean over the classes of their accuracies, each counting alike; None if unknown.
        calibration_error: expected calibration error in 15 bins (arXiv 1706.04599); None if unknown.
        class_accuracies: top-1 for each class; None for one that the test set has no image of. All these are
            means over the models where there are several.
    """

    round: int
    accuracy: float
    loss: float | None = None
    clients: tuple[int, ...] = ()
    refused: tuple[Refusal, ...] = ()
    samples_seen: int = 0
    client_accuracies: tuple[float | None, ...] = ()
    macro_accuracy: float | None = None
    calibration_error: float | None = None
    class_accuracies: tuple[float | None, ...] = ()


class Listener:
    """Base of every listener: each method does nothing until overridden."""

    def resumed(self, round: int) -> None:
        """The run goes on after `round`, as an earlier process left it."""

    def phase_started(self, phase: Phase) -> None:
        """`phase` begins; phases may nest."""

    def phase_ended(self, phase: Phase) -> None:
        """`phase`, the innermost open one, ends (also when an exception passes through it)."""

    def work_started(self, work: Work) -> None:
        """`work` begins, within a phase."""

    def work_ended(self, work: Work) -> None:
        """`work` ends (also when an exception passes through it)."""

    def payload_passed(self, round: int, client: int, direction: Direction, payload: bytes) -> None:
        """`payload` goes from the server to `client` ("down") or back ("up"), exactly as on a wire."""

    def upload_accepted(self, round: int, client: int, samples: int, tensors: Mapping[str, Tensor]) -> None:
        """The server takes a client's `tensors` into the aggregate, with the weight of so many samples."""

    def aggregated(self, round: int, state: Mapping[str, Tensor]) -> None:
        """`state` is the new global state."""

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """`done` of `total` images are through, within a phase that has so many to deal with."""

    def round_ended(self, record: RoundRecord) -> None:
        """A round is over, its evaluation included."""


@dataclass(frozen=True)
class Events:
    """Hands each event to every listener, in their order."""

    listeners: Sequence[Listener] = field(default=())

    @contextmanager
    def phase(
        self, name: str, round: int | None = None, client: int | None = None, side: Side = "server"
    ) -> Iterator[None]:
        """Announce a phase around the body of a `with`."""
        phase = Phase(name, round, client, side)
        for listener in self.listeners:
            listener.phase_started(phase)
        try:
            yield
        finally:
            # the last to start is the first to end, so that listeners nest inside one another
            for listener in reversed(self.listeners):
                listener.phase_ended(phase)

    @contextmanager
    def work(self, work: Work) -> Iterator[None]:
        """Announce a piece of work around the body of a `with`."""
        for listener in self.listeners:
            listener.work_started(work)
        try:
            yield
        finally:
            for listener in reversed(self.listeners):
                listener.work_ended(work)

    def resume(self, round: int) -> None:
        """Announce that the run goes on after a round of an earlier process."""
        for listener in self.listeners:
            listener.resumed(round)

    def accepted(self, round: int, client: int, samples: int, tensors: Mapping[str, Tensor]) -> None:
        """Announce an upload that goes into the aggregate."""
        for listener in self.listeners:
            listener.upload_accepted(round, client, samples, tensors)

    def aggregate(self, round: int, state: Mapping[str, Tensor]) -> None:
        """Announce the new global state."""
        for listener in self.listeners:
            listener.aggregated(round, state)

    def payload(self, round: int, client: int, direction: Direction, payload: bytes) -> None:
        """Announce bytes that pass between server and client."""
        for listener in self.listeners:
            listener.payload_passed(round, client, direction, payload)

    def advance(self, phase: Phase, done: int, total: int) -> None:
        """Announce how far a long phase has come."""
        for listener in self.listeners:
            listener.advanced(phase, done, total)

    def round(self, record: RoundRecord) -> None:
        """Announce a finished round."""
        for listener in self.listeners:
            listener.round_ended(record)
