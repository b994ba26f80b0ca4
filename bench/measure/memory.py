"""Where the memory goes: the peak of every phase, resident and on the GPU.

Linux keeps a process's high-water mark of resident memory; writing 5 to `/proc/self/clear_refs` resets it
(`proc_pid_clear_refs(5)`), so that each phase has a peak of its own. Elsewhere resident memory is read at
the borders of phases, which misses what a phase takes and gives back in between; `MemoryTotals.method`
says which of the two it was.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from bench.measure.nvml import NvmlDevice, NvmlUnavailable
from flora.events import Listener, Phase, RoundRecord

HIGH_WATER = "reset high-water mark"
BORDERS = "resident at phase borders"

_CLEAR_REFS = "/proc/self/clear_refs"
_STATUS = "/proc/self/status"


@dataclass(frozen=True)
class MemoryTotals:
    """What a run came to.

    Attributes:
        method: how resident memory was read, `HIGH_WATER` or `BORDERS`.
        resident_at_start_bytes: resident memory of the process when the listener was made.
        peak_memory_bytes: most resident memory since, in and between phases. With `BORDERS` it is the
            process's whole life that counts, as only that peak is known there.
        peak_gpu_memory_bytes: most memory that torch's allocator had handed out; None without a GPU.
        nvml_memory_bytes: most GPU memory the driver counted for this process at the ends of rounds and
            of phases outside of them; None where it is not known.
        nvml_reason: why `nvml_memory_bytes` is None; None where it is known.
    """

    method: str
    resident_at_start_bytes: int
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None
    nvml_memory_bytes: int | None
    nvml_reason: str | None


class _Meter(Protocol):
    """Something with a peak that can be read and then forgotten."""

    def take(self) -> int:
        """Return the peak in bytes since the last call (or construction) and start anew."""
        ...


class _HighWaterMark:
    """Linux's mark of resident memory. Its files stay open, as a border has to be cheap.

    Raises:
        OSError: where the kernel has no such files, or does not let this process write.
    """

    method = HIGH_WATER

    def __init__(self) -> None:
        self._status = os.open(_STATUS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._status)
        self._clear = os.open(_CLEAR_REFS, os.O_WRONLY)
        weakref.finalize(self, os.close, self._clear)
        self.take()

    def take(self) -> int:
        status = os.pread(self._status, 8192, 0)
        os.write(self._clear, b"5")
        _, found, rest = status.partition(b"VmHWM:")
        if not found:
            raise OSError(f"{_STATUS} holds no VmHWM")
        return int(rest.split(maxsplit=1)[0]) * 1024


class _Resident:
    """Resident memory at the moments it is asked for, the larger of the last two."""

    method = BORDERS

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = self._process.memory_info().rss

    def take(self) -> int:
        before, self._last = self._last, self._process.memory_info().rss
        return max(before, self._last)


def peak_of_process() -> int:
    """Most resident bytes of this process since its start, or since the mark was last set back."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _return_freed_memory() -> None:
    """Give what an earlier run in this process freed back to the system: it is not this run's."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library's alone
        if trim:
            trim(0)


def _resident_meter() -> _HighWaterMark | _Resident:
    try:
        return _HighWaterMark()
    except OSError:
        return _Resident()


class _TorchAllocator:
    """Bytes that torch's allocator has handed out on one GPU."""

    def __init__(self, device: str) -> None:
        import torch

        torch.cuda.init()  # without it there is no peak to reset
        self._cuda = torch.cuda
        self._device = device
        self.take()

    def take(self) -> int:
        peak = int(self._cuda.max_memory_allocated(self._device))
        self._cuda.reset_peak_memory_stats(self._device)
        return peak


class _PhasePeaks:
    """Peaks of one meter by round and phase: every open phase sees every peak, so outer >= inner."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter
        self._open: list[tuple[dict[str, int], str]] = []
        self.rounds: dict[int | None, dict[str, int]] = {}
        self.most = 0

    def start(self, phase: Phase) -> None:
        self.border()
        self._open.append((self.rounds.setdefault(phase.round, {}), phase.name))

    def end(self) -> None:
        self.border()
        self._open.pop()

    def border(self) -> None:
        peak = self._meter.take()
        self.most = max(self.most, peak)
        for peaks, name in self._open:
            peaks[name] = max(peaks.get(name, 0), peak)

    def state(self) -> dict[str, Any]:
        of_rounds = {number: peaks for number, peaks in self.rounds.items() if number is not None}
        return {"rounds": of_rounds, "most": self.most}

    def restore(self, state: Mapping[str, Any]) -> None:
        for number, peaks in state["rounds"].items():
            self.rounds[int(number)] = dict(peaks)
        self.most = max(self.most, state["most"])


class _DriverMemory:
    """What NVML counts for this process; the first failure ends the asking and is kept as the reason."""

    def __init__(self, device: str) -> None:
        self.most: int | None = None
        self.reason: str | None = None
        self._device: NvmlDevice | None = None
        try:
            self._device = NvmlDevice(device)
        except NvmlUnavailable as error:
            self.reason = str(error)

    def sample(self) -> None:
        if self._device is None:
            return
        try:
            used = self._device.process_memory_bytes()
        except NvmlUnavailable as error:
            self.most, self.reason, self._device = None, str(error), None
        else:
            self.most = max(self.most or 0, used)


class Memory(Listener):
    """Peak memory of every phase. The marks belong to the process, so one `Memory` at a time.

    The driver is asked at the ends of rounds and of phases outside of them alone: a call takes long, and
    torch's allocator keeps what it once took, so little is missed.

    Args:
        device: where the work runs, such as "cpu" or "cuda:0".
    """

    def __init__(self, device: str = "cpu") -> None:
        _return_freed_memory()
        self._start = psutil.Process().memory_info().rss
        self._meter = _resident_meter()
        self._resident = _PhasePeaks(self._meter)
        cuda = device.startswith("cuda")
        self._gpu = _PhasePeaks(_TorchAllocator(device)) if cuda else None
        self._driver = _DriverMemory(device) if cuda else None

    @property
    def method(self) -> str:
        """How resident memory is read: `HIGH_WATER` or `BORDERS`."""
        return self._meter.method

    def phase_started(self, phase: Phase) -> None:
        """Give the peak so far to the phases around, and open `phase`."""
        self._resident.start(phase)
        if self._gpu:
            self._gpu.start(phase)

    def phase_ended(self, phase: Phase) -> None:
        """Give the peak since the last border to the open phases, and close `phase`."""
        if self._gpu:
            self._gpu.end()
        self._resident.end()
        if self._driver and phase.round is None:
            self._driver.sample()

    def round_ended(self, record: RoundRecord) -> None:
        """Ask the driver, where there is one."""
        if self._driver:
            self._driver.sample()

    def peak_memory_bytes(self, round: int | None) -> dict[str, int]:
        """Peak resident memory per phase in `round` (None: outside of rounds), the most over the clients."""
        return dict(self._resident.rounds.get(round, {}))

    def peak_gpu_memory_bytes(self, round: int | None) -> dict[str, int]:
        """Most memory handed out by torch's allocator per phase in `round`; empty without a GPU."""
        return dict(self._gpu.rounds.get(round, {})) if self._gpu else {}

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {
            "resident": self._resident.state(),
            "gpu": self._gpu and self._gpu.state(),
            "driver": self._driver and self._driver.most,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        self._resident.restore(state["resident"])
        if self._gpu and state["gpu"]:
            self._gpu.restore(state["gpu"])
        if self._driver and state["driver"]:
            self._driver.most = max(self._driver.most or 0, state["driver"])

    @property
    def totals(self) -> MemoryTotals:
        """What the run came to so far."""
        self._resident.border()
        if self._gpu:
            self._gpu.border()
        if self._driver:
            self._driver.sample()
        return MemoryTotals(
            method=self.method,
            resident_at_start_bytes=self._start,
            peak_memory_bytes=max(self._resident.most, 0 if self.method == HIGH_WATER else peak_of_process()),
            peak_gpu_memory_bytes=self._gpu.most if self._gpu else None,
            nvml_memory_bytes=self._driver.most if self._driver else None,
            nvml_reason=self._driver.reason if self._driver else "the run is not on a GPU",
        )
