"""Asking before a command goes on with far more cells than anyone is likely to mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.matrix import Matrix

# What commands that expand a matrix take.
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Go on with however many cells, without asking.")]


def confirmed(matrix: Matrix, yes: bool) -> Matrix:
    """Give the matrix back, if need be after asking whether so many cells are meant.

    Args:
        matrix: not expanded yet.
        yes: the answer, given beforehand.

    Raises:
        BadInput: there is no terminal to ask on.
        typer.Abort: the answer was no.
    """
    from bench.matrix import MANY_CELLS

    count = matrix.count()
    if yes or count <= MANY_CELLS:
        return matrix
    if not sys.stdin.isatty():
        raise BadInput(
            f"the matrix has {count:,} cells, more than {MANY_CELLS:,}; give --yes to go on with them"
        )
    typer.confirm(f"This matrix has {count:,} cells; go on?", abort=True, err=True)
    return matrix
