"""Training without communication: every client alone; or, as one such client with all data, centralised.

The two bounds between which a federation lies. They share everything with it but the exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flora import client
from flora.evaluation import accuracy, mean_scores, predict, scores
from flora.events import Events, Refusal, RoundRecord
from flora.features import Samples
from flora.federation import participants, weighted_mean
from flora.method import Method
from flora.runners import OneByOne
from flora.states import States


@dataclass
class LocalTraining:
    """Clients that start from one model and never exchange anything.

    Attributes:
        method: the model; serves the clients in turn.
        trainer: trains a client.
        test: what every client's model is evaluated on.
        clients: how many there are.
        trained: where the clients' tensors rest between rounds.
        participation, participation_seed: who trains in a round, as in a `Federation`.
        client_test: for each client, which of `test` are like its own data (indices); its accuracy is then
            that on these.
        events: whom to tell.
        state: what every client starts from.
    """

    method: Method
    trainer: OneByOne
    test: Samples
    clients: int
    trained: States
    participation: float = 1.0
    participation_seed: int = 0
    client_test: Sequence[Tensor] = ()
    events: Events = field(default_factory=Events)
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = {name: p.detach().to("cpu", copy=True) for name, p in self.method.trainable.items()}

    def rounds(self, count: int, after: int | None = None) -> Iterator[RoundRecord]:
        """Yield round 0, the untrained method's evaluation, and then `count` rounds of training.

        A record's accuracy is the mean over the clients of their models' accuracies on the whole test set.

        Args:
            count: of rounds in all.
            after: the round that was done last, as in a `Federation`.
        """
        if after is None:
            yield self._close(RoundRecord(0, **self._evaluate(0)))
        for number in range((after or 0) + 1, count + 1 if self.state else 1):
            yield self._round(number)

    @property
    def states(self) -> dict[str, States]:
        """What clients keep from round to round, their models among it."""
        return {**self.trainer.states, "models": self.trained}

    @property
    def trained_state(self) -> dict[str, Tensor] | None:
        """The one client's tensors as they are now; None where there are many, each with its own."""
        return self.trained.get(0, self.state) if self.clients == 1 else None

    @property
    def held(self) -> list[Tensor]:
        """What every client starts from, and their models as far as these are in memory."""
        models = self.trained.values() if isinstance(self.trained, dict) else ()
        return [*self.state.values(), *(x for model in models for x in model.values())]

    def models(self) -> Iterator[None]:
        """Put each client's model into `method` in turn."""
        for number in range(self.clients):
            client.load(self.method, self.trained.get(number, self.state))
            yield

    def _round(self, number: int) -> RoundRecord:
        chosen = participants(self.clients, self.participation, self.participation_seed, number)
        losses, refused, seen = [], [], 0
        for who in chosen:
            with self.events.phase("rest", number, who, "client"):
                start = self.trained.get(who, self.state)
            trained = self.trainer.train(number, who, start, self.events)
            seen += trained.seen
            if not all(x.isfinite().all() for x in trained.tensors.values()):
                refused.append(Refusal(who, "its trained tensors have values that are not finite"))
                continue  # it goes on from where it was, as a federation's client would
            with self.events.phase("rest", number, who, "client"):
                self.trained[who] = {n: x.to("cpu", copy=True) for n, x in trained.tensors.items()}
            losses.append((trained.loss, len(self.trainer.shares[who])))
        measured = self._evaluate(number)
        return self._close(
            RoundRecord(
                number,
                loss=weighted_mean(losses),
                clients=tuple(chosen),
                refused=tuple(refused),
                samples_seen=seen,
                **measured,
            )
        )

    def _evaluate(self, number: int) -> dict[str, Any]:
        with self.events.phase("evaluate", number):
            if self.trained:
                found = [predict(self.method, self.test, self.events) for _ in self.models()]
            else:  # all clients have the same model still
                next(self.models())
                found = [predict(self.method, self.test, self.events)] * self.clients
            of_clients = self._by_client([x.correct for x in found])
            return {
                **mean_scores([scores(x, self.method.classes) for x in found]),
                "client_accuracies": tuple(map(accuracy, of_clients)),
            }

    def _by_client(self, correct: list[Tensor]) -> list[Tensor]:
        """Give each client's hits: on its part if there are parts; none where one model has no parts."""
        if not self.client_test:
            return correct if self.clients > 1 else []
        # of centralised training the one model serves all clients
        models = correct if self.clients > 1 else correct * len(self.client_test)
        return [c[part] for c, part in zip(models, self.client_test, strict=True)]

    def _close(self, record: RoundRecord) -> RoundRecord:
        self.events.round(record)
        return record
