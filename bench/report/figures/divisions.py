"""The division of the data: how many samples of each class every client holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from bench.report.figures.canvas import Panels, make_panels, verbatim
from bench.report.figures.frames import check_frame
from bench.report.styles import SANS, Look, Style
from flora.errors import BadInput

# More than these cannot be told apart as bubbles, and classes not be named; then shares are shaded.
MOST_CLIENTS, MOST_NAMED = 24, 20
# Nor can more columns and rows of shading than these be printed: neighbours are drawn as one.
MOST_COLUMNS, MOST_ROWS = 100, 50
_LONGEST_NAME = 16
_BUBBLE, _BAR = "#3d5a80", "#a3a3a3"
_SHADES = "cividis_r"
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Between which two of these a client's share of a class lies is what its shade says."""
_PANEL = ["split_label", "shots"]
_INCHES_A_CLASS, _INCHES_SHADED, _INCHES_OF_BARS = 0.15, 1.5, 0.55


def split_picture_points(divisions: pd.DataFrame) -> pd.DataFrame:
    """Give the marks of ``split_picture``.

    Returns:
        One row a split, shots, client and class with samples (``mark`` "class") and one a client (``mark``
        "client", the bars): ``task, split_label, shots, seed, mark, place`` (along the axis of clients, from
        0), ``client, class_index, class_name, samples`` and ``share`` of the client's samples. Of many
        clients ``place`` follows their largest class, and neighbours may be merged: ``clients`` and
        ``classes`` say how many, the names are those of the first, and samples are means over the clients.

    Raises:
        NothingToDraw: no division of the data is known.
        BadInput: the divisions are of several tasks.
    """
    chosen = _first_seeds(divisions)
    tables = [_marks(part) for _, part in chosen.groupby(_PANEL, dropna=False, observed=True, sort=True)]
    return pd.concat(tables, ignore_index=True)


def split_picture(
    divisions: pd.DataFrame,
    ax: Axes | None = None,
    *,
    styles: Mapping[str, Style] | None = None,
    look: Look = SANS,
) -> Figure:
    """Draw the samples of each class that every client holds, and above that of all classes together.

    A panel for each split and shots shows the division of the first seed. The area of a bubble is a number of
    samples; where there are many clients or classes, the colour of a field is a share of the client's. Where
    classes were not counted there are the bars alone.

    Args:
        divisions: one row a division, client and class, as in ``bench.report.data.ReportData``.
        ax: draw into this one; then there must be one split and shots.
        styles: of methods, of which there are none here.
        look: type and width.

    Raises:
        NothingToDraw: no division of the data is known.
        BadInput: the divisions are of several tasks, or of several splits or shots for one ``ax``.
    """
    points = split_picture_points(divisions)
    counted = points[points["mark"] == "class"]
    names = _class_names(divisions)
    with look.drawing():
        height = _row_height(len(names))
        panels = make_panels(points.assign(method_label=""), ax, look, height, least_height=0.85 * height)
        if counted.empty:
            for axes, part in panels.parts:
                axes.bar(part["place"], part["samples"], 0.8, color=_BAR)
                axes.grid(visible=False, axis="x")
                axes.yaxis.set_major_formatter("{x:,.0f}")
            _name_clients(panels, points)
            panels.finish(_clients_label(points), "Samples", {})
            return panels.figure
        shaded = _ordered(points) or len(names) > MOST_NAMED
        key = {} if shaded else _key_of_sizes(counted["samples"])
        if shaded:
            _shade(panels, counted, len(names))
        _bars(panels, points[points["mark"] == "client"])
        _name_clients(panels, points)
        label = _name_classes(panels, points, names)
        panels.finish(
            _clients_label(points),
            label,
            {**key, "samples of all classes" if shaded else "all classes": Patch(facecolor=_BAR)},
        )
        if not shaded:
            _bubbles(panels, counted)
    return panels.figure


def _first_seeds(divisions: pd.DataFrame) -> pd.DataFrame:
    """Keep one division a split and shots; other numbers of clients make it another split."""
    check_frame(divisions, "divisions")
    tasks = list(divisions["task"].unique())
    if len(tasks) > 1:
        raise BadInput(
            f"divisions: are of {len(tasks)} tasks; one picture shows one, such as "
            f"divisions[divisions['task'] == {tasks[0]!r}]"
        )
    clients = divisions.groupby("fingerprint")["client"].transform("nunique")
    divisions = divisions.assign(n_clients=clients)
    cells = divisions.groupby([*_PANEL, "n_clients"], dropna=False, observed=True)
    chosen = divisions[divisions["fingerprint"] == cells["fingerprint"].transform("first")]
    if (chosen.groupby(_PANEL, dropna=False, observed=True)["n_clients"].nunique() > 1).any():
        texts = chosen["split_label"].astype(str) + ", " + chosen["n_clients"].astype(str) + " clients"
        order = chosen.assign(text=texts).sort_values(["split_label", "n_clients"])["text"].unique()
        chosen = chosen.assign(split_label=pd.Categorical(texts, order, ordered=True))
    return chosen


def _marks(part: pd.DataFrame) -> pd.DataFrame:
    """Put the clients of one division in their places and give what each holds."""
    order = _client_order(part)
    places = pd.Series(_merge(len(order), MOST_COLUMNS), index=order)
    at = part.assign(place=part["client"].map(places))
    sizes = at.groupby("place")["samples"].sum()
    table = pd.concat([sizes.to_frame().assign(mark="client"), _fields(at, sizes)]).reset_index()
    table["client"] = table["place"].map(places.reset_index().groupby(0)["index"].first())
    table["clients"] = table["place"].map(places.value_counts())
    table["samples"] /= table["clients"]
    names = part.drop_duplicates("class_index").set_index("class_index")["class_name"]
    table["class_name"] = table["class_index"].map(names)
    shared = part[["task", *_PANEL, "seed"]].iloc[[0] * len(table)].reset_index(drop=True)
    own = ["mark", "place", "client", "clients", "class_index", "classes", "class_name", "samples", "share"]
    return pd.concat([shared, table[own]], axis=1)


def _client_order(part: pd.DataFrame) -> list[int]:
    """Give the clients by number; many of them by the class that they hold most of, the purest first."""
    clients = sorted(part["client"].unique())
    if len(clients) <= MOST_CLIENTS:
        return clients
    share = part["samples"] / part.groupby("client")["samples"].transform("sum").clip(lower=1)
    most = part.assign(share=share).sort_values(
        ["share", "class_index"], ascending=[False, True], kind="stable"
    )
    largest = most.drop_duplicates("client")
    return largest.sort_values(["class_index", "share", "client"], ascending=[True, False, True])[
        "client"
    ].tolist()


def _fields(at: pd.DataFrame, sizes: pd.Series) -> pd.DataFrame:
    """Add up the samples of the classes that are drawn as one, at each place that has any."""
    known = at.dropna(subset=["class_index"])
    rows = _merge(int(known["class_index"].max()) + 1 if len(known) else 0, MOST_ROWS)
    fields = known.assign(row=rows[known["class_index"].astype(int)]).groupby(["place", "row"])
    held = fields.agg(
        samples=("samples", "sum"), class_index=("class_index", "min"), classes=("class_index", "nunique")
    )
    held = held[held["samples"] > 0].reset_index("row", drop=True)
    return held.astype({"classes": "Int64"}).assign(mark="class", share=held["samples"] / sizes[held.index])


def _merge(count: int, most: int) -> np.ndarray:
    """Number the groups of neighbours that are drawn as one, for each of ``count``."""
    return np.arange(count) // max(math.ceil(count / most), 1)


def _class_names(divisions: pd.DataFrame) -> list[str]:
    known = divisions.dropna(subset=["class_index"]).drop_duplicates("class_index").sort_values("class_index")
    return [str(name) for name in known["class_name"]]


def _row_height(n_classes: int) -> float:
    if n_classes == 0:
        return 1.4
    inside = max(_INCHES_A_CLASS * n_classes, 1.0) if n_classes <= MOST_NAMED else _INCHES_SHADED
    return inside + _INCHES_OF_BARS


def _bubbles(panels: Panels, counted: pd.DataFrame) -> None:
    """Draw the classes of clients as bubbles that fill their place at most, once all else is laid out."""
    panels.figure.draw_without_rendering()
    ends = panels.axes[0].transData.transform([(0, 0), (1, 1)])
    room = 0.95 * 72 / panels.figure.dpi * np.abs(ends[1] - ends[0]).min()  # points
    most = counted["samples"].max()
    for axes, part in panels.parts:
        held = part[part["mark"] == "class"]
        area = room**2 * held["samples"] / most
        axes.scatter(held["place"], held["class_index"].astype(int), area, color=_BUBBLE, linewidth=0)
    legend = panels.figure.legends[0] if panels.own else panels.axes[0].get_legend()
    assert legend is not None
    for samples, mark in zip(_sizes_shown(counted["samples"]), legend.legend_handles, strict=False):
        cast(Line2D, mark).set_markersize(room * math.sqrt(samples / most))


def _key_of_sizes(samples: pd.Series) -> dict[str, Line2D]:
    """Give a mark for each size of the key; how large they are is said by the layout."""
    mark: dict[str, Any] = {"linestyle": "", "marker": "o", "color": _BUBBLE, "markeredgewidth": 0}
    *others, last = (f"{size:,}" for size in _sizes_shown(samples))
    return {name: Line2D([], [], **mark) for name in (*others, f"{last} samples")}


def _sizes_shown(samples: pd.Series) -> list[int]:
    """Give up to three sizes that occur: the largest, and about a quarter and a sixteenth of it."""
    sizes = np.sort(samples.unique())
    wanted = [sizes[-1] / part for part in (1, 4, 16)]
    return sorted({int(sizes[np.argmin(np.abs(np.log(sizes / size)))]) for size in wanted})


def _round_number(most: float) -> int:
    """Give the largest round number of samples up to ``most``."""
    power = 10 ** math.floor(math.log10(max(most, 1)))
    return int(power * max(step for step in (1, 2, 5) if step * power <= max(most, 1)))


def _shade(panels: Panels, counted: pd.DataFrame, n_classes: int) -> None:
    """Shade the share of each class in a client's samples; white is none."""
    starts = np.append(np.flatnonzero(np.diff(_merge(n_classes, MOST_ROWS), prepend=-1)), n_classes) - 0.5
    colours = mpl.colormaps[_SHADES].resampled(len(SHARES) - 1)
    for axes, part in panels.parts:
        held = part[part["mark"] == "class"]
        across = held["place"].to_numpy() - 0.5
        row = np.searchsorted(starts, held["class_index"].to_numpy(int))
        corners = [across, starts[row - 1], across + 1, starts[row]]
        levels = np.searchsorted(SHARES, held["share"].round(12)) - 1
        for level in np.unique(levels):  # one path a level, or files would be many times as large
            boxes = [_box(*box) for box in np.column_stack(corners)[levels == level]]
            fields = Path.make_compound_path(*boxes)
            axes.add_patch(PathPatch(fields, facecolor=colours(level), linewidth=0))
        axes.grid(visible=False)
    with_none = ListedColormap(["white", *colours(range(colours.N))])
    key = ScalarMappable(BoundaryNorm((-1.0, *SHARES), with_none.N), with_none)
    bar = panels.figure.colorbar(
        key, ax=panels.axes, location="right", fraction=0.04, pad=0.015, aspect=30, spacing="uniform"
    )
    bar.set_ticks([-0.5, *SHARES[1:]], labels=[f"{100 * share:g} %" for share in SHARES])
    bar.minorticks_off()
    bar.outline.set_linewidth(0.4)
    bar.set_label("Share of client")


def _box(left: float, top: float, right: float, bottom: float) -> Path:
    return Path([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], closed=True)


def _bars(panels: Panels, sizes: pd.DataFrame) -> None:
    """Draw above each panel how many samples its clients hold."""
    former = 0.0
    for axes, part in panels.parts:
        # those of few shots would not be seen on the scale of all data
        alike = sizes["shots"].isna() if part["shots"].isna().all() else sizes["shots"].isin(part["shots"])
        most = sizes.loc[alike, "samples"].max()
        box = axes.get_window_extent().height / panels.figure.dpi
        above = axes.inset_axes((0, 1 + 0.06 / box, 1, 0.28 / box), sharex=axes)
        own = part[part["mark"] == "client"]
        above.bar(
            own["place"], own["samples"], 0.8 if len(own) <= MOST_CLIENTS else 1.0, color=_BAR, linewidth=0
        )
        above.set_ylim(0, most)
        above.set_yticks([_round_number(most)])
        above.yaxis.set_major_formatter("{x:,.0f}")
        place = axes.get_subplotspec()
        own_scale = not panels.own or place is None or place.is_first_col() or most != former
        above.tick_params(axis="y", labelleft=own_scale)
        former = most
        above.tick_params(axis="x", bottom=False, labelbottom=False)
        above.grid(visible=False, axis="x")
        if not part["class_index"].notna().any():
            axes.grid(visible=False)
            axes.text(0.5, 0.5, "classes\nnot counted", transform=axes.transAxes, ha="center", va="center")


def _name_clients(panels: Panels, points: pd.DataFrame) -> None:
    last = points["place"].max()
    for axes in panels.axes:
        axes.set_xlim(-0.5, last + 0.5)
        if _ordered(points):
            axes.set_xticks([])
        elif last < 10:
            axes.set_xticks(range(last + 1))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))


def _clients_label(points: pd.DataFrame) -> str:
    if not _ordered(points):
        return "Client"
    count = (
        points[points["mark"] == "client"].groupby(_PANEL, dropna=False, observed=True)["clients"].sum().max()
    )
    return f"{count:,} clients, by their largest class{_together(points['clients'], 'column')}"


def _together(merged: pd.Series, what: str) -> str:
    """Say how many neighbours are drawn as one."""
    most = merged.fillna(1).max()
    return f", {most} in a {what}" if most > 1 else ""


def _ordered(points: pd.DataFrame) -> bool:
    return bool(points["place"].max() >= MOST_CLIENTS)


def _name_classes(panels: Panels, points: pd.DataFrame, names: Sequence[str]) -> str:
    """Name the classes along their axis, the first on top, where they fit; gives the name of the axis."""
    for axes in panels.axes:
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="both", length=0)
        if len(names) > MOST_NAMED:
            axes.set_yticks([])
        else:
            axes.set_yticks(range(len(names)), [verbatim(_shortened(name)) for name in names])
    return (
        f"{len(names):,} classes{_together(points['classes'], 'row')}" if len(names) > MOST_NAMED else "Class"
    )


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: what tells classes apart may stand at either end."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half].rstrip()}…{name[-half:].lstrip()}"
