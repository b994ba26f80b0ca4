"""`flora-bench plan`, run in this process: where cells stand, what is predicted, and when it asks."""

import json

import pytest
import typer

from bench import calibration, estimate, store
from bench.calibration import Calibration
from bench.cli.confirm import confirmed
from bench.definition import definition_of
from bench.matrix import MANY_CELLS, Matrix
from flora.errors import BadInput

SPEED = Calibration((10, 10**9), (1e9, 1e10), 1e9, (10, 10**6), (1e9, 1e9), 1e-5)
MATRIX = """
task: digits
method: [linear_probe, flora]
seed: [0, 1]
rounds: 2
clients: 2
data: {max_train: 20, max_test: 10}
device: cpu
"""
MANY = Matrix(seed=list(range(MANY_CELLS + 1)))


@pytest.fixture(autouse=True)
def calibrated(monkeypatch):
    monkeypatch.setattr(calibration, "calibrate", lambda **_: SPEED)


@pytest.fixture
def estimated(monkeypatch):
    """Note of which methods an estimate is made."""
    made = []
    real = estimate.estimate
    monkeypatch.setattr(estimate, "estimate", lambda config: made.append(config.method.name) or real(config))
    return made


@pytest.fixture
def matrix(tmp_path):
    file = tmp_path / "matrix.yaml"
    file.write_text(MATRIX)
    return str(file)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def keep(results, cell, **changed):
    result = {"status": "complete", "config": cell.model_dump(mode="json"), "config_hash": cell.hash}
    definition = {**definition_of(cell).to_dict(), **changed}
    result |= {"summary": {}, "rounds": [], "definition": definition, "sittings": []}
    store.save_run(store.run_path(results, result["config"], cell.hash), result)


def planned(run_cli, matrix, results, *options):
    code, out, err = run_cli("plan", matrix, "--results", str(results), "--no-time", *options)
    assert (code, err) == (0, "")
    return out


def test_the_state_of_every_cell_is_given_with_its_hashes(run_cli, matrix, results):
    cells = Matrix.read(matrix).cells()
    keep(results, cells[0])
    keep(results, cells[3], method="0" * 12)
    found = json.loads(planned(run_cli, matrix, results, "--states", "--json"))
    listed = [state for row in found for state in row["states"]]
    assert [state["config_hash"] for state in listed] == [cell.hash for cell in cells]
    assert [state["definition_hash"] for state in listed] == [definition_of(cell).hash for cell in cells]
    assert [state["state"] for state in listed] == ["done", "new", "new", "stale"]
    assert [state["detail"] for state in listed] == ["", "", "", "method flora changed"]
    assert [row["done"] for row in found] == [1, 0]


def test_cells_that_stand_alike_are_counted_together(run_cli, matrix, results, monkeypatch):
    cells = Matrix.read(matrix).cells()
    keep(results, cells[0])
    for cell in cells[2:]:
        keep(results, cell, method="0" * 12)
    monkeypatch.setenv("COLUMNS", "120")
    out = planned(run_cli, matrix, results)
    assert "1 done, 1 new" in out
    assert "  stale: method flora changed  " in out
    assert "stale: method flora changed (2 runs)\n" in out
    assert "1 done, 1 new, 2 stale: 3 runs to do" in out
    monkeypatch.setenv("COLUMNS", "80")
    narrow = planned(run_cli, matrix, results)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "stale: method flora changed (2 runs)\n" in narrow


def test_a_reason_in_brackets_is_shown_as_it_is(run_cli, matrix, results):
    cell = Matrix.read(matrix).cells()[0]
    folder = store.run_path(results, cell.model_dump(mode="json"), cell.hash).parent
    folder.mkdir(parents=True)
    noted = {"reason": "RuntimeError: [bold]no[/bold] memory", "definition": definition_of(cell).hash}
    (folder / "failure.json").write_text(json.dumps(noted))
    assert "failed: RuntimeError: [bold]no[/bold] memory (1 run)\n" in planned(run_cli, matrix, results)


def test_what_is_done_is_not_predicted_but_to_save_it(run_cli, matrix, results, estimated):
    for cell in Matrix.read(matrix).cells()[:2]:
        keep(results, cell)
    planned(run_cli, matrix, results)
    assert estimated == ["flora"]
    planned(run_cli, matrix, results, "--save")
    assert estimated == ["flora", "linear_probe", "flora"]
    planned(run_cli, matrix, results)
    assert len(estimated) == 3  # all of it was saved


def test_a_saved_prediction_is_shown_again_and_made_anew_where_time_is_missing(
    run_cli, matrix, results, estimated
):
    first = json.loads(planned(run_cli, matrix, results, "--save", "--json"))
    again = json.loads(planned(run_cli, matrix, results, "--json"))
    assert len(estimated) == 2
    assert [row["how"] for row in again] == ["saved before"] * 2
    assert [row["bytes_up"] for row in again] == [row["bytes_up"] for row in first]
    code, out, _ = run_cli("plan", matrix, "--results", str(results), "--json")
    assert (code, len(estimated)) == (0, 4)
    assert all(row["total_seconds"] > 0 for row in json.loads(out))


def test_states_alone_predict_nothing(run_cli, matrix, results, estimated):
    out = planned(run_cli, matrix, results, "--states")
    assert "new" in out
    assert "4 runs to do\n" in out
    assert "tensors" not in out
    assert not estimated
    code, _, err = run_cli("plan", matrix, "--results", str(results), "--states", "--save")
    assert (code, err.count("\n")) == (2, 1)
    assert "--save: has nothing to keep with --states" in err


def test_more_kinds_of_cells_than_one_waits_for_are_not_predicted_unasked(
    run_cli, matrix, results, estimated, monkeypatch
):
    monkeypatch.setattr("bench.cli.plan.PREDICTED", 1)
    out = " ".join(planned(run_cli, matrix, results).split())
    assert "4 runs to do; 2 kinds of cells are not predicted, as it takes a while; --save does it" in out
    assert not estimated
    planned(run_cli, matrix, results, "--save")
    assert len(estimated) == 2


def test_a_done_matrix_has_nothing_to_do(run_cli, matrix, results, estimated):
    for cell in Matrix.read(matrix).cells():
        keep(results, cell)
    assert "4 done: 0 runs to do\n" in planned(run_cli, matrix, results)
    assert not estimated


# --- very many cells -----------------------------------------------------------------------------------


def test_few_cells_and_a_given_answer_are_not_asked_about(monkeypatch):
    monkeypatch.setattr(typer, "confirm", None)  # calling it would fail
    few = Matrix(seed=list(range(MANY_CELLS)))
    assert confirmed(few, yes=False) is few
    assert confirmed(MANY, yes=True) is MANY


def test_without_a_terminal_very_many_cells_are_refused(run_cli, monkeypatch, matrix):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    complaint = "the matrix has 10,001 cells, more than 10,000; give --yes to go on with them"
    with pytest.raises(BadInput, match=f"^{complaint}$"):
        confirmed(MANY, yes=False)
    code, out, err = run_cli("plan", matrix, "--set", f"rounds={list(range(1, 5002))}", "--states")
    assert (code, out) == (2, "")
    assert (
        err == "flora-bench: the matrix has 20,004 cells, more than 10,000; give --yes to go on with them\n"
    )


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_user_is_asked(monkeypatch, answer):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    asked = []

    def confirm(question, **options):
        asked.append(question)
        if not answer:
            raise typer.Abort

    monkeypatch.setattr(typer, "confirm", confirm)
    if answer:
        assert confirmed(MANY, yes=False) is MANY
    else:
        with pytest.raises(typer.Abort):
            confirmed(MANY, yes=False)
    assert asked == ["This matrix has 10,001 cells; go on?"]
