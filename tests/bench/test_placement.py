"""Which GPU a cell gets: never more than there is, the heaviest first, and none left waiting for ever."""

# ruff: noqa: N802 (NVML names its functions so)

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.estimate
from bench import placement
from bench.config import RunConfig
from bench.placement import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    VISIBLE,
    Gpu,
    Placed,
    Prediction,
    Wish,
    next_to_start,
    predictions,
    visible_gpus,
)
from flora.group import ACTIVATION_COPIES, GPU_SHARE

GIB = 2**30


def on_cuda(**fields):
    """A cell for a GPU, whether this machine has one or not."""
    device = fields.pop("device", "cuda")
    return RunConfig.read({"method": "flora", "device": "cpu", **fields}).model_copy(
        update={"device": device}
    )


def gpu(name, free, total=80, **more):
    return Gpu(name, total * GIB, free if free is None else free * GIB, **more)


def wish(gib, **more):
    """A cell that takes so many GiB of a GPU, all allowances made."""
    return Wish(peak_bytes=int((gib * GIB - CONTEXT_BYTES) / FRAGMENTATION), **more)


def chosen(wishes, gpus, placed=()):
    found = next_to_start(wishes, gpus, placed)
    return None if found is None else (found[0], found[1] and found[1].name)


# --- one choice ----------------------------------------------------------------------------------------


def test_a_cell_that_needs_no_gpu_starts_whatever_the_others_wait_for():
    assert chosen([None], []) == (0, None)
    assert chosen([wish(50), None], [gpu("a", 80)], [Placed("a", 40 * GIB)]) == (1, None)


def test_the_gpu_with_the_fewest_cells_is_taken_and_then_the_one_with_the_most_memory():
    gpus = [gpu("a", 80), gpu("b", 30), gpu("c", 40)]
    assert chosen([wish(10)], gpus) == (0, "a")
    assert chosen([wish(10)], gpus, [Placed("a", GIB)]) == (0, "c")
    assert chosen([wish(35)], gpus, [Placed("a", GIB), Placed("c", GIB)]) == (0, "a")


def test_what_is_promised_is_not_free_and_what_was_taken_of_it_is_not_counted_twice():
    assert chosen([wish(30)], [gpu("a", 80)], [Placed("a", 60 * GIB, pid=7)]) is None
    half_taken = gpu("a", 50, taken_bytes={7: 30 * GIB})  # 30 more are promised
    assert chosen([wish(30)], [half_taken], [Placed("a", 60 * GIB, pid=7)]) is None
    all_taken = gpu("a", 20, taken_bytes={7: 60 * GIB})
    assert chosen([wish(19)], [all_taken], [Placed("a", 60 * GIB, pid=7)]) == (0, "a")
    assert chosen([wish(19)], [all_taken], [Placed("a", 60 * GIB, pid=8)]) is None  # not told, so it counts


def test_a_cell_that_has_room_nowhere_gets_the_emptiest_gpu_once_none_is_in_use():
    gpus = [gpu("a", 5), gpu("b", 9)]
    assert chosen([wish(60)], gpus, [Placed("a", GIB)]) is None
    assert chosen([wish(60)], gpus) == (0, "b")


def test_a_cell_of_which_nothing_is_known_has_a_gpu_for_itself():
    unknown = Wish()
    assert chosen([unknown], [gpu("a", 80)], [Placed("a", GIB)]) is None
    assert chosen([unknown], [gpu("a", 80), gpu("b", 9)], [Placed("a", GIB)]) == (0, "b")
    assert chosen([wish(2)], [gpu("a", 80)], [Placed("a", None)]) is None


def test_without_a_driver_that_tells_each_gpu_has_one_cell():
    gpus = [gpu("0", None), gpu("1", None)]
    assert chosen([wish(2)], gpus) == (0, "0")
    assert chosen([wish(2)], gpus, [Placed("0", 2 * GIB)]) == (0, "1")
    assert chosen([wish(2)], gpus, [Placed("0", 2 * GIB), Placed("1", 2 * GIB)]) is None


def test_an_index_is_obeyed():
    gpus = [gpu("a", 80), gpu("b", 10)]
    assert chosen([wish(5, index=1)], gpus) == (0, "b")
    assert chosen([wish(8, index=1)], gpus, [Placed("b", 5 * GIB)]) is None
    assert chosen([wish(8, index=2)], gpus) == (0, None)  # torch knows a GPU that the driver does not list


def test_a_cell_that_waits_is_not_overtaken_where_it_waits():
    gpus = [gpu("a", 80), gpu("b", 80)]
    placed = [Placed("a", 50 * GIB), Placed("b", 50 * GIB)]
    assert chosen([wish(60), wish(2)], gpus, placed) is None
    assert chosen([wish(60, index=0), wish(2, index=0), wish(2)], gpus, placed) == (2, "b")


# --- what a cell needs ---------------------------------------------------------------------------------


def test_clients_trained_together_take_more_but_no_more_than_their_share():
    peak = GIB
    plain = CONTEXT_BYTES + FRAGMENTATION * peak
    of = lambda total=80, **fields: Wish.of(on_cuda(clients=4, **fields), peak).bytes_on(gpu("a", 80, total))  # noqa: E731
    for alone in ({"mode": "centralized"}, {"acceleration": "none"}, {"clients_per_batch": 1}):
        assert of(**alone) == plain
    assert of(model={"name": "tiny", "dtype": "bfloat16"}) == plain
    assert of() == CONTEXT_BYTES + FRAGMENTATION * (peak + GPU_SHARE * 80 * GIB)
    assert of(total=800) == CONTEXT_BYTES + FRAGMENTATION * (peak + 4 * ACTIVATION_COPIES * peak)
    assert of(clients_per_batch=3) == CONTEXT_BYTES + FRAGMENTATION * (peak + 3 * ACTIVATION_COPIES * peak)
    assert Wish.of(on_cuda(clients=4), peak, one_by_one=True).bytes_on(gpu("a", 80)) == plain


def test_what_was_saved_is_taken_and_the_rest_counted_once_for_all_seeds(tmp_path, monkeypatch):
    counted = []

    def estimate(config):
        counted.append(config)
        return SimpleNamespace(peak_tensor_bytes=123)

    monkeypatch.setattr(bench.estimate, "estimate", estimate)
    cells = [*(on_cuda(seed=seed) for seed in range(3)), on_cuda(method="linear_probe")]
    saved = {cells[0].hash: {"total_seconds": 7.5, "peak_tensor_bytes": 99}}
    (tmp_path / "predictions.json").write_text(json.dumps(saved))
    foretold = predictions(tmp_path, cells)
    found = [foretold(cell) for cell in cells]
    assert counted == []  # nothing is counted before it is needed
    assert [(x.seconds, x.peak_bytes) for x in found[:3]] == [(7.5, 99), (None, 123), (None, 123)]
    assert len(counted) == 1
    assert found[3].peak_bytes == 123
    assert len(counted) == 2
    assert foretold(RunConfig.read({"device": "cpu"})) is None


def test_of_what_nothing_can_be_foretold_the_memory_is_not_known(tmp_path):
    assert predictions(tmp_path, [])(on_cuda(model="nothing:random")).peak_bytes is None
    assert Prediction(peak_bytes=5).peak_bytes == 5


# --- any matrix on any machine -------------------------------------------------------------------------

SIZES = st.integers(2, 100)


@st.composite
def machines(draw):
    """GPUs whose memory others have taken some of; cells, the heaviest first; how many run at once."""
    gpus = [(f"gpu {i}", draw(SIZES)) for i in range(draw(st.integers(1, 4)))]
    index = st.none() | st.integers(0, len(gpus) - 1)
    sizes = sorted(draw(st.lists(SIZES, max_size=12)), reverse=True)
    tells = draw(st.booleans())
    return gpus, [wish(size, index=draw(index)) for size in sizes], draw(st.integers(1, 5)), tells


@given(machines(), st.randoms(use_true_random=False))
def test_no_gpu_is_overcommitted_and_every_cell_starts_in_the_end(machine, random):
    capacity, waiting, workers, tells = machine
    free = dict(capacity)
    running = {}  # by pid: cell, what is promised to it, and where
    started = []
    while waiting or running:
        gpus = []
        for name, size in capacity:
            taken = {pid: used for pid, (_, where, used) in running.items() if where == name}
            left = size * GIB - sum(taken.values())
            gpus.append(Gpu(name, 100 * GIB, left, taken if tells else {}))
        placed = [Placed(where, cell.bytes_on(gpus[0]), pid) for pid, (cell, where, _) in running.items()]
        found = next_to_start(waiting, gpus, placed) if len(running) < workers else None
        if found is None:
            assert running, "nothing runs, and nothing may start"
            running.pop(random.choice(list(running)))
            continue
        place, where = found
        cell = waiting.pop(place)
        needed = cell.bytes_on(where)
        promised = sum(other.bytes_on(where) for other, at, _ in running.values() if at == where.name)
        if needed + promised > free[where.name] * GIB:
            assert promised == 0, "more was promised than there is"
            assert cell.index is not None or not running
        for before in waiting[:place]:  # heavier, and left to wait: for another GPU
            assert before.index is not None
            assert before.index != [name for name, _ in capacity].index(where.name)
        if cell.index is not None:
            assert capacity[cell.index][0] == where.name
        used = random.randint(0, min(needed, free[where.name] * GIB - promised)) if promised else 0
        running[len(started)] = (cell, where.name, used)
        started.append(cell)
    assert not waiting


# --- what the driver says ------------------------------------------------------------------------------


class Driver:
    """NVML of three GPUs and one slice of a fourth."""

    class NVMLError(Exception):
        pass

    uuids = ("GPU-aa11", "GPU-bb22", "GPU-cc33")

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.uuids[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != b"MIG-1":
            raise self.NVMLError
        return "MIG-1"

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle == "GPU-cc33":
            raise self.NVMLError
        return SimpleNamespace(total=80 * GIB, free=70 * GIB)

    lost = ()

    def nvmlDeviceGetUUID(self, handle):
        if handle in self.lost:
            raise self.NVMLError
        return handle.encode()  # as older versions give it

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if handle == "GPU-bb22":
            raise self.NVMLError
        return [SimpleNamespace(pid=7, usedGpuMemory=GIB), SimpleNamespace(pid=8, usedGpuMemory=None)]


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["GPU-aa11", "GPU-bb22", "GPU-cc33"]),
        ("2, 0", ["GPU-cc33", "GPU-aa11"]),
        ("GPU-bb,MIG-1", ["GPU-bb22", "MIG-1"]),
        ("1,-1,0", ["GPU-bb22"]),
        ("1,7,0", ["GPU-bb22"]),
        ("GPU-zz,0", []),
        ("", []),
    ],
)
def test_the_gpus_are_those_that_the_caller_may_see(monkeypatch, visible, names):
    monkeypatch.setattr(placement, "library", Driver)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert [found.name for found in visible_gpus()] == names


def test_an_index_counts_as_cuda_does_unless_that_is_told_to_count_by_the_bus(monkeypatch):
    monkeypatch.setattr(placement, "library", Driver)
    monkeypatch.setattr(placement, "_uuids_of_cuda", lambda: ["bb22", "cc33", "aa11"])
    monkeypatch.setenv(VISIBLE, "0,GPU-cc,2")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert [found.name for found in visible_gpus()] == ["GPU-bb22", "GPU-cc33", "GPU-aa11"]
    monkeypatch.delenv(VISIBLE)
    assert [found.name for found in visible_gpus()] == ["GPU-bb22", "GPU-cc33", "GPU-aa11"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [found.name for found in visible_gpus()] == ["GPU-aa11", "GPU-bb22", "GPU-cc33"]


def test_cuda_is_asked_for_all_gpus_in_another_process_and_once(monkeypatch):
    asked = []

    def run(command, env, **options):
        asked.append(env)
        return SimpleNamespace(returncode=0, stdout="bb22\naa11\n")

    monkeypatch.setenv(VISIBLE, "1")
    monkeypatch.setattr(placement.subprocess, "run", run)
    placement._uuids_of_cuda.cache_clear()
    try:
        assert [list(placement._uuids_of_cuda()) for _ in range(2)] == [["bb22", "aa11"]] * 2
    finally:
        placement._uuids_of_cuda.cache_clear()
    assert len(asked) == 1
    assert VISIBLE not in asked[0]


def test_a_gpu_that_is_lost_takes_no_cell_and_the_others_keep_their_names_and_places(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(placement, "library", lambda: driver)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv(VISIBLE, raising=False)
    gpus = placement.Gpus()
    names = [found.name for found in gpus.now()]
    driver.lost = ("GPU-aa11",)
    now = gpus.now()
    assert [(found.name, found.lost) for found in now] == list(zip(names, [True, False, False], strict=True))
    assert chosen([wish(9)], now) == (0, "GPU-bb22")
    assert chosen([Wish()], now, [Placed("GPU-bb22", GIB), Placed("GPU-cc33", GIB)]) is None
    assert chosen([Wish(index=1)], now) == (0, "GPU-bb22")
    driver.lost = ()
    assert [found.lost for found in gpus.now()] == [False] * 3


def test_a_driver_that_falls_silent_changes_no_names(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(placement, "library", lambda: driver)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv(VISIBLE, raising=False)
    gpus = placement.Gpus()
    names = [found.name for found in gpus.now()]

    def silent():
        raise driver.NVMLError

    monkeypatch.setattr(driver, "nvmlDeviceGetCount", silent)
    assert gpus.now() == [Gpu(name) for name in names]
    assert chosen([wish(9)], gpus.now(), [Placed(name, GIB) for name in names]) is None


def test_a_handle_that_cannot_be_had_is_passed_over(monkeypatch):
    class Missing(Driver):
        def nvmlDeviceGetHandleByIndex(self, index):
            if index == 1:
                raise self.NVMLError
            return super().nvmlDeviceGetHandleByIndex(index)

    monkeypatch.setattr(placement, "library", Missing)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert [found.name for found in visible_gpus()] == ["GPU-aa11", "GPU-cc33"]
    monkeypatch.setenv(VISIBLE, "2,GPU-cc,0")
    assert [found.name for found in visible_gpus()] == ["GPU-cc33", "GPU-cc33", "GPU-aa11"]


def test_what_the_driver_does_not_tell_is_left_out(monkeypatch):
    monkeypatch.setattr(placement, "library", Driver)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert visible_gpus() == [
        Gpu("GPU-aa11", 80 * GIB, 70 * GIB, {7: GIB}),
        Gpu("GPU-bb22", 80 * GIB, 70 * GIB),
        Gpu("GPU-cc33"),
    ]


def test_without_a_driver_torch_says_how_many_there_are(monkeypatch):
    def unavailable():
        raise placement.NvmlUnavailable("planted")

    monkeypatch.setattr(placement, "library", unavailable)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)
    assert visible_gpus() == [Gpu("0"), Gpu("1")]
    monkeypatch.setenv(VISIBLE, "3,5")
    assert visible_gpus() == [Gpu("3"), Gpu("5")]
