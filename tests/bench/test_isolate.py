"""Cells in processes of their own: the same results, deaths that stay in a cell, peaks that do not leak."""

import json
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from bench import isolate, store
from bench.config import RunConfig
from bench.execute import Outcome, Watcher, run_matrix
from flora.cache import FeatureCache

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked"
)

THREADS_PLANTED = 7


@pytest.fixture(scope="module", autouse=True)
def server():
    """A server that would have many threads of OpenMP, if importing started any."""
    forkserver._forkserver._stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(THREADS_PLANTED))
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # its threads are there from the start and survive a fork
        isolate.start_server()
    isolate.wait_for_server()
    yield forkserver._forkserver._forkserver_pid
    forkserver._forkserver._stop()


def cell(seed=0, **fields):
    small = {"data": {"max_train": 20, "max_test": 20}, "rounds": 1, "clients": 2, "device": "cpu"}
    return RunConfig.read({"method": "zero_shot", "seed": seed, **small, **fields})


def isolated(config, results, watcher=None, kept=None):
    path = store.run_path(results, config.model_dump(mode="json"), config.hash)
    return isolate.run_isolated(config, path, watcher or Watcher(), "small", kept)


def cells_alive():
    return [child for child in multiprocessing.active_children() if child.name == "flora-bench cell"]


class AtTheFirstPhase(Watcher):
    """Does something in this process as soon as the cell's has begun to work."""

    def __init__(self, do):
        self.do = do

    def phase_started(self, phase):
        self.do()


class Notes(Watcher):
    def __init__(self):
        self.notes = []

    def phase_started(self, phase):
        self.notes.append(("started", phase))

    def phase_ended(self, phase):
        self.notes.append(("ended", phase))

    def advanced(self, phase, done, total):
        self.notes.append(("advanced", phase, done, total))

    def round_ended(self, record):
        self.notes.append(("round", record))

    def forwarded(self):
        return [note for note in self.notes if note[0] in ("advanced", "round") or note[1].round is None]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc/self/task")
def test_the_server_has_loaded_the_libraries_and_started_no_threads_to_compute_with(server):
    assert "libtorch" in Path(f"/proc/{server}/maps").read_text()
    # the memory allocator of some libraries has a thread of its own, and looks after it in a fork
    assert len(list(Path(f"/proc/{server}/task").iterdir())) < THREADS_PLANTED


@pytest.mark.parametrize("method", ["flora", "full_finetune"])
def test_what_an_isolated_cell_comes_to_is_the_same_to_the_last_bit(method, tmp_path):
    config = cell(method=method, rounds=2)
    here, there = Notes(), Notes()
    (plain,) = run_matrix([config], tmp_path / "here", watcher=here)
    (apart,) = run_matrix([config], tmp_path / "there", watcher=there, isolate=True)
    assert (plain.status, apart.status) == ("ran", "ran")
    one, other = store.load_run(plain.path), store.load_run(apart.path)
    for name in (
        "accuracy",
        "best_accuracy",
        "zero_shot_accuracy",
        "bytes_up",
        "bytes_down",
        "payload_bytes",
    ):
        assert one["summary"][name] == other["summary"][name]
    assert [r["loss"] for r in one["rounds"]] == [r["loss"] for r in other["rounds"]]
    assert one["weights"] == other["weights"]
    assert apart.summary == other["summary"]
    assert other["summary"]["warm_up_seconds"] > 0
    assert one["environment"]["torch_threads"] == other["environment"]["torch_threads"] == 1
    assert there.notes == here.forwarded()
    assert [kind for kind, *_ in there.notes].count("round") == 3


def test_the_environment_and_the_cache_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.setenv("FLORA_BENCH_DATA", str(tmp_path / "nowhere"))
    outcome = isolated(cell(task="fgvc_aircraft"), tmp_path)
    assert outcome.status == "refused"
    assert str(tmp_path / "nowhere") in outcome.reason
    assert isolated(cell(method="flora"), tmp_path, kept=FeatureCache(tmp_path / "rows")).status == "ran"
    assert any((tmp_path / "rows").iterdir())


def test_a_cell_that_fails_leaves_its_traceback_and_the_others_go_on(tmp_path):
    wild = {"name": "sgd", "lr": 1e38}
    diverging = cell(method="full_finetune", optimizer=wild, local_steps=3)
    failed, ran = run_matrix([diverging, cell()], tmp_path, isolate=True)
    assert (failed.status, ran.status) == ("failed", "ran")
    assert failed.reason.startswith("DivergedError: every upload was refused")
    assert "Traceback" in failed.path.with_name("error.txt").read_text()


def test_a_kept_result_is_read_and_needs_no_process(tmp_path, monkeypatch):
    list(run_matrix([cell()], tmp_path, isolate=True))
    monkeypatch.setattr(isolate, "run_isolated", None)
    (kept,) = run_matrix([cell()], tmp_path, isolate=True)
    assert kept.status == "kept"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "its process was ended by SIGKILL, as happens where memory runs out"),
        (signal.SIGSEGV, "its process was ended by SIGSEGV"),
    ],
)
def test_a_process_that_is_killed_fails_its_cell_alone(tmp_path, number, reason):
    killer = AtTheFirstPhase(lambda: [os.kill(child.pid, number) for child in cells_alive()])
    outcome = isolated(cell(method="full_finetune", rounds=100), tmp_path, killer)
    assert (outcome.status, outcome.reason, outcome.summary) == ("failed", reason, {})
    assert cells_alive() == []
    assert isolated(cell(), tmp_path).status == "ran"


def test_a_process_that_ends_without_a_result_says_with_what(tmp_path):
    stop = AtTheFirstPhase(lambda: [os.kill(child.pid, signal.SIGTERM) for child in cells_alive()])
    outcome = isolated(cell(method="full_finetune", rounds=100), tmp_path, stop)
    assert outcome.status == "failed"
    assert outcome.reason == "its process ended with exit code 130 and left no result"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_cells_process_too(tmp_path, number):
    interrupt = AtTheFirstPhase(lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt):
        isolated(cell(method="full_finetune", rounds=100), tmp_path, interrupt)
    assert cells_alive() == []
    assert not any(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("command", [["run"], ["tune", "--grid", "optimizer.lr=[0.1,0.2]"]])
@pytest.mark.parametrize("options", [[], ["--isolate"]])
def test_the_command_line_runs_cells_apart_if_asked_to(run_cli, tmp_path, monkeypatch, command, options):
    apart = []

    def run_isolated(config, path, *_):
        apart.append(config)
        return Outcome(config, "failed", path, reason="planted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(isolate, "run_isolated", run_isolated)
    Path("matrix.yaml").write_text(json.dumps(cell(method="linear_probe").model_dump(mode="json")))
    run_cli(*command, "matrix.yaml", "--no-cache", *options)
    assert bool(apart) == bool(options)


def test_torch_is_told_what_the_caller_told_it():
    before = isolate._process_state()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        told = isolate._process_state()
    finally:
        torch.use_deterministic_algorithms(False)
    assert isolate._process_state() == before
    try:
        isolate._take_on(json.loads(json.dumps(told)))
        assert isolate._process_state() == told != before
    finally:
        isolate._take_on(before)
    assert isolate._process_state() == before


def test_the_peak_of_a_cell_does_not_leak_into_the_next(tmp_path):
    small, large = (
        cell(),
        cell(method="full_finetune", batch_size=512, data={"max_train": 600, "max_test": 20}),
    )
    alone = isolated(small, tmp_path / "alone").summary["peak_memory_bytes"]
    first = isolated(large, tmp_path / "after").summary["peak_memory_bytes"]
    after = isolated(small, tmp_path / "after").summary["peak_memory_bytes"]
    assert first > 1.1 * alone
    assert after == pytest.approx(alone, rel=0.03)
