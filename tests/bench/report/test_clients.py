"""The accuracies of clients, from made-up ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.report.figures import NothingToDraw, client_accuracies, client_accuracies_points
from bench.report.figures.clients import BOX, MOST_DOTS
from bench.report.names import label_runs
from bench.report.styles import STYLES, Look
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible
from tests.bench.report.made import HARDER, LEVEL, make_results

HOSTILE = "_$x_{$ <script> of 50% & Fraß"


def evaluated(accuracies, method="flora", split="iid", seed=0):
    """Clients of one run with these accuracies, not labelled yet."""
    return [
        {
            "task": "cifar10", "model": "ViT-B-32:openai", "method": method, "split": split, "shots": pd.NA,
            "split.beta": 0.1 if split == "dirichlet" else np.nan, "seed": seed, "config_hash": method,
            "client": client, "samples": 10 + client, "accuracy": accuracy,
        }
        for client, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def clients_of(*runs):
    return label_runs(pd.DataFrame([row for run in runs for row in run]).astype({"shots": "Int64"}))


def many(methods=tuple(LEVEL), splits=tuple(HARDER), n_clients=10, seeds=(0, 1)):
    rng = np.random.default_rng(0)
    return clients_of(
        *(
            evaluated(rng.beta(8, 4, n_clients), m, split, seed)
            for m in methods
            for split in splits
            for seed in seeds
        )
    )


def marks(points, mark):
    return points[points["mark"] == mark]["accuracy"].tolist()


TWO_SEEDS = clients_of(evaluated([0.5, 0.7, 0.9]), evaluated([0.1, 0.5], seed=1))


def test_mean_and_worst_are_means_over_the_seeds():
    points = client_accuracies_points(TWO_SEEDS)
    assert marks(points, "client") == [0.5, 0.7, 0.9, 0.1, 0.5]
    assert marks(points, "mean") == pytest.approx([(0.7 + 0.3) / 2])  # not 2.7 / 5
    assert marks(points, "worst") == pytest.approx([(0.5 + 0.1) / 2])
    assert points["samples"].dropna().tolist() == [10, 11, 12, 10, 11]


def test_what_is_drawn_are_the_points():
    points = client_accuracies_points(TWO_SEEDS)
    figure = client_accuracies(TWO_SEEDS)
    drawn = {line.get_marker(): line.get_xydata() for line in figure.axes[0].lines}
    assert set(drawn) == {STYLES["flora"].marker, "|", "d"}
    for marker, mark in ((STYLES["flora"].marker, "client"), ("|", "mean"), ("d", "worst")):
        own = points[points["mark"] == mark]
        np.testing.assert_allclose(drawn[marker], np.column_stack([100 * own["accuracy"], own["offset"]]))
    assert figure.get_supxlabel().endswith("(%)")


def test_clients_lie_within_the_row_of_their_method():
    points = client_accuracies_points(many(n_clients=30, splits=("iid",)))
    assert points["offset"].abs().max() <= 0.25
    assert (
        points[points["mark"] == "client"].groupby("method_label", observed=True)["offset"].nunique().min()
        == 60
    )


def test_the_key_says_of_what_the_worst_is():
    names = [text.get_text() for text in client_accuracies(TWO_SEEDS).legends[0].get_texts()]
    assert names == ["client", "mean", "worst, mean of seeds"]
    one = client_accuracies(clients_of(evaluated([0.5, 0.7])))
    assert [text.get_text() for text in one.legends[0].get_texts()] == ["client", "mean", "worst"]


def test_many_clients_are_summed_up_in_a_box():
    accuracies = np.linspace(0.2, 0.8, MOST_DOTS + 1) ** 2
    clients = clients_of(evaluated(accuracies))
    points = client_accuracies_points(clients)
    for mark, share in BOX.items():
        assert marks(points, mark) == pytest.approx([np.quantile(accuracies, share)])
    assert not marks(points, "client")
    assert marks(points, "worst") == pytest.approx([0.04])
    axes = client_accuracies(clients).axes[0]
    (box,) = axes.patches
    left, right = (100 * np.quantile(accuracies, share) for share in (0.25, 0.75))
    assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx((left, right))
    whisker, middle = (lines.get_segments()[0] for lines in axes.collections)
    np.testing.assert_allclose(whisker[:, 0], 100 * np.quantile(accuracies, [0.05, 0.95]))
    np.testing.assert_allclose(middle[:, 0], 100 * np.quantile(accuracies, 0.5))


def test_every_mark_is_inside_the_frame():
    clients = clients_of(evaluated([0.0, 1.0, 0.5]))
    low, high = client_accuracies(clients).axes[0].get_xlim()
    assert low < 0
    assert high > 100


def test_zero_shot_has_marks_too_and_comes_first():
    clients = clients_of(evaluated([0.5, 0.6]), evaluated([0.4, 0.3], "zero_shot"))
    axes = client_accuracies(clients).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Zero-shot", "FLoRA"]
    assert axes.lines[0].get_marker() == "o"
    assert axes.lines[0].get_xdata().tolist() == [40, 30]


def test_clients_that_were_not_evaluated_do_not_count():
    points = client_accuracies_points(clients_of(evaluated([0.5, np.nan, 0.7])))
    assert marks(points, "client") == [0.5, 0.7]
    assert marks(points, "mean") == pytest.approx([0.6])
    for nothing in (clients_of(evaluated([np.nan])), TWO_SEEDS.iloc[:0], pd.DataFrame()):
        with pytest.raises(NothingToDraw, match="evaluated its clients apart"):
            client_accuracies(nothing)


def test_a_panel_shows_its_split_alone():
    frame = clients_of(evaluated([0.5]), evaluated([0.3], split="dirichlet"))
    figure = client_accuracies(frame)
    assert [" ".join(axes.get_title().split()) for axes in figure.axes] == ["IID", "Dirichlet (β = 0.1)"]
    assert [axes.lines[0].get_xdata().tolist() for axes in figure.axes] == [[50], [30]]


@pytest.mark.parametrize("look", [Look(), Look(width="column"), Look(font="serif", width="page")], ids=str)
@pytest.mark.parametrize(
    "clients",
    [
        many(),
        many(("flora",), ("iid",), seeds=(0,)),
        many((*LEVEL, "bitfit", "clip_adapter", HOSTILE), n_clients=100),
        many(("flora", HOSTILE), ("iid", "dirichlet")),
    ],
    ids=["usual", "one", "many", "hostile"],
)
def test_texts_are_legible(clients, look):
    assert_legible(client_accuracies(clients, look=look), fewest=6)


def test_it_draws_into_given_axes():
    figure = Figure()
    axes = figure.subplots()
    assert client_accuracies(TWO_SEEDS, axes) is figure
    assert len(axes.lines) == 3


def test_runs_alone_are_no_clients():
    with pytest.raises(BadInput, match=r"clients: .*read_data\(folder\)\.clients.* none of 'client'"):
        client_accuracies(label_runs(make_results(seeds=(0,))[0]))
