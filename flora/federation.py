"""The rounds of federated averaging (arXiv 1602.05629): sample, send, train, receive, aggregate, evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flora import client, payload
from flora.aggregation import Aggregator
from flora.events import Events, Refusal, RoundRecord
from flora.features import Samples
from flora.method import Method
from flora.payload import PayloadError
from flora.runners import Runner, Upload

# Images that are evaluated together; more take memory and save no time. And features, of which one is little.
IMAGES_AT_ONCE = 32
FEATURES_AT_ONCE = 2048

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
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = {name: p.detach().to("cpu", copy=True) for name, p in self.method.trainable.items()}

    def rounds(self, count: int) -> Iterator[RoundRecord]:
        """Yield round 0, the untrained method's evaluation, and then `count` rounds of training.

        A method with nothing to train stops after round 0.
        """
        yield self._close(RoundRecord(0, **self._evaluate(0)))
        for number in range(1, count + 1 if self.state else 1):
            yield self._round(number)

    @property
    def trained_state(self) -> dict[str, Tensor] | None:
        """The global state as it is now."""
        return self.state

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
            broadcast = payload.encode(self.state)
        aggregator, arrived = self.method.aggregator(), _Arrived()
        for uploads in self.runner.run(number, chosen, broadcast, self.events):
            self._take(number, uploads, aggregator, arrived)
            del uploads  # or it would stay in memory while the next are trained
        del broadcast
        with self.events.phase("aggregate", number):
            if arrived.losses:  # with every upload refused, the global state stays as it was
                self.state = aggregator.result()
            client.load(self.method, self.state)
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
        self, number: int, uploads: Sequence[Upload], aggregator: Aggregator, arrived: _Arrived
    ) -> None:
        """Read uploads and put those that are as they should be into the aggregate."""
        who = uploads[0].client if len(uploads) == 1 else None
        decoded = []
        with self.events.phase("receive", number, who):
            for upload in uploads:
                arrived.seen += upload.seen
                try:
                    decoded.append((upload, payload.decode(upload.payload, like=self.state)))
                except PayloadError as error:
                    arrived.refused.append(Refusal(upload.client, str(error)))
        with self.events.phase("aggregate", number, who):
            for upload, tensors in decoded:
                self.events.accepted(number, upload.client, upload.samples, tensors)
                aggregator.add(tensors, upload.samples)
                arrived.losses.append((upload.loss, upload.samples))

    def _evaluate(self, number: int) -> dict[str, Any]:
        with self.events.phase("evaluate", number):
            correct = hits(self.method, self.test)
            of_clients = tuple(accuracy_of(correct[part]) for part in self.client_test)
            return {"accuracy": accuracy_of(correct), "client_accuracies": of_clients}

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


def evaluate(method: Method, samples: Samples) -> float:
    """Measure top-1 accuracy on `samples`, in [0, 1]; there must be some."""
    return int(hits(method, samples).sum()) / len(samples)


def hits(method: Method, samples: Samples) -> Tensor:
    """Say of each sample whether its class scores highest: (n,) bool, on the CPU."""
    size = IMAGES_AT_ONCE if samples.features is None else FEATURES_AT_ONCE
    with torch.inference_mode():
        classifier = method.classifier()
        correct = [
            method.logits(batch, classifier).argmax(dim=-1) == batch.labels for batch in samples.batches(size)
        ]
        return torch.cat(correct).cpu()


def accuracy_of(correct: Tensor) -> float | None:
    """Share of hits (n,), None of none."""
    return int(correct.sum()) / len(correct) if len(correct) else None
