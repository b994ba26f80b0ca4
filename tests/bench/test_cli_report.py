"""`flora-bench report`: what it makes, and that it refuses what cannot be in one line."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.bench.report.small import make_small_results

PAPER = "figures: [rounds]\ntables: [accuracy]\nformats: svg\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_small_results(tmp_path_factory.mktemp("small") / "results")


@pytest.fixture
def paper(tmp_path):
    def write(text=PAPER):
        path = tmp_path / "paper.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_report_and_a_bundle_that_is_found_right(run_cli, results, paper, tmp_path):
    bundle = tmp_path / "bundle.zip"
    code, out, err = run_cli(
        "report", str(results), "--out", str(tmp_path / "r"), "--paper", paper(), "--bundle", str(bundle)
    )
    assert (code, out.splitlines()[0]) == (0, f"report: {tmp_path / 'r' / 'index.html'}")
    assert "4 runs read" in err
    code, out, _ = run_cli("report", "--check", str(bundle))
    assert code == 0
    assert "follow from 4 runs" in out


def test_a_report_whose_runs_changed_is_stale(run_cli, results, paper, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    run_cli("report", str(copy), "--out", str(tmp_path / "r"), "--paper", paper())
    path = sorted(copy.glob("*/*/*/run.json"))[0]
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "summary": {**run["summary"], "accuracy": 0.99}}))
    code, out, _ = run_cli("report", str(copy), "--check", str(tmp_path / "r"))
    assert code == 1
    assert "run.json" in out


def test_what_was_asked_for_and_is_not_there_is_said(run_cli, results, paper, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    shutil.rmtree(sorted(copy.glob("*/flora/*"))[0])
    text = "figures: [rounds, shots]\ntables: [main-accuracy]\nreference: full_finetune\n"
    text += "names: {methods: {florra: Ours}}\n"
    code, _, err = run_cli("report", str(copy), "--out", str(tmp_path / "r"), "--paper", paper(text))
    assert code == 0
    assert "1 of 4 cells asked for have no result" in err
    assert "there is no main-accuracy of these runs" in err
    assert "there is no shots of these runs" in err
    assert "names.methods: no run is of 'florra'; did you mean 'flora'?" in err
    assert "reference: no run is of 'full_finetune'" in err


def test_a_selection_is_said_in_the_report(run_cli, results, paper, tmp_path):
    run_cli("report", str(results), "--out", str(tmp_path), "--paper", paper(), "--where", "method=flora")
    assert "Only runs with method=flora." in (tmp_path / "report.md").read_text("utf-8")


def test_two_folders_side_by_side(run_cli, results, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(results, other)
    code, out, _ = run_cli("report", str(results), "--beside", str(other), "--out", str(tmp_path / "b"))
    assert (code, out.strip()) == (0, f"report: {tmp_path / 'b' / 'beside.html'}")
    markdown = (tmp_path / "b" / "beside.md").read_text("utf-8")
    assert "results beside other" in markdown
    assert " = |" in markdown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "gif"), ["--format", "'gif'", "'pdf', 'svg', 'png' or 'pgf'"]),
        (("--format", ""), ["--format", "''"]),
        (("--font", "mono"), ["--font", "'sans' or 'serif'"]),
        (("--width", "wide"), ["--width", "'column' or 'page'"]),
        (("--target", "80"), ["--target", "up to 1"]),
        (("--where", "method=x"), ["method=x", "none of 4", "flora, linear_probe"]),
        (("--where", "shots=4"), ["shots=4", "shots null"]),
        (("--paper", "missing.yaml"), ["missing.yaml", "cannot be read"]),
        (("--beside", "missing"), ["missing", "no folder"]),
        (("--beside", "SAME"), ["--beside", "same folder"]),
        (("--beside", "x", "--bundle", "y.zip"), ["--bundle", "--beside"]),
        (("--out", "RESULTS"), ["--out", "folder of results itself"]),
        (("--out", "FILE"), ["--out", "cannot write"]),
        (("--beside", "OTHER", "--out", "FILE"), ["--out", "cannot write"]),
        (("--bundle", "FILE"), ["--bundle"]),
        (("--check", "FILE"), ["zip"]),
        (("--check", "FILE", "--out", "x"), ["--check", "--out"]),
        (("--check", "FILE", "--font", "serif"), ["--check", "--font"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run_cli, results, tmp_path, options, words):
    file = tmp_path / "file.txt"
    file.write_text("mine")
    shutil.copytree(results, tmp_path / "other")
    places = {"FILE": file, "RESULTS": results, "SAME": results, "OTHER": tmp_path / "other"}
    given = [str(places.get(option, option)) for option in options]
    where = [] if "--check" in options else [str(results)]
    out = [] if {"--out", "--check"} & set(options) else ["--out", str(tmp_path / "r")]
    code, _, err = run_cli("report", *where, *out, *given)
    assert code == 2
    complaint = [line for line in err.splitlines() if "making tables" not in line and "runs read" not in line]
    assert len(complaint) == 1
    for word in words:
        assert word in complaint[0]
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a]", ["names", "mapping"]),
        ("order: [a]", ["order", "mapping"]),
        ("digits: 2", ["digits", "mapping"]),
        ("digits: {accuracy: true}", ["digits.accuracy"]),
        ("target: yes", ["target"]),
        ("inches: {column: 10, page: 2}", ["inches", "narrower than a column"]),
        ("title: 'a\\nb'\ntitle2: x", ["title2", "did you mean 'title'"]),
        ('title: "a\\nb"', ["title", "one line"]),
        ('title: "\\ud800"', ["title"]),
        ("figures: [accuracy]", ["figures", "'accuracy'"]),
        ("tables: [costs]", ["tables", "did you mean 'cost'"]),
        ("select: {'method,split': flora}", ["select", "one field"]),
        ("select: {method: flor}", ["select.method", "did you mean 'flora'"]),
        ("figures: [sensitivity-nix]", ["there is no sensitivity-nix"]),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(run_cli, results, paper, tmp_path, text, words):
    code, _, err = run_cli("report", str(results), "--out", str(tmp_path / "r"), "--paper", paper(text))
    complaint = [line for line in err.splitlines() if "making tables" not in line]
    assert (code, len(complaint)) == (2, 1) if "sensitivity" not in text else (0, 1)
    for word in words:
        assert word in complaint[0]
