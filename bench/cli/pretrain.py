"""`flora-bench pretrain`: rebuild the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def pretrain(
    model: Annotated[Literal["tiny"], typer.Argument(help="Which embedded model.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for its files; the installed package's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and training.")] = 0,
) -> None:
    """Pretrain an embedded model anew, from rendered characters alone."""
    from bench import tiny
    from bench.pretrain import pretrain_tiny, progress_bar
    from flora.errors import BadInput

    folder = out or tiny.FOLDER
    try:
        with progress_bar() as on_step:
            figures = pretrain_tiny(folder, seed=seed, on_step=on_step)
    except OSError as error:
        raise BadInput(f"--out {folder} cannot be written ({error}); name a folder that can") from error
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.3f}")
    typer.echo(f"written to {folder}")
