"""Times of runs on networks and their figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.network import PROFILES, Profile
from bench.report.figures import NothingToDraw, time_to_accuracy, time_to_accuracy_points
from bench.report.networks import QUANTITIES, mean_times, network_times
from bench.report.styles import STYLES, Look
from bench.store import load_results
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import LEVEL
from tests.bench.test_cli_replay import keep, make_run

# 100 kB take 0.1 s up and 0.05 s down, and 0.1 s of waiting each way
PLAIN = Profile(name="plain", up_mbps=8, down_mbps=16, latency_ms=100)
FAST = Profile(name="fast", up_mbps=8e6, down_mbps=8e6, latency_ms=0)
HOSTILE = "_$x_{$ <script> of 50% & Fraß"


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        keep(tmp_path, make_run("flora", seed, accuracy=0.8), payload_bytes=10**5)
        keep(tmp_path, make_run("full_finetune", seed, accuracy=0.7 + 0.1 * seed), payload_bytes=10**8)
    keep(tmp_path, make_run("zero_shot", rounds=0), tables=False)
    return load_results(tmp_path)


def test_each_run_has_its_closed_form_under_each_profile(runs):
    times = network_times(runs, [PLAIN, FAST], 0.75)
    assert len(times) == 4 * 2
    flora = times[times["method"] == "flora"]
    plain = 2 * (0.2 + 0.15 + 2.0 + 0.25)
    for profile, seconds in (("plain", plain), ("fast", 2 * 2.25)):
        own = flora[flora["profile"] == profile]
        assert own["total_seconds"].tolist() == pytest.approx([seconds] * 2, rel=1e-4)
        assert own["to_target_seconds"].tolist() == pytest.approx([seconds] * 2, rel=1e-4)
    assert list(times["profile"].cat.categories) == ["plain", "fast"]
    full = times[(times["method"] == "full_finetune") & (times["profile"] == "plain")]
    assert full["reached"].tolist() == [False, True]
    assert full["missed"].tolist()[0] == pytest.approx(0.7)
    assert set(times["target"]) == {0.75}


def test_without_a_target_there_are_no_times_to_it(runs):
    times = network_times(runs, [PLAIN])
    assert not {"target", "reached", "to_target_seconds"} & set(times)
    assert not any(name.startswith("to_target") for name in mean_times(times))


def test_runs_left_out_are_told_and_a_few_runs_are_replayed_alone(runs):
    told = []
    times = network_times(runs, [PLAIN], on_left_out=lambda *what: told.append(what))
    assert told == [("nothing trained", "Zero-shot")]
    few = network_times(runs[runs["method"] == "flora"].head(1))
    assert few["config_hash"].tolist() == ["flora0"] * len(PROFILES)
    assert list(few["profile"]) == list(PROFILES)
    nothing = network_times(runs[runs["method"] == "zero_shot"])
    assert nothing.empty
    with pytest.raises(NothingToDraw, match="replayed"):
        time_to_accuracy(nothing)
    with pytest.raises(NothingToDraw, match="target accuracy"):
        time_to_accuracy(times)


def test_a_run_without_its_tables_is_refused_by_name(runs):
    path = Path(runs.loc[runs["method"] == "flora", "path"].iloc[0])
    path.with_name("ledger.csv").unlink()
    with pytest.raises(BadInput, match=r"ledger\.csv"):
        network_times(runs, [PLAIN])


def test_means_are_of_the_runs_that_reached_the_target(runs):
    table = mean_times(network_times(runs, [PLAIN], 0.75)).set_index("method_label")
    full = table.loc["Full fine-tuning"]
    assert (full["runs"], full["reached"]) == (2, 1)
    assert full["to_target_seconds"] == pytest.approx(2 * (0.2 + 150 + 2.25))
    assert np.isnan(full["to_target_seconds_half_width"])
    assert full["best_not_reached"] == pytest.approx(0.7)
    assert {f"{name}_half_width" for name in QUANTITIES} < set(table)


def timed(seconds, profiles=("lan", "wifi", "4g", "3g"), split="IID", target=0.8):
    """Times of each method and seed on the first network, tenfold on each further; None was not reached."""
    rows = [
        {
            "task": "cifar10", "model": "ViT", "split_label": split, "shots": pd.NA, "method": method,
            "method_label": method, "config_hash": f"{method}{seed}", "profile": profile, "target": target,
            "round_seconds": 1.0, "total_seconds": 1.0, "participants": 1, "dropped": 0, "silent_rounds": 0,
            "to_target_seconds": np.nan if value is None else value * 10.0**place,
            "reached": value is not None, "missed": 0.5 if value is None else None,
        }
        for method, values in seconds.items()
        for seed, value in enumerate(values)
        for place, profile in enumerate(profiles)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).astype({"shots": "Int64", "missed": float})
    frame["profile"] = pd.Categorical(frame["profile"], profiles, ordered=True)
    for name in ("split_label", "method_label"):
        frame[name] = pd.Categorical(frame[name], frame[name].unique(), ordered=True)
    return frame


def marks(axes, method):
    """Where the marks of a method are, and how they are filled."""
    drawn = [bars.lines[0] for bars in axes.containers if bars.lines[0].get_marker() == STYLES[method].marker]
    places = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn]
    return places, [line.get_markerfacecolor() for line in drawn]


def test_marks_are_the_points_on_a_logarithmic_axis():
    times = timed({"flora": [2.0, 4.0], "full_finetune": [30.0, 50.0]})
    points = time_to_accuracy_points(times)
    figure = time_to_accuracy(times)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert figure.get_supylabel() == "Seconds to 80\N{NO-BREAK SPACE}% accuracy"
    for method in ("flora", "full_finetune"):
        places, faces = marks(axes, method)
        own = points[points["method_label"] == method]
        np.testing.assert_allclose([y for _, y in places], own["mean"])
        assert [round(x) for x, _ in places] == [0, 1, 2, 3]
        assert set(faces) == {STYLES[method].colour}
    by_method = points.groupby("method_label", observed=True)["mean"].apply(list)
    assert by_method.to_dict() == {"flora": [3, 30, 300, 3000], "full_finetune": [40, 400, 4000, 40000]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["LAN", "Wi-Fi", "4G", "3G"]


def test_the_best_of_those_that_never_got_there_is_told():
    times = timed({"flora": [2.0, None, None]})
    times.loc[times["config_hash"] == "flora2", "missed"] = 0.7
    points = time_to_accuracy_points(times)
    assert points["best_not_reached"].tolist() == [0.7] * 4
    assert points[["runs", "reached"]].values.tolist() == [[3, 1]] * 4


def test_methods_stand_beside_one_another():
    axes = time_to_accuracy(timed({name: [2.0] for name in LEVEL if name != "zero_shot"})).axes[0]
    firsts = [marks(axes, name)[0][0][0] for name in LEVEL if name != "zero_shot"]
    assert len(set(firsts)) == 4
    assert max(firsts) < 0.5
    assert sum(firsts) == pytest.approx(0)


def test_intervals_are_drawn_from_three_seeds_on():
    two, three = (time_to_accuracy(timed({"flora": [2.0, 3.0, 4.0][:n]})).axes[0] for n in (2, 3))
    assert not any(bars.has_yerr for bars in two.containers)
    segments = three.containers[0].lines[2][0].get_segments()[0]
    half = 4.302653 / 3**0.5
    # what runs below a logarithmic axis is cut there
    assert 3 - half < three.get_ylim()[0]
    np.testing.assert_allclose(segments[:, 1], [three.get_ylim()[0], 3 + half], rtol=1e-6)


def test_networks_have_their_names():
    axes = time_to_accuracy(timed({"flora": [2.0]}, profiles=("lan", "wifi", "4g", "3g", "own"))).axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["LAN", "Wi-Fi", "4G", "3G", "own"]


def test_a_method_that_not_every_seed_took_there_is_hollow():
    times = timed({"flora": [2.0, None], "full_finetune": [30.0, 50.0]})
    figure = time_to_accuracy(times)
    places, faces = marks(figure.axes[0], "flora")
    assert faces == ["white"] * 4
    assert [y for _, y in places] == pytest.approx([2, 20, 200, 2000])
    assert figure.legends[0].get_texts()[-1].get_text() == "not by every seed"
    assert time_to_accuracy_points(times)["reached"].tolist()[0] == 1


def test_a_method_that_never_got_there_stands_above_all_times():
    times = timed({"flora": [2.0], "full_finetune": [None]})
    axes = time_to_accuracy(times).axes[0]
    places, _ = marks(axes, "full_finetune")
    (level,) = {y for _, y in places}
    assert level > 2000
    ticks = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert ticks["never"] == level
    assert "at once" not in ticks
    assert level < axes.get_ylim()[1]
    assert time_to_accuracy_points(times).set_index("method_label").loc["full_finetune", "mean"].isna().all()


def test_a_method_that_was_there_from_the_start_stands_below():
    axes = time_to_accuracy(timed({"flora": [0.0], "full_finetune": [3.0]})).axes[0]
    (level,) = {y for _, y in marks(axes, "flora")[0]}
    ticks = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert ticks["at once"] == level
    assert axes.get_ylim()[0] < level < 3


@pytest.mark.parametrize("seconds", [[None], [0.0]])
def test_there_is_nothing_to_draw_where_training_took_none_there(seconds):
    with pytest.raises(NothingToDraw, match="by training"):
        time_to_accuracy(timed({"flora": seconds}))


def test_targets_that_differ_are_not_named():
    both = pd.concat([timed({"flora": [2.0]}), timed({"flora": [3.0]}, split="Dirichlet", target=0.9)])
    both["split_label"] = both["split_label"].astype("category")
    assert time_to_accuracy(both).get_supylabel() == "Seconds to the target accuracy"


@pytest.mark.parametrize("look", [Look(), Look(width="column"), Look(font="serif", width="page")], ids=str)
@pytest.mark.parametrize(
    "times",
    [
        timed(
            {"flora": [2.0, 3.0, 4.0], "full_finetune": [None], "linear_probe": [0.0], "bitfit": [1.0, None]}
        ),
        timed({name: [2.0] for name in STYLES}, profiles=("lan", "up=8,down=16,latency=100", "4g", HOSTILE)),
        timed({"flora": [1.0]}, profiles=("lan",)),
        pd.concat(
            [timed({"flora": [2.0, None]}), timed({"flora": [3.0], "bitfit": [1e-3]}, split="Dirichlet")]
        ),
    ],
    ids=["strips", "many", "one", "splits"],
)
def test_texts_are_legible(times, look):
    times = times.assign(**{name: times[name].astype("category") for name in ("split_label", "method_label")})
    assert_legible(time_to_accuracy(times, look=look), fewest=4)


def test_it_draws_into_given_axes():
    figure = Figure()
    axes = figure.subplots()
    assert time_to_accuracy(timed({"flora": [2.0]}), axes) is figure
    assert axes.get_xlabel() == "Network"
