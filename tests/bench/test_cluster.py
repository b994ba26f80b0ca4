"""Cells on a real Ray cluster: the same numbers, deaths that lose no result, no address that hangs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock

from bench import cluster, store
from bench.cluster import RayCluster
from bench.config import RunConfig
from bench.definition import definition_of
from bench.execute import CellOptions, Job, Watcher, read_failure, run_matrix
from bench.locks import is_held, lock_of
from bench.placement import Prediction
from bench.progress_file import read_progress
from flora.errors import BadInput
from flora.events import Listener

if find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)
ray = cluster._ray()  # which settles what Ray prints

SAME = ("accuracy", "best_accuracy", "zero_shot_accuracy", "bytes_up", "bytes_down", "payload_bytes")
LONG = 100_000
"""Rounds of a cell that is sure to run still when something happens to it."""


def cell(seed=0, **fields):
    small = {"data": {"max_train": 20, "max_test": 20}, "rounds": 2, "clients": 2, "device": "cpu"}
    return RunConfig.read({"method": "flora", "seed": seed, **small, **fields})


CELLS = [cell(), cell(method="full_finetune"), cell(1, method="linear_probe"), cell(method="zero_shot")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What `CELLS` come to in this process."""
    return list(run_matrix(CELLS, tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """This process in a cluster on this machine, of which nothing is left."""
    with pytest.MonkeyPatch.context() as patch, cluster._started(ray, None):
        patch.setenv("FLORA_BENCH_DATA", str(tmp_path_factory.mktemp("data")))
        yield
    assert ray_processes() == []


def ray_processes():
    """Give what is left of Ray; to end takes a process a moment."""
    children = psutil.Process().children(recursive=True)
    found = [process for process in children if process.is_running() and _is_of_ray(process)]
    _, alive = psutil.wait_procs(found, timeout=10)
    return alive


def _is_of_ray(process):
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    # the fork server of this process is told its paths, of which one is Ray's once that was imported
    return "multiprocessing." not in command and any(x in command for x in ("/ray/", "ray::", "raylet"))


def numbers(outcomes):
    """All that must not depend on who ran a cell, by cell."""
    found = {}
    for outcome in outcomes:
        run = store.load_run(outcome.path)
        losses = [(row["accuracy"], row["loss"], row["bytes_up"]) for row in run["rounds"]]
        weights = run["weights"] and run["weights"]["sha256"]
        summary = [run["summary"][name] for name in SAME]
        found[outcome.config.hash] = (summary, losses, weights, run["ledger"]["sha256"])
    return found


def job_of(config, results, definition=None, **options):
    path = store.run_path(results, config.model_dump(mode="json"), config.hash)
    return Job(config, path, definition or definition_of(config), CellOptions(**options))


def on_ray(cells, results, watcher=None, *, workers=1, executor=None, **options):
    executor = executor or RayCluster(workers=workers)
    return list(run_matrix(cells, results, watcher=watcher, executor=executor, **options))


@pytest.fixture
def elsewhere(monkeypatch):
    """No node sees the results folder."""
    monkeypatch.setattr(cluster, "_token", lambda jobs: nullcontext(".seen-nowhere"))


class Notes(Watcher):
    """Keeps what it is told, and does something at a round of one cell."""

    def __init__(self, method="", round=1, do=lambda: None):
        self.started, self.ended, self.rounds = [], [], []
        self.method, self.round, self.do = method, round, do

    def cell_started(self, config):
        self.started.append(config)
        return _Rounds(self, config)

    def cell_ended(self, outcome):
        self.ended.append(outcome)


class _Rounds(Listener):
    def __init__(self, notes, config):
        self.notes, self.config = notes, config

    def round_ended(self, record):
        self.notes.rounds.append((self.config.hash, record.round, record.accuracy))
        if self.config.method.name == self.notes.method and record.round == self.notes.round:
            self.notes.do()


def once(do):
    """Do it the first time only."""
    left = [do]
    return lambda: left and left.pop()()


def kill_worker(folder):
    """Kill the Ray worker whose cell's folder this is: it is behind the server that forked the cell."""
    worker = psutil.Process(read_progress(folder)["pid"]).parent().parent()
    assert "ray::" in " ".join(worker.cmdline())
    worker.kill()


def test_a_cluster_on_this_machine_gives_the_same_numbers_and_is_gone_afterwards(
    plain, tmp_path, monkeypatch
):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))  # a socket's path below it would be too long
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")  # of no interest: another was asked for
    handler = signal.getsignal(signal.SIGTERM)
    notes = Notes()
    outcomes = on_ray(CELLS, tmp_path / "results", notes, workers=2)
    assert {outcome.status for outcome in outcomes} == {"ran"}
    assert numbers(outcomes) == numbers(plain)
    assert sorted(c.hash for c in notes.started) == sorted(c.hash for c in CELLS)
    assert [(h, n) for h, n, _ in notes.rounds if h == CELLS[0].hash] == [
        (CELLS[0].hash, n) for n in range(3)
    ]
    assert [outcome.path for outcome in notes.ended] == [outcome.path for outcome in outcomes]
    assert not ray.is_initialized()
    assert ray_processes() == []
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not list((tmp_path / "results").glob(".seen-*"))
    assert [outcome.status for outcome in on_ray(CELLS, tmp_path / "results")] == ["kept"] * 4


# Before this process is in a cluster, of which there can be one.


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":6379",
        "host:0",
        "host:70000",
        "host:a",
        "http://host:1",
        "ray://host:10001",
        "a b:1",
        "u@h:1",
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(address):
    with pytest.raises(
        BadInput, match=r"^--ray-address: .* must be HOST:PORT, as `ray start --head` prints it, .*$"
    ):
        RayCluster(address)


def test_addresses_are_taken_apart():
    assert cluster._endpoint("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert cluster._endpoint("Head.local:6379") == ("Head.local", 6379)
    assert cluster._endpoint("[fd00::2]:6379") == ("fd00::2", 6379)


def test_an_address_that_nobody_answers_at_is_refused_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(BadInput) as error:
        on_ray([cell()], tmp_path, executor=RayCluster(address))
    assert str(error.value).startswith(f"--ray-address: nothing answers at {address} within 10 s (")
    assert "\n" not in str(error.value)


def test_an_address_that_swallows_what_is_sent_is_given_up(tmp_path, monkeypatch):
    def swallow(address, timeout):  # there is no such address on every network
        assert (address, timeout) == (("10.255.255.1", 6379), 0.25)
        raise TimeoutError("timed out")

    monkeypatch.setattr(cluster.socket, "create_connection", swallow)
    with pytest.raises(BadInput, match=r"nothing answers at 10.255.255.1:6379 within 0.25 s \(timed out\)"):
        on_ray([cell()], tmp_path, executor=RayCluster("10.255.255.1:6379", seconds_to_answer=0.25))


def test_what_answers_and_is_no_ray_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_JOIN", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            BadInput, match=f"^--ray-address: what answers at {address} let nobody in within 1 s; "
        ):
            on_ray([cell()], tmp_path, executor=RayCluster(address))


def test_the_reason_that_ray_gives_for_letting_nobody_in_is_passed_on(monkeypatch):
    monkeypatch.setattr(
        cluster, "_JOIN", "import sys; sys.exit('Version mismatch: Ray: 2.40.0 Python: 3.12.1')"
    )
    with pytest.raises(
        BadInput, match=r"cannot be joined \(Version mismatch: Ray: 2.40.0 Python: 3.12.1\); this machine"
    ):
        cluster._check_joins("127.0.0.1", 1)


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput) as error:
        on_ray([cell()], tmp_path)
    assert str(error.value) == "--executor ray: Ray is not installed; pip install 'flora-bench[ray]'"


# In a cluster from here on.


def test_where_nodes_do_not_see_the_results_they_come_back_whole(plain, joined, elsewhere, tmp_path):
    outcomes = on_ray(CELLS, tmp_path)
    assert numbers(outcomes) == numbers(plain)
    for here, there in zip(sorted(o.path for o in plain), sorted(o.path for o in outcomes), strict=True):
        assert {file.name for file in there.parent.iterdir()} == {file.name for file in here.parent.iterdir()}
    assert not list(Path(os.environ["FLORA_BENCH_CACHE"]).glob("cells/*"))


def test_what_a_cell_that_failed_elsewhere_has_left_comes_back_too(joined, elsewhere, tmp_path):
    wild = cell(method="full_finetune", optimizer={"name": "sgd", "lr": 1e38}, local_steps=3)
    (failed,) = on_ray([wild], tmp_path)
    assert (failed.status, failed.cause) == ("failed", "error")
    assert failed.reason.endswith(f"(traceback in {failed.path.with_name('error.txt')})")
    assert "DivergedError" in failed.path.with_name("error.txt").read_text()
    noted = json.loads(failed.path.with_name("failure.json").read_text())
    assert failed.reason == f"{noted['reason']} (traceback in {failed.path.with_name('error.txt')})"
    assert not is_held(failed.path.parent)


def test_a_cell_that_takes_too_long_is_given_up(joined, tmp_path):
    executor = RayCluster(timeout_seconds=2)
    (failed,) = on_ray([cell(method="full_finetune", rounds=LONG)], tmp_path, executor=executor)
    assert (failed.status, failed.cause) == ("failed", "timeout")
    assert failed.reason.startswith("it took longer than 2 s and was stopped")


def test_a_cell_that_ran_out_of_memory_is_tried_again_with_one_client_at_a_time(joined, tmp_path):
    config = cell(rounds=LONG, batch_size=3)

    def kill_cell():
        psutil.Process(read_progress(job_of(config, tmp_path).folder)["pid"]).kill()

    killer = Notes("flora", 1, kill_cell)
    (outcome,) = on_ray([config], tmp_path, killer)
    assert killer.started == [config, config]
    assert (outcome.status, outcome.cause) == ("failed", "memory")
    assert outcome.reason.startswith("its process was ended by SIGKILL")


def test_a_node_with_other_code_or_without_the_images_runs_nothing(joined, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.platform, "node", lambda: "elsewhere")
    changed = replace(definition_of(cell()), method="0" * 12)
    jobs = [
        job_of(cell(3), tmp_path),
        job_of(cell(), tmp_path, changed),
        job_of(cell(task="fgvc_aircraft"), tmp_path, changed),
    ]
    found = {o.config.hash: o for o in RayCluster(workers=1).run(jobs, Watcher())}
    same, other, without = (found[job.config.hash] for job in jobs)
    assert [same.status, other.status, without.status] == ["ran", "refused", "refused"], same.reason
    assert "method flora changed; have the same flora-bench, images and weights on every node" in other.reason
    assert os.environ["FLORA_BENCH_DATA"] in without.reason  # so the environment is that of this process


# What ends a Ray worker comes last: to start another takes seconds.


def test_a_killed_worker_loses_no_finished_result_and_its_cell_goes_on(plain, joined, tmp_path, capsys):
    long = cell(method="full_finetune", rounds=16)
    first = on_ray(CELLS[:1], tmp_path)[0]
    before = first.path.stat().st_mtime_ns
    path = job_of(long, tmp_path).path
    notes = Notes("full_finetune", 3, once(lambda: kill_worker(path.parent)))
    outcomes = on_ray([CELLS[0], long, CELLS[2]], tmp_path, notes, checkpoint_rounds=1)
    became = {outcome.config.method.name: outcome.status for outcome in outcomes}
    assert became == {"flora": "kept", "linear_probe": "ran", "full_finetune": "ran"}
    assert first.path.stat().st_mtime_ns == before
    assert notes.started.count(long) >= 2  # on a crowded machine Ray may begin it once more
    run = store.load_run(path)
    assert len(run["sittings"]) == 2
    assert run["sittings"][1]["first_round"] > 1
    assert numbers([o for o in outcomes if o.path == path]) == numbers(run_matrix([long], tmp_path / "plain"))
    assert not (path.parent / ".lock").exists()
    assert capsys.readouterr().out == ""  # Ray has a lot to say of a death


@pytest.mark.usefixtures("elsewhere")
def test_a_cell_that_another_process_is_on_is_left_to_it(joined, tmp_path, monkeypatch):
    job = job_of(cell(), tmp_path)
    job.folder.mkdir(parents=True)
    for held_before in (True, False):
        notes = Notes()
        with lock_of(job.folder).acquire(timeout=0):
            monkeypatch.setattr(cluster, "is_held", lambda folder, held=held_before: held)
            (outcome,) = RayCluster(workers=2).run([job], notes)
        assert (outcome.status, notes.started) == ("busy", [])
    assert not job.path.exists()


def test_a_request_to_terminate_ends_the_tasks(joined, tmp_path):
    long = cell(method="full_finetune", rounds=LONG)
    folder, pids = job_of(long, tmp_path).folder, []

    def interrupt():
        pids.append(read_progress(folder)["pid"])
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        on_ray([long, cell(1)], tmp_path, Notes("full_finetune", 1, interrupt), workers=1)
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert not is_held(folder)
    assert not any(tmp_path.rglob("run.json"))


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


SCRIPT = """
import sys
from pathlib import Path
from bench.cluster import RayCluster
from bench.config import RunConfig
from bench.execute import run_matrix
from flora.errors import BadInput
for outcome in run_matrix([RunConfig.read({cell})], Path({results!r}), executor=RayCluster({address!r})):
    print(outcome.status, outcome.reason)
"""


def test_a_cluster_that_is_there_is_joined_and_left_running(joined, tmp_path):
    config, address = cell(7), ray.get_runtime_context().gcs_address
    script = SCRIPT.format(cell=config.model_dump(mode="json"), results=str(tmp_path), address=address)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=cluster.with_suite_on_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("ran \n", 0), done.stderr
    assert not [line for line in done.stderr.splitlines() if not line.startswith("no cell runs: waiting")]
    assert [node["Alive"] for node in ray.nodes()] == [True]


class Nodes:
    """Stands for Ray in what it says of a cluster."""

    def __init__(self, *resources, alive=True):
        self._nodes = [{"Alive": alive, "Resources": resource} for resource in resources]

    def nodes(self):
        return [*self._nodes, {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 8.0, "memory": 1e15}}]


def request_of(config, nodes, results, **options):
    job = job_of(cell(), results)
    executor = RayCluster("10.0.0.1:6379", **options)
    return executor._requests(nodes, executor._workers)(replace(job, config=config))


def test_a_task_asks_for_its_share_and_never_for_more_than_a_node_has(tmp_path):
    two = Nodes({"CPU": 8.0, "memory": 1e9}, {"CPU": 16.0, "memory": 4e9, "GPU": 2.0})
    foretold = {"predictions": lambda _: Prediction(1.0, 10**12)}
    gpu = cell().model_copy(update={"device": "cuda:1"})
    threads = cell(compute={"threads": 3})
    plain = {"num_gpus": 0, "memory": cluster.PROCESS_BYTES}
    assert request_of(cell(), two, tmp_path) == {"num_cpus": 1, **plain}
    assert request_of(cell(), two, tmp_path, workers=3) == {"num_cpus": 8, **plain}
    assert request_of(cell(), two, tmp_path, workers=1)["num_cpus"] == 16
    assert request_of(cell(), two, tmp_path, workers=100)["num_cpus"] == 1
    assert request_of(threads, two, tmp_path, workers=1)["num_cpus"] == 3
    assert request_of(cell(), two, tmp_path, **foretold)["memory"] == 4 * 10**9
    some = {"predictions": lambda _: Prediction(1.0, 10**9)}
    assert request_of(cell(), two, tmp_path, **some)["memory"] == 10**9 + cluster.PROCESS_BYTES
    assert request_of(gpu, two, tmp_path, **foretold) == {"num_cpus": 8, "num_gpus": 1, "memory": 0}
    with pytest.raises(BadInput, match="no node of the Ray cluster has a GPU"):
        request_of(gpu, Nodes({"CPU": 8.0}), tmp_path)
    with pytest.raises(BadInput, match="no node of the Ray cluster has a GPU and a core for it"):
        request_of(gpu, Nodes({"CPU": 8.0}, {"GPU": 1.0}), tmp_path)
    for coreless in (Nodes({"memory": 1e9}), Nodes({"CPU": 0.0}), Nodes({"CPU": 0.5}), Nodes()):
        with pytest.raises(BadInput, match=r"^device: no node of the Ray cluster has a core; "):
            request_of(cell(), coreless, tmp_path)


def test_a_cell_for_a_gpu_on_a_cluster_without_is_refused_and_never_waits(joined, tmp_path):
    gpu = replace(job_of(cell(), tmp_path), config=cell().model_copy(update={"device": "cuda"}))
    (outcome,) = RayCluster().run([gpu], Watcher())
    assert (outcome.status, outcome.reason[:7]) == ("refused", "device:")


class Silent:
    """Stands for Ray on a cluster whose tasks never begin."""

    def __init__(self):
        self.asked, self.cancelled = [], []

    def remote(self, **options):
        return lambda body: self

    def options(self, **options):
        self.asked.append(options["num_cpus"])
        return SimpleNamespace(remote=lambda asked: len(self.asked))

    def wait(self, streams, num_returns, timeout):
        return [], streams

    def cancel(self, stream, force):
        self.cancelled.append(stream)


def test_what_waits_for_nodes_that_are_gone_is_asked_for_anew_and_refused_in_the_end(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(cluster, "SECONDS_WITHOUT_A_CELL", 0.0)
    silent, notes, cores = Silent(), Notes(), iter([16, 16, 8, 8, 8])

    def request(job):
        if left := next(cores, None):
            return {"num_cpus": left, "num_gpus": 0, "memory": 0}
        raise BadInput("device: no node of the Ray cluster has a core")

    submission = cluster._Submission(silent, notes, request, "", None, None)
    (outcome,) = submission.run([job_of(cell(), tmp_path)], None)
    assert (outcome.status, outcome.reason[:7]) == ("refused", "device:")
    assert (silent.asked, silent.cancelled) == ([16, 8], [1, 2])
    assert notes.ended == [outcome]
    assert [record.message[:36] for record in caplog.records] == ["no cell runs: waiting for room on th"]


def test_a_cell_whose_worker_dies_every_time_fails(tmp_path):
    class WorkerCrashedError(Exception):
        pass

    silent, notes, job = Silent(), Notes(), job_of(cell(), tmp_path)
    request = {"num_cpus": 1, "num_gpus": 0, "memory": 0}
    submission = cluster._Submission(silent, notes, lambda job: request, "", None, None)
    list(submission._submitted(job))
    assert list(submission._died(submission._tasks[0], WorkerCrashedError("gone"))) == []
    (outcome,) = submission._died(submission._tasks[0], WorkerCrashedError("gone"))
    assert (outcome.status, outcome.cause) == ("failed", "crash")
    assert outcome.reason == "its Ray task died 2 times: WorkerCrashedError: gone"
    assert read_failure(job.folder)["reason"] == outcome.reason
    assert (notes.ended, submission._tasks) == ([outcome], [])


def test_what_ran_out_of_memory_with_its_worker_is_tried_again_with_one_client_at_a_time(tmp_path):
    class OutOfMemoryError(Exception):
        pass

    silent = Silent()
    request = {"num_cpus": 1, "num_gpus": 0, "memory": 0}
    submission = cluster._Submission(silent, Notes(), lambda job: request, "", None, None)
    list(submission._submitted(job_of(cell(), tmp_path)))
    assert list(submission._died(submission._tasks[0], OutOfMemoryError("planted"))) == []
    assert [(task.job.options.one_by_one, task.tried) for task in submission._tasks] == [(True, 2)]
    (outcome,) = submission._died(submission._tasks[0], OutOfMemoryError("planted"))
    assert (outcome.status, outcome.cause) == ("failed", "memory")


def test_what_a_killed_process_has_left_is_removed_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    job, old = job_of(cell(), tmp_path), time.time() - 2 * cluster.SECONDS_UNTIL_OLD
    folders = [tmp_path / f"{cluster.FOLDER_PREFIX}{name}" for name in ("old", "new", "used")]
    tokens = [tmp_path / f".seen-{name}" for name in ("old", "new", "used")]
    for path in folders:
        path.mkdir()
    for path in tokens:
        path.touch()
    with lock_of(folders[2]).acquire(timeout=0), FileLock(tokens[2]):
        for path in (folders[0], folders[2], tokens[0], tokens[2]):
            os.utime(path, (old, old))
        cluster._remove_old_folders(tmp_path)
        with cluster._token([job]) as name:
            assert (tmp_path / name).is_file()
            os.utime(tmp_path / name, (old, old))
            with cluster._token([job]):  # such as another process's
                assert (tmp_path / name).is_file()
        assert [path.exists() for path in folders] == [False, True, True]
        assert [path.exists() for path in tokens] == [False, True, True]
        assert not (tmp_path / name).exists()


def test_a_file_that_would_lie_outside_of_the_cells_folder_is_refused(tmp_path):
    for name in ("../other/run.json", "/etc/passwd", "checkpoints/../../x"):
        with pytest.raises(OSError, match="a node sent a file named"):
            cluster._put(job_of(cell(), tmp_path), {name: b""}, complete=False)
    assert not any(tmp_path.rglob("*.json"))


def test_a_job_for_elsewhere_has_whole_paths_and_leaves_the_gpu_to_ray(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_of(cell(), Path("results"), cache_folder="rows")
    job = replace(job, config=job.config.model_copy(update={"device": "cuda:1"}))
    sent = cluster._portable(job)
    assert sent.path == tmp_path / job.path
    assert sent.options.cache_folder == str(tmp_path / "rows")
    assert (sent.config.device, sent.config.hash) == ("cuda", job.config.hash)


def test_the_heaviest_cells_come_first_and_else_their_order_stays(tmp_path):
    jobs = [job_of(config, tmp_path) for config in CELLS]
    seconds = {CELLS[2].hash: 60.0, CELLS[1].hash: 5.0}
    executor = RayCluster(predictions=lambda config: Prediction(seconds.get(config.hash)))
    ordered = [CELLS.index(job.config) for job in executor._in_order(jobs)]
    assert ordered == [2, 1, 0, 3]
