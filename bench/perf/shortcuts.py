"""What keeping a frozen tower's features and encoding each prompt once is worth, on ViT-B/32."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import (
    job,
    peak_memory_bytes,
    phase_seconds,
    round_seconds,
    run,
    run_apart,
    warm_up,
)
from flora.cache import FeatureCache

MEASURED_OF_FIFTY = 5
REPEATS = 3


def shortcuts(setting: Setting) -> Measured:
    """Run three rounds with `acceleration` exact, none and exact again; extractions against plain passes."""
    values = job(setting, rounds=1 if setting.quick else 3)
    warm_up(setting)
    extraction, pass_seconds = _extraction_and_pass(values, 1 if setting.quick else REPEATS)
    first = run(values)
    plain = run({**values, "acceleration": "none"})
    again = run(values)
    exact_seconds = fmean(map(round_seconds, (first, again)))
    return Measured(
        figures={
            "round_speedup": round_seconds(plain) / exact_seconds,
            "features_over_forward": extraction / pass_seconds,
            "none_round_seconds": round_seconds(plain),
            "exact_round_seconds": exact_seconds,
            "features_seconds": extraction,
            "forward_pass_seconds": pass_seconds,
            "none_phase_seconds": phase_seconds(plain),
            "exact_phase_seconds": phase_seconds(first, again),
        },
        samples=2 * values["rounds"],
        notes=[
            "exact ran before and after none, to tell drift of the machine from the difference",
            "a plain forward pass is over preprocessed images, in batches of the job's size; features are "
            "decoded, preprocessed, extracted and written to an empty cache",
            f"both in turn, medians of {REPEATS} after a pass that warmed up",
        ],
    )


def _extraction_and_pass(values: dict[str, Any], repeats: int) -> tuple[float, float]:
    """Median seconds of extracting the features of all images, and of a plain pass over them, in turn."""
    forward = _forward_pass(values)
    forward()  # the first is cold
    both = [(_extract(values), forward()) for _ in range(repeats)]
    extractions, passes = zip(*both, strict=True)
    return median(extractions), median(passes)


def _extract(values: dict[str, Any]) -> float:
    """Seconds of the setting up of a cell that its features took, with an empty cache."""
    with TemporaryDirectory(prefix="flora-perf-") as folder:
        result = run({**values, "rounds": 0}, cache=FeatureCache(Path(folder)))
    return float(result["summary"]["features_seconds"])


def _forward_pass(values: dict[str, Any]) -> Callable[[], float]:
    """Give what times one pass of the image tower over all training and test images, preprocessed before."""
    import torch

    from bench.config import RunConfig
    from bench.inputs import load_inputs

    config = RunConfig.read(values)
    inputs = load_inputs(config)
    parts = (inputs.train, inputs.test)
    batches = [batch.inputs for part in parts for batch in part.batches(config.batch_size)]

    def passed() -> float:
        started = time.perf_counter()
        with torch.inference_mode(), inputs.model.clip.autocast():
            for images in batches:
                inputs.model.clip.encode_image(images)
        return time.perf_counter() - started

    return passed


def fifty_rounds(setting: Setting) -> Measured:
    """Time whole processes; `none` for a few rounds, the rest of its fifty in proportion unless `full`."""
    rounds = 3 if setting.quick else 50
    measured = rounds if setting.full else min(rounds - 1, MEASURED_OF_FIFTY)
    exact = run_apart(job(setting, rounds=rounds))
    plain = run_apart(job(setting, rounds=measured, acceleration="none"))
    per_round = fmean(sum(record["seconds"].values()) for record in plain.result["rounds"][1:])
    plain_seconds = plain.seconds + (rounds - measured) * per_round
    extrapolated = measured < rounds
    return Measured(
        figures={
            "total_speedup": plain_seconds / exact.seconds,
            "rounds": rounds,
            "exact_total_seconds": exact.seconds,
            "none_total_seconds": plain_seconds,
            "none_measured_rounds": measured,
            "none_measured_seconds": plain.seconds,
            "none_round_seconds": per_round,
        },
        samples=1,
        notes=[f"none: {measured} of {rounds} rounds were run, the rest is their mean times the number left"]
        if extrapolated
        else [],
        extrapolated=extrapolated,
    )


def headline(setting: Setting) -> Measured:
    """Run FLoRA and full fine-tuning, each in a process of its own; unaccelerated, for the record, too."""
    results = {
        f"{method}_{acceleration}": run_apart(
            job(setting, method=method, acceleration=acceleration, rounds=_rounds(setting, acceleration))
        ).result
        for acceleration in ("exact", "none")
        for method in ("flora", "full_finetune")
    }
    seconds = {name: round_seconds(result) for name, result in results.items()}
    peaks = {name: peak_memory_bytes(result) for name, result in results.items()}
    return Measured(
        figures={
            "round_speedup": seconds["full_finetune_exact"] / seconds["flora_exact"],
            "memory_ratio": peaks["full_finetune_exact"] / peaks["flora_exact"],
            "none_round_speedup": seconds["full_finetune_none"] / seconds["flora_none"],
            "none_memory_ratio": peaks["full_finetune_none"] / peaks["flora_none"],
            "round_seconds": seconds,
            "peak_memory_bytes": peaks,
            "phase_seconds": {name: phase_seconds(result) for name, result in results.items()},
            "payload_bytes": {name: result["summary"]["payload_bytes"] for name, result in results.items()},
        },
        samples=_rounds(setting, "exact"),
        notes=["peak memory is that of the whole process, interpreter and libraries included"],
    )


def _rounds(setting: Setting, acceleration: str) -> int:
    return 1 if setting.quick or acceleration == "none" else 3
