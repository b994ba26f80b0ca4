"""`flora-bench history`: what it prints, draws and refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bench.regress.findings import judged
from bench.regress.history import add, read_history
from bench.regress.history_figure import draw
from bench.regress.measurements import write_measurements
from tests.bench.regress.test_history import EPYC, PROBE, XEON, commit_of, measured

SLOWER_AT, LARGER_AT = 12, 20


def fill(folder, machines=(EPYC,)):
    """Thirty revisions: the probe gets 20 % slower at one and its payload 1 byte larger at another."""
    rng = np.random.default_rng(0)
    for machine in machines:
        for number in range(30):
            seconds = rng.normal(1.2 if number >= SLOWER_AT else 1.0, 0.01, 5)
            payload = {"payload_bytes": 1001 if number >= LARGER_AT else 1000, "trainable_parameters": 7}
            add(folder, measured(number, seconds=seconds, extra=payload, machine=machine))
    add(folder, measured(5, seconds=[3.0], dirty=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("history")
    fill(path)
    return path


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """Nowhere near a repository."""
    monkeypatch.chdir(tmp_path)


def test_steps_are_listed_worst_first_with_where_to_look(run_cli, folder):
    code, out, err = run_cli("history", str(folder))
    slower, larger, summary = out.splitlines()
    before, after = (commit_of(n)[:10] for n in (SLOWER_AT - 1, SLOWER_AT))
    assert (code, err) == (0, "")
    assert slower.startswith("worse: +19.8 % (1.00 s -> 1.20 s)")
    assert f"seconds of {PROBE}: 2026-01-13, git log {before}..{after}" in slower
    assert larger.startswith("worse: +0.1 % (1,000 B -> 1,001 B), payload_bytes of")
    assert summary.startswith("history: 31 revisions, 3 series on 1 kind of machine: 2 steps (2 worse)")
    assert "1 with uncommitted changes" in summary
    assert "no repository here knows these commits" in summary


def test_json_says_the_same(run_cli, folder):
    code, out, _ = run_cli("history", str(folder), "--json")
    told = json.loads(out)
    assert code == 0
    assert [(x["metric"], x["kind"], x["first_after"]) for x in told["findings"]] == [
        ("seconds", "step", commit_of(SLOWER_AT)),
        ("payload_bytes", "step", commit_of(LARGER_AT)),
    ]
    assert (len(told["revisions"]), len(told["series"]), told["ordered_by"]) == (31, 3, "time")


def test_probes_and_metrics_are_chosen(run_cli, folder):
    for pattern in ("step[flora]", "*step[flora]"):
        _, out, _ = run_cli("history", str(folder), "--probe", pattern, "--metric", "seconds")
        assert out.splitlines()[0].startswith("worse: +19.8 %")
        assert "31 revisions, 1 series" in out.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--metric", "second"), "--metric: 'second' is not in the history; did you mean 'seconds'?"),
        (("--probe", "nothing*"), f"--probe: no subject matches 'nothing*'; there is {PROBE}"),
        (("--add", "absent.json"), "absent.json: cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(run_cli, folder, arguments, complaint):
    code, out, err = run_cli("history", str(folder), *arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_a_missing_and_an_empty_folder_are_bad_input(run_cli, tmp_path):
    code, _, err = run_cli("history", str(tmp_path / "absent"))
    assert (code, "is no folder" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run_cli("history", str(tmp_path / "empty"))
    assert (code, "holds no measurements yet" in err) == (2, True)


def test_one_revision_is_added_to_a_folder_that_is_made(run_cli, tmp_path):
    write_measurements(measured(1, extra={"payload_bytes": 5}), tmp_path / "one.json")
    begin = ("history", str(tmp_path / "new"), "--add", str(tmp_path / "one.json"))
    code, out, err = run_cli(*begin, "--out", str(tmp_path / "page"))
    assert code == 0
    assert "1 revision, 2 series on 1 kind of machine: 0 steps" in out
    assert "one.json: kept as" in err
    assert "Always the same: Payload 5 B." in (tmp_path / "page" / "history.md").read_text("utf-8")
    assert "is there already" in run_cli(*begin)[2]
    assert len(list((tmp_path / "new").rglob("*.jsonl"))) == 1


def test_a_step_of_one_in_billions_is_legible(tmp_path):
    for number in range(2):
        add(tmp_path, measured(number, extra={"total_flops": 12_345_678_901 + number}))
    found = judged(history := read_history(tmp_path), history.series)
    figure = draw([one for one in found if one.series.metric.name == "total_flops"])
    figure.draw_without_rendering()
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    assert len({*labels}) == len(labels) > 1


def test_what_is_written_at_steps_never_overlaps(tmp_path):
    for number in range(60):
        add(tmp_path, measured(number, extra={"payload_bytes": 10_000 + number // 2}))
    found = judged(history := read_history(tmp_path), history.series)
    figure = draw([one for one in found if one.series.metric.name == "payload_bytes"])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 8
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    within = figure.axes[0].get_window_extent()
    assert all(within.x0 <= box.x0 and box.x1 <= within.x1 for box in boxes)


def test_a_figure_that_no_budget_declares_is_shown_and_said_not_to_be_judged(run_cli, tmp_path):
    for number in range(4):
        add(tmp_path / "h", measured(number, extra={"own_$tokens": 7 + number // 2}))
    code, out, _ = run_cli("history", str(tmp_path / "h"), "--out", str(tmp_path / "page"))
    assert code == 0
    assert "0 steps; shown, not judged, as no budget declares them: own_$tokens" in out
    assert "Not judged, as no budget" in (tmp_path / "page" / "history.md").read_text("utf-8")
    budget = """[tool.flora-bench.gate.metrics."own_$tokens"]\nkind = "exact"\n"""
    (tmp_path / "pyproject.toml").write_text(budget)
    _, out, _ = run_cli("history", str(tmp_path / "h"))
    assert out.startswith("worse: +14.3 % (7 -> 8), own_$tokens of")
    assert "not judged" not in out


def test_a_title_is_whole_however_long_and_the_key_looks_like_the_marks(tmp_path):
    long = f"tests/perf/{'deeper/' * 12}test_steps.py::test_step[{'-'.join(['flora', 'dirichlet'] * 6)}]"
    for number in range(2):
        source = measured(number, extra={"payload_bytes": 5 + number})
        add(tmp_path, replace(source, benchmarks=[replace(source.benchmarks[0], name=long)]))
    figure = draw(judged(history := read_history(tmp_path), history.series))
    figure.draw_without_rendering()
    title = figure.texts[0]
    assert title.get_text().replace("\n", "").replace(" ", "") == long
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    (legend,) = figure.legends
    key = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert (key["worse"].get_linestyle(), key["level"].get_linestyle()) == ("--", "-")


def test_a_page_links_the_figures_it_has_and_removes_former_ones(run_cli, tmp_path):
    history, out = tmp_path / "history", tmp_path / "out"
    fill(history, (EPYC, XEON))
    code, _, err = run_cli("history", str(history), "--out", str(out))
    page = (out / "history.md").read_text("utf-8")
    assert (code, f"page: {out / 'history.md'}" in err) == (0, True)
    assert page.count("**worse**") == 4
    assert "Always the same: Trainable parameters 7." in page
    (png,) = out.glob("figures/*.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = png.with_suffix(".svg").read_text("utf-8")
    assert f"figures/{png.name}" in page
    assert "matplotlib" not in svg.split("<defs>")[0].replace("matplotlib.org", "")
    stranger = out / "figures" / "mine.png"
    stranger.write_text("mine")
    (out / "figures" / "old-000000.png").write_text("old")
    (out / "history.md").write_text(page + "![old](figures/old-000000.png)", "utf-8")
    run_cli("history", str(history), "--out", str(out))
    assert sorted(x.name for x in (out / "figures").iterdir()) == sorted(
        [png.name, png.with_suffix(".svg").name, "mine.png"]
    )
    assert png.with_suffix(".svg").read_text("utf-8") == svg
    assert {x.name for x in out.iterdir()} == {"history.md", "figures"}


def test_nothing_heavy_is_imported_to_print_the_help():
    code = (
        "import sys; from bench.cli import app; import bench.cli.history; "
        "print([x for x in ('ruptures', 'scipy', 'pandas', 'matplotlib', 'torch') if x in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
