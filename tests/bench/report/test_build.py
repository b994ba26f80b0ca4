"""The report as files: what is in it, for whatever the runs hold."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from bench.report import build, figures
from bench.report.build import make_report, write_report
from bench.report.data import Failure, assemble
from bench.report.figures import read_data_sha256
from bench.report.manifest import read_manifest
from bench.report.paper import Paper
from flora.errors import BadInput
from tests.bench.report.made import make_results, make_run
from tests.bench.report.small import SMALL, make_small_results

FEW = Paper(figures=("rounds", "heat-tasks"), tables=("accuracy", "main-accuracy", "paired"))
HOSTILE = 'a_b 100 % ä#{x}^~\\ <script>alert("x")</script> & $y$'


def of_tasks(n, **kinds):
    """Runs of several tasks."""
    made = [make_results(**kinds) for _ in range(n)]
    runs = pd.concat(
        [r.assign(task=f"task{i}", config_hash=r["config_hash"] + f"{i}") for i, (r, _) in enumerate(made)]
    )
    rounds = pd.concat(
        [r.assign(task=f"task{i}", config_hash=r["config_hash"] + f"{i}") for i, (_, r) in enumerate(made)]
    )
    return assemble(runs.reset_index(drop=True), rounds.reset_index(drop=True))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_small_results(tmp_path_factory.mktemp("small") / "results")


def test_two_reports_of_the_same_runs_are_the_same_to_the_byte(results, tmp_path):
    for name in ("a", "b"):
        build.build_report(results, tmp_path / name, SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_report_does_not_depend_on_where_its_runs_lie(results, tmp_path):
    shutil.copytree(results, tmp_path / "elsewhere" / "results")
    build.build_report(results, tmp_path / "a", SMALL)
    build.build_report(tmp_path / "elsewhere" / "results", tmp_path / "b", SMALL)
    one, other = (contents(tmp_path / name) for name in ("a", "b"))
    assert {name for name in one if one[name] != other[name]} <= {"report.json"}


def test_many_sections_are_drawn_at_once_and_come_out_the_same(tmp_path, monkeypatch):
    data = of_tasks(
        2, methods=("zero_shot", "flora", "full_finetune"), splits=("iid",), shots=(pd.NA,), rounds=2
    )
    write_report(data, tmp_path / "one_by_one", FEW)
    monkeypatch.setattr(build, "MANY_SECTIONS", 1)
    write_report(data, tmp_path / "at_once", FEW)
    assert contents(tmp_path / "one_by_one") == contents(tmp_path / "at_once")


def test_figures_carry_the_checksum_of_the_numbers_beside_them(results, tmp_path):
    build.build_report(results, tmp_path, SMALL)
    sums = {shown.name: shown.sha256 for shown in read_manifest(tmp_path).figures}
    assert len(sums) == 2
    for name, sha256 in sums.items():
        for ending in SMALL.formats:
            assert read_data_sha256(tmp_path / "figures" / f"{name}.{ending}") == sha256


def test_what_an_earlier_report_left_is_removed_and_nothing_else(results, tmp_path):
    build.build_report(results, tmp_path, SMALL)
    (tmp_path / "figures" / "mine.svg").write_text("mine")
    fewer = SMALL.model_copy(update={"figures": ("rounds",), "formats": ("svg",)})
    files = build.build_report(results, tmp_path, fewer)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == {"mine.svg", "rounds-digits-tiny.svg", "rounds-digits-tiny.csv"}
    assert all(path.is_file() for path in files)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"figures": ("round",)}, ["figures", "'round'", "did you mean 'rounds'", "front-bytes"]),
        ({"tables": ("costs",)}, ["tables", "'costs'", "did you mean 'cost'"]),
    ],
)
def test_kinds_that_there_are_not_are_refused(wanted, words):
    runs, rounds = make_results(splits=("iid",), shots=(pd.NA,))
    with pytest.raises(BadInput) as caught:
        make_report(assemble(runs, rounds), Paper(**wanted))
    for word in words:
        assert word in str(caught.value)


def test_the_author_s_names_order_and_digits_reach_tables_and_figures(tmp_path):
    runs, rounds = make_results(splits=("iid",), shots=(pd.NA,), seeds=(0, 1, 2))
    paper = Paper.of(
        {
            "names": {"methods": {"flora": "Ours"}, "tasks": {"cifar10": "CIFAR-10"}},
            "order": {"methods": ["flora"]},
            "digits": {"accuracy": 3},
            "tables": ["accuracy"],
            "figures": ["rounds"],
        }
    )
    report = make_report(assemble(runs, rounds, paper.called), paper)
    accuracy = report.tables[0]
    assert report.sections[0].title.startswith("CIFAR-10")
    assert accuracy.rows[0][0] == "Ours"
    assert len(accuracy.rows[0][1][0].text.partition(" ")[0].partition(".")[2]) == 3
    assert "Ours" in set(report.drawn[0].points["method_label"].astype(str))


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_one_two_and_three_seeds(seeds, tmp_path):
    runs, rounds = make_results(methods=("zero_shot", "flora", "full_finetune"), seeds=seeds, rounds=2)
    text = (write_report(assemble(runs, rounds), tmp_path, FEW)[0].parent / "report.md").read_text("utf-8")
    assert ("±" in text) == (len(seeds) > 1)
    assert ("ne seed" in text) == (len(seeds) == 1)


def test_one_method_and_one_round(tmp_path):
    runs, rounds = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), seeds=(0,), rounds=1)
    write_report(assemble(runs, rounds), tmp_path)
    assert (tmp_path / "figures" / "rounds-cifar10-vit-b-32-openai.svg").is_file()
    assert "Not drawn" in (tmp_path / "report.md").read_text("utf-8")


def test_zero_shot_alone(tmp_path):
    runs, rounds = make_results(methods=("zero_shot",), splits=("iid",), shots=(pd.NA,))
    write_report(assemble(runs, rounds), tmp_path)
    assert "no trained method" in (tmp_path / "report.md").read_text("utf-8")


def test_shots_that_some_methods_lack(tmp_path):
    runs, rounds = make_results(
        methods=("zero_shot", "flora", "full_finetune"), shots=(pd.NA, 2, 8), rounds=2
    )
    lacking = (runs["method"] == "flora") & (runs["shots"] == 8).fillna(False)
    report = make_report(assemble(runs[~lacking], rounds))
    few = next(table for table in report.tables if table.name.startswith("few-shot"))
    row = dict(few.rows)["FLoRA"]
    assert sum(cell.text == "–" for cell in row) == runs["split"].nunique()
    shots = next(drawn for drawn in report.drawn if drawn.kind == "shots").points
    assert 8 not in set(shots.loc[shots["method_label"] == "FLoRA", "shots"].dropna())


def test_a_failed_run_among_good_ones_is_named_with_its_reason(tmp_path):
    runs, rounds = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=1)
    failures = [Failure("cifar10/flora/0123456789ab", "out of memory <9 GB>")]
    write_report(assemble(runs, rounds, failures=failures), tmp_path, FEW)
    markdown, html = ((tmp_path / name).read_text("utf-8") for name in ("report.md", "index.html"))
    assert "1 cell failed and has no result (cifar10/flora/0123456789ab: out of memory" in markdown
    assert "out of memory &lt;9 GB&gt;" in html
    assert "<9 GB>" not in html


def test_no_common_seeds_are_said_to_make_pairs_impossible():
    flora = [make_run("flora", seed=seed) for seed in (0, 1, 2)]
    runs, rounds = make_results(
        methods=("full_finetune",), splits=("iid",), shots=(pd.NA,), seeds=(3, 4, 5), extra=flora
    )
    report = make_report(assemble(runs, rounds), Paper(figures=()))
    paired = next(table for table in report.tables if table.name.startswith("paired"))
    assert "No method shares seeds" in paired.caption
    assert "Welch" in paired.caption


def test_runs_of_two_schemas_are_told(tmp_path):
    runs, rounds = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,))
    mixed = runs.assign(**{"definition.harness": ["v1", None]})
    report = make_report(assemble(mixed, rounds), Paper(figures=()))
    assert any("1 of 2 are of an older schema" in note for note in report.notes)


def test_sixteen_data_sets_and_eight_methods_have_an_overall_section():
    methods = ("zero_shot", "flora", "full_finetune", "linear_probe", "attention_adapter")
    methods += ("clip_adapter", "prompt_tuning", "bitfit")
    data = of_tasks(16, methods=methods, splits=("iid",), shots=(pd.NA,), rounds=1)
    report = make_report(data, Paper(figures=("heat-tasks", "ranks"), tables=("main-accuracy", "ranks")))
    overall = report.sections[0]
    assert overall.title == "All data sets with ViT-B-32:openai"
    main = overall.parts[0].tables[0]
    assert len(main.columns) == 9
    assert [name for name, _ in main.rows][-1] == "Mean"
    assert {drawn.kind for drawn in overall.parts[0].drawn} == {"heat-tasks", "ranks"}


def test_hostile_names_are_escaped_everywhere(tmp_path):
    extra = [make_run(HOSTILE, task=HOSTILE, seed=seed, rounds=2) for seed in (0, 1)]
    runs, rounds = make_results(
        methods=("zero_shot",), splits=("iid",), shots=(pd.NA,), rounds=2, extra=extra
    )
    write_report(assemble(runs, rounds), tmp_path, FEW)
    html = (tmp_path / "index.html").read_text("utf-8")
    assert "<script>alert" not in html
    latex = (tmp_path / "report.tex").read_text("utf-8")
    assert r"a\_b 100~\%" in latex
    assert "a_b 100 %" not in latex
    assert "<script>" not in (tmp_path / "report.md").read_text("utf-8")


def test_an_unknown_format_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(BadInput, match="gif"):
        figures.check_formats(["gif"])
    with pytest.raises(BadInput, match="gif"):
        Paper.of({"formats": ["gif"]})


def test_numbers_behind_a_figure_are_those_of_the_runs():
    runs, rounds = make_results(splits=("iid",), shots=(pd.NA,), seeds=(0, 1, 2))
    drawn = make_report(assemble(runs, rounds), Paper(figures=("rounds",))).drawn[0]
    last = drawn.points[(drawn.points["method_label"] == "FLoRA") & (drawn.points["round"] == 10)]
    assert last["mean"].item() == pytest.approx(np.mean(runs.loc[runs["method"] == "flora", "accuracy"]))
