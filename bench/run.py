"""One cell, from its configuration to what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from baselines.zero_shot import ZeroShot, ZeroShotOptions
from bench.catalogue import load_method
from bench.compute import applied, configured
from bench.config import PRECOMPUTED, RunConfig
from bench.device import deterministic
from bench.frozen import FrozenFeatures, kind_of_rows
from bench.inputs import Inputs, Suite, load_inputs
from bench.measure.clock import Clock
from bench.measure.environment import describe
from bench.measure.memory import Memory
from bench.measure.traffic import Traffic
from bench.models import open_clip_config
from bench.splits import Split
from flora.cache import FeatureCache
from flora.errors import BadInput
from flora.events import Events, Listener, RoundRecord
from flora.features import Samples
from flora.federation import Federation, evaluate, participants
from flora.group import can_be_grouped, clients_at_once
from flora.local import LocalTraining
from flora.method import Method
from flora.runners import Grouped, OneByOne, models_for, states_for

Weights = Mapping[str, Tensor]


class DivergedError(RuntimeError):
    """No client's work was ever fit to be used."""


def run_cell(
    config: RunConfig,
    listeners: Sequence[Listener] = (),
    keep: Callable[[Weights], None] | None = None,
    cache: FeatureCache | None = None,
) -> dict[str, Any]:
    """Run one cell and give what its `run.json` holds.

    Args:
        config: the cell.
        listeners: told of every phase and round, besides those that measure.
        keep: given the trained tensors at the end, where there is one model and not one a client.
        cache: where what frozen towers give is kept from cell to cell; None for this cell alone.

    Raises:
        BadInput: the cell asks for something that its task, split or model cannot give.
        PayloadMismatch: a payload is not of the size that the method's closed form gives.
        DivergedError: every upload of every round was refused.
    """
    memory, clock = Memory(config.device), Clock(config.device)
    events = Events((*listeners, memory, clock))
    with deterministic(config.device), configured(config.compute, config.device):
        with events.phase("load"):
            inputs = load_inputs(config)
        frozen = _frozen(config, inputs, cache, events)
        zero_shot = _zero_shot(config, inputs, frozen, events)
        with events.phase("prepare"):
            method = make_method(config, inputs)
            _check_prompts(method, inputs.suites)
        train, shares = _in_use(config, inputs)
        samples = _samples_for(method, (train, inputs.test), frozen, events)
        applied(method.clip, config.compute)
        traffic = Traffic(_closed_form_bytes(method), len(method.trainable))
        told = Events((traffic, *events.listeners))
        training = _training(config, method, samples, shares, inputs.division.client_test, told)
        records = list(training.rounds(config.rounds))
        _check_convergence(records)
        trained = _transfer(method, training, inputs.suites, frozen, events)
    result = {
        "status": "complete",
        "config": config.model_dump(mode="json"),
        "config_hash": config.hash,
        "summary": {
            **_accuracies(records, zero_shot, trained),
            **_costs(clock, memory, traffic),
            "extraction_seconds": None if frozen is None else frozen.extraction_seconds,
            "clients_together": _together(training),
            "trainable_parameters": sum(p.numel() for p in method.trainable.values()),
            "train_flops": None,  # a field of the schema that is not measured yet
            "refused_uploads": sum(len(record.refused) for record in records),
        },
        "setup": {"seconds": clock.setup_seconds, "peak_memory_bytes": memory.peak_memory_bytes(None)},
        "features": _features(frozen, samples[0]),
        "rounds": [_round(record, clock, memory, traffic) for record in records],
        "split": _split(inputs.division.split),
        "data": _data(inputs),
        "model": {"fingerprint": inputs.sources["model"]},
        "environment": {
            **describe(config.device),
            "memory_method": memory.totals.method,
            "nvml_reason": memory.totals.nvml_reason,
        },
        "invariants": {"payload_closed_form": traffic.invariant()},
    }
    if keep is not None and training.trained_state is not None:
        keep(training.trained_state)
    return result


def make_method(config: RunConfig, inputs: Inputs) -> Method:
    """Build the cell's method around its model.

    Raises:
        BadInput: the method does not fit the model.
    """
    cls = load_method(config.method.name)
    method = cls(inputs.model.clip, inputs.prompts, config.method, _generator(config), config.acceleration)
    if config.model.name == PRECOMPUTED and any(name.startswith("clip.") for name in method.trainable):
        raise BadInput(
            f"method.name: {config.method.name!r} trains a tower, and {config.task!r} holds features alone; "
            "use a method that trains behind the towers, such as linear_probe"
        )
    method.clip.shrink_frozen()
    return method


def _check_prompts(method: Method, suites: Mapping[str, Suite]) -> None:
    """Find out before training whether the method can read the prompts of other classes."""
    if method.open_vocabulary:
        for suite in suites.values():
            method.tokens_of(suite.prompts)


def _check_convergence(records: Sequence[RoundRecord]) -> None:
    """Refuse to pass the untrained model off as a trained one."""
    trained = records[1:]
    if trained and all(len(record.refused) == len(record.clients) for record in trained):
        reason = trained[0].refused[0].reason
        raise DivergedError(f"every upload was refused, the first as {reason}; try a lower learning rate")


def _frozen(
    config: RunConfig, inputs: Inputs, cache: FeatureCache | None, events: Events
) -> FrozenFeatures | None:
    """Have what is frozen computed once; None where each image is to go through the model each time."""
    if config.acceleration == "none":
        return None
    model = inputs.model
    precomputed = config.model.name == PRECOMPUTED
    described = {} if precomputed else open_clip_config(config.model.name)
    kind = kind_of_rows(config, inputs.sources["model"], described)
    return FrozenFeatures(model.clip, kind, None if precomputed else cache, events)


def _zero_shot(
    config: RunConfig, inputs: Inputs, frozen: FrozenFeatures | None, events: Events
) -> dict[str, float]:
    """Evaluate the model as it came, before any method touches it."""
    of = (lambda part: part) if frozen is None else frozen.of
    test = of(inputs.test)
    suites = {name: replace(suite, samples=of(suite.samples)) for name, suite in inputs.suites.items()}
    with events.phase("zero_shot"):
        untouched = ZeroShot(
            inputs.model.clip, inputs.prompts, ZeroShotOptions(), _generator(config), config.acceleration
        )
        return {"test": evaluate(untouched, test), **_on_suites(untouched, suites)}


def _on_suites(method: Method, suites: Mapping[str, Suite]) -> dict[str, float]:
    """Classify each suite's images into its own classes."""
    accuracies = {}
    for name, suite in suites.items():
        with method.prompted(suite.prompts):
            accuracies[name] = evaluate(method, suite.samples)
    return accuracies


def _transfer(
    method: Method,
    training: Federation | LocalTraining,
    suites: Mapping[str, Suite],
    frozen: FrozenFeatures | None,
    events: Events,
) -> dict[str, float]:
    """Evaluate the suites after training, mean over the models; nothing of a method bound to its classes."""
    if not suites or not method.open_vocabulary:
        return {}
    if frozen is not None and not method.trains_vision:
        suites = {name: replace(suite, samples=frozen.of(suite.samples)) for name, suite in suites.items()}
    with events.phase("transfer"):
        of_models = [_on_suites(method, suites) for _ in training.models()]
    return {name: fmean(accuracies[name] for accuracies in of_models) for name in suites}


def _generator(config: RunConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed.init)


def _in_use(config: RunConfig, inputs: Inputs) -> tuple[Samples, list[Tensor]]:
    """Give the samples that any client has, and whose they are: with few shots most have no client."""
    shares = _indices(inputs.division.split.indices)
    used = torch.cat(shares).unique()
    if config.mode == "centralized":
        shares = [used]
    if len(used) == len(inputs.train):
        return inputs.train, shares
    return inputs.train.select(used), [torch.searchsorted(used, share) for share in shares]


def _samples_for(
    method: Method, parts: tuple[Samples, Samples], frozen: FrozenFeatures | None, events: Events
) -> tuple[Samples, Samples]:
    """Give training and test samples as the method sees them: what a frozen tower gives, or images."""
    train, test = parts
    if frozen is not None:
        return frozen.for_training(method, train), frozen.for_training(method, test)
    with events.phase("decode"):
        return train.with_images_kept(), test.with_images_kept()


def _closed_form_bytes(method: Method) -> int:
    return method.closed_form() * method.clip.logit_scale.element_size()


def _training(
    config: RunConfig,
    method: Method,
    samples: tuple[Samples, Samples],
    shares: Sequence[Tensor],
    client_test: Sequence[Any],
    events: Events,
) -> Federation | LocalTraining:
    """Put together who trains: a federation, every client alone, or one with all of their data."""
    train, test = samples
    kept = states_for(method, len(shares), config.training)
    clients = (method, train, shares, config.training, kept, config.seed.order)
    common: dict[str, Any] = {
        "participation": config.participation,
        "participation_seed": config.seed.participation,
        "client_test": _indices(client_test),
        "events": events,
    }
    if config.mode != "federated":
        trained = models_for(method, len(shares))
        return LocalTraining(method, OneByOne(*clients), test, len(shares), trained, **common)
    with events.phase("prepare"):
        at_once = _clients_at_once(config, method, train, shares)
    runner = OneByOne(*clients) if at_once == 1 else Grouped(*clients, at_once)
    return Federation(method, runner, test, len(shares), **common)


def _clients_at_once(config: RunConfig, method: Method, train: Samples, shares: Sequence[Tensor]) -> int:
    """Say how many clients are trained together.

    Raises:
        BadInput: a number was asked for, and the method's clients cannot be.
    """
    asked = config.clients_per_batch
    in_round = len(participants(len(shares), config.participation, config.seed.participation, 1))
    if asked == "auto":
        return clients_at_once(method, train, shares, config.training, in_round)
    if asked == 1 or config.acceleration == "none" or not method.trainable:
        return 1
    if not can_be_grouped(method, train, shares[0]):
        why = "in half precision" if method.clip.compute_dtype else "as a layer's code cannot be mapped"
        raise BadInput(
            f"clients_per_batch: {asked} clients of {config.method.name} cannot be trained together {why}; "
            "use 1 or auto"
        )
    return min(asked, in_round)


def _together(training: Federation | LocalTraining) -> int:
    runner = training.runner if isinstance(training, Federation) else None
    return runner.at_once if isinstance(runner, Grouped) else 1


def _features(frozen: FrozenFeatures | None, train: Samples) -> dict[str, Any] | None:
    """Describe what was kept of the image tower; None where training went through all of it each time."""
    return None if frozen is None or train.features is None else frozen.describe(train.stage)


def _indices(parts: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(part.copy()) for part in parts]  # a split's own are read-only


def _accuracies(
    records: Sequence[RoundRecord], zero_shot: Mapping[str, float], trained: Mapping[str, float]
) -> dict[str, Any]:
    accuracies = [record.accuracy for record in records]
    of_clients = [accuracy for accuracy in records[-1].client_accuracies if accuracy is not None]
    base, new = accuracies[-1], trained.get("new")
    return {
        "accuracy": base,
        "best_accuracy": max(accuracies),
        "zero_shot_accuracy": zero_shot["test"],
        "client_mean_accuracy": fmean(of_clients) if of_clients else None,
        "client_worst_accuracy": min(of_clients, default=None),
        "client_accuracy_spread": pstdev(of_clients) if of_clients else None,
        "new_accuracy": new,
        "zero_shot_new_accuracy": zero_shot.get("new"),
        "harmonic_mean_accuracy": None if new is None else 2 * base * new / (base + new or 1),
        "retention_accuracy": trained.get("retention"),
        "zero_shot_retention_accuracy": zero_shot.get("retention"),
    }


def _costs(clock: Clock, memory: Memory, traffic: Traffic) -> dict[str, Any]:
    setup, totals = clock.setup_seconds, memory.totals
    transfer = setup.pop("transfer", 0.0)  # it comes after the last round
    return {
        "train_seconds": clock.train_seconds,
        "round_seconds": clock.round_seconds,
        "total_seconds": clock.total_seconds,
        "setup_seconds": sum(setup.values()),
        "features_seconds": setup.get("features", 0.0),
        "transfer_seconds": transfer,
        "peak_memory_bytes": totals.peak_memory_bytes,
        "resident_at_start_bytes": totals.resident_at_start_bytes,
        "peak_gpu_memory_bytes": totals.peak_gpu_memory_bytes,
        "nvml_memory_bytes": totals.nvml_memory_bytes,
        "bytes_up": traffic.bytes_up,
        "bytes_down": traffic.bytes_down,
        "payload_bytes": traffic.payload_bytes,
    }


def _split(split: Split) -> dict[str, Any]:
    return {
        "fingerprint": split.fingerprint,
        "client_sizes": split.client_sizes,
        "label_skew": split.label_skew,
        "size_skew": split.size_skew,
    }


def _data(inputs: Inputs) -> dict[str, Any]:
    return {
        "fingerprint": inputs.sources["data"],
        "train": len(inputs.train),
        "test": len(inputs.test),
        "damaged": inputs.prepared.damaged,
        "class_names": list(inputs.prepared.task.class_names),
        "suites": inputs.sources["suites"],
    }


def _round(record: RoundRecord, clock: Clock, memory: Memory, traffic: Traffic) -> dict[str, Any]:
    return {
        **asdict(record),
        **traffic.round_bytes(record.round),
        "seconds": clock.seconds(record.round),
        "peak_memory_bytes": memory.peak_memory_bytes(record.round),
        "peak_gpu_memory_bytes": memory.peak_gpu_memory_bytes(record.round),
    }
