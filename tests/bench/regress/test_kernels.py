"""The kernel set: what it measures, where it is kept, and what it must leave alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import execute, store
from bench.code_version import imported
from bench.config import RunConfig
from bench.definition import HARNESS
from bench.execute import Watcher, run_matrix
from bench.merging import figures
from bench.regress import kernels
from bench.regress.kernels import KERNELS, Kernels, kernels_of, measure_kernels, same_kind
from flora.errors import BadInput
from flora.events import Listener

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
MACHINE = {"cpu": "Imaginary 9000", "cores": 2, "torch": "2.15.0", "threads": 1, "device": "cpu"}
ONE = Kernels({"product": 1e-3, "copy": 2e-3, "launch": 4e-3}, MACHINE)
SMALL = {
    **{"method": "linear_probe", "device": "cpu", "clients": 2, "rounds": 2},
    "data": {"max_train": 20, "max_test": 20},
}


class Told(Listener):
    """Notes what a run tells, and raises at the end of a round if asked to."""

    def __init__(self, notes, fails_at=None):
        self.notes, self.fails_at = notes, fails_at

    def phase_started(self, phase):
        self.notes.append(phase.name)

    def phase_ended(self, phase):
        self.notes.append(phase.name)

    def round_ended(self, record):
        if record.round == self.fails_at:
            raise RuntimeError("lost")


class Watching(Watcher):
    def __init__(self, listener):
        self.listener = listener

    def cell_started(self, config):
        return self.listener


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Nothing here is timed."""
    monkeypatch.setattr(execute, "warm_up", lambda device: 0.0)


def run(folder, listener=None, **options):
    cells = [RunConfig.read(SMALL)]
    (outcome,) = run_matrix(cells, folder, watcher=Watching(listener or Listener()), **options)
    return outcome


def test_the_unit_is_the_geometric_mean():
    assert ONE.unit_seconds == pytest.approx(2e-3)


def test_on_a_machine_twice_as_slow_a_time_in_units_is_the_same():
    slow = replace(ONE, seconds={name: 2 * x for name, x in ONE.seconds.items()})
    assert 6.0 / slow.unit_seconds == pytest.approx(3.0 / ONE.unit_seconds)


def test_around_something_stand_the_means_and_how_far_the_machine_drifted():
    after = replace(ONE, seconds={name: 1.5 * x for name, x in ONE.seconds.items()})
    both = Kernels.around(ONE, after, busy=True)
    assert both.busy
    assert both.seconds["copy"] == pytest.approx(2.5e-3)
    assert both.drift == pytest.approx(0.5)
    assert both.machine == MACHINE


def test_what_is_written_is_read_back():
    kept = json.loads(json.dumps(replace(ONE, drift=0.1, busy=True).to_dict()))
    assert Kernels.read(kept) == replace(ONE, drift=0.1, busy=True)
    assert kept["unit_seconds"] == ONE.unit_seconds
    assert Kernels.read({name: x for name, x in kept.items() if name not in ("drift", "busy")}) == ONE


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": {"product": 1e-3, "copy": 2e-3}},
        {"seconds": {**ONE.seconds, "copy": 0.0}},
        {"seconds": {**ONE.seconds, "copy": float("nan")}},
        {"seconds": {**ONE.seconds, "copy": "fast"}},
        {"seconds": None},
        {"machine": 3},
        {"drift": "none"},
    ],
    ids=str,
)
def test_what_is_no_kernel_set_is_refused_in_one_line(change):
    with pytest.raises(BadInput, match=r"^kernels: [^\n]+measure again$"):
        Kernels.read({**ONE.to_dict(), **change})


@pytest.mark.parametrize("field", MACHINE)
def test_machines_that_differ_in_anything_are_of_two_kinds(field):
    assert same_kind(MACHINE, dict(MACHINE))
    assert not same_kind(MACHINE, {**MACHINE, field: "other"})


def test_what_only_one_side_knows_of_its_machine_tells_no_kinds_apart():
    assert same_kind(MACHINE, {"cpu": MACHINE["cpu"]})
    assert not same_kind(MACHINE, {})


def test_measuring_gives_a_time_for_each_kernel_and_draws_nothing():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = measure_kernels()
    assert found.seconds.keys() == set(KERNELS)
    assert all(x > 0 for x in found.seconds.values())
    assert Kernels.read(found.to_dict()) == found
    assert same_kind(found.machine, measure_kernels().machine)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_runs_threads_are_those_it_is_measured_with():
    threads = torch.get_num_threads()
    found = kernels_of(RunConfig.read({"compute": {"threads": threads + 1}, "device": "cpu"}))
    assert found.machine["threads"] == threads + 1
    assert torch.get_num_threads() == threads


def test_a_gpu_is_waited_for_after_every_kernel_and_its_memory_given_back(monkeypatch):
    calls = []
    made = {name: lambda name=name: calls.append(name) for name in KERNELS}
    monkeypatch.setattr(kernels, "_kernels", lambda device: made)
    monkeypatch.setattr(kernels, "REPEATS", 2)
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    found = measure_kernels("cuda:1")
    assert found.machine["device"] == "GPU of cuda:1"
    *kernels_run, last = calls
    assert last == "emptied"
    assert set(kernels_run[::2]) == set(KERNELS)
    assert set(kernels_run[1::2]) == {"cuda:1"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_on_itself():
    reserved = torch.cuda.memory_reserved()
    found = measure_kernels("cuda")
    assert found.machine["device"] == torch.cuda.get_device_name("cuda")
    assert not same_kind(found.machine, measure_kernels().machine)
    assert torch.cuda.memory_reserved() <= reserved


def test_a_run_keeps_the_kernels_measured_outside_of_all_that_it_measures(monkeypatch, tmp_path):
    notes, measure = [], kernels.kernels_of

    def noted(config):
        notes.append("kernels")
        return measure(config)

    def full(device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "kernels_of", noted)
        result = store.load_run(run(tmp_path / "a", Told(notes)).path)
    kept = result["kernels"]
    assert notes[0] == notes[-1] == "kernels"
    assert notes.count("kernels") == 2
    assert "train" in notes
    assert kept["busy"] == result["load"]["busy"]
    assert Kernels.read(kept).to_dict() == kept

    # no run is lost where there is no room for them, and none differs by them
    monkeypatch.setattr(kernels, "measure_kernels", full)
    without = store.load_run(run(tmp_path / "b").path)
    assert without["kernels"] is None
    assert figures(without) == figures(result)
    assert without["definition"] == result["definition"]


def test_a_run_of_several_processes_has_no_one_speed(tmp_path):
    failed = run(tmp_path, Told([], fails_at=1), checkpoint_rounds=1)
    assert failed.status == "failed"
    whole = store.load_run(run(tmp_path, checkpoint_rounds=1).path)
    assert len(whole["sittings"]) == 2
    assert whole["kernels"] is None


def test_what_is_wrong_with_the_kernels_themselves_is_told(monkeypatch):
    def broken(device):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "measure_kernels", broken)
    with pytest.raises(RuntimeError, match="no such instruction"):
        kernels_of(RunConfig.read({"device": "cpu"}))


def test_what_runs_follow_from_holds_nothing_of_comparing_them():
    assert not [name for name in imported(HARNESS) if name.startswith("bench.regress")]


def test_reading_kernels_does_not_load_torch():
    loaded = "import sys, bench.regress.kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def probe(pytester, monkeypatch):
    """Runs a probe among what surrounds those of tests/perf."""
    # by which pytest-benchmark would take itself for a worker that shares the machine, and time nothing
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    pytester.makeconftest((ROOT / "tests/perf/conftest.py").read_text())
    pytester.makepyfile("def test_it(benchmark):\n    assert benchmark(sum, [1, 2]) == 3\n")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_a_probe_leaves_the_kernels_beside_its_time(probe, pytester):
    probe("--benchmark-json=found.json", "--benchmark-max-time=0.01").assert_outcomes(passed=1)
    (found,) = json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    kept = found["extra_info"]["kernels"]
    assert Kernels.read(kept).to_dict() == kept


def test_under_another_timer_nothing_is_measured(probe, pytester):
    pytester.makepyfile(
        other_timer="""
        import pytest


        class Timer:
            def __init__(self):
                self.extra_info = {}

            def __call__(self, function, *args):
                return function(*args)


        @pytest.fixture
        def benchmark():
            timer = Timer()
            yield timer
            assert timer.extra_info == {}
        """
    )
    pytester.syspathinsert()
    probe("-p", "no:benchmark", "-p", "other_timer").assert_outcomes(passed=1)


def test_probes_that_need_no_model_load_none():
    areas = ("aggregation", "config", "payload", "splits", "startup")
    modules = ", ".join(f"tests.perf.test_{area}" for area in areas)
    loaded = f"import sys, {modules}; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0
