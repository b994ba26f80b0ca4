"""Cells in processes of their own: the same results, deaths that stay in a cell, peaks that do not leak."""

import json
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
import torch

import bench.workers
from bench import isolate, store
from bench.config import RunConfig
from bench.definition import Definition, definition_of
from bench.execute import CellOptions, Job, Outcome, Watcher, read_failure, run_matrix
from bench.locks import is_held, locked
from flora.errors import BadInput
from flora.events import Listener

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked"
)

THREADS_PLANTED = 7
DEFINITION = Definition(*["planted"] * 7)


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


def process_of(config, results, listener=None, options=None, **more):
    return isolate.CellProcess(job_of(config, results, **options or {}), listener or Listener(), **more)


def job_of(config, results, **options):
    path = store.run_path(results, config.model_dump(mode="json"), config.hash)
    try:
        definition = definition_of(config)
    except BadInput:  # it is to be refused in its process
        definition = DEFINITION
    return Job(config, path, definition, CellOptions(**options))


def followed(process):
    try:
        process.start()
        while (outcome := process.ended()) is None:
            isolate.wait([process])
        return outcome
    finally:
        isolate.stop([process])


def isolated(*arguments, **more):
    return followed(process_of(*arguments, **more))


def cells_alive():
    return [child for child in multiprocessing.active_children() if child.name == "flora-bench cell"]


class AtTheFirstRound(Listener):
    """Does something in this process as soon as the cell's has begun to train."""

    def __init__(self, do):
        self.do = do

    def round_ended(self, record):
        self.do()


class Notes(Listener):
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

    def watcher(self):
        watcher = Watcher()
        watcher.cell_started = lambda config: self
        return watcher

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
    (plain,) = run_matrix([config], tmp_path / "here", watcher=here.watcher())
    (apart,) = run_matrix([config], tmp_path / "there", watcher=there.watcher(), isolate=True)
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
    kept = {"cache_folder": str(tmp_path / "rows")}
    assert isolated(cell(method="flora"), tmp_path, options=kept).status == "ran"
    assert any((tmp_path / "rows").iterdir())


def test_what_is_added_to_the_environment_is_there_in_the_process(tmp_path):
    added = {"FLORA_BENCH_DATA": str(tmp_path / "elsewhere")}
    outcome = isolated(cell(task="fgvc_aircraft"), tmp_path, environment=added)
    assert str(tmp_path / "elsewhere") in outcome.reason


def test_a_cell_that_fails_leaves_its_traceback_and_the_others_go_on(tmp_path):
    wild = {"name": "sgd", "lr": 1e38}
    diverging = cell(method="full_finetune", optimizer=wild, local_steps=3)
    failed, ran = run_matrix([diverging, cell()], tmp_path, isolate=True)
    assert (failed.status, ran.status) == ("failed", "ran")
    assert failed.reason.startswith("DivergedError: every upload was refused")
    assert "Traceback" in failed.path.with_name("error.txt").read_text()


def test_a_kept_result_is_read_and_needs_no_process(tmp_path, monkeypatch):
    list(run_matrix([cell()], tmp_path, isolate=True))
    monkeypatch.setattr(isolate, "CellProcess", None)
    monkeypatch.setattr(isolate, "wait_for_server", None)
    (kept,) = run_matrix([cell()], tmp_path, isolate=True)
    assert kept.status == "kept"


@pytest.mark.parametrize(
    ("number", "reason", "cause"),
    [
        (signal.SIGKILL, "its process was ended by SIGKILL, as happens where memory runs out", "memory"),
        (signal.SIGSEGV, "its process was ended by SIGSEGV (traceback in {})", "crash"),
        (
            signal.SIGTERM,
            "its process ended with exit code 130 and left no result (traceback in {})",
            "crash",
        ),
    ],
)
def test_a_process_that_is_killed_fails_its_cell_alone(tmp_path, number, reason, cause):
    killer = AtTheFirstRound(lambda: [os.kill(child.pid, number) for child in cells_alive()])
    process = process_of(cell(method="full_finetune", rounds=100), tmp_path, killer)
    file = process.job.path.with_name("error.txt")
    file.parent.mkdir(parents=True)
    file.write_text("of another time")
    outcome = followed(process)
    assert (outcome.status, outcome.cause, outcome.summary) == ("failed", cause, {})
    assert outcome.reason == reason.format(file)
    noted = read_failure(outcome.path.parent)
    assert (noted["reason"], noted["cause"]) == (reason.removesuffix(" (traceback in {})"), cause)
    assert noted["traceback"] == ("error.txt" if cause == "crash" else None)
    assert file.exists() == (cause == "crash")
    if cause == "crash":  # it says where the process was
        assert "bench/cell.py" in file.read_text()
    assert cells_alive() == []
    assert isolated(cell(), tmp_path).status == "ran"


def test_a_cell_that_takes_too_long_is_stopped(tmp_path):
    silent = cell(method="full_finetune", local_steps=10**6)  # a round without an end
    outcome = isolated(silent, tmp_path, timeout_seconds=1)
    assert (outcome.status, outcome.cause) == ("failed", "timeout")
    assert outcome.reason.startswith("it took longer than 1 s and was stopped")
    assert cells_alive() == []


@pytest.mark.parametrize("days", [500, 99999999999999])
def test_no_time_is_too_long_to_wait(tmp_path, days):
    assert isolated(cell(), tmp_path, timeout_seconds=days * 86400.0).status == "ran"


def test_a_cell_that_another_process_is_on_is_left_to_it_before_anything_is_trained(tmp_path, monkeypatch):
    job = job_of(cell(), tmp_path)
    job.folder.mkdir(parents=True)
    asked = {"job": job.to_dict(), **isolate._process_state({}, None)}
    with locked(job.folder):
        monkeypatch.setattr(isolate, "warm_up", None)
        assert isolate._run(asked, Listener())["status"] == "busy"
        assert isolated(job.config, tmp_path).status == "busy"
    assert isolated(job.config, tmp_path).status == "ran"


def test_a_cell_whose_server_died_is_begun_once_more(tmp_path):
    config = cell(method="full_finetune", rounds=60)
    servers, cells = [], []

    def kill_server():
        if len(cells) == 1:
            return
        cells.append(process.process.pid)
        servers.append(forkserver._forkserver._forkserver_pid)
        os.kill(servers[0], signal.SIGKILL)

    process = process_of(config, tmp_path, AtTheFirstRound(kill_server))
    assert followed(process).status == "ran"
    assert process.process.pid != cells[0]
    assert has_ended(cells[0])
    assert forkserver._forkserver._forkserver_pid != servers[0]
    assert not process.job.path.with_name("failure.json").exists()


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may be there to ask what of it
    except psutil.NoSuchProcess:
        return True


def test_a_cell_whose_servers_die_fails_in_words_and_one_that_is_held_has_not_failed(tmp_path, monkeypatch):
    killer = AtTheFirstRound(lambda: os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL))
    endless = cell(method="full_finetune", rounds=10**6)
    process = process_of(endless, tmp_path, killer)
    outcome = followed(process)
    assert (outcome.status, outcome.cause) == ("failed", "crash")
    assert outcome.reason == "the process that forks cells died; tried twice"
    assert read_failure(process.job.folder)["reason"] == outcome.reason
    assert not is_held(process.job.folder)
    process.job.path.with_name("failure.json").unlink()
    with locked(process.job.folder):
        assert process._forsaken().status == "busy"
    assert read_failure(process.job.folder) is None


def test_a_cell_that_does_not_stop_is_stopped_by_force(tmp_path, monkeypatch):
    def freeze_until_it_is_late():
        os.kill(process.process.pid, signal.SIGSTOP)
        process.due = 0

    monkeypatch.setattr(isolate, "SECONDS_TO_STOP", 0.2)
    endless = cell(method="full_finetune", rounds=10**6)
    process = process_of(endless, tmp_path, AtTheFirstRound(freeze_until_it_is_late), timeout_seconds=600)
    outcome = followed(process)
    assert (outcome.status, outcome.cause) == ("failed", "timeout")
    assert cells_alive() == []


def test_what_a_process_cannot_read_is_refused(tmp_path):
    outcome = isolated(cell().model_copy(update={"device": "cuda:99"}), tmp_path)
    assert outcome.status == "refused"
    assert outcome.reason.startswith("device: 'cuda:99' is not on this machine")


def test_too_little_memory_before_the_cell_begins_is_lack_of_memory_too(tmp_path, monkeypatch):
    def full(device):
        raise torch.cuda.OutOfMemoryError("planted")

    monkeypatch.setattr(isolate, "warm_up", full)
    config = cell()
    job = Job(config, tmp_path / "cell" / "run.json", DEFINITION)
    assert not is_held(job.folder)
    before = isolate._process_state({}, None)
    told = isolate._run({"job": job.to_dict(), **before}, Listener())
    assert (told["status"], told["cause"]) == ("failed", "memory")
    assert "OutOfMemoryError: planted" in (tmp_path / "cell" / "error.txt").read_text()


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="not Linux")
def test_where_memory_runs_out_a_cell_goes_first(tmp_path):
    scores = []
    look = AtTheFirstRound(
        lambda: scores.extend(Path(f"/proc/{x.pid}/oom_score_adj").read_text() for x in cells_alive())
    )
    isolated(cell(rounds=0), tmp_path, look)
    assert [int(score) for score in scores] == [1000]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_cells_process_too(tmp_path, number):
    interrupt = Watcher()
    interrupt.cell_started = lambda config: AtTheFirstRound(lambda: signal.raise_signal(number))
    endless = cell(method="full_finetune", rounds=10**6)
    with pytest.raises(KeyboardInterrupt):
        list(run_matrix([endless], tmp_path, watcher=interrupt, isolate=True))
    assert cells_alive() == []
    assert not any(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("command", [["run"], ["tune", "--grid", "optimizer.lr=[0.1,0.2]"]])
@pytest.mark.parametrize("options", [[], ["--isolate"]])
def test_the_command_line_runs_cells_apart_if_asked_to(run_cli, tmp_path, monkeypatch, command, options):
    apart = []

    def run(self, jobs, watcher):
        for job in jobs:
            apart.append(job.config)
            watcher.cell_started(job.config)
            outcome = Outcome(job.config, "failed", job.path, reason="planted")
            watcher.cell_ended(outcome)
            yield outcome

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.workers.Workers, "run", run)
    Path("matrix.yaml").write_text(json.dumps(cell(method="linear_probe").model_dump(mode="json")))
    run_cli(*command, "matrix.yaml", "--no-cache", *options)
    assert bool(apart) == bool(options)


def test_torch_is_told_what_the_caller_told_it():
    before = isolate._process_state({}, None)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        told = isolate._process_state({}, None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert isolate._process_state({}, None) == before
    try:
        isolate._take_on(json.loads(json.dumps(told)))
        assert isolate._process_state({}, None) == told != before
    finally:
        isolate._take_on(before)
    assert isolate._process_state({}, None) == before


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
