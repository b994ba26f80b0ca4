"""Faults planted in the code that runs: a comparison must find each, and let pass what is none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench import cell
from bench.config import RunConfig
from bench.execute import InProcess, run_matrix
from bench.perf.experiment import Measured, Setting
from bench.regress.compare import compare_measurements
from bench.regress.gate import Gate
from bench.regress.judgement import Judgement
from bench.regress.measurements import Measurements, read_measurements
from bench.regress.metrics import Kind
from flora import client, federation, group, payload
from flora.aggregation import WeightedMean
from flora.features import Batch, Samples
from flora.lora import FLoRA
from flora.method import Method
from flora.settings import Training

logger = logging.getLogger(__name__)

Plant = Callable[[], AbstractContextManager[Any]]

SEEDS = 5
LEAKED_SHARE = 0.1
"""Of the training samples: so many are test images once these have leaked."""

HELD_SHARE = 0.02
"""Of the peak of live tensors: so much more is held."""

_ADAM = {"name": "adam", "weight_decay": 0.0}
_METHODS: Sequence[Mapping[str, Any]] = (
    {
        "method": {"name": "flora", "rank": 8, "places": ["text.out", "text.head"]},
        "optimizer": {**_ADAM, "lr": 1e-3},
    },
    {"method": "linear_probe", "optimizer": {**_ADAM, "lr": 1e-2}},
)
_LEARNED = {"learning", "accuracy"}


def planted_accuracy(setting: Setting) -> Measured:
    """Plant bugs that change what is learned, and reorderings of sums that do not, and compare over seeds."""
    seeds = 2 if setting.quick else SEEDS
    configs = [config for fields in _METHODS for config in _cells(setting, seeds, fields)]
    bugs = {"counts ignored": _counts_ignored, "rate halved": _rate_halved, "test leaked": _test_leaked}
    plants = {**bugs, **_REORDERINGS}
    with TemporaryDirectory(prefix="flora-perf-") as name:
        folder = Path(name)
        base = _measured(configs, nullcontext, folder / "base")
        judged = {
            name: _judged(base, _measured(configs, plant, folder / name)) for name, plant in plants.items()
        }
    failed = {name: _failures(judgements) for name, judgements in judged.items()}
    return Measured(
        figures={
            "found_share": _share(found for name in bugs for found in _found(judged[name], _LEARNED)),
            "false_alarms": sum(len(failed[name]) for name in _REORDERINGS),
            "found_by": {name: sorted(_names(failed[name])) for name in bugs},
            "learning": {name: _notes(judgements, "learning") for name, judgements in judged.items()},
            "accuracy": {name: _notes(judgements, "accuracy") for name, judgements in judged.items()},
            "alarms": {name: sorted(_names(failed[name])) for name in _REORDERINGS},
            "cells": len(configs) * (1 + len(plants)),
        },
        samples=seeds,
        notes=[
            "found: by losses and accuracies alone, with each method; what else failed is in found_by",
            f"a false alarm: any metric but time that failed for one of {len(_REORDERINGS)} reorderings, "
            f"{len(_METHODS)} methods each; other threads and kernels do take other times",
        ],
    )


def planted_growth(setting: Setting) -> Measured:
    """Plant a byte, a parameter, memory and work, each in one run, and compare with a run without."""
    configs = _cells(setting, 1, _METHODS[0])
    with TemporaryDirectory(prefix="flora-perf-") as name:
        folder = Path(name)
        base, again = (_measured(configs, nullcontext, folder / name) for name in ("base", "again"))
        alarms = [x.metric.name for x in _judged(base, again) if x.verdict.fails]
        growths = _growths(base)
        failed = {
            name: _failures(_judged(base, _measured(configs, growth.plant, folder / name)))
            for name, growth in growths.items()
        }
    for name, growth in growths.items():
        alarms += [x for x in _names(failed[name]) if not x.startswith(growth.touches)]
    return Measured(
        figures={
            "found_share": _share(growth.metric in _names(failed[name]) for name, growth in growths.items()),
            "false_alarms": len(alarms),
            "alarms": alarms,
            "planted": {name: _change(failed[name], growth.metric) for name, growth in growths.items()},
            "failed": {name: sorted(_names(found)) for name, found in failed.items()},
        },
        samples=1,
        notes=[
            "planted: the metric aimed at without and with what was planted, one run each",
            "false alarms: what failed, times included, between two runs with nothing planted; what failed, "
            "times left out, though the planted does not touch it",
        ],
    )


def _cells(setting: Setting, seeds: int, fields: Mapping[str, Any]) -> list[RunConfig]:
    common = {
        "task": "digits",
        "data": {"max_train": 100, "max_test": 50} if setting.quick else {"max_train": 500},
        "split": {"name": "dirichlet", "beta": 0.1},
        "clients": 10,
        "rounds": 2 if setting.quick else 5,
        "batch_size": 32,
        "device": setting.device,
    }
    return [RunConfig.read({**common, **fields, "seed": seed}) for seed in range(seeds)]


def _measured(configs: Sequence[RunConfig], plant: Plant, folder: Path) -> Measurements:
    """Run cells with something planted, and read what they left.

    Raises:
        RuntimeError: one has no result.
    """
    logger.info("%d cells, %s", len(configs), folder.name)
    with plant():
        outcomes = list(run_matrix(configs, folder, executor=InProcess()))
    if failed := [outcome for outcome in outcomes if outcome.status != "ran"]:
        raise RuntimeError(f"{len(failed)} cells have no result, the first as {failed[0].reason}")
    return read_measurements(folder)


def _judged(base: Measurements, new: Measurements) -> Sequence[Judgement]:
    """Compare with no budget and nothing accepted."""
    return compare_measurements(base, new, Gate(), date.today()).judgements


def _failures(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Give what failed, times left out: what is planted takes its time, too."""
    return [x for x in judgements if x.verdict.fails and x.metric.kind is not Kind.NOISY]


def _notes(judgements: Iterable[Judgement], metric: str) -> list[str]:
    return [f"{x.verdict}: {x.note}" for x in judgements if x.metric.name == metric]


def _found(judgements: Sequence[Judgement], metrics: Collection[str]) -> list[bool]:
    """Say of each cell, seeds aside, whether one of the metrics failed."""
    found = {x.subject for x in _failures(judgements) if x.metric.name in metrics}
    return [subject in found for subject in {x.subject for x in judgements}]


def _names(judgements: Iterable[Judgement]) -> set[str]:
    return {judgement.metric.name for judgement in judgements}


def _share(found: Iterable[object]) -> float:
    hits = [bool(x) for x in found]
    return sum(hits) / len(hits)


def _change(judgements: Iterable[Judgement], metric: str) -> list[float | str | None]:
    return next(([x.base, x.new] for x in judgements if x.metric.name == metric), [])


# --- bugs that change what is learned --------------------------------------------------------------------


class _CountsIgnored(WeightedMean):
    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        super().add(tensors, 1.0)


def _counts_ignored() -> AbstractContextManager[Any]:
    """Average clients without regard to how many samples each has."""
    return patch.object(Method, "aggregator", _CountsIgnored)


@contextmanager
def _rate_halved() -> Iterator[None]:
    """Have every optimiser take steps half as long as asked for."""
    real = client.optimizer_over

    def halved(parameters: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
        optimizer = real(parameters, training)
        for settings in optimizer.param_groups:
            settings["lr"] /= 2
        return optimizer

    with patch.object(client, "optimizer_over", halved), patch.object(group, "optimizer_over", halved):
        yield


def _test_leaked() -> AbstractContextManager[Any]:
    """Put test images in the place of training ones, behind the split and the check that finds such."""
    real = cell._samples_for

    def leaked(method: Method, parts: tuple[Samples, Samples], *rest: Any) -> tuple[Samples, Samples]:
        train, test = real(method, parts, *rest)
        if train.features is None:  # the run that warms up trains the image tower
            return train, test
        count = min(int(LEAKED_SHARE * len(train)), len(test))
        step = len(train) // count
        labels, features = train.labels.clone(), _rows(train)
        labels[: count * step : step] = test.labels[:count]
        features[: count * step : step] = _rows(test)[:count]
        return replace(train, labels=labels, features=features), test

    return patch.object(cell, "_samples_for", leaked)


def _rows(samples: Samples) -> Tensor:
    assert samples.features is not None
    return samples.features[torch.arange(len(samples))]


# --- reorderings of sums -----------------------------------------------------------------------------------


@contextmanager
def _other_threads() -> Iterator[None]:
    """Let operations use two cores, or one where they may use more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _clients_reversed() -> AbstractContextManager[Any]:
    """Serve and average the last client first."""
    real = federation.participants
    return patch.object(federation, "participants", lambda *drawn: [*reversed(real(*drawn))])


def _batches_reversed() -> AbstractContextManager[Any]:
    """Have every batch hold its samples, over which loss and gradients are summed, in reverse."""
    real = client.order
    return patch.object(client, "order", lambda *asked: (chosen.flip(0) for chosen in real(*asked)))


class _MeanInDouble(WeightedMean):
    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        before, self._mean = self._mean, {}
        super().add(tensors, weight)
        for name, mean in before.items():
            wide = mean.double().lerp(tensors[name].double(), weight / self._weight)
            self._mean[name] = wide.to(mean.dtype)


def _mean_in_double() -> AbstractContextManager[Any]:
    """Average in double precision, rounded after each client."""
    return patch.object(Method, "aggregator", _MeanInDouble)


@contextmanager
def _other_kernels() -> Iterator[None]:
    """Leave products and convolutions to other kernels than oneDNN's."""
    kernels = torch.backends.mkldnn
    before = kernels.enabled
    kernels.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        kernels.enabled = before


_REORDERINGS: Mapping[str, Plant] = {
    "other threads": _other_threads,
    "clients reversed": _clients_reversed,
    "batches reversed": _batches_reversed,
    "mean in double": _mean_in_double,
    "other kernels": _other_kernels,
}


# --- growth ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Growth:
    """Something planted that takes more than nothing.

    Attributes:
        plant: puts it there.
        metric: that must find it.
        touches: what the names of all metrics begin with that it does raise.
    """

    plant: Plant
    metric: str
    touches: tuple[str, ...]


def _growths(base: Measurements) -> dict[str, _Growth]:
    (measured,) = base.cells
    held = int(HELD_SHARE * float(measured.metrics["peak_tensor_bytes"] or 0))
    sent = ("payload_bytes", "bytes_")
    return {
        "byte": _Growth(_byte, "payload_bytes", sent),
        "parameter": _Growth(
            _parameter, "trainable_parameters", (*sent, "trainable_parameters", "peak_tensor_bytes")
        ),
        "memory": _Growth(partial(_memory, held), "peak_tensor_bytes", ("peak_tensor_bytes",)),
        "work": _Growth(_work, "train_flops", ("flops", "train_flops", "total_flops")),
    }


def _byte() -> AbstractContextManager[Any]:
    """Have payloads begin with a header that is one space longer, as their format allows."""
    real = payload.encode

    def longer(tensors: Mapping[str, Tensor]) -> bytes:
        content = real(tensors)
        size = int.from_bytes(content[:8], "little")
        return (size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :]

    return patch.object(payload, "encode", longer)


@contextmanager
def _parameter() -> Iterator[None]:
    """Train a number that is added to all similarities alike, which changes no softmax."""
    prepare, closed_form, similarities = FLoRA.prepare, FLoRA.closed_form, FLoRA.similarities

    def prepared(self: FLoRA, generator: torch.Generator) -> None:
        prepare(self, generator)
        self.shared = nn.Parameter(torch.zeros_like(self.clip.logit_scale))

    def shifted(self: FLoRA, images: Tensor, texts: Tensor) -> Tensor:
        shared: Any = self.shared
        return similarities(self, images, texts) + shared

    with (
        patch.object(FLoRA, "prepare", prepared),
        patch.object(FLoRA, "closed_form", lambda self: closed_form(self) + 1),
        patch.object(FLoRA, "similarities", shifted),
    ):
        yield


def _memory(size: int) -> AbstractContextManager[Any]:
    """Hold on to so many bytes from each step's loss to the next."""
    real = FLoRA.loss
    held: list[Tensor] = []

    def holding(self: FLoRA, batch: Batch) -> Tensor:
        held[:] = [torch.empty(size, dtype=torch.uint8, device=batch.labels.device)]
        return real(self, batch)

    return patch.object(FLoRA, "loss", holding)


def _work() -> AbstractContextManager[Any]:
    """Compute a batch's similarities twice more than needed, about 1 % of a step's products."""
    real = FLoRA.similarities

    def thrice(self: FLoRA, images: Tensor, texts: Tensor) -> Tensor:
        for _ in range(2):
            real(self, images.detach(), texts.detach())
        return real(self, images, texts)

    return patch.object(FLoRA, "similarities", thrice)
