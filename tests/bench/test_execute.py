"""Many cells: what is there is skipped, what fails stays in its cell, what is damaged is left alone."""

import json
import signal
from contextlib import suppress

import pytest
from PIL import Image

import bench.cell
import bench.execute
import bench.inputs
from bench import store
from bench.config import RunConfig
from bench.execute import Outcome, Watcher, read_failure, run_matrix
from bench.interrupt import interruptible
from bench.sources import _kept_other, sources
from flora.errors import BadInput
from flora.events import Listener

SUMMARY = {"accuracy": 0.5, "zero_shot_accuracy": 0.25}


def cell(seed=0, **fields):
    small = {"data": {"max_train": 20, "max_test": 20}, "rounds": 1, "clients": 2, "device": "cpu"}
    return RunConfig.read({"method": "zero_shot", "seed": seed, **small, **fields})


def path_of(results, config):
    return store.run_path(results, config.model_dump(mode="json"), config.hash)


class Runs(list):
    """Stands in for `run_cell`: notes which seeds ran; raises what is planted for a seed."""

    def __init__(self):
        self.planted = {}

    def __call__(self, config, listeners=(), *_, **__):
        if not listeners:  # nobody watches: preparation, no cell of the matrix
            return {}
        self.append(config.seed.split)
        if error := self.planted.get(config.seed.split):
            raise error
        found = sources(config)
        return {
            "status": "complete",
            "data": {"fingerprint": found["data"], "suites": found["suites"]},
            "model": {"fingerprint": found["model"]},
            "config": config.model_dump(mode="json"),
            "config_hash": config.hash,
            "summary": {**SUMMARY, "run": len(self)},
            "rounds": [{"round": 0, "accuracy": 0.5}],
        }


@pytest.fixture
def runs(monkeypatch):
    runs = Runs()
    monkeypatch.setattr(bench.cell, "run_cell", runs)
    return runs


def statuses(cells, results, **options):
    return [outcome.status for outcome in run_matrix(cells, results, **options)]


# --- what ran before -----------------------------------------------------------------------------------


def test_a_cell_that_has_a_result_is_not_run_again(runs, tmp_path):
    assert statuses([cell(0), cell(1)], tmp_path) == ["ran", "ran"]
    outcomes = list(run_matrix([cell(0), cell(1), cell(2)], tmp_path))
    assert [outcome.status for outcome in outcomes] == ["kept", "kept", "ran"]
    assert runs == [0, 1, 2]
    assert [outcome.summary["accuracy"] for outcome in outcomes] == [0.5] * 3
    assert all(outcome.path.is_file() for outcome in outcomes)


def test_fresh_runs_it_again_and_replaces_it(runs, tmp_path):
    list(run_matrix([cell(0)], tmp_path))
    (outcome,) = run_matrix([cell(0)], tmp_path, fresh=True)
    assert outcome.status == "ran"
    assert store.load_run(outcome.path)["summary"]["run"] == 2


def test_a_result_is_kept_as_soon_as_its_cell_ends(runs, tmp_path):
    execution = run_matrix([cell(0), cell(1)], tmp_path)
    next(execution)
    assert store.load_run(path_of(tmp_path, cell(0)))
    assert not path_of(tmp_path, cell(1)).exists()
    assert runs == [0]


def test_the_results_folder_is_made(runs, tmp_path):
    (outcome,) = run_matrix([cell(0)], tmp_path / "a" / "b")
    assert outcome.path.is_relative_to(tmp_path / "a" / "b" / "digits" / "zero_shot")


def test_a_kept_matrix_loads_and_runs_nothing(runs, tmp_path, monkeypatch):
    list(run_matrix([cell(0)], tmp_path))
    monkeypatch.setattr(bench.inputs, "check", None)
    assert statuses([cell(0)], tmp_path) == ["kept"]


# --- what goes wrong in a cell -------------------------------------------------------------------------


def test_a_failing_cell_leaves_its_traceback_and_the_others_go_on(runs, tmp_path):
    runs.planted[1] = RuntimeError("the second\n    goes wrong")
    outcomes = list(run_matrix([cell(0), cell(1), cell(2)], tmp_path))
    assert [outcome.status for outcome in outcomes] == ["ran", "failed", "ran"]
    failed = outcomes[1]
    error_file = failed.path.with_name("error.txt")
    assert failed.reason == f"RuntimeError: the second goes wrong (traceback in {error_file})"
    assert not failed.path.exists()
    assert not failed.summary
    assert "Traceback" in error_file.read_text()


def test_a_failed_cell_is_tried_again_and_its_traceback_cleared(runs, tmp_path):
    runs.planted[0] = RuntimeError("once")
    assert statuses([cell(0)], tmp_path) == ["failed"]
    runs.planted.clear()
    assert statuses([cell(0)], tmp_path) == ["ran"]
    assert not path_of(tmp_path, cell(0)).with_name("error.txt").exists()


def test_a_failing_fresh_run_leaves_the_older_result(runs, tmp_path):
    list(run_matrix([cell(0)], tmp_path))
    runs.planted[0] = RuntimeError("now")
    assert statuses([cell(0)], tmp_path, fresh=True) == ["failed"]
    assert store.load_run(path_of(tmp_path, cell(0)))["summary"]["run"] == 1


def test_a_cell_that_turns_out_impossible_is_refused_and_the_others_go_on(runs, tmp_path):
    runs.planted[0] = BadInput("image 3.png cannot be read; repair or remove it")
    outcomes = list(run_matrix([cell(0), cell(1)], tmp_path))
    assert [outcome.status for outcome in outcomes] == ["refused", "ran"]
    assert outcomes[0].reason == "image 3.png cannot be read; repair or remove it"


def test_an_interrupt_keeps_what_is_finished_and_stops(runs, tmp_path):
    runs.planted[1] = KeyboardInterrupt()
    seen = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(run_matrix([cell(0), cell(1), cell(2)], tmp_path))
    assert runs == [0, 1]
    assert store.load_run(path_of(tmp_path, cell(0)))
    assert not path_of(tmp_path, cell(1)).exists()
    assert "interrupted" in path_of(tmp_path, cell(1)).with_name("log.txt").read_text()
    runs.planted.clear()
    assert statuses([cell(0), cell(1), cell(2)], tmp_path) == ["kept", "ran", "ran"]


# --- what is refused before anything runs --------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1}', "[]", '{"schema": 99, "from": "the future"}'])
def test_a_damaged_or_newer_result_is_named_and_left_alone(runs, tmp_path, content):
    damaged = path_of(tmp_path, cell(1))
    damaged.parent.mkdir(parents=True)
    damaged.write_text(content)
    with pytest.raises(BadInput) as caught:
        list(run_matrix([cell(0), cell(1)], tmp_path))
    assert str(caught.value).startswith(f"{damaged}: ")
    assert runs == []
    assert damaged.read_text() == content
    assert not path_of(tmp_path, cell(0)).exists()


def test_fresh_replaces_a_damaged_result(runs, tmp_path):
    damaged = path_of(tmp_path, cell(0))
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert statuses([cell(0)], tmp_path, fresh=True) == ["ran"]
    assert store.load_run(damaged)


def test_results_that_cannot_be_written_are_refused(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^results: cannot write to .*; choose another folder$"):
        list(run_matrix([cell(0)], tmp_path / "file"))
    assert runs == []


IMPOSSIBLE = [
    ({"clients": 500}, "clients"),
    ({"task": "digts"}, "task 'digts' is unknown; did you mean 'digits'?"),
    ({"model": "ViT-B-32:nothing"}, "model.name: open_clip has no weights 'nothing' of 'ViT-B-32'"),
    ({"split": "domain"}, "split"),
]


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE, ids=[message for _, message in IMPOSSIBLE])
def test_an_impossible_cell_is_refused_before_any_runs(runs, tmp_path, fields, message):
    with pytest.raises(BadInput) as caught:
        list(run_matrix([cell(0), cell(7, **fields)], tmp_path))
    assert " · seed 7: " in str(caught.value)
    assert message in str(caught.value)
    assert runs == []
    assert not any(tmp_path.iterdir())


CHANGES = {
    "data": "images changed",
    "model": "weights changed",
    "harness": "harness changed",
    "method": "method zero_shot changed",
    "task": "task digits changed",
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_result_whose_definition_has_changed_is_made_anew_and_why_is_told(runs, tmp_path, part):
    (ran,) = run_matrix([cell(0)], tmp_path)
    stored = json.loads(ran.path.read_text())
    stored["definition"][part] = "0" * 12
    ran.path.write_text(json.dumps(stored))
    assert statuses([cell(0)], tmp_path, keep_stale=True) == ["kept"]
    notes = Notes()
    assert statuses([cell(0)], tmp_path, watcher=notes) == ["ran"]
    assert notes.notes[0] == f"stale 0: {CHANGES[part]}"
    assert statuses([cell(0)], tmp_path) == ["kept"]
    assert runs == [0, 0]


# --- watchers ------------------------------------------------------------------------------------------


class Notes(Watcher):
    def __init__(self):
        self.notes = []

    def matrix_started(self, cells, left):
        self.notes.append((len(cells), len(left)))

    def found_stale(self, config, changes):
        self.notes.append(f"stale {config.seed.split}: {', '.join(changes)}")

    def cell_started(self, config):
        self.notes.append(f"start {config.seed.split}")
        return Listener()

    def cell_ended(self, outcome):
        self.notes.append(f"{outcome.status} {outcome.config.seed.split}")


def test_a_watcher_hears_of_the_cells_that_run_and_no_others(runs, tmp_path):
    list(run_matrix([cell(1)], tmp_path))
    runs.planted[2] = RuntimeError("planted")
    notes = Notes()
    list(run_matrix([cell(0), cell(1), cell(2)], tmp_path, watcher=notes))
    assert notes.notes == [(3, 2), "start 0", "ran 0", "start 2", "failed 2"]


def test_a_watcher_listens_to_the_running_cell(tmp_path):
    class Phases(Listener):
        def phase_started(self, phase):
            notes.notes.append(phase.name)

    class Listens(Notes):
        def cell_started(self, config):
            super().cell_started(config)
            return Phases()

    notes = Listens()
    (outcome,) = run_matrix([cell(0)], tmp_path, watcher=notes)
    assert outcome.status == "ran"
    told = [note for note in notes.notes if note not in ("prepare", "count")]
    assert told[:5] == [(1, 1), "start 0", "load", "features", "zero_shot"]
    assert notes.notes.count("load") == 1  # preparations are not told
    assert json.loads(outcome.path.read_text())["summary"] == outcome.summary


def test_an_outcome_without_a_result_has_an_empty_summary(tmp_path):
    assert Outcome(cell(0), "failed", tmp_path).summary == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_compiled_code_turned_into_an_error_is_one_all_the_same(number):
    before = signal.getsignal(number)

    def compiled_code():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object") from None

    with pytest.raises(KeyboardInterrupt), interruptible():
        compiled_code()
    assert signal.getsignal(number) is before
    with pytest.raises(ValueError, match="of its own"), interruptible():
        raise ValueError("of its own")


def test_a_cell_that_only_diverged_has_failed(tmp_path):
    wild = {"name": "sgd", "lr": 1e38}
    (outcome,) = run_matrix([cell(method="full_finetune", optimizer=wild, local_steps=3)], tmp_path)
    assert outcome.status == "failed"
    assert "every upload was refused" in outcome.reason
    assert not outcome.path.exists()


def test_a_result_whose_other_task_has_changed_is_not_taken_for_this_ones(tmp_path):
    other = tmp_path / "other"
    for name in ("red", "blue"):
        (other / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), name).save(other / name / f"{number}.png")
    asked = cell(evaluation={"retention": f"folder:{other}"})
    assert statuses([asked], tmp_path / "results") == ["ran"]
    assert statuses([asked], tmp_path / "results") == ["kept"]
    Image.new("RGB", (200, 200), "green").save(other / "red" / "0.png")
    _kept_other.cache_clear()
    assert statuses([asked], tmp_path / "results") == ["ran"]


# --- what a killed process leaves ----------------------------------------------------------------------


def _interrupted(_):
    raise KeyboardInterrupt


def _broken(_):
    raise OSError(5, "planted")


@pytest.mark.parametrize("fails", [_interrupted, _broken])
def test_a_result_that_was_complete_is_not_lost_with_the_process(runs, tmp_path, monkeypatch, fails):
    with monkeypatch.context() as patch:
        patch.setattr(bench.execute, "forget_attempts", fails)
        with suppress(KeyboardInterrupt):
            list(run_matrix([cell(0)], tmp_path))
    assert statuses([cell(0)], tmp_path) == ["kept"]
    assert runs == [0]
    assert not list(path_of(tmp_path, cell(0)).parent.glob(".*"))


def test_a_newer_result_that_was_complete_is_the_one_that_is_told_of(runs, tmp_path, monkeypatch):
    list(run_matrix([cell(0)], tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(store, "publish", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(run_matrix([cell(0)], tmp_path, fresh=True))
    (kept,) = run_matrix([cell(0)], tmp_path)
    assert (kept.status, kept.summary["run"]) == ("kept", 2)
    assert store.load_run(kept.path)["summary"]["run"] == 2


def test_what_is_left_beside_a_result_is_removed(runs, tmp_path):
    (ran,) = run_matrix([cell(0)], tmp_path)
    folder = ran.path.parent
    for name in (".lock", "failure.json", "error.txt", "progress.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoints" / "round-00001").mkdir(parents=True)
    assert statuses([cell(0)], tmp_path) == ["kept"]
    assert {path.name for path in folder.iterdir()} <= {"run.json", "rounds.csv", "log.txt"}


def test_images_that_change_while_the_matrix_runs_fail_the_cell(tmp_path, monkeypatch):
    others = {**sources(cell(0)), "data": "0" * 64}
    monkeypatch.setattr("bench.sources.sources", lambda config: others)
    (outcome,) = run_matrix([cell(0)], tmp_path)
    assert outcome.status == "failed"
    assert "data changed while the matrix ran" in outcome.reason
    assert not outcome.path.exists()


def test_a_failure_is_written_down_without_where_to_look_for_more(runs, tmp_path):
    runs.planted[0] = RuntimeError("planted")
    (outcome,) = run_matrix([cell(0)], tmp_path)
    noted = read_failure(outcome.path.parent)
    found = noted["reason"], noted["cause"], noted["traceback"]
    assert found == ("RuntimeError: planted", "error", "error.txt")
    runs.planted[0] = BadInput("image 3.png cannot be read")
    (outcome,) = run_matrix([cell(0)], tmp_path)
    assert read_failure(outcome.path.parent)["cause"] == "refused"
    assert read_failure(tmp_path) is None
