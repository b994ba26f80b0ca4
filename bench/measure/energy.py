"""What a run costs in energy: the GPU's by NVML, the processor's by RAPL, where they can be read.

Both count for the hardware and not for a process: what else ran at the time is in the figures. NVML's counter
is that of the whole board, its memory and its idle draw included. RAPL's are those of processor packages, the
whole chip with what it draws while idle, but no memory, disk or fan; Linux shows those of Intel and AMD alike
under `/sys/class/powercap`, and since CVE-2020-8694 to root alone. The counters move on in steps, the GPU's
of up to a tenth of a second, so the joules of a round no longer than that are rough.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from bench.measure.nvml import NvmlDevice, NvmlUnavailable
from flora.events import Listener, Phase, RoundRecord

POWERCAP = Path("/sys/class/powercap")

_MICRO = 10**6


class EnergyUnavailable(RuntimeError):
    """A counter cannot be read; the message is the reason, in one line."""


class _Counter(Protocol):
    """Joules used so far, from any origin."""

    def joules(self) -> float:
        """Return them.

        Raises:
            EnergyUnavailable: if they cannot be read.
        """
        ...


class Energy(Listener):
    """Joules of every round, of the GPU that the run is on and of the processor.

    The counters are read when the listener is made and at the ends of rounds and of phases outside of them
    alone, as a call may take milliseconds. Energy between two rounds belongs to the later one. A counter that
    fails is not asked again, and its figures are unknown from then on, those of the whole run included.

    Args:
        device: where the work runs, such as "cpu" or "cuda:0".
        powercap: the folder of RAPL's counters.
    """

    def __init__(self, device: str = "cpu", powercap: Path = POWERCAP) -> None:
        gpu = (lambda: _Board(device)) if device.startswith("cuda") else _no_gpu
        self._meters = {"gpu": _Meter(gpu), "cpu": _Meter(lambda: Packages(powercap))}
        self._main = self._meters["gpu" if device.startswith("cuda") else "cpu"]

    def phase_ended(self, phase: Phase) -> None:
        """Read the counters after a phase outside of rounds."""
        if phase.round is None:
            self._take(None)

    def round_ended(self, record: RoundRecord) -> None:
        """Read the counters after a round."""
        self._take(record.round)

    def _take(self, round: int | None) -> None:
        for meter in self._meters.values():
            meter.take(round)

    def joules(self, round: int | None) -> float | None:
        """Joules in `round` (None: outside of rounds) of what the run is on, GPU or processor; or None.

        Not of both together: where the processor's cannot be read, a sum would be of something else.
        """
        return self._main.joules(round)

    @property
    def total_joules(self) -> float | None:
        """The same, since construction."""
        self._take(None)
        return self._main.total_joules

    @property
    def totals(self) -> dict[str, dict[str, Any]]:
        """`{"joules": float or None, "reason": why it is None}` since construction, of "gpu" and "cpu"."""
        self._take(None)
        return {
            name: {"joules": meter.total_joules, "reason": meter.reason}
            for name, meter in self._meters.items()
        }

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {name: meter.state() for name, meter in self._meters.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        for name, meter in self._meters.items():
            meter.restore(state[name])


class _Meter:
    """What a counter has gone up by in each round; its first failure ends the asking and is the reason."""

    def __init__(self, make: Callable[[], _Counter]) -> None:
        self.reason: str | None = None
        self._joules: dict[int | None, float] = defaultdict(float)
        self._counter: _Counter | None = None
        try:
            self._counter = make()
            self._last = self._counter.joules()
        except EnergyUnavailable as error:
            self._fail(error)

    def take(self, round: int | None) -> None:
        if self._counter is None:
            return
        try:
            now = self._counter.joules()
        except EnergyUnavailable as error:
            self._fail(error)
        else:
            self._joules[round] += now - self._last
            self._last = now

    def _fail(self, error: EnergyUnavailable) -> None:
        self._counter, self.reason = None, str(error)

    def joules(self, round: int | None) -> float | None:
        return self._joules.get(round)

    @property
    def total_joules(self) -> float | None:
        return sum(self._joules.values()) if self.reason is None else None

    def state(self) -> dict[str, Any]:
        return {"joules": list(self._joules.items()), "reason": self.reason}

    def restore(self, state: Mapping[str, Any]) -> None:
        for number, joules in state["joules"]:
            self._joules[number] += joules
        self.reason = self.reason or state["reason"]


def _no_gpu() -> _Counter:
    raise EnergyUnavailable("the run is not on a GPU")


class _Board:
    """The counter of a GPU's board."""

    def __init__(self, device: str) -> None:
        try:
            self._device = NvmlDevice(device)
        except NvmlUnavailable as error:
            raise EnergyUnavailable(str(error)) from error

    def joules(self) -> float:
        try:
            return self._device.energy_joules()
        except NvmlUnavailable as error:
            raise EnergyUnavailable(str(error)) from error


class Packages:
    """The counters of all processor packages, which start anew from 0 when they are full.

    A counter of 32 bits in units of 61 microjoules is full after 20 minutes at 200 W, so it has to be read
    more often than that: starting anew twice between two readings looks as if it were once.

    Args:
        powercap: a folder laid out as `/sys/class/powercap`, with `intel-rapl:N` for each package.

    Raises:
        EnergyUnavailable: there is no counter, or this process may not read it.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = [
            _Package(folder) for folder in sorted(powercap.glob("intel-rapl:*")) if _whole(folder)
        ]
        if not self._packages:
            raise EnergyUnavailable(f"no counters of the processor's energy (RAPL) in {powercap}")

    def joules(self) -> float:
        """Return what all packages used since construction.

        Raises:
            EnergyUnavailable: a counter can no longer be read.
        """
        return sum(package.microjoules() for package in self._packages) / _MICRO


def _whole(folder: Path) -> bool:
    """Whether a counter is a package's: cores and memory have some within it, `psys` is the platform's."""
    # where the name cannot be read, nothing can: the counter below says so
    return folder.name.count(":") == 1 and (_read(folder / "name") or "package").startswith("package")


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


class _Package:
    """One package's counter, its starting anew made good for."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._full = self._number(folder / "max_energy_range_uj")
        self._last = self._number(self._file)
        self._used = 0

    def microjoules(self) -> int:
        now = self._number(self._file)
        more = now - self._last
        self._used += more if more >= 0 else more + self._full
        self._last = now
        return self._used

    @staticmethod
    def _number(file: Path) -> int:
        try:
            return int(file.read_text())
        except PermissionError as error:
            raise EnergyUnavailable(f"{file} is not readable: RAPL is for root alone") from error
        except (OSError, ValueError) as error:
            raise EnergyUnavailable(f"{file} is not readable ({error})") from error


class PowerIntegral:
    """Energy from power that is sampled now and then: a second opinion on a GPU's counter.

    Power is taken to change evenly between two samples (the trapezoidal rule), so what flares up and dies
    down between them is missed.

    Args:
        device: where the work runs, such as "cuda:0".
        clock: seconds from any origin, never going back.

    Raises:
        NvmlUnavailable: if the driver is missing, knows no such GPU or does not tell its power.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = NvmlDevice(device)
        self._clock = clock
        self._samples: list[tuple[float, float]] = []
        self.sample()

    def sample(self) -> None:
        """Read the power now.

        Raises:
            NvmlUnavailable: if the driver no longer tells it.
        """
        self._samples.append((self._clock(), self._device.power_watts()))

    @property
    def joules(self) -> float:
        """Energy from the first sample to the last."""
        return trapezoid(self._samples)


def trapezoid(samples: Sequence[tuple[float, float]]) -> float:
    """Integrate watts over seconds.

    Args:
        samples: (second, watts), in the order of time.

    Returns:
        joules.
    """
    pairs = pairwise(samples)
    return sum((later - now) * (before + after) / 2 for (now, before), (later, after) in pairs)
