"""Tables beside those of accuracy and cost: best round and last, tests, ranks, what a target took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report.leads import welch
from bench.report.names import label_runs, shots_label, without_deployed_twins
from bench.report.ranking import RANK_CELL, critical_difference, friedman_p, mean_ranks, score_matrix
from bench.report.statistics import holm, mean_interval, paired_differences
from bench.report.tables import (
    BELOW,
    CELL,
    OUR_DIGITS,
    ROW,
    Cell,
    Quantity,
    Table,
    below_zero_shot,
    interval_text,
    on_same_test_sets,
    percent,
    seeds_of,
    slug_of,
    spans,
    where_of,
)
from bench.report.targets import QUANTITIES, common_target, to_target_frame
from bench.report.text import ABSENT, Digits, bytes_text, counted, n_text, slug
from bench.report.text import digits as digits_text
from bench.report.times import which_time
from bench.store import ROUND_WORK

SIGNIFICANT = 0.05
FEWEST_FOR_RANKS = 6
"""Differences of which Wilcoxon's signed-rank test can be significant: of five p is 2 / 2^5 at the least."""

_NAMED = 3  # of what is left out
_GROUPS: Any = {"dropna": False, "observed": True}

_BEST = {
    "accuracy": "Last round",
    "best_accuracy": "Best round",
    "best_round": "Number of the best",
    "macro_accuracy": "Mean over classes",
    "calibration_error": "Calibration error",
    "client_worst_accuracy": "Worst client",
}
_TO_TARGET = {
    "seconds": Quantity("seconds", "Seconds", digits_text),
    "deployment_seconds": Quantity("deployment_seconds", "Seconds, clients at once", digits_text),
    "bytes": Quantity("bytes", "Bytes", bytes_text),
    "joules": Quantity("joules", "Joules", digits_text),
}


def best_round_table(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> Table | None:
    """Accuracy after the last round beside that of the best; for the runs of one task, model, split, shots.

    None where the best round was not kept.
    """
    runs = label_runs(runs)
    measured = [column for column in _BEST if column in runs and runs[column].notna().any()]
    if not {"accuracy", "best_accuracy"} <= set(measured):
        return None
    means = {column: mean_interval(runs, [*ROW, "method"], column) for column in measured}
    data = pd.concat([table.assign(quantity=column) for column, table in means.items()], ignore_index=True)
    below = {column: below_zero_shot(runs, column, digits) for column in measured}
    measures: Any = data.itertuples()
    entries = {
        (str(row.method_label), row.quantity): Cell(
            _round_text(row) if row.quantity == "best_round" else percent(row.mean, row.half_width, digits),
            below=below[row.quantity].get(str(row.method_label), False),
        )
        for row in measures
    }
    methods = [str(name) for name in runs["method_label"].cat.remove_unused_categories().cat.categories]
    where, n = where_of(runs), seeds_of(runs)
    mark = f" {BELOW}: below zero-shot." if any(cell.below for cell in entries.values()) else ""
    return Table(
        name=f"best-round-{slug_of(runs)}-{slug(where)}",
        caption=f"Last round and best ({where}, %), {n_text(n)}{interval_text(data)}. "
        "The best is chosen on the test set itself, so it flatters; all other columns are after the last "
        f"round.{mark}",
        groups=[],
        columns=["Method", *(_BEST[column] for column in measured)],
        rows=[(name, [entries.get((name, column), Cell(ABSENT)) for column in measured]) for name in methods],
        data=data,
    )


def paired_table(runs: pd.DataFrame, digits: Digits = OUR_DIGITS) -> Table | None:
    """FLoRA, or the first trained method, against each other one over the same seeds; of one task and model.

    Where two methods share fewer than two seeds and each has several, paired tests are impossible: their
    difference is then unpaired, with Welch's test, as the caption says. The table shows what is fit to be
    read; its data hold all pairs. Cells whose methods were scored on different test sets are left out. None
    where there is nothing to compare.
    """
    runs, left_out = on_same_test_sets(without_deployed_twins(label_runs(runs)))
    if runs.empty:
        return None
    data, reference = differences_frame(runs), _reference(runs)
    data = data.sort_values(["shots", "split_label"], na_position="first", kind="stable")
    mine = data[(data["method_label"] == reference) | (data["other_label"] == reference)]
    if reference is None or mine.empty:
        return None
    levels = [
        (shots_label(shots), str(split))
        for shots, split in mine[["shots", "split_label"]].drop_duplicates().itertuples(index=False)
    ]
    entries: dict[tuple[str, str, str], Cell] = {}
    for row in mine.to_dict("records"):
        turned = row["other_label"] == reference
        other = row["method_label"] if turned else row["other_label"]
        level = shots_label(row["shots"]), str(row["split_label"])
        entries[other, *level] = _difference_cell(row, -1 if turned else 1, digits)
    others = [name for name in map(str, runs["method_label"].cat.categories) if name != reference]
    rows = [
        (name, [entries.get((name, *level), Cell(ABSENT)) for level in levels])
        for name in others
        if any((name, *level) in entries for level in levels)
    ]
    return Table(
        name=f"paired-{slug_of(runs)}",
        caption=_paired_caption(reference, mine, data) + _left_out_text(left_out),
        groups=spans([shots for shots, _ in levels]),
        columns=[f"{reference} minus", *(split for _, split in levels)],
        rows=rows,
        data=data,
    )


def differences_frame(runs: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods, paired over common seeds where there are any that tell, else unpaired.

    Returns:
        As ``statistics.paired_differences`` gives it, with ``test``: "paired" or "unpaired". The latter are
        pairs that share no seed, or one where each has several: ``n`` and ``other_n`` are their seeds,
        ``t_p`` is Welch's, its ``t_p_holm`` corrected over the unpaired pairs of the task and model, of which
        ``family`` is the number.
    """
    runs = label_runs(runs)
    paired, unpaired = paired_differences(runs).assign(test="paired"), _unpaired(runs)
    pair = [*CELL, "method_label", "other_label"]
    both = unpaired[pair].merge(paired[[*pair, "n"]], on=pair, how="left")["n"].fillna(0).to_numpy()
    known = unpaired["half_width"].notna().to_numpy()
    unpaired = unpaired[(both == 0) | ((both == 1) & known)]
    if unpaired.empty:
        return paired
    families = unpaired.groupby(["task", "model"], sort=False)["t_p"]
    unpaired = unpaired.assign(
        t_p_holm=families.transform(lambda values: holm(values.to_numpy(float))),
        family=families.transform("count"),
        test="unpaired",
    )
    replaced = paired[pair].merge(unpaired[pair], on=pair, how="left", indicator=True)["_merge"] == "both"
    kept = [frame for frame in (paired[~replaced.to_numpy()], unpaired) if len(frame)]
    return pd.concat(kept, ignore_index=True).reindex(columns=[*paired.columns, "other_n"])


def _unpaired(runs: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods of a cell by Welch's test."""
    means = mean_interval(runs, ROW, "accuracy")
    pairs = means.merge(means, on=CELL, suffixes=("", "_other"))
    pairs = pairs[pairs["method_label"] < pairs["method_label_other"]].reset_index(drop=True)
    other = pairs[["n_other", "mean_other", "std_other"]].set_axis(["n", "mean", "std"], axis=1)
    difference, half, p = welch(pairs, other)
    return pairs[CELL].assign(
        method_label=pairs["method_label"].astype(str),
        other_label=pairs["method_label_other"].astype(str),
        n=pairs["n"],
        other_n=pairs["n_other"],
        mean=difference,
        half_width=half,
        t_p=p,
    )


def ranks_table(runs: pd.DataFrame) -> Table | None:
    """Mean rank of each method over the data sets, with Friedman's test, by model, split and shots.

    The best rank is marked where it is further from each other than Nemenyi's critical difference; else all
    that are within it. Cells whose methods were scored on different test sets are left out. None where no two
    methods share two data sets.
    """
    runs, left_out = on_same_test_sets(without_deployed_twins(label_runs(runs)))
    if runs.empty:
        return None
    data = mean_ranks(runs)
    data = data[(data["n"] > 1) & (data.groupby(RANK_CELL, **_GROUPS)["n"].transform("size") > 1)]
    if data.empty:
        return None
    tested = [
        dict(zip(RANK_CELL, key, strict=True)) | {"p": friedman_p(score_matrix(cell))}
        for key, cell in runs.groupby(RANK_CELL, **_GROUPS)
    ]
    tests = pd.DataFrame(tested).astype({"shots": "Int64", "split_label": data["split_label"].dtype})
    data = data.merge(tests.rename(columns={"p": "friedman_p"}), on=RANK_CELL, how="left")
    sizes = data.groupby(RANK_CELL, **_GROUPS)["n"].transform("size")
    data["critical_difference"] = [
        critical_difference(int(size), int(n)) for size, n in zip(sizes, data["n"], strict=True)
    ]
    return _ranks_table(runs, data, left_out)


def _ranks_table(runs: pd.DataFrame, data: pd.DataFrame, left_out: Sequence[str]) -> Table:
    cells = [cell for _, cell in data.groupby(RANK_CELL, **_GROUPS, sort=True)]
    columns = [_rank_cells(cell) for cell in cells]
    methods = [str(name) for name in data["method_label"].cat.remove_unused_categories().cat.categories]
    foot = {
        "Data sets": [Cell(f"{cell['n'].iloc[0]}") for cell in cells],
        "Critical difference": [Cell(f"{cell['critical_difference'].iloc[0]:.2f}") for cell in cells],
        "Friedman's p": [Cell(_p_text(cell["friedman_p"].iloc[0])) for cell in cells],
    }
    marked = [cell for column in columns for cell in column.values()]
    return Table(
        name="ranks",
        caption=_ranks_caption(runs, marked, data) + _left_out_text(left_out),
        groups=spans([str(cell["model"].iloc[0]) for cell in cells]),
        columns=["Method", *(where_of(cell) for cell in cells)],
        rows=[
            *((name, [column.get(name, Cell(ABSENT)) for column in columns]) for name in methods),
            *foot.items(),
        ],
        data=data,
        foot=len(foot),
    )


def _rank_cells(cell: pd.DataFrame) -> dict[str, Cell]:
    """The mean ranks of one column; nothing is marked unless Friedman's test tells the methods apart."""
    ranks, lowest = cell["mean_rank"], cell["mean_rank"].min()
    near = (ranks - lowest < cell["critical_difference"]) & (cell["friedman_p"] < SIGNIFICANT)
    return {
        str(name): Cell(
            f"{rank:.2f}", best=bool(level and near.sum() == 1), second=bool(level and near.sum() > 1)
        )
        for name, rank, level in zip(cell["method_label"], ranks, near, strict=True)
    }


def _ranks_caption(runs: pd.DataFrame, cells: list[Cell], data: pd.DataFrame) -> str:
    n = runs.groupby(ROW, **_GROUPS).size()
    sentences = [
        f"Mean rank over the data sets that all methods ran, by accuracy ({n_text(n)} each); 1 is best.",
        "Friedman's p: of the test that the methods differ in nothing but chance.",
        *([f"{ABSENT}: too few data sets or methods."] if data["friedman_p"].isna().any() else []),
        "Critical difference: by how much two mean ranks must differ for Nemenyi's test at 5 %.",
        *(["Bold: lower than each other by that."] if any(cell.best for cell in cells) else []),
        *(["Underlined: not told from the lowest."] if any(cell.second for cell in cells) else []),
    ]
    return " ".join(sentences)


def to_target_table(
    runs: pd.DataFrame, rounds: pd.DataFrame, target: float | None = None, digits: Digits = OUR_DIGITS
) -> Table | None:
    """What each method took until a target accuracy; for the runs of one task, model, split and shots.

    Args:
        runs: one row a run.
        rounds: of these runs, and maybe others.
        target: accuracy, above 0 and at most 1; if not given, `bench.report.targets.common_target`.
        digits: how exactly numbers are written.

    Returns:
        The table, its data one row a method and quantity; None where nothing was trained.
    """
    runs = label_runs(runs)
    trained = runs[runs["method"] != "zero_shot"]
    if trained.empty:
        return None
    target = common_target(runs) if target is None else target
    frames = {
        quantity: to_target_frame(trained, rounds, target, quantity)
        for quantity, column in QUANTITIES.items()
        if column in rounds and rounds.loc[rounds["round"] > 0, column].notna().any()
    }
    shown = {quantity: frame for quantity, frame in frames.items() if len(frame)}
    if not shown:
        return None
    any_frame = next(iter(shown.values()))
    missed = bool(any_frame["best_not_reached"].notna().any())
    amounts = {quantity: frame.to_dict("records") for quantity, frame in shown.items()}
    rows = []
    for index, row in enumerate(any_frame.to_dict("records")):
        cells = [Cell(f"{row['reached']} of {row['runs']}")]
        cells += [_amount_cell(entries[index], _TO_TARGET[key], digits) for key, entries in amounts.items()]
        if missed:
            # never below zero-shot, as that is round 0
            best = row["best_not_reached"]
            cells.append(Cell(ABSENT if pd.isna(best) else percent(best, float("nan"), digits)))
        rows.append((str(row["method_label"]), cells))
    data = pd.concat([frame.assign(quantity=key) for key, frame in shown.items()], ignore_index=True)
    headings = [_TO_TARGET[key].heading for key in shown]
    where = where_of(runs)
    return Table(
        name=f"to-target-{slug_of(runs)}-{slug(where)}",
        caption=_to_target_caption(where, target, trained, set(shown), missed, data),
        groups=[],
        columns=[
            "Method",
            "Seeds that reached it",
            *headings,
            *(["Best that did not (%)"] if missed else []),
        ],
        rows=rows,
        data=data,
    )


def _round_text(row: Any) -> str:
    half = "" if pd.isna(row.half_width) else f" ± {row.half_width:.1f}"
    return f"{row.mean:.1f}{half}" if half else f"{row.mean:.0f}"


def _reference(runs: pd.DataFrame) -> str | None:
    """FLoRA's label, the first of several; else that of the first trained method."""
    trained = runs[runs["method"] != "zero_shot"]
    preferred = trained[trained["method"] == "flora"] if "flora" in set(trained["method"]) else trained
    labels = preferred["method_label"].cat.remove_unused_categories().cat.categories
    return str(labels[0]) if len(labels) else None


def _difference_cell(row: Mapping[Any, Any], sign: int, digits: Digits) -> Cell:
    decimals = digits.accuracy
    half = "" if pd.isna(row["half_width"]) else f" ± {100 * row['half_width']:.{decimals}f}"
    t_p, rank_p = row["t_p_holm"], row["wilcoxon_p_holm"]
    tested, known = _p_text(t_p), not pd.isna(t_p)
    if _has_rank_p(row):
        tested, known = f"{tested}; {_p_text(rank_p)}", True
    word = "unpaired" if row["test"] == "unpaired" else ""
    return Cell(
        f"{100 * sign * row['mean']:+.{decimals}f}{half}".replace("-", "\N{MINUS SIGN}"),
        note=", ".join(filter(None, (f"p {tested}" if known else "", word))),
        best=bool(t_p < SIGNIFICANT),
    )


def _has_rank_p(row: Mapping[Any, Any]) -> bool:
    paired = row["test"] == "paired" and row["n"] >= FEWEST_FOR_RANKS
    return bool(paired and not pd.isna(row["wilcoxon_p_holm"]))


def _p_text(p: float) -> str:
    if pd.isna(p):
        return ABSENT
    if p < 0.001:
        return "< 0.001"
    if p < SIGNIFICANT <= float(f"{p:.3f}"):
        return f"< {SIGNIFICANT}"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2g}"


def _left_out_text(names: Sequence[str]) -> str:
    """Name what is not in a table as its methods are not comparable, with a space before it."""
    if not names:
        return ""
    more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" Left out, as methods were scored on different test sets: {'; '.join(names[:_NAMED])}{more}."


def _paired_caption(reference: str, mine: pd.DataFrame, data: pd.DataFrame) -> str:
    paired, unpaired = (mine[mine["test"] == test] for test in ("paired", "unpaired"))
    what = f"Accuracy of {reference} minus that of each other method (points)"
    sentences = []
    if len(paired):
        seeds = n_text(data.loc[data["test"] == "paired", "n"])
        sentences.append(f"{what}, over the same seeds and splits of the data, {seeds}{interval_text(mine)}.")
        sentences += _paired_text(data[data["test"] == "paired"], paired)
    else:
        sentences.append(f"{what}{interval_text(mine)}. No method shares seeds and splits with {reference}: "
                         "paired tests are impossible.")  # fmt: skip
    if len(unpaired):
        sentences += _unpaired_text(data[data["test"] == "unpaired"], bool(len(paired)))
    if (mine["t_p_holm"] < SIGNIFICANT).any():
        sentences.append(f"Bold: significant, whichever is higher: p of the t-test below {SIGNIFICANT}.")
    return " ".join([*sentences, "All pairs: see the CSV file of this table."])


def _paired_text(data: pd.DataFrame, mine: pd.DataFrame) -> list[str]:
    """Which p is shown in ``mine``, and over how many pairs of ``data`` it was corrected."""
    several, ranked = mine[mine["n"] > 1], any(_has_rank_p(row) for row in mine.to_dict("records"))
    if several.empty:
        return ["One difference has no test."]
    same = "all differences the same and not zero"
    if several["t_p"].isna().all() and not ranked:
        return [f"No test: {same}."]
    lacking = f" ({ABSENT}: {same})" if several["t_p"].isna().any() else ""
    wilcoxon = f"; of Wilcoxon's signed-rank test, from {FEWEST_FOR_RANKS} seeds on" if ranked else ""
    pairs = (data[p].notna().sum() for p in ("t_p", *(["wilcoxon_p"] if ranked else [])))
    *others, last = dict.fromkeys(int(number) for number in pairs if number)
    numbers = " and ".join([*map(str, others), counted(last, "pair")])
    return [
        f"In brackets: p of the paired t-test{lacking}{wilcoxon}; after Holm's correction over the {numbers} "
        "of methods, splits and shots."
    ]


def _unpaired_text(data: pd.DataFrame, besides: bool) -> list[str]:
    where = "Unpaired, where too few seeds are shared for a paired test" if besides else "Unpaired"
    one_seed = (data[["n", "other_n"]] == 1).any(axis=1)
    untested = data["t_p"].isna()
    kinds = {"of one seed": one_seed & untested, "without any spread": ~one_seed & untested}
    lacking = " or ".join(kind for kind, rows in kinds.items() if rows.any())
    if untested.all():
        return [f"{where}: differences of the means, which {lacking} have no test."]
    return [
        f"{where}: differences of the means, p of Welch's t-test after Holm's correction over the "
        f"{counted(int(data['family'].max()), 'such pair')}"
        f"{f'; those {lacking} have no test' if lacking else ''}."
    ]


def _amount_cell(row: Mapping[Any, Any], quantity: Quantity, digits: Digits) -> Cell:
    mean, half = row["mean"], row["half_width"]
    if pd.isna(mean):
        return Cell(ABSENT)
    interval = "" if pd.isna(half) else f" ± {quantity.written(half, digits)}"
    return Cell(quantity.written(mean, digits) + interval)


def _to_target_caption(
    where: str, target: float, trained: pd.DataFrame, shown: set[str], missed: bool, data: pd.DataFrame
) -> str:
    n = seeds_of(trained)
    sentences = [
        f"To an accuracy of {target:.0%} ({where}): what had been spent when a round first ended at or above "
        f"it, {n_text(n)}{interval_text(data)}, of the seeds that reached it alone."
    ]
    if "seconds" in shown:
        sentences.append(f"Seconds: {', '.join(ROUND_WORK[:-1])} and {ROUND_WORK[-1]}, added up.")
        sentences.append(which_time(trained))
    if "deployment_seconds" in shown:
        sentences.append("Clients at once: the slowest client of each round and the server's work.")
    if missed:
        sentences.append(
            "Last column: the highest accuracy of any round, round 0 too, of seeds that did not."
        )
    return " ".join(filter(None, sentences))
