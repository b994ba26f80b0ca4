"""What runs store besides their rows, made without a run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.config import RunConfig
from bench.report.data import assemble
from bench.store import ROUND_WORK
from tests.bench.report.made import make_run

PHASES = (*ROUND_WORK, "evaluate", "count")
CLASSES = ("a_b 100 %", "größer", '<script>alert("x")</script>', "</script>", "e & f")


def settled(**fields):
    """A run as ``make_run`` gives it and its configuration, whose hash it has."""
    run = make_run(**fields)
    split = {"name": run["split"], "shots": None if pd.isna(run["shots"]) else run["shots"]}
    config = RunConfig.read(
        {"task": "digits", "method": run["method"], "split": split, "seed": run["seed"], "device": "cpu"}
    )
    return run | {"config_hash": config.hash}, config.model_dump(mode="json")


def stored_of(run, config, broken=""):
    """What ``run.json`` of a run would hold, as far as the page shows it."""
    rng = np.random.default_rng(run["seed"])
    counts = rng.poisson(6, (run["clients"], len(CLASSES)))
    return {
        "config": config,
        "environment": {
            "cpu": run["environment.cpu"],
            "git_commit": "0123abc",
            "gpu": None,
            "packages": {"torch": "2.15.0", "numpy": "2.4.6", "peft": "0.21.2"},
        },
        "definition": {"config": run["config_hash"], "method": f"{run['method']}-1", "hash": "ab12"},
        "invariants": {
            "losses_finite": {"holds": True, "rounds": run["rounds"]},
            "frozen_unchanged": {"holds": not broken, "reason": broken or None},
        },
        "split": {
            "fingerprint": fingerprint(run),
            "client_sizes": counts.sum(axis=1).tolist(),
            "class_counts": counts.tolist(),
        },
        "data": {"class_names": list(CLASSES)},
        "sittings": [
            {
                "first_round": 0,
                "last_round": run["rounds"],
                "seconds": 12.3456,
                "began": "2026-01-02T03:04:05+00:00",
                "host": "node-7",
            }
        ],
    }


def fingerprint(run):
    """Runs of one task, split and seed share a division of the data."""
    return f"{run['task']} {run['split']} {run['shots']} {run['seed']}"


def rounds_of(run):
    """The rounds of a run with bytes and seconds, irregular as real ones are."""
    last = 0 if run["method"] == "zero_shot" else run["rounds"]
    rng = np.random.default_rng([run["seed"], len(run["method"]), len(run["split"])])
    climb = np.minimum(np.arange(last + 1) / max(last, 1), 1.0)
    gain = run["accuracy"] - run["zero_shot_accuracy"]
    accuracy = run["zero_shot_accuracy"] + gain * climb + rng.normal(0, 0.003, last + 1)
    rounds = np.arange(last + 1)
    sent = 10 * run["payload_bytes"]
    seconds = {f"seconds.{phase}": rng.uniform(0.01, 2, last + 1) for phase in PHASES}
    keys = ("task", "model", "method", "split", "shots", "seed", "config_hash")
    return pd.DataFrame(
        {
            **{key: run[key] for key in keys},
            "round": rounds,
            "accuracy": accuracy,
            "loss": [np.nan, *rng.uniform(0.1, 2, last)],
            "bytes_up": np.where(rounds > 0, sent, 0),
            "bytes_down": np.where(rounds > 0, sent, 0),
            "cumulative_bytes": 2 * sent * rounds,
            "cumulative_seconds": sum(seconds[f"seconds.{phase}"] for phase in ROUND_WORK).cumsum(),
            **seconds,
        }
    )


def data_of(runs, stored=None, extra=(), failures=()):
    """The data of a report on rows of runs; ``extra`` rows are runs that are not complete."""
    rows = [run | {"split.fingerprint": fingerprint(run)} for run in runs]
    frame = pd.DataFrame([*rows, *extra]).astype({"shots": "Int64"})
    rounds = pd.concat([rounds_of(run) for run in runs], ignore_index=True).astype({"shots": "Int64"})
    return assemble(frame, rounds, stored=stored, failures=failures)
