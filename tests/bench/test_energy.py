"""What the listeners say of energy, by planted counters that move on, start anew, fail or are missing."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.measure.energy as energy_module
from bench.measure.energy import Energy, EnergyUnavailable, Packages, PowerIntegral, trapezoid
from bench.measure.nvml import NvmlDevice, NvmlUnavailable
from flora.events import Events, RoundRecord

FULL = 1_000_000_000


class Board(SimpleNamespace):
    """pynvml with one GPU that draws `watts` while its clock is moved; `broken` names what fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, watts: float = 100.0) -> None:
        super().__init__(watts=watts, seconds=50.0, millijoules=9e6, broken="", calls=0)

    def run(self, seconds: float, watts: float | None = None) -> None:
        """Let time pass, the power changing evenly to `watts`."""
        after = self.watts if watts is None else watts
        self.millijoules += 1000 * seconds * (self.watts + after) / 2
        self.seconds += seconds
        self.watts = after

    def _answer(self, name: str, value: float) -> int:
        self.calls += 1
        if name == self.broken:
            raise self.NVMLError("Not Supported")
        return int(value)

    def nvmlInit(self):  # noqa: N802
        self._answer("nvmlInit", 0)

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes):  # noqa: N802
        return uuid.decode()

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str):  # noqa: N802
        return self._answer("energy", self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle: str):  # noqa: N802
        return self._answer("power", 1000 * self.watts)


@pytest.fixture
def board(monkeypatch) -> Board:
    import torch

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="aaaa"))
    board = Board()
    monkeypatch.setitem(sys.modules, "pynvml", board)
    return board


class Powercap:
    """A folder laid out as the kernel's, with two packages, their cores, and the whole platform."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, kind in {
            "intel-rapl": None,
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:1": "package-1",
            "intel-rapl:2": "psys",
            "intel-rapl-mmio:0": "package-0",
        }.items():
            (folder / name).mkdir()
            if kind:
                (folder / name / "name").write_text(f"{kind}\n")
                (folder / name / "max_energy_range_uj").write_text(f"{FULL}\n")
                (folder / name / "energy_uj").write_text("123456789\n")

    def counter(self, number: int) -> Path:
        return self.folder / f"intel-rapl:{number}" / "energy_uj"

    def run(self, joules: float, number: int = 0) -> None:
        file = self.counter(number)
        file.write_text(f"{(int(file.read_text()) + round(joules * 1e6)) % FULL}\n")


@pytest.fixture
def powercap(tmp_path) -> Powercap:
    return Powercap(tmp_path)


def test_the_joules_of_a_round_on_a_gpu_are_those_of_its_board(board, powercap):
    energy = Energy("cuda:0", powercap.folder)
    events = Events((energy,))
    with events.phase("load"):
        board.run(3.0)
        powercap.run(7.0)
    for number in (1, 2):
        with events.phase("train", number, 0):
            board.run(float(number))
            powercap.run(5.0)
        powercap.run(20.0, number=1)
        events.round(RoundRecord(number, 0.5))
    assert energy.joules(None) == pytest.approx(300)
    assert energy.joules(1) == pytest.approx(100)
    assert energy.joules(2) == pytest.approx(200)
    assert energy.joules(3) is None
    board.run(0.5)  # after the last round: in the totals alone
    assert energy.totals == {
        "gpu": {"joules": pytest.approx(650), "reason": None},
        "cpu": {"joules": pytest.approx(57), "reason": None},
    }


def test_counters_are_read_at_ends_of_rounds_and_of_phases_outside_of_them_alone(board, powercap):
    events = Events((Energy("cuda:0", powercap.folder),))
    before = board.calls
    with events.phase("load"):
        pass
    with events.phase("train", 1, 0), events.phase("rest", 1, 0):
        events.payload(1, 0, "up", b"x")
    assert board.calls == before + 1
    events.round(RoundRecord(1, 0.5))
    assert board.calls == before + 2


def test_without_a_gpu_the_processor_counts_alone_and_the_driver_is_left_alone(board, powercap):
    energy = Energy("cpu", powercap.folder)
    powercap.run(5.0)
    energy.round_ended(RoundRecord(1, 0.5))
    assert energy.joules(1) == pytest.approx(5.0)
    assert energy.totals["gpu"] == {"joules": None, "reason": "the run is not on a GPU"}
    assert board.calls == 0


def test_without_any_counter_there_are_reasons_and_no_joules(tmp_path):
    energy = Energy("cpu", tmp_path / "nothing")
    energy.round_ended(RoundRecord(1, 0.5))
    assert energy.joules(1) is None
    assert energy.totals["cpu"] == {
        "joules": None,
        "reason": f"no counters of the processor's energy (RAPL) in {tmp_path / 'nothing'}",
    }


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("nvmlInit", "no NVIDIA driver answers"),
        ("energy", "does not tell the energy it used (Not Supported)"),
    ],
)
def test_a_gpu_without_a_counter_leaves_a_reason_and_no_joules(board, powercap, broken, reason):
    board.broken = broken
    energy = Energy("cuda:0", powercap.folder)
    powercap.run(5.0)
    energy.round_ended(RoundRecord(1, 0.5))
    assert energy.joules(1) is energy.total_joules is None  # the processor's would be of something else
    totals = energy.totals
    assert totals["gpu"]["joules"] is None
    assert reason in totals["gpu"]["reason"]
    assert totals["cpu"]["joules"] == pytest.approx(5.0)


def test_a_board_that_fails_midway_leaves_no_half_figure_and_the_run_goes_on(board, powercap):
    energy = Energy("cuda:0", powercap.folder)
    board.run(1.0)
    energy.round_ended(RoundRecord(1, 0.5))
    board.broken = "energy"
    powercap.run(5.0)
    energy.round_ended(RoundRecord(2, 0.5))
    board.broken = ""
    calls = board.calls
    energy.round_ended(RoundRecord(3, 0.5))
    assert board.calls == calls  # not asked again
    assert (energy.joules(1), energy.joules(2)) == (pytest.approx(100), None)
    assert energy.totals["gpu"]["joules"] is None
    assert "Not Supported" in energy.totals["gpu"]["reason"]
    assert energy.totals["cpu"]["joules"] == pytest.approx(5.0)


def test_packages_that_fail_midway_leave_no_half_figure(powercap):
    energy = Energy("cpu", powercap.folder)
    powercap.counter(1).write_text("not a number")
    energy.round_ended(RoundRecord(1, 0.5))
    assert energy.joules(1) is None
    assert energy.totals["cpu"]["joules"] is None
    assert "intel-rapl:1/energy_uj is not readable" in energy.totals["cpu"]["reason"]


def test_a_counter_for_root_alone_is_a_reason(powercap, monkeypatch):
    def refuse(self, *arguments, **more):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(energy_module.Path, "read_text", refuse)
    reason = Energy("cpu", powercap.folder).totals["cpu"]["reason"]
    assert reason.endswith("is not readable: RAPL is for root alone")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_reason(powercap):
    powercap.counter(0).chmod(0)
    with pytest.raises(EnergyUnavailable, match="for root alone"):
        Packages(powercap.folder)


@given(steps=st.lists(st.integers(0, FULL - 1), max_size=20))
def test_a_counter_that_starts_anew_goes_on(tmp_path_factory, steps):
    powercap = Powercap(tmp_path_factory.mktemp("powercap"))
    packages = Packages(powercap.folder)
    for microjoules in steps:
        powercap.run(microjoules / 1e6, number=1)
        packages.joules()
    assert packages.joules() == pytest.approx(sum(steps) / 1e6)


# --- the counter against the integral of power --------------------------------------------------------


def test_the_counter_and_the_integral_of_power_agree(board, tmp_path):
    # power goes up and down evenly, and is sampled at other moments than those at which it turns: within 5 %
    counter = Energy("cuda:0", tmp_path)
    power = PowerIntegral("cuda:0", clock=lambda: board.seconds)
    for turn in range(40):
        board.run(0.7, watts=300.0 if turn % 2 else 60.0)
        for _ in range(3):
            board.run(0.11)
            power.sample()
    measured = counter.totals["gpu"]["joules"]
    assert measured > 1000
    assert power.joules == pytest.approx(measured, rel=0.05)


def test_the_integral_of_power_that_changes_evenly_is_exact(board, tmp_path):
    counter = Energy("cuda:0", tmp_path)
    power = PowerIntegral("cuda:0", clock=lambda: board.seconds)
    for watts in (50.0, 350.0, 350.0, 10.0):
        board.run(2.0, watts)
        power.sample()
    assert power.joules == pytest.approx(counter.totals["gpu"]["joules"], abs=0.01)


@pytest.mark.parametrize(
    ("samples", "joules"), [([], 0), ([(3, 7)], 0), ([(0, 10), (2, 10)], 20), ([(0, 0), (4, 8), (5, 8)], 24)]
)
def test_closed_forms_of_the_integral(samples, joules):
    assert trapezoid(samples) == joules


def test_a_gpu_that_does_not_tell_its_power_is_a_reason(board):
    board.broken = "power"
    with pytest.raises(NvmlUnavailable, match=r"does not tell the power it draws \(Not Supported\)"):
        PowerIntegral("cuda:0")


def test_nvml_counts_in_thousandths(board):
    device = NvmlDevice("cuda:0")
    assert (device.energy_joules(), device.power_watts()) == (9000.0, 100.0)


@pytest.mark.gpu
def test_a_real_board_counts_what_it_draws():
    import time

    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    counter, power = Energy("cuda:0"), PowerIntegral("cuda:0")
    if counter.totals["gpu"]["reason"]:
        pytest.skip(counter.totals["gpu"]["reason"])
    block = torch.ones(4096, 4096, device="cuda")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        block = block @ block / 4096
        torch.cuda.synchronize()
        power.sample()
    # power may be the mean over the last second, so the climb at the start is missed by as much
    assert power.joules == pytest.approx(counter.totals["gpu"]["joules"], rel=0.25)
