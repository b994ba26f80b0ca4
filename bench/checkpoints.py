"""What a run needs to go on in another process, kept every few rounds: the last two, each whole or not there.

A checkpoint is a folder `round-00012` with the tensors that the next round starts from (safetensors) and JSON
with all the rest: the records of the rounds, the ledger, what else the instruments have measured. There are
no random streams in it, as none lives from one round to the next: who takes part and the order of a client's
batches are drawn anew in every round, from the seeds and the round's number. So a run that goes on from a
checkpoint comes to the very bits of one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from bench.store import flush_folder
from flora.events import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

    from flora.federation import Federation
    from flora.local import LocalTraining

FOLDER = "checkpoints"
KEPT = 2
VERSION = 1
"""Of what a checkpoint holds; one of another version is not gone on from."""

AT_STAKE_SECONDS = 30.0
"""Without a number of rounds given, a checkpoint is due when so much work would be lost."""

COST_SHARE = 0.05
"""And not before the last one's cost is at most this share of the time since."""

_DESCRIPTION, _RECORDS, _STATE = "checkpoint.json", "records.json", "state.safetensors"
_HASHED_BYTES = 256 * 2**20
"""Larger files are known by their size alone: to read them again would take longer than a round."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its rounds.

    Attributes:
        folder: where its tensors are.
        round: the last that was done.
        records: of all rounds so far.
        measured: what the instruments had measured, by listener.
        sittings: of the processes that worked on it, as in `run.json`.
    """

    folder: Path
    round: int
    records: Sequence[RoundRecord]
    measured: Mapping[str, Any]
    sittings: Sequence[Mapping[str, Any]]

    def give_to(self, training: Federation | LocalTraining) -> None:
        """Have a training that has not begun stand where this one stood."""
        from safetensors.torch import load_file

        training.state = load_file(self.folder / _STATE)
        for name, states in training.states.items():
            states.load(self.folder / name)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        cell: the folder of its cell.
        definition: hash of what its numbers follow from; checkpoints of another are not gone on from.
        every_rounds: how often one is due; 0 for never; None for whenever half a minute would be lost.
        clock: seconds from any origin, never going back.
    """

    def __init__(
        self,
        cell: Path,
        definition: str,
        every_rounds: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = cell / FOLDER
        self._definition = definition
        self._every_rounds = every_rounds
        self._clock = clock
        self._last = clock()
        self._cost_seconds = 0.0
        self._own: list[Path] = []

    def latest(self, clients_together: int) -> Checkpoint | None:
        """Find the newest that is whole; None where there is none to go on from.

        Args:
            clients_together: how many clients are trained at once: another number gives other roundings.
        """
        for folder in _newest_first(self._folder):
            if (found := _read(folder, self._definition, clients_together)) is not None:
                self._own = [folder]
                return found
        return None

    def due(self, round: int) -> bool:
        """Whether the state after `round` should be kept."""
        if self._every_rounds is not None:
            return self._every_rounds > 0 and round % self._every_rounds == 0
        return self._clock() - self._last >= max(AT_STAKE_SECONDS, self._cost_seconds / COST_SHARE)

    def save(
        self,
        training: Federation | LocalTraining,
        clients_together: int,
        records: Sequence[RoundRecord],
        measured: Mapping[str, Any],
        sittings: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep the state after the last of `records`, and no more than one from before.

        Raises:
            OSError: it cannot be written; what was kept before still is.
        """
        began = self._clock()
        number = records[-1].round
        with _appearing(self._folder / f"round-{number:05d}") as folder:
            _save_tensors(training, folder)
            of_rounds = [asdict(record) for record in records]
            _write(
                folder / _RECORDS, {"records": of_rounds, "measured": measured, "sittings": list(sittings)}
            )
            description = {
                "version": VERSION,
                "definition": self._definition,
                "round": number,
                "clients_together": clients_together,
                "files": _described(folder),
            }
            _write(folder / _DESCRIPTION, description)
        self._keep_own(self._folder / f"round-{number:05d}")
        self._last = self._clock()
        self._cost_seconds = self._last - began

    def _keep_own(self, newest: Path) -> None:
        """Remove all but the last of this run: others are of another definition, or damaged."""
        self._own = [newest, *(folder for folder in self._own if folder != newest)][:KEPT]
        for folder in _newest_first(self._folder):
            if folder not in self._own:
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of them: the run has its result."""
        shutil.rmtree(self._folder, ignore_errors=True)


def latest_round(cell: Path, definition: str) -> int | None:
    """Say after which round the run of a cell's folder would go on; None where it would begin anew."""
    for folder in _newest_first(cell / FOLDER):
        found = _description(folder)
        if found is not None and found.get("definition") == definition:
            return _number(folder)
    return None


def newest_round(cell: Path) -> int | None:
    """Say after which round anything was last kept in a cell's folder, whatever it is worth."""
    return next(map(_number, _newest_first(cell / FOLDER)), None)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("round-*") if path.name.removeprefix("round-").isdigit()]
    return sorted(found, key=_number, reverse=True)


def _number(folder: Path) -> int:
    """Read the round off a checkpoint's name."""
    return int(folder.name.removeprefix("round-"))


def _description(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == VERSION else None


def _read(folder: Path, definition: str, clients_together: int) -> Checkpoint | None:
    """Read a checkpoint; None if it is another's or damaged: then an earlier one has to do."""
    found, number = _description(folder), _number(folder)
    asked = {"definition": definition, "clients_together": clients_together, "round": number}
    if found is None or found.get("files") != _described(folder):
        return None
    if any(found.get(name) != value for name, value in asked.items()):
        return None
    kept = json.loads((folder / _RECORDS).read_bytes())  # whole, as its hash was looked at
    records = TypeAdapter(list[RoundRecord]).validate_python(kept["records"])
    return Checkpoint(folder, number, records, kept["measured"], kept["sittings"])


def _save_tensors(training: Federation | LocalTraining, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: _alone(x) for name, x in training.state.items()}, folder / _STATE)
        for name, states in training.states.items():
            (folder / name).mkdir()
            states.save(folder / name)
    except SafetensorError as error:  # as it calls a full disk, among others
        raise OSError(str(error)) from error
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _alone(tensor: Tensor) -> Tensor:
    """Give a tensor with memory of its own, as safetensors writes no views."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _described(folder: Path) -> dict[str, list[Any]]:
    """Give size and, of files that are not large, SHA-256 of each file but the description."""
    described = {}
    for file in sorted(path for path in folder.rglob("*.*") if path.is_file() and path.name != _DESCRIPTION):
        size = file.stat().st_size
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest() if size <= _HASHED_BYTES else None
        described[file.relative_to(folder).as_posix()] = [size, digest]
    return described


def _write(file: Path, values: Mapping[str, Any]) -> None:
    with file.open("x", encoding="utf-8") as written:
        json.dump(values, written)
        written.flush()
        os.fsync(written.fileno())


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a folder that gets its name at the end, or is gone if anything fails."""
    parts = folder.parent / f".{folder.name}"
    shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed
    try:
        parts.mkdir(parents=True)
        yield parts
        shutil.rmtree(folder, ignore_errors=True)
        parts.rename(folder)
    except BaseException:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    flush_folder(folder.parent)
