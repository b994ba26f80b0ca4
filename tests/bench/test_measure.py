"""What the listeners say of time, memory and bytes, against planted figures."""

import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import environment, memory
from bench.measure.clock import Clock
from bench.measure.memory import BORDERS, HIGH_WATER, Memory
from bench.measure.nvml import NvmlDevice, NvmlUnavailable, driver_version
from flora.events import Events, RoundRecord

MIB = 2**20


class Hands:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_phases_are_summed_over_clients_and_kept_apart_by_round(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    for number, client, seconds in [(1, 0, 1.0), (1, 3, 2.0), (2, 0, 4.0)]:
        with events.phase("train", number, client):
            hands.advance(seconds)
        hands.advance(0.5)  # between phases: counted in the total alone
    with events.phase("load"):
        hands.advance(8.0)
    assert clock.seconds(1) == {"train": 3.0}
    assert clock.seconds(2) == {"train": 4.0}
    assert clock.seconds(7) == {}
    assert clock.setup_seconds == {"load": 8.0}
    assert clock.train_seconds == 7.0
    assert clock.total_seconds == 16.5


def test_an_inner_phase_is_taken_out_of_the_outer(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    with events.phase("train", 1, 0):
        hands.advance(1.0)
        with events.phase("rest", 1, 0):
            hands.advance(10.0)
            with events.phase("load"):
                hands.advance(100.0)
        hands.advance(2.0)
    assert clock.seconds(1) == {"train": 3.0, "rest": 10.0}
    assert clock.setup_seconds == {"load": 100.0}


def test_a_phase_that_fails_is_closed(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    with suppress(ZeroDivisionError), events.phase("train", 1, 0):
        hands.advance(1.0)
        _ = 1 / 0
    hands.advance(5.0)
    with events.phase("aggregate", 1):
        hands.advance(2.0)
    assert clock.seconds(1) == {"train": 1.0, "aggregate": 2.0}


def test_round_seconds_is_the_mean_of_the_work_of_rounds_from_1_on(hands):
    clock = Clock(clock=hands)
    events = Events((clock,))
    assert clock.round_seconds is None
    with events.phase("evaluate", 0):
        hands.advance(1000.0)
    assert clock.round_seconds is None
    for number in (1, 2):
        for phase in ("send", "train", "receive", "aggregate", "evaluate"):
            with events.phase(phase, number):
                hands.advance(float(number))
        with events.phase("rest", number):
            hands.advance(500.0)
    assert clock.round_seconds == (5 * 1.0 + 5 * 2.0) / 2


phase_trees = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.integers(1, 9), inner), max_size=3), max_leaves=8
)


@given(tree=phase_trees)
def test_exclusive_times_add_up_to_the_time_within_phases(tree):
    hands = Hands()
    clock = Clock(clock=hands)
    events = Events((clock,))

    def play(nodes, depth):
        for seconds, inner in nodes:
            with events.phase(f"level {depth}", 1):
                hands.advance(seconds)
                play(inner, depth + 1)

    play(tree, 0)
    assert sum(clock.seconds(1).values()) == clock.total_seconds


def test_only_a_gpu_is_waited_for_and_only_at_borders(monkeypatch, hands):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    for device in ("cpu", "cuda:1"):
        events = Events((Clock(device, clock=hands),))
        with events.phase("train", 1, 0), events.phase("rest", 1, 0):
            pass
        events.payload(1, 0, "up", b"x")
        events.round(RoundRecord(1, 0.5))
    assert waits == ["cuda:1"] * 4


def test_work_queued_in_a_phase_is_charged_to_it(monkeypatch, hands):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: hands.advance(3.0))
    clock = Clock("cuda", clock=hands)
    with Events((clock,)).phase("train", 1, 0):
        pass
    assert clock.seconds(1) == {"train": 3.0}


def plant(mebibytes: int) -> None:
    """Take memory, touch every page, and give it back."""
    block = np.ones(mebibytes * MIB, dtype=np.uint8)
    del block


def high_water_marks_can_be_reset() -> bool:
    return Memory().method == HIGH_WATER


needs_high_water = pytest.mark.skipif(not high_water_marks_can_be_reset(), reason="no /proc/self/clear_refs")


@needs_high_water
def test_a_planted_block_shows_in_its_phase_and_not_in_the_next():
    listener = Memory()
    events = Events((listener,))
    with events.phase("send", 1, 0):
        pass
    with events.phase("train", 1, 0):
        plant(64)
    with events.phase("aggregate", 1):
        pass
    peaks = listener.peak_memory_bytes(1)
    assert peaks["train"] >= peaks["send"] + 60 * MIB
    assert peaks["train"] >= peaks["aggregate"] + 60 * MIB
    assert listener.totals.method == HIGH_WATER
    assert listener.totals.peak_memory_bytes == peaks["train"]
    assert listener.totals.resident_at_start_bytes <= peaks["train"] - 50 * MIB


@needs_high_water
def test_the_peak_over_clients_is_that_of_the_largest():
    listener = Memory()
    events = Events((listener,))
    for client, mebibytes in enumerate((0, 64, 0)):
        with events.phase("train", 1, client):
            plant(mebibytes)
    with events.phase("train", 2, 0):
        pass
    assert listener.peak_memory_bytes(1)["train"] >= listener.peak_memory_bytes(2)["train"] + 60 * MIB


@needs_high_water
def test_an_outer_phase_peaks_no_lower_than_the_inner():
    listener = Memory()
    events = Events((listener,))
    with events.phase("train", 1, 0):
        with events.phase("rest", 1, 0):
            plant(64)
        with events.phase("receive", 1, 0):
            pass
    peaks = listener.peak_memory_bytes(1)
    assert peaks["train"] >= peaks["rest"] >= peaks["receive"] + 60 * MIB


@needs_high_water
def test_totals_see_what_happens_between_phases_and_within_an_open_one():
    listener = Memory()
    with Events((listener,)).phase("train", 1, 0):
        before = listener.totals.peak_memory_bytes
        plant(64)
        within = listener.totals.peak_memory_bytes
    assert within >= before + 60 * MIB
    assert listener.peak_memory_bytes(1)["train"] == within
    plant(128)
    assert listener.totals.peak_memory_bytes >= within + 60 * MIB


@needs_high_water
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc/self/fd")
def test_a_dropped_listener_leaves_no_file_open():
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    listener = Memory()
    assert count() == before + 2
    del listener
    assert count() == before


@pytest.fixture
def no_high_water(monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR_REFS", "/proc/self/no_such_file")


@pytest.mark.usefixtures("no_high_water")
def test_without_the_mark_memory_is_read_at_borders():
    listener = Memory()
    events = Events((listener,))
    with events.phase("send", 1, 0):
        pass
    with events.phase("train", 1, 0):
        block = np.ones(64 * MIB, dtype=np.uint8)
    with events.phase("aggregate", 1):
        del block  # held when the phase begins: at one of its borders
    with events.phase("evaluate", 1):
        pass
    peaks = listener.peak_memory_bytes(1)
    assert listener.totals.method == BORDERS
    assert min(peaks["train"], peaks["aggregate"]) >= max(peaks["send"], peaks["evaluate"]) + 60 * MIB
    assert listener.totals.peak_memory_bytes >= peaks["train"]


@pytest.mark.usefixtures("no_high_water")
@pytest.mark.skipif(sys.platform != "linux", reason="kibibytes on Linux, bytes on macOS")
def test_without_the_mark_the_run_has_the_peak_of_the_process(monkeypatch):
    import resource

    huge = SimpleNamespace(ru_maxrss=2**40)
    monkeypatch.setattr(resource, "getrusage", lambda _: huge)
    assert Memory().totals.peak_memory_bytes == 2**50


def test_on_the_cpu_there_are_no_figures_of_a_gpu():
    listener = Memory("cpu")
    with Events((listener,)).phase("train", 1, 0):
        pass
    totals = listener.totals
    assert (totals.peak_gpu_memory_bytes, totals.nvml_memory_bytes) == (None, None)
    assert totals.nvml_reason == "the run is not on a GPU"
    assert listener.peak_gpu_memory_bytes(1) == {}


class FakeCuda:
    """An allocator whose peak can be set, as torch.cuda shows it."""

    def __init__(self, monkeypatch, uuid: str | None = "aaaa-bbbb") -> None:
        self.allocated = self.peak = 0
        properties = SimpleNamespace() if uuid is None else SimpleNamespace(uuid=uuid)
        for name, function in {
            "init": lambda: None,
            "max_memory_allocated": lambda _: self.peak,
            "reset_peak_memory_stats": lambda _: setattr(self, "peak", self.allocated),
            "current_device": lambda: 1,
            "get_device_properties": lambda _: properties,
            "get_device_name": lambda _: "some GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def plant(self, size: int) -> None:
        self.peak = max(self.peak, self.allocated + size)


class FakeNvml(SimpleNamespace):
    """pynvml with two GPUs; `broken` names the function that fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, monkeypatch, broken: str = "") -> None:
        super().__init__()
        self.broken = broken
        self.used: dict[str, list[tuple[int, int | None]]] = {
            "0": [],
            "1": [],
            "GPU-aaaa-bbbb": [],
            "MIG-cc": [],
        }
        monkeypatch.setitem(sys.modules, "pynvml", self)

    def _answer(self, name: str, value):
        if name == self.broken:
            raise self.NVMLError("driver says no")
        return value

    def nvmlInit(self):  # noqa: N802
        return self._answer("nvmlInit", None)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return self._answer("nvmlSystemGetDriverVersion", "550.1")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes):  # noqa: N802
        if uuid.decode() not in self.used:
            raise self.NVMLError("not found")
        return uuid.decode()

    def nvmlDeviceGetHandleByIndex(self, index: int):  # noqa: N802
        return str(index)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str):  # noqa: N802
        processes = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.used[handle]]
        return self._answer("nvmlDeviceGetComputeRunningProcesses", processes)


def test_gpu_peaks_belong_to_their_phase(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    FakeNvml(monkeypatch, broken="nvmlInit")
    cuda.plant(9000)  # before the run
    listener = Memory("cuda:0")
    events = Events((listener,))
    with events.phase("train", 1, 0):
        cuda.plant(100)
        with events.phase("rest", 1, 0):
            cuda.plant(300)
    with events.phase("evaluate", 1):
        cuda.plant(200)
    assert listener.peak_gpu_memory_bytes(1) == {"train": 300, "rest": 300, "evaluate": 200}
    assert listener.totals.peak_gpu_memory_bytes == 300


def test_the_driver_counts_this_process_on_the_gpu_torch_means(monkeypatch):
    FakeCuda(monkeypatch, uuid="aaaa-bbbb")
    nvml = FakeNvml(monkeypatch)
    listener = Memory("cuda:0")
    events = Events((listener,))
    for used in (500, 700, 600):
        nvml.used["GPU-aaaa-bbbb"] = [(os.getpid() + 1, 9000), (os.getpid(), used)]
        events.round(RoundRecord(1, 0.5))
    assert listener.totals.nvml_memory_bytes == 700
    assert listener.totals.nvml_reason is None


def test_the_driver_is_asked_at_ends_of_rounds_and_set_up_phases_alone(monkeypatch):
    FakeCuda(monkeypatch)
    nvml = FakeNvml(monkeypatch)
    nvml.used["GPU-aaaa-bbbb"] = [(os.getpid(), 1)]
    asked = []
    real = nvml.nvmlDeviceGetComputeRunningProcesses
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda handle: asked.append(handle) or real(handle)
    events = Events((Memory("cuda:0"),))
    with events.phase("load"):
        pass
    with events.phase("train", 1, 0):
        pass
    events.round(RoundRecord(1, 0.5))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("uuid", "visible", "handle"),
    [
        ("aaaa-bbbb", "0,1", "GPU-aaaa-bbbb"),
        ("cc", None, "MIG-cc"),
        (None, None, "1"),
        (None, "3, 0", "0"),
        (None, "GPU-x,GPU-aaaa-bbbb", "GPU-aaaa-bbbb"),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_torch_and_the_driver_mean_the_same_gpu(monkeypatch, device, uuid, visible, handle):
    FakeCuda(monkeypatch, uuid=uuid)
    FakeNvml(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert NvmlDevice(device).handle == handle


@pytest.mark.parametrize(
    ("broken", "uuid", "processes", "reason"),
    [
        ("nvmlInit", "aaaa-bbbb", [], "no NVIDIA driver answers"),
        ("", "unknown", [], "does not find cuda:0"),
        ("nvmlDeviceGetComputeRunningProcesses", "aaaa-bbbb", [], "does not list the GPU's processes"),
        ("", "aaaa-bbbb", [(1, 5)], "lists no process"),
        ("", "aaaa-bbbb", [(os.getpid(), None)], "does not tell the memory"),
    ],
)
def test_a_driver_that_fails_leaves_a_reason_and_the_run_goes_on(
    monkeypatch, broken, uuid, processes, reason
):
    FakeCuda(monkeypatch, uuid=uuid)
    nvml = FakeNvml(monkeypatch, broken)
    nvml.used["GPU-aaaa-bbbb"] = processes
    listener = Memory("cuda:0")
    events = Events((listener,))
    with events.phase("load"):
        pass
    events.round(RoundRecord(1, 0.5))
    assert listener.totals.nvml_memory_bytes is None
    assert reason in str(listener.totals.nvml_reason)
    assert "load" in listener.peak_memory_bytes(None)


def test_a_driver_that_fails_midway_leaves_no_half_figure(monkeypatch):
    FakeCuda(monkeypatch)
    nvml = FakeNvml(monkeypatch)
    nvml.used["GPU-aaaa-bbbb"] = [(os.getpid(), 500)]
    listener = Memory("cuda:0")
    assert listener.totals.nvml_memory_bytes == 500
    nvml.broken = "nvmlDeviceGetComputeRunningProcesses"
    assert listener.totals.nvml_memory_bytes is None
    nvml.broken = ""
    assert "driver says no" in str(listener.totals.nvml_reason)


def test_a_missing_package_is_a_reason_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match="not installed"):
        driver_version()


def test_the_environment_is_plain_and_names_no_host():
    described = environment.describe("cpu")
    text = json.dumps(described)
    assert json.loads(text) == described
    assert described["python"] == platform.python_version()
    assert described["packages"]["torch"]
    assert described["packages"]["numpy"] == np.__version__
    assert described["torch_threads"] == torch.get_num_threads()
    assert described["logical_cores"] >= 1
    assert described["memory_bytes"] > 100 * MIB
    assert described["cpu"]
    assert (described["gpu"], described["gpu_driver"], described["cuda"]) == (None, None, None)
    assert not {"hostname", "host", "node", "user"} & set(described)
    assert platform.node() not in described.values()


def test_a_gpu_is_described_even_where_its_driver_is_silent(monkeypatch):
    FakeCuda(monkeypatch)
    nvml = FakeNvml(monkeypatch)
    described = environment.describe("cuda:0")
    assert (described["gpu"], described["gpu_driver"]) == ("some GPU", "550.1")
    assert described["cuda"] == torch.version.cuda
    nvml.broken = "nvmlSystemGetDriverVersion"
    assert environment.describe("cuda:0")["gpu_driver"] is None


@pytest.fixture
def fresh_environment():
    caches = (environment._machine, environment._packages, environment._checkout_root, environment._commit)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    output = environment._output("git", "-C", str(folder), *identity, *arguments)
    if output is None:
        pytest.skip("git does not work here")
    return output


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout that looks like this suite's, with `environment` running from it."""
    module = tmp_path / "bench" / "measure" / "environment.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "flora-bench"\nversion = "9.8.7"\n')
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(module))
    return tmp_path


@pytest.mark.usefixtures("fresh_environment")
def test_a_checkout_tells_its_commit_and_whether_its_sources_differ(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").touch()  # no source: changes nothing that runs
    described = environment.describe("cpu")
    assert (described["git_commit"], described["git_dirty"]) == (commit, False)
    assert described["suite"] == "9.8.7"
    (checkout / "bench" / "new.py").touch()
    environment._commit.cache_clear()
    assert environment.describe("cpu")["git_dirty"] is True


@pytest.mark.usefixtures("fresh_environment")
def test_variables_of_a_git_hook_do_not_mislead(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert len(environment.describe("cpu")["git_commit"]) == 40


@pytest.mark.usefixtures("fresh_environment")
@pytest.mark.parametrize("other", ['[project]\nname = "other"\n', "not toml", None])
def test_a_checkout_of_something_else_is_not_taken_for_ours(checkout, other):
    if other is None:
        (checkout / "pyproject.toml").unlink()
    else:
        (checkout / "pyproject.toml").write_text(other)
    described = environment.describe("cpu")
    assert (described["git_commit"], described["git_dirty"]) == (None, None)


@pytest.mark.usefixtures("fresh_environment")
def test_without_git_the_commit_is_unknown(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert checkout.exists()
    described = environment.describe("cpu")
    assert (described["git_commit"], described["git_dirty"]) == (None, None)


def test_the_processor_is_read_from_its_file_or_not_at_all(tmp_path):
    file = tmp_path / "cpuinfo"
    assert environment._cpuinfo_name(file) is None
    file.write_text("processor : 0\nmodel name\t: Some CPU @ 2: GHz\n")
    assert environment._cpuinfo_name(file) == "Some CPU @ 2: GHz"


def test_static_parts_are_asked_for_once(monkeypatch):
    environment.describe("cpu")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    environment.describe("cpu")
