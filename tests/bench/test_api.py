"""The suite from Python: what is yielded, what is shown, and that importing it costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import Matrix, Result, load_results, load_rounds, run
from bench.config import RunConfig
from bench.execute import InProcess
from bench.perf.apart import with_suite_on_path
from flora.errors import BadInput

SMALL = {"clients": 2, "rounds": 1, "data": {"max_train": 20, "max_test": 20}, "device": "cpu"}
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def found(results):
    return list(run(Matrix(method=["linear_probe", "zero_shot"], **SMALL), results))


def test_every_cell_yields_its_result(found, results):
    assert [result.status for result in found] == ["ran", "ran"]
    probe, zero_shot = found
    assert probe.config == RunConfig.read({"method": "linear_probe", **SMALL})
    assert 0 < probe.accuracy <= 1
    assert probe.accuracy == probe.summary["accuracy"] == probe.read()["summary"]["accuracy"]
    assert list(probe.rounds["round"]) == [0, 1]
    assert probe.rounds["accuracy"].iloc[-1] == probe.accuracy
    assert list(zero_shot.rounds["round"]) == [0]
    assert set(load_results(results)["config_hash"]) == {x.config.hash for x in found}
    assert len(load_rounds(results)) == 3


def test_a_second_time_everything_is_kept_and_a_loop_may_be_broken_off(found, results):
    for result in run(Matrix(method=["linear_probe", "zero_shot"], **SMALL), str(results)):
        assert result.status == "kept"
        break
    again = list(run([x.config for x in found], results))
    assert [(x.status, x.accuracy) for x in again] == [("kept", x.accuracy) for x in found]


def test_workers_give_the_same(found, results, tmp_path):
    apart = list(run(Matrix(method=["linear_probe", "zero_shot"], **SMALL), tmp_path, jobs=2))
    assert {x.config.hash: x.accuracy for x in apart} == {x.config.hash: x.accuracy for x in found}


def test_a_result_shows_itself(found):
    probe = found[0]
    assert probe.name == "digits · linear_probe · iid · seed 0"
    assert repr(probe) == f"<{probe.name}: ran, accuracy {probe.accuracy:.1%}>"
    html = probe._repr_html_()
    assert f"<caption>{probe.name}</caption>" in html
    assert f"<th>accuracy</th><td>{probe.accuracy:.1%}</td>" in html


def test_a_failed_cell_has_its_reason_and_no_figures(tmp_path):
    config = RunConfig.read({"method": "full_finetune", "optimizer": {"name": "sgd", "lr": 1e38}, **SMALL})
    config = config.model_copy(update={"local_steps": 3})
    (failed,) = run([config], tmp_path)
    assert failed.status == "failed"
    assert failed.accuracy is None
    assert "every upload was refused" in repr(failed)
    assert "<th>reason</th>" in failed._repr_html_()
    with pytest.raises(BadInput):
        failed.read()


def test_text_from_a_configuration_is_escaped_in_html(tmp_path):
    named = RunConfig.read({"task": "folder:/<b>", "method": "zero_shot", **SMALL})
    shown = Result(named, "refused", tmp_path / "run.json", {}, "no <i> here")._repr_html_()
    assert "<b>" not in shown
    assert "<i>" not in shown


def test_a_preset_is_named_and_a_wrong_name_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="there is no preset and no file 'quik'; did you mean 'quick'"):
        next(run("quik", tmp_path))
    with pytest.raises(BadInput, match="jobs: 0"):
        next(run(Matrix(**SMALL), tmp_path, jobs=0))


def test_what_a_script_imports_is_there_and_nothing_else():
    assert sorted(dir(bench)) == sorted(bench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = bench.runs


def test_importing_the_suite_imports_neither_torch_nor_pandas():
    code = "import sys, bench; from bench import Matrix; assert not {'torch', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=with_suite_on_path(), check=True)


def test_the_example_runs(tmp_path):
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "compare_methods.py")],
            env=with_suite_on_path(),
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
    assert done.stdout.count(": kept, accuracy") == 6
    assert "payload_bytes" in done.stdout


def test_a_matrix_shows_itself():
    matrix = Matrix(method=["flora", "linear_probe"], seed=[0, 1, 2], exclude=[{"seed": 2}])
    assert repr(matrix) == "<Matrix of at most 6 cells: method=['flora', 'linear_probe'], seed=[0, 1, 2]>"
    assert repr(Matrix()) == "<Matrix of 1 cell: defaults>"
    html = matrix._repr_html_()
    assert "<caption>Matrix of at most 6 cells</caption>" in html
    assert "<th>method</th><td>[&#x27;flora&#x27;, &#x27;linear_probe&#x27;]</td>" in html


def test_far_too_many_cells_are_refused_at_once(tmp_path):
    many = Matrix(seed=list(range(3000)), rounds=list(range(1, 2001)), clients=[2, 3])
    with pytest.raises(BadInput, match="12,000,000 cells"):
        next(run(many, tmp_path))


def test_an_executor_has_its_own_number_of_jobs(tmp_path):
    with pytest.raises(BadInput, match="executor: has its own"):
        next(run(Matrix(**SMALL), tmp_path, jobs=2, executor=InProcess()))
