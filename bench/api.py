"""The suite in three lines of Python: a matrix, its runs, their results.

from bench import Matrix, run

for result in run(Matrix(method=["flora", "linear_probe"], seed=[0, 1])):
    print(result)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.caching import folder_for_runs
from bench.config import RunConfig, label
from bench.execute import Executor, Outcome, Watcher, run_matrix
from bench.matrix import MANY_CELLS, Matrix
from flora.errors import BadInput

if TYPE_CHECKING:
    from pandas import DataFrame

# What a notebook shows of a run, by field of its summary.
_SHOWN = {
    "accuracy": "{:.1%}",
    "zero_shot_accuracy": "{:.1%}",
    "train_seconds": "{:.3g} s",
    "payload_bytes": "{:,} B",
    "bytes_up": "{:,} B",
    "bytes_down": "{:,} B",
    "peak_memory_bytes": "{:,} B",
}


@dataclass(frozen=True, repr=False)
class Result:
    """What became of one cell of a matrix.

    Attributes:
        config: the cell.
        status: "ran" now, "kept" from before, "refused" as it asks for the impossible, or "failed".
        path: of its `run.json`, which is there in the first two cases.
        summary: the figures that tables are made of, such as "accuracy", by name; empty if there is none.
        reason: one line on why it was refused or failed.
    """

    config: RunConfig
    status: Literal["ran", "kept", "refused", "failed"]
    path: Path
    summary: Mapping[str, Any]
    reason: str

    @property
    def name(self) -> str:
        """The run as people speak of it: task, method, split, seed and what is not at its default."""
        return label(self.config)

    @property
    def accuracy(self) -> float | None:
        """Top-1 on the test set after the last round, in [0, 1]; None without a result."""
        found = self.summary.get("accuracy")
        return None if found is None else float(found)

    @property
    def rounds(self) -> DataFrame:
        """One row a round, see `bench.load_rounds`.

        Raises:
            BadInput: the cell has no result.
        """
        from bench.store import load_rounds

        return load_rounds([self.path])

    def read(self) -> dict[str, Any]:
        """All that `run.json` holds.

        Raises:
            BadInput: the cell has no result.
        """
        from bench.store import load_run

        return load_run(self.path)

    def __repr__(self) -> str:
        came_to = self.reason if self.accuracy is None else f"accuracy {self.accuracy:.1%}"
        return f"<{self.name}: {self.status}, {came_to}>"

    def _repr_html_(self) -> str:
        """Give a small table, for notebooks."""
        known = {name: x for name in _SHOWN if (x := self.summary.get(name)) is not None}
        figures = {name: _SHOWN[name].format(x) for name, x in known.items()}
        rows = {"status": self.status, **({"reason": self.reason} if self.reason else {}), **figures}
        body = "".join(
            f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(text)}</td></tr>"
            for name, text in rows.items()
        )
        return f"<table><caption>{escape(self.name)}</caption>{body}</table>"


def run(
    cells: Matrix | Sequence[RunConfig] | str,
    results: Path | str = "results",
    *,
    jobs: int | None = None,
    timeout_seconds: float | None = None,
    executor: Executor | None = None,
    fresh: bool = False,
    keep_stale: bool = False,
    weights: Literal["small", "all", "none"] = "small",
    cache: Path | str | None = None,
    checkpoint_rounds: int | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Result]:
    """Run the cells that have no result in `results` yet, as `flora-bench run` does.

    What finishes is on disk before it is yielded: a loop that is broken off goes on where it was.

    Args:
        cells: a matrix; or runs, such as those of `Matrix.cells()`; or the name of a preset or a file.
        results: folder that results are kept in.
        jobs: how many cells run at once, each in a process of its own; None: one after another in this.
        timeout_seconds: after how long to give a cell up, which then has a process of its own.
        executor: who runs the cells, instead of these two; such as `bench.cluster.RayCluster()`.
        fresh: run cells that have a result, too.
        keep_stale: take results whose images, weights or code have changed since as they are.
        weights: which trained tensors to keep: up to 16 MiB, all or none.
        cache: folder for what frozen towers give; None for the user's own.
        checkpoint_rounds: keep the state of a run every so many rounds; None for as soon as half a minute
            would be lost, 0 for never.
        watcher: told of the progress.

    Yields:
        a result a cell: first those that are kept from before, then the others as they end. A cell that
        fails has one too, with its reason.

    Raises:
        BadInput: before anything runs; something is asked for that cannot be had.
    """
    from bench.frozen import cache_in

    if executor is not None and (jobs, timeout_seconds) != (None, None):
        raise BadInput(
            "executor: has its own number of jobs and time-out; leave jobs and timeout_seconds out"
        )
    if isinstance(cells, str):
        cells = Matrix.read(cells)
    if isinstance(cells, Matrix) and (count := cells.count()) > MANY_CELLS:
        raise BadInput(f"the matrix has {count:,} cells; give its `cells()` if all of them are meant")
    chosen = cells.cells() if isinstance(cells, Matrix) else cells
    for outcome in run_matrix(
        chosen,
        Path(results),
        fresh,
        watcher,
        weights,
        cache_in(folder_for_runs(None if cache is None else str(cache))),
        executor=executor or _workers(jobs, timeout_seconds, Path(results), chosen),
        checkpoint_rounds=checkpoint_rounds,
        keep_stale=keep_stale,
    ):
        yield _result(outcome)


def _workers(
    jobs: int | None, timeout_seconds: float | None, results: Path, cells: Sequence[RunConfig]
) -> Executor | None:
    if jobs is None and timeout_seconds is None:
        return None
    from bench.placement import predictions
    from bench.workers import Workers

    return Workers(
        1 if jobs is None else jobs, timeout_seconds=timeout_seconds, predictions=predictions(results, cells)
    )


def _result(outcome: Outcome) -> Result:
    assert outcome.status != "busy"
    return Result(outcome.config, outcome.status, outcome.path, outcome.summary, outcome.reason)
