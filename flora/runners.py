"""Who carries the clients' work out, and where their optimiser states rest between rounds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from flora import client, payload
from flora.client import ClientState, OptimizerState
from flora.errors import BadInput
from flora.events import Events
from flora.features import Samples
from flora.method import Method
from flora.settings import Training


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


class Runner(Protocol):
    """Trains the clients of a round from one broadcast."""

    def run(self, round: int, clients: Sequence[int], broadcast: bytes, events: Events) -> Iterator[Upload]:
        """Yield an upload a client, in the order of `clients`."""


@dataclass(frozen=True)
class OneByOne:
    """The plainest runner: each client in turn in the one model, in this process.

    Attributes:
        method: the model and its loss.
        samples: all training samples.
        shares: one index array (n,) a client.
        training: what a client does.
        kept: where optimiser states rest; None if each round starts afresh.
        order_seed: seed of the batch order.
    """

    method: Method
    samples: Samples
    shares: Sequence[Tensor]
    training: Training
    kept: MutableMapping[int, OptimizerState] | None
    order_seed: int

    def __post_init__(self) -> None:
        if empty := [number for number, share in enumerate(self.shares) if not len(share)]:
            raise ValueError(f"client {empty[0]} has no samples")

    def run(self, round: int, clients: Sequence[int], broadcast: bytes, events: Events) -> Iterator[Upload]:
        """Yield an upload a client, in the order of `clients`."""
        for number in clients:
            yield self._run_client(round, number, broadcast, events)

    def _run_client(self, round: int, number: int, broadcast: bytes, events: Events) -> Upload:
        share = self.shares[number]
        events.payload(round, number, "down", broadcast)
        with events.phase("send", round, number):
            received = payload.decode(broadcast, like=self.method.trainable)
        with events.phase("rest", round, number):
            kept = self.kept.get(number) if self.kept is not None else None
        with events.phase("train", round, number):
            state = client.start(self.method, received, self.training, kept)
            for batch in client.batches(self.samples, share, self.training, (self.order_seed, round, number)):
                state = client.step(state, batch)
            trained = client.finish(state)
            loss = float(state.losses) / state.seen
        with events.phase("receive", round, number):
            upload = payload.encode(trained)
        if self.kept is not None:
            with events.phase("rest", round, number):
                self._rest(number, state, diverged=not all(x.isfinite().all() for x in trained.values()))
        events.payload(round, number, "up", upload)
        return Upload(number, upload, len(share), loss, state.seen)

    def _rest(self, number: int, state: ClientState, diverged: bool) -> None:
        """Keep the optimiser's state; of a client that diverged nothing, or it could never recover."""
        assert self.kept is not None
        if diverged:
            self.kept.pop(number, None)
        else:
            self.kept[number] = client.optimizer_state(state)


class StatesOnDisk(MutableMapping[int, OptimizerState]):
    """Optimiser states in a temporary folder, as each client would keep its own.

    With many clients and many weights they would not fit in memory: Adam's are twice the model, a client.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="flora-optimizer-states-")
        self._clients: set[int] = set()

    def _file(self, client: int) -> Path:
        return Path(self._folder.name) / f"{client}.safetensors"

    def __getitem__(self, client: int) -> OptimizerState:
        if client not in self._clients:
            raise KeyError(client)
        return load_file(self._file(client))

    def __setitem__(self, client: int, state: OptimizerState) -> None:
        # to a new file: what was read from the old one may still be mapped from it
        written = self._file(client).with_suffix(".new")
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, written)
        written.replace(self._file(client))
        self._clients.add(client)

    def __delitem__(self, client: int) -> None:
        self._clients.remove(client)
        self._file(client).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


# States of this size in all stay in memory: reading them back from disk would cost more than they do.
STATES_IN_MEMORY_BYTES = 16 * 2**20


def states_for(
    method: Method, clients: int, training: Training
) -> MutableMapping[int, OptimizerState] | None:
    """Choose where `clients` optimiser states rest: nowhere, in memory if they are small, else on disk.

    Raises:
        BadInput: there is no room for them.
    """
    if training.optimizer.state == "reset":
        return None
    two_moments = 2 * sum(p.numel() * p.element_size() for p in method.trainable.values())
    if clients * two_moments <= STATES_IN_MEMORY_BYTES:
        return {}
    free = shutil.disk_usage(gettempdir()).free
    if clients * two_moments > free:
        raise BadInput(
            f"optimizer.state: keep needs {clients * two_moments / 1e9:.1f} GB for {clients} clients, and "
            f"{gettempdir()} has {free / 1e9:.1f} GB; use reset, or set TMPDIR to a larger disk"
        )
    return StatesOnDisk()
