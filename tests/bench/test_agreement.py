"""Where two instruments measure the same thing they agree, within a tolerance that each test states."""

import os
import time

import psutil
import pytest
import torch

from bench.measure.load import MachineLoad
from bench.measure.memory import HIGH_WATER, Memory
from bench.measure.tensors import Counter
from flora.events import Events
from tests.bench.test_measure import FakeCuda, FakeNvml

MIB = 2**20
BLOCK = 64 * MIB
NEAR = {"rel": 0.05, "abs": 2 * MIB}  # the interpreter, and the C library, take and give back a little


@pytest.fixture
def memory() -> Memory:
    memory = Memory()
    if memory.method != HIGH_WATER:
        pytest.skip("no /proc/self/clear_refs")
    return memory


def planted() -> torch.Tensor:
    return torch.ones(BLOCK, dtype=torch.uint8)


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_the_peak_of_a_phase_is_what_the_system_says_and_what_was_allocated(memory):
    events = Events((memory,))
    with events.phase("before", 1):
        pass
    start = resident()
    with events.phase("train", 1):
        block = planted()
        grown = resident() - start
    del block
    peaks = memory.peak_memory_bytes(1)
    assert peaks["train"] - peaks["before"] == pytest.approx(grown, **NEAR)
    assert grown == pytest.approx(BLOCK, **NEAR)


def test_resident_memory_peaks_as_the_count_of_live_tensors_does(memory):
    with Counter():
        torch.ones(1) + 1  # the first count loads modules
    events = Events((memory,))
    with events.phase("before", 1):
        pass
    with events.phase("train", 1), Counter() as counter:
        first = planted()
        second = first + 1
        del first
        third = second + 1  # takes the place of the first
        del second, third
    peaks = memory.peak_memory_bytes(1)
    assert counter.peak_bytes == 2 * BLOCK
    assert peaks["train"] - peaks["before"] == pytest.approx(counter.peak_bytes, **NEAR)


def test_the_driver_counts_no_less_than_the_allocator_handed_out(monkeypatch):
    # it is asked after the peak, but torch keeps what it took, and its context of 300 MiB comes on top
    cuda, nvml = FakeCuda(monkeypatch), FakeNvml(monkeypatch)
    listener = Memory("cuda:0")
    events = Events((listener,))
    for handed_out, held in ((100, 400), (700, 1000), (200, 1000)):
        with events.phase("load"):
            cuda.plant(handed_out * MIB)
            nvml.used["GPU-aaaa-bbbb"] = [(os.getpid(), held * MIB)]
    totals = listener.totals
    assert totals.peak_gpu_memory_bytes == 700 * MIB
    assert totals.nvml_memory_bytes == 1000 * MIB


@pytest.mark.gpu
def test_a_real_driver_counts_no_less_than_the_allocator_handed_out():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    listener = Memory("cuda:0")
    with Events((listener,)).phase("load"):
        block = torch.ones(BLOCK, dtype=torch.uint8, device="cuda:0")
    del block
    totals = listener.totals
    if totals.nvml_memory_bytes is None:
        pytest.skip(str(totals.nvml_reason))
    assert BLOCK <= totals.peak_gpu_memory_bytes <= totals.nvml_memory_bytes


def test_the_cpu_time_of_this_process_is_what_python_says():
    before, measured = time.process_time(), MachineLoad()
    while time.process_time() < before + 0.3:
        pass
    # the system counts in ticks of 10 ms, user and system time each
    assert measured.result()["cpu_seconds"] == pytest.approx(time.process_time() - before, abs=0.1)
