"""`flora-bench ab` on a small project: what is measured, what is refused, what is left behind."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

import bench.regress.ab
from bench.regress import interleave
from tests.bench.regress.project import PROBES, commit, git, make_project, write

ONE = "checks/perf/test_work.py::test_work"
OTHER = "checks/perf/test_work.py::test_pedantic"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, of whose measurement nothing is left behind, however it ends."""
    folder, temporary = tmp_path / "project", tmp_path / "temporary"
    temporary.mkdir()
    make_project(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = psutil.Process().children()
    yield folder
    assert len(git(folder, "worktree", "list").splitlines()) == 1
    assert list(temporary.iterdir()) == []
    assert [process for process in psutil.Process().children() if process not in before] == []


@pytest.fixture
def ab(run_cli, monkeypatch):
    # as short as it gets: what is told of times is not looked at
    monkeypatch.setattr(interleave, "BURST_SECONDS", 0.001)
    monkeypatch.setattr(interleave, "_LOAD_SECONDS", 0.01)
    monkeypatch.setattr(bench.regress.ab, "_LEAST_SECONDS", 0.01)
    monkeypatch.setattr(bench.regress.ab, "_MOST_SECONDS", 0.01)

    # by default one round, as the first is made however short the limit
    def run(*arguments, limit="0.1s"):
        return run_cli("ab", "--probes", "checks", "--limit", limit, *arguments)

    return run


def judged(out):
    found = {}
    for judgement in json.loads(out)["judgements"]:
        found.setdefault(judgement["metric"], {})[judgement["subject"]] = judgement
    return found


def test_a_project_with_probes_is_measured_and_its_figures_compared(project, ab, run_cli, tmp_path):
    write(project, factor=9, payload=101)
    commit(project)
    # nine times the work counts, and the other probe is the same for all that a busy machine does to it
    (tmp_path / "gate.toml").write_text("[gate.metrics.seconds]\nrelative = 3.0\n")
    gate = ("--gate", str(tmp_path / "gate.toml"))
    code, out, err = ab("--base", "HEAD~1", *gate, "--out", str(tmp_path / "out"), "--json", limit="60s")
    found = judged(out)
    assert code == 1
    assert found["seconds"][ONE]["verdict"] == "worse"
    assert found["payload_bytes"][ONE]["verdict"] == "worse"
    assert (found["payload_bytes"][ONE]["base"], found["payload_bytes"][ONE]["new"]) == (100, 101)
    assert found["seconds"][OTHER]["verdict"] == "same"
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
    _, out, err = ab("--base", "HEAD", "--json")
    assert "with changes, which no commit has yet" in err
    assert "not measured, as git does not know them: new.py; `git add` them" in err
    assert git(project, "stash", "list") == ""
    assert "factor" not in git(project, "status", "--short")
    assert git(project, "status", "--short").splitlines() == ["M work/__init__.py", "?? new.py"]
    assert json.loads(out)["new"].endswith("with changes")


def test_with_too_little_time_nothing_is_judged_and_that_is_no_pass(project, ab):
    write(project, factor=9)
    commit(project)
    code, out, err = ab("--base", "HEAD~1", "-k", "test_work")
    assert code == 2
    assert "6 are needed" in out
    assert "of the 6 that are needed; give more --limit, or choose probes by -k" in err
    assert "none worse (of 1 metric compared)" in out  # the payload that the probe leaves
    assert err.splitlines()[-1] == "flora-bench: no time could be judged, so that this is no pass"


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
    _, out, _ = ab("--base", "HEAD~1", "--json")
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
    code, out, _ = ab("--base", "HEAD~1", "--json")
    broken = judged(out)["seconds"][ONE]
    assert (code, broken["verdict"]) == (1, "lost")
    assert broken["note"].startswith("fails on the head: ")


def test_calibration_is_recorded_and_used(project, ab, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.regress.ab.MIN_ROUNDS", 1)
    write(project, probes=PROBES + "\n\ndef test_broken(benchmark):\n    benchmark(len, 3)\n")
    file = tmp_path / "noise.json"
    code, out, err = ab("--calibrate", "--noise", str(file), "--json")
    assert code == 0
    assert "::test_broken could not be measured: TypeError: object of type 'int' has no len()" in err
    told = json.loads(out)
    assert told["false_alarm_rate"] == 0.001
    kept = json.loads(file.read_text())["machines"][told["machine"]]
    assert kept[ONE]["deviation"] == told["probes"][ONE]["deviation"] > 0
    assert kept[ONE]["degrees"] == 1
    write(project, factor=2)
    commit(project)
    ab("--base", "HEAD~1", "--noise", str(file), "--out", str(tmp_path / "out"))
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
        (("--calibrate",), "too few to tell noise"),
        (("--calibrate", "--out", "out"), "--calibrate compares nothing; leave out --out"),
        (("--calibrate", "-k", "not (closed"), ": the process of its probes ended at the collection"),
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
    code, out, _ = ab("--base", "HEAD~1")
    assert code == 1
    assert "fails on the head: not collected: RuntimeError: no such thing" in out


def test_a_file_of_probes_that_the_head_cannot_import_fails_the_gate(project, ab):
    probes = "from work import {name}\n\n\ndef test_it(benchmark):\n    benchmark({name})\n"
    places = {"old": "checks/test_old.py", "newer": "checks/test_new.py", "neither": "checks/test_no.py"}
    package = project / "work" / "__init__.py"
    package.write_text(package.read_text() + "\n\ndef old():\n    pass\n")
    for name, place in places.items():
        (project / place).write_text(probes.format(name=name))
    commit(project)
    package.write_text(package.read_text().replace("def old", "def newer"))
    commit(project)
    code, out, _ = ab("--base", "HEAD~1", "-k", "test_it or test_work", "--json")
    times, caveats = judged(out)["seconds"], json.loads(out)["caveats"]
    lost, newer = (times[f"{places[name]}::test_it"] for name in ("old", "newer"))
    assert code == 1
    assert (lost["verdict"], newer["verdict"]) == ("lost", "not judged")
    assert lost["note"].startswith("fails on the head: not collected: ImportError: cannot import name 'old'")
    assert newer["note"].startswith("fails on the base: not collected: ImportError: cannot import name 'new")
    assert any(told.startswith(f"{places['neither']} was not collected on either side: ") for told in caveats)


def test_a_probe_that_fails_in_a_later_round_fails_the_gate(project, ab, tmp_path):
    package = project / "work" / "__init__.py"
    # the head's first process leaves a file for its second
    seen = str(tmp_path / "seen")
    code = f"import pathlib\nseen = pathlib.Path({seen!r})\nassert not seen.exists()\nseen.touch()\n"
    package.write_text(f"{package.read_text()}\n\n{code}")
    (project / "checks" / "perf" / "test_work.py").write_text(
        PROBES.replace("from work import PAYLOAD, work", "work = len")
        .replace("benchmark(work) > 0", "benchmark(work, 'a')")
        .replace("= PAYLOAD", "= __import__('work').PAYLOAD")
    )
    commit(project)
    code, out, _ = ab("--base", "HEAD~1", "--json")
    assert code == 1
    assert judged(out)["seconds"][ONE]["verdict"] == "lost"
    assert judged(out)["seconds"][ONE]["note"].startswith("fails on the head: AssertionError")


def test_an_interrupt_says_what_there_is_and_leaves_nothing_behind(project, ab, monkeypatch):
    rounds = []

    def measure_round(*arguments):
        rounds.append(bench.regress.interleave.measure_round(*arguments))
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return rounds[-1]

    monkeypatch.setattr(bench.regress.ab, "measure_round", measure_round)
    write(project, factor=2)
    code, out, err = ab("--base", "HEAD", limit="60s")
    assert code == 130
    assert "interrupted: below is what 1 rounds say" in err
    assert "6 are needed" in out


def test_a_process_that_dies_ends_it_with_its_log(project, ab):
    package = project / "work" / "__init__.py"
    package.write_text(
        "import os\n\nPAYLOAD = 1\n\n\ndef work():\n    os.write(2, b'last words')\n    os._exit(3)\n"
    )
    commit(project)
    code, _, err = ab("--base", "HEAD~1")
    assert code == 2
    assert "last words" in err
    assert f"head: the process of its probes ended at {ONE}; the end of its log is above" in err


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
    assert "--editable" in steps[1]  # compiled parts lie beside the sources, which are imported


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


def test_an_installation_of_the_working_tree_is_refused_wherever_in_it_the_package_lies(project, ab):
    package = project / "parts" / "one" / "deep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    probes = f"import sys\nsys.path.append({str(package.parent)!r})\nimport deep\n{PROBES}"
    (project / "checks" / "perf" / "test_work.py").write_text(probes)
    commit(project)
    code, _, err = ab("--calibrate")
    assert code == 2
    assert f"base: 'deep' was imported from {str(package / '__init__.py')!r} and not from the revision" in err
