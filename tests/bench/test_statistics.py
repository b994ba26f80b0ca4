"""Paired differences and their tests: closed forms, scipy as a second instrument, properties."""

import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bench.report.statistics import holm, paired_differences, paired_t_p, signed_rank_p, t_factor
from flora.errors import BadInput

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)
WHOLE = st.integers(-6, 6)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make_runs(accuracies, split="iid", shots=None, fingerprint="f{}", task="digits"):
    """One row a run, by method and seed."""
    rows = [
        {
            "task": task,
            "model": "tiny",
            "method": method,
            "split": split,
            "shots": shots,
            "seed": seed,
            "accuracy": accuracy,
            "total_seconds": 10.0 * accuracy,
            "split.fingerprint": fingerprint.format(seed),
        }
        for method, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]
    return pd.DataFrame(rows).astype({"shots": "Int64"})


def only(table):
    assert len(table) == 1
    return table.iloc[0]


# Holm


def test_holm_of_a_worked_example():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> 0.02, 0.03, 0.06, and not below its predecessor: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_holm_is_its_definition(p):
    order = sorted(range(len(p)), key=lambda index: p[index])
    expected = {
        index: max(min(1.0, (len(p) - k) * p[earlier]) for k, earlier in enumerate(order[: rank + 1]))
        for rank, index in enumerate(order)
    }
    assert holm(p) == pytest.approx([expected[index] for index in range(len(p))])


@given(P_VALUES, st.floats(0.01, 0.2))
def test_holm_refuses_what_the_step_down_procedure_refuses(p, level):
    order = np.argsort(p, kind="stable")
    rejected = np.zeros(len(p), bool)
    for k, index in enumerate(order):
        if (len(p) - k) * p[index] > level:
            break
        rejected[index] = True
    assert ((holm(p) <= level) == rejected).all()


@given(P_VALUES)
def test_holm_keeps_the_order_and_is_never_below_the_raw_value_nor_above_bonferroni(p):
    corrected = holm(p)
    raw = np.array(p)
    assert (corrected >= raw).all()
    assert (corrected <= np.minimum(1, raw * len(p)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(raw, kind="stable")]) >= 0).all()


def test_missing_values_stay_missing_and_do_not_count():
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert len(holm([])) == 0


# The two tests


@given(arrays(float, st.integers(2, 9), elements=WHOLE.map(float)))
def test_signed_ranks_are_counted_over_every_choice_of_signs(differences):
    left = differences[differences != 0]
    if not len(left):
        assert signed_rank_p(differences) == 1.0
        return
    ranks = stats.rankdata(abs(left))
    sums = [abs(np.dot(signs, ranks)) for signs in product((-1, 1), repeat=len(left))]
    observed = abs(np.dot(np.sign(left), ranks))
    assert signed_rank_p(differences) == pytest.approx(np.mean([s >= observed - 1e-9 for s in sums]))


@given(st.permutations(range(1, 11)), st.lists(st.sampled_from([-1.0, 1.0]), min_size=10, max_size=10))
def test_signed_ranks_without_ties_are_scipys(sizes, signs):
    differences = np.array(sizes) * np.array(signs)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_many_differences_are_left_to_scipy():
    differences = np.random.default_rng(0).normal(0.3, size=20)
    assert signed_rank_p(differences) == stats.wilcoxon(differences).pvalue


def test_smallest_p_of_few_seeds_is_that_of_all_signs_alike():
    assert signed_rank_p(np.array([1.0, 2.0, 3.0])) == 0.25
    assert signed_rank_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 0.0625


@given(arrays(float, st.integers(2, 8), elements=st.floats(-1, 1)).filter(lambda d: np.std(d) > 1e-6))
def test_paired_t_is_that_of_two_samples(differences):
    base = np.linspace(0.2, 0.9, len(differences))
    expected = stats.ttest_rel(base + differences, base).pvalue
    assert paired_t_p(differences) == pytest.approx(expected, rel=1e-5)


def test_one_difference_has_no_p_none_at_all_has_one_and_no_spread_is_no_certainty():
    assert np.isnan(paired_t_p(np.array([0.1])))
    assert np.isnan(signed_rank_p(np.array([0.1])))
    assert paired_t_p(np.zeros(3)) == signed_rank_p(np.zeros(3)) == 1.0
    assert np.isnan(paired_t_p(np.full(3, 0.1)))
    assert signed_rank_p(np.full(3, 0.1)) == 0.25


# The table


def test_a_difference_in_closed_form():
    runs = make_runs({"flora": [0.7, 0.8, 0.9], "linear_probe": [0.6, 0.6, 0.6]})
    row = only(paired_differences(runs))
    # METHODS names the linear probe before FLoRA
    assert (row["method_label"], row["other_label"]) == ("Linear probe", "FLoRA")
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(-0.2)
    assert row["std"] == pytest.approx(0.1)
    assert row["half_width"] == pytest.approx(t_factor(3) * 0.1 / 3**0.5)
    assert (row["wins"], row["ties"], row["losses"]) == (0, 0, 3)
    assert row["t_p"] == row["t_p_holm"] == pytest.approx(stats.ttest_rel([7, 8, 9], [6, 6, 6]).pvalue)
    assert row["wilcoxon_p"] == 0.25
    assert row["family"] == 1


def test_only_seeds_with_the_same_split_are_paired():
    one = make_runs({"flora": [0.7, 0.8, 0.9]})
    other = make_runs({"linear_probe": [0.6, 0.6, 0.6, 0.6]})
    other.loc[1, "split.fingerprint"] = "another"
    row = only(paired_differences(pd.concat([one, other])))
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(0.6 - 0.8)
    apart = make_runs({"linear_probe": [0.6]}, fingerprint="z")
    assert paired_differences(pd.concat([one, apart])).empty


def test_results_without_fingerprints_are_paired_by_seed():
    runs = make_runs({"flora": [0.7, 0.8], "linear_probe": [0.6, 0.6]})
    assert only(paired_differences(runs.drop(columns="split.fingerprint")))["n"] == 2
    assert only(paired_differences(runs.assign(**{"split.fingerprint": None})))["n"] == 2


def test_the_family_is_all_pairs_of_a_task_and_model():
    methods = {"flora": [0.70, 0.81, 0.90], "linear_probe": [0.6, 0.65, 0.61], "bitfit": [0.5, 0.58, 0.53]}
    runs = pd.concat(
        [
            make_runs(methods),
            make_runs(methods, split="dirichlet"),
            make_runs(methods, shots=4),
            make_runs(methods, task="other"),
        ]
    )
    table = paired_differences(runs)
    assert len(table) == 12
    assert table.groupby("task")["family"].first().to_dict() == {"digits": 9, "other": 3}
    mine = table[table["task"] == "digits"]
    for p in ("t_p", "wilcoxon_p"):
        assert mine[f"{p}_holm"].tolist() == pytest.approx(holm(mine[p].tolist()).tolist())
    alone = paired_differences(runs, reference="flora")
    assert alone["method_label"].eq("FLoRA").all()
    assert alone.groupby("task")["family"].first().to_dict() == {"digits": 6, "other": 2}


def test_methods_that_never_differ_neither_crash_nor_warn():
    row = only(paired_differences(make_runs({"flora": [0.5, 0.6, 0.7], "bitfit": [0.5, 0.6, 0.7]})))
    assert (row["wins"], row["ties"], row["losses"]) == (0, 3, 0)
    assert row["mean"] == row["half_width"] == 0.0
    assert row["t_p_holm"] == row["wilcoxon_p_holm"] == 1.0


def test_one_seed_has_a_difference_and_no_p():
    row = only(paired_differences(make_runs({"flora": [0.5], "bitfit": [0.75]})))
    assert row["mean"] == 0.25
    assert row[["half_width", "t_p", "wilcoxon_p", "t_p_holm", "wilcoxon_p_holm"]].isna().all()
    assert row["family"] == 0


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=6))
def test_turned_round_the_difference_changes_its_sign_and_nothing_else(pairs):
    one, other = ([pair[index] / 100 for pair in pairs] for index in (0, 1))
    runs = make_runs({"flora": one, "bitfit": other})
    forth = only(paired_differences(runs, reference="flora"))
    back = only(paired_differences(runs, reference="BitFit"))
    assert forth["mean"] == pytest.approx(-back["mean"])
    assert (forth["wins"], forth["losses"]) == (back["losses"], back["wins"])
    for same in ("n", "ties", "half_width", "t_p", "wilcoxon_p"):
        assert forth[same] == pytest.approx(back[same], nan_ok=True)
    assert forth["wins"] + forth["ties"] + forth["losses"] == forth["n"] == len(pairs)


def test_another_metric_and_what_is_none():
    runs = make_runs({"flora": [0.7, 0.8], "bitfit": [0.6, 0.6]})
    assert only(paired_differences(runs, "total_seconds", "flora"))["mean"] == pytest.approx(1.5)
    with pytest.raises(BadInput, match="'acuracy'; did you mean 'accuracy'"):
        paired_differences(runs, "acuracy")
    with pytest.raises(BadInput, match="'florra'; did you mean 'flora'"):
        paired_differences(runs, reference="florra")
    with pytest.raises(BadInput, match="metric"):
        paired_differences(runs, "method")


def test_a_run_without_the_metric_does_not_count():
    runs = make_runs({"flora": [0.7, 0.8, 0.9], "bitfit": [0.6, 0.6, np.nan]})
    assert only(paired_differences(runs))["n"] == 2
    assert paired_differences(runs[runs["method"] == "flora"]).empty
