"""What a cell starts from: its images, prepared and divided; its model; both as samples and prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.compute import check as check_compute
from bench.config import PRECOMPUTED, RunConfig
from bench.images import Kept, Pixels
from bench.models import LoadedModel, check_name, fetch_model, load_model
from bench.sources import PreparedTask, kept_prepared, prepare, sources_of, suite_tasks
from bench.splits import Split, divide_test, hold_out, make_split
from bench.tasks.base import LabelledImages, Task
from bench.tasks.features import feature_rows, load_precomputed, precomputed_prompts
from flora.features import Samples
from flora.prompts import Prompts


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
    prepared = prepare(config.task, config.data, config.seed.split)
    division = _divide(config, prepared.task)
    suites = suite_tasks(config, prepared)
    model = _model(config)
    return Inputs(
        prepared,
        division,
        sources_of(config, prepared.task, suites),
        model,
        _prompts(prepared.task, model),
        _samples(prepared.task.train, model, config),
        _samples(division.test, model, config),
        {name: _suite(task, model, config) for name, task in suites.items()},
    )


def check(config: RunConfig) -> None:
    """Find out, without training or downloading anything, whether the cell's task and split can be had.

    Raises:
        BadInput: they cannot, or the machine cannot compute as asked.
    """
    check_compute(config.compute, config.device)
    if config.model.name != PRECOMPUTED:
        check_name(config.model.name)
    prepared = kept_prepared(config)
    _divide(config, prepared.task)
    suite_tasks(config, prepared)


def divided(config: RunConfig) -> tuple[PreparedTask, Division]:
    """Give the cell's task and who has which of its images, with no model and nothing downloaded.

    Raises:
        BadInput: its task or split cannot be had.
    """
    prepared = kept_prepared(config)
    return prepared, _divide(config, prepared.task)


def fetch(config: RunConfig) -> None:
    """Have the cell's model at hand, downloaded if need be.

    Raises:
        BadInput: it cannot be had.
    """
    if config.model.name != PRECOMPUTED:
        fetch_model(config.model.name)


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
