"""How far a folder is, seen from another process: what it counts, foretells, says, and never reads."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.cli
from bench import store
from bench.config import RunConfig
from bench.locks import locked
from bench.matrices import load_matrices, save_matrix
from bench.progress_file import ProgressFile
from bench.store import run_path

NOW = 1_800_000_000.0
STATE = {
    "host": "here",
    "pid": 7,
    "phase": "train",
    "round": 4,
    "rounds": 10,
    "accuracy": 0.625,
    "memory_bytes": 1_200_000_000,
    "resumed_from": None,
    "rounds_per_second": 0.5,
    "seconds": 100.0,
}


def cell(method="flora", seed=0):
    return RunConfig.read({"method": method, "seed": seed, "device": "cpu"})


def stamp(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Folder:
    """A results folder whose cells are put where the test wants them."""

    def __init__(self, path, held):
        self.path, self._held = path, held

    def of(self, config):
        folder = run_path(self.path, config.model_dump(mode="json"), config.hash).parent
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, config, seconds=10.0, at=NOW - 60):
        file = self.of(config) / "run.json"
        file.write_text(json.dumps({"summary": {"total_seconds": seconds}}))
        os.utime(file, (at, at))

    def progress(self, config, updated=NOW - 1, **more):
        values = {**STATE, "updated": stamp(updated), "began": stamp(updated - 100), **more}
        (self.of(config) / "progress.json").write_text(json.dumps(values))

    def running(self, config, **more):
        self.progress(config, **more)
        self._held.enter_context(locked(self.of(config)))

    def failed(self, config, reason="RuntimeError: boom", at=NOW - 60):
        file = self.of(config) / "failure.json"
        file.write_text(json.dumps({"reason": reason}))
        (file.parent / ".lock").touch()
        os.utime(file, (at, at))

    def kept(self, config, *rounds):
        for number in rounds:
            (self.of(config) / "checkpoints" / f"round-{number:05}").mkdir(parents=True)

    def asked(self, cells, began=NOW - 600, **more):
        file = save_matrix(self.path, cells, **more)
        file.write_text(json.dumps({**json.loads(file.read_text()), "began": stamp(began)}))
        os.utime(file, (began, began))
        return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    clock = SimpleNamespace(time=lambda: NOW, monotonic=lambda: 0.0)
    monkeypatch.setattr("bench.cli.status.time", clock)
    monkeypatch.setenv("COLUMNS", "120")
    with ExitStack() as held:
        yield Folder(tmp_path / "results", held)


@pytest.fixture
def mixed(folder):
    """Cells in every state, and what each of them is in."""
    cells = [cell(seed=seed) for seed in range(7)]
    folder.done(cells[0])
    folder.asked(cells, command=["flora-bench", "run", "my file.yaml"])
    folder.running(cells[1])
    folder.failed(cells[2])
    folder.kept(cells[3], 3, 12)
    folder.progress(cells[3], round=14, rounds=20)
    (folder.of(cells[3]) / ".lock").touch()  # as a process that was killed leaves it
    folder.progress(cells[4], round=None)
    folder.of(cells[5])
    return folder


def records(run_cli, folder, *options):
    code, out, err = run_cli("status", str(folder.path), "--json", *options)
    assert (code, err) == (0, "")
    return json.loads(out)


def counts(record):
    return {kind: record[kind] for kind in ("done", "running", "failed", "partial", "left")}


# --- what it counts ------------------------------------------------------------------------------------


def test_it_counts_cells_by_what_is_in_their_folders(run_cli, mixed):
    (record,) = records(run_cli, mixed)
    assert counts(record) == {"done": 1, "running": 1, "failed": 1, "partial": 2, "left": 2}
    assert record["cells"] == 7
    (running,) = record["running_cells"]
    assert (running["cell"], running["round"], running["pid"]) == ("digits · flora · iid · seed 1", 4, 7)
    assert (running["stuck"], running["seconds_since_sign"]) == (False, 1.0)
    assert [cell["reason"] for cell in record["failed_cells"]] == ["RuntimeError: boom"]
    assert [(cell["round"], cell["kept_round"]) for cell in record["partial_cells"]] == [
        (14, 12),
        (None, None),
    ]


def test_it_says_so_to_people(run_cli, mixed):
    code, out, err = run_cli("status", str(mixed.path))
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "flora-bench run 'my file.yaml' · began 0:10:00 ago"
    assert lines[1].endswith("1/7 cells")
    assert lines[2].startswith("1 done · 1 running · 1 failed · 2 partial · 2 left · about 0:")
    assert lines[3].split("━")[0].strip() == "seed 1"
    assert lines[3].endswith("round 4/10  62.5%  for 0:01:41  1.2 GB  here:7")
    assert lines[4:] == [
        "failed:",
        "  seed 2: RuntimeError: boom",
        "interrupted:",
        "  seed 3: interrupted at round 14, goes on from round 12",
        "  seed 4: interrupted before its first round",
    ]


@pytest.mark.parametrize("width", [20, 60, 80, 160])
def test_it_fits_however_narrow(run_cli, mixed, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    out = run_cli("status", str(mixed.path))[1]
    assert max(map(len, out.splitlines())) <= width
    assert "round 4/10" in out


def test_a_cell_that_gives_no_sign_though_its_lock_is_held_seems_stuck(run_cli, folder):
    folder.asked([cell()])
    folder.running(cell(), updated=NOW - 180)
    assert "no sign for 0:03:00" in run_cli("status", str(folder.path))[1]
    assert records(run_cli, folder)[0]["running_cells"][0]["stuck"]


def test_a_clock_that_was_set_back_makes_no_negative_times(run_cli, folder):
    folder.asked([cell(seed=0), cell(seed=1)], began=NOW + 7200)
    folder.done(cell(seed=0), at=NOW + 7300)
    folder.running(cell(seed=1), updated=NOW + 7300)
    out = run_cli("status", str(folder.path))[1]
    assert "began just now" in out
    assert "for 0:01:40" in out  # by the running process' own clock
    assert "-" not in out
    (record,) = records(run_cli, folder)
    assert record["running_cells"][0]["seconds_since_sign"] == 0
    assert record["elapsed_seconds"] == 0


def test_a_result_that_is_to_be_replaced_is_not_done_before_it_is(run_cli, folder):
    cells = [cell(seed=0), cell(seed=1)]
    for config in cells:
        folder.done(config, at=NOW - 9000)
    folder.asked(cells, left=cells[:1])
    folder.failed(cells[0], at=NOW - 8000)
    assert counts(records(run_cli, folder)[0])["left"] == 1
    folder.failed(cells[0], at=NOW - 10)
    assert counts(records(run_cli, folder)[0])["failed"] == 1
    folder.done(cells[0], at=NOW)
    assert counts(records(run_cli, folder)[0])["done"] == 2


def test_a_running_cell_that_has_said_nothing_yet_is_starting(run_cli, folder):
    folder.asked([cell()])
    folder.running(cell())
    (folder.of(cell()) / "progress.json").write_text("{")
    assert "starting" in run_cli("status", str(folder.path))[1]
    assert counts(records(run_cli, folder)[0])["running"] == 1


@pytest.mark.parametrize(("progress", "kind"), [(True, "running"), (False, "left")])
def test_a_cell_of_someone_elses_runs_if_it_shows_progress(run_cli, folder, monkeypatch, progress, kind):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bench.standing.is_held", refuse)  # as root would not be refused
    folder.asked([cell()])
    (folder.of(cell()) / ".lock").touch()
    if progress:
        folder.progress(cell())
    (record,) = records(run_cli, folder)
    assert record[kind] == 1


def test_between_two_cells_nobody_is_told_to_start_again(run_cli, folder):
    file = folder.asked([cell()])
    assert "no cell runs at this moment" in run_cli("status", str(folder.path))[1]
    for gone in ({"pid": 2**31 - 1}, {"host": "elsewhere"}, {"pid": None}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **gone}))
        assert "give the command again to go on" in run_cli("status", str(folder.path))[1]
        file = folder.asked([cell()])


def test_what_a_real_run_writes_is_understood(run_cli, folder):
    folder.asked([cell()])
    with locked(folder.of(cell())), ProgressFile(folder.of(cell()), cell()):
        (record,) = records(run_cli, folder)
    assert record["running_cells"][0]["pid"] == os.getpid()


# --- the time left -------------------------------------------------------------------------------------


def test_the_time_left_is_what_was_predicted_corrected_by_what_cells_took(run_cli, folder):
    cells = [cell(seed=seed) for seed in range(4)]
    folder.asked(cells, predictions={config.hash: 10.0 for config in cells})
    assert records(run_cli, folder)[0]["seconds_left"] == 40
    folder.done(cells[0], seconds=20.0)
    assert records(run_cli, folder)[0]["seconds_left"] == 60
    folder.running(cells[1], round=5, rounds_per_second=None)
    assert records(run_cli, folder)[0]["seconds_left"] == 50
    folder.running(cells[2], round=5, rounds_per_second=None)
    assert records(run_cli, folder)[0]["seconds_left"] == 20
    for config in cells[1:]:
        folder.done(config)


def test_a_damaged_result_is_no_measure_and_no_trouble(run_cli, folder):
    cells = [cell(seed=0), cell(seed=1)]
    folder.asked(cells)
    folder.done(cells[0])
    (folder.of(cells[0]) / "run.json").write_text('{"summary": ')
    assert records(run_cli, folder)[0]["seconds_left"] is None


def test_only_a_few_results_of_many_are_read(run_cli, folder, monkeypatch):
    cells = [cell(seed=seed) for seed in range(40)]
    folder.asked(cells)
    for config in cells[:-1]:
        folder.done(config)
    read = []
    plain = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **more: read.append(path.name) or plain(path, **more))
    assert records(run_cli, folder)[0]["seconds_left"] == 10
    assert read.count("run.json") == 8


def test_throughput_is_of_what_came_since_the_matrix_began(run_cli, folder):
    cells = [cell(seed=seed) for seed in range(4)]
    folder.asked(cells, began=NOW - 600)
    folder.done(cells[0], at=NOW - 9000)
    folder.done(cells[1], at=NOW - 500)
    folder.done(cells[2], at=NOW - 300)
    folder.running(cells[3])
    (record,) = records(run_cli, folder)
    assert record["cells_per_minute"] == pytest.approx(0.2)
    assert record["rounds_per_second"] == 0.5
    assert "12 cells/h" in run_cli("status", str(folder.path))[1]


# --- which matrix --------------------------------------------------------------------------------------


def test_the_latest_matrix_is_shown_and_all_of_them_if_asked_for(run_cli, folder):
    folder.asked([cell(seed=0)], began=NOW - 100)
    folder.asked([cell(seed=1), cell(seed=2)], began=NOW - 50)
    folder.done(cell(seed=0))
    assert [record["cells"] for record in records(run_cli, folder)] == [2]
    assert [record["cells"] for record in records(run_cli, folder, "--all")] == [2, 1]
    out = run_cli("status", str(folder.path), "--all")[1]
    assert "0:00:50 ago" in out
    assert "0:01:40 ago" in out


def test_a_folder_without_a_matrix_is_shown_as_it_is(run_cli, folder):
    folder.done(cell())
    folder.failed(cell("zero_shot"))
    (record,) = records(run_cli, folder)
    assert record["matrix"] is None
    assert (record["done"], record["failed"]) == (1, 1)
    assert "no matrix is noted there" in run_cli("status", str(folder.path))[1]


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "other"])
def test_what_is_no_folder_of_results_is_one_line(run_cli, tmp_path, kind):
    path = tmp_path / kind
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "other":
        (path / "a" / "b" / "c").mkdir(parents=True)
    code, out, err = run_cli("status", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("flora-bench: results: ")
    assert err.count("\n") == 1


def test_a_damaged_matrix_is_left_out(run_cli, folder):
    good = folder.asked([cell()])
    for number, content in enumerate(
        ("{", "[]", '{"began": 1, "cells": []}', '{"began": "", "cells": [{}]}')
    ):
        (good.parent / f"{number}.json").write_text(content)
    assert list(load_matrices(folder.path)) == [good]
    assert len(records(run_cli, folder, "--all")) == 1


# --- the file of a matrix ------------------------------------------------------------------------------


def test_the_same_cells_have_one_file_in_whatever_order(folder):
    cells = [cell(seed=0), cell(seed=1)]
    file = save_matrix(folder.path, cells)
    assert save_matrix(folder.path, cells[::-1]) == file
    assert save_matrix(folder.path, cells[:1]) != file
    assert len(list(file.parent.iterdir())) == 2
    (matrix,) = (matrix for matrix in load_matrices(folder.path).values() if len(matrix["cells"]) == 2)
    assert [entry["label"] for entry in matrix["cells"]] == [
        "digits · flora · iid · seed 1",
        "digits · flora · iid · seed 0",
    ]
    expected = run_path(folder.path, cells[0].model_dump(mode="json"), cells[0].hash)
    assert folder.path / matrix["cells"][1]["path"] == expected


def test_it_holds_what_was_predicted_and_names_that_tell_cells_apart(folder):
    cells = [cell(), RunConfig.read({"method": "flora", "device": "cpu", "rounds": 7}), cell(seed=1)]
    folder.path.mkdir()
    (folder.path / "predictions.json").write_text(json.dumps({cells[0].hash: {"total_seconds": 3.5}}))
    save_matrix(folder.path, cells)
    (matrix,) = load_matrices(folder.path).values()
    assert [entry["predicted_seconds"] for entry in matrix["cells"]] == [3.5, None, None]
    assert [entry["label"] for entry in matrix["cells"]] == [
        "digits · flora · iid · seed 0 (rounds 10)",
        "digits · flora · iid · seed 0 (rounds 7)",
        "digits · flora · iid · seed 1",
    ]
    (folder.path / "predictions.json").write_text("{")
    save_matrix(folder.path, cells)
    (matrix,) = load_matrices(folder.path).values()
    assert [entry["predicted_seconds"] for entry in matrix["cells"]] == [None] * 3


def test_no_run_fails_for_a_matrix_that_cannot_be_written(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    assert save_matrix(folder.path, [cell()]) is None
    assert list((folder.path / "matrices").iterdir()) == []
    (folder.path / "matrices").rmdir()
    (folder.path / "matrices").write_text("")
    assert save_matrix(folder.path, [cell()]) is None


# --- watching ------------------------------------------------------------------------------------------


class Passing:
    """Time that passes only in sleep, when the next thing happens."""

    def __init__(self, *happenings):
        self.happenings = list(happenings)
        self.now = NOW

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds
        self.happenings.pop(0)()


def test_it_watches_until_every_cell_is_done_or_failed(run_cli, folder, monkeypatch):
    cells = [cell(seed=0), cell(seed=1)]
    folder.asked(cells)
    happenings = (lambda: folder.failed(cells[0]), lambda: None, lambda: folder.done(cells[1]))
    monkeypatch.setattr("bench.cli.status.time", Passing(*happenings))
    code, out, err = run_cli("status", str(folder.path), "--watch")
    assert (code, err) == (0, "")
    assert out.split("\n") == ["0 done, 2 left", "0 done, 1 failed, 1 left", "1 done, 1 failed", ""]


def test_an_interrupt_ends_the_watching_quietly(run_cli, folder, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    folder.asked([cell()])
    monkeypatch.setattr("bench.cli.status.time", Passing(lambda: None, interrupt))
    assert run_cli("status", str(folder.path), "--watch") == (0, "0 done, 1 left\n", "")


def test_watching_and_json_do_not_go_together(run_cli, folder):
    folder.asked([cell()])
    code, _, err = run_cli("status", str(folder.path), "--watch", "--json")
    assert code == 2
    assert err.startswith("flora-bench: --watch: ")


def test_it_loads_no_heavy_library(folder):
    folder.asked([cell(seed=0), cell(seed=1)])
    folder.done(cell(seed=0))
    looked = (
        "import sys; from bench.cli.status import _views; "
        "views = _views(__import__('pathlib').Path(sys.argv[1]), True); "
        "assert views[0].record()['done'] == 1; "
        "assert not {'torch', 'pandas', 'open_clip'} & set(sys.modules)"
    )
    root = str(Path(bench.cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", looked, str(folder.path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
