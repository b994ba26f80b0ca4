"""Where runs were not made alike: on several machines, by several versions of the code, in sittings."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

NAMED = 3


def mixture(runs: pd.DataFrame) -> list[str]:
    """Say in what respects runs differ that are no part of their configuration, a sentence each.

    Args:
        runs: as `bench.load_results` gives them.
    """
    return [text for text in (_machines(runs), _libraries(runs), *_code(runs), _resumed(runs)) if text]


def _machines(runs: pd.DataFrame) -> str:
    machines = _values(runs, "environment.cpu", "environment.gpu", "device")
    if len(machines) < 2:
        return ""
    return (
        f"The runs come from {len(machines)} kinds of machine ({_few(machines)}): do not compare their "
        "seconds and memory."
    )


def _libraries(runs: pd.DataFrame) -> str:
    versions = _values(runs, "environment.packages.torch")
    if len(versions) < 2:
        return ""
    return f"They were made with {len(versions)} versions of torch ({_few(versions)}): last bits may differ."


def _code(runs: pd.DataFrame) -> list[str]:
    harnesses = _values(runs, "definition.harness")
    before = len(runs) - int(_known(runs, "definition.harness").sum())
    texts = []
    if len(harnesses) > 1:
        texts.append(f"They were made by {len(harnesses)} versions of the harness ({_few(harnesses)}).")
    for part, of in (("definition.method", "method"), ("definition.task", "task")):
        several = [name for name, found in runs.groupby(of, observed=True) if len(_values(found, part)) > 1]
        if several:
            texts.append(f"Of {of} {_few(list(map(str, several)))} there are several versions of the code.")
    if 0 < before < len(runs):
        texts.append(f"{before} of {len(runs)} are of an older schema, which knew no versions of the code.")
    commits = [commit[:12] for commit in _values(runs, "environment.git_commit")]
    if len(commits) > 1 and before:
        texts.append(f"They come from {len(commits)} commits ({_few(commits)}).")
    return texts


def _resumed(runs: pd.DataFrame) -> str:
    if "sittings" not in runs or not (resumed := runs["sittings"].fillna(1) > 1).any():
        return ""
    return (
        f"{int(resumed.sum())} of {len(runs)} were interrupted and resumed: accuracies, losses and bytes are "
        "as if they had not been, seconds those of several processes."
    )


def _values(runs: pd.DataFrame, *names: str) -> list[str]:
    """Give the distinct combinations of columns, as far as these are there and known."""
    known = runs[[name for name in names if name in runs]].drop_duplicates()
    rows = known.astype(object).where(known.notna(), None).itertuples(index=False)
    return sorted({" + ".join(str(part) for part in row if part) for row in rows} - {""})


def _known(runs: pd.DataFrame, name: str) -> pd.Series:
    found = runs[name] if name in runs else pd.Series(None, index=runs.index, dtype=object)
    return found.notna() & (found != "")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
