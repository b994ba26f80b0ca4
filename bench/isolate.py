"""Each cell in a process of its own, so that what one takes of memory is never counted for the next.

The processes are forked from a server that has the libraries loaded and has done nothing else (Python's
"forkserver"): a fork takes milliseconds where loading takes seconds. The server runs no operation of torch,
which might start threads or set up a GPU: neither survives a fork. Windows has no fork: there each process
loads the libraries anew ("spawn"), which works the same and takes seconds a cell.

Results pass through files, as ever, and what else the parent has to know comes back as JSON: nothing that a
cell sends is unpickled.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from bench.config import RunConfig
from bench.execute import Outcome, Watcher, run_one, warm_up
from bench.interrupt import interruptible
from bench.perf.apart import with_suite_on_path
from flora.events import Phase, RoundRecord

if TYPE_CHECKING:
    from flora.cache import FeatureCache

PRELOADED = (
    "bench.isolate",
    "bench.cell",
    "bench.store",
    "bench.tasks.digits",
    "flora.lora",
    "open_clip",
    "peft",
    "safetensors.torch",
    "sklearn.datasets",
)
"""What the server imports: nearly all that a cell would. None of it may start threads of OpenMP or CUDA."""

SECONDS_TO_STOP = 5.0
_INTERRUPTED = 130
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT = multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")


def start_server() -> None:
    """Have the server load what it needs in the background, unless it runs already or there can be none."""
    if not _FORKS:
        return
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(list(PRELOADED))
    before = os.environ.get("PYTHONPATH")
    # the server goes by the environment alone, and this suite need not be installed
    os.environ["PYTHONPATH"] = with_suite_on_path()["PYTHONPATH"]
    try:
        with _without_main_module():
            forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def wait_for_server() -> None:
    """Wait until the server can fork, so that no cell seems to take as long as the libraries' loading."""
    if not _FORKS:
        return
    start_server()
    process = _CONTEXT.Process(target=_nothing, name="flora-bench probe")
    with interruptible():
        try:
            with _without_main_module():
                process.start()
        except BaseException:
            _stop(process)
            raise
        process.join()


def _nothing() -> None:
    """Do nothing: that it was forked is enough."""


def run_isolated(
    config: RunConfig, path: Path, watcher: Watcher, weights: str, kept: FeatureCache | None
) -> Outcome:
    """Run one cell in a new process and wait for it; whatever goes wrong stays in it, its death included.

    Args:
        config: the cell.
        path: of its `run.json`.
        watcher: told of the cell's phases outside of rounds, how far they are, and of the ends of its rounds.
        weights: which trained tensors to keep, of `bench.store.WEIGHTS_KEPT_BYTES`.
        kept: where what frozen towers give is kept.

    Raises:
        KeyboardInterrupt: this process was asked to stop; that of the cell has ended by then.
    """
    start_server()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    request = json.dumps({**_request(config, path, weights, kept), **_process_state()})
    process = _CONTEXT.Process(target=_serve, args=(sender, request), name="flora-bench cell")
    with receiver, interruptible():
        try:
            with sender, _without_main_module():
                process.start()
            outcome = _follow(receiver, process, watcher)
        except BaseException:
            _stop(process)
            raise
        process.join()
    if outcome is None:
        return Outcome(config, "failed", path, reason=_cause(process.exitcode))
    return Outcome(config, path=path, **outcome)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the caller's script: a new process would run it again, needs none of it, and it may be no file."""
    hidden = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = hidden


def _request(config: RunConfig, path: Path, weights: str, kept: FeatureCache | None) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "path": str(path),
        "weights": weights,
        "cache": None if kept is None else {"folder": str(kept.folder), "limit_bytes": kept.limit_bytes},
    }


def _process_state() -> dict[str, Any]:
    """What numbers may depend on and a cell's process has not from this one, as the server is its parent."""
    import torch

    return {
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _follow(receiver: Connection, process: BaseProcess, watcher: Watcher) -> dict[str, Any] | None:
    """Pass the cell's events on to `watcher` until its outcome comes; None if it ended without."""
    while True:
        # what the process started may outlive it and hold the pipe open, so its end alone is no sign
        connection.wait([receiver, process.sentinel])
        if not receiver.poll():
            return None
        try:
            message: dict[str, Any] = json.loads(receiver.recv_bytes())
        except (EOFError, OSError):  # the latter within a message
            return None
        if (outcome := message.pop("outcome", None)) is not None:
            return dict(outcome)
        _tell(watcher, message)


def _tell(watcher: Watcher, message: Mapping[str, Any]) -> None:
    match message:
        case {"round_ended": record}:
            watcher.round_ended(_reader(RoundRecord).validate_python(record))
        case {"phase_started": phase}:
            watcher.phase_started(Phase(**phase))
        case {"phase_ended": phase}:
            watcher.phase_ended(Phase(**phase))
        case {"advanced": phase, "done": done, "total": total}:
            watcher.advanced(Phase(**phase), done, total)


@cache
def _reader(of: type) -> TypeAdapter[Any]:
    return TypeAdapter(of)


def _stop(process: BaseProcess) -> None:
    """End the process, by force if it does not end by itself."""
    if process.pid is None:
        return
    process.terminate()
    process.join(SECONDS_TO_STOP)
    if process.is_alive():
        process.kill()
        process.join()


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code} and left no result"
    name = signal.Signals(-exit_code).name
    hint = ", as happens where memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


# --- in the cell's process -----------------------------------------------------------------------------


class _Forwarder(Watcher):
    """Sends the parent what a watcher shows; what passes within rounds would cost time there."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def send(self, **message: Any) -> None:
        self._sender.send_bytes(json.dumps(message).encode())

    def phase_started(self, phase: Phase) -> None:
        if phase.round is None:
            self.send(phase_started=asdict(phase))

    def phase_ended(self, phase: Phase) -> None:
        if phase.round is None:
            self.send(phase_ended=asdict(phase))

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        self.send(advanced=asdict(phase), done=done, total=total)

    def round_ended(self, record: RoundRecord) -> None:
        self.send(round_ended=asdict(record))


def _serve(sender: Connection, request: str) -> None:
    """Run the cell that was asked for and send its outcome; called in its process."""
    # What was there before the fork is no garbage: to look through it at each collection takes 0.3 s, and
    # would copy its pages.
    gc.freeze()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = _run(json.loads(request), forwarder := _Forwarder(sender))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    forwarder.send(
        outcome={"status": outcome.status, "summary": dict(outcome.summary), "reason": outcome.reason}
    )


def _run(asked: Mapping[str, Any], watcher: Watcher) -> Outcome:
    _take_on(asked)
    config = RunConfig.read(asked["config"])
    seconds = warm_up(config.device)
    return run_one(config, Path(asked["path"]), watcher, asked["weights"], _cache(asked["cache"]), seconds)


def _end_with_parent() -> None:
    """Leave no orphan: a parent that was killed cannot stop anyone."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(_INTERRUPTED)


def _take_on(state: Mapping[str, Any]) -> None:
    """Make this process as its parent was, see `_process_state`."""
    import torch

    os.environ.clear()
    os.environ.update(state["environment"])
    if torch.get_num_threads() != state["threads"]:
        torch.set_num_threads(state["threads"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn_only"])


def _cache(described: Mapping[str, Any] | None) -> FeatureCache | None:
    if described is None:
        return None
    from flora.cache import FeatureCache

    return FeatureCache(Path(described["folder"]), described["limit_bytes"])
