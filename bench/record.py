"""What is kept of a run: the fields of its `run.json`, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from bench.config import RunConfig
from bench.inputs import Inputs
from bench.measure.clock import CHECKS
from bench.measure.environment import describe
from bench.measure.instruments import NO_COUNTS, NOT_BY_SIZE, Instruments
from bench.measure.invariants import Invariants
from bench.measure.traffic import Traffic
from bench.splits import class_counts
from flora.evaluation import Predictions, scores
from flora.events import RoundRecord


@dataclass(frozen=True)
class Measured:
    """What a run gave, before it is put into words.

    Attributes:
        instruments: those that listened.
        traffic: the ledger.
        invariants: what has to hold in every run.
        records: of the rounds.
        zero_shot: of the model as it came, by suite; "test" is the task's own test set.
        trained: accuracies of the trained model by suite.
        client_sizes: samples of each client.
        once_bytes: what a client needs once.
    """

    instruments: Instruments
    traffic: Traffic
    invariants: Invariants
    records: Sequence[RoundRecord]
    zero_shot: Mapping[str, Predictions]
    trained: Mapping[str, float]
    client_sizes: Sequence[int]
    once_bytes: int


def summary_of(measured: Measured) -> dict[str, Any]:
    """Give the figures that tables are made of."""
    return {
        **_accuracies(measured.records, measured.zero_shot, measured.trained),
        **_times(measured.instruments),
        **_memory(measured.instruments),
        **_work(measured.instruments),
        **_energy(measured.instruments),
        "bytes_up": measured.traffic.bytes_up,
        "bytes_down": measured.traffic.bytes_down,
        "payload_bytes": measured.traffic.payload_bytes,
        **{f"payload_bytes_{way}": x for way, x in measured.traffic.payload_bytes_by_direction.items()},
        "needed_once_bytes": measured.once_bytes,
        "refused_uploads": sum(len(record.refused) for record in measured.records),
    }


def details_of(measured: Measured) -> dict[str, Any]:
    """Give what stands beside the summary: by phase, by cause, by round."""
    instruments, work = measured.instruments, measured.instruments.work
    return {
        "setup": {
            "seconds": instruments.clock.setup_seconds,
            "peak_memory_bytes": instruments.memory.peak_memory_bytes(None),
        },
        "flops": None if work is None else work.flops_by_phase,
        "memory": None if work is None else {"by_phase": work.peak_by_phase, "by_cause": work.peak_by_cause},
        "energy": instruments.energy.totals,
        "client_times": "shared" if instruments.clock.shares_clients else "measured",
        "rounds": [_round(record, measured) for record in measured.records],
    }


def client_rows(measured: Measured) -> list[dict[str, Any]]:
    """Give a row a round and client: what it trained on and what it spent, on its own side."""
    clock = measured.instruments.clock
    return [
        {
            "round": number,
            "client": spent.client,
            "samples": measured.client_sizes[spent.client],
            "send_seconds": spent.send,
            "train_seconds": spent.train,
            "receive_seconds": spent.receive,
        }
        for number in clock.rounds
        for spent in clock.client_times(number)
    ]


def inputs_of(inputs: Inputs) -> dict[str, Any]:
    """Describe split, data and model."""
    return {
        "split": _split(inputs),
        "data": {
            "fingerprint": inputs.sources["data"],
            "train": len(inputs.train),
            "test": len(inputs.test),
            "damaged": inputs.prepared.damaged,
            "class_names": list(inputs.prepared.task.class_names),
            "suites": inputs.sources["suites"],
        },
        "model": {"fingerprint": inputs.sources["model"]},
    }


def environment_of(config: RunConfig, instruments: Instruments) -> dict[str, Any]:
    """Describe the machine, and how it was measured on."""
    totals = instruments.memory.totals
    return {
        **describe(config.device),
        "memory_method": totals.method,
        "nvml_reason": totals.nvml_reason,
        "counts_reason": _no_counts(instruments),
    }


def _no_counts(instruments: Instruments) -> str | None:
    if instruments.work is None:
        return NO_COUNTS
    return None if instruments.work.consistent else NOT_BY_SIZE


def evaluation_of(measured: Measured, classes: Sequence[str]) -> dict[str, Any]:
    """Give the accuracies by class of the model as it came, of the last round and of the best."""
    last, best = measured.records[-1], _best(measured.records)
    before = scores(measured.zero_shot["test"], len(classes))
    return {
        "classes": list(classes),
        "zero_shot": {"round": None, **before},
        "last": _by_class(last),
        "best": _by_class(best),
    }


def _by_class(record: RoundRecord) -> dict[str, Any]:
    fields = ("round", "accuracy", "macro_accuracy", "calibration_error", "class_accuracies")
    return {name: getattr(record, name) for name in fields}


def _best(records: Sequence[RoundRecord]) -> RoundRecord:
    """The first of the rounds whose accuracy is highest."""
    return max(records, key=lambda record: record.accuracy)


def _accuracies(
    records: Sequence[RoundRecord], zero_shot: Mapping[str, Predictions], trained: Mapping[str, float]
) -> dict[str, Any]:
    last, best = records[-1], _best(records)
    before = {name: fmean(found.correct.tolist()) for name, found in zero_shot.items()}
    of_clients = [accuracy for accuracy in last.client_accuracies if accuracy is not None]
    base, new = last.accuracy, trained.get("new")
    return {
        "accuracy": base,
        "best_accuracy": best.accuracy,
        "best_round": best.round,
        "macro_accuracy": last.macro_accuracy,
        "calibration_error": last.calibration_error,
        "zero_shot_accuracy": before["test"],
        "client_mean_accuracy": fmean(of_clients) if of_clients else None,
        "client_worst_accuracy": min(of_clients, default=None),
        "client_accuracy_spread": pstdev(of_clients) if of_clients else None,
        "new_accuracy": new,
        "zero_shot_new_accuracy": before.get("new"),
        "harmonic_mean_accuracy": None if new is None else 2 * base * new / (base + new or 1),
        "retention_accuracy": trained.get("retention"),
        "zero_shot_retention_accuracy": before.get("retention"),
    }


def _times(instruments: Instruments) -> dict[str, Any]:
    clock = instruments.clock
    total, setup = clock.total_seconds, clock.setup_seconds
    transfer = setup.pop("transfer", 0.0)  # it comes after the last round
    checkpoints = setup.pop("checkpoint", 0.0)
    clients = [spent.seconds for number in clock.rounds for spent in clock.client_times(number)]
    deployed = [clock.deployment_seconds(number) for number in clock.rounds]
    checks = sum(setup.pop(name, 0.0) for name in CHECKS)
    steps = instruments.steps.all
    return {
        "train_seconds": clock.train_seconds,
        "round_seconds": clock.round_seconds,
        "total_seconds": total,
        "setup_seconds": sum(setup.values()),
        "features_seconds": setup.get("features", 0.0),
        "transfer_seconds": transfer,
        "checkpoint_seconds": checkpoints,
        "check_seconds": checks + sum(clock.checked_seconds(number) for number in (0, *clock.rounds)),
        "unaccounted_seconds": total - clock.named_seconds,
        "server_seconds": sum(clock.server_seconds(number) for number in clock.rounds),
        "client_seconds": sum(clients),
        "deployment_seconds": None if None in deployed else sum(filter(None, deployed)),
        "step_median_seconds": steps["median_seconds"],
        "step_p95_seconds": steps["p95_seconds"],
    }


def _memory(instruments: Instruments) -> dict[str, Any]:
    totals = instruments.memory.totals
    return {
        "peak_memory_bytes": totals.peak_memory_bytes,
        "resident_at_start_bytes": totals.resident_at_start_bytes,
        "peak_gpu_memory_bytes": totals.peak_gpu_memory_bytes,
        "nvml_memory_bytes": totals.nvml_memory_bytes,
        "peak_tensor_bytes": None if instruments.work is None else instruments.work.peak_bytes,
    }


def _work(instruments: Instruments) -> dict[str, Any]:
    if instruments.work is None or not instruments.work.consistent:
        return {"train_flops": None, "total_flops": None}
    flops = instruments.work.flops_by_phase
    return {"train_flops": flops.get("train", 0), "total_flops": sum(flops.values())}


def _energy(instruments: Instruments) -> dict[str, Any]:
    joules = {part: found["joules"] for part, found in instruments.energy.totals.items()}
    return {
        "energy_joules": instruments.energy.total_joules,
        **{f"{part}_energy_joules": value for part, value in joules.items()},
    }


def _split(inputs: Inputs) -> dict[str, Any]:
    split, task = inputs.division.split, inputs.prepared.task
    return {
        "fingerprint": split.fingerprint,
        "client_sizes": split.client_sizes,
        "class_counts": class_counts(split.indices, task.train.labels, len(task.class_names)).tolist(),
        "label_skew": split.label_skew,
        "size_skew": split.size_skew,
    }


def _round(record: RoundRecord, measured: Measured) -> dict[str, Any]:
    instruments, number = measured.instruments, record.round
    clock, memory = instruments.clock, instruments.memory
    fields = asdict(record)
    del fields["class_accuracies"]  # those of the last and of the best round stand apart
    return {
        **fields,
        **measured.traffic.round_bytes(number),
        "seconds": clock.seconds(number),
        "client_seconds": clock.seconds(number, "client"),
        "server_seconds": clock.seconds(number, "server"),
        "slowest_client_seconds": clock.slowest_client_seconds(number),
        "deployment_seconds": clock.deployment_seconds(number) if number else None,
        "steps": instruments.steps.of(number),
        "flops": None if instruments.work is None else instruments.work.flops(number),
        "energy_joules": instruments.energy.joules(number),
        "aggregation_error": measured.invariants.aggregation_error(number),
        "peak_memory_bytes": memory.peak_memory_bytes(number),
        "peak_gpu_memory_bytes": memory.peak_gpu_memory_bytes(number),
    }
