"""Which method leads, and whether its seeds establish it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.report.leads import ONE_SEED, PAIRED, UNKNOWN, UNPAIRED, printed, welch
from bench.report.names import label_runs
from bench.report.statistics import paired_differences
from bench.report.tables import OUR_DIGITS, accuracy_frame
from bench.report.text import Digits
from tests.bench.report.made import both_ways, make_run, make_runs


def runs_of(first_seeds=None, **accuracies):
    """A run for each accuracy of each method, seeds counted from 0 or from those given."""
    starts = first_seeds or {}
    return make_runs(
        *(
            make_run(method, seed=starts.get(method, 0) + index, accuracy=accuracy)
            for method, values in accuracies.items()
            for index, accuracy in enumerate(values)
        )
    )


def marks(runs, digits=OUR_DIGITS):
    """The methods that are best and those that are second."""
    frame = accuracy_frame(runs, digits).set_index("method")
    return set(frame.index[frame["best"]]), set(frame.index[frame["second"]])


def test_a_lead_within_the_interval_of_the_paired_differences_is_no_win():
    # differences 0.10, 0.02: mean 0.06, deviation 0.0566, half width 12.7 x 0.04 = 0.51
    runs = runs_of(flora=(0.80, 0.70), bitfit=(0.70, 0.68))
    assert marks(runs) == (set(), {"flora", "bitfit"})


def test_a_lead_beyond_it_is_a_win_though_the_methods_own_intervals_overlap():
    # the seeds differ far more than the methods do within one: differences 0.010, 0.011, 0.012
    runs = runs_of(flora=(0.50, 0.60, 0.70), bitfit=(0.490, 0.589, 0.688))
    assert marks(runs) == ({"flora"}, {"bitfit"})
    frame = accuracy_frame(runs).set_index("method")
    assert frame["half_width"].min() > 0.2
    assert frame.loc["bitfit", "compared"] == PAIRED
    assert pd.isna(frame.loc["flora", "compared"])


@pytest.mark.parametrize(("lead", "wins"), [(0.0249, True), (0.0247, False)])
def test_the_threshold_is_the_half_width(lead, wins):
    # differences lead - 0.01, lead, lead + 0.01: half width 4.302653 x 0.01 / sqrt(3) = 0.024841
    runs = runs_of(flora=(0.6 + lead - 0.01, 0.6 + lead, 0.6 + lead + 0.01), bitfit=(0.6, 0.6, 0.6))
    assert (marks(runs)[0] == {"flora"}) is wins


def test_a_third_that_is_not_told_from_the_highest_takes_its_win_and_what_lies_between_is_level_too():
    runs = runs_of(
        flora=(0.70, 0.71, 0.72), bitfit=(0.69, 0.70, 0.71), linear_probe=(0.5, 0.9, 0.6),
        full_finetune=(0.60, 0.61, 0.62),
    )  # fmt: skip
    assert marks(runs) == (set(), {"flora", "bitfit", "linear_probe"})


def test_a_lower_mean_of_one_seed_is_not_underlined_above_a_higher_one():
    runs = runs_of(flora=(0.80, 0.81, 0.80), bitfit=(0.61, 0.61, 0.62), linear_probe=(0.573,))
    assert marks(runs) == (set(), {"flora", "bitfit", "linear_probe"})


def test_the_next_of_an_established_best_is_underlined_and_whatever_prints_like_it():
    runs = runs_of(flora=(0.9, 0.9), bitfit=(0.80001, 0.8), linear_probe=(0.8, 0.8), full_finetune=(0.7, 0.7))
    assert marks(runs) == ({"flora"}, {"bitfit", "linear_probe"})


def test_without_common_seeds_the_unpaired_interval_decides():
    # paired by position the lead would be beyond doubt; by Welch it is far within
    accuracies = {"flora": (0.50, 0.60, 0.70), "bitfit": (0.490, 0.589, 0.688)}
    apart = runs_of({"bitfit": 10}, **accuracies)
    assert marks(apart) == (set(), {"flora", "bitfit"})
    assert accuracy_frame(apart).set_index("method").loc["bitfit", "compared"] == UNPAIRED
    clear = runs_of({"bitfit": 10}, flora=(0.80, 0.81, 0.82), bitfit=(0.60, 0.61, 0.62))
    assert marks(clear) == ({"flora"}, {"bitfit"})


def test_the_same_seed_on_another_split_of_the_data_is_no_pair():
    rows = [
        make_run(method, seed=seed, accuracy=accuracy + seed / 10, **{"split.fingerprint": f"{method}{seed}"})
        for method, accuracy in (("flora", 0.51), ("bitfit", 0.5))
        for seed in (0, 1, 2)
    ]
    assert set(accuracy_frame(make_runs(*rows))["compared"].dropna()) == {UNPAIRED}
    shared = [row | {"split.fingerprint": "same"} for row in rows]
    assert set(accuracy_frame(make_runs(*shared))["compared"].dropna()) == {PAIRED}


def test_of_one_seed_the_highest_is_best_and_what_prints_the_same_is_not():
    assert marks(runs_of(flora=(0.71,), bitfit=(0.70,))) == ({"flora"}, {"bitfit"})
    level = runs_of(flora=(0.70004,), bitfit=(0.70001,))
    assert marks(level) == (set(), {"flora", "bitfit"})
    assert marks(level, Digits(accuracy=3)) == ({"flora"}, {"bitfit"})
    assert set(accuracy_frame(level)["compared"].dropna()) == {ONE_SEED}


def test_a_method_of_one_seed_among_others_of_several_is_told_from_none():
    runs = runs_of(flora=(0.70, 0.71, 0.70), bitfit=(0.9,), linear_probe=(0.5, 0.5, 0.5))
    assert marks(runs) == (set(), {"flora", "bitfit", "linear_probe"})
    assert set(accuracy_frame(runs)["compared"].dropna()) == {UNKNOWN}


def test_alone_nothing_is_best():
    assert marks(runs_of(flora=(0.7, 0.8))) == (set(), set())
    assert marks(runs_of(zero_shot=(0.6,), flora=(0.7,))) == (set(), set())


def test_a_method_is_no_rival_of_itself_as_deployed():
    rows = [row | {"accuracy": 0.8} for row in both_ways("flora", seeds=(0, 1))]
    rows += [row | {"accuracy": 0.7} for row in both_ways("bitfit", seeds=(0, 1))]
    frame = accuracy_frame(make_runs(*rows)).set_index("method_label")
    assert set(frame.index[frame["best"]]) == {"FLoRA", "FLoRA (as deployed)"}
    assert set(frame.index[frame["second"]]) == {"BitFit", "BitFit (as deployed)"}


def test_a_twin_is_bold_only_where_it_prints_the_same_as_the_winner():
    rows = [row | {"accuracy": 0.8 - 0.02 * (row["acceleration"] == "none")} for row in both_ways("flora")]
    rows += [row | {"accuracy": 0.7} for row in both_ways("bitfit")]
    frame = accuracy_frame(make_runs(*rows)).set_index("method_label")
    assert set(frame.index[frame["best"]]) == {"FLoRA"}
    assert set(frame.index[frame["second"]]) == {"FLoRA (as deployed)", "BitFit", "BitFit (as deployed)"}


def test_level_is_what_is_printed_and_not_what_numpy_rounds():
    # printed 50.5 and 50.5 of two shares that numpy rounds to 50.6 and 50.5
    assert np.round(100 * 0.5055, 1) != printed(0.5055, 1) == 50.5
    assert marks(runs_of(flora=(0.5055,), bitfit=(0.505,))) == (set(), {"flora", "bitfit"})


def test_cells_are_judged_apart():
    rows = [
        make_run(method, split, shots, seed, accuracy=level + seed / 100)
        for split, shots, order in (
            ("iid", 4, (0.8, 0.6)),
            ("iid", pd.NA, (0.6, 0.8)),
            ("domain", 4, (0.7, 0.7)),
        )
        for method, level in zip(("flora", "bitfit"), order, strict=True)
        for seed in (0, 1, 2)
    ]
    frame = accuracy_frame(make_runs(*rows))
    best = {(row.split_label, str(row.shots)): row.method for row in frame[frame["best"]].itertuples()}
    assert best == {("IID", "4"): "flora", ("IID", "<NA>"): "bitfit"}


def test_leads_agree_with_the_paired_differences_of_the_statistics():
    rng = np.random.default_rng(7)
    outcomes = []
    for _ in range(15):
        accuracies = {name: tuple(rng.normal(0.7, 0.02, 3)) for name in ("flora", "bitfit")}
        runs = label_runs(runs_of(**accuracies))
        row = paired_differences(runs).iloc[0]
        outcomes.append(bool(abs(row["mean"]) > row["half_width"]))
        assert bool(marks(runs, Digits(accuracy=6))[0]) is outcomes[-1]
    assert 0 < sum(outcomes) < 15


def test_welch_is_that_of_scipy_and_its_interval_that_of_the_textbook():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.7, 0.03, 5), rng.normal(0.65, 0.01, 3)
    frames = [
        pd.DataFrame({"n": [len(values)], "mean": [values.mean()], "std": [values.std(ddof=1)]})
        for values in (one, other)
    ]
    difference, half, p = (values[0] for values in welch(*frames))
    expected = stats.ttest_ind(one, other, equal_var=False)
    assert difference == pytest.approx(one.mean() - other.mean())
    assert p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert half == pytest.approx((high - low) / 2)


def test_welch_of_one_seed_has_no_interval_and_of_no_spread_no_p():
    known = pd.DataFrame({"n": [1, 3, 3], "mean": [0.7, 0.7, 0.7], "std": [np.nan, 0.0, 0.01]})
    other = pd.DataFrame({"n": [3, 3, 1], "mean": [0.6, 0.6, 0.6], "std": [0.01, 0.0, np.nan]})
    difference, half, p = welch(known, other)
    np.testing.assert_allclose(difference, 0.1)
    np.testing.assert_array_equal(half, [np.nan, 0.0, np.nan])
    assert np.isnan(p).all()
