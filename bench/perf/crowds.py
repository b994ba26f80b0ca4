"""Many small clients: what one costs, and what training them together saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import RoundWalls, own_memory_bytes, run, run_apart, walls_without, warm_up
from bench.tasks.features import write_features
from flora.group import CPU_BUDGET_BYTES

CLASSES, WIDTH = 10, 512
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "adam": {"name": "adam", "state": "reset"},
}
# 10 images of 10 classes a client, drawn from one pool: 1,440 glyphs are enough for any number of clients.
POOL: dict[str, Any] = {"task": "glyphs"}
QUICK_POOL: dict[str, Any] = {"task": "digits", "data": {"max_train": 50, "max_test": 20}}
TEN_IMAGES = {"name": "pathological", "classes_per_client": 10, "shots": 1, "overlap": True}
SAMPLES = 10
CROWDS = (10, 30, 100, 300, 1000)
METHODS = ("flora", "linear_probe", "attention_adapter", "prompt_tuning")


def thousand_probes(setting: Setting) -> Measured:
    """Train a linear probe at 1,000 clients on features from a file, with SGD and, beside it, Adam."""
    threads = torch.get_num_threads()
    clients, rounds = (20, 2) if setting.quick else (1000, 10)
    figures: dict[str, Any] = {"clients": clients, "samples_per_client": SAMPLES, "threads": threads}
    warm_up(setting)
    with TemporaryDirectory(prefix="flora-perf-") as folder:
        file = _random_features(Path(folder, "random.safetensors"), clients * SAMPLES)
        for name, optimizer in OPTIMIZERS.items():
            walls = RoundWalls()
            result = run(
                {
                    "task": f"features:{file}",
                    "method": "linear_probe",
                    "clients": clients,
                    "rounds": rounds + 1,
                    "batch_size": SAMPLES,
                    "optimizer": optimizer,
                    "device": setting.device,
                },
                walls,
            )
            seconds = walls_without(result, walls, "evaluate")[1:]  # the first round warms up
            figures[f"{name}_ms_per_client"] = 1e3 * median(seconds) / clients
            figures[f"{name}_bytes_per_round"] = result["rounds"][-1]["bytes_up"]
            figures[f"{name}_payloads"] = result["invariants"]["payload_closed_form"]["payloads"]
    figures["ms_per_client"] = figures["sgd_ms_per_client"]
    return Measured(
        figures,
        samples=rounds,
        notes=[
            "median over the rounds of a round less its evaluation, listeners included, over its clients",
            "the target is for SGD; every payload is serialised, checked and counted, both ways",
        ],
    )


def _random_features(file: Path, train: int) -> Path:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, WIDTH, generator=generator)

    tensors = {"classes": rows(CLASSES)}
    for part, count in (("train", train), ("test", 10 * CLASSES)):
        tensors |= {f"{part}.features": rows(count), f"{part}.labels": torch.arange(count) % CLASSES}
    write_features(file, tensors, [f"class {label}" for label in range(CLASSES)], model="random numbers")
    return file


def grouped(setting: Setting) -> Measured:
    """Train 1,000 clients together and one by one, by four methods; and fewer of them, by FLoRA."""
    most = 10 if setting.quick else CROWDS[-1]
    methods = METHODS[:1] if setting.quick else METHODS
    by_method = {}
    for method in methods:
        together, alone = (run_apart(_crowd(setting, method, most, size)).result for size in ("auto", 1))
        by_method[method] = _compared(together, alone)
    warm_up(setting)
    crowds = (4, 8) if setting.quick else CROWDS
    sweep = {size: [_timed(_crowd(setting, "flora", n, size)) for n in crowds] for size in ("auto", 1)}
    per_sample = {
        size: [1e3 * seconds / (n * SAMPLES) for n, (seconds, _) in zip(crowds, found, strict=True)]
        for size, found in sweep.items()
    }
    return Measured(
        figures={
            "speedup": by_method["flora"]["speedup"],
            "largest_rise": _largest_rise(per_sample["auto"]),
            "memory_over_budget": _extra_memory(by_method) / CPU_BUDGET_BYTES,
            "budget_bytes": CPU_BUDGET_BYTES,
            "by_method": by_method,
            "clients": list(crowds),
            "grouped_ms_per_sample": per_sample["auto"],
            "one_by_one_ms_per_sample": per_sample[1],
            "clients_together": [together for _, together in sweep["auto"]],
        },
        samples=_rounds(setting),
        notes=[
            "seconds are those of a round, evaluation included, optimiser states going to rest not",
            "largest rise: of the time a sample, from any number of clients to any larger one; it should not "
            "rise at all, and the 1.1 of the target allows for the noise of timing",
            "methods are compared in processes of their own, one for clients together, one for one by one",
            "memory over budget: peak less what was resident at the start, clients together less one by one, "
            "of the method where this is most, over the budget that groups are chosen by",
            "clients draw their 10 images, of 10 classes, from one pool and may share some",
        ],
    )


def _rounds(setting: Setting) -> int:
    return 1 if setting.quick else 3


def _crowd(setting: Setting, method: str, clients: int, size: str | int) -> dict[str, Any]:
    return {
        **(QUICK_POOL if setting.quick else POOL),
        "model": "tiny",
        "method": method,
        "split": TEN_IMAGES,
        "clients": clients,
        "rounds": 1 + _rounds(setting),
        "batch_size": SAMPLES,
        "clients_per_batch": size,
        "device": setting.device,
    }


def _timed(values: dict[str, Any]) -> tuple[float, int]:
    """Median wall time of a round, and how many clients were trained together."""
    walls = RoundWalls()
    result = run(values, walls)
    seconds = walls_without(result, walls, "rest")[1:]  # the first round warms up
    return median(seconds), result["summary"]["clients_together"]


def _compared(together: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, float]:
    """Hold a run with clients together against one of them one by one."""
    seconds = {"grouped": _phases_seconds(together), "one_by_one": _phases_seconds(alone)}
    return {
        **{f"{name}_round_seconds": value for name, value in seconds.items()},
        "speedup": seconds["one_by_one"] / seconds["grouped"],
        "clients_together": together["summary"]["clients_together"],
        "grouped_memory_bytes": own_memory_bytes(together),
        "one_by_one_memory_bytes": own_memory_bytes(alone),
    }


def _phases_seconds(result: Mapping[str, Any]) -> float:
    """Median of the rounds after the first, which warms up, but for states going to rest."""
    rounds = [record["seconds"] for record in result["rounds"][2:]]
    return median(sum(seconds.values()) - seconds.get("rest", 0.0) for seconds in rounds)


def _extra_memory(by_method: Mapping[str, Mapping[str, float]]) -> float:
    """The most that grouping took beyond one client after another."""
    return max(
        found["grouped_memory_bytes"] - found["one_by_one_memory_bytes"] for found in by_method.values()
    )


def _largest_rise(costs: Sequence[float]) -> float:
    """The largest ratio of a cost to one before it."""
    return max(later / before for i, before in enumerate(costs) for later in costs[i + 1 :])
