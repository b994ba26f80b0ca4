"""What memory FLoRA takes, and whether it grows with rounds or clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import job, own_memory_bytes, run, run_apart
from flora.events import Listener, RoundRecord

# 4 and 40 clients of 10 images each, one a class, so that their batches are alike. The 40 have more images in
# all, of which each feature takes 2 kB.
FEW_CLIENTS, MANY_CLIENTS = 4, 40
FOR_EACH: dict[str, Any] = {
    "task": "synthetic:10x400x64",
    "split": {"name": "pathological", "classes_per_client": 10, "shots": 1},
    "rounds": 2,
}
QUICK_FOR_EACH: dict[str, Any] = {
    "task": "synthetic:4x16x8",
    "split": {"name": "pathological", "classes_per_client": 4, "shots": 1},
    "rounds": 1,
}
# Lazy set-up of libraries, caches of the allocator: they fill in the first rounds.
SETTLED = 10


def memory(setting: Setting) -> Measured:
    """Run FLoRA on ViT-B/32, and with few and many clients, each apart, and `tiny` for 100 rounds."""
    model_bytes = 1_353_345 * 4 if setting.quick else 151_277_313 * 4
    alone = run_apart(job(setting, rounds=2)).result["summary"]
    counts = (2, 4) if setting.quick else (FEW_CLIENTS, MANY_CLIENTS)
    for_each = QUICK_FOR_EACH if setting.quick else FOR_EACH
    few, many = (run_apart(job(setting, clients=clients, **for_each)).result for clients in counts)
    rounds, settled = (4, 1) if setting.quick else (100, SETTLED)
    resident = _Resident()
    run(job(setting, model="tiny", rounds=rounds), resident)
    return Measured(
        figures={
            "peak_memory_gigabytes": alone["peak_memory_bytes"] / 1e9,
            "growth_over_rounds_megabytes": (resident.bytes[-1] - resident.bytes[settled]) / 1e6,
            "growth_with_clients_over_model": _growth(few, many, model_bytes),
            "libraries_resident_bytes": alone["resident_at_start_bytes"],
            "clients": list(counts),
            "clients_memory_bytes": [own_memory_bytes(result) for result in (few, many)],
            "clients_together": [result["summary"]["clients_together"] for result in (few, many)],
            "model_bytes": model_bytes,
            "settled_round": settled,
            "resident_bytes_by_round": resident.bytes,
        },
        samples=1,
        notes=[
            "the peak has the interpreter, its libraries and a warm-up in it: what was resident before it "
            "began is beside it",
            "clients of 10 images each, trained together as far as the budget of groups goes; growth is that "
            "of the peak less what was resident before, in copies of the model",
            f"growth over rounds is from the end of round {settled} to the end of round {rounds}; "
            "8 MB of it are taken for the allocator's own",
        ],
    )


def _growth(few: Mapping[str, Any], many: Mapping[str, Any], model_bytes: int) -> float:
    """What many clients take beyond few, in copies of the model."""
    return (own_memory_bytes(many) - own_memory_bytes(few)) / model_bytes


@dataclass
class _Resident(Listener):
    """Resident memory at the end of every round."""

    bytes: list[int] = field(default_factory=list)

    def round_ended(self, record: RoundRecord) -> None:
        """Read it."""
        self.bytes.append(psutil.Process().memory_info().rss)
