"""What a federation tells those who listen: phases that begin and end, payloads that pass, rounds that close.

The loop itself holds no clock and no counter. Whoever wants to measure it passes listeners; without any,
an event costs a loop over an empty tuple.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class Phase:
    """A stretch of work. `round` and `client` are None outside of rounds, or where the server works."""

    name: str
    round: int | None = None
    client: int | None = None


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
    """

    round: int
    accuracy: float
    loss: float | None = None
    clients: tuple[int, ...] = ()
    refused: tuple[Refusal, ...] = ()
    samples_seen: int = 0
    client_accuracies: tuple[float | None, ...] = ()


class Listener:
    """Base of every listener: each method does nothing until overridden."""

    def phase_started(self, phase: Phase) -> None:
        """`phase` begins; phases may nest."""

    def phase_ended(self, phase: Phase) -> None:
        """`phase`, the innermost open one, ends (also when an exception passes through it)."""

    def payload_passed(self, round: int, client: int, direction: Direction, payload: bytes) -> None:
        """`payload` goes from the server to `client` ("down") or back ("up"), exactly as on a wire."""

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """`done` of `total` images are through, within a phase that has so many to deal with."""

    def round_ended(self, record: RoundRecord) -> None:
        """A round is over, its evaluation included."""


@dataclass(frozen=True)
class Events:
    """Hands each event to every listener, in their order."""

    listeners: Sequence[Listener] = field(default=())

    @contextmanager
    def phase(self, name: str, round: int | None = None, client: int | None = None) -> Iterator[None]:
        """Announce a phase around the body of a `with`."""
        phase = Phase(name, round, client)
        for listener in self.listeners:
            listener.phase_started(phase)
        try:
            yield
        finally:
            # the last to start is the first to end, so that listeners nest inside one another
            for listener in reversed(self.listeners):
                listener.phase_ended(phase)

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
