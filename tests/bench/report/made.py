"""Results as a store would give them, made without a run."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pandas as pd

from bench.report.names import label_rounds, label_runs

LEVEL = {
    "zero_shot": 0.0,
    "flora": 0.22,
    "full_finetune": 0.25,
    "linear_probe": 0.17,
    "attention_adapter": 0.06,
}
PARAMETERS = {
    "zero_shot": 0,
    "flora": 24_576,
    "full_finetune": 151_277_313,
    "linear_probe": 5_120,
    "attention_adapter": 525_312,
}
HARDER = {"iid": 0.0, "dirichlet": 0.08, "pathological": 0.3}


def make_run(method="flora", split="iid", shots=pd.NA, seed=0, rounds=10, **fields):
    """One row of runs, as the store gives it; ``fields`` replace or add columns."""
    rng = np.random.default_rng(
        [len(method), len(split), 0 if shots is pd.NA else shots, seed if isinstance(seed, int) else 0]
    )
    weak = 1.0 if shots is pd.NA else 0.25 + 0.1 * np.log2(shots)
    gain = (
        LEVEL.get(method, 0.1) * weak
        - HARDER.get(split, 0.1) * (method != "zero_shot")
        + rng.normal(0, 0.004)
    )
    gain = 0.0 if method == "zero_shot" else gain
    parameters = PARAMETERS.get(method, 10_000)
    payload, slow = 4 * parameters, {"full_finetune": 30.0}.get(method, 1.0 + 0.2 * len(method) / 10)
    trains = method != "zero_shot"
    train = trains * slow * rounds * (0.2 if shots is not pd.NA else 1.0) * (1 + rng.normal(0, 0.01))
    run = {
        "task": "cifar10",
        "model": "ViT-B-32:openai",
        "method": method,
        "split": split,
        "shots": shots,
        "seed": seed,
        "clients": 10,
        "rounds": rounds,
        "batch_size": 128,
        "device": "cpu",
        "acceleration": "exact",
        "method.rank": 2.0 if method == "flora" else np.nan,
        "split.beta": 0.1 if split == "dirichlet" else np.nan,
        "split.classes_per_client": 2.0 if split == "pathological" else np.nan,
        "optimizer.lr": 5e-5,
        "status": "complete",
        "accuracy": 0.62 + gain,
        "best_accuracy": 0.62 + gain + 0.01,
        "zero_shot_accuracy": 0.62,
        "train_seconds": train,
        "round_seconds": train / rounds,
        "total_seconds": train + 20.0,
        "setup_seconds": 12.5 if trains and method != "full_finetune" else 0.8,
        "peak_memory_bytes": 4.9e9 if method == "full_finetune" else 1.9e9 + 1e8 * len(method),
        "peak_gpu_memory_bytes": np.nan,
        "bytes_up": payload * 10 * rounds,
        "bytes_down": payload * 10 * rounds,
        "payload_bytes": payload,
        "trainable_parameters": parameters,
        "environment.cpu": "Imaginary 9000, 2 cores",
        "environment.packages.torch": "2.15.0",
        "environment.git_commit": "0123abc",
    } | fields
    path = "/".join(
        str(run[c])
        for c in (
            *("task", "model", "method", "split", "shots", "seed", "acceleration"),
            *("method.rank", "split.beta"),
        )
    )
    run["config_hash"] = hashlib.sha256(path.encode()).hexdigest()[:12]
    run["path"] = f"results/{run['task']}/{method}/{run['config_hash']}/run.json"
    return run | fields


def make_rounds(run):
    """A curve that climbs from zero-shot to the run's accuracy."""
    last = 0 if run["method"] == "zero_shot" else run["rounds"]
    climb = [1 - np.exp(-3 * index / max(last, 1)) for index in range(last + 1)]
    start, gain = run["zero_shot_accuracy"], run["accuracy"] - run["zero_shot_accuracy"]
    keys = ("task", "model", "method", "split", "shots", "seed", "config_hash")
    sent = (run["bytes_up"] + run["bytes_down"]) / max(last, 1)
    return [
        {key: run[key] for key in keys}
        | {
            "round": index,
            "accuracy": start + gain * share / (climb[-1] or 1.0),
            "loss": np.nan if index == 0 else 1.0 / index,
            "cumulative_bytes": sent * index,
            "cumulative_seconds": run["train_seconds"] * index / max(last, 1),
        }
        for index, share in enumerate(climb)
    ]


def make_results(
    *, methods=tuple(LEVEL), splits=tuple(HARDER), shots=(pd.NA, 4), seeds=(0, 1), rounds=10, extra=()
):
    """Runs and rounds of every combination, and of the ``extra`` rows."""
    cells = itertools.product(methods, splits, shots, seeds)
    rows = [make_run(m, split, n, seed, rounds) for m, split, n, seed in cells] + list(extra)
    runs, records = pd.DataFrame(rows), pd.DataFrame([record for row in rows for record in make_rounds(row)])
    return tuple(frame.astype({"shots": "Int64"}) for frame in (runs, records))


def make_runs(*rows):
    """Runs of these rows alone."""
    return pd.DataFrame(list(rows)).astype({"shots": "Int64"})


def make_small():
    """Three methods on two splits, enough for every figure but the curves over shots."""
    return make_results(
        methods=("zero_shot", "flora", "full_finetune"), splits=("iid", "dirichlet"), shots=(pd.NA,), rounds=3
    )


def labelled(results):
    runs, rounds = results
    runs = label_runs(runs)
    return runs, label_rounds(rounds, runs)


def both_ways(*methods, seeds=(0,)):
    """Runs as deployed, ten times as slow, beside accelerated ones."""
    slow = {"round_seconds": 10.0, "total_seconds": 120.0}
    fast = {"round_seconds": 1.0, "total_seconds": 30.0, "clients_together": 4}
    return [
        make_run(method, seed=seed, acceleration=mode, **(slow if mode == "none" else fast))
        for method in methods
        for seed in seeds
        for mode in ("exact", "none")
    ]


COLD = {"setup_seconds": 12.5, "features_seconds": 12.0, "extraction_seconds": 12.0, "total_seconds": 32.0}
WARM = {"setup_seconds": 1.0, "features_seconds": 0.5, "extraction_seconds": 12.0, "total_seconds": 20.5}
FORMER = {"setup_seconds": 12.5, "features_seconds": 12.0, "total_seconds": 32.0}
UNKEPT = {"setup_seconds": 0.5, "features_seconds": 0.0, "extraction_seconds": None, "total_seconds": 20.0}
