"""Where clients' tensors rest between rounds: optimisers' states, what updates left out, models."""

from __future__ import annotations

import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from flora.codecs import Codec
from flora.errors import BadInput
from flora.method import Method
from flora.settings import Training

_SCRATCH = "flora-clients-"
_LOCK = ".lock"
_ALL = "all.safetensors"
# A folder this old that nobody holds was left behind by a process that was killed.
_ABANDONED_SECONDS = 60.0


class States(MutableMapping[int, dict[str, Tensor]]):
    """Each client's tensors, by its number."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all of them into `folder`, which is empty; what is written there never changes.

        Raises:
            OSError: they cannot be written.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take over what `save` wrote, in place of what there is."""


class StatesInMemory(dict[int, dict[str, Tensor]], States):
    """Few and small ones."""

    def save(self, folder: Path) -> None:
        """Write one file with the tensors of all clients."""
        named = {f"{client}.{name}": x for client, state in self.items() for name, x in state.items()}
        # views of one stack of clients' tensors cannot be written as they are
        save_file(
            {name: x.detach().to("cpu", copy=True).contiguous() for name, x in named.items()}, folder / _ALL
        )

    def load(self, folder: Path) -> None:
        """Read that file."""
        self.clear()
        for key, tensor in load_file(folder / _ALL).items():
            client, _, name = key.partition(".")
            self.setdefault(int(client), {})[name] = tensor


class StatesOnDisk(States):
    """Clients' tensors in a temporary folder, as each client would keep its own.

    With many clients and many weights they would not fit in memory: Adam's are twice the model, a client.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        self._folder = TemporaryDirectory(prefix=_SCRATCH)
        self._lock = FileLock(Path(self._folder.name) / _LOCK)
        self._lock.acquire()
        self._clients: set[int] = set()

    def _file(self, client: int) -> Path:
        return Path(self._folder.name) / f"{client}.safetensors"

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        if client not in self._clients:
            raise KeyError(client)
        return load_file(self._file(client))

    def __setitem__(self, client: int, state: dict[str, Tensor]) -> None:
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

    def save(self, folder: Path) -> None:
        """Link the files, as each is written once and replaced by another; copy them to another disk."""
        for client in self:
            _link(self._file(client), folder / self._file(client).name)

    def load(self, folder: Path) -> None:
        """Link or copy them back."""
        for client in list(self):
            del self[client]
        for file in folder.glob("*.safetensors"):
            client = int(file.stem)
            _link(file, self._file(client))
            self._clients.add(client)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, to)


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed; a lock is let go of with its holder."""
    for folder in Path(gettempdir()).glob(f"{_SCRATCH}*"):
        try:
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                with FileLock(folder / _LOCK).acquire(timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
        except (OSError, Timeout):
            continue


# States of this size in all stay in memory: reading them back from disk would cost more than they do.
STATES_IN_MEMORY_BYTES = 64 * 2**20


def states_for(method: Method, clients: int, training: Training) -> States | None:
    """Choose where `clients` optimiser states rest; nowhere if they are not kept.

    Raises:
        BadInput: there is no room for them.
    """
    if training.optimizer.state == "reset":
        return None
    two_moments = 2 * _trainable_bytes(method)
    return _room_for(clients, two_moments, "optimizer.state: keep", "use reset, or ")


def residuals_for(method: Method, clients: int, codec: Codec) -> States | None:
    """Choose where rests what the updates of `clients` left out; nowhere if it is not kept.

    Raises:
        BadInput: there is no room for it.
    """
    if not codec.keeps_residual:
        return None
    what = "codec.error_feedback: true"
    return _room_for(clients, _trainable_bytes(method), what, "use false, or ")


def models_for(method: Method, clients: int) -> States:
    """Choose where the trained tensors of `clients` that do not communicate rest.

    Raises:
        BadInput: there is no room for them.
    """
    return _room_for(clients, _trainable_bytes(method), "mode: local_only", "use fewer clients, or ")


def _trainable_bytes(method: Method) -> int:
    """Size of what trains."""
    return sum(p.numel() * p.element_size() for p in method.trainable.values())


def _room_for(clients: int, each: int, what: str, remedy: str) -> States:
    """Give a place for `each` bytes a client: in memory if they are few, else on disk."""
    needed = clients * each
    if needed <= STATES_IN_MEMORY_BYTES:
        return StatesInMemory()
    free = shutil.disk_usage(gettempdir()).free
    if needed > free:
        raise BadInput(
            f"{what} needs {needed / 1e9:.1f} GB for {clients} clients, and "
            f"{gettempdir()} has {free / 1e9:.1f} GB; {remedy}set TMPDIR to a larger disk"
        )
    return StatesOnDisk()
