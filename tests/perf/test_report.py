"""A report on a hundred runs, made of a dozen that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import store
from bench.config import RunConfig
from bench.report.build import make_report, write_report
from bench.report.data import read_data
from bench.report.paper import Paper

STORED = Path(__file__).parents[2] / "results" / "reference" / "quick"
SPLITS = ("iid", "dirichlet")
SEEDS = range(10)
RUNS = 100
# a curve, a map of colours and a scatter stand for all figures
WRITTEN = Paper(formats=("png",), figures=("rounds", "heat", "front-bytes"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Five methods on two splits, the two seeds that are kept standing for ten."""
    folder = tmp_path_factory.mktemp("report") / "results"
    runs = [store.load_run(path) for path in sorted(store.run_files(STORED))]
    for run in runs:
        split, kept = run["config"]["split"], run["config"]["seed"]["split"]
        if split["name"] in SPLITS and split["shots"] is None:
            for seed in SEEDS[kept::2]:
                config = RunConfig.read({**run["config"], "device": "cpu"}).with_seed(seed)
                values = config.model_dump(mode="json")
                path = store.run_path(folder, values, config.hash)
                store.save_run(path, {**run, "config": values, "config_hash": config.hash})
    return folder


def test_results_are_read(benchmark, results):
    data = benchmark.pedantic(read_data, args=(results,), rounds=3)
    assert len(data.runs) == RUNS


def test_tables_are_made(benchmark, results):
    tables = Paper(figures=())
    report = benchmark.pedantic(make_report, args=(read_data(results), tables), rounds=2)
    assert report.tables
    assert not report.drawn


def test_report_is_written(benchmark, results, tmp_path):
    args = (read_data(results), tmp_path / "out", WRITTEN)
    files = benchmark.pedantic(write_report, args=args, rounds=2)
    assert files[0].name == "index.html"
    assert sum(file.suffix == ".png" for file in files) == len(WRITTEN.figures)
