"""How fast the machine is at the moment: three short kernels, and times in units of what they take.

A unit tells a faster machine from a slower one of its kind. It does not undo what others take of a machine:
the best of some repeats hardly knows of them, and their median, which does, differed by 15 to 50 % from
process to process, as others come and go within milliseconds. Hence `Kernels.busy`.

Measured with one thread on 4 cores of a virtual Xeon, 12 processes each way, every two of them set side by
side (median, 95th percentile and worst of their differences):

* the unit itself: 2, 6, 9 %, whether a core is one's own or shared with two others;
* a core of one's own, the others busy: 7 probes' fastest rounds, 462 pairs, in seconds 1.7, 7.5, 12 %, in
  units 2.0, 6.7, 11 %; times of 3 cells of 0.3 to 1.5 s, 594 pairs, in seconds 3.0, 13, 42 %, in units 3.1,
  13, 41 %, 0.2 % of them by more than a quarter;
* all cores shared with two to three times as many processes: the probes in units 2.7, 59, 130 %, 10 % of the
  pairs by more than a quarter; the cells 36, 180, 300 %, 62 % of them; in seconds the same.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, geometric_mean
from timeit import repeat
from typing import Any

from bench.config import RunConfig
from flora.errors import BadInput

CALIBRATED_SHARE = 0.25
"""What two times in units must differ by for anything to be said of them, their machines not being busy: of
the pairs above no probe's did and 0.2 % of the cells'."""

STEADY_SHARE = 0.1
"""What the unit may change by from before to after; of the processes above it did by 9 % at most."""

KERNELS = ("product", "copy", "launch")
REPEATS = 20
"""The best of so many counts. What interrupts a kernel of less than a millisecond is not the speed of the
machine, and its share of a longer time is another."""

LAUNCHES = 100

# Width of the matrices multiplied, and bytes copied: more than a launch, and more than a core's caches hold.
# For wider matrices MKL keeps memory of its own, 5 MB, which would count as the run's.
_SIZES = {"cpu": (192, 2**23), "cuda": (2048, 2**26)}


@dataclass(frozen=True)
class Kernels:
    """The kernel set, measured once or around something.

    Attributes:
        seconds: of a "product" of two matrices, a "copy" of memory, and a "launch" of many tiny operations.
        machine: what must be alike for times to be set side by side: cpu, cores that may be used, torch,
            threads, and device ("cpu", or the GPU's name).
        drift: what the set took afterwards as a share of what it took before, less one; 0 if measured once.
        busy: whether others used the machine meanwhile, by `bench.measure.load`: such a time has no unit.
    """

    seconds: Mapping[str, float]
    machine: Mapping[str, Any]
    drift: float = 0.0
    busy: bool = False

    @property
    def unit_seconds(self) -> float:
        """The unit that times are given in: the geometric mean, in which no kernel outweighs another."""
        return geometric_mean(self.seconds.values())

    @classmethod
    def around(cls, before: Kernels, after: Kernels, busy: bool) -> Kernels:
        """Put together what was measured right before and right after something, the machine busy or not."""
        seconds = {name: fmean((before.seconds[name], after.seconds[name])) for name in KERNELS}
        return cls(seconds, after.machine, after.unit_seconds / before.unit_seconds - 1, busy)

    def to_dict(self) -> dict[str, Any]:
        """Give it as `run.json` and a benchmark's `extra_info` hold it, under "kernels"."""
        return {
            "seconds": dict(self.seconds),
            "unit_seconds": self.unit_seconds,
            "machine": dict(self.machine),
            "drift": self.drift,
            "busy": self.busy,
        }

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Kernels:
        """Read what `to_dict` gave.

        Raises:
            BadInput: it is something else.
        """
        try:
            seconds = {name: float(kept["seconds"][name]) for name in KERNELS}
            drift, busy = float(kept.get("drift", 0.0)), bool(kept.get("busy", False))
            read = cls(seconds, dict(kept["machine"]), drift, busy)
        except (LookupError, TypeError, ValueError) as error:
            raise BadInput(f"kernels: {str(kept)[:60]!r} is no measured kernel set; measure again") from error
        if not all(isfinite(x) and x > 0 for x in seconds.values()):
            raise BadInput(f"kernels: seconds {seconds} must be above 0; measure again")
        return read


def measure_kernels(device: str = "cpu") -> Kernels:
    """Measure the kernel set in 0.03 s, with the threads and the precision that are set.

    A run on two threads waits for the slower of two cores, which a set on one thread would not see.

    Args:
        device: where, such as "cpu" or "cuda:0".
    """
    import torch

    on_gpu = device.startswith("cuda")

    def seconds(kernel: Callable[[], Any]) -> float:
        def waited_for() -> None:
            kernel()
            torch.cuda.synchronize(device)

        return min(repeat(waited_for if on_gpu else kernel, number=1, repeat=REPEATS))

    with torch.inference_mode():
        measured = {name: seconds(kernel) for name, kernel in _kernels(device).items()}
    if on_gpu:
        torch.cuda.empty_cache()  # or the driver would count it as the run's
    return Kernels(measured, _machine(device))


def kernels_of(config: RunConfig) -> Kernels | None:
    """Measure the kernel set as a run is computed: on its device, with its threads and its precision.

    Returns:
        None where there is no room for it, as on a GPU that is shared: no run is lost for that.
    """
    from bench.compute import configured
    from bench.device import lacks_memory

    with configured(config.compute, config.device):
        try:
            return measure_kernels(config.device)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            return None


def same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two machines, each `Kernels.machine`, differ in nothing that is known of both."""
    common = one.keys() & other.keys()
    return bool(common) and all(one[name] == other[name] for name in common)


def _kernels(device: str) -> dict[str, Callable[[], Any]]:
    import torch

    width, count = _SIZES["cuda" if device.startswith("cuda") else "cpu"]
    matrix, tiny = torch.ones(width, width, device=device), torch.ones(16, device=device)
    if device == "cpu":
        # the system's own memory: what an allocator takes and frees changes how it serves what comes after
        source, target = (torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8) for _ in "12")
    else:
        source, target = (torch.empty(count, dtype=torch.uint8, device=device) for _ in "12")
    source.fill_(1)  # memory never written to is not there to be read

    def launches() -> None:
        for _ in range(LAUNCHES):
            torch.add(tiny, 1)

    return {"product": lambda: matrix @ matrix, "copy": lambda: target.copy_(source), "launch": launches}


def _machine(device: str) -> dict[str, Any]:
    import torch

    from bench.measure.environment import cpu_name
    from bench.measure.load import usable_cores

    return {
        "cpu": cpu_name(),
        "cores": len(usable_cores()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }
