"""What happens to machines that run for days: full disks, schedulers, clocks, two people with one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import flora.states
from bench import locks, store
from bench.config import RunConfig
from bench.execute import SECONDS_BETWEEN_LOOKS, Watcher, run_matrix
from bench.perf.apart import with_suite_on_path
from flora.errors import BadInput
from flora.events import Listener
from tests.bench.sameness import without_times

SIZES = {"max_train": 60, "max_test": 30}
SMALL = {"clients": 3, "batch_size": 16, "data": SIZES, "device": "cpu"}
LONG = 400
PATIENCE_SECONDS = 90.0


def cell(**fields):
    return RunConfig.read({**SMALL, "method": "linear_probe", "rounds": 2, **fields})


def path_of(results, config):
    return store.run_path(results, config.model_dump(mode="json"), config.hash)


def by_name(result):
    """The numbers of a run without what is said of tables that hold times."""
    return {name: x for name, x in without_times(result).items() if name not in ("clients", "rounds_table")}


@contextmanager
def mounted(folder, *options):
    """A small file system of its own."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() or not mount("-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder):
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments):
    return not subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode


# --- disks ----------------------------------------------------------------------------------------------


def test_on_a_disk_that_is_full_cells_fail_with_the_reason_and_what_was_there_stays(tmp_path):
    cells = [cell(seed=seed) for seed in range(8)]
    with mounted(tmp_path / "small", "size=300k") as results:
        outcomes = list(run_matrix(cells, results, checkpoint_rounds=1))
        statuses = [outcome.status for outcome in outcomes]
        assert statuses[0] == "ran"
        assert statuses[-1] == "failed"
        assert {outcome.status for outcome in outcomes} == {"ran", "failed"}
        assert all("No space left" in outcome.reason for outcome in outcomes if outcome.status == "failed")
        for path in results.glob("*/*/*/run.json"):
            store.load_table(path, "ledger")
        with pytest.raises(BadInput, match=r"cannot write to .*No space left"):
            list(run_matrix(cells, results))
        assert mount("-o", "remount,size=20m", results)
        outcomes = list(run_matrix(cells, results))
        assert [o.status for o in outcomes] == ["kept"] * statuses.count("ran") + ["ran"] * statuses.count(
            "failed"
        )
        left = {path.name for folder in results.glob("*/*/*") for path in folder.iterdir()}
        assert left <= {
            "run.json",
            "ledger.csv",
            "clients.csv",
            "rounds.csv",
            "weights.safetensors",
            "log.txt",
        }


def test_a_disk_that_fills_up_while_the_result_is_written_leaves_none(tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_rounds", full)
        (outcome,) = run_matrix([cell()], tmp_path, checkpoint_rounds=1)
    assert (outcome.status, outcome.cause) == ("failed", "error")
    assert "No space left on device" in outcome.reason
    noted = json.loads(outcome.path.with_name("failure.json").read_text())
    assert outcome.reason.startswith(noted["reason"])
    assert not outcome.path.exists()
    assert not outcome.path.with_name("ledger.csv").exists()
    (again,) = run_matrix([cell()], tmp_path)
    assert again.status == "ran"
    assert [s["first_round"] for s in store.load_run(again.path)["sittings"]] == [0, None]
    assert not again.path.with_name("failure.json").exists()


def test_a_folder_that_takes_no_files_is_refused_before_anything_runs(tmp_path):
    refused = pytest.raises(BadInput, match=r"results: cannot write to .*Read-only file system")
    with mounted(tmp_path / "sealed", "size=100k", "ro") as results, refused:
        list(run_matrix([cell()], results))


def test_results_on_another_file_system_are_checkpointed_by_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(flora.states, "STATES_IN_MEMORY_BYTES", 0)  # so that states are files elsewhere
    config = cell(rounds=3)
    (whole,) = run_matrix([config], tmp_path / "here")
    with mounted(tmp_path / "other", "size=20m") as results:
        with pytest.raises(KeyboardInterrupt):
            list(run_matrix([config], results, watcher=Interrupts(2), checkpoint_rounds=1))
        (resumed,) = run_matrix([config], results)
        result = store.load_run(resumed.path)
    assert len(result["sittings"]) == 2
    assert by_name(result) == by_name(store.load_run(whole.path))


def test_a_result_that_is_being_replaced_keeps_the_state_of_what_is_to_replace_it(tmp_path):
    config = cell(rounds=4)
    (old,) = run_matrix([config], tmp_path)
    stored = json.loads(old.path.read_text())
    stored["definition"]["harness"] = "0" * 12
    old.path.write_text(json.dumps(stored))
    with pytest.raises(KeyboardInterrupt):
        list(run_matrix([config], tmp_path, watcher=Interrupts(3), checkpoint_rounds=1))
    assert store.load_run(old.path)["definition"]["harness"] == "0" * 12
    (new,) = run_matrix([config], tmp_path)
    result = store.load_run(new.path)
    assert [sitting["first_round"] for sitting in result["sittings"]] == [0, 3]
    assert not new.path.with_name("checkpoints").exists()


class Interrupts(Watcher, Listener):
    """A watcher that interrupts the first cell in one of its rounds."""

    def __init__(self, round):
        self.round = round

    def cell_started(self, config):
        return self

    def round_ended(self, record):
        if record.round == self.round:
            raise KeyboardInterrupt


# --- two at once ----------------------------------------------------------------------------------------


def started(results, *options, seeds="[0, 1, 2]", rounds=LONG, matrix_folder=None):
    """Start `flora-bench run` in a process of its own."""
    matrix = (matrix_folder or results.parent) / "matrix.yaml"
    fields = {**SMALL, "method": "linear_probe", "seed": json.loads(seeds), "rounds": rounds}
    matrix.write_text(json.dumps(fields))
    command = [sys.executable, "-m", "bench", "run", str(matrix), "--results", str(results), *options]
    return subprocess.Popen(
        command, env=with_suite_on_path(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("options", [pytest.param((), marks=pytest.mark.slow), ("--fresh",)])
def test_two_runs_of_one_folder_share_the_work_and_both_end_with_all_of_it(options, tmp_path):
    results = tmp_path / "results"
    both = [started(results, "--json", *options, rounds=40) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE_SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    outcomes = [json.loads(out) for out, _ in said]
    for of_one in zip(*outcomes, strict=True):
        assert len({outcome["config_hash"] for outcome in of_one}) == 1
        assert sorted(outcome["status"] for outcome in of_one) in (["kept", "ran"], ["kept", "kept"])
        assert len({outcome["summary"]["accuracy"] for outcome in of_one}) == 1
    for log in results.rglob("log.txt"):
        assert log.read_text().count("started:") == 1
    assert len(list(results.rglob("log.txt"))) == 3


def test_a_cell_that_another_process_is_on_is_left_to_it_and_waited_for(tmp_path, monkeypatch):
    config = cell()
    (elsewhere,) = run_matrix([config], tmp_path / "elsewhere")
    folder = path_of(tmp_path / "results", config).parent
    folder.mkdir(parents=True)
    lock = locks.lock_of(folder)
    lock.acquire()
    waited = []

    def sleep(seconds):
        """Stand in for waiting: the other process finishes meanwhile."""
        if seconds < SECONDS_BETWEEN_LOOKS:  # whoever asks for a lock asks a few times
            return
        waited.append(seconds)
        shutil.copytree(elsewhere.path.parent, folder, dirs_exist_ok=True)
        lock.release()

    monkeypatch.setattr("bench.execute.time.sleep", sleep)
    outcomes = list(run_matrix([config, cell(seed=1)], tmp_path / "results"))
    assert [(o.config.seed.split, o.status) for o in outcomes] == [(1, "ran"), (0, "kept")]
    assert len(waited) == 1
    assert not (folder / ".lock").exists()


def test_a_lock_does_not_outlive_its_holder(tmp_path):
    config = cell()
    folder = path_of(tmp_path, config).parent
    folder.mkdir(parents=True)
    hold = "import sys, time; from pathlib import Path; from bench.locks import lock_of\n"
    hold += "lock = lock_of(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], env=with_suite_on_path(), stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert locks.is_held(folder)
    holder.kill()
    holder.wait()
    assert not locks.is_held(folder)
    (outcome,) = run_matrix([config], tmp_path)
    assert outcome.status == "ran"


# --- schedulers and clocks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [pytest.param(("--checkpoint", "1"), marks=pytest.mark.slow), ("--checkpoint", "1", "--jobs", "2")],
)
def test_a_scheduler_that_terminates_a_run_loses_no_finished_round(options, tmp_path):
    results = tmp_path / "results"
    process = started(results, *options, seeds="[0]")
    wait_for(lambda: list(results.glob("*/*/*/checkpoints/round-00003")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, said
    assert "interrupted: 0 of 1 cells are kept" in said
    assert "Traceback" not in said
    (path,) = (folder / "run.json" for folder in results.glob("*/*/*"))
    assert not locks.is_held(path.parent)
    assert not path.exists()
    config = cell(rounds=LONG)
    (resumed,) = run_matrix([config], results)
    assert resumed.status == "ran"
    assert len(store.load_run(resumed.path)["sittings"]) == 2


def wait_for(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_clock_that_is_set_back_changes_no_duration(tmp_path, monkeypatch):
    now = [time.time()]

    def earlier_each_time():
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", earlier_each_time)
    with pytest.raises(KeyboardInterrupt):
        list(run_matrix([cell(rounds=4)], tmp_path, watcher=Interrupts(3), checkpoint_rounds=1))
    (outcome,) = run_matrix([cell(rounds=4)], tmp_path, checkpoint_rounds=1)
    result = store.load_run(outcome.path)
    assert 0 < result["summary"]["total_seconds"] < PATIENCE_SECONDS
    assert all(0 < sitting["seconds"] < PATIENCE_SECONDS for sitting in result["sittings"])
    assert all(x >= 0 for record in result["rounds"] for x in record["seconds"].values())
