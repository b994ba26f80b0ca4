"""What others used of the machine, from planted times and from a process that really spins."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import load
from bench.measure.load import MachineLoad, Sample, take_sample, usable_cores

CORES = 4


def load_of(wall, own, others, cores=CORES):
    """What a run comes to in which this much passed, from origins that do not matter."""
    samples = iter([Sample(100.0, 7.0, 5000.0), Sample(100.0 + wall, 7.0 + own, 5000.0 + own + others)])
    return MachineLoad(lambda: next(samples), cores).result()


@pytest.mark.parametrize(
    ("wall", "own", "others", "share", "busy"),
    [
        (10.0, 5.0, 0.0, 0.0, False),
        (10.0, 5.0, 3.9, 0.0975, False),
        (10.0, 5.0, 4.1, 0.1025, True),
        (10.0, 0.0, 40.0, 1.0, True),
        (10.0, 38.0, 2.0, 0.05, True),  # little, but nothing was left
        (10.0, 37.0, 2.0, 0.05, False),
        (10.0, 39.5, 0.5, 0.0125, False),  # all to itself but for what a system always does
        (10.0, 5.0, -0.3, 0.0, False),  # ticks of a clock
        (0.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_what_others_used_is_what_was_used_less_ones_own(wall, own, others, share, busy):
    result = load_of(wall, own, others)
    assert result["others_busy_share"] == pytest.approx(share)
    assert result["busy"] is busy
    assert result["cpu_seconds"] == pytest.approx(own)
    assert result["cores"] == CORES
    assert result["threads"] == psutil.Process().num_threads()
    assert set(result) == {"cores", "threads", "others_busy_share", "busy", "cpu_seconds"}


@given(wall=st.floats(0, 1e6), own=st.floats(0, 1e6), others=st.floats(-1e3, 1e6), cores=st.integers(1, 512))
def test_a_share_is_a_share(wall, own, others, cores):
    result = load_of(wall, own, others, cores)
    assert 0 <= result["others_busy_share"] <= 1
    assert not result["busy"] or result["others_busy_share"] > load.CROWDED_SHARE


@pytest.fixture
def machine(monkeypatch):
    """Four cores, of which this process may use the first and the last."""
    fields = {
        "user": 10.0,
        "nice": 1.0,
        "system": 2.0,
        "idle": 1000.0,
        "iowait": 500.0,
        "irq": 0.25,
        "softirq": 0.5,
    }
    cores = [SimpleNamespace(**fields, steal=float(core)) for core in range(4)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(load, "usable_cores", lambda: [0, 3])
    return cores


def test_the_cores_one_may_use_are_busy_but_for_idling_and_waiting(machine):
    assert take_sample().busy == 2 * 13.75 + 3.0  # what a host took is taken by others
    for core in machine:
        del core.steal, core.iowait, core.softirq  # as where a system does not tell them
    assert take_sample().busy == 2 * 13.25
    assert MachineLoad().result()["cores"] == 2


def test_a_core_that_is_not_listed_is_not_looked_at(machine):
    del machine[1:]
    assert take_sample().busy == 13.75


SPIN = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_cpu_time_of_children_is_ones_own_once_they_have_ended():
    measured = MachineLoad()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert measured.result()["cpu_seconds"] >= 0.45


def test_the_cpu_time_of_children_is_ones_own_while_they_run():
    measured = MachineLoad()
    script = f"{SPIN}\nprint('spun', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "spun\n"
        during = measured.result()["cpu_seconds"]
        child.communicate("\n")
    assert during >= 0.45
    assert measured.result()["cpu_seconds"] >= during  # waited for, it is counted elsewhere, and once


def test_a_process_that_is_gone_used_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
    assert load._cpu_seconds(process) == 0.0


def test_there_are_cores_to_use():
    cores = usable_cores()
    assert cores == sorted(set(cores))
    assert 1 <= len(cores) <= psutil.cpu_count()
