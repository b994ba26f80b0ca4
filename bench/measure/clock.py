"""Where the time goes: seconds per phase, round and client; and what a deployment would take of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any, Literal

from flora.events import Listener, Phase, Work

ROUND_PHASES = ("send", "train", "receive", "aggregate", "evaluate")
"""What `Clock.round_seconds` adds up."""


COUNT = "count"
"""The phase of work that is done once more to be counted."""

CHECKS = ("check", COUNT)
"""The instruments' own phases: this, and looking at what must hold."""


@dataclass(frozen=True)
class ClientTime:
    """What one client spent in one round on its own side, in seconds by phase."""

    round: int
    client: int
    send: float = 0.0
    train: float = 0.0
    receive: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.send + self.train + self.receive


def _no_wait() -> None:
    """Wait for nothing: on the CPU work is done when its call returns."""


def _synchroniser(device: str) -> Callable[[], None]:
    """Return what waits for the work queued on `device`."""
    if not device.startswith("cuda"):
        return _no_wait
    import torch

    return lambda: torch.cuda.synchronize(device)


class Clock(Listener):
    """Exclusive time of every phase: what an inner phase takes is taken out of the outer one's.

    A GPU works behind the caller's back, so its queue is emptied at each border of a phase, and only
    there. Pass this listener last: `flora.events.Events` starts it last and ends it first, which keeps
    the cost of other listeners out of the phase they measure (an inner phase's goes to the outer one).

    Args:
        device: where the work runs, such as "cpu" or "cuda:0".
        clock: seconds from any origin, never going back.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._synchronise = _synchroniser(device)
        self._open: list[Phase] = []
        self._spent: dict[int | None, dict[Phase, float]] = defaultdict(lambda: defaultdict(float))
        self._of_clients: dict[int | None, dict[int, dict[str, float]]] = defaultdict(dict)
        self._stretch = 0.0
        self._steps: dict[int, int] = defaultdict(int)
        self._earlier_seconds = self._earlier_setup_seconds = 0.0
        self._constructed = self._border = clock()

    def phase_started(self, phase: Phase) -> None:
        """Charge the time so far to the phase around, if any, and open `phase`."""
        self._charge()
        self._open.append(phase)
        if _is_training(phase):
            self._stretch = 0.0
            self._steps.clear()

    def phase_ended(self, phase: Phase) -> None:
        """Charge the time since the last border to `phase` and close it."""
        self._charge()
        self._open.pop()
        if _is_training(phase):
            self._share(phase)

    def work_started(self, work: Work) -> None:
        """Count a step for each client that takes it."""
        if work.kind == "step":
            for client in work.clients:
                self._steps[client] += 1

    def _share(self, phase: Phase) -> None:
        """Divide what a stretch of training took by the steps that each client took part in.

        That is what they cost in a stack of tensors; a client by itself has all of it.
        """
        of_round = self._of_clients[phase.round]
        for client, count in self._steps.items():
            spent = of_round.setdefault(client, defaultdict(float))
            spent["train"] += self._stretch * count / sum(self._steps.values())

    def _charge(self) -> None:
        self._synchronise()
        now = self._clock()
        if self._open:
            phase = self._open[-1]
            self._spent[phase.round][phase] += now - self._border
            if _is_training(phase):
                self._stretch += now - self._border
        self._border = now

    def seconds(self, round: int | None, side: Literal["server", "client"] | None = None) -> dict[str, float]:
        """Seconds per phase in `round` (None: outside of rounds), summed over the clients; of one side."""
        by_name: dict[str, float] = defaultdict(float)
        for phase, seconds in self._spent.get(round, {}).items():
            if side in (None, phase.side):
                by_name[phase.name] += seconds
        return dict(by_name)

    @property
    def setup_seconds(self) -> dict[str, float]:
        """Seconds per phase outside of rounds, in this process: loading, features, zero-shot."""
        return self.seconds(None)

    @property
    def sitting_seconds(self) -> float:
        """Seconds since construction, whether or not a phase was open."""
        return self._clock() - self._constructed

    @property
    def total_seconds(self) -> float:
        """The same and, of a run that was resumed, of the processes before, up to what they kept."""
        return self._earlier_seconds + self.sitting_seconds

    @property
    def named_seconds(self) -> float:
        """Seconds of all phases together; what passes between them is the loop's and its listeners'."""
        here = sum(seconds for spent in self._spent.values() for seconds in spent.values())
        return here + self._earlier_setup_seconds

    @property
    def train_seconds(self) -> float:
        """Seconds of all phases named "train", over all rounds and clients."""
        return sum(self.seconds(number).get("train", 0.0) for number in self._spent)

    @property
    def rounds(self) -> list[int]:
        """The rounds from 1 on that there were."""
        return sorted(number for number in self._spent if number is not None and number > 0)

    @property
    def round_seconds(self) -> float | None:
        """Mean over the rounds from 1 on of their send + train + receive + aggregate + evaluate.

        Round 0 (the method before training) is not in it, nor is "rest" (kept optimiser states going
        from and to storage: a matter of one machine playing many clients), nor time outside of phases.
        None where there was no round but 0.
        """
        if not self.rounds:
            return None
        return fmean(
            sum(seconds for name, seconds in self.seconds(number).items() if name in ROUND_PHASES)
            for number in self.rounds
        )

    @property
    def shares_clients(self) -> bool:
        """Whether clients worked in groups, so that a client's time is its share of the group's."""
        return any(
            phase.side == "client" and phase.client is None
            for number in self.rounds
            for phase in self._spent[number]
        )

    def client_times(self, round: int) -> list[ClientTime]:
        """What each client of a round spent, in the order of their numbers.

        Of a group's training each has the share of the steps it took part in; of what else a group does, an
        even one.
        """
        own = {client: dict(spent) for client, spent in sorted(self._of_clients.get(round, {}).items())}
        for phase, seconds in self._spent.get(round, {}).items():
            if phase.side != "client" or phase.name not in ("send", "receive"):
                continue
            for client in own if phase.client is None else {phase.client} & own.keys():
                share = seconds / len(own) if phase.client is None else seconds
                own[client][phase.name] = own[client].get(phase.name, 0.0) + share
        return [ClientTime(round, client, **spent) for client, spent in own.items()]

    def checked_seconds(self, round: int) -> float:
        """What the instruments took of a round."""
        of_round = self.seconds(round)
        return sum(of_round.get(name, 0.0) for name in CHECKS)

    def server_seconds(self, round: int) -> float:
        """What the server spent on a round's federation: evaluation, a matter of measuring, is not in it."""
        of_server = self.seconds(round, "server")
        return sum(of_server.get(name, 0.0) for name in ("send", "receive", "aggregate"))

    def slowest_client_seconds(self, round: int) -> float | None:
        """What the slowest client spent; None where clients worked in groups, as then none was timed."""
        if self.shares_clients:
            return None
        return max((x.seconds for x in self.client_times(round)), default=None)

    def deployment_seconds(self, round: int) -> float | None:
        """What the round would take with the clients side by side: the server, and the slowest client.

        None where clients worked in groups: what one would take by itself was not measured.
        """
        slowest = self.slowest_client_seconds(round)
        return None if slowest is None else self.server_seconds(round) + slowest

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        spent = [
            (*astuple(phase), seconds)
            for number in self._spent
            if number is not None
            for phase, seconds in self._spent[number].items()
        ]
        of_clients = {number: found for number, found in self._of_clients.items() if number is not None}
        setup = self._earlier_setup_seconds + sum(self.setup_seconds.values())
        return {
            "spent": spent,
            "of_clients": of_clients,
            "seconds": self.total_seconds,
            "setup_seconds": setup,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        for *phase, seconds in state["spent"]:
            of_phase = Phase(*phase)
            self._spent[of_phase.round][of_phase] = seconds
        for number, clients in state["of_clients"].items():
            self._of_clients[int(number)] = {
                int(client): defaultdict(float, spent) for client, spent in clients.items()
            }
        self._earlier_seconds, self._earlier_setup_seconds = state["seconds"], state["setup_seconds"]


def _is_training(phase: Phase) -> bool:
    return phase.name == "train" and phase.side == "client"
