"""What a cell starts from: its images, prepared and divided; its model; both as samples and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from bench.compute import check as check_compute
from bench.config import PRECOMPUTED, Data, RunConfig
from bench.images import Kept, Pixels
from bench.models import LoadedModel, check_name, fetch_model, load_model, model_fingerprint
from bench.splits import Split, divide_test, hold_out, make_split
from bench.tasks import load_task
from bench.tasks.base import LabelledImages, Task
from bench.tasks.features import feature_rows, load_precomputed, precomputed_prompts
from flora.features import Samples
from flora.prompts import Prompts


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


@dataclass(frozen=True)
class Division:
    """Who has which images.

    Attributes:
        split: what each client trains on.
        test: what is evaluated on: the task's test images, or the validation part.
        client_test: for each client, positions in `test`; empty if clients are not evaluated apart.
    """

    split: Split
    test: LabelledImages
    client_test: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Suite:
    """Test images with class names of their own, to see what else a trained model can do.

    Attributes:
        prompts: one a class.
        samples: what is classified.
    """

    prompts: Prompts
    samples: Samples


@dataclass(frozen=True)
class Inputs:
    """Everything a cell starts from, before any method.

    Attributes:
        prepared: the task.
        division: who has which of its images.
        sources: fingerprints of the images ("data"), of those of the suites ("suites") and of the weights
            ("model").
        model: the CLIP, its preprocessing and tokenizer.
        prompts: one a class.
        train, test: the images as the model takes them.
        suites: what is evaluated before the first and after the last round alone, by name.
    """

    prepared: PreparedTask
    division: Division
    sources: dict[str, str]
    model: LoadedModel
    prompts: Prompts
    train: Samples
    test: Samples
    suites: dict[str, Suite]


def load_inputs(config: RunConfig) -> Inputs:
    """Load what a cell starts from.

    Raises:
        BadInput: its task, split or model cannot be had.
    """
    prepared = _prepare(config.task, config.data, config.seed.split)
    division = _divide(config, prepared.task)
    suite_tasks = _suite_tasks(config, prepared)
    model = _model(config)
    return Inputs(
        prepared,
        division,
        _sources(config, prepared.task, suite_tasks),
        model,
        _prompts(prepared.task, model),
        _samples(prepared.task.train, model, config),
        _samples(division.test, model, config),
        {name: _suite(task, model, config) for name, task in suite_tasks.items()},
    )


def check(config: RunConfig) -> None:
    """Find out, without training or downloading anything, whether the cell's task and split can be had.

    Raises:
        BadInput: they cannot, or the machine cannot compute as asked.
    """
    check_compute(config.compute, config.device)
    if config.model.name != PRECOMPUTED:
        check_name(config.model.name)
    prepared = _kept_task(config.task, config.data, config.seed.split)
    _divide(config, prepared.task)
    _suite_tasks(config, prepared)


def divided(config: RunConfig) -> tuple[PreparedTask, Division]:
    """Give the cell's task and who has which of its images, with no model and nothing downloaded.

    Raises:
        BadInput: its task or split cannot be had.
    """
    prepared = _kept_task(config.task, config.data, config.seed.split)
    return prepared, _divide(config, prepared.task)


def fetch(config: RunConfig) -> None:
    """Have the cell's model at hand, downloaded if need be.

    Raises:
        BadInput: it cannot be had.
    """
    if config.model.name != PRECOMPUTED:
        fetch_model(config.model.name)


def sources(config: RunConfig) -> dict[str, str]:
    """Fingerprint what the configuration only names: images ("data", "suites") and weights ("model")."""
    prepared = _kept_task(config.task, config.data, config.seed.split)
    return _sources(config, prepared.task, _suite_tasks(config, prepared))


def _sources(config: RunConfig, task: Task, suite_tasks: Mapping[str, Task]) -> dict[str, str]:
    of_data = task.fingerprint
    precomputed = config.model.name == PRECOMPUTED
    of_suites = [suite.fingerprint for suite in suite_tasks.values()]
    return {
        "data": of_data,
        "suites": hashlib.sha256(" ".join(of_suites).encode()).hexdigest() if of_suites else "",
        "model": of_data if precomputed else model_fingerprint(config.model.name),
    }


def _readable(spec: str, data: Data) -> tuple[Task, int]:
    """Load a task, and deal with images that cannot be decoded as asked; give how many were left out."""
    task = load_task(spec, data.root)
    if data.on_corrupt == "skip":
        return task.without_damaged()
    # somebody's own images, which nothing has verified before
    return (task.verified() if spec.startswith("folder:") else task), 0


def _prepare(spec: str, data: Data, seed: int) -> PreparedTask:
    task, damaged = _readable(spec, data)
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
_kept_task = lru_cache(maxsize=1)(_prepare)
_kept_other = lru_cache(maxsize=1)(_readable)


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


def _divide(config: RunConfig, task: Task) -> Division:
    train, seed = task.train, config.seed.split
    split = make_split(config.split, train.labels, config.clients, seed, train.domains)
    if config.evaluation.set == "validation":
        split, held_out = hold_out(split, train.labels, config.evaluation.validation_share, seed)
        together = np.unique(np.concatenate(held_out))
        parts = tuple(np.searchsorted(together, part) for part in held_out)
        return Division(split, train.select(together), parts if config.evaluation.per_client else ())
    if not config.evaluation.per_client:
        return Division(split, task.test, ())
    test = task.test
    parts = divide_test(split, train.labels, test.labels, train.domains, test.domains, seed)
    return Division(split, test, parts)


def _suite_tasks(config: RunConfig, prepared: PreparedTask) -> dict[str, Task]:
    tasks = {}
    if prepared.new_classes is not None:
        tasks["new"] = prepared.new_classes
    if config.evaluation.retention is not None:
        other, _ = _kept_other(config.evaluation.retention, config.data)
        tasks["retention"] = _limited_for_test(other, config.data, config.seed.split)
    return tasks


def _model(config: RunConfig) -> LoadedModel:
    if config.model.name == PRECOMPUTED:
        return load_precomputed(config.task.partition(":")[2], config.data.root, config.model, config.device)
    return load_model(config.model, config.device)


def _prompts(task: Task, model: LoadedModel) -> Prompts:
    return precomputed_prompts(task) or Prompts.tokenize(task.prompts, model.tokenize, task.class_names)


def _samples(part: LabelledImages, model: LoadedModel, config: RunConfig) -> Samples:
    # in half precision images stay in float32, and what is computed of them is cast
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    labels = torch.from_numpy(part.labels).to(config.device)
    rows = feature_rows(part)
    if rows is not None:
        return Samples(Kept(rows.to(dtype)), labels)
    return Samples(Pixels(part.images, model.preprocess, dtype), labels)


def _suite(task: Task, model: LoadedModel, config: RunConfig) -> Suite:
    return Suite(_prompts(task, model), _samples(task.test, model, config))
