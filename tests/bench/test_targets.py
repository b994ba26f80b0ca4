"""What it took to reach a target accuracy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import store
from bench.report.targets import QUANTITIES, common_target, to_target, to_target_frame
from flora.errors import BadInput


def make_rounds(accuracies, config_hash="a", **columns):
    n = len(accuracies)
    return pd.DataFrame(
        {
            "config_hash": config_hash,
            "round": range(n),
            "accuracy": accuracies,
            "cumulative_seconds": [2.0 * i for i in range(n)],
            "cumulative_bytes": [100 * i for i in range(n)],
            **columns,
        }
    )


def make_results(by_run):
    """Runs and rounds by (method, seed); the last accuracy is the run's."""
    runs = pd.DataFrame(
        [
            {
                "task": "digits",
                "model": "tiny",
                "method": method,
                "split": "iid",
                "shots": pd.NA,
                "seed": seed,
                "accuracy": accuracies[-1],
                "zero_shot_accuracy": accuracies[0],
                "config_hash": f"{method}{seed}",
            }
            for (method, seed), accuracies in by_run.items()
        ]
    ).astype({"shots": "Int64"})
    rounds = [make_rounds(accuracies, f"{method}{seed}") for (method, seed), accuracies in by_run.items()]
    return runs, pd.concat(rounds, ignore_index=True)


def only(table):
    assert len(table) == 1
    return table.iloc[0]


def test_the_first_round_at_or_above_the_target_counts_and_what_follows_does_not():
    rounds = make_rounds([0.2, 0.5, 0.8, 0.6, 0.9])
    row = only(to_target(rounds, 0.8))
    assert (row["reached"], row["round"], row["amount"]) == (True, 2, 4.0)
    assert only(to_target(rounds, 0.8, "bytes"))["amount"] == 200
    assert row["best_accuracy"] == 0.9


def test_a_target_that_the_model_had_takes_nothing():
    row = only(to_target(make_rounds([0.7, 0.5]), 0.6))
    assert (row["round"], row["amount"]) == (0, 0.0)


def test_a_run_that_never_reaches_it_says_how_far_it_came():
    row = only(to_target(make_rounds([0.2, 0.7, 0.6]), 0.8))
    assert not row["reached"]
    assert np.isnan(row["amount"])
    assert np.isnan(row["round"])
    assert row["best_accuracy"] == 0.7


def test_what_was_not_measured_is_missing_though_the_target_was_reached():
    rounds = make_rounds([0.2, 0.9], cumulative_joules=[0.0, np.nan])
    row = only(to_target(rounds, 0.8, "joules"))
    assert row["reached"]
    assert np.isnan(row["amount"])


def test_a_round_without_an_accuracy_reaches_nothing():
    assert only(to_target(make_rounds([0.2, np.nan, 0.8]), 0.8))["round"] == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_higher_target_is_never_reached_sooner(accuracies, one, other):
    low, high = (only(to_target(make_rounds(accuracies), target)) for target in sorted([one, other]))
    assert low["reached"] or not high["reached"]
    if high["reached"]:
        assert low["amount"] <= high["amount"]
        assert high["amount"] == 2.0 * next(i for i, a in enumerate(accuracies) if a >= max(one, other))


def test_the_order_of_rows_does_not_matter():
    rounds = make_rounds([0.2, 0.5, 0.8, 0.9])
    pd.testing.assert_frame_equal(to_target(rounds.iloc[::-1], 0.6), to_target(rounds, 0.6))


@pytest.mark.parametrize("target", [0, -0.1, 80, float("nan")])
def test_a_target_that_is_no_accuracy_is_refused(target):
    with pytest.raises(BadInput, match="target"):
        to_target(make_rounds([0.2]), target)


def test_a_quantity_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="'secnds'; did you mean 'seconds'"):
        to_target(make_rounds([0.2]), 0.5, "secnds")


def test_a_method_has_the_mean_of_those_that_reached_it_and_the_best_of_those_that_did_not():
    runs, rounds = make_results(
        {
            ("flora", 0): [0.2, 0.9],
            ("flora", 1): [0.2, 0.5, 0.6, 0.9],
            ("flora", 2): [0.2, 0.7],
            ("flora", 3): [0.2, 0.6],
            ("bitfit", 0): [0.2, 0.3, 0.1],
        }
    )
    table = to_target_frame(runs, rounds, 0.8).set_index("method")
    flora, bitfit = table.loc["flora"], table.loc["bitfit"]
    assert (flora["runs"], flora["reached"], flora["n"]) == (4, 2, 2)
    assert flora["mean"] == pytest.approx(4.0)
    assert flora["half_width"] == pytest.approx(12.7062 * 8**0.5 / 2**0.5, rel=1e-4)
    assert flora["best_not_reached"] == 0.7
    assert (bitfit["runs"], bitfit["reached"], bitfit["best_not_reached"]) == (1, 0, 0.3)
    assert np.isnan(bitfit["mean"])


def test_the_common_target_is_halfway_from_zero_shot_to_the_best_method():
    runs, _ = make_results({("flora", 0): [0.2, 0.8], ("flora", 1): [0.2, 0.88], ("bitfit", 0): [0.2, 0.6]})
    assert common_target(runs) == 0.52  # 0.2 + (0.84 - 0.2) / 2
    worse, _ = make_results({("flora", 0): [0.6, 0.4]})
    assert common_target(worse) == 0.2
    assert common_target(runs.drop(columns="zero_shot_accuracy")) == 0.42


@pytest.mark.parametrize(
    ("start", "best", "expected"),
    [
        (0.794, 0.80, 0.797),
        (0.9001, 0.9003, 0.9002),
        (0.896, 0.90, 0.898),
        (0.0, 0.006, 0.003),
        (0.0, 0.0, 0.01),
    ],
)
def test_the_common_target_lies_between_start_and_best(start, best, expected):
    runs, _ = make_results({("flora", 0): [start, best]})
    assert common_target(runs) == pytest.approx(expected)


@given(st.floats(0, 0.99), st.floats(0.001, 1))
def test_a_target_that_the_model_had_or_none_reaches_is_never_chosen(start, best):
    runs, _ = make_results({("flora", 0): [start, best]})
    target = common_target(runs)
    assert (start if start < best else 0) <= target <= best
    assert 0 < target <= 1


# What the store adds up


def make_stored(records):
    config = {"task": "digits", "model": "tiny", "method": {"name": "flora"}, "split": "iid", "seed": 0}
    rounds = [{"round": i, "accuracy": 0.5, **record} for i, record in enumerate(records)]
    return {"status": "complete", "config": config, "config_hash": "h", "summary": {}, "rounds": rounds}


@pytest.fixture
def columns(tmp_path):
    def read(*records):
        run = make_stored(records)
        store.save_run(store.run_path(tmp_path, run["config"], "h"), run)
        frame = store.load_rounds(tmp_path)
        return [frame[QUANTITIES[name]].tolist() for name in ("deployment_seconds", "joules")]

    return read


def test_the_store_adds_up_deployment_and_energy_from_the_first_round_on(columns):
    before = {"deployment_seconds": 99.0, "energy_joules": 99.0}
    seconds, joules = columns(
        before,
        {"deployment_seconds": 1.5, "energy_joules": 10.0},
        {"deployment_seconds": 2.0, "energy_joules": 5.0},
    )
    assert seconds == [0.0, 1.5, 3.5]
    assert joules == [0.0, 10.0, 15.0]


def test_a_missing_value_stays_missing_in_every_sum_with_it(columns):
    known = {"deployment_seconds": 1.5, "energy_joules": 10.0}
    seconds, joules = columns({}, known, {"deployment_seconds": 2.0, "energy_joules": None}, known)
    assert seconds == [0.0, 1.5, 3.5, 5.0]
    assert joules == pytest.approx([0.0, 10.0, np.nan, np.nan], nan_ok=True)
    old, _ = columns({}, {}, {})
    assert old == pytest.approx([0.0, np.nan, np.nan], nan_ok=True)
