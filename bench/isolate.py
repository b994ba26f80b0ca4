"""Each cell in a process of its own, so that what one takes of memory is never counted for the next.

The processes are forked from a server that has the libraries loaded and has done nothing else (Python's
"forkserver"): a fork takes milliseconds where loading takes seconds. The server runs no operation of torch,
which might start threads or set up a GPU: neither survives a fork. Windows has no fork: there each process
loads the libraries anew ("spawn"), which works the same and takes seconds a cell.

Results pass through files, as ever, and what else the parent has to know comes back as JSON: nothing that a
cell sends is unpickled.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter

from bench.execute import TRACEBACK, Cause, Job, Outcome, failed, failed_by, result_of, run_one, warm_up
from bench.interrupt import interruptible
from bench.locks import is_held
from bench.perf.apart import with_suite_on_path
from flora.errors import BadInput
from flora.events import Listener, Phase, RoundRecord

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

WITHOUT_SPINNING = {"GOMP_SPINCOUNT": "0"}
"""Read by OpenMP when it is loaded."""

SECONDS_TO_STOP = 5.0
LONGEST_WAIT_SECONDS = 3600.0
"""What waits longer waits again: the system counts milliseconds in 32 bits, which is some weeks."""

_INTERRUPTED = 130
_POLL_SECONDS = 0.05
_SERVER_DIED = 255
"""What Python gives for the exit code of a process whose server is no longer there to tell it."""
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT = multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")


def start_server(crowded: bool = False) -> None:
    """Have the server load what it needs in the background, unless it runs already or there can be none.

    Args:
        crowded: its processes will have more threads than cores. One that waits for another by spinning then
            keeps it from working: cells took 3.5 times as long.
    """
    if not _FORKS:
        return
    from multiprocessing import forkserver

    # of methods and tasks those in use: all cells of a matrix run the code that was there when it began
    in_use = sorted(name for name in sys.modules if name.startswith(("baselines.", "bench.tasks.")))
    forkserver.set_forkserver_preload([*PRELOADED, *in_use])
    # the server goes by the environment alone, and this suite need not be installed
    environment = {"PYTHONPATH": with_suite_on_path()["PYTHONPATH"], **(WITHOUT_SPINNING if crowded else {})}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with _without_main_module():
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
            _stop([process])
            raise
        process.join()


def _nothing() -> None:
    """Do nothing: that it was forked is enough."""


class CellProcess:
    """A cell in a new process: whatever goes wrong in it stays in it, its death included.

    Args:
        job: the cell.
        listener: told, in `ended`, of the cell's phases outside of rounds, of how far they are, and of its
            rounds' ends.
        environment: variables that the process has besides this one's.
        threads: how many cores an operation may use in it; if not given, as many as here.
        timeout_seconds: after how long to give the cell up.
    """

    def __init__(
        self,
        job: Job,
        listener: Listener,
        *,
        environment: Mapping[str, str] = {},
        threads: int | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        self.job = job
        self._listener = listener
        self._timeout_seconds = timeout_seconds
        self._request = json.dumps({"job": job.to_dict(), **_process_state(environment, threads)})
        self._outcome: Outcome | None = None
        self._forked_anew = False
        self._make()

    def _make(self) -> None:
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)
        self._trace = _Trace()
        arguments = (self._sender, self._trace.writer, self._request)
        self.process = _CONTEXT.Process(target=_serve, args=arguments, name="flora-bench cell")
        self._heard_all = self._asked_to_end = self._late = False
        self.due = math.inf
        """When `ended` has something to do even if nothing happens, on the clock of `time.monotonic`."""

    def start(self) -> None:
        """Start the process; `stop` ends it even if this was interrupted.

        Raises:
            OSError: the system has no room for another process, or for what connects it with this one.
        """
        with self._sender, self._trace, _without_main_module():
            self._fork()
        if self._timeout_seconds is not None:
            self.due = time.monotonic() + self._timeout_seconds

    def _fork(self) -> None:
        end = time.monotonic() + SECONDS_TO_STOP
        while True:
            start_server()
            try:
                self.process.start()
                return
            except EOFError as error:  # the server could not fork, and ended over it
                raise OSError(errno.EAGAIN, "no process could be forked") from error
            except ConnectionRefusedError:  # a server that ends listens no more before it is gone
                if time.monotonic() > end:
                    raise
            time.sleep(_POLL_SECONDS)

    @property
    def sources(self) -> list[Connection | int]:
        """What to wait for, with `wait`."""
        return [self.process.sentinel, *([] if self._heard_all else [self._receiver])]

    def ended(self) -> Outcome | None:
        """Pass on what the cell has told since the last call; say what became of it, None while it runs.

        It does not wait for the cell, and stops one that takes too long. A cell that lost the server which
        forked it, and could not be followed any more, is begun once more.
        """
        runs = self.process.is_alive()  # first: what it said last is then there
        self._listen()
        if runs:
            self._mind_the_time()
            return None
        if self._outcome is None and self._lost_its_server:
            self._end_unseen()
            if self._fork_anew():
                return None
            self._outcome = self._forsaken()
        outcome = self._outcome or self._failed(self._trace.read())
        self.close()
        return outcome

    @property
    def _lost_its_server(self) -> bool:
        return _FORKS and self.process.exitcode == _SERVER_DIED

    def _end_unseen(self) -> None:
        """End a process that may still run, and wait for its lock: nobody can tell any more when it ends."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        end = time.monotonic() + SECONDS_TO_STOP
        time.sleep(_POLL_SECONDS)  # it does not end at once, nor does the server
        while _is_taken(self.job) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _fork_anew(self) -> bool:
        """Begin once more, with another server; False if that was done before, or cannot be."""
        if self._forked_anew:
            return False
        self._forked_anew = True
        self.close()
        try:
            self._make()
            self.start()
        except OSError:
            return False
        return True

    def _forsaken(self) -> Outcome:
        """Say what became of a cell that lost its server; it may be running still."""
        if (there := self._result()) is not None:
            return there
        if _is_taken(self.job):
            return busy(self.job)
        return failed(self.job, "the process that forks cells died; tried twice", "crash")

    def _result(self) -> Outcome | None:
        """Give what is there: it may have had time for the result and not for saying so."""
        with suppress(BadInput):
            if (there := result_of(self.job)) is not None:
                return replace(there, status="ran")
        return None

    def close(self) -> None:
        """Let go of what was kept for a process that has ended."""
        self._receiver.close()
        self._trace.file.close()

    def _listen(self) -> None:
        # what the process started may outlive it and hold the pipe open, so there may be no end of it
        while not self._heard_all and self._receiver.poll():
            try:
                message: dict[str, Any] = json.loads(self._receiver.recv_bytes())
            except (EOFError, OSError):  # the latter within a message
                self._heard_all = True
                return
            if (outcome := message.pop("outcome", None)) is None:
                tell(self._listener, message)
            else:
                self._outcome = Outcome(self.job.config, path=self.job.path, **outcome)
                self._heard_all = self._asked_to_end = True
                self.due = time.monotonic() + SECONDS_TO_STOP

    def _mind_the_time(self) -> None:
        if time.monotonic() < self.due:
            return
        if self._asked_to_end:
            self.process.kill()
            self.due = math.inf
        else:
            self.process.terminate()
            self._late = self._asked_to_end = True
            self.due = time.monotonic() + SECONDS_TO_STOP

    def _failed(self, trace: str) -> Outcome:
        """Say and write down why there is no outcome, with where the process was when it ended."""
        if (there := self._result()) is not None:
            return there
        reason, cause = _cause(self.process.exitcode)
        if self._late:
            reason, cause = f"it took longer than {self._timeout_seconds:g} s and was stopped", "timeout"
        file, note = self.job.folder / TRACEBACK, ""
        with suppress(OSError):  # on a full disk the reason has to do
            file.unlink(missing_ok=True)  # it may be there from another time
            if trace:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(trace, encoding="utf-8")
                note = f"(traceback in {file})"
        return failed(self.job, reason, cause, note)


class _Trace:
    """A file without a name, in which a process leaves where it was when it came to its end.

    Attributes:
        file: that, open for this process.
        writer: for the other one, until the `with` around its start ends. It is a connection, though to no
            other end, as those can be handed to a process; None on Windows, where it cannot be.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed by its owner)
        self.writer = Connection(os.dup(self.file.fileno()), readable=False) if os.name != "nt" else None

    def __enter__(self) -> None:
        """Nothing is to be done first."""

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def read(self) -> str:
        self.file.seek(0)
        return self.file.read().decode(errors="replace")


def wait(processes: Collection[CellProcess]) -> None:
    """Wait until `CellProcess.ended` of one of these has something to do."""
    left = min(process.due for process in processes) - time.monotonic()
    sources = [source for process in processes for source in process.sources]
    connection.wait(sources, max(0.0, min(left, LONGEST_WAIT_SECONDS)))


def busy(job: Job) -> Outcome:
    """Say that another process is on a cell."""
    return Outcome(job.config, "busy", job.path, reason="another process is on it")


def _is_taken(job: Job) -> bool:
    with suppress(OSError):  # where it cannot be told, to take the lock says why
        return is_held(job.folder)
    return False


def stop(processes: Collection[CellProcess]) -> None:
    """End the processes, all at once, and by force those that do not end by themselves."""
    _stop([process.process for process in processes])
    for process in processes:
        process.close()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the caller's script: a new process would run it again, needs none of it, and it may be no file."""
    hidden = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = hidden


def _process_state(environment: Mapping[str, str], threads: int | None) -> dict[str, Any]:
    """What numbers may depend on and a cell's process has not from this one, as the server is its parent."""
    import torch

    return {
        "environment": {**os.environ, **environment},
        "threads": threads or torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def tell(listener: Listener, message: Mapping[str, Any]) -> None:
    """Pass on an event that a `Forwarder` has sent."""
    match message:
        case {"resumed": round}:
            listener.resumed(round)
        case {"round_ended": record}:
            listener.round_ended(_reader(RoundRecord).validate_python(record))
        case {"phase_started": phase}:
            listener.phase_started(Phase(**phase))
        case {"phase_ended": phase}:
            listener.phase_ended(Phase(**phase))
        case {"advanced": phase, "done": done, "total": total}:
            listener.advanced(Phase(**phase), done, total)


@cache
def _reader(of: type) -> TypeAdapter[Any]:
    return TypeAdapter(of)


def _stop(processes: Collection[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    end = time.monotonic() + SECONDS_TO_STOP
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    for process in started:
        if process.is_alive():
            process.kill()
    for process in started:
        process.join()


def _cause(exit_code: int | None) -> tuple[str, Cause]:
    """Say why a process left no outcome, in words and in one."""
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code} and left no result", "crash"
    name = signal.Signals(-exit_code).name
    if name == "SIGKILL":
        return f"its process was ended by {name}, as happens where memory runs out", "memory"
    return f"its process was ended by {name}", "crash"


# --- in the cell's process -----------------------------------------------------------------------------


class Forwarder(Listener):
    """Sends the parent what people are shown; what passes within rounds would cost time there."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def send(self, **message: Any) -> None:
        """Send a message to the parent, without which there is nothing to do here any more."""
        try:
            self._sender.send_bytes(json.dumps(message).encode())
        except OSError:  # the parent is gone: that is no failure of the cell, which may be gone on with
            os._exit(_INTERRUPTED)

    def resumed(self, round: int) -> None:
        """Send it."""
        self.send(resumed=round)

    def phase_started(self, phase: Phase) -> None:
        """Send it if it is outside of rounds."""
        if phase.round is None:
            self.send(phase_started=asdict(phase))

    def phase_ended(self, phase: Phase) -> None:
        """Send it if it is outside of rounds."""
        if phase.round is None:
            self.send(phase_ended=asdict(phase))

    def advanced(self, phase: Phase, done: int, total: int) -> None:
        """Send it."""
        self.send(advanced=asdict(phase), done=done, total=total)

    def round_ended(self, record: RoundRecord) -> None:
        """Send the record."""
        self.send(round_ended=asdict(record))


def _serve(sender: Connection, trace: Connection | None, request: str) -> None:
    """Run the cell that was asked for and send its outcome; called in its process."""
    # What was there before the fork is no garbage: to look through it at each collection takes 0.3 s, and
    # would copy its pages.
    gc.freeze()
    _be_first_to_go()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if trace is not None:
        faulthandler.enable(trace.fileno())
    forwarder = Forwarder(sender)
    try:
        forwarder.send(outcome=_run(json.loads(request), forwarder))
    except KeyboardInterrupt:
        if trace is not None:
            os.write(trace.fileno(), traceback.format_exc().encode())
        sys.exit(_INTERRUPTED)


def _be_first_to_go() -> None:
    """Have Linux end this process before others when memory runs out: one cell fails, and the rest go on."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _run(asked: Mapping[str, Any], listener: Listener) -> dict[str, Any]:
    """Run a cell and give its outcome as JSON has it."""
    _take_on(asked)
    try:
        job = Job.read(asked["job"])
    except BadInput as error:  # what the caller could read, this process cannot: it has no GPU, say
        return {"status": "refused", "reason": str(error)}
    outcome = busy(job) if _is_taken(job) else _warmed_up_and_run(job, listener)
    return {
        "status": outcome.status,
        "summary": dict(outcome.summary),
        "reason": outcome.reason,
        "cause": outcome.cause,
    }


def _warmed_up_and_run(job: Job, listener: Listener) -> Outcome:
    try:
        warm_up_seconds = warm_up(job.config.device)
    except Exception as error:  # a GPU may be full before the cell itself begins
        return failed_by(job, error)
    return run_one(job, listener, warm_up_seconds)


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
