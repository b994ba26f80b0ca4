"""What grouping clients and freezing towers are worth on a GPU."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from bench.perf.experiment import Measured, Setting, Skipped
from bench.perf.jobs import RoundWalls, peak_memory_bytes, round_seconds, run, walls_without, warm_up

MODELS = ("ViT-B-32:random", "ViT-L-14:random")
DTYPES = ("float32", "bfloat16")
CROWD = 100


def gpu(setting: Setting) -> Measured:
    """Run 100 clients together and one by one, and FLoRA against full fine-tuning in each size and precision.

    Raises:
        Skipped: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device was available")
    on_gpu = Setting(setting.quick, setting.full, "cuda")
    warm_up(on_gpu)
    apart, together = (_crowd_seconds(size) for size in (1, "auto"))
    against = {
        f"{model.partition(':')[0]} {dtype}": _against_full(model, dtype)
        for model in (MODELS[:1] if setting.quick else MODELS)
        for dtype in DTYPES
    }
    return Measured(
        figures={
            "grouped_speedup": apart / together,
            "least_round_speedup": min(one["round_speedup"] for one in against.values()),
            "least_memory_ratio": min(one["memory_ratio"] for one in against.values()),
            "device_name": torch.cuda.get_device_name(),
            "clients": CROWD,
            "one_by_one_round_seconds": apart,
            "grouped_round_seconds": together,
            "against_full_finetune": against,
        },
        samples=3,
        notes=["peak memory is that of torch's allocator; NVML's beside it, where the driver tells"],
    )


def _crowd_seconds(size: int | str) -> float:
    walls = RoundWalls()
    values = {
        "task": f"synthetic:10x{10 * CROWD}x64",
        "model": MODELS[0],
        "clients": CROWD,
        "rounds": 4,
        "batch_size": 32,
        "clients_per_batch": size,
        "device": "cuda",
    }
    result = run(values, walls)
    return fmean(walls_without(result, walls, "rest")[1:])


def _against_full(model: str, dtype: str) -> dict[str, Any]:
    results = {}
    for method in ("flora", "full_finetune"):
        job = {"task": "synthetic:10x128x64", "clients": 4, "rounds": 3, "batch_size": 32, "device": "cuda"}
        results[method] = run({**job, "method": method, "model": {"name": model, "dtype": dtype}})
    flora, full = results["flora"], results["full_finetune"]
    return {
        "round_speedup": round_seconds(full) / round_seconds(flora),
        "memory_ratio": peak_memory_bytes(full) / peak_memory_bytes(flora),
        "round_seconds": {name: round_seconds(result) for name, result in results.items()},
        "peak_memory_bytes": {name: peak_memory_bytes(result) for name, result in results.items()},
        "nvml_memory_bytes": {n: result["summary"]["nvml_memory_bytes"] for n, result in results.items()},
    }
