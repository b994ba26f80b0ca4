"""What the federation loop adds to the steps that it carries out: sending, aggregating, measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.catalogue import load_method
from bench.cell import Cell, run_cell
from bench.compute import configured
from bench.config import RunConfig
from bench.device import deterministic
from bench.execute import libraries_left_alone
from bench.models import load_model
from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import RoundWalls, job, run, warm_up
from bench.splits import make_split
from bench.tasks import load_task
from flora import client
from flora.clip import ENCODED
from flora.evaluation import evaluate
from flora.events import Events, RoundRecord
from flora.features import ImageSource, Samples
from flora.prompts import Prompts


def loop(setting: Setting) -> Measured:
    """Run a federation and, after each of its rounds, the same steps and evaluation with nothing around."""
    warm_up(setting)
    rounds = 2 if setting.quick else 40
    large = _both(job(setting, rounds=rounds, clients_per_batch=1))
    tiny_rounds = 2 if setting.quick else 200
    tiny_job = job(setting, rounds=tiny_rounds, model="tiny", clients_per_batch=1)
    tiny = _both(tiny_job)
    extra = (tiny["round_seconds"] - tiny["bare_seconds"]) / tiny_job["clients"]
    return Measured(
        figures={
            "overhead_ratio": large["round_seconds"] / large["bare_seconds"],
            "tiny_extra_ms_per_client": 1e3 * extra,
            **{f"large_{name}": value for name, value in large.items()},
            **{f"tiny_{name}": value for name, value in tiny.items()},
        },
        samples=rounds,
        notes=[
            "medians over the rounds, each followed by a bare one on a model of its own: drift meets both",
            "clients one by one in both; the loop serialises, checks, averages, and is being measured",
        ],
    )


def measuring(setting: Setting) -> Measured:
    """Run cells with all instruments and invariants and with none, in turn."""
    warm_up(setting)
    repeats, tiny_repeats = (1, 1) if setting.quick else (3, 15)
    with libraries_left_alone():  # as in a matrix
        large = _on_and_off(job(setting, method="full_finetune", rounds=1), repeats)
        tiny = _on_and_off(job(setting, model="tiny", task="digits", rounds=10, clients=10), tiny_repeats)
    return Measured(
        figures={
            **{f"large_{name}": value for name, value in large.items()},
            **{f"tiny_{name}": value for name, value in tiny.items()},
        },
        samples=min(repeats, tiny_repeats),
        notes=[
            "a cost is the median of paired ratios less one: full fine-tuning of ViT-B/32 for a round, and "
            "FLoRA on the embedded model for ten",
            "off: the same cell from loading to its last round, with no listener; on: with its result too",
        ],
    )


def _on_and_off(values: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Time a cell measured and not measured; who begins changes with each pair."""
    config = RunConfig.read(values)
    taken: dict[str, list[float]] = {"on": [], "off": []}
    ways: dict[str, Callable[[], Any]] = {
        "on": partial(run_cell, config),
        "off": partial(_unmeasured, config),
    }
    for number in range(repeats):
        for name in ("on", "off") if number % 2 else ("off", "on"):
            started = time.perf_counter()
            ways[name]()
            taken[name].append(time.perf_counter() - started)
    ratios = [on / off for on, off in zip(taken["on"], taken["off"], strict=True)]
    return {
        "cost": median(ratios) - 1,
        "ratios": ratios,
        "on_seconds": median(taken["on"]),
        "off_seconds": median(taken["off"]),
    }


def _unmeasured(config: RunConfig) -> None:
    """Train a cell with nobody listening."""
    nobody = Events()
    with deterministic(config.device), configured(config.compute, config.device):
        for _ in Cell.prepared(config, None, nobody).training(nobody).rounds(config.rounds):
            pass


def _both(values: dict[str, Any]) -> dict[str, float]:
    bare = _BareLoop(RunConfig.read(values))
    walls = _Interleaved(bare)
    run(values, walls)
    return {"round_seconds": median(walls.seconds), "bare_seconds": median(walls.bare_seconds)}


class _Interleaved(RoundWalls):
    """Has a bare round follow each round, outside of its time."""

    def __init__(self, bare: _BareLoop) -> None:
        super().__init__()
        self.bare = bare
        self.bare_seconds: list[float] = []

    def between(self, record: RoundRecord) -> None:
        """Time a bare round; the one after round 0 warms it up."""
        started = time.perf_counter()
        self.bare.round(record.round)
        if record.round > 0:
            self.bare_seconds.append(time.perf_counter() - started)


class _BareLoop:
    """The steps of a round on the same batches, and its evaluation: nothing sent, averaged or measured.

    Features are random, on which no time depends.
    """

    def __init__(self, config: RunConfig) -> None:
        model, task = load_model(config.model, config.device), load_task(config.task, None)
        prompts = Prompts.tokenize(task.prompts, model.tokenize, task.class_names)
        method = load_method(config.method.name)
        self.config = config
        self.method = method(model.clip, prompts, config.method, torch.Generator().manual_seed(0))
        self.train, self.test = (self._samples(part.labels) for part in (task.train, task.test))
        split = make_split(config.split, task.train.labels, config.clients, config.seed.split)
        self.shares = [torch.from_numpy(share.copy()) for share in split.indices]
        settings = config.training.optimizer.model_dump(exclude={"name", "state"})
        self.optimizer = torch.optim.Adam(list(self.method.trainable.values()), fused=True, **settings)

    def _samples(self, labels: Any) -> Samples:
        count, device = len(labels), self.config.device
        features = torch.randn(count, self.method.clip.dim, generator=torch.Generator().manual_seed(0))
        return Samples(_NoImages(), torch.from_numpy(labels).to(device), features.to(device), ENCODED)

    def round(self, number: int) -> None:
        """Take the round's steps and evaluate."""
        for share_number, share in enumerate(self.shares):
            seed = (self.config.seed.order, number, share_number)
            for batch in client.batches(self.train, share, self.config.training, seed):
                self.optimizer.zero_grad(set_to_none=True)
                self.method(self.method.collate(batch)).backward()
                self.optimizer.step()
        evaluate(self.method, self.test)


class _NoImages:
    """In the place of images that features stand for."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        raise AssertionError("features stand for the images")

    def ahead(self, chosen: Iterable[Tensor]) -> Iterator[Tensor]:
        raise AssertionError("features stand for the images")

    def kept(self) -> ImageSource:
        return self

    def select(self, indices: Tensor) -> ImageSource:
        return self
