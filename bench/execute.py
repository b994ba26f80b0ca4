"""Many cells: what is there already is skipped, what finishes is kept at once, whoever carries them out."""

from __future__ import annotations

import gc
import json
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from filelock import Timeout

from bench import store
from bench.checkpoints import FOLDER as CHECKPOINTS
from bench.config import RunConfig, label
from bench.definition import Definition, Fingerprints, definition_of
from bench.device import lacks_memory
from bench.interrupt import interruptible
from bench.locks import LOCK, is_held, locked
from bench.matrices import save_matrix, written
from bench.progress_file import PROGRESS, ProgressFile
from bench.sources import look_anew
from flora.errors import BadInput
from flora.events import Listener
from flora.settings import Settings

if TYPE_CHECKING:
    from bench.cell import Leftovers
    from bench.regress.kernels import Kernels
    from flora.cache import FeatureCache

SECONDS_BETWEEN_LOOKS = 1.0
"""How long to wait before looking again whether another process is done with a cell."""

FAILURE, TRACEBACK = "failure.json", "error.txt"

Cause = Literal["", "error", "memory", "crash", "timeout"]


class CellOptions(Settings):
    """How a cell is run; nothing of it changes a number but times.

    Attributes:
        weights: which trained tensors to keep, of `bench.store.WEIGHTS_KEPT_BYTES`.
        cache_folder: where what frozen towers give is kept from cell to cell; None for nowhere.
        cache_limit_bytes: most that it may take; None for any.
        checkpoint_rounds: keep the state of a run after every so many rounds; 0 for never; None for as soon
            as half a minute would be lost.
        one_by_one: train clients one after another where the configuration leaves the choice: it takes the
            least memory.
    """

    weights: Literal["none", "small", "all"] = "small"
    cache_folder: str | None = None
    cache_limit_bytes: int | None = None
    checkpoint_rounds: int | None = None
    one_by_one: bool = False

    def cache(self) -> FeatureCache | None:
        """Open the cache of features."""
        if self.cache_folder is None:
            return None
        from flora.cache import FeatureCache

        return FeatureCache(Path(self.cache_folder), self.cache_limit_bytes)


@dataclass(frozen=True)
class Job:
    """A cell to run.

    Attributes:
        config: the cell.
        path: of its `run.json`.
        definition: all that its numbers follow from.
        options: how it is run.
        replaces: when the result was written that it is to replace though that stands, in nanoseconds since
            the epoch; 0 for none that is there; None to take any that stands.
    """

    config: RunConfig
    path: Path
    definition: Definition
    options: CellOptions = field(default_factory=CellOptions)
    replaces: int | None = None

    @property
    def folder(self) -> Path:
        """Where all of the cell is kept."""
        return self.path.parent

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for another process."""
        return {
            "config": self.config.model_dump(mode="json"),
            "path": str(self.path),
            "definition": self.definition.to_dict(),
            "options": self.options.model_dump(mode="json"),
            "replaces": self.replaces,
        }

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Job:
        """Read what `to_dict` gave."""
        definition = Definition.read(values["definition"])
        assert definition is not None
        config, options = RunConfig.read(values["config"]), CellOptions(**values["options"])
        return cls(config, Path(values["path"]), definition, options, values["replaces"])


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Attributes:
        config: the cell.
        status: "ran" now; "kept" from before, or from another process that ran it meanwhile; "refused" as
            the cell asks for the impossible; "failed"; "busy" as another process is on it.
        path: of its `run.json`, which is there in the first two cases.
        summary: of its result; empty if there is none.
        reason: one line on why it was refused or failed.
        cause: of a failure: "error", an exception; "memory", there was too little; "crash", its process
            died; "timeout".
    """

    config: RunConfig
    status: Literal["ran", "kept", "refused", "failed", "busy"]
    path: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    cause: Cause = ""


class InputsChanged(RuntimeError):
    """Images or weights are not what they were when the matrix began."""


class Watcher:
    """Told how a matrix gets on."""

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """There are `cells` in all, of which those in `left` have no result yet."""

    def found_stale(self, config: RunConfig, changes: Sequence[str]) -> None:
        """The result of `config` is to be replaced, as what it follows from has changed; how, in words."""

    def cell_started(self, config: RunConfig) -> Listener:
        """`config` begins to run, maybe beside others; gives who is told of its phases and rounds."""
        return Listener()

    def cell_ended(self, outcome: Outcome) -> None:
        """A cell that was started has ended."""


class Executor(Protocol):
    """Carries cells out."""

    def prepare(self) -> None:
        """Begin to get ready, while the cells are checked."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Iterator[Outcome]:
        """Run every job and yield what became of it, in the order in which they end."""


class InProcess:
    """Runs one cell after another in this process."""

    def prepare(self) -> None:
        """There is nothing to get ready."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Iterator[Outcome]:
        """Run the jobs in their order."""
        warm_up_seconds = sum(map(warm_up, {job.config.device: None for job in jobs}))
        with libraries_left_alone():
            for job in jobs:
                outcome = run_one(job, watcher.cell_started(job.config), warm_up_seconds)
                watcher.cell_ended(outcome)
                yield outcome


def run_matrix(
    cells: Sequence[RunConfig],
    results: Path,
    fresh: bool = False,
    watcher: Watcher | None = None,
    weights: str = "small",
    cache: FeatureCache | None = None,
    isolate: bool = False,
    *,
    executor: Executor | None = None,
    checkpoint_rounds: int | None = None,
    keep_stale: bool = False,
    matrix: Sequence[RunConfig] | None = None,
    command: Sequence[str] | None = None,
) -> Iterator[Outcome]:
    """Run the cells that have no result in `results`, yielding what became of each: first those that had one.

    Several processes may do so at once on one folder: a cell that another has begun is left to it, and its
    result waited for at the end.

    Args:
        cells: what to run.
        results: the folder that results are kept in; made if need be.
        fresh: run cells that have a result, too, and replace it.
        watcher: told of the progress.
        weights: which trained tensors to keep, of `bench.store.WEIGHTS_KEPT_BYTES`.
        cache: where what frozen towers give is kept from cell to cell and run to run; None for nowhere.
        isolate: run each cell in a process of its own, see `bench.isolate`.
        executor: who runs the cells; if not given, this process, one after another.
        checkpoint_rounds: see `CellOptions`.
        keep_stale: take a result whose definition has changed since (images, weights, code) as it is.
        matrix: all cells, where `cells` are a part of them; for `flora-bench status`, as is `command`.
        command: what was typed.

    Raises:
        BadInput: before anything runs, if `results` cannot be written or a stored result of these cells
            is damaged or of a newer schema, unless `fresh` says to replace it; or if a cell asks for a task,
            split or model that cannot be had.
    """
    watcher = watcher or Watcher()
    look_anew()
    store.check_writable(results)
    options = CellOptions(
        weights=weights,
        cache_folder=None if cache is None else str(cache.folder),
        cache_limit_bytes=None if cache is None else cache.limit_bytes,
        checkpoint_rounds=checkpoint_rounds,
    )
    paths = [store.run_path(results, config.model_dump(mode="json"), config.hash) for config in cells]
    seen: Fingerprints = {}
    kept = {} if fresh else _kept(cells, paths, seen, watcher, keep_stale)
    without = [(config, path) for config, path in zip(cells, paths, strict=True) if path not in kept]
    executor = executor or _default(isolate)
    if without:
        executor.prepare()  # it may load libraries while the cells are checked
    _check([config for config, _ in without])
    for folder in {path.parent.parent for path in paths}:
        store.check_writable(folder)
    if matrix or cells:
        save_matrix(results, matrix or cells, left=[config for config, _ in without], command=command)
    watcher.matrix_started(cells, [config for config, _ in without])
    for config, path in zip(cells, paths, strict=True):
        if path in kept:
            yield Outcome(config, "kept", path, kept[path])
    jobs = [
        Job(config, path, definition_of(config, seen), options, (written(path) or 0) if fresh else None)
        for config, path in without
    ]
    yield from _run_all(jobs, executor, watcher)


def _default(isolate: bool) -> Executor:
    if not isolate:
        return InProcess()
    from bench.workers import Workers

    return Workers(1)


def _run_all(jobs: Sequence[Job], executor: Executor, watcher: Watcher) -> Iterator[Outcome]:
    """Run jobs, and those that other processes are on as soon as these are done or dead."""
    while jobs:
        busy = []
        for outcome in executor.run(jobs, watcher):
            if outcome.status == "busy":
                busy.append(outcome.path)
            else:
                yield outcome
        jobs = [job for job in jobs if job.path in busy]
        while jobs and all(map(is_held, (job.folder for job in jobs))):
            time.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def libraries_left_alone() -> Iterator[None]:
    """Keep the garbage collector off what is loaded: to look through it took each cell 0.3 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _kept(
    cells: Sequence[RunConfig],
    paths: Sequence[Path],
    seen: Fingerprints,
    watcher: Watcher,
    keep_stale: bool,
) -> dict[Path, Mapping[str, Any]]:
    """Give the summaries of the cells whose result follows from all that they follow from today."""
    kept: dict[Path, Mapping[str, Any]] = {}
    for config, path in zip(cells, paths, strict=True):
        _recover(path.parent)
        if not (stored := store.stored(path)):
            continue
        changes = () if keep_stale else _changes(config, stored, seen)
        if changes:
            watcher.found_stale(config, changes)
        else:
            _tidy(path.parent)
            _record_tuning(config, path, stored)
            kept[path] = stored["summary"]
    return kept


def _recover(folder: Path) -> None:
    """Put a result in its place that was complete when its process was killed."""
    if (folder / store.FINISHED).exists():
        with suppress(Timeout, OSError), locked(folder):
            store.recover(folder)


def _tidy(folder: Path) -> None:
    """Remove what is left beside a result that stands; beside another it may be of the one to replace it."""
    if any((folder / name).exists() for name in (LOCK, FAILURE, CHECKPOINTS)):
        with suppress(Timeout, OSError), locked(folder):
            forget_attempts(folder)


def forget_attempts(folder: Path) -> None:
    """Remove what a cell needed to get its result and needs no more, its lock held."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (FAILURE, TRACEBACK, PROGRESS):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _changes(config: RunConfig, stored: Mapping[str, Any], seen: Fingerprints) -> Sequence[str]:
    """Say what of a cell is no longer as it was when its result was made."""
    return definition_of(config, seen).changes(Definition.read(stored["definition"]), config)


def _record_tuning(config: RunConfig, path: Path, stored: Mapping[str, Any]) -> None:
    """Write into a kept result how its values were found: that changes no number, so it is not run again."""
    if config.tuning is None:
        return
    found = config.tuning.model_dump(mode="json")
    if stored["config"].get("tuning") == found:
        return
    with suppress(Timeout), locked(path.parent):  # whoever has it writes a result of its own
        now = store.load_run(path)
        store.save_run(path, {**now, "config": {**now["config"], "tuning": found}})


def _check(cells: Sequence[RunConfig]) -> None:
    """Refuse a matrix with an impossible cell before hours go into its possible ones."""
    if not cells:
        return
    from bench.inputs import check, fetch

    distinct: dict[str, RunConfig] = {}
    for config in cells:
        distinct.setdefault(_inputs(config), config)
    for step in (check, fetch):  # first what costs nothing, then what may be a download
        for config in distinct.values():
            try:
                step(config)
            except BadInput as error:
                raise BadInput(f"{label(config)}: {error}") from error


def warm_up(device: str) -> float:
    """Run a cell too small to matter, so that no measured cell is the first to load and set up libraries.

    It trains every weight of the embedded model: no method needs more of torch than that.

    Returns:
        the seconds it took.
    """
    began = time.perf_counter()
    from bench.cell import run_cell

    small = {"data": {"max_train": 10, "max_test": 10}, "clients": 1, "rounds": 1}
    run_cell(RunConfig.read({"method": "full_finetune", "device": device, **small}))
    return time.perf_counter() - began


def _inputs(config: RunConfig) -> str:
    """Put into one string what a cell's task, split and model depend on; methods and most seeds share it."""
    fields = config.model_dump(
        mode="json", include={"task", "data", "split", "clients", "model", "evaluation", "compute", "device"}
    )
    return json.dumps({**fields, "seed": config.seed.split}, sort_keys=True)


def run_one(job: Job, listener: Listener, warm_up_seconds: float) -> Outcome:
    """Run one cell in this process and keep its result; whatever goes wrong in it stays in it.

    Args:
        job: the cell.
        listener: told of its phases and rounds.
        warm_up_seconds: what `warm_up` took in this process.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with locked(job.folder):
            outcome = _run_alone(job, listener, warm_up_seconds)
    except Timeout:
        return Outcome(job.config, "busy", job.path, reason="another process is on it")
    except OSError as error:
        return failed(job, f"{job.folder} cannot be written: {error.strerror}")
    return outcome


def _run_alone(job: Job, listener: Listener, warm_up_seconds: float) -> Outcome:
    """Run a cell that no other process is on, unless one that was has left a result."""
    try:
        store.recover(job.folder)
        if (kept := result_of(job)) is not None:
            return kept
        with interruptible():
            summary = _run_and_keep(job, listener, warm_up_seconds)
    except BadInput as error:
        _note(job, str(error), "refused")
        return Outcome(job.config, "refused", job.path, reason=str(error))
    except Exception as error:
        return failed_by(job, error)
    return Outcome(job.config, "ran", job.path, summary)


def result_of(job: Job) -> Outcome | None:
    """Give the result that a job has by now; None if it has none that is what it asks for.

    Raises:
        BadInput: what is there is damaged.
    """
    if job.replaces is not None and written(job.path) in (None, job.replaces):
        return None
    stored = store.stored(job.path)
    if stored is None or Definition.read(stored["definition"]) != job.definition:
        return None
    return Outcome(job.config, "kept", job.path, stored["summary"])


def _run_and_keep(job: Job, listener: Listener, warm_up_seconds: float) -> Mapping[str, Any]:
    from bench.cell import Leftovers, run_cell
    from bench.cell_log import LOG, CellLog
    from bench.checkpoints import Checkpoints
    from bench.regress.kernels import kernels_of

    options, leftovers = job.options, Leftovers()
    checkpoints = Checkpoints(job.folder, job.definition.hash, options.checkpoint_rounds)
    if job.replaces is not None:
        checkpoints.remove()
    with CellLog(job.folder / LOG, job.config) as log:
        with ProgressFile(job.folder, job.config) as shown:
            before = kernels_of(job.config)
            result = run_cell(
                job.config,
                [listener, log, shown],
                leftovers,
                options.cache(),
                checkpoints=checkpoints,
                one_by_one=options.one_by_one,
            )
        result["kernels"] = _speed(result, before, kernels_of(job.config))
        result["summary"]["warm_up_seconds"] = warm_up_seconds
        result["definition"] = job.definition.to_dict()
        _check_inputs(result, job.definition)
        _keep(job, result, leftovers)
    return dict(result["summary"])


def _speed(result: Mapping[str, Any], before: Kernels | None, after: Kernels | None) -> dict[str, Any] | None:
    """Say how fast the machine was; what several processes did, perhaps on several, had no one speed."""
    from bench.regress.kernels import Kernels

    if before is None or after is None or len(result.get("sittings", ())) > 1:
        return None
    return Kernels.around(before, after, busy=result.get("load", {}).get("busy", False)).to_dict()


def _check_inputs(result: Mapping[str, Any], definition: Definition) -> None:
    """Refuse a result that was not made from what the cell was when the matrix began."""
    found = {"data": result["data"]["fingerprint"], "suites": result["data"]["suites"]}
    found["model"] = result["model"]["fingerprint"]
    if changed := [name for name, x in found.items() if x != getattr(definition, name)]:
        raise InputsChanged(f"{' and '.join(changed)} changed while the matrix ran; run it again")


def _keep(job: Job, result: dict[str, Any], leftovers: Leftovers) -> None:
    """Have the result and what lies beside it take their place at once; what is needed no more goes."""
    with store.staged(job.path) as path:
        result["weights"] = store.save_weights(path, leftovers.weights, job.options.weights)
        for name, rows in leftovers.tables.items():
            result[name] = store.save_table(path, name, rows)
        result["rounds_table"] = store.save_rounds(path, result)
        store.save_run(path, result)
        # from here on the result is safe, though not in its place
        forget_attempts(job.folder)


def failed_by(job: Job, error: Exception) -> Outcome:
    """Write down which exception left a cell without a result."""
    with suppress(OSError):  # on a full disk the reason below has to do
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / TRACEBACK).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    message = " ".join(str(error).split())  # libraries use several lines
    cause: Cause = "memory" if lacks_memory(error) else "error"
    where = f"(traceback in {job.folder / TRACEBACK})"
    return failed(job, f"{type(error).__name__}: {message}", cause, note=where)


def failed(job: Job, reason: str, cause: Cause = "error", note: str = "") -> Outcome:
    """Write down why a cell has no result; a note, such as where to look, is for who hears of it now."""
    _note(job, reason, cause)
    return Outcome(job.config, "failed", job.path, reason=f"{reason} {note}".rstrip(), cause=cause)


def _note(job: Job, reason: str, cause: str) -> None:
    noted = {
        "reason": reason,
        "cause": cause,
        "definition": job.definition.hash,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "traceback": TRACEBACK if (job.folder / TRACEBACK).exists() else None,
    }
    with suppress(OSError):  # on a full disk the outcome has to do
        job.folder.mkdir(parents=True, exist_ok=True)  # its process may have ended before it did
        with store.replacing(job.folder / FAILURE) as temporary:
            temporary.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Read why the cell of a folder has no result: `reason`, `cause`, `definition`, `ended`, `traceback`.

    None if nothing is written down, or it is damaged.
    """
    try:
        noted = json.loads((folder / FAILURE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return noted if isinstance(noted, dict) else None
