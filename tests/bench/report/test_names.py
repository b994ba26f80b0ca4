"""Means over seeds, names and how numbers are written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.report.names import label_runs, shots_label
from bench.report.overview import notes
from bench.report.statistics import mean_interval, ratio_to, t_factor
from bench.report.tables import (
    accuracy_frame,
)
from bench.report.text import bytes_text, digits, escape_markdown, n_text, slug
from tests.bench.report.made import (
    LEVEL,
    make_results,
    make_run,
    make_runs,
)


def test_t_factor_over_three_seeds_is_not_that_of_the_normal():
    assert t_factor(3) == pytest.approx(4.302653, abs=1e-6)
    assert t_factor(2) == pytest.approx(12.706205, abs=1e-6)
    assert np.isnan(t_factor(1))


def test_interval_of_three_values_in_closed_form():
    frame = pd.DataFrame({"m": "a", "x": [1.0, 2.0, 3.0]})
    row = mean_interval(frame, ["m"], "x").iloc[0]
    assert (row["n"], row["mean"], row["std"]) == (3, 2.0, 1.0)
    assert row["half_width"] == pytest.approx(4.302653 / 3**0.5, abs=1e-6)


def test_one_seed_has_no_interval():
    row = mean_interval(pd.DataFrame({"m": ["a"], "x": [1.0]}), ["m"], "x").iloc[0]
    assert row["mean"] == 1.0
    assert np.isnan(row["half_width"])


def test_missing_shots_are_a_group_and_missing_values_do_not_count():
    frame = pd.DataFrame({"shots": pd.array([None, None, 4, 4], dtype="Int64"), "x": [1.0, 3.0, 5.0, np.nan]})
    table = mean_interval(frame, ["shots"], "x")
    assert dict(zip(table["shots"].fillna(0), table["n"], strict=True)) == {4: 1, 0: 2}
    assert table.set_index(table["shots"].fillna(0))["mean"].to_dict() == {4: 5.0, 0: 2.0}


def test_ratio_is_reference_over_value_within_its_group():
    table = pd.DataFrame(
        {"g": [1, 1, 2, 3, 3], "ref": [True, False, False, True, False], "x": [8.0, 2, 5, 9, 0]}
    )
    ratio = ratio_to(table, ["g"], table["ref"], "x")
    np.testing.assert_array_equal(ratio, [1.0, 4.0, np.nan, 1.0, np.nan])


# Names


def test_known_names_are_spelled_out_and_others_stand_as_they_are():
    runs = label_runs(make_results(methods=(*LEVEL, "my_method"), shots=(pd.NA,), seeds=(0,))[0])
    assert list(runs["method_label"].cat.categories) == [
        "Zero-shot", "Full fine-tuning", "Linear probe", "Attention adapter", "FLoRA", "my_method",
    ]  # fmt: skip
    assert list(runs["split_label"].cat.categories) == [
        "IID",
        "Dirichlet (β = 0.1)",
        "Pathological (2 classes)",
    ]


def test_only_options_that_vary_are_in_a_label():
    runs = make_runs(
        make_run(**{"method.rank": 8.0, "method.alpha": 32.0}),
        make_run(**{"method.rank": 16.0, "method.alpha": 32.0}),
        make_run("linear_probe"),
    )
    assert list(label_runs(runs)["method_label"].cat.categories) == [
        "Linear probe", "FLoRA (rank 8)", "FLoRA (rank 16)",
    ]  # fmt: skip


def test_splits_of_two_betas_differ():
    runs = make_runs(make_run(split="dirichlet"), make_run(split="dirichlet", **{"split.beta": 1.0}))
    assert list(label_runs(runs)["split_label"]) == ["Dirichlet (β = 0.1)", "Dirichlet (β = 1)"]


def test_what_a_split_measured_is_no_option():
    runs = make_runs(
        *(make_run(seed=s, **{"split.fingerprint": str(s), "split.label_skew": s / 7}) for s in (0, 1))
    )
    assert list(label_runs(runs)["split_label"].cat.categories) == ["IID"]


def test_runs_that_differ_in_more_than_the_seed_are_never_averaged():
    runs = make_runs(make_run(accuracy=0.5), make_run(accuracy=0.9, **{"optimizer.lr": 1e-3}))
    frame = accuracy_frame(runs)
    assert list(frame["method_label"]) == ["FLoRA (lr 5e-05)", "FLoRA (lr 0.001)"]
    assert list(frame["n"]) == [1, 1]


def test_bounds_protocols_and_what_is_scored_are_told_apart():
    rows = [make_run(mode=mode) for mode in ("federated", "local_only", "centralized")]
    labels = label_runs(make_runs(*rows))["method_label"]
    assert set(labels) == {"FLoRA (federated)", "FLoRA (local only)", "FLoRA (centralized)"}
    for column, values in {
        "data.protocol": ("official", "paper"),
        "evaluation.set": ("test", "validation"),
    }.items():
        labels = label_runs(make_runs(*(make_run(**{column: value}) for value in values)))["method_label"]
        assert labels.nunique() == 2
    roots = label_runs(make_runs(*(make_run(seed=i, **{"data.root": f"/disk{i}"}) for i in range(2))))
    assert roots["method_label"].nunique() == 1


def test_notes_say_whose_accuracy_is_another():
    plain = " ".join(notes(label_runs(make_runs(make_run(mode="federated")))))
    assert "clients' own models" not in plain
    runs = make_runs(make_run(mode="local_only", **{"evaluation.set": "validation"}))
    told = " ".join(notes(label_runs(runs)))
    assert "clients' own models" in told
    assert "held-out training data" in told


def test_settings_that_follow_the_split_name_nothing():
    runs = make_runs(make_run(), make_run(split="domain", clients=4))
    assert set(label_runs(runs)["method_label"]) == {"FLoRA"}


def test_seeds_on_two_gpus_of_a_machine_share_a_label():
    runs = make_runs(make_run(device="cuda:0"), make_run(seed=1, device="cuda:1"))
    assert accuracy_frame(runs)["n"].tolist() == [2]


@pytest.mark.parametrize(("shots", "text"), [(pd.NA, "all data"), (1, "1 shot"), (16, "16 shots")])
def test_shots_label(shots, text):
    assert shots_label(shots) == text


# Texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (98_304, "98.3 kB"),
        (605_109_252, "605 MB"),
        (999_600, "1.00 MB"),
        (2e13, "20.0 TB"),
    ],
)
def test_bytes_text(value, text):
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0521, "0.0521"), (12.345, "12.3"), (1234.5, "1,234")]
)
def test_digits(value, text):
    assert digits(value) == text


def test_n_text():
    assert [n_text([1, 1]), n_text([3, 3]), n_text([1, 3])] == [
        "one seed", "mean of n = 3 seeds", "mean of n = 1 to 3 seeds",
    ]  # fmt: skip


def test_slug_keeps_to_one_folder():
    assert slug("folder:../../etc ViT-B-32:openai") == "folder-__-__-etc-vit-b-32-openai"
    assert slug("β") == "unnamed"


def test_markdown_is_escaped():
    assert escape_markdown("a|b_*<script>\nc") == "a\\|b\\_\\*&lt;script&gt; c"
