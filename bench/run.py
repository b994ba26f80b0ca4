"""One cell, from its configuration to what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from baselines.zero_shot import ZeroShot, ZeroShotOptions
from bench.catalogue import load_method
from bench.config import RunConfig
from bench.device import deterministic
from bench.images import Pixels
from bench.measure.clock import Clock
from bench.measure.environment import describe
from bench.measure.memory import Memory
from bench.measure.traffic import Traffic
from bench.models import LoadedModel, check_name, load_model, model_fingerprint
from bench.splits import Split, make_split
from bench.tasks import load_task
from bench.tasks.base import LabelledImages, Task
from flora.events import Events, Listener, RoundRecord
from flora.features import Samples
from flora.federation import EVALUATION_BATCH, Federation, evaluate
from flora.method import Method
from flora.prompts import Prompts
from flora.runners import OneByOne, states_for


@dataclass(frozen=True)
class Inputs:
    """What a cell starts from, before any method."""

    task: Task
    split: Split
    sources: dict[str, str]
    model: LoadedModel
    prompts: Prompts
    train: Samples
    test: Samples


def run_cell(config: RunConfig, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Run one cell and give what its `run.json` holds.

    Args:
        config: the cell.
        listeners: told of every phase and round, besides those that measure.

    Raises:
        BadInput: the cell asks for something that its task, split or model cannot give.
        PayloadMismatch: a payload is not of the size that the method's closed form gives.
    """
    memory, clock = Memory(config.device), Clock(config.device)
    events = Events((*listeners, memory, clock))
    with deterministic(config.device):
        with events.phase("load"):
            inputs = _load(config)
        zero_shot_accuracy = _zero_shot(config, inputs, events)
        with events.phase("prepare"):
            method = _method(config, inputs)
        samples = _samples_for(method, config, inputs, events)
        traffic = Traffic(_closed_form_bytes(method), len(method.trainable))
        federation = _federation(config, method, samples, inputs.split, Events((traffic, *events.listeners)))
        records = list(federation.rounds(config.rounds))
    totals, seconds = memory.totals, clock.total_seconds
    accuracies = [record.accuracy for record in records]
    setup = clock.setup_seconds
    return {
        "status": "complete",
        "config": config.model_dump(mode="json"),
        "config_hash": config.hash,
        "summary": {
            "accuracy": accuracies[-1],
            "best_accuracy": max(accuracies),
            "zero_shot_accuracy": zero_shot_accuracy,
            "train_seconds": clock.train_seconds,
            "round_seconds": clock.round_seconds,
            "total_seconds": seconds,
            "setup_seconds": sum(setup.values()),
            "features_seconds": setup.get("features", 0.0),
            "peak_memory_bytes": totals.peak_memory_bytes,
            "resident_at_start_bytes": totals.resident_at_start_bytes,
            "peak_gpu_memory_bytes": totals.peak_gpu_memory_bytes,
            "nvml_memory_bytes": totals.nvml_memory_bytes,
            "bytes_up": traffic.bytes_up,
            "bytes_down": traffic.bytes_down,
            "payload_bytes": traffic.payload_bytes,
            "trainable_parameters": sum(p.numel() for p in method.trainable.values()),
            "train_flops": None,  # a field of the schema that is not measured yet
            "refused_uploads": sum(len(record.refused) for record in records),
        },
        "setup": {"seconds": setup, "peak_memory_bytes": memory.peak_memory_bytes(None)},
        "rounds": [_round(record, clock, memory, traffic) for record in records],
        "split": {
            "fingerprint": inputs.split.fingerprint,
            "client_sizes": inputs.split.client_sizes,
            "label_skew": inputs.split.label_skew,
            "size_skew": inputs.split.size_skew,
        },
        "data": {
            "fingerprint": inputs.sources["data"],
            "train": len(inputs.train),
            "test": len(inputs.test),
            "class_names": list(inputs.task.class_names),
        },
        "model": {"fingerprint": inputs.sources["model"]},
        "environment": {
            **describe(config.device),
            "memory_method": totals.method,
            "nvml_reason": totals.nvml_reason,
        },
        "invariants": {"payload_closed_form": traffic.invariant()},
    }


def check(config: RunConfig) -> None:
    """Find out, without training anything, whether the cell's task, split and model can be had.

    Raises:
        BadInput: they cannot.
    """
    check_name(config.model.name)
    _split(config, _limited(config, _kept_task(config.task, config.data.root)))


def sources(config: RunConfig) -> dict[str, str]:
    """Fingerprint what the configuration only names: the images ("data") and the weights ("model")."""
    return _sources(config, _limited(config, _kept_task(config.task, config.data.root)))


def _sources(config: RunConfig, task: Task) -> dict[str, str]:
    return {"data": task.fingerprint, "model": model_fingerprint(config.model.name)}


# Before anything is measured, many cells ask for the same task; each measured cell loads its own.
_kept_task = lru_cache(maxsize=1)(load_task)


def _limited(config: RunConfig, task: Task) -> Task:
    return task.limited(config.data.max_train, config.data.max_test, config.seed.split)


def _split(config: RunConfig, task: Task) -> Split:
    train = task.train
    return make_split(config.split, train.labels, config.clients, config.seed.split, train.domains)


def _load(config: RunConfig) -> Inputs:
    task = _limited(config, load_task(config.task, config.data.root))
    model = load_model(config.model, config.device)
    prompts = Prompts.tokenize(task.prompts, model.tokenize)
    train, test = (_samples(part, model, config) for part in (task.train, task.test))
    return Inputs(task, _split(config, task), _sources(config, task), model, prompts, train, test)


def _samples(part: LabelledImages, model: LoadedModel, config: RunConfig) -> Samples:
    pixels = Pixels(part.images, model.preprocess, getattr(torch, config.model.dtype))
    return Samples(pixels, torch.from_numpy(part.labels).to(config.device))


def _zero_shot(config: RunConfig, inputs: Inputs, events: Events) -> float:
    """Evaluate the model as it came, before any method touches it."""
    with events.phase("zero_shot"):
        untouched = ZeroShot(
            inputs.model.clip, inputs.prompts, ZeroShotOptions(), _generator(config), config.acceleration
        )
        return evaluate(untouched, inputs.test)


def _method(config: RunConfig, inputs: Inputs) -> Method:
    method = load_method(config.method.name)
    return method(inputs.model.clip, inputs.prompts, config.method, _generator(config), config.acceleration)


def _generator(config: RunConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed.init)


def _samples_for(
    method: Method, config: RunConfig, inputs: Inputs, events: Events
) -> tuple[Samples, Samples]:
    """Give training and test samples as the method sees them: a frozen tower's features, or images."""
    parts = inputs.train, inputs.test
    if config.acceleration == "exact" and not method.trains_vision:
        with events.phase("features"):
            train, test = (part.with_features(method.clip, EVALUATION_BATCH) for part in parts)
    else:
        with events.phase("decode"):
            train, test = (part.with_images_kept() for part in parts)
    return train, test


def _closed_form_bytes(method: Method) -> int:
    return method.closed_form() * method.clip.logit_scale.element_size()


def _federation(
    config: RunConfig, method: Method, samples: tuple[Samples, Samples], split: Split, events: Events
) -> Federation:
    train, test = samples
    kept = states_for(method, config.clients, config.training)
    runner = OneByOne(method, train, _shares(split), config.training, kept, config.seed.order)
    return Federation(
        method, runner, test, config.clients, config.participation, config.seed.participation, events
    )


def _shares(split: Split) -> list[torch.Tensor]:
    return [torch.from_numpy(indices.copy()) for indices in split.indices]  # the split's own are read-only


def _round(record: RoundRecord, clock: Clock, memory: Memory, traffic: Traffic) -> dict[str, Any]:
    return {
        **asdict(record),
        **traffic.round_bytes(record.round),
        "seconds": clock.seconds(record.round),
        "peak_memory_bytes": memory.peak_memory_bytes(record.round),
        "peak_gpu_memory_bytes": memory.peak_gpu_memory_bytes(record.round),
    }
