"""Several cells at once: the numbers of one after another, and a cell's end that is no other cell's."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import psutil
import pytest

import bench.placement
import bench.workers
from bench import isolate, store
from bench.config import RunConfig
from bench.definition import Definition
from bench.execute import CellOptions, Job, Outcome, Watcher, failed, read_failure, run_matrix
from bench.perf.apart import with_suite_on_path
from bench.placement import VISIBLE, Gpu, Prediction
from bench.workers import Workers
from flora.errors import BadInput
from flora.events import Listener

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked"
)

NAME = "flora-bench cell"
ENDLESS = {"method": "full_finetune", "rounds": 10**6}
DEFINITION = Definition(*["planted"] * 7)


def cell(seed=0, **fields):
    small = {"data": {"max_train": 20, "max_test": 20}, "rounds": 1, "clients": 2, "device": "cpu"}
    return RunConfig.read({"method": "zero_shot", "seed": seed, **small, **fields})


def cells_alive():
    return [child for child in multiprocessing.active_children() if child.name == NAME]


class Notes(Watcher):
    """Notes which cells start and end, and does something in this process at each round of one."""

    def __init__(self, at_round=None):
        self.at_round = at_round or (lambda config, record: None)
        self.started, self.ended, self.most = [], [], 0

    def cell_started(self, config):
        self.started.append(config.hash)
        listener = Listener()
        listener.round_ended = lambda record: self.at_round(config, record)
        return listener

    def cell_ended(self, outcome):
        self.ended.append(outcome.config.hash)


def run_all(cells, folder, watcher, workers):
    """Give the outcomes by their cells' hashes."""
    found = run_matrix(cells, folder, watcher=watcher, executor=workers)
    return {outcome.config.hash: outcome for outcome in found}


@pytest.fixture
def pids(monkeypatch):
    """Process by its cell's hash, the last one that was started for it."""
    found = {}

    class Known(isolate.CellProcess):
        def start(self):
            super().start()
            found[self.job.config.hash] = self.process.pid

    monkeypatch.setattr(bench.workers, "CellProcess", Known)
    return found


def numbers(path):
    """All of a result that is no time and no memory."""
    run = store.load_run(path)
    kept = ("accuracy", "best_accuracy", "zero_shot_accuracy", "bytes_up", "bytes_down", "payload_bytes")
    rounds = [(record["accuracy"], record["loss"], record["bytes_up"]) for record in run["rounds"]]
    return {name: run["summary"][name] for name in kept}, rounds, run["weights"]


# --- the same numbers ----------------------------------------------------------------------------------


def test_two_at_a_time_come_to_what_one_after_another_does(tmp_path):
    cells = [cell(seed, method=name) for name in ("flora", "full_finetune") for seed in (0, 1)]
    notes = Notes()
    one = list(run_matrix(cells, tmp_path / "one", executor=Workers(1)))
    two = list(run_matrix(cells, tmp_path / "two", watcher=notes, executor=Workers(2)))
    assert [outcome.config for outcome in one] == cells
    assert {outcome.status for outcome in one + two} == {"ran"}
    expected = {outcome.config.hash: numbers(outcome.path) for outcome in one}
    assert {outcome.config.hash: numbers(outcome.path) for outcome in two} == expected
    assert len({json.dumps(found) for found in expected.values()}) == len(cells)
    assert sorted(notes.started) == sorted(notes.ended) == sorted(expected)
    assert cells_alive() == []


def test_another_process_at_a_cell_is_waited_for_and_the_others_run_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.execute.SECONDS_BETWEEN_LOOKS", 0.1)
    taken, free = cell(0), cell(1)
    path = store.run_path(tmp_path, taken.model_dump(mode="json"), taken.hash)
    path.parent.mkdir(parents=True)
    code = (
        "import sys, pathlib; from bench.locks import lock_of\n"
        "with lock_of(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path.parent)]
    with subprocess.Popen(
        command, env=with_suite_on_path(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        outcomes = []
        for outcome in run_matrix([taken, free], tmp_path, executor=Workers(2)):
            outcomes.append((outcome.status, outcome.config.seed.split))
            holder.kill()
    assert outcomes == [("ran", 1), ("ran", 0)]


# --- what goes wrong in a cell -------------------------------------------------------------------------


def test_a_cell_that_is_killed_is_tried_once_more_alone_and_the_others_finish(tmp_path, pids):
    victim = cell(**ENDLESS)
    beside = []

    def kill(config, record):
        if config == victim:
            beside.append(len(cells_alive()) - 1)
            os.kill(pids[victim.hash], signal.SIGKILL)

    others = [cell(seed, method="linear_probe") for seed in range(3)]
    notes = Notes(kill)
    outcomes = run_all([victim, *others], tmp_path, notes, Workers(2))
    failed = outcomes.pop(victim.hash)
    assert (failed.status, failed.cause) == ("failed", "memory")
    assert failed.reason == (
        "its process was ended by SIGKILL, as happens where memory runs out; "
        "tried twice, the second time alone and with one client trained at a time"
    )
    kept = json.loads(failed.path.with_name("failure.json").read_text())
    assert (kept["reason"], kept["cause"], kept["traceback"]) == (failed.reason, "memory", None)
    assert {outcome.status for outcome in outcomes.values()} == {"ran"}
    assert beside[-1] == 0
    assert notes.started.count(victim.hash) == 2
    assert notes.ended[-1] == victim.hash
    assert sorted(notes.ended[:-1]) == sorted(config.hash for config in others)


def test_a_cell_that_asks_for_too_much_memory_fails_at_once_and_the_others_finish(tmp_path):
    greedy = cell(method={"name": "flora", "rank": 10**9})  # 512 GB in one tensor
    outcomes = run_all([greedy, cell(1), cell(2)], tmp_path, Watcher(), Workers(2))
    failed = outcomes.pop(greedy.hash)
    assert (failed.status, failed.cause) == ("failed", "memory")
    assert "allocate 512000000000 bytes" in failed.reason
    assert "Traceback" in failed.path.with_name("error.txt").read_text()
    assert {outcome.status for outcome in outcomes.values()} == {"ran"}


def test_a_cell_that_crashes_is_not_tried_again(tmp_path, pids):
    victim = cell(**ENDLESS)
    notes = Notes(lambda config, _: config == victim and os.kill(pids[victim.hash], signal.SIGSEGV))
    outcomes = run_all([victim, cell(1)], tmp_path, notes, Workers(2))
    failed = outcomes.pop(victim.hash)
    assert (failed.status, failed.cause) == ("failed", "crash")
    assert "SIGSEGV" in failed.reason
    assert "twice" not in failed.reason
    assert {outcome.status for outcome in outcomes.values()} == {"ran"}
    assert notes.started.count(victim.hash) == 1


def test_a_cell_that_takes_too_long_is_given_up_and_not_tried_again(tmp_path, pids):
    victim = cell(**ENDLESS)
    notes = Notes()
    # the others are through before the time is up, or slow enough to be given up as well
    outcomes = run_all([victim, cell(1)], tmp_path, notes, Workers(2, timeout_seconds=4))
    failed = outcomes.pop(victim.hash)
    assert (failed.status, failed.cause) == ("failed", "timeout")
    assert failed.reason.startswith("it took longer than 4 s and was stopped")
    assert notes.started.count(victim.hash) == 1
    assert cells_alive() == []


# --- requests to stop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_that_run(tmp_path, pids, number):
    cells = [cell(seed, **ENDLESS) for seed in (0, 1)]
    seen = set()

    def stop_when_both_train(config, record):
        seen.add(config.hash)
        if len(seen) == 2:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        run_all(cells, tmp_path, Notes(stop_when_both_train), Workers(2))
    assert len(pids) == 2
    assert cells_alive() == []
    assert not any(tmp_path.rglob("run.json"))
    assert not any(tmp_path.rglob("failure.json"))


def test_who_stops_asking_leaves_nothing_behind(tmp_path, pids):
    outcomes = run_matrix([cell(0), cell(1, **ENDLESS)], tmp_path, executor=Workers(2))
    assert next(outcomes).status == "ran"
    assert len(cells_alive()) == 1
    outcomes.close()
    assert cells_alive() == []


SCRIPT = """
import json, sys
from pathlib import Path
from bench.config import RunConfig
from bench.execute import Watcher, run_matrix
from bench.workers import Workers
from flora.events import Listener

class Told(Listener):
    def round_ended(self, record):
        print("trains", flush=True)

watcher = Watcher()
watcher.cell_started = lambda config: Told()
cells = [RunConfig.read(values) for values in json.loads(sys.argv[2])]
outcomes = run_matrix(cells, Path(sys.argv[1]), watcher=watcher, executor=Workers(2))
if sys.argv[3] == "leave":
    print(next(outcomes).status, flush=True)
else:
    list(outcomes)
"""


def start_script(folder, cells, how="go on"):
    values = json.dumps([config.model_dump(mode="json") for config in cells])
    command = [sys.executable, "-c", SCRIPT, str(folder), values, how]
    environment = with_suite_on_path({"OMP_NUM_THREADS": "1"})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def test_cells_end_with_the_process_that_runs_them_even_if_it_is_killed(tmp_path):
    # a round without an end, in which a cell tells nothing: that nobody listens is no sign to it
    silent = [cell(seed, method="full_finetune", local_steps=10**6) for seed in (0, 1)]
    with start_script(tmp_path, silent) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["trains\n"] * 2
        there = descendants(process)
        assert len(there) >= 3  # the server, and two cells
        process.kill()
    _, alive = psutil.wait_procs(there, timeout=10)
    assert not alive
    assert not [file.name for name in ("run", "failure") for file in tmp_path.rglob(f"{name}.json")]


def test_a_script_that_ends_with_cells_running_ends_them(tmp_path):
    with start_script(tmp_path, [cell(0), cell(1, **ENDLESS)], "leave") as process:
        said = process.stdout.read()
        assert process.wait(timeout=60) == 0
    assert said.endswith("ran\n")


# --- order, threads, GPUs ------------------------------------------------------------------------------


class Planted:
    """Stands in for a cell's process: ends at once, or as soon as another ends, as planted."""

    def __init__(self, job, listener, **given):
        self.job, self.given = job, given
        self.process = type("Process", (), {"pid": None})
        self.made.append(self)

    def start(self):
        self.beside = len(self.running)
        self.running.append(self)

    def ended(self):
        if self.running[0] is not self:
            return None
        self.running.pop(0)
        planted = self.planted.get(self.job.config.seed.split, [])
        more = planted.pop(0) if planted else {"status": "ran"}
        return Outcome(self.job.config, path=self.job.path, **more)


@pytest.fixture
def planted(monkeypatch):
    """Processes that are none; gives how each was to be made, and takes what becomes of cells, by seed."""

    class Process(Planted):
        made, running, planted = [], [], {}

    monkeypatch.setattr(bench.workers, "CellProcess", Process)
    monkeypatch.setattr(isolate, "wait_for_server", lambda: None)
    monkeypatch.setattr(isolate, "wait", lambda processes: None)
    monkeypatch.setattr(isolate, "stop", lambda processes: None)
    return Process


def jobs_of(cells, folder, **options):
    return [Job(x, folder / x.hash / "run.json", DEFINITION, CellOptions(**options)) for x in cells]


def order_of(planted):
    return [made.job.config.seed.split for made in planted.made]


def test_the_heaviest_starts_first_and_one_worker_keeps_the_order(tmp_path, planted):
    seconds = {0: 1.0, 1: 9.0, 2: None, 3: 5.0}
    cells = [*(cell(seed) for seed in seconds), cell(4, rounds=7)]
    workers = {"predictions": lambda config: Prediction(seconds.get(config.seed.split))}
    list(Workers(2, **workers).run(jobs_of(cells, tmp_path), Watcher()))
    assert order_of(planted) == [4, 2, 1, 3, 0]  # of two that are not known, the one with more rounds
    planted.made.clear()
    list(Workers(1, **workers).run(jobs_of(cells, tmp_path), Watcher()))
    assert order_of(planted) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "cores", "own", "threads"),
    [(1, 8, 8, None), (2, 8, 8, 8), (3, 8, 8, 5), (4, 8, 8, 4), (17, 8, 8, 1), (2, 8, 1, 1)],
)
def test_no_core_has_more_than_two_threads(tmp_path, planted, monkeypatch, count, cores, own, threads):
    monkeypatch.setattr(bench.workers, "usable_cores", lambda: list(range(cores)))
    monkeypatch.setattr("torch.get_num_threads", lambda: own)
    list(Workers(count).run(jobs_of([cell(seed) for seed in range(count)], tmp_path), Watcher()))
    assert {made.given["threads"] for made in planted.made} == {threads}


def test_the_cores_are_divided_among_the_cells_there_are(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(bench.workers, "usable_cores", lambda: list(range(8)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    list(Workers(100).run(jobs_of([cell(0), cell(1)], tmp_path), Watcher()))
    list(Workers(100).run(jobs_of([cell(0)], tmp_path), Watcher()))
    assert [made.given["threads"] for made in planted.made] == [8, 8, None]
    assert list(Workers(100).run([], Watcher())) == []


# --- no room for another process ------------------------------------------------------------------------


def refuse_to_start(planted, monkeypatch, refuses):
    def start(self, started=planted.start):
        if refuses(self):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started(self)

    monkeypatch.setattr(planted, "start", start)


def test_where_another_process_cannot_be_started_fewer_run_at_once(tmp_path, planted, monkeypatch):
    refuse_to_start(planted, monkeypatch, lambda process: len(planted.running) >= 2)
    notes = Notes()
    outcomes = list(Workers(4).run(jobs_of([cell(seed) for seed in range(6)], tmp_path), notes))
    assert [outcome.status for outcome in outcomes] == ["ran"] * 6
    assert len(planted.made) == 7  # it was tried once only to start a third
    assert sorted(notes.ended) == sorted(cell(seed).hash for seed in range(6))


def test_a_cell_whose_process_cannot_be_started_at_all_fails_alone(tmp_path, planted, monkeypatch):
    refuse_to_start(planted, monkeypatch, lambda process: process.job.config.seed.split == 1)
    notes = Notes()
    jobs = jobs_of([cell(seed) for seed in range(3)], tmp_path)
    outcomes = {x.config.seed.split: x for x in Workers(2).run(jobs, notes)}
    assert [outcomes[seed].status for seed in range(3)] == ["ran", "failed", "ran"]
    assert outcomes[1].reason == "its process cannot be started: Resource temporarily unavailable"
    assert read_failure(jobs[1].folder)["reason"] == outcomes[1].reason
    assert len(notes.ended) == 3


def test_a_server_that_ends_is_waited_for_and_another_forks(tmp_path, monkeypatch):
    start, refused = isolate._CONTEXT.Process.start, []

    def refuse_twice(process):
        if process.name == NAME and len(refused) < 2:
            refused.append(process)
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        start(process)

    monkeypatch.setattr(isolate._CONTEXT.Process, "start", refuse_twice)
    (outcome,) = run_matrix([cell()], tmp_path, executor=Workers(1))
    assert (outcome.status, len(refused)) == ("ran", 2)


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), OSError(errno.EAGAIN, "planted")])
def test_a_fork_that_fails_is_told_as_the_systems_error_and_leaves_nothing(tmp_path, monkeypatch, error):
    def fork(process):
        raise error

    monkeypatch.setattr(type(isolate._CONTEXT.Process()), "_Popen", staticmethod(fork))
    monkeypatch.setattr(isolate, "wait_for_server", lambda: None)
    (outcome,) = Workers(1).run(jobs_of([cell()], tmp_path), Watcher())
    assert outcome.status == "failed"
    assert outcome.reason.startswith("its process cannot be started: ")


LACK = {"status": "failed", "cause": "memory", "reason": "planted"}


@pytest.mark.parametrize(
    ("fields", "count", "one_by_one", "how"),
    [
        ({}, 1, [False, True], "with one client trained at a time"),
        ({}, 2, [False, True], "alone and with one client trained at a time"),
        ({"clients_per_batch": 1}, 2, [False, False], "alone"),
        ({"clients_per_batch": 1}, 1, [False], None),
        ({"acceleration": "none"}, 1, [False], None),
        ({"mode": "centralized"}, 1, [False], None),
    ],
)
def test_what_had_too_little_memory_is_tried_again_where_that_can_help(
    tmp_path, planted, fields, count, one_by_one, how
):
    planted.planted[0] = [LACK, LACK, LACK]
    jobs = jobs_of([cell(0, rounds=9, **fields), cell(1), cell(2)], tmp_path)
    outcomes = {x.config.seed.split: x for x in Workers(count).run(jobs, Watcher())}
    made = [process for process in planted.made if process.job.config.seed.split == 0]
    assert [process.job.options.one_by_one for process in made] == one_by_one
    assert len(made) == 1 or made[1].beside == 0
    assert outcomes[0].reason == (f"planted; tried twice, the second time {how}" if how else "planted")
    assert [outcomes[seed].status for seed in (1, 2)] == ["ran", "ran"]


def test_a_reason_is_written_down_without_the_path_of_its_cell(tmp_path, planted, monkeypatch):
    def ended(self):
        planted.running.remove(self)
        return failed(self.job, "planted", "memory", note=f"(traceback in {self.job.folder / 'error.txt'})")

    monkeypatch.setattr(planted, "ended", ended)
    (job,) = jobs_of([cell()], tmp_path)
    (outcome,) = Workers(1).run([job], Watcher())
    bare = "planted; tried twice, the second time with one client trained at a time"
    assert outcome.reason == f"{bare} (traceback in {job.folder / 'error.txt'})"
    assert read_failure(job.folder)["reason"] == bare


def test_what_had_enough_memory_the_second_time_has_not_failed(tmp_path, planted):
    planted.planted[0] = [LACK]
    (outcome,) = Workers(1).run(jobs_of([cell(0)], tmp_path), Watcher())
    assert (outcome.status, outcome.reason) == ("ran", "")


def test_what_trained_clients_one_by_one_already_is_not_tried_again(tmp_path, planted):
    planted.planted[0] = [LACK]
    (outcome,) = Workers(1).run(jobs_of([cell(0)], tmp_path, one_by_one=True), Watcher())
    assert (outcome.status, outcome.reason) == ("failed", "planted")


def test_cells_get_gpus_and_their_results_do_not_say_which(tmp_path, planted, monkeypatch):
    gpus = [Gpu("GPU-a", 80 * 2**30, 8 * 2**30), Gpu("GPU-b", 80 * 2**30, 80 * 2**30)]
    monkeypatch.setattr(bench.placement, "visible_gpus", lambda: gpus)
    cells = [cell(seed, clients_per_batch=1) for seed in range(4)]
    devices = ["cuda", "cuda", "cuda:0", "cpu"]
    cells = [x.model_copy(update={"device": y}) for x, y in zip(cells, devices, strict=True)]
    peaks = [40 * 2**30, 2**30, 2**30, None]
    predictions = {"predictions": lambda config: Prediction(9.0, peaks[config.seed.split])}
    outcomes = list(Workers(4, **predictions).run(jobs_of(cells, tmp_path), Watcher()))
    given = {x.job.config.seed.split: x for x in planted.made}
    assert given[0].given["environment"] == {VISIBLE: "GPU-b"}  # the other has no room for it
    assert given[1].given["environment"] == {VISIBLE: "GPU-a"}
    assert given[2].given["environment"] == {VISIBLE: "GPU-a"}
    assert given[3].given["environment"] == {}
    assert [given[seed].job.config.device for seed in range(4)] == ["cuda", "cuda", "cuda", "cpu"]
    assert sorted(x.config.device for x in outcomes) == sorted(devices)


@pytest.mark.parametrize(("count", "timeout"), [(0, None), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_what_cannot_be_is_refused(count, timeout):
    with pytest.raises(BadInput, match=r"^(jobs: 0|timeout: )"):
        Workers(count, timeout_seconds=timeout)
