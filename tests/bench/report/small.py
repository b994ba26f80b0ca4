"""The results of four small runs, and a report of few figures and tables that is soon made."""

from bench.execute import run_matrix
from bench.matrix import Matrix
from bench.report.paper import Paper

SMALL = Paper(formats=("svg", "png"), figures=("rounds", "bytes"), tables=("accuracy", "cost"))


def make_small_results(folder):
    """Run two methods with two seeds."""
    cells = Matrix(
        method=["linear_probe", "flora"],
        seed=[0, 1],
        rounds=2,
        clients=2,
        data={"max_train": 20, "max_test": 20},
        device="cpu",
    ).cells()
    typed = ["flora-bench", "run", str(folder / "small.yaml"), "--results", str(folder)]
    outcomes = list(run_matrix(cells, folder, command=typed))
    assert [outcome.status for outcome in outcomes] == ["ran"] * len(cells)
    return folder
