"""How far accuracy differs with each random stream: split, participation, initialisation, batch order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.config import RunConfig
from flora.errors import BadInput
from flora.settings import Seeds

STREAMS = tuple(Seeds.model_fields)
TOGETHER = "together"
"""All four streams varied at once."""


@dataclass(frozen=True)
class Study:
    """One cell of a matrix, seeds aside, and the runs that vary its streams.

    Attributes:
        base: the cell at its first seed.
        cells: by stream, and by `TOGETHER`, one cell a seed; the first of each is `base`, and the only one of
            a stream that cannot matter.
    """

    base: RunConfig
    cells: Mapping[str, tuple[RunConfig, ...]]


@dataclass(frozen=True)
class Spread:
    """What one stream does to the accuracy after the last round.

    Attributes:
        stream: of `STREAMS`, or `TOGETHER`.
        n: seeds that have a result.
        mean: accuracy, 0 to 1; NaN without any.
        deviation: standard deviation (n - 1) over the seeds, 0 to 1; NaN for fewer than two.
        low, high: its 95 % chi-square interval.
        matters: whether it can do anything; if not, only the base is looked at and the deviation is 0.
    """

    stream: str
    n: int
    mean: float
    deviation: float
    low: float
    high: float
    matters: bool = True

    @property
    def variance(self) -> float:
        """The square of the deviation."""
        return self.deviation**2


def studies(cells: Iterable[RunConfig], n_seeds: int) -> list[Study]:
    """Lay seeds over a matrix: for each of its cells, seeds aside, vary each stream alone and all together.

    The first seed that the matrix gives a cell is its base. A varied stream takes the seeds from its base's
    on, one after another; the others stay at the base. A stream that cannot matter is not varied alone.

    Args:
        cells: of the matrix.
        n_seeds: for each stream, at least 2.

    Raises:
        BadInput: one seed says nothing of a spread.
    """
    if n_seeds < 2:
        raise BadInput(f"--seeds: {n_seeds} must be at least 2, as one value has no spread")
    bases: dict[str, RunConfig] = {}
    for cell in cells:
        bases.setdefault(json.dumps(cell.model_dump(mode="json", exclude={"seed"}), sort_keys=True), cell)
    return [Study(base, dict(_varied(base, n_seeds))) for base in bases.values()]


def _varied(base: RunConfig, n_seeds: int) -> Iterator[tuple[str, tuple[RunConfig, ...]]]:
    seeds = base.seed.model_dump()
    for stream in (*STREAMS, TOGETHER):
        if not can_matter(base, stream):
            yield stream, (base,)
            continue
        moving = STREAMS if stream == TOGETHER else (stream,)
        moved = (seeds | {name: seeds[name] + step for name in moving} for step in range(n_seeds))
        yield stream, tuple(base.model_copy(update={"seed": Seeds(**each)}) for each in moved)


def can_matter(config: RunConfig, stream: str) -> bool:
    """Whether anything is drawn from a stream that can change a cell's accuracy.

    Where nothing trains, the division of the data is all that is drawn; where all clients take part in every
    round, none is.
    """
    if config.method.name == "zero_shot" or config.rounds == 0:
        return stream in ("split", TOGETHER)
    return stream != "participation" or config.participation < 1


def to_run(made: Sequence[Study]) -> list[RunConfig]:
    """Give all cells of studies, each once: the base belongs to every stream."""
    every = (cell for study in made for cells in study.cells.values() for cell in cells)
    return list({cell.hash: cell for cell in every}.values())


def spreads(study: Study, accuracies: Mapping[str, float]) -> list[Spread]:
    """Measure what each stream does, in the order of the streams, all together last.

    Args:
        study: the cells.
        accuracies: after the last round, by hash; a cell that has none is left out.
    """
    return [
        _spread(stream, cells, accuracies, can_matter(study.base, stream))
        for stream, cells in study.cells.items()
    ]


def _spread(
    stream: str, cells: Sequence[RunConfig], accuracies: Mapping[str, float], matters: bool
) -> Spread:
    import numpy as np

    from bench.report.statistics import deviation_interval

    known = [accuracies[cell.hash] for cell in cells if cell.hash in accuracies]
    mean = float(np.mean(known)) if known else float("nan")
    if not matters:
        return Spread(stream, len(known), mean, 0.0, 0.0, 0.0, matters=False)
    return Spread(stream, len(known), mean, *deviation_interval(known))


def sum_of_variances(measured: Iterable[Spread]) -> float:
    """Add up the variances of the single streams.

    It need not be the variance of all together: streams may work on one another (a split that misses a class
    leaves little for the order of batches to change), and each is measured at one value of the others.
    """
    return sum(spread.variance for spread in measured if spread.stream != TOGETHER)
