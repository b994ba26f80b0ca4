"""Killed at random moments, while files are written too: in the end all is as if nothing had happened.

Each attempt runs the whole matrix in a process that is killed: some by a clock, the others by themselves at
one of the calls that write, a third of those by SIGTERM.
Two hundred of them: `pytest -s -m slow tests/bench/test_kills.py`.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from bench import isolate, locks, store
from bench.checkpoints import FOLDER
from bench.config import RunConfig
from bench.execute import run_matrix
from tests.bench.sameness import peaks, without_times

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked"
)

SMALL = {
    "clients": 3,
    "rounds": 4,
    "batch_size": 16,
    "data": {"max_train": 60, "max_test": 30},
    "device": "cpu",
}
CELLS = [
    {"method": "flora"},
    {"method": "flora", "codec": {"name": "topk", "share": 0.1}},
    {"method": "linear_probe", "seed": 1},
    {"method": "full_finetune", "rounds": 2},
    {"method": "attention_adapter", "mode": "local_only"},
    {"method": "zero_shot"},
]
WRITING = ("replace", "fsync", "rename", "unlink", "mkdir", "rmdir")
"""Calls of `os` that results, checkpoints and their removal are made of."""

MOST_CALLS = 250
LONGEST_SECONDS = 3.0
INTERRUPTED = 130


def cells():
    return [RunConfig.read({**SMALL, **fields}) for fields in CELLS]


def die_at_call(number, how):
    """Have this process killed, or asked to end, at the n-th call that writes."""
    left = [number]

    def dying(call):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), how)
            return call(*arguments, **options)

        return wrapped

    for name in WRITING:
        setattr(os, name, dying(getattr(os, name)))


def attempt(results, calls, how):
    """Run the matrix, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    if calls is not None:
        die_at_call(calls, how)
    try:
        outcomes = list(run_matrix(cells(), Path(results), checkpoint_rounds=1))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    assert [outcome.reason for outcome in outcomes] == [""] * len(CELLS)


def kill_once(results, chance):
    """Run the matrix and kill it at random; says whether it was."""
    by_clock = chance.random() < 0.4
    calls = None if by_clock else chance.randint(1, MOST_CALLS)
    how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    arguments = (str(results), calls, how)
    process = multiprocessing.get_context("forkserver").Process(target=attempt, args=arguments)
    with isolate._without_main_module():
        process.start()
    if by_clock:
        process.join(chance.uniform(0.0, LONGEST_SECONDS))
        process.kill()
    process.join()
    assert process.exitcode in (0, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM), process.exitcode
    return process.exitcode != 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = tmp_path_factory.mktemp("uninterrupted")
    outcomes = list(run_matrix(cells(), results))
    assert [outcome.status for outcome in outcomes] == ["ran"] * len(CELLS)
    return {outcome.config.hash: store.load_run(outcome.path) for outcome in outcomes}


def kill_and_check(kills, results, uninterrupted, seed):
    isolate.start_server()
    chance, killed, attempts, done = random.Random(seed), 0, 0, {}
    while killed < kills:
        attempts += 1
        killed += kill_once(results, chance)
        for path in results.glob("*/*/*/run.json"):
            store.load_run(path)  # whatever is there is whole
            assert done.setdefault(path, path.stat().st_ino) == path.stat().st_ino  # and made once
        if len(done) == len(CELLS) and killed < kills:  # all done: take one away and go on
            path = chance.choice(sorted(done))
            del done[path]
            shutil.rmtree(path.parent)
    outcomes = list(run_matrix(cells(), results, checkpoint_rounds=1))
    assert {outcome.status for outcome in outcomes} <= {"ran", "kept"}
    for outcome in outcomes:
        check(outcome.path, uninterrupted[outcome.config.hash])
    return killed, attempts


def _untimed(result):
    """Leave out what is said of tables that hold times."""
    return {name: value for name, value in result.items() if name not in ("clients", "rounds_table")}


def check(path, whole):
    result = store.load_run(path)
    assert without_times(_untimed(result)) == without_times(_untimed(whole))
    assert peaks(result) == peaks(whole)
    assert result["weights"] == whole["weights"]  # a SHA-256 among it
    assert result["ledger"] == whole["ledger"]
    store.load_table(path, "ledger")
    store.load_table(path, "clients")
    if result["weights"]:
        store.load_weights(path)
    folder = path.parent
    assert not locks.is_held(folder)
    assert {file.name for file in folder.iterdir()} <= {
        *("run.json", "ledger.csv", "clients.csv", "rounds.csv", "weights.safetensors", "log.txt")
    }


def test_kills_leave_no_trace(tmp_path, uninterrupted):
    killed, _ = kill_and_check(5, tmp_path, uninterrupted, seed=0)
    assert killed == 5


@pytest.mark.slow
def test_two_hundred_kills_leave_no_trace(tmp_path, uninterrupted):
    began = time.monotonic()
    killed, attempts = kill_and_check(200, tmp_path, uninterrupted, seed=1)
    assert killed == 200
    resumed = sum(
        len(json.loads(path.read_text())["sittings"]) > 1 for path in tmp_path.glob("*/*/*/run.json")
    )
    print(f"{killed} kills in {attempts} attempts, {time.monotonic() - began:.0f} s; {resumed} resumed")  # noqa: T201
    assert not list(tmp_path.rglob(f"{FOLDER}/*"))
