"""`flora-bench ab` on a small project: what is measured, what is refused, what is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.regress import interleave
from tests.bench.regress.project import PROBES, commit, git, make_project, write

ONE = "checks/perf/test_work.py::test_work"
OTHER = "checks/perf/test_work.py::test_pedantic"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    make_project(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ab(run_cli, monkeypatch):
    # as short as it gets: what is told of times is not looked at
    monkeypatch.setattr(interleave, "BURST_SECONDS", 0.001)
    monkeypatch.setattr(interleave, "_LOAD_SECONDS", 0.01)

    def run(*arguments, limit="6s"):
        return run_cli("ab", "--probes", "checks", "--limit", limit, *arguments)

    return run


def judged(out):
    found = {}
    for judgement in json.loads(out)["judgements"]:
        found.setdefault(judgement["metric"], {})[judgement["subject"]] = judgement
    return found


def test_a_project_with_probes_is_measured_and_its_figures_compared(project, ab, run_cli, tmp_path):
    write(project, factor=4, payload=101)
    commit(project)
    code, out, err = ab("--base", "HEAD~1", "--out", str(tmp_path / "out"), "--json")
    found = judged(out)
    assert code == 1
    assert found["payload_bytes"][ONE]["verdict"] == "worse"
    assert (found["payload_bytes"][ONE]["base"], found["payload_bytes"][ONE]["new"]) == (100, 101)
    assert set(found["seconds"]) == {ONE, OTHER}
    assert "round 1: " in err
    sides = [json.loads((tmp_path / "out" / f"{side}.json").read_text()) for side in ("base", "head")]
    rounds = [[x["extra_info"]["interleaved"]["rounds"] for x in side["benchmarks"]] for side in sides]
    assert [[len(x) for x in probe] for probe in rounds[0]] == [
        [len(x) for x in probe] for probe in rounds[1]
    ]
    code, _, _ = run_cli("compare", *(str(tmp_path / "out" / f"{side}.json") for side in ("base", "head")))
    assert code == 1


def test_the_working_tree_is_the_head_with_changes_and_without_what_git_does_not_know(project, ab):
    write(project, factor=2)
    (project / "new.py").write_text("")
    _, out, err = ab("--base", "HEAD", "--json", limit="1s")
    assert "with changes, which no commit has yet" in err
    assert "not measured, as git does not know them: new.py; `git add` them" in err
    assert git(project, "stash", "list") == ""
    assert "factor" not in git(project, "status", "--short")
    assert git(project, "status", "--short").splitlines() == ["M work/__init__.py", "?? new.py"]
    assert json.loads(out)["new"].endswith("with changes")


def test_with_too_little_time_nothing_is_judged_and_that_is_no_pass(project, ab):
    package = project / "work" / "__init__.py"
    package.write_text(package.read_text() + "\n\nMORE = 1\n")
    commit(project)
    code, out, _ = ab("--base", "HEAD~1", "-k", "pedantic", limit="1s")
    assert code == 2
    assert "rounds; 6 are needed" in out


def test_worktrees_are_gone_afterwards(project, ab):
    write(project, factor=2)
    commit(project)
    ab("--base", "HEAD~1", limit="1s")
    assert len(git(project, "worktree", "list").splitlines()) == 1


def test_a_probe_that_one_side_lacks_is_named_and_one_that_fails_is_not_lost_silently(project, ab):
    probes = (
        PROBES
        + """

def test_newer(benchmark):
    from work import newer
    benchmark(newer)


def test_broken(benchmark):
    benchmark(len, 3)
"""
    )
    write(project, probes=probes)
    package = project / "work" / "__init__.py"
    package.write_text(package.read_text() + "\n\ndef newer():\n    return 1\n")
    commit(project)
    _, out, _ = ab("--base", "HEAD~1", "--json", limit="1s")
    times = judged(out)["seconds"]
    newer = times["checks/perf/test_work.py::test_newer"]
    assert newer["verdict"] == "not judged"
    assert "fails on the base: " in newer["note"]
    assert "cannot import name 'newer'" in newer["note"]
    assert times["checks/perf/test_work.py::test_broken"]["verdict"] == "not judged"


def test_a_probe_that_fails_on_the_head_alone_fails_the_gate(project, ab):
    package = project / "work" / "__init__.py"
    package.write_text("PAYLOAD = 1\n\n\ndef work(n=200):\n    return -1\n")
    commit(project)
    code, out, _ = ab("--base", "HEAD~1", "--json", limit="1s")
    broken = judged(out)["seconds"][ONE]
    assert (code, broken["verdict"]) == (1, "lost")
    assert broken["note"].startswith("fails on the head: ")


def test_calibration_is_recorded_and_used(project, ab, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.regress.ab.MIN_ROUNDS", 2)
    file = tmp_path / "noise.json"
    code, out, _ = ab("--calibrate", "--noise", str(file), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["false_alarm_rate"] == 0.001
    kept = json.loads(file.read_text())["machines"][told["machine"]]
    assert kept[ONE]["deviation"] == told["probes"][ONE]["deviation"] > 0
    assert kept[ONE]["degrees"] >= 2
    write(project, factor=2)
    commit(project)
    ab("--base", "HEAD~1", "--noise", str(file), "--out", str(tmp_path / "out"), limit="1s")
    benchmarks = json.loads((tmp_path / "out" / "head.json").read_text())["benchmarks"]
    spread = {x["fullname"]: x["extra_info"]["interleaved"]["spread"] for x in benchmarks}
    assert spread[ONE] == kept[ONE]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--base: name the revision to compare with"),
        (("--base", "HEAD", "--calibrate"), "--base: name the revision to compare with"),
        (("--base", "nowhere"), "--base: 'nowhere' is no revision of project"),
        (("--base", "HEAD", "--head", "gone"), "--head: 'gone' is no revision of project"),
        (("--base", "HEAD"), "is the head, too; give --calibrate"),
        (("--calibrate", "--probes", "elsewhere"), "--probes: "),
        (("--calibrate", "--probes", "/tmp"), "--probes: "),
        (
            ("--calibrate", "-k", "nothing_like_it"),
            "no probe in common in 'checks' that -k 'nothing_like_it'",
        ),
        (("--calibrate", "--limit", "soon"), "--limit: "),
        (
            ("--calibrate", "--base-env", "/nowhere"),
            "--base-env: '/nowhere' is neither a virtual environment",
        ),
        (("--base", "HEAD", "--json", "--markdown"), "exclude each other"),
        (("--calibrate", "--limit", "1s"), "too few to tell noise"),
    ],
)
def test_bad_input_is_one_line(project, ab, arguments, said):
    code, _, err = ab(*arguments)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in err


def test_outside_of_a_repository_it_says_so(tmp_path, ab, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ab("--base", "HEAD")
    assert code == 2
    assert "not a git repository" in err


def test_a_revision_that_cannot_be_imported_names_why(project, ab):
    (project / "work" / "__init__.py").write_text("raise RuntimeError('no such thing')\n")
    commit(project)
    code, _, err = ab("--base", "HEAD~1")
    assert code == 2
    assert "no probe in common" in err


def test_a_process_that_dies_ends_it_with_its_log(project, ab):
    package = project / "work" / "__init__.py"
    package.write_text(
        "import os\n\nPAYLOAD = 1\n\n\ndef work():\n    os.write(2, b'last words')\n    os._exit(3)\n"
    )
    commit(project)
    code, _, err = ab("--base", "HEAD~1")
    assert code == 2
    assert "last words" in err
    assert "head: the process of its probes ended; the end of its log is above" in err


def test_a_revision_that_does_not_install_shows_its_log(project, ab, monkeypatch):
    pip = subprocess.run
    steps = []

    def install(command, **kwargs):
        if "venv" in command or "pip" in command:
            steps.append(command)
            script = "import sys; print('error: no such requirement'); sys.exit('pip' in sys.argv)"
            command = [sys.executable, "-c", script, "pip" if "pip" in command else "venv"]
        return pip(command, **kwargs)

    monkeypatch.setattr(subprocess, "run", install)
    code, _, err = ab("--calibrate", "--base-env", "install")
    assert code == 2
    assert "  error: no such requirement" in err.splitlines()
    assert "--base-env: the revision does not install" in err
    assert str(Path(steps[1][0]).parent.parent) == steps[0][-1]


def test_code_that_is_not_the_revisions_is_refused(project, ab, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "work"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("PAYLOAD = 1\n\n\ndef work(n=200):\n    return 1\n")
    probes = f"import sys\nsys.path.insert(0, {str(elsewhere.parent)!r})\n{PROBES}"
    (project / "checks" / "perf" / "test_work.py").write_text(probes)
    commit(project)
    code, _, err = ab("--calibrate")
    assert code == 2
    assert "'work' was imported from" in err
    assert "and not from the revision" in err
