"""Cells on a Ray cluster, one on this machine or one that is there: each cell is a task of its own.

A task runs its cell in a process forked for it (`bench.isolate`), as everywhere, and streams what happens as
JSON. Where its node sees the results folder, it works in there. Where not, it works in a folder of its node,
and the files come back through Ray as they are, to be put in their place here. Ray passes what it is given
from machine to machine by pickle, so the machines of a cluster have to trust each other; a task is given a
string, and gives strings and bytes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from textwrap import shorten
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from bench import isolate, store
from bench.caching import default_folder
from bench.config import RunConfig
from bench.definition import definition_of
from bench.execute import FAILURE, Cause, Job, Outcome, Watcher, failed, forget_attempts
from bench.interrupt import interruptible
from bench.isolate import WITHOUT_SPINNING, Forwarder, busy, tell
from bench.locks import is_held, locked
from bench.measure.load import usable_cores
from bench.perf.apart import with_suite_on_path
from bench.placement import Prediction
from bench.progress_file import PROGRESS
from bench.workers import Predictions, may_group, threads_of_each
from flora.errors import BadInput
from flora.events import Listener

SECONDS_TO_ANSWER, SECONDS_TO_JOIN = 10.0, 40.0
"""How long a cluster may take to answer at all, and to let this process in."""

SECONDS_BETWEEN_LOOKS = 0.1
"""How often what the tasks have sent is looked at."""

SECONDS_WITHOUT_A_CELL = 10.0
"""After how long without a cell that runs to see whether the cluster's nodes are still those there were."""

TIMES_TRIED = 2
"""A cell whose task died is tried again; one that kills every task must not do so for ever."""

OBJECT_STORE_BYTES = 100 * 2**20
"""What Ray on this machine sets aside to pass objects; results pass as files there."""

PROCESS_BYTES = 1_100_000_000
"""What a task takes of memory before any tensor: Ray's worker, the server that forks, and the cell's process.

The sum of their proportional set sizes (0.39, 0.37 and 0.36 GB) as Linux gave them with two tasks of the
embedded model at a time, under torch 2 and Ray 2; each alone shows 0.7 GB or more as resident, of which they
share most.
"""

SECONDS_UNTIL_OLD = 3600.0
"""What a process that was killed has left is removed after so long, if nobody holds it."""

FOLDER_PREFIX, TOKEN_PREFIX = "flora-bench-ray-", ".seen-"

VARIABLES = ("FLORA_BENCH_", "HF_", "TORCH_", "OMP_", "MKL_", "OPENBLAS_", "CUBLAS_")
"""Environment variables that begin so are the tasks', too."""

logger = logging.getLogger(__name__)

_JOIN = """
import logging, sys, ray
logging.disable()
try:
    ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)
except Exception as error:
    sys.exit(f"{error} {error.__cause__ or ''}")
"""


class RayCluster:
    """Runs cells as tasks of a Ray cluster, heaviest first.

    Args:
        address: "HOST:PORT" of a cluster, one of whose nodes this machine is; it is left running. None for
            one on this machine that lives as long as the cells run. If this process is in a cluster
            already, that is used.
        workers: how many cells run at once; if not given, as many as there is room for.
        predictions: foretells what a cell takes, or gives None.
        timeout_seconds: after how long to give a cell up.
        seconds_to_answer: how long to wait for a sign of life from `address`.

    Raises:
        BadInput: `address` is none.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        predictions: Predictions | None = None,
        timeout_seconds: float | None = None,
        seconds_to_answer: float = SECONDS_TO_ANSWER,
    ) -> None:
        self._address = None if address is None else _endpoint(address)
        self._workers = workers
        self._predictions = predictions or (lambda _: None)
        self._timeout_seconds = timeout_seconds
        self._seconds_to_answer = seconds_to_answer

    def prepare(self) -> None:
        """Find out before anything else whether there is a Ray, and a cluster to join.

        Raises:
            BadInput: there is not.
        """
        if not _ray().is_initialized() and self._address is not None:
            _check_answers(*self._address, self._seconds_to_answer)
            _check_joins(*self._address)

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Iterator[Outcome]:
        """Run every job; those that another process is on are "busy" at once.

        Raises:
            KeyboardInterrupt: this process was asked to stop; no task is left by then.
        """
        free = []
        for job in jobs:
            if is_held(job.folder):
                watcher.cell_ended(outcome := busy(job))
                yield outcome
            else:
                free.append(job)
        if not free:  # and no cluster is started only to find that out
            return
        at_once = None if self._workers is None else min(self._workers, len(free))
        with self._connected() as ray, _token(free) as token:
            requests, threads = self._requests(ray, at_once), self._threads(at_once)
            submission = _Submission(ray, watcher, requests, token, self._timeout_seconds, threads)
            yield from submission.run(self._in_order(free), at_once)

    def _threads(self, at_once: int | None) -> int | None:
        """How many threads a cell has on this machine, as with `Workers`; of a cluster, as many as cores."""
        if self._address is not None or at_once is None:
            return None
        import torch

        return threads_of_each(at_once) or torch.get_num_threads()

    def _in_order(self, jobs: Sequence[Job]) -> list[Job]:
        """Put the heaviest first, so that none of them is what all wait for in the end."""
        return sorted(jobs, key=lambda job: self._predicted(job).seconds or 0.0, reverse=True)

    def _predicted(self, job: Job) -> Prediction:
        return self._predictions(job.config) or Prediction()

    @contextmanager
    def _connected(self) -> Iterator[ModuleType]:
        """Have this process in a cluster."""
        ray = _ray()
        if ray.is_initialized():
            yield ray
            return
        with _joined(ray, self._address) if self._address else _started(ray, self._workers):
            yield ray

    def _requests(self, ray: ModuleType, at_once: int | None) -> Callable[[Job], dict[str, Any]]:
        """Give what says what a job's task asks for: never more than there is, as it would wait for ever."""

        def request(job: Job) -> dict[str, Any]:
            gpus = int(job.config.device.startswith("cuda"))
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # they come and go
            able = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= 1]
            if not able:
                raise BadInput(_NO_GPU if gpus else _NO_CORE)
            largest = max(able, key=lambda node: node["CPU"])
            cores = job.config.compute.threads or self._share(able, gpus, at_once)
            # what a cell for a GPU is foretold to take is of the GPU's memory, which Ray does not count
            needed = 0 if gpus else PROCESS_BYTES + (self._predicted(job).peak_bytes or 0)
            return {
                "num_cpus": max(1, min(cores, int(largest["CPU"]))),
                "num_gpus": gpus,
                "memory": min(needed, int(largest.get("memory", 0))),
            }

        return request

    def _share(self, nodes: Sequence[Mapping[str, float]], gpus: int, at_once: int | None) -> int:
        """Divide the cores among the cells that run at once; without a number of these, each has one core."""
        cells = at_once or (sum(node["GPU"] for node in nodes) if gpus else math.inf)
        cores = int(sum(node["CPU"] for node in nodes) // cells)
        if self._address is not None:
            return cores
        import torch

        return min(cores, torch.get_num_threads())  # no more than this process would use, as in `Workers`


_NO_GPU = "device: no node of the Ray cluster has a GPU and a core for it; add one, or use device cpu"
_NO_CORE = "device: no node of the Ray cluster has a core; start one with `ray start --num-cpus=N`"


# --- being in a cluster --------------------------------------------------------------------------------


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # of a death, which becomes an outcome, it would tell standard output, where --json is
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise BadInput("--executor ray: Ray is not installed; pip install 'flora-bench[ray]'") from error
    return ray


def _endpoint(address: str) -> tuple[str, int]:
    """Take an address apart."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+)):([0-9]{1,5})", address, re.ASCII)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise BadInput(
            f"--ray-address: {address!r} must be HOST:PORT, as `ray start --head` prints it, such as "
            "10.0.0.1:6379; ray:// is for other programs, so run this on a node of the cluster"
        )
    return found[1] or found[2], int(found[3])


def _named(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_answers(host: str, port: int, seconds: float) -> None:
    """Refuse an address that nobody is at: Ray itself would try for minutes."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, UnicodeError) as error:
        raise BadInput(
            f"--ray-address: nothing answers at {_named(host, port)} within {seconds:g} s ({error}); "
            "see that the cluster is up and that this machine reaches it"
        ) from error


def _check_joins(host: str, port: int) -> None:
    """Have another process join first: Ray neither gives up on what is no cluster, nor can it be stopped."""
    address = _named(host, port)
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _JOIN, address],
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_JOIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"--ray-address: what answers at {address} let nobody in within {SECONDS_TO_JOIN:g} s; "
            "is it the port that `ray start --head` printed?"
        ) from None
    if tried.returncode:
        said = tried.stderr.rpartition("ray.exceptions.")[2]  # of a traceback only what it ends with
        raise BadInput(
            f"--ray-address: the cluster at {address} cannot be joined ({shorten(said, 200)}); this machine "
            "must be a node of it, with the same Ray and Python, and with RAY_AUTH_MODE=token if it has one"
        )


@contextmanager
def _joined(ray: ModuleType, endpoint: tuple[str, int]) -> Iterator[None]:
    _initialized(ray, address=_named(*endpoint))
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _started(ray: ModuleType, workers: int | None) -> Iterator[None]:
    """Have a cluster on this machine."""
    # a socket's path may have 107 characters at most, and Ray's own part has most of them
    parent = tempfile.gettempdir() if os.name == "nt" else "/tmp"
    _remove_old_folders(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    try:
        with locked(folder):
            _initialized(
                ray,
                address="local",  # or RAY_ADDRESS would lead elsewhere
                num_cpus=max(len(usable_cores()), workers or 1),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _temp_dir=str(folder),
            )
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_old_folders(parent: Path) -> None:
    """Remove what clusters have left whose process was killed."""
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            if _is_old(folder) and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > SECONDS_UNTIL_OLD


def _initialized(ray: ModuleType, **options: Any) -> None:
    """Call `ray.init` so that it says nothing and leaves this process's signals to it."""
    log = logging.getLogger("ray")
    level, handler = log.level, signal.getsignal(signal.SIGTERM)
    log.setLevel(logging.ERROR)
    try:
        ray.init(configure_logging=False, logging_level=logging.ERROR, log_to_driver=False, **options)
    finally:
        log.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _token(jobs: Sequence[Job]) -> Iterator[str]:
    """Lay a file into the results folder: a node that finds it there sees what this machine sees.

    It is locked meanwhile, which tells it from one whose process was killed.
    """
    name = f"{TOKEN_PREFIX}{uuid.uuid4().hex}"
    files = {_root(job) / name for job in jobs}
    with ExitStack() as held:
        for file in files:
            _remove_old_tokens(file.parent)
            held.enter_context(FileLock(file))
            held.callback(_unlink, file)
        yield name


def _remove_old_tokens(root: Path) -> None:
    for file in root.glob(f"{TOKEN_PREFIX}*"):
        with suppress(OSError, Timeout):
            if _is_old(file):
                with FileLock(file, timeout=0):
                    _unlink(file)


def _unlink(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _root(job: Job) -> Path:
    """Give the folder of all results."""
    return job.path.absolute().parents[3]


# --- in the process that asks --------------------------------------------------------------------------


@dataclass(eq=False)
class _Task:
    """A task as seen from here.

    Attributes:
        job: what it runs.
        request: what it asks of the cluster.
        stream: what it sends.
        tried: how often the cell has been given to a task, this one included.
        began: whether a node is at it.
        listener: told of what happens; None until the cell begins.
        away: holds this machine's lock of the cell, if the task works in a folder of its node.
        files: what has come of that folder, by name.
        expected: the name of the file that is to come next.
    """

    job: Job
    request: Mapping[str, Any]
    stream: Any
    tried: int
    began: bool = False
    listener: Listener | None = None
    away: ExitStack | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    expected: str = ""


class _Submission:
    """Gives jobs to tasks and follows these to their ends."""

    def __init__(
        self,
        ray: ModuleType,
        watcher: Watcher,
        request: Callable[[Job], dict[str, Any]],
        token: str,
        timeout_seconds: float | None,
        threads: int | None,
    ) -> None:
        self._threads = threads
        self._ray, self._watcher, self._request = ray, watcher, request
        self._asked = {"token": token, "timeout_seconds": timeout_seconds, "host": platform.node()}
        self._body = ray.remote(num_returns="streaming", max_retries=0)(_run_cell)
        self._tasks: list[_Task] = []
        self._ran = time.monotonic()  # when a cell was last seen to run
        self._said_that_it_waits = False

    def run(self, jobs: Sequence[Job], at_once: int | None) -> Iterator[Outcome]:
        """Yield the outcomes as they come."""
        waiting = list(jobs)
        try:
            while waiting or self._tasks:
                with interruptible():
                    room = len(waiting) if at_once is None else at_once - len(self._tasks)
                    outcomes = [refused for job in waiting[:room] for refused in self._submitted(job)]
                    waiting = waiting[room:]
                    outcomes += [outcome for task in self._with_news() for outcome in self._followed(task)]
                    outcomes += self._looked_after()
                yield from outcomes
        finally:
            for task in list(self._tasks):
                self._cancel(task)

    def _submitted(self, job: Job, tried: int = 1) -> Iterator[Outcome]:
        """Give a job to a task; an outcome only if no task can have it."""
        try:
            request = self._request(job)
        except BadInput as error:
            refused = Outcome(job.config, "refused", job.path, reason=str(error))
            self._watcher.cell_ended(refused)
            yield refused
            return
        threads = self._threads or request["num_cpus"]
        asked = json.dumps({**self._asked, "job": _portable(job).to_dict(), "threads": threads})
        options = {
            **request,
            "runtime_env": {"env_vars": _variables(threads)},
            "name": f"flora-bench {job.config.hash}",
        }
        self._tasks.append(_Task(job, request, self._body.options(**options).remote(asked), tried))

    def _with_news(self) -> list[_Task]:
        """Wait a moment, and give the tasks that have sent something or ended."""
        if not self._tasks:
            return []
        streams = [task.stream for task in self._tasks]
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=SECONDS_BETWEEN_LOOKS)
        return [task for task in self._tasks if task.stream in ready]

    def _looked_after(self) -> Iterator[Outcome]:
        """Now and then while no cell runs: say so, and ask anew for what the nodes can no longer give."""
        now = time.monotonic()
        if not self._tasks or any(task.began for task in self._tasks):
            self._ran = now
        if now - self._ran < SECONDS_WITHOUT_A_CELL:
            return
        self._ran = now
        for task in list(self._tasks):
            if not self._can_be_had(task):
                self._cancel(task)
                yield from self._submitted(task.job, task.tried)
        if self._tasks and not self._said_that_it_waits:
            self._said_that_it_waits = True
            logger.warning("no cell runs: waiting for room on the Ray cluster, or for its nodes to get ready")

    def _can_be_had(self, task: _Task) -> bool:
        try:
            return self._request(task.job) == task.request
        except BadInput:
            return False

    def _followed(self, task: _Task) -> Iterator[Outcome]:
        """Take all that a task has sent; its outcome, once that is among it."""
        while task in self._tasks and self._ray.wait([task.stream], timeout=0)[0]:
            try:
                sent = self._ray.get(next(task.stream))
            except (self._ray.exceptions.RayError, StopIteration) as error:
                yield from self._died(task, error)
                return
            if (outcome := self._taken(task, sent)) is None:
                continue
            if again := _thriftier(task.job, outcome.cause):
                self._let_go(task)
                yield from self._submitted(again)
            else:
                yield self._ended(task, outcome)

    def _taken(self, task: _Task, sent: str | bytes) -> Outcome | None:
        """Act on one thing that a task has sent; gives its outcome if that was it."""
        if isinstance(sent, bytes):
            task.files[task.expected] = sent
            return None
        for message in json.loads(sent):
            match message:
                case {"started": {"shared": shared}}:
                    task.began = True
                    if not shared and not self._locked(task):
                        self._ray.cancel(task.stream, force=True)
                        return busy(task.job)
                    task.listener = self._watcher.cell_started(task.job.config)
                case {"file": name}:
                    task.expected = name
                case {"outcome": outcome, "folder": folder}:
                    return self._settled(task, outcome, folder)
                case _:
                    tell(task.listener or Listener(), message)
        return None

    def _locked(self, task: _Task) -> bool:
        """Take this machine's lock of a cell that runs on another; False if a process here is on it."""
        task.job.folder.mkdir(parents=True, exist_ok=True)
        task.away = ExitStack()
        try:
            task.away.enter_context(locked(task.job.folder))
        except Timeout:
            task.away = None
        return task.away is not None

    def _settled(self, task: _Task, sent: Mapping[str, Any], folder: str) -> Outcome:
        """Put what came of a cell in its place."""
        job, outcome = task.job, Outcome(task.job.config, path=task.job.path, **sent)
        if task.away is None or outcome.status == "busy":
            return outcome
        try:
            _put(job, task.files, complete=outcome.status in ("ran", "kept"))
        except OSError as error:
            return failed(job, f"{job.folder} cannot be written: {error.strerror}")
        reason = outcome.reason.replace(folder, str(job.folder))
        if outcome.status == "failed" and FAILURE not in task.files:  # its node could not write it down
            return failed(job, reason, outcome.cause)
        return replace(outcome, reason=reason)

    def _died(self, task: _Task, error: Exception) -> Iterator[Outcome]:
        """Try a cell whose task left no outcome again; it goes on where its last kept state is at hand."""
        reason, cause = _reason(error)
        if task.tried < TIMES_TRIED:
            self._let_go(task)
            yield from self._submitted(_thriftier(task.job, cause) or task.job, task.tried + 1)
            return
        with suppress(OSError):
            task.job.folder.mkdir(parents=True, exist_ok=True)
        yield self._ended(task, failed(task.job, f"its Ray task died {task.tried} times: {reason}", cause))

    def _ended(self, task: _Task, outcome: Outcome) -> Outcome:
        self._let_go(task)
        self._watcher.cell_ended(outcome)
        return outcome

    def _let_go(self, task: _Task) -> None:
        self._tasks.remove(task)
        if task.away is not None:
            task.away.close()

    def _cancel(self, task: _Task) -> None:
        """End a task that runs, or let it never begin."""
        self._ray.cancel(task.stream, force=True)
        self._let_go(task)


def _thriftier(job: Job, cause: Cause) -> Job | None:
    """Say how to try a cell again that had too little memory; None if that cannot help."""
    if cause != "memory" or not may_group(job):
        return None
    return replace(job, options=job.options.model_copy(update={"one_by_one": True}))


def _portable(job: Job) -> Job:
    """Write a job's paths out, as a task works elsewhere, and leave the choice of the GPU to Ray."""
    cache = job.options.cache_folder
    options = job.options.model_copy(update={"cache_folder": cache and str(Path(cache).absolute())})
    config = job.config.model_copy(update={"device": job.config.device.partition(":")[0]})
    return replace(job, config=config, path=job.path.absolute(), options=options)


def _variables(threads: int) -> dict[str, str]:
    """Give what a task needs of this process's environment; a cluster's nodes have one of their own.

    Ray would have libraries begin with one thread for each core of a task, which the cell's may not be.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    path = with_suite_on_path()["PYTHONPATH"]
    return {**own, **WITHOUT_SPINNING, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _put(job: Job, files: Mapping[str, bytes], complete: bool) -> None:
    """Write the files of a cell that ran elsewhere into its folder, a result as a whole."""
    result = {}
    if complete:
        described = store.side_files(json.loads(files[store.RUN]))
        result = {name: content for name, content in files.items() if name in (store.RUN, *described)}
        with store.staged(job.path) as path:
            for name, content in result.items():
                _write(path.with_name(name), content)
            forget_attempts(job.folder)
    for name, content in files.items():
        if name not in result:
            _write(job.folder / _inside(name), content)


def _inside(name: str) -> PurePosixPath:
    """Refuse a file that would lie outside of the cell's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise OSError(0, f"a node sent a file named {name!r}")
    return path


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with store.replacing(file) as temporary:
        temporary.write_bytes(content)


def _reason(error: Exception) -> tuple[str, Cause]:
    """Put what Ray says of a task's death into one line and one word."""
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "it ended and left no result", "crash"
    last = lines[-1] if "Traceback" in str(error) else lines[0]  # of a traceback the last line says what
    return f"{kind}: {last}", "memory" if kind == "OutOfMemoryError" else "crash"


# --- on a node -----------------------------------------------------------------------------------------


def _run_cell(request: str) -> Iterator[str | bytes]:
    """Run a cell; the body of its task.

    Yields:
        lists of messages as JSON; behind a message {"file": name} the content of that file. The last message
        holds the outcome, and the folder that it speaks of.
    """
    isolate.start_server()  # it loads libraries while this process does
    asked = json.loads(request)
    try:
        job, shared = _job_here(asked)
    except BadInput as error:
        yield _last(Outcome(RunConfig(), "refused", Path(), reason=f"node {platform.node()}: {error}"), "")
        return
    yield json.dumps([{"started": {"shared": shared}}])
    outcome = yield from _events(job, asked)
    if not shared and outcome.status != "busy":
        yield from _files(job.folder)
        shutil.rmtree(job.folder, ignore_errors=True)
    yield _last(outcome, str(job.folder))


def _job_here(asked: Mapping[str, Any]) -> tuple[Job, bool]:
    """Read a job, and say whether this node sees its folder; if not, it is given one of the node.

    Raises:
        BadInput: the cell would be another one here, or cannot be had: this node has no such GPU, say.
    """
    job = Job.read(asked["job"])
    if platform.node() != asked["host"] and (here := definition_of(job.config)) != job.definition:
        changes = "; ".join(here.changes(job.definition, job.config))
        raise BadInput(f"{changes}; have the same flora-bench, images and weights on every node")
    if (_root(job) / asked["token"]).is_file():
        return job, True
    # not a temporary one: what a task that died has kept there is gone on from
    folder = default_folder() / "cells" / job.definition.hash
    return replace(job, path=folder / store.RUN), False


def _events(job: Job, asked: Mapping[str, Any]) -> Generator[str, None, Outcome]:
    """Run a cell and yield what happens."""
    told: list[dict[str, Any]] = []
    process = isolate.CellProcess(
        job, _Notes(told), threads=asked["threads"], timeout_seconds=asked["timeout_seconds"]
    )
    isolate.wait_for_server()
    try:
        process.start()
        while (outcome := process.ended()) is None:
            if told:
                yield json.dumps(told)
                told.clear()
            isolate.wait([process])
    except BaseException:
        isolate.stop([process])
        raise
    yield json.dumps(told)
    return outcome


class _Notes(Forwarder):
    """Keeps what is to be sent."""

    def __init__(self, told: list[dict[str, Any]]) -> None:
        self._told = told

    def send(self, **message: Any) -> None:
        self._told.append(message)


def _files(folder: Path) -> Iterator[str | bytes]:
    """Give the files of a cell's folder, without those that matter only while it runs."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and name.name != PROGRESS and not any(part.startswith(".") for part in name.parts):
            yield json.dumps([{"file": name.as_posix()}])
            yield file.read_bytes()


def _last(outcome: Outcome, folder: str) -> str:
    told = {"status": outcome.status, "summary": dict(outcome.summary)}
    return json.dumps(
        [{"outcome": {**told, "reason": outcome.reason, "cause": outcome.cause}, "folder": folder}]
    )
