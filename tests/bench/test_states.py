"""Where cells stand is read off their folders, and what has changed since is said."""

import json

import pytest

from bench import store
from bench.config import RunConfig
from bench.definition import Definition, definition_of
from bench.locks import locked
from bench.states import State, states
from flora.errors import BadInput

CELL = RunConfig.read({"method": "flora", "task": "digits", "device": "cpu"})
OTHER = RunConfig.read({"method": "flora", "task": "digits", "device": "cpu", "rounds": 3})


def run_json(results, cell=CELL):
    return store.run_path(results, cell.model_dump(mode="json"), cell.hash)


def keep_result(results, cell=CELL, **changed):
    """Write a small result, of a definition some parts of which are others."""
    definition = {**definition_of(cell).to_dict(), **changed}
    definition["hash"] = Definition.read(definition).hash
    result = {"status": "complete", "config": cell.model_dump(mode="json"), "config_hash": cell.hash}
    result |= {"summary": {}, "rounds": [], "definition": definition, "sittings": []}
    store.save_run(run_json(results, cell), result)


def keep_checkpoint(results, number, definition=None):
    folder = run_json(results).parent / "checkpoints" / f"round-{number:05d}"
    folder.mkdir(parents=True)
    content = {"definition": definition or definition_of(CELL).hash, "version": 1, "round": number}
    (folder / "checkpoint.json").write_text(json.dumps(content))


def keep_failure(results, content=None):
    folder = run_json(results).parent
    folder.mkdir(parents=True, exist_ok=True)
    content = content or {"reason": "out of\n memory", "definition": definition_of(CELL).hash}
    (folder / "failure.json").write_text(content if isinstance(content, str) else json.dumps(content))


def state_in(results, cell=CELL):
    (state,) = states([cell], results)
    return state


def test_without_a_folder_all_is_new(tmp_path):
    assert states([CELL, OTHER], tmp_path / "none") == [State("new")] * 2
    assert not (tmp_path / "none").exists()


def test_cells_stand_each_for_themselves_and_in_order(tmp_path):
    keep_result(tmp_path, OTHER)
    assert states([CELL, OTHER], tmp_path) == [State("new"), State("done")]
    assert states([OTHER, CELL], tmp_path) == [State("done"), State("new")]


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"method": "0" * 12}, "method flora changed"),
        ({"task": "0" * 12}, "task digits changed"),
        ({"harness": "0" * 12}, "harness changed"),
        ({"data": "0", "model": "0"}, "images changed; weights changed"),
        (dict.fromkeys(("harness", "method", "task"), ""), "made before code versions were kept"),
    ],
)
def test_a_result_of_something_else_is_stale(tmp_path, changed, detail):
    keep_result(tmp_path, **changed)
    assert state_in(tmp_path) == State("stale", detail)


def test_a_result_without_a_definition_is_stale(tmp_path):
    keep_result(tmp_path)
    result = json.loads(run_json(tmp_path).read_text())
    run_json(tmp_path).write_text(json.dumps({**result, "definition": {}}))
    assert state_in(tmp_path) == State("stale", "made before code versions were kept")


def test_an_interrupted_cell_is_partial_at_its_newest_checkpoint(tmp_path):
    keep_checkpoint(tmp_path, 9)
    keep_checkpoint(tmp_path, 12)
    assert str(state_in(tmp_path)) == "partial at round 12"


def test_a_checkpoint_of_another_definition_is_of_no_use(tmp_path):
    keep_checkpoint(tmp_path, 12, definition="0" * 16)
    assert state_in(tmp_path) == State("new")


def test_a_failure_gives_its_reason_in_one_line(tmp_path):
    keep_failure(tmp_path)
    assert str(state_in(tmp_path)) == "failed: out of memory"


@pytest.mark.parametrize("content", [{"reason": "x", "definition": "0" * 16}, "{", "[]", "\x00"])
def test_a_failure_of_another_definition_or_that_cannot_be_read_is_none(tmp_path, content):
    keep_failure(tmp_path, content)
    assert state_in(tmp_path) == State("new")


def test_a_cell_that_a_process_is_on_is_running(tmp_path):
    keep_failure(tmp_path)
    with locked(run_json(tmp_path).parent):
        assert state_in(tmp_path) == State("running")
    assert state_in(tmp_path).kind == "failed"


def test_a_cell_whose_lock_cannot_be_read_is_running_if_it_shows_progress(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    keep_failure(tmp_path)
    monkeypatch.setattr("bench.standing.is_held", refuse)  # as root would not be refused
    assert state_in(tmp_path).kind == "failed"
    (run_json(tmp_path).parent / "progress.json").write_text("{}")
    assert state_in(tmp_path).kind == "running"


def test_of_several_the_first_holds(tmp_path):
    # done, running, stale, partial, failed, new
    keep_failure(tmp_path)
    keep_checkpoint(tmp_path, 4)
    assert state_in(tmp_path).kind == "partial"
    keep_result(tmp_path, harness="0" * 12)
    assert state_in(tmp_path).kind == "stale"
    with locked(run_json(tmp_path).parent):
        assert state_in(tmp_path).kind == "running"
        keep_result(tmp_path)
        assert state_in(tmp_path).kind == "done"


def test_a_damaged_result_of_a_cell_is_bad_input_and_one_of_no_cell_is_not(tmp_path):
    keep_result(tmp_path, OTHER)
    run_json(tmp_path, OTHER).write_text("{")
    assert state_in(tmp_path) == State("new")
    with pytest.raises(BadInput, match="damaged or cut short"):
        states([CELL, OTHER], tmp_path)


def test_results_whose_images_are_not_at_hand_are_not_compared(tmp_path):
    keep_result(tmp_path)
    gone = RunConfig.read({"task": f"folder:{tmp_path}/gone", "device": "cpu"})
    for cell in (gone, gone.with_seed(1)):
        run_json(tmp_path, cell).parent.mkdir(parents=True)
    result = json.loads(run_json(tmp_path).read_text())
    config = gone.model_dump(mode="json")
    run_json(tmp_path, gone).write_text(json.dumps({**result, "config": config, "config_hash": gone.hash}))
    found = states([CELL, gone, gone.with_seed(1)], tmp_path)
    assert [state.kind for state in found] == ["done", "done", "new"]
    assert all("not compared, " in state.detail and "gone" in state.detail for state in found[1:])
