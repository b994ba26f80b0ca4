"""Two folders side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.report.beside import Beside, side_by_side
from bench.report.figures import ratios, ratios_points
from bench.report.names import label_runs
from bench.report.styles import styles_of
from tests.bench.report.made import make_results, make_run, make_runs


def complete(runs):
    return runs.assign(bytes=runs["bytes_up"] + runs["bytes_down"])


@pytest.fixture
def both():
    runs, _ = make_results(seeds=(0, 1, 2))
    first = complete(runs)
    second = first.assign(
        train_seconds=first["train_seconds"] * 1.5,
        accuracy=first["accuracy"] + np.where(first["method"] == "flora", 0.02, 0.0),
        device="cuda:0",
    )
    return first, second


def row(frame, quantity, method="FLoRA", split="IID"):
    found = frame[
        (frame["quantity"] == quantity)
        & (frame["method_label"] == method)
        & (frame["split_label"] == split)
        & frame["shots"].isna()
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_runs_of_two_machines_belong_together(both):
    frame = side_by_side(*both)
    found = row(frame, "train_seconds")
    assert found["ratio"] == pytest.approx(1.5)
    assert found["n"] == found["n_first"] == found["n_second"] == 3
    assert row(frame, "accuracy")["difference"] == pytest.approx(0.02)
    assert row(frame, "accuracy")["difference_half_width"] == pytest.approx(0, abs=1e-9)
    assert not row(frame, "accuracy")["same"]


def test_the_very_same_number_with_every_seed_is_told(both):
    frame = side_by_side(*both)
    assert row(frame, "bytes")["same"]
    assert row(frame, "accuracy", "Linear probe")["same"]


def test_one_seed_that_differs_is_not_the_same(both):
    first, second = both
    flawed = second.copy()
    at = (flawed["method"] == "linear_probe") & (flawed["split"] == "iid") & (flawed["seed"] == 1)
    flawed.loc[at, "accuracy"] += 1e-6
    assert not row(side_by_side(first, flawed), "accuracy", "Linear probe")["same"]


def test_changes_are_those_of_the_seeds_in_common(both):
    first, second = both
    extra = second[second["seed"] != 0]
    found = row(side_by_side(first, extra), "accuracy")
    assert (found["n_first"], found["n_second"], found["n"]) == (2, 2, 2)
    assert found["difference"] == pytest.approx(0.02)
    assert found["mean_second"] - found["mean_first"] == pytest.approx(0.02)


def test_without_common_seeds_the_means_are_compared(both):
    first, second = both
    found = row(side_by_side(first[first["seed"] == 0], second[second["seed"] == 1]), "train_seconds")
    assert found["n"] == 0
    assert found["ratio"] == pytest.approx(found["mean_second"] / found["mean_first"])


def test_nothing_in_common_gives_no_row():
    one, other = (complete(make_runs(make_run(method))) for method in ("flora", "linear_probe"))
    assert side_by_side(one, other).empty


def test_tables_have_both_sides_and_the_change(both):
    frame = side_by_side(*both)
    (table,) = Beside(("a", "b"), {}, frame, {}, []).tables
    assert table.columns[:5] == ["Method, split, shots", "n", "a", "b", "Change"]
    cells = dict(table.rows)["FLoRA, IID, all data"]
    assert cells[0].text == "3"
    assert cells[3].text == "+2.0 ± 0.0"
    assert cells[6].text == "1.50×"
    assert dict(table.rows)["Linear probe, IID, all data"][3].text == "="


def test_the_figure_shows_the_ratios_of_the_frame(both):
    frame = side_by_side(*both)
    figure = ratios(frame, ("a", "b"), styles=styles_of(label_runs(both[0])))
    drawn = sorted(x for axes in figure.axes for line in axes.lines[1:] for x in line.get_xdata())
    assert drawn == pytest.approx(sorted(ratios_points(frame)["ratio"]))


def test_no_ratio_is_no_figure():
    frame = pd.DataFrame({"quantity": ["accuracy"], "ratio": [1.0], "n": 1, "method_label": ["x"]})
    with pytest.raises(ValueError, match="no cost"):
        ratios(frame.assign(split_label="s", shots=None), ("a", "b"), styles={})


def test_seeds_on_another_division_of_the_data_do_not_belong_together(both):
    first, second = (
        runs.assign(**{"split.fingerprint": name}) for runs, name in zip(both, "ab", strict=True)
    )
    assert row(side_by_side(first, second), "accuracy")["n"] == 0


def test_one_seed_on_two_devices_counts_once_by_its_mean():
    slow, fast = (
        complete(make_runs(make_run(device=d, train_seconds=t))) for d, t in (("cpu", 99), ("cuda", 1))
    )
    found = row(side_by_side(pd.concat([slow, fast], ignore_index=True), fast), "train_seconds")
    assert (found["n"], found["mean_first"]) == (1, 50.0)
