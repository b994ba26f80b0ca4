"""Who carries the clients' work out: one after another in the one model, or many stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import ceil
from typing import Protocol

from torch import Tensor

from flora import client, group
from flora.client import OptimizerState
from flora.codecs import Codec, Plain
from flora.events import Events, Work
from flora.features import Samples
from flora.method import Method
from flora.settings import Training
from flora.states import States


@dataclass(frozen=True)
class Upload:
    """What the server gets from one client: bytes, and how much they weigh.

    Attributes:
        client: its number.
        payload: the encoded trained tensors.
        samples: size of the client's data, the weight in the aggregate.
        loss: mean training loss.
        seen: samples that steps were taken on.
    """

    client: int
    payload: bytes
    samples: int
    loss: float
    seen: int


@dataclass(frozen=True)
class Trained:
    """What a client's local training came to.

    Attributes:
        tensors: the trained tensors, views of the method's own.
        loss: mean training loss.
        seen: samples that steps were taken on.
    """

    tensors: dict[str, Tensor]
    loss: float
    seen: int


class Runner(Protocol):
    """Trains the clients of a round from one broadcast."""

    @property
    def states(self) -> dict[str, States]:
        """What clients keep from round to round, by what it is."""

    def run(
        self, round: int, clients: Sequence[int], broadcast: bytes, events: Events
    ) -> Iterator[Sequence[Upload]]:
        """Yield the uploads of those who are trained together, all in the order of `clients`."""


@dataclass(frozen=True)
class Clients:
    """Clients that are played in this process, in the one model.

    Attributes:
        method: the model and its loss.
        samples: all training samples.
        shares: one index array (n,) a client.
        training: what a client does.
        kept: where optimiser states rest; None if each round starts afresh.
        order_seed: seed of the batch order.
        codec: reads what arrives and writes what is sent.
        residuals: where rests what clients' updates left out; None if that is not kept.
    """

    method: Method
    samples: Samples
    shares: Sequence[Tensor]
    training: Training
    kept: States | None
    order_seed: int
    codec: Codec = field(default_factory=Plain, kw_only=True)
    residuals: States | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if empty := [number for number, share in enumerate(self.shares) if not len(share)]:
            raise ValueError(f"client {empty[0]} has no samples")

    @property
    def states(self) -> dict[str, States]:
        """What clients keep from round to round."""
        named = {"optimizers": self.kept, "residuals": self.residuals}
        return {name: states for name, states in named.items() if states is not None}

    def order(self, round: int, number: int) -> Iterator[Tensor]:
        """Draw a client's batches in a round, as indices of samples."""
        return client.order(self.shares[number], self.training, (self.order_seed, round, number))

    def kept_state(self, number: int) -> OptimizerState | None:
        """Fetch a client's optimiser state, if it has one."""
        return self.kept.get(number) if self.kept is not None else None

    def keep_state(self, number: int, state: OptimizerState | None) -> None:
        """Put a client's optimiser state away; of one that diverged, None, nothing is kept."""
        if self.kept is not None:
            _put_away(self.kept, number, state)

    def encode(
        self, round: int, number: int, trained: Trained, received: Mapping[str, Tensor], events: Events
    ) -> bytes:
        """Write a client's upload; what it leaves out is added to the client's next."""
        if self.residuals is None:
            return self.codec.encode_update(trained.tensors, received, None)[0]
        with events.phase("rest", round, number, "client"):
            residual = self.residuals.get(number)
        upload, left_out = self.codec.encode_update(trained.tensors, received, residual)
        with events.phase("rest", round, number, "client"):
            _put_away(self.residuals, number, left_out)
        return upload


def _put_away(rest: States, number: int, tensors: dict[str, Tensor] | None) -> None:
    if tensors is None:
        rest.pop(number, None)
    else:
        rest[number] = tensors


@dataclass(frozen=True)
class OneByOne(Clients):
    """The plainest runner: each client in turn in the one model."""

    def run(
        self, round: int, clients: Sequence[int], broadcast: bytes, events: Events
    ) -> Iterator[Sequence[Upload]]:
        """Yield an upload a client, in the order of `clients`."""
        for number in clients:
            yield (self._run_client(round, number, broadcast, events),)

    def _run_client(self, round: int, number: int, broadcast: bytes, events: Events) -> Upload:
        events.payload(round, number, "down", broadcast)
        with events.phase("send", round, number, "client"):
            received = self.codec.decode_state(broadcast, like=self.method.trainable)
        trained = self.train(round, number, received, events)
        with events.phase("receive", round, number, "client"):
            upload = self.encode(round, number, trained, received, events)
        events.payload(round, number, "up", upload)
        return Upload(number, upload, len(self.shares[number]), trained.loss, trained.seen)

    def train(self, round: int, number: int, start: Mapping[str, Tensor], events: Events) -> Trained:
        """Train one client from the tensors `start`, its optimiser's state fetched and put away again."""
        with events.phase("rest", round, number, "client"):
            kept = self.kept_state(number)
        with events.phase("train", round, number, "client"):
            state = client.start(self.method, start, self.training, kept)
            for batch in map(self.method.collate, self.samples.batches_of(self.order(round, number))):
                work = Work(
                    "step",
                    batch,
                    (number,),
                    gradients=partial(client.gradients, state),
                    optimizer=state.optimizer,
                    held=state.anchor,
                    replay=partial(client.differentiate, state, batch),
                )
                with events.work(work):
                    state = client.step(state, batch)
            trained = client.finish(state)
            loss = float(state.losses) / state.seen
        with events.phase("rest", round, number, "client"):
            diverged = not all(x.isfinite().all() for x in trained.values())
            self.keep_state(number, None if diverged else client.optimizer_state(state))
        return Trained(trained, loss, state.seen)


@dataclass(frozen=True)
class Grouped(Clients):
    """Trains `at_once` clients together, their tensors stacked (`flora.group`).

    Attributes:
        at_once: how many at most.
    """

    at_once: int

    def run(
        self, round: int, clients: Sequence[int], broadcast: bytes, events: Events
    ) -> Iterator[Sequence[Upload]]:
        """Yield the uploads of each group, all in the order of `clients`."""
        size = ceil(len(clients) / ceil(len(clients) / self.at_once))  # groups of about one size
        for start in range(0, len(clients), size):
            yield self._run_group(round, clients[start : start + size], broadcast, events)

    def _run_group(
        self, round: int, numbers: Sequence[int], broadcast: bytes, events: Events
    ) -> list[Upload]:
        for number in numbers:
            events.payload(round, number, "down", broadcast)
        with events.phase("send", round, side="client"):
            received = self.codec.decode_state(broadcast, like=self.method.trainable)
        trained = self._train(round, numbers, received, events)
        with events.phase("receive", round, side="client"):
            uploads = [self.encode(round, number, trained[number], received, events) for number in numbers]
        for number, upload in zip(numbers, uploads, strict=True):
            events.payload(round, number, "up", upload)
        return [
            Upload(number, upload, len(self.shares[number]), trained[number].loss, trained[number].seen)
            for number, upload in zip(numbers, uploads, strict=True)
        ]

    def _train(
        self, round: int, numbers: Sequence[int], start: Mapping[str, Tensor], events: Events
    ) -> dict[int, Trained]:
        orders = {number: list(self.order(round, number)) for number in numbers}
        numbers = sorted(numbers, key=lambda number: -len(orders[number]))
        with events.phase("rest", round, side="client"):
            kept = [self.kept_state(number) for number in numbers]
        with events.phase("train", round, side="client"):
            state = group.start(self.method, start, self.training, kept)
            for drawn in zip_longest(*(orders[number] for number in numbers)):
                # those with the most steps come first: whoever has no more is behind
                chosen = [x for x in drawn if x is not None]
                batch = group.stack(self.method, self.samples, chosen)
                work = Work(
                    "step",
                    batch,
                    numbers[: len(chosen)],
                    gradients=partial(group.gradients, state),
                    optimizer=state.optimizer,
                    held=(state.anchor,),
                    replay=partial(group.differentiate, state, batch),
                )
                with events.work(work):
                    state = group.step(state, batch, [len(x) for x in chosen])
            trained, losses, states = group.finish(state)
        with events.phase("rest", round, side="client"):
            for number, left in zip(numbers, states, strict=True):
                self.keep_state(number, left)
        seen = [sum(map(len, orders[number])) for number in numbers]
        return {
            number: Trained(tensors, loss / count, count)
            for number, tensors, loss, count in zip(numbers, trained, losses, seen, strict=True)
        }
