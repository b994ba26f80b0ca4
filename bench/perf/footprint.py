"""What memory FLoRA takes, and whether it grows with rounds or clients."""

from __future__ import annotations

from dataclasses import dataclass, field

import psutil

from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import job, run, run_apart
from flora.events import Listener, RoundRecord

MANY_CLIENTS = 40
# Lazy set-up of libraries, caches of the allocator: they fill in the first rounds.
SETTLED = 10


def memory(setting: Setting) -> Measured:
    """Run FLoRA on ViT-B/32 with few and many clients, each apart, and `tiny` for 100 rounds."""
    model_bytes = 1_353_345 * 4 if setting.quick else 151_277_313 * 4
    many = 4 if setting.quick else MANY_CLIENTS
    few, crowd = (
        run_apart(job(setting, rounds=2, **more)).result["summary"] for more in ({}, {"clients": many})
    )
    few_peak, many_peak = few["peak_memory_bytes"], crowd["peak_memory_bytes"]
    rounds, settled = (4, 1) if setting.quick else (100, SETTLED)
    resident = _Resident()
    run(job(setting, model="tiny", rounds=rounds), resident)
    return Measured(
        figures={
            "peak_memory_gigabytes": few_peak / 1e9,
            "growth_over_rounds_megabytes": (resident.bytes[-1] - resident.bytes[settled]) / 1e6,
            "growth_with_clients_over_model": (many_peak - few_peak) / model_bytes,
            "few_clients_peak_memory_bytes": few_peak,
            "libraries_resident_bytes": few["resident_at_start_bytes"],
            "many_clients_peak_memory_bytes": many_peak,
            "many_clients": many,
            "model_bytes": model_bytes,
            "settled_round": settled,
            "resident_bytes_by_round": resident.bytes,
        },
        samples=1,
        notes=[
            "the peak has the interpreter, its libraries and a warm-up in it: what was resident before it "
            "began is beside it",
            "the same images among 4 and 40 clients; growth is in copies of the model",
            f"growth over rounds is from the end of round {settled} to the end of round {rounds}; "
            "8 MB of it are taken for the allocator's own",
        ],
    )


@dataclass
class _Resident(Listener):
    """Resident memory at the end of every round."""

    bytes: list[int] = field(default_factory=list)

    def round_ended(self, record: RoundRecord) -> None:
        """Read it."""
        self.bytes.append(psutil.Process().memory_info().rss)
