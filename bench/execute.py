"""Many cells, one after another: what is there already is skipped, what finishes is kept at once."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench import store
from bench.config import RunConfig, label
from bench.interrupt import interruptible
from flora.errors import BadInput
from flora.events import Listener

if TYPE_CHECKING:
    from flora.cache import FeatureCache


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Attributes:
        config: the cell.
        status: "ran" now; "kept" from before; "refused" as the cell asks for the impossible; "failed".
        path: of its `run.json`, which is there in the first two cases.
        summary: of its result; empty if there is none.
        reason: one line on why it was refused or failed.
    """

    config: RunConfig
    status: Literal["ran", "kept", "refused", "failed"]
    path: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Watcher(Listener):
    """Told how a matrix gets on; a listener of the running cell too."""

    def matrix_started(self, cells: Sequence[RunConfig], left: Sequence[RunConfig]) -> None:
        """There are `cells` in all, of which those in `left` have no result yet."""

    def cell_started(self, config: RunConfig) -> None:
        """`config` begins to run."""

    def cell_ended(self, outcome: Outcome) -> None:
        """A cell that was started has ended."""


def run_matrix(
    cells: Sequence[RunConfig],
    results: Path,
    fresh: bool = False,
    watcher: Watcher | None = None,
    weights: str = "small",
    cache: FeatureCache | None = None,
    isolate: bool = False,
) -> Iterator[Outcome]:
    """Run the cells that have no result in `results`, yielding what became of each cell, in order.

    Args:
        cells: what to run.
        results: the folder that results are kept in; made if need be.
        fresh: run cells that have a result, too, and replace it.
        watcher: told of the progress.
        weights: which trained tensors to keep, of `bench.store.WEIGHTS_KEPT_BYTES`.
        cache: where what frozen towers give is kept from cell to cell and run to run; None for nowhere.
        isolate: run each cell in a process of its own, see `bench.isolate`.

    Raises:
        BadInput: before anything runs, if `results` cannot be written or a stored result of these cells
            is damaged, of a newer schema, or made from other images or weights, unless `fresh` says to
            replace it; or if a cell asks for a task, split or model that cannot be had.
    """
    watcher = watcher or Watcher()
    store.check_writable(results)
    paths = [store.run_path(results, config.model_dump(mode="json"), config.hash) for config in cells]
    kept = {} if fresh else _kept(cells, paths)
    left = [config for config, path in zip(cells, paths, strict=True) if path not in kept]
    if left and isolate:
        from bench.isolate import run_isolated, start_server, wait_for_server

        start_server()  # it loads libraries while the cells are checked
    _check(left)
    for folder in {path.parent.parent for path in paths}:
        store.check_writable(folder)
    watcher.matrix_started(cells, left)
    if left and isolate:
        wait_for_server()
    elif left:
        warm_up_seconds = sum(map(warm_up, {config.device: None for config in left}))
    with libraries_left_alone():
        for config, path in zip(cells, paths, strict=True):
            if path in kept:
                yield Outcome(config, "kept", path, kept[path])
                continue
            watcher.cell_started(config)
            if isolate:
                outcome = run_isolated(config, path, watcher, weights, cache)
            else:
                outcome = run_one(config, path, watcher, weights, cache, warm_up_seconds)
            watcher.cell_ended(outcome)
            yield outcome


@contextmanager
def libraries_left_alone() -> Iterator[None]:
    """Keep the garbage collector off what is loaded: to look through it took each cell 0.3 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _kept(cells: Sequence[RunConfig], paths: Sequence[Path]) -> dict[Path, Mapping[str, Any]]:
    """Give the summaries of the cells that have a result made from the images and weights of today."""
    kept: dict[Path, Mapping[str, Any]] = {}
    today: dict[str, dict[str, str]] = {}
    for config, path in zip(cells, paths, strict=True):
        if not (stored := store.stored(path)):
            continue
        from bench.inputs import sources

        key = _inputs(config)
        found = today[key] if key in today else today.setdefault(key, sources(config))
        then = {
            "data": stored.get("data", {}).get("fingerprint", found["data"]),
            "suites": stored.get("data", {}).get("suites", found["suites"]),
            "model": stored.get("model", {}).get("fingerprint", found["model"]),
        }
        for part, what in (("data", "images"), ("suites", "images"), ("model", "weights")):
            if then[part] != found[part]:
                raise BadInput(
                    f"{path}: was made from other {what} than {label(config)} has now; "
                    "choose another --results folder, or replace it with --fresh"
                )
        _record_tuning(config, path, stored)
        kept[path] = stored["summary"]
    return kept


def _record_tuning(config: RunConfig, path: Path, stored: dict[str, Any]) -> None:
    """Write into a kept result how its values were found: that changes no number, so it is not run again."""
    if config.tuning is None:
        return
    found = config.tuning.model_dump(mode="json")
    if stored["config"].get("tuning") != found:
        store.save_run(path, {**stored, "config": {**stored["config"], "tuning": found}})


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


def run_one(
    config: RunConfig,
    path: Path,
    watcher: Watcher,
    weights: str,
    cache: FeatureCache | None,
    warm_up_seconds: float,
) -> Outcome:
    """Run one cell in this process and keep its result; whatever goes wrong in it stays in it.

    Args:
        config: the cell.
        path: of its `run.json`.
        watcher: told of its phases and rounds.
        weights: which trained tensors to keep, of `bench.store.WEIGHTS_KEPT_BYTES`.
        cache: where what frozen towers give is kept.
        warm_up_seconds: what `warm_up` took in this process.
    """
    from bench.cell import Leftovers, run_cell

    failure = path.with_name("error.txt")
    leftovers = Leftovers()
    try:
        with interruptible():
            result = run_cell(config, [watcher], leftovers, cache)
            result["summary"]["warm_up_seconds"] = warm_up_seconds
            result["weights"] = store.save_weights(path, leftovers.weights, weights)
            for name, rows in leftovers.tables.items():
                result[name] = store.save_table(path, name, rows)
            store.save_run(path, result)
    except BadInput as error:
        return Outcome(config, "refused", path, reason=str(error))
    except Exception as error:
        with suppress(OSError):  # on a full disk the reason below has to do
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(traceback.format_exc(), encoding="utf-8")
        message = " ".join(str(error).split())  # libraries use several lines
        reason = f"{type(error).__name__}: {message} (traceback in {failure})"
        return Outcome(config, "failed", path, reason=reason)
    failure.unlink(missing_ok=True)
    return Outcome(config, "ran", path, result["summary"])
