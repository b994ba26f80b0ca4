"""The split picture, from divisions made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.report.figures import NothingToDraw, split_picture, split_picture_points
from bench.report.figures.divisions import MOST_CLIENTS, MOST_COLUMNS, MOST_NAMED, MOST_ROWS, SHARES
from bench.report.styles import Look
from flora.errors import BadInput
from tests.bench.report.legible import assert_legible, texts_of

COUNTS = np.array([[9, 0, 1], [0, 4, 4]])
HOSTILE = ["<script>", "50%_Fraß", "$x_{$", "_leading & trailing_", "an extremely long name of class 1"]


def divided(counts, split="IID", shots=None, seed=0, task="cifar10", names=None, classes=True):
    """A division as the report's data holds it: one row a client and class, or a client."""
    counts = np.asarray(counts)
    if not classes:
        counts = counts.sum(axis=1, keepdims=True)
    client, index = np.indices(counts.shape).reshape(2, -1)
    names = names or [f"class {number}" for number in range(counts.shape[1])]
    return pd.DataFrame(
        {
            "fingerprint": f"{task}/{split}/{shots}/{seed}/{len(counts)}",
            "task": task,
            "split_label": split,
            "shots": shots,
            "seed": seed,
            "client": client,
            "class_index": index if classes else None,
            "class_name": [names[number] for number in index] if classes else None,
            "samples": counts.ravel(),
        }
    ).astype({"shots": "Int64", "class_index": "Int64"})


def together(*parts):
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(split_label=pd.Categorical(frame["split_label"], ordered=True))


def made(n_clients, n_classes, seed=0, total=20_000, **fields):
    """A skewed division: of each class a Dirichlet share to every client."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.2] * n_clients, size=n_classes).T
    return divided(rng.binomial(total // n_classes, shares), **fields)


def bars_above(axes):
    (above,) = axes.child_axes
    return [bar.get_height() for bar in above.patches]


def shaded(axes):
    """Each shaded field, the lightest first: its client's place, where it starts and ends; and its colour."""
    return [
        ((round(left + 0.5), float(top), float(bottom)), patch.get_facecolor())
        for patch in axes.patches
        for (left, top), (_, bottom) in patch.get_path().vertices.reshape(-1, 5, 2)[:, [0, 2]]
    ]


def test_area_of_a_bubble_is_its_samples_and_the_key_says_how_many():
    figure = split_picture(divided(COUNTS))
    (scatter,) = figure.axes[0].collections
    assert scatter.get_offsets().tolist() == [[0, 0], [0, 2], [1, 1], [1, 2]]
    per_sample = scatter.get_sizes() / [9, 1, 4, 4]
    np.testing.assert_allclose(per_sample, per_sample[0])
    (legend,) = figure.legends
    *sizes, bars = zip(legend.get_texts(), legend.legend_handles, strict=True)
    assert bars[0].get_text() == "all classes"
    assert [text.get_text() for text, _ in sizes] == ["1", "4", "9 samples"]
    for text, mark in sizes:
        samples = float(text.get_text().split()[0])
        assert mark.get_markersize() ** 2 / samples == pytest.approx(per_sample[0])


def test_bars_above_are_the_clients_sizes():
    assert bars_above(split_picture(divided(COUNTS)).axes[0]) == [10, 8]


@pytest.mark.parametrize(("n_clients", "n_classes"), [(2, 3), (10, 10), (24, 20), (5, 2)])
@pytest.mark.parametrize("width", ["column", "page"])
def test_no_bubble_leaves_its_place(n_clients, n_classes, width):
    figure = split_picture(divided(np.full((n_clients, n_classes), 7)), look=Look(width=width))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    across, down = np.abs(axes.transData.transform([[1, 1]]) - axes.transData.transform([[0, 0]]))[0]
    diameter = np.sqrt(axes.collections[0].get_sizes().max()) * figure.dpi / 72
    assert diameter < min(across, down)


def test_the_points_are_all_there_is_to_a_small_division():
    points = split_picture_points(divided(COUNTS, "Dirichlet", shots=4, seed=7))
    assert points[["split_label", "shots", "seed"]].drop_duplicates().values.tolist() == [["Dirichlet", 4, 7]]
    clients, classes = (points[points["mark"] == mark] for mark in ("client", "class"))
    assert clients["samples"].tolist() == [10, 8]
    found = classes[["client", "class_name", "samples", "share"]].values.tolist()
    assert found == [
        [0, "class 0", 9, 0.9],
        [0, "class 2", 1, 0.1],
        [1, "class 1", 4, 0.5],
        [1, "class 2", 4, 0.5],
    ]


@pytest.mark.parametrize(
    ("n_clients", "n_classes"), [(10, 10), (30, 10), (101, 7), (1000, 3), (10, 36), (7, 333)]
)
def test_no_sample_is_lost_on_the_way_to_the_points(n_clients, n_classes):
    frame = made(n_clients, n_classes)
    points = split_picture_points(frame)
    assert points["place"].max() < MOST_COLUMNS
    for _, marks in points.groupby("mark"):
        assert (marks["samples"] * marks["clients"]).sum() == pytest.approx(frame["samples"].sum())
    clients = points[points["mark"] == "client"]
    assert clients["clients"].sum() == n_clients
    of_class = frame.groupby("class_name")["samples"].sum()
    fields = points[points["mark"] == "class"]
    assert fields.groupby("class_index")["classes"].max().sum() == n_classes
    assert fields["class_index"].nunique() <= MOST_ROWS
    if n_classes <= MOST_ROWS:
        drawn = (fields["samples"] * fields["clients"]).groupby(fields["class_name"]).sum()
        pd.testing.assert_series_equal(drawn, of_class[drawn.index], check_names=False, check_dtype=False)


def test_many_classes_are_shaded_by_their_share_and_none_is_white():
    counts = np.zeros((2, MOST_NAMED + 1), int)
    counts[0, 0], counts[0, 5], counts[1, -1] = 3, 1, 9
    figure = split_picture(divided(counts))
    lightness = {field: sum(colour[:3]) for field, colour in shaded(figure.axes[0])}
    assert set(lightness) == {(0, -0.5, 0.5), (0, 4.5, 5.5), (1, MOST_NAMED - 0.5, MOST_NAMED + 0.5)}
    quarter, most, whole = (lightness[field] for field in sorted(lightness, key=lambda f: (f[0], -f[1])))
    assert quarter > most == whole  # more is darker, up to a half and beyond it
    assert figure.get_supylabel() == f"{MOST_NAMED + 1} classes"
    assert figure.axes[0].get_yticks().tolist() == []


@pytest.mark.parametrize(
    ("share", "level"), [(0.01, 0), (0.02, 1), (0.1, 3), (0.11, 4), (0.5, 5), (0.51, 6), (1, 6)]
)
def test_a_shade_is_that_of_the_key_at_its_share(share, level):
    counts = np.zeros((1, MOST_NAMED + 1), int)
    counts[0, :2] = round(100 * share), 100 - round(100 * share)
    figure = split_picture(divided(counts))
    key = figure.axes[-1].collections[-1]
    assert SHARES[level] < share <= SHARES[level + 1]
    colours = dict(shaded(figure.axes[0]))
    assert colours[0, -0.5, 0.5] == pytest.approx(tuple(key.get_cmap()(level + 1)), abs=1e-6)
    assert key.norm((SHARES[level] + SHARES[level + 1]) / 2) == level + 1
    assert key.get_cmap()(0) == (1, 1, 1, 1)  # what no class is held of is white in the key as well


def test_merged_classes_add_up_in_one_row_at_their_places():
    n_classes = 2 * MOST_ROWS + 1  # three in a row
    counts = np.zeros((1, n_classes), int)
    counts[0, [0, 1, 2, 3, n_classes - 1]] = [1, 2, 3, 8, 6]
    figure = split_picture(divided(counts))
    fields = [field for field, _ in shaded(figure.axes[0])]
    assert fields == [(0, -0.5, 2.5), (0, 2.5, 5.5), (0, n_classes - 2.5, n_classes - 0.5)]
    points = split_picture_points(divided(counts)).query("mark == 'class'")
    assert points["share"].tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert figure.get_supylabel() == f"{n_classes} classes, 3 in a row"


def test_many_clients_stand_by_their_largest_class_the_purest_first():
    n_clients = MOST_CLIENTS + 2
    counts = np.zeros((n_clients, 2), int)
    counts[::2, 1], counts[1::2, 0] = 10, 10
    counts[3, 1] = 5  # still mostly of the first class
    figure = split_picture(divided(counts))
    points = split_picture_points(divided(counts))
    order = points[points["mark"] == "client"]["client"].tolist()
    odd = [number for number in range(1, n_clients, 2) if number != 3]
    assert order == [*odd, 3, *range(0, n_clients, 2)]
    assert "by their largest class" in figure.get_supxlabel()
    assert bars_above(figure.axes[0]) == [10] * len(odd) + [15] + [10] * (n_clients // 2)


def test_a_thousand_clients_are_merged_into_columns_that_say_so():
    figure = split_picture(made(1000, 10))
    assert figure.get_supxlabel() == "1,000 clients, by their largest class, 10 in a column"
    assert len(bars_above(figure.axes[0])) == MOST_COLUMNS


def test_one_division_a_panel_the_first_seed():
    other = divided(COUNTS[::-1], seed=1)
    frame = together(divided(COUNTS), other, divided(COUNTS, "Dirichlet"), divided(COUNTS, shots=4))
    points = split_picture_points(frame)
    assert set(points["seed"]) == {0}
    titles = [axes.get_title().replace("\N{NO-BREAK SPACE}", " ") for axes in split_picture(frame).axes]
    assert [title for title in titles if title] == ["Dirichlet", "IID", "IID, 4 shots"]


def test_federations_of_other_sizes_have_panels_of_their_own():
    frame = together(divided(COUNTS), divided(np.vstack([COUNTS] * 4)))
    titles = [axes.get_title() for axes in split_picture(frame).axes]
    assert titles == ["IID, 2 clients", "IID, 8 clients"]


def test_bars_of_few_shots_are_on_a_scale_of_their_own():
    frame = together(divided(1000 * COUNTS), divided(COUNTS, shots=4))
    tops = [axes.child_axes[0].get_ylim()[1] for axes in split_picture(frame).axes]
    assert tops == [10_000, 10]


def test_results_of_before_classes_were_counted_show_sizes_alone():
    figure = split_picture(divided(COUNTS, classes=False))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [10, 8]
    assert figure.get_supylabel() == "Samples"
    mixed = split_picture(together(divided(COUNTS), divided(COUNTS, "Old", classes=False)))
    assert [text.get_text() for text in mixed.axes[1].texts] == ["classes\nnot counted"]
    assert bars_above(mixed.axes[1]) == [10, 8]
    assert_legible(mixed)


def test_class_names_are_shown_as_they_are_and_long_ones_by_their_ends():
    figure = split_picture(divided(np.ones((3, len(HOSTILE)), int), names=HOSTILE))
    shown = [label.get_text().replace("\\$", "$").strip() for label in figure.axes[0].get_yticklabels()]
    assert shown[:3] == HOSTILE[:3]
    assert shown[3].startswith("_leadi")
    assert shown[4].startswith("an extr")
    assert shown[4].endswith("class 1")
    assert max(map(len, shown)) <= 16


@pytest.mark.parametrize("look", [Look(), Look(width="column"), Look(font="serif", width="page")], ids=str)
@pytest.mark.parametrize(
    ("n_clients", "n_classes"),
    [(1, 1), (2, 3), (10, 10), (24, 20), (10, 36), (100, 10), (10, 200), (300, 100)],
)
@pytest.mark.parametrize(
    "splits", [("IID",), ("IID", "Dirichlet (β = 0.1)", "Pathological (2 classes)")], ids=len
)
def test_texts_are_legible(n_clients, n_classes, splits, look):
    names = [HOSTILE[index % len(HOSTILE)] + str(index) for index in range(n_classes)]
    parts = [made(n_clients, n_classes, split=split, names=names) for split in splits]
    assert_legible(split_picture(together(*parts), look=look), fewest=4)


def test_nothing_in_it_is_rasterised():
    figure = split_picture(made(100, 100))
    assert not any(artist.get_rasterized() for artist in figure.findobj())


def test_it_draws_into_given_axes_what_one_has_room_for():
    figure = Figure()
    axes = figure.subplots()
    assert split_picture(divided(COUNTS), axes) is figure
    assert axes.get_xlabel() == "Client"
    assert len(axes.collections) == 1
    with pytest.raises(BadInput, match="one split and shots, not 2"):
        split_picture(together(divided(COUNTS), divided(COUNTS, "Dirichlet")), Figure().subplots())


def test_there_must_be_one_task_and_a_division():
    with pytest.raises(NothingToDraw, match="how the data was divided"):
        split_picture(divided(COUNTS).iloc[:0])
    with pytest.raises(BadInput, match="2 tasks"):
        split_picture(together(divided(COUNTS), divided(COUNTS, task="digits")))


def test_a_client_without_samples_has_its_place():
    figure = split_picture(divided([[3, 1], [0, 0], [2, 2]]))
    assert bars_above(figure.axes[0]) == [4, 0, 4]
    assert 1 not in figure.axes[0].collections[0].get_offsets()[:, 0]
    assert "1" in [text.get_text() for text in texts_of(figure)]
