"""Parts of a matrix, for plain arrays of jobs: Slurm, a CI matrix, a loop in a shell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.config import RunConfig
from flora.errors import BadInput


def shard_of(cells: Sequence[RunConfig], shard: str) -> list[RunConfig]:
    """Give one part of a matrix; the parts together are all of it, and no cell is in two.

    A part takes every so-manieth cell, not a stretch of them: neighbours are alike, and so are the parts.

    Args:
        cells: of the whole matrix, in its order.
        shard: "I/N", the part I of N, the first being 1.

    Raises:
        BadInput: there is no such part.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise BadInput(f"--shard {shard}: must be I/N with I from 1 to N, such as 1/4")
    return list(cells[part - 1 :: parts])
