"""Which random stream makes how much of the spread over seeds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench import store
from bench.config import RunConfig
from bench.report.statistics import deviation_interval
from bench.variance import STREAMS, TOGETHER, spreads, studies, sum_of_variances, to_run
from flora.errors import BadInput

SMALL = {
    "task": "digits",
    "clients": 2,
    "rounds": 1,
    "participation": 0.5,
    "data": {"max_train": 40, "max_test": 20},
}
MATRIX = """
task: digits
method: linear_probe
seed: [3, 4]
clients: 2
participation: 0.5
rounds: 1
data: {max_train: 40, max_test: 20}
"""


def cells(**fields):
    return [RunConfig.read({**SMALL, "method": "linear_probe", "seed": seed, **fields}) for seed in (3, 4)]


def test_each_stream_varies_alone_and_all_together():
    (study,) = studies(cells(), 3)
    assert tuple(study.cells) == (*STREAMS, TOGETHER)
    for stream in STREAMS:
        seeds = [cell.seed.model_dump() for cell in study.cells[stream]]
        assert [each.pop(stream) for each in seeds] == [3, 4, 5]
        assert all(set(each.values()) == {3} for each in seeds)
    together = [set(cell.seed.model_dump().values()) for cell in study.cells[TOGETHER]]
    assert together == [{3}, {4}, {5}]


def test_seeds_of_the_matrix_are_put_aside_and_its_cells_are_not():
    made = studies([*cells(), *cells(method="zero_shot")], 2)
    assert [study.base.method.name for study in made] == ["linear_probe", "zero_shot"]
    assert all(study.base.seed.split == 3 for study in made)


def test_the_base_is_run_once():
    (study,) = studies(cells(), 5)
    chosen = to_run([study])
    assert len(chosen) == 5 * 5 - 4
    assert len({cell.hash for cell in chosen}) == len(chosen)
    assert sum(cell.hash == study.base.hash for cell in chosen) == 1


@pytest.mark.parametrize(
    ("fields", "matter"),
    [
        ({"participation": 1.0}, ("split", "init", "order")),
        ({"method": "zero_shot"}, ("split",)),
        ({"rounds": 0}, ("split",)),
    ],
)
def test_a_stream_that_cannot_matter_is_not_run_and_adds_nothing(fields, matter):
    (study,) = studies(cells(**fields), 3)
    for stream in STREAMS:
        assert len(study.cells[stream]) == (3 if stream in matter else 1)
    assert len(study.cells[TOGETHER]) == 3
    assert len(to_run([study])) == 1 + 2 * len(matter) + 2
    accuracies = {cell.hash: 0.5 + 0.01 * i for i, cell in enumerate(study.cells["split"])}
    accuracies |= {cell.hash: 0.5 for cell in to_run([study]) if cell.hash not in accuracies}
    found = {spread.stream: spread for spread in spreads(study, accuracies)}
    assert {name for name, spread in found.items() if not spread.matters} == set(STREAMS) - set(matter)
    assert all(found[name].variance == 0 for name in set(STREAMS) - set(matter))
    assert sum_of_variances(found.values()) == pytest.approx(found["split"].variance) == pytest.approx(1e-4)


def test_one_seed_is_refused():
    with pytest.raises(BadInput, match="--seeds: 1 must be at least 2"):
        studies(cells(), 1)


def test_planted_spreads_are_found_and_do_not_add_up_where_streams_work_on_one_another():
    (study,) = studies(cells(), 5)
    step = {cell.hash: cell.seed.model_dump() for cell in to_run([study])}
    # the split moves accuracy by 0.01 a seed, the order by 0.02, and both together by 0.05 more
    accuracies = {
        key: 0.5
        + 0.01 * (seed["split"] - 3)
        + 0.02 * (seed["order"] - 3)
        + 0.05 * (seed["split"] > 3) * (seed["order"] > 3)
        for key, seed in step.items()
    }
    found = {spread.stream: spread for spread in spreads(study, accuracies)}
    of_five = np.std(range(5), ddof=1)
    assert found["split"].deviation == pytest.approx(0.01 * of_five)
    assert found["order"].deviation == pytest.approx(0.02 * of_five)
    assert found["init"].deviation == found["participation"].deviation == 0.0
    assert found["split"].mean == pytest.approx(0.52)
    assert sum_of_variances(found.values()) == pytest.approx(0.0005 * of_five**2)
    assert found[TOGETHER].variance > 2 * sum_of_variances(found.values())


def test_a_cell_without_a_result_is_left_out_and_counted():
    (study,) = studies(cells(), 3)
    accuracies = {cell.hash: 0.5 for cell in study.cells["split"][:2]}
    by_stream = {spread.stream: spread for spread in spreads(study, accuracies)}
    assert by_stream["split"].n == 2
    assert by_stream["init"].n == 1
    assert np.isnan(by_stream["init"].deviation)
    assert [spread.n for spread in spreads(study, {})] == [0] * 5
    assert np.isnan(spreads(study, {})[0].mean)


def test_the_deviations_interval_in_closed_form():
    deviation, low, high = deviation_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert deviation == pytest.approx(2.5**0.5)
    # quantiles of chi-square with 4 degrees of freedom, from tables
    assert low == pytest.approx((4 * 2.5 / 11.1433) ** 0.5, rel=1e-4)
    assert high == pytest.approx((4 * 2.5 / 0.484419) ** 0.5, rel=1e-4)
    assert deviation_interval([0.7, 0.7]) == (0.0, 0.0, 0.0)
    assert all(np.isnan(deviation_interval([0.7])))


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_the_deviations_interval_is_that_of_the_chi_square_test(n, seed):
    values = np.random.default_rng(seed).normal(size=n)
    deviation, low, high = deviation_interval(values.tolist())
    assert low < deviation < high
    for bound, tail in ((low, 0.975), (high, 0.025)):
        statistic = (n - 1) * deviation**2 / bound**2
        assert stats.chi2.cdf(statistic, n - 1) == pytest.approx(tail)


def test_the_interval_covers_the_true_deviation_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(scale=2.0, size=(2000, 5))
    intervals = [deviation_interval(row.tolist()) for row in draws]
    covered = np.mean([low <= 2.0 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)


# The command


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    path = tmp_path_factory.mktemp("variance") / "matrix.yaml"
    path.write_text(MATRIX)
    return path


def command(matrix, *more):
    results = str(matrix.parent / "results")
    return ["variance", str(matrix), "--seeds", "2", "--results", results, "--set", "device=cpu", *more]


def test_it_runs_each_cell_once_and_prints_the_parts(run_cli, matrix, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run_cli(*command(matrix))
    assert code == 0
    assert err.startswith("6 cells")
    assert len(store.load_results(matrix.parent / "results")) == 6
    for name in (
        "Split",
        "Participation",
        "Initialisation",
        "Batch order",
        "All together",
        "Sum of the four",
    ):
        assert name in out
    assert "need not be the variance of all" in " ".join(out.split())
    assert "seed" not in out.partition("\n")[0]

    code, again, err = run_cli(*command(matrix, "--json"))
    assert code == 0
    assert "6 kept from before" in err
    (record,) = json.loads(again)
    assert record["base_seeds"] == dict.fromkeys(STREAMS, 3)
    split = record["streams"]["split"]
    runs = store.load_results(matrix.parent / "results").set_index("config_hash")["accuracy"]
    assert split["standard_deviation"] == pytest.approx(runs[split["config_hashes"]].std())
    parts = [record["streams"][stream]["variance"] for stream in STREAMS]
    assert record["sum_of_variances"] == pytest.approx(sum(parts))


def test_a_failed_cell_is_exit_code_1_and_the_rest_is_told(run_cli, matrix, monkeypatch, tmp_path):
    import bench.cell

    original = bench.cell.run_cell

    def fails(config, *arguments, **options):
        if 4 in config.seed.model_dump().values():
            raise RuntimeError("planted")
        return original(config, *arguments, **options)

    monkeypatch.setattr(bench.cell, "run_cell", fails)
    code, out, err = run_cli(
        "variance", str(matrix), "--seeds", "2", "--results", str(tmp_path), "--json", "--no-cache"
    )
    assert code == 1
    assert "5 of 6 cells have no result" in err
    (record,) = json.loads(out)
    assert record["streams"]["order"]["seeds"] == 1
    assert record["streams"]["order"]["standard_deviation"] is None
    assert record["sum_of_variances"] is None


def test_a_stream_that_cannot_matter_is_said(run_cli, matrix, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run_cli(*command(matrix, "--set", "participation=1"))
    assert code == 0
    assert err.startswith("5 cells")
    (line,) = [line for line in out.splitlines() if "Participation" in line]
    assert "–, cannot matter" in line
    code, out, _ = run_cli(*command(matrix, "--set", "participation=1", "--json"))
    (record,) = json.loads(out)
    streams = record["streams"]
    assert [name for name in STREAMS if not streams[name]["can_matter"]] == ["participation"]
    assert streams["participation"]["variance"] == 0
    assert record["sum_of_variances"] is not None


def test_one_seed_is_one_line_and_exit_code_2(run_cli, matrix):
    code, out, err = run_cli("variance", str(matrix), "--seeds", "1")
    assert (code, out) == (2, "")
    assert "--seeds: 1 must be at least 2" in err
