"""`flora-bench compare`: two sources, exit codes, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import store
from tests.bench.conftest import Run

ROOT = Path(__file__).parents[3]
QUICK = ROOT / "results/reference/quick"
PROBE = "a.py::test_encode"

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder without a pyproject.toml, whose budgets would hold."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def probes(tmp_path_factory) -> Path:
    """Flora's runs of the reference results."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    shutil.copytree(QUICK / "digits/flora", folder / "digits/flora")
    return folder


@pytest.fixture
def changed(probes, tmp_path) -> Path:
    """The same, of which one has a payload of one byte more."""
    folder = tmp_path / "new"
    shutil.copytree(probes, folder)
    path = sorted(folder.glob("digits/flora/*/run.json"))[0]
    run = store.load_run(path)
    store.save_run(
        path, {**run, "summary": {**run["summary"], "payload_bytes": run["summary"]["payload_bytes"] + 1}}
    )
    return folder


def benchmarks(path: Path, **extra) -> Path:
    entry = {"fullname": PROBE, "name": "test_encode", "stats": {"median": 1.0}, "extra_info": extra}
    path.write_text(json.dumps({"machine_info": {}, "commit_info": {}, "benchmarks": [entry]}))
    return path


def test_what_is_the_same_exits_with_0(run_cli: Run, probes):
    code, out, _ = run_cli("compare", str(probes), str(probes))
    assert code == 0
    assert out.splitlines()[-1].startswith("none worse (of ")


def test_one_byte_more_in_one_of_many_runs_exits_with_1_and_is_named(run_cli: Run, probes, changed):
    code, out, _ = run_cli("compare", str(probes), str(changed))
    assert code == 1
    (row,) = [line for line in out.splitlines() if line.startswith("worse ")]
    assert "(+1 B" in row
    assert out.splitlines()[-1].startswith("worse: 1 metric of 1 cell (of ")


def test_a_run_is_compared_by_its_file_too(run_cli: Run, probes, changed):
    paths = [sorted(folder.glob("digits/flora/*/run.json"))[0] for folder in (probes, changed)]
    assert run_cli("compare", *map(str, paths))[0] == 1


def test_budgets_of_the_folder_and_of_a_file_hold(run_cli: Run, probes, changed, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.flora-bench.gate.metrics.payload_bytes]\nabsolute = 1\n")
    assert run_cli("compare", str(probes), str(changed))[0] == 0
    gate = tmp_path / "gate.toml"
    gate.write_text('[[accepted]]\nmetric = "payload_bytes"\nreason = "the old header"\nuntil = 2020-01-31\n')
    code, out, _ = run_cli("compare", str(probes), str(changed), "--gate", str(gate))
    assert code == 1
    assert "was accepted until 2020-01-31: the old header" in out


def test_a_cell_that_new_lacks_fails_if_all_is_asked_for(run_cli: Run, probes, changed):
    sides = str(probes), str(probes.parent / "fewer")
    shutil.copytree(probes, sides[1], dirs_exist_ok=True)
    shutil.rmtree(sorted(Path(sides[1]).glob("digits/flora/*"))[0])
    code, out, _ = run_cli("compare", *sides)
    assert code == 0
    assert "only in BASE: 1: digits, flora" in out
    assert out.splitlines()[-1].endswith("; 1 only in BASE")
    code, out, _ = run_cli("compare", *sides, "--complete")
    assert code == 1
    assert out.splitlines()[-1].endswith("; 1 only in BASE, which fails")
    assert run_cli("compare", *reversed(sides), "--complete")[0] == 0


def test_figures_of_pytest_benchmark_are_compared(run_cli: Run, tmp_path):
    one = benchmarks(tmp_path / "one.json", payload_bytes=8)
    other = benchmarks(tmp_path / "other.json", payload_bytes=9)
    code, out, _ = run_cli("compare", str(one), str(other))
    assert code == 1
    assert "8 B -> 9 B (+1 B, +12 %)" in out


def test_where_nothing_can_be_judged_it_exits_with_2_and_says_why(run_cli: Run, tmp_path):
    one = benchmarks(tmp_path / "one.json")
    code, out, _ = run_cli("compare", str(one), str(one))
    assert code == 2
    assert "plain times are not compared" in out
    assert out.splitlines()[-1] == "nothing could be judged (of 1 metric)"


def test_json_and_markdown_are_printed_alone(run_cli: Run, probes, changed):
    code, out, _ = run_cli("compare", str(probes), str(changed), "--json")
    assert code == 1
    assert json.loads(out)["counts"]["worse"] == 1
    code, out, _ = run_cli("compare", str(probes), str(changed), "--markdown")
    assert code == 1
    assert out.startswith("❌ **worse: 1 metric of 1 cell")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.json", None, "none.json: cannot be read (No such file or directory)"),
        ("empty.json", "", "empty.json: is no JSON"),
        ("list.json", "[]", "list.json: holds a list and no measurements"),
        ("future.json", '{"format": "flora-bench measurements", "schema": 99}', "has schema 99"),
        ("other.json", '{"benchmarks": [{"fullname": "b", "stats": {"median": 1}}]}', "in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_2(run_cli: Run, tmp_path, name, content, problem):
    base = benchmarks(tmp_path / "base.json")
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = run_cli("compare", str(base), name)
    assert (code, out) == (2, "")
    assert problem in err
    assert len(err.splitlines()) == 1


def test_a_wrong_budget_and_two_formats_are_refused(run_cli: Run, tmp_path):
    base = str(benchmarks(tmp_path / "base.json"))
    (tmp_path / "gate.toml").write_text("[metrics.payload_byte]\nabsolute = 1\n")
    code, _, err = run_cli("compare", base, base, "--gate", "gate.toml")
    assert code == 2
    assert "did you mean 'payload_bytes'?" in err
    code, _, err = run_cli("compare", base, base, "--json", "--markdown")
    assert code == 2
    assert "exclude each other" in err


def test_small_files_are_compared_without_what_is_heavy(tmp_path):
    one = benchmarks(tmp_path / "one.json", payload_bytes=8)
    code = (
        "import sys; from bench.cli import main; sys.argv = ['flora-bench', 'compare', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'scipy', 'pandas', 'matplotlib'} & {*sys.modules}, sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, str(one), str(one)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
