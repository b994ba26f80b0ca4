"""What a configuration only names, images and weights: prepared as it asks for, and told apart by their bits.

It imports no torch, and open_clip only for a model of its own: what is known of thousands of results is known
within a second or two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

from bench import tiny
from bench.config import PRECOMPUTED, Data, RunConfig
from bench.tasks import load_task
from bench.tasks.base import Task


@dataclass(frozen=True)
class PreparedTask:
    """A task as the configuration asks for it.

    Attributes:
        task: what is trained and tested on; of base-to-new, the base classes.
        new_classes: the other half of the classes, if base-to-new was asked for.
        damaged: images left out as they cannot be decoded.
    """

    task: Task
    new_classes: Task | None
    damaged: int


def sources(config: RunConfig) -> dict[str, str]:
    """Fingerprint what the configuration only names: images ("data", "suites") and weights ("model").

    Raises:
        BadInput: they cannot be had.
    """
    prepared = kept_prepared(config)
    return sources_of(config, prepared.task, suite_tasks(config, prepared))


def sources_of(config: RunConfig, task: Task, suites: Mapping[str, Task]) -> dict[str, str]:
    """Do the same for tasks that are there already."""
    of_data = task.fingerprint
    precomputed = config.model.name == PRECOMPUTED
    of_suites = [suite.fingerprint for suite in suites.values()]
    return {
        "data": of_data,
        "suites": hashlib.sha256(" ".join(of_suites).encode()).hexdigest() if of_suites else "",
        "model": of_data if precomputed else _weights(config.model.name),
    }


def _readable(spec: str, data: Data) -> tuple[Task, int]:
    """Load a task, and deal with images that cannot be decoded as asked; give how many were left out."""
    task = load_task(spec, data.root)
    if data.on_corrupt == "skip":
        return task.without_damaged()
    # somebody's own images, which nothing has verified before
    return (task.verified() if spec.startswith("folder:") else task), 0


def prepare(
    spec: str, data: Data, seed: int, load: Callable[[str, Data], tuple[Task, int]] = _readable
) -> PreparedTask:
    """Load a task as the configuration asks for it.

    Args:
        spec: its name, with what follows the colon.
        data: which of it is used.
        seed: the split's, of what is drawn.
        load: gives the task and how many damaged images were left out.

    Raises:
        BadInput: it cannot be had.
    """
    task, damaged = load(spec, data)
    if data.protocol == "paper":
        task = task.redrawn(seed)
    if data.test_domain is not None:
        task = task.leaving_out(data.test_domain)
    new_classes = None
    if data.base_to_new:
        task, new_classes = task.base_and_new()
        new_classes = _limited_for_test(new_classes, data, seed)
    return PreparedTask(_limited(task, data, seed), new_classes, damaged)


# Before anything is measured, many cells ask for the same task; each measured cell loads its own.
_kept_whole = lru_cache(maxsize=1)(_readable)
_kept_task = lru_cache(maxsize=1)(partial(prepare, load=_kept_whole))
_kept_other = lru_cache(maxsize=1)(_readable)


def look_anew() -> None:
    """Forget the images of earlier calls: files may have changed since."""
    for kept in (_kept_whole, _kept_task, _kept_other):
        kept.cache_clear()


def kept_prepared(config: RunConfig) -> PreparedTask:
    """Give a cell's task, the one of the last call if it is the same."""
    seed = config.seed.split if draws_images(config.data) else 0
    return _kept_task(config.task, config.data, seed)


def draws_images(data: Data) -> bool:
    """Whether the split's seed decides which images are used at all, and not only who has them."""
    limits = (data.max_train, data.max_test, data.max_per_class)
    return data.protocol == "paper" or any(limit is not None for limit in limits)


def _limited(task: Task, data: Data, seed: int) -> Task:
    """Cut a task to the smaller of each pair of limits."""
    by_class = data.max_per_class and data.max_per_class * len(task.class_names)
    train, test = (
        min((limit for limit in (by_class, most) if limit is not None), default=None)
        for most in (data.max_train, data.max_test)
    )
    return task.limited(train, test, seed)


def _limited_for_test(task: Task, data: Data, seed: int) -> Task:
    """Cut a task that is only tested on: the limits are meant for the run's own task, with its classes."""
    most = data.max_test and max(data.max_test, len(task.class_names))
    return _limited(task, data.model_copy(update={"max_train": None, "max_test": most}), seed)


def suite_tasks(config: RunConfig, prepared: PreparedTask) -> dict[str, Task]:
    """Load what else a cell is tested on, by name: new classes, and the task whose retention is measured."""
    tasks = {}
    if prepared.new_classes is not None:
        tasks["new"] = prepared.new_classes
    if config.evaluation.retention is not None:
        other, _ = _kept_other(config.evaluation.retention, config.data)
        tasks["retention"] = _limited_for_test(other, config.data, config.seed.split)
    return tasks


def _weights(name: str) -> str:
    if name == "tiny":
        return tiny.fingerprint()
    from bench.models import model_fingerprint

    return model_fingerprint(name)
