"""The report from synthetic results: statistics, tables, figures and the page."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.catalogue import method_modules
from bench.report import figures, page
from bench.report.names import METHODS, label_rounds, label_runs, shots_label, without_deployed_twins
from bench.report.overview import notes, overview
from bench.report.statistics import mean_interval, ratio_to, t_factor
from bench.report.styles import STYLES, styles_of
from bench.report.tables import (
    accuracy_frame,
    accuracy_table,
    beyond_table,
    cost_frame,
    cost_table,
    deployed_frame,
    deployed_table,
    zero_shot_reference,
)
from bench.report.text import bytes_text, digits, escape_markdown, n_text, slug
from bench.report.times import with_times
from flora.errors import BadInput

LEVEL = {
    "zero_shot": 0.0,
    "flora": 0.22,
    "full_finetune": 0.25,
    "linear_probe": 0.17,
    "attention_adapter": 0.06,
}
PARAMETERS = {
    "zero_shot": 0,
    "flora": 24_576,
    "full_finetune": 151_277_313,
    "linear_probe": 5_120,
    "attention_adapter": 525_312,
}
HARDER = {"iid": 0.0, "dirichlet": 0.08, "pathological": 0.3}


def make_run(method="flora", split="iid", shots=pd.NA, seed=0, rounds=10, **fields):
    """One row of runs, as the store gives it; ``fields`` replace or add columns."""
    rng = np.random.default_rng(
        [len(method), len(split), 0 if shots is pd.NA else shots, seed if isinstance(seed, int) else 0]
    )
    weak = 1.0 if shots is pd.NA else 0.25 + 0.1 * np.log2(shots)
    gain = (
        LEVEL.get(method, 0.1) * weak
        - HARDER.get(split, 0.1) * (method != "zero_shot")
        + rng.normal(0, 0.004)
    )
    gain = 0.0 if method == "zero_shot" else gain
    parameters = PARAMETERS.get(method, 10_000)
    payload, slow = 4 * parameters, {"full_finetune": 30.0}.get(method, 1.0 + 0.2 * len(method) / 10)
    trains = method != "zero_shot"
    train = trains * slow * rounds * (0.2 if shots is not pd.NA else 1.0) * (1 + rng.normal(0, 0.01))
    run = {
        "task": "cifar10",
        "model": "ViT-B-32:openai",
        "method": method,
        "split": split,
        "shots": shots,
        "seed": seed,
        "clients": 10,
        "rounds": rounds,
        "batch_size": 128,
        "device": "cpu",
        "acceleration": "exact",
        "method.rank": 2.0 if method == "flora" else np.nan,
        "split.beta": 0.1 if split == "dirichlet" else np.nan,
        "split.classes_per_client": 2.0 if split == "pathological" else np.nan,
        "optimizer.lr": 5e-5,
        "status": "complete",
        "accuracy": 0.62 + gain,
        "best_accuracy": 0.62 + gain + 0.01,
        "zero_shot_accuracy": 0.62,
        "train_seconds": train,
        "round_seconds": train / rounds,
        "total_seconds": train + 20.0,
        "setup_seconds": 12.5 if trains and method != "full_finetune" else 0.8,
        "peak_memory_bytes": 4.9e9 if method == "full_finetune" else 1.9e9 + 1e8 * len(method),
        "peak_gpu_memory_bytes": np.nan,
        "bytes_up": payload * 10 * rounds,
        "bytes_down": payload * 10 * rounds,
        "payload_bytes": payload,
        "trainable_parameters": parameters,
        "environment.cpu": "Imaginary 9000, 2 cores",
        "environment.packages.torch": "2.15.0",
        "environment.git_commit": "0123abc",
    } | fields
    path = "/".join(
        str(run[c])
        for c in (
            *("task", "model", "method", "split", "shots", "seed", "acceleration"),
            *("method.rank", "split.beta"),
        )
    )
    run["config_hash"] = hashlib.sha256(path.encode()).hexdigest()[:12]
    run["path"] = f"results/{run['task']}/{method}/{run['config_hash']}/run.json"
    return run | fields


def make_rounds(run):
    """A curve that climbs from zero-shot to the run's accuracy."""
    last = 0 if run["method"] == "zero_shot" else run["rounds"]
    climb = [1 - np.exp(-3 * index / max(last, 1)) for index in range(last + 1)]
    start, gain = run["zero_shot_accuracy"], run["accuracy"] - run["zero_shot_accuracy"]
    keys = ("task", "model", "method", "split", "shots", "seed", "config_hash")
    sent = (run["bytes_up"] + run["bytes_down"]) / max(last, 1)
    return [
        {key: run[key] for key in keys}
        | {
            "round": index,
            "accuracy": start + gain * share / (climb[-1] or 1.0),
            "loss": np.nan if index == 0 else 1.0 / index,
            "cumulative_bytes": sent * index,
            "cumulative_seconds": run["train_seconds"] * index / max(last, 1),
        }
        for index, share in enumerate(climb)
    ]


def make_results(
    *, methods=tuple(LEVEL), splits=tuple(HARDER), shots=(pd.NA, 4), seeds=(0, 1), rounds=10, extra=()
):
    """Runs and rounds of every combination, and of the ``extra`` rows."""
    cells = itertools.product(methods, splits, shots, seeds)
    rows = [make_run(m, split, n, seed, rounds) for m, split, n, seed in cells] + list(extra)
    runs, records = pd.DataFrame(rows), pd.DataFrame([record for row in rows for record in make_rounds(row)])
    return tuple(frame.astype({"shots": "Int64"}) for frame in (runs, records))


def make_runs(*rows):
    """Runs of these rows alone."""
    return pd.DataFrame(list(rows)).astype({"shots": "Int64"})


def make_small():
    """Three methods on two splits, enough for every figure but the curves over shots."""
    return make_results(
        methods=("zero_shot", "flora", "full_finetune"), splits=("iid", "dirichlet"), shots=(pd.NA,), rounds=3
    )


def labelled(results):
    runs, rounds = results
    runs = label_runs(runs)
    return runs, label_rounds(rounds, runs)


# Statistics


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


# Tables


def test_best_trained_method_and_those_below_zero_shot_are_marked():
    runs = make_runs(
        make_run("zero_shot", accuracy=0.62),
        make_run("flora", accuracy=0.70),
        make_run("linear_probe", accuracy=0.61),
    )
    frame = accuracy_frame(runs).set_index("method")
    assert frame.index[frame["best"]].tolist() == ["flora"]
    assert frame.index[frame["below_zero_shot"]].tolist() == ["linear_probe"]
    markdown = accuracy_table(runs).to_markdown()
    assert "| FLoRA | **70.0** |" in markdown
    assert "| Linear probe | 61.0 ▼ |" in markdown
    assert "▼: below zero-shot" in markdown


def test_zero_shot_itself_is_never_best():
    runs = make_runs(
        make_run("zero_shot", accuracy=0.9),
        make_run("flora", accuracy=0.5),
        make_run("linear_probe", accuracy=0.4),
    )
    assert accuracy_frame(runs).set_index("method")["best"].to_dict() == {
        "zero_shot": False, "flora": True, "linear_probe": False,
    }  # fmt: skip


def test_methods_that_print_the_same_are_both_best_and_one_alone_is_not():
    tied = make_runs(make_run("flora", accuracy=0.70004), make_run("linear_probe", accuracy=0.70001))
    assert accuracy_frame(tied)["best"].all()
    assert not accuracy_frame(make_runs(make_run())).best.any()


def test_marks_are_those_of_their_own_column():
    cells = itertools.product(("flora", "linear_probe"), ("iid", "domain"))
    accuracies = (0.8, 0.6, 0.7, 0.9)
    runs = make_runs(*(make_run(*cell, accuracy=a) for cell, a in zip(cells, accuracies, strict=True)))
    best = accuracy_frame(runs).query("best")
    assert set(zip(best["method"], best["split_label"], strict=True)) == {
        ("flora", "IID"),
        ("linear_probe", "Domain"),
    }


def test_accuracy_table_has_shots_as_column_groups_and_the_interval():
    runs, _ = make_results(seeds=(0, 1, 2))
    table = accuracy_table(runs)
    assert table.groups == [("all data", 3), ("4 shots", 3)]
    assert table.columns[1:] == ["IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)"] * 2
    values = runs.query("method == 'flora' and split == 'iid' and shots.isna()")["accuracy"] * 100
    half = 4.302653 * values.std() / 3**0.5
    assert dict(table.rows)["FLoRA"][0].text == f"{values.mean():.1f} ± {half:.1f}"


def test_methods_scored_on_different_images_are_marked_by_their_own_zero_shot_and_none_is_best():
    rows = [
        make_run("flora", **{"data.protocol": "official"}, accuracy=0.59, zero_shot_accuracy=0.58),
        make_run("flora", **{"data.protocol": "paper"}, accuracy=0.61, zero_shot_accuracy=0.62),
    ]
    table = accuracy_frame(make_runs(*rows)).set_index("method_label")
    assert dict(table["below_zero_shot"]) == {
        "FLoRA (protocol official)": False,
        "FLoRA (protocol paper)": True,
    }
    assert not table["best"].any()
    shown = dict(accuracy_table(make_runs(*rows)).rows)
    assert "Zero-shot" not in shown or shown["Zero-shot"][0].text == "–"


def test_a_cell_that_was_not_run_shows_a_dash():
    runs = make_runs(make_run(), make_run(split="domain"), make_run("linear_probe"))
    assert [cell.text for cell in dict(accuracy_table(runs).rows)["Linear probe"]][1] == "–"


def test_zero_shot_row_comes_from_the_other_runs_where_it_was_not_run():
    table = accuracy_table(make_runs(make_run(zero_shot_accuracy=0.321)))
    assert table.rows[0][0] == "Zero-shot"
    assert table.rows[0][1][0].text == "32.1"


def test_zero_shot_reference_is_that_of_its_own_cell():
    runs = make_runs(make_run(zero_shot_accuracy=0.3), make_run(split="domain", zero_shot_accuracy=0.5))
    reference = zero_shot_reference(runs)
    assert dict(zip(reference["split_label"], reference["zero_shot"], strict=True)) == {
        "IID": 0.3,
        "Domain": 0.5,
    }


def test_cost_ratios_say_how_many_times_less_than_full_fine_tuning():
    runs = make_runs(
        make_run("full_finetune", train_seconds=347.2, peak_memory_bytes=2.47e9, total_seconds=0.0),
        make_run("flora", train_seconds=10.0, peak_memory_bytes=1e9),
    )
    row = cost_frame(runs).set_index("method").loc["flora"]
    assert row["train_seconds_times_less"] == pytest.approx(34.72)
    assert row["peak_memory_bytes_times_less"] == pytest.approx(2.47)
    assert row["trainable_parameters_times_less"] == pytest.approx(151_277_313 / 24_576)
    assert np.isnan(row["from_nothing_seconds_times_less"])
    cells = dict(zip(cost_table(runs).columns[1:], dict(cost_table(runs).rows)["FLoRA"], strict=True))
    assert (cells["Train (s)"].text, cells["Train (s)"].note) == ("10.0", "34.7×")
    assert (cells["Payload"].text, cells["Total from nothing (s)"].note) == ("98.3 kB", "")


def test_costs_are_compared_with_full_fine_tuning_that_is_accelerated_alike():
    seconds = {("flora", "exact"): 1.0, ("flora", "none"): 10.0, ("full_finetune", "exact"): 40.0}
    seconds["full_finetune", "none"] = 50.0
    rows = [make_run(method, acceleration=a, train_seconds=s) for (method, a), s in seconds.items()]
    table = cost_frame(make_runs(*rows)).set_index(["method", "acceleration"])["train_seconds_times_less"]
    assert table["flora", "exact"] == 40.0
    assert table["flora", "none"] == 5.0
    assert table["full_finetune", "none"] == 1.0
    assert "accelerated alike" in cost_table(make_runs(*rows)).caption


COLD = {"setup_seconds": 12.5, "features_seconds": 12.0, "extraction_seconds": 12.0, "total_seconds": 32.0}
WARM = {"setup_seconds": 1.0, "features_seconds": 0.5, "extraction_seconds": 12.0, "total_seconds": 20.5}
FORMER = {"setup_seconds": 12.5, "features_seconds": 12.0, "total_seconds": 32.0}
UNKEPT = {"setup_seconds": 0.5, "features_seconds": 0.0, "extraction_seconds": None, "total_seconds": 20.0}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (COLD, (12.0, 0.5, 32.0)),
        (WARM, (12.0, 0.5, 32.0)),
        (FORMER, (12.0, 0.5, 32.0)),
        (UNKEPT, (None, 0.5, 20.0)),
    ],
    ids=["cold", "warm", "former", "nothing kept"],
)
def test_costs_are_as_from_an_empty_cache(seconds, expected):
    runs = make_runs(make_run(**seconds))
    row = with_times(runs).iloc[0]
    found = [row[f"{name}_seconds"] for name in ("features_once", "other_setup", "from_nothing")]
    np.testing.assert_array_equal(found, np.array(expected, float))
    assert ("Features, once (s)" in cost_table(runs).columns) == (expected[0] is not None)


def test_a_warm_cache_flatters_no_method():
    rows = [make_run("full_finetune", **UNKEPT | {"total_seconds": 64.0})]
    rows += [make_run("flora", seed=0, **COLD), make_run("flora", seed=1, **WARM)]
    flora = cost_frame(make_runs(*rows)).set_index("method").loc["flora"]
    assert flora["from_nothing_seconds_times_less"] == 2.0
    assert flora["from_nothing_seconds_half_width"] == 0.0


def test_results_of_a_time_before_acceleration_was_stated_are_read():
    runs = make_runs(make_run()).drop(columns="acceleration")
    assert "Seconds" not in cost_table(runs).caption
    assert deployed_table(runs) is None
    assert list(without_deployed_twins(runs)["method"]) == ["flora"]
    assert label_runs(runs)["method_label"].tolist() == ["FLoRA"]


def both_ways(*methods, seeds=(0,)):
    """Runs as deployed, ten times as slow, beside accelerated ones."""
    slow = {"round_seconds": 10.0, "total_seconds": 120.0}
    fast = {"round_seconds": 1.0, "total_seconds": 30.0, "clients_together": 4}
    return [
        make_run(method, seed=seed, acceleration=mode, **(slow if mode == "none" else fast))
        for method in methods
        for seed in seeds
        for mode in ("exact", "none")
    ]


def test_runs_as_deployed_are_called_so_beside_accelerated_ones_and_only_there():
    runs = label_runs(make_runs(*both_ways("flora"), make_run("linear_probe")))
    assert list(runs["method_label"].cat.categories) == ["Linear probe", "FLoRA", "FLoRA (as deployed)"]
    alone = label_runs(make_runs(make_run(acceleration="none")))
    assert list(alone["method_label"]) == ["FLoRA"]
    other = label_runs(make_runs(make_run(), make_run("full_finetune", acceleration="none")))
    assert set(other["method_label"]) == {"FLoRA", "Full fine-tuning (as deployed)"}


def test_a_method_run_both_ways_stands_beside_itself_with_the_ratio():
    table = deployed_table(make_runs(*both_ways("flora", "full_finetune"), make_run("linear_probe")))
    assert [name for name, _ in table.rows] == ["Full fine-tuning", "FLoRA"]
    headings = dict(zip(table.headings[1:], dict(table.rows)["FLoRA"], strict=True))
    shown = {
        heading: cell.text for heading, cell in headings.items() if "Round" in heading or "Total" in heading
    }
    assert shown == {
        "As deployed, Round (s)": "10.0",
        "Accelerated, Round (s)": "1.00",
        "Ratio, Round (s)": "10.0×",
        "As deployed, Total from nothing (s)": "120",
        "Accelerated, Total from nothing (s)": "30.0",
        "Ratio, Total from nothing (s)": "4.00×",
    }


def test_both_ways_are_compared_over_the_seeds_they_share():
    rows = [*both_ways("flora"), make_run(seed=1, round_seconds=5.0, clients_together=4)]
    frame = deployed_frame(make_runs(*rows))
    assert frame["round_seconds_accelerated"].tolist() == [1.0]
    assert deployed_table(make_runs(make_run(), make_run(seed=1, acceleration="none"))) is None


def test_variants_of_a_method_are_compared_each_with_itself():
    rows = [
        make_run(acceleration=mode, round_seconds=seconds * rank, **{"method.rank": float(rank)})
        for mode, seconds in (("exact", 1.0), ("none", 8.0))
        for rank in (2, 4)
    ]
    frame = deployed_frame(make_runs(*rows)).set_index("twin_label")
    assert frame["round_seconds_ratio"].to_dict() == {"FLoRA (rank 2)": 8.0, "FLoRA (rank 4)": 8.0}
    labels = label_runs(make_runs(*rows))["method_label"]
    assert "FLoRA (rank 4, as deployed)" in set(labels)


def test_captions_say_which_time_they_show():
    accelerated, deployed = (make_run(acceleration=mode) for mode in ("exact", "none"))
    captions = [
        cost_table(make_runs(*rows)).caption for rows in ([accelerated], [deployed], [accelerated, deployed])
    ]
    assert ["of the simulation, accelerated" in caption for caption in captions] == [True, False, True]
    assert ["as deployed" in caption for caption in captions] == [False, True, True]


def test_clients_trained_together_are_told_and_not_compared():
    rows = [make_run("full_finetune", clients_together=1), make_run("flora", clients_together=10)]
    cells = dict(cost_table(make_runs(*rows)).rows)
    assert [cells[name][-1].text for name in ("Full fine-tuning", "FLoRA")] == ["1", "10"]
    assert cells["FLoRA"][-1].note == ""
    assert "Clients at once" not in cost_table(make_runs(make_run(clients_together=1))).columns


def test_seeds_share_a_label_however_many_clients_fitted_together():
    rows = [make_run(seed=seed, clients_per_batch="auto", clients_together=24 + seed) for seed in (0, 1)]
    assert set(label_runs(make_runs(*rows))["method_label"]) == {"FLoRA"}


def test_runs_that_compute_otherwise_are_told_apart():
    asked = [make_run(clients_per_batch=asked) for asked in (1, 8, "auto")]
    assert label_runs(make_runs(*asked))["method_label"].nunique() == 3
    threads = [make_run(**{"compute.threads": threads}) for threads in (1, 2)]
    assert label_runs(make_runs(*threads))["method_label"].nunique() == 2


def test_cost_without_full_fine_tuning_has_no_ratio():
    table = cost_table(make_runs(make_run(), make_run("linear_probe")))
    assert not any(cell.note for _, cells in table.rows for cell in cells)
    assert "times less" not in table.caption


def test_gpu_memory_is_a_column_only_where_it_was_measured():
    assert "Peak GPU memory" not in cost_table(make_runs(make_run())).columns
    assert "Peak GPU memory" in cost_table(make_runs(make_run(peak_gpu_memory_bytes=1e9))).columns


def test_what_was_measured_beyond_the_test_set_has_a_table_and_else_there_is_none():
    assert beyond_table(make_runs(make_run())) is None
    rows = [
        make_run(seed=seed, client_worst_accuracy=worst, new_accuracy=new)
        for seed, worst, new in ((0, 0.5, 0.61), (1, 0.6, 0.63))
    ]
    rows.append(make_run("linear_probe", client_worst_accuracy=0.4, new_accuracy=np.nan))
    table = beyond_table(make_runs(*rows))
    assert table.columns == ["Method", "Worst client", "New classes, after"]
    shown = {name: [cell.text for cell in cells] for name, cells in table.rows}
    # two values a tenth apart: t = 12.706, their standard deviation 0.0707
    assert shown["FLoRA"] == ["55.0 ± 63.5", "62.0 ± 12.7"]
    assert shown["Linear probe"] == ["40.0", "–"]


def test_markdown_table_is_rectangular():
    lines = accuracy_table(make_results()[0]).to_markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert {line.count("|") for line in rows} == {8}


def test_html_table_is_escaped():
    html = accuracy_table(make_runs(make_run("<script>alert(1)</script>"))).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# Figures


def test_a_method_looks_the_same_in_every_set_and_variants_keep_apart():
    alone = styles_of(make_runs(make_run()))
    many = styles_of(make_results(methods=(*LEVEL, "a", "b"))[0])
    assert alone["FLoRA"] == many["FLoRA"]
    assert len({(s.colour, s.marker, str(s.line)) for s in many.values()}) == len(many)
    variants = styles_of(make_runs(*(make_run(**{"method.rank": r}) for r in (2.0, 4.0, 8.0))))
    assert len({s.marker for s in variants.values()}) == len({s.hatch for s in variants.values()}) == 3


def test_every_method_has_a_name_and_those_of_this_project_a_look_of_their_own():
    methods = method_modules()
    assert set(methods) <= set(METHODS)
    assert len(set(METHODS.values())) == len(METHODS)
    assert {name for name in methods if ":" not in name} == set(STYLES)
    for part in ("colour", "marker", "line", "hatch"):
        values = [str(getattr(style, part)) for name, style in STYLES.items() if name != "zero_shot"]
        repeated = len(values) - len(set(values))
        assert repeated <= (1 if part == "line" else 0), part


def test_many_methods_without_a_look_of_their_own_keep_apart():
    names = [name for name in method_modules() if ":" in name]
    drawn = styles_of(make_runs(*(make_run(method=name) for name in (*STYLES, *names))))
    assert len({(s.colour, s.marker) for s in drawn.values()}) == len(drawn)
    own = {style.colour for style in STYLES.values()}
    assert not own & {drawn[METHODS[name]].colour for name in names}


def test_panels_are_split_by_shots_with_zero_shot_dashed():
    _, rounds = labelled(make_results(rounds=2))
    figure = figures.accuracy_over_rounds(rounds)
    assert [" ".join(axes.get_title().split()) for axes in figure.axes] == [
        "IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)",
        "IID, 4 shots", "Dirichlet (β = 0.1), 4 shots", "Pathological (2 classes), 4 shots",
    ]  # fmt: skip
    levels = [line for line in figure.axes[0].lines if line.is_dashed() and len(set(line.get_ydata())) == 1]
    assert [float(line.get_ydata()[0]) for line in levels] == [pytest.approx(62.0)]


def test_curve_shows_the_mean_and_band_of_its_seeds():
    made = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2, seeds=(0, 1, 2))
    _, rounds = labelled(made)
    axes = figures.accuracy_over_rounds(rounds).axes[0]
    last = 100 * rounds.query("round == 2")["accuracy"]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(last.mean())
    top = axes.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(last.mean() + 4.302653 * last.std() / 3**0.5, rel=1e-6)


def test_two_seeds_have_no_band_as_theirs_would_fill_the_figure():
    _, rounds = labelled(make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2))
    axes = figures.accuracy_over_rounds(rounds).axes[0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(axes.lines[0].get_ydata()))


def test_bytes_are_on_a_logarithmic_axis_without_round_zero():
    _, rounds = labelled(make_small())
    axes = figures.accuracy_over_bytes(rounds).axes[0]
    assert axes.get_xscale() == "log"
    assert min(min(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 3) > 0


@pytest.mark.parametrize("factor", [1.5, 4.0, 20.0, 1e5])
def test_bytes_axis_has_one_to_five_labels_whatever_its_span(factor):
    rounds = labelled(make_small())[1]
    sent = 70_000 * np.where(rounds["round"] < 2, 1.0, factor)
    axes = figures.accuracy_over_bytes(rounds.assign(cumulative_bytes=sent)).axes[0]
    low, high = axes.get_xlim()
    assert 1 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 5


def test_a_flat_curve_is_framed_by_five_points():
    rounds = labelled(make_small())[1].assign(accuracy=0.895, zero_shot_accuracy=0.895)
    low, high = figures.accuracy_over_rounds(rounds).axes[0].get_ylim()
    assert high - low == pytest.approx(5.0)


def test_drawing_into_given_axes():
    _, rounds = labelled(make_small())
    figure = Figure()
    axes = figure.subplots()
    assert figures.accuracy_over_rounds(rounds[rounds["split"] == "iid"], axes) is figure
    assert axes.get_xlabel() == "Round"
    assert axes.get_ylabel() == "Accuracy (%)"


@pytest.mark.parametrize("kind", ["accuracy_over_rounds", "accuracy_over_bytes", "time_bars", "memory_bars"])
def test_no_two_texts_overlap(kind):
    runs, rounds = labelled(make_results(rounds=3))
    main = runs[runs["shots"].isna()]
    figure = getattr(figures, kind)(rounds if kind.startswith("accuracy") else main)
    figure.draw_without_rendering()
    texts = [*(axes.title for axes in figure.axes), *(note for axes in figure.axes for note in axes.texts)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            shown = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
            texts += [tick.label1 for tick in shown]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    clashes = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.fully_overlaps(b)]
    assert len(boxes) > 10
    assert not clashes


def test_few_shot_curves_need_two_numbers_of_shots():
    runs, _ = make_results(methods=("flora",), splits=("iid",))
    with pytest.raises(figures.NothingToDraw, match="two numbers of shots"):
        figures.few_shot_curves(runs)
    runs, _ = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA, 1, 4, 16))
    axes = figures.few_shot_curves(runs).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "all"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 2, 4])


def test_time_needs_a_trained_method_and_bars_state_training_and_set_up():
    with pytest.raises(figures.NothingToDraw):
        figures.time_bars(make_runs(make_run("zero_shot")))
    axes = figures.time_bars(make_runs(make_run(train_seconds=30.0, setup_seconds=12.5))).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [30.0, 12.5]
    assert [note.get_text() for note in axes.texts] == ["30.0 + 12.5"]


@pytest.mark.parametrize("seconds", [COLD, WARM], ids=["cold", "warm"])
def test_bars_count_features_as_computed(seconds):
    figure = figures.time_bars(make_runs(make_run(train_seconds=30.0, **seconds)))
    assert [patch.get_width() for patch in figure.axes[0].patches] == [30.0, 12.0, 0.5]
    assert [note.get_text() for note in figure.axes[0].texts] == ["30.0 + 12.5"]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == ["training, all rounds", "features, once", "rest of set-up"]


def test_memory_is_that_of_the_gpu_where_all_ran_on_one():
    figure = figures.memory_bars(make_runs(make_run(peak_gpu_memory_bytes=3e9)))
    assert figure.get_supxlabel() == "Peak GPU memory"
    assert figure.axes[0].patches[0].get_width() == 3e9
    with pytest.raises(figures.NothingToDraw):
        figures.memory_bars(make_runs(make_run(peak_memory_bytes=np.nan)))


@pytest.mark.parametrize("peak", [1e9, 4.6e9, 4.9e9, 6.1e9])
def test_no_label_stands_at_the_end_of_a_bar_axis(peak):
    runs, _ = make_results(methods=("flora",), shots=(pd.NA,), seeds=(0,))
    axes = figures.memory_bars(runs.assign(peak_memory_bytes=peak)).axes[0]
    assert axes.get_xlim()[1] > peak
    assert max(axes.get_xticks()) < 0.9 * axes.get_xlim()[1]


def test_names_are_not_read_as_mathematics(tmp_path):
    run = make_run("_$x_{$")
    runs = label_runs(make_runs(run))
    figure = figures.accuracy_over_rounds(
        label_rounds(pd.DataFrame(make_rounds(run)).astype({"shots": "Int64"}), runs)
    )
    figures.save(figure, tmp_path / "odd")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()[1:]] == ["_\\$x_{\\$"]


def test_two_builds_give_the_same_bytes_and_pdf_embeds_its_fonts(tmp_path):
    runs, _ = labelled(make_small())
    first, again = (figures.save(figures.time_bars(runs), tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    pdf = first[1].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    image = Image.open(first[0])
    assert image.width == 7 * 200
    assert "Software" not in image.info


def test_drawing_leaves_the_global_settings_alone(tmp_path):
    before = dict(mpl.rcParams)
    figures.save(figures.memory_bars(make_runs(make_run())), tmp_path / "a")
    assert dict(mpl.rcParams) == before


# Page


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a hostile name, a failed run, and no curves over shots."""
    hostile = [make_run('a_b<script>alert("x")</script>', seed=seed, rounds=2) for seed in (0, 1)]
    failed = make_run(seed=9, status="failed", accuracy=np.nan, total_seconds=np.nan)
    runs, rounds = make_results(
        methods=("zero_shot", "flora"), splits=("iid",), shots=(pd.NA,), rounds=2, extra=[*hostile, failed]
    )
    out = tmp_path_factory.mktemp("report") / "out"
    files = page.write_report(runs, rounds, out, Path("results"))
    return (
        out,
        files,
        (out / "index.html").read_text(encoding="utf-8"),
        (out / "report.md").read_text("utf-8"),
    )


def test_page_asks_for_nothing_elsewhere(report):
    _, _, html, _ = report
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", html)
    tags = Reader(html).tags
    sources = [value for _, attrs in tags for key, value in attrs.items() if key in {"src", "href", "srcset"}]
    assert len(sources) == 4
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width > 0
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}


def test_page_escapes_names_but_shows_them(report):
    _, _, html, markdown = report
    assert "<script" not in html
    assert 'a_b<script>alert("x")</script>' in Reader(html).text
    assert "<script" not in markdown
    assert "a\\_b&lt;script&gt;" in markdown


def test_page_counts_what_is_left_out_and_lists_every_run(report):
    _, _, html, _ = report
    text = " ".join(Reader(html).text.split())
    assert "6 complete runs of 3 methods on 1 task (cifar10)" in text
    assert "1 run (failed) is left out." in text
    assert html.count("/run.json") == 7
    assert "results/" not in html


def test_page_says_what_is_not_drawn(report):
    out, _, html, _ = report
    assert "at least two numbers of shots" in html
    assert not list(out.glob("figures/shots-*"))


def test_page_has_headings_in_order_and_alternative_texts(report):
    tags = Reader(report[2]).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("FLoRA" in attrs["alt"] for tag, attrs in tags if tag == "img")


def test_captions_state_seeds_and_interval(report):
    text = " ".join(Reader(report[2]).text.split())
    assert (
        "Figure 1. Test accuracy by round. Mean of n = 2 seeds; for their wide intervals see the tables."
        in text
    )


def test_every_file_is_there_and_links_lead_to_files(report):
    out, files, _, markdown = report
    assert files[0] == out / "index.html"
    assert sorted(files) == sorted(path for path in out.rglob("*") if path.is_file())
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(links) == 8
    assert all((out / link).is_file() for link in links)
    numbers = pd.read_csv(next(out.glob("tables/accuracy-*.csv")))
    assert {"mean", "half_width", "n", "best", "below_zero_shot"} <= set(numbers.columns)


def test_interrupted_report_leaves_the_old_one_whole(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "_image", fail)
    results = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), seeds=(0,), rounds=1)
    with pytest.raises(KeyboardInterrupt):
        page.write_report(*results, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "index.html": "old",
        "mine.txt": "kept",
    }


def test_report_of_no_complete_run_is_refused(tmp_path):
    runs, rounds = make_runs(make_run(status="failed")), pd.DataFrame(make_rounds(make_run()))
    with pytest.raises(BadInput, match="none of 1 runs is complete"):
        page.write_report(runs, rounds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_build_report_reads_the_store(tmp_path, monkeypatch):
    results = make_results(methods=("zero_shot",), splits=("iid",), shots=(pd.NA,), seeds=(0,))
    monkeypatch.setattr(page, "load_results", lambda folder: results[0])
    monkeypatch.setattr(page, "load_rounds", lambda folder: results[1])
    files = page.build_report(tmp_path / "results", tmp_path / "out")
    assert "no trained method has a round" in files[0].read_text(encoding="utf-8")


def test_overview_of_seeds_of_two_kinds_and_machines():
    runs = label_runs(
        make_runs(
            make_run(), make_run(seed="0-1-0-0", **{"environment.cpu": "Other"}), make_run(seed=2, shots=4)
        )
    )
    text = overview(runs, runs.iloc[:0])
    assert "with all data and 4 shots, seeds 0, 2 and 0-1-0-0." in text
    assert "left out" not in text
    assert any("kinds of machine" in note for note in notes(runs))


def test_notes_say_which_time_is_shown():
    exact, none = (label_runs(make_runs(make_run(acceleration=mode))) for mode in ("exact", "none"))
    assert any("that time stands apart" in note for note in notes(exact))
    assert not any("stands apart" in note for note in notes(none))
    assert any("all that a client without storage would" in note for note in notes(none))
    assert notes(exact)[0].startswith("Every entry is one run")


def test_notes_say_what_came_from_the_cache_and_how_many_clients_were_together():
    rows = [make_run(**{"features.from_cache": 100.0, "clients_together": 8.0}), make_run("linear_probe")]
    told = " ".join(notes(label_runs(make_runs(*rows))))
    assert "1 run of 2 read features from the cache" in told
    assert "up to 8 clients together" in told
    plain = " ".join(notes(label_runs(make_runs(make_run(**{"features.from_cache": 0.0})))))
    assert "read features" not in plain
    assert "one client after another" in plain


def test_curves_of_runs_both_ways_are_drawn_once(tmp_path, monkeypatch):
    drawn = {}

    def draw(kind):
        def noted(frame, **_):
            drawn[kind] = set(frame["method_label"])
            return Figure()

        return noted

    for kind in ("accuracy_over_rounds", "time_bars"):
        monkeypatch.setattr(figures, kind, draw(kind))
    rows = both_ways("flora")
    rounds = pd.DataFrame([record for row in rows for record in make_rounds(row)]).astype({"shots": "Int64"})
    page.write_report(make_runs(*rows), rounds, tmp_path)
    assert drawn == {"accuracy_over_rounds": {"FLoRA"}, "time_bars": {"FLoRA", "FLoRA (as deployed)"}}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Runs as deployed: see the tables." in text
    assert "10.0×" in text
