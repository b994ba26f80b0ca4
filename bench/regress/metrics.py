"""What is compared: each metric with the direction that is better, and how exact it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """How far two measurements of the same thing may differ, and so how they are compared."""

    EXACT = "exact"
    """The same to the last digit wherever and whenever it is measured."""
    TIGHT = "tight"
    """The same but for a stated share, such as 1 %."""
    NOISY = "noisy"
    """Differs from run to run: decided where runs were interleaved, told where they were calibrated."""
    STATISTICAL = "statistical"
    """Differs from seed to seed: compared over the seeds that both sides have."""
    ROUNDING = "rounding"
    """The same but for the order in which floating-point numbers are added up."""


class Better(StrEnum):
    """Which way a metric gets better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"
    """Any change counts."""


@dataclass(frozen=True)
class Metric:
    """One thing that is measured.

    Attributes:
        name: as results and budgets have it.
        title: as tables have it.
        kind: how it is compared.
        better: which way is better.
        unit: "B", "s", "FLOP" or "" (a count, a share, a text).
        relative: share of BASE by which it may be worse, where no budget says otherwise.
    """

    name: str
    title: str
    kind: Kind
    better: Better = Better.LOWER
    unit: str = ""
    relative: float = 0.0


TIGHT_SHARE = 0.01
NOISY_SHARE = 0.05
"""The smallest slowdown that counts: what is less is not told from what a machine does by itself."""

_CELLS = (
    Metric("split_fingerprint", "Split", Kind.EXACT, Better.NEITHER),
    Metric("data_fingerprint", "Images", Kind.EXACT, Better.NEITHER),
    Metric("model_fingerprint", "Model's weights", Kind.EXACT, Better.NEITHER),
    Metric("broken_invariants", "Broken invariants", Kind.EXACT),
    Metric("trainable_parameters", "Trainable parameters", Kind.EXACT),
    Metric("payload_bytes", "Payload", Kind.EXACT, unit="B"),
    Metric("payload_bytes_up", "Payload, up", Kind.EXACT, unit="B"),
    Metric("payload_bytes_down", "Payload, down", Kind.EXACT, unit="B"),
    Metric("bytes_up", "Sent up", Kind.EXACT, unit="B"),
    Metric("bytes_down", "Sent down", Kind.EXACT, unit="B"),
    Metric("needed_once_bytes", "Needed once", Kind.EXACT, unit="B"),
    Metric("train_flops", "Training FLOPs", Kind.EXACT, unit="FLOP"),
    Metric("total_flops", "FLOPs", Kind.EXACT, unit="FLOP"),
    Metric("peak_tensor_bytes", "Live tensors, peak", Kind.EXACT, unit="B"),
    Metric("peak_memory_bytes", "Memory, peak", Kind.TIGHT, unit="B", relative=TIGHT_SHARE),
    Metric("peak_gpu_memory_bytes", "GPU memory, peak", Kind.TIGHT, unit="B", relative=TIGHT_SHARE),
    Metric("learning", "Losses and accuracies by round", Kind.ROUNDING, Better.NEITHER),
    Metric("accuracy", "Accuracy", Kind.STATISTICAL, Better.HIGHER),
    Metric("new_accuracy", "Accuracy, new classes", Kind.STATISTICAL, Better.HIGHER),
    Metric("train_seconds", "Training time", Kind.NOISY, unit="s", relative=NOISY_SHARE),
    Metric("round_seconds", "Round", Kind.NOISY, unit="s", relative=NOISY_SHARE),
    Metric("total_seconds", "Whole run", Kind.NOISY, unit="s", relative=NOISY_SHARE),
)
SECONDS = Metric("seconds", "Time", Kind.NOISY, unit="s", relative=NOISY_SHARE)
"""Of a benchmark: what one call takes."""

METRICS = {metric.name: metric for metric in (*_CELLS, SECONDS)}

# of each phase of a run, such as flops.train
_BY_PHASE = {
    "flops": Metric("flops", "FLOPs", Kind.EXACT, unit="FLOP"),
    "peak_tensor_bytes": Metric("peak_tensor_bytes", "Live tensors, peak", Kind.EXACT, unit="B"),
}


def metric_of(name: str) -> Metric | None:
    """Find a metric by its name, one of a phase by "flops.train" or "peak_tensor_bytes.train"."""
    whole, dot, phase = name.partition(".")
    if dot and phase and whole in _BY_PHASE:
        metric = _BY_PHASE[whole]
        return replace(metric, name=name, title=f"{metric.title}: {phase}")
    return METRICS.get(name)
