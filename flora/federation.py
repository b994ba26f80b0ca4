"""The rounds of federated averaging (arXiv 1602.05629): sample, send, train, receive, aggregate, evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from flora import client
from flora.aggregation import Aggregator
from flora.codecs import Codec, Plain
from flora.evaluation import accuracy, predict, scores
from flora.events import Events, Refusal, RoundRecord
from flora.features import Samples
from flora.method import Method
from flora.payload import PayloadError
from flora.runners import Runner, Upload
from flora.states import States

# Equal seeds are the rule; this keeps who takes part apart from the batch order (flora.client).
PARTICIPATION_STREAM = 1


@dataclass
class _Arrived:
    """What is noted of a round's uploads: loss and samples of those accepted, the others, samples seen."""

    losses: list[tuple[float, int]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    seen: int = 0


@dataclass
class Federation:
    """A server and its clients around one method.

    Attributes:
        method: the model; holds the global state whenever a round record is yielded.
        runner: carries out the clients' work.
        test: what every round is evaluated on.
        clients: how many there are.
        participation: share of them in each round, in (0, 1]; at least one takes part.
        participation_seed: seed of who does.
        client_test: for each client, which of `test` are like its own data (indices), if clients are
            evaluated apart.
        events: whom to tell.
        codec: writes what is sent and reads what arrives; the runner's clients must have the same.
        state: the global state, the server's own copy.
    """

    method: Method
    runner: Runner
    test: Samples
    clients: int
    participation: float = 1.0
    participation_seed: int = 0
    client_test: Sequence[Tensor] = ()
    events: Events = field(default_factory=Events)
    codec: Codec = field(default_factory=Plain)
    state: dict[str, Tensor] = field(init=False)
    _aggregator: Aggregator | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.state = {name: p.detach().to("cpu", copy=True) for name, p in self.method.trainable.items()}

    def rounds(self, count: int, after: int | None = None) -> Iterator[RoundRecord]:
        """Yield round 0, the untrained method's evaluation, and then `count` rounds of training.

        A method with nothing to train stops after round 0.

        Args:
            count: of rounds in all.
            after: the round that was done last, by a federation whose `state` and `states` this one has taken
                over; it goes on with the next. None: none was.
        """
        if after is None:
            yield self._close(RoundRecord(0, **self._evaluate(0)))
        for number in range((after or 0) + 1, count + 1 if self.state else 1):
            yield self._round(number)

    @property
    def states(self) -> dict[str, States]:
        """What clients keep, by what it is; with `state`, all that the next round starts from."""
        return self.runner.states

    @property
    def trained_state(self) -> dict[str, Tensor] | None:
        """The global state as it is now."""
        return self.state

    @property
    def held(self) -> list[Tensor]:
        """The server's tensors: the global state, and amid a round what is made of the uploads."""
        return [*self.state.values(), *(self._aggregator.held if self._aggregator else ())]

    def models(self) -> Iterator[None]:
        """Put each model that the training has come to, here the one, into `method` in turn."""
        client.load(self.method, self.state)
        yield

    def participants(self, number: int) -> Sequence[int]:
        """Say who takes part in round `number`, in ascending order; the same whenever asked."""
        return participants(self.clients, self.participation, self.participation_seed, number)

    def _round(self, number: int) -> RoundRecord:
        chosen = self.participants(number)
        with self.events.phase("send", number):
            broadcast = self.codec.encode_state(self.state)
            received = self.codec.received(self.state, broadcast)
        aggregator, arrived = self.method.aggregator(), _Arrived()
        self._aggregator = aggregator
        for uploads in self.runner.run(number, chosen, broadcast, self.events):
            self._take(number, uploads, received, aggregator, arrived)
            del uploads  # or it would stay in memory while the next are trained
        del broadcast, received
        with self.events.phase("aggregate", number):
            if arrived.losses:  # with every upload refused, the global state stays as it was
                self.state = aggregator.result()
            self._aggregator = None
            client.load(self.method, self.state)
        with self.events.phase("check", number):
            self.events.aggregate(number, self.state)
        measured = self._evaluate(number)
        return self._close(
            RoundRecord(
                number,
                loss=weighted_mean(arrived.losses),
                clients=tuple(chosen),
                refused=tuple(arrived.refused),
                samples_seen=arrived.seen,
                **measured,
            )
        )

    def _take(
        self,
        number: int,
        uploads: Sequence[Upload],
        received: Mapping[str, Tensor],
        aggregator: Aggregator,
        arrived: _Arrived,
    ) -> None:
        """Read uploads and put those that are as they should be into the aggregate."""
        who = uploads[0].client if len(uploads) == 1 else None
        decoded = []
        with self.events.phase("receive", number, who):
            for upload in uploads:
                arrived.seen += upload.seen
                try:
                    tensors = self.codec.decode_update(upload.payload, self.state, received)
                    decoded.append((upload, tensors))
                except PayloadError as error:
                    arrived.refused.append(Refusal(upload.client, str(error)))
        with self.events.phase("check", number, who):  # what listeners look at is no part of the aggregation
            for upload, tensors in decoded:
                self.events.accepted(number, upload.client, upload.samples, tensors)
        with self.events.phase("aggregate", number, who):
            for upload, tensors in decoded:
                aggregator.add(tensors, upload.samples)
                arrived.losses.append((upload.loss, upload.samples))

    def _evaluate(self, number: int) -> dict[str, Any]:
        with self.events.phase("evaluate", number):
            found = predict(self.method, self.test, self.events)
            of_clients = tuple(accuracy(found.correct[part]) for part in self.client_test)
            return {**scores(found, self.method.classes), "client_accuracies": of_clients}

    def _close(self, record: RoundRecord) -> RoundRecord:
        self.events.round(record)
        return record


def participants(clients: int, participation: float, seed: int, number: int) -> Sequence[int]:
    """Draw who takes part in round `number`, in ascending order; the same whenever asked."""
    size = max(1, round(participation * clients))
    stream = np.random.default_rng([PARTICIPATION_STREAM, seed, number])
    return sorted(stream.choice(clients, size, replace=False).tolist())


def weighted_mean(losses: Sequence[tuple[float, int]]) -> float | None:
    """Mean of (loss, samples) pairs weighted by samples, None of none."""
    samples = sum(weight for _, weight in losses)
    return sum(loss * weight for loss, weight in losses) / samples if samples else None
