"""Whether a figure can be read: no two of its texts overlap, and none leaves it."""

from __future__ import annotations

import itertools

import numpy as np


def texts_of(figure):
    """Every text that shows, after the figure is laid out."""
    figure.draw_without_rendering()
    texts = list(figure.texts)
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        texts += legend.get_texts() if legend is not None else []
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts += [axis.label, *_tick_labels(axis)]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def assert_legible(figure, fewest):
    """Fail where two texts overlap or one is cut off, or where there are not even ``fewest``."""
    texts = texts_of(figure)
    assert len(texts) >= fewest
    corners = {text: _corners(text) for text in texts}
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in corners.items():
        inside = box.min() >= -1 and box[:, 0].max() <= width + 1 and box[:, 1].max() <= height + 1
        assert inside, f"{text.get_text()!r} leaves the figure"
    for one, other in itertools.combinations(texts, 2):
        clash = not _apart(corners[one], corners[other])
        assert not clash, f"{one.get_text()!r} overlaps {other.get_text()!r}"


def _tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def _corners(text):
    """The corners of a text's box in pixels, as it is turned."""
    turned = np.deg2rad(text.get_rotation())
    if text.get_rotation_mode() != "anchor":  # those are turned by quarters: their boxes stand upright
        turned = 0.0
        box = text.get_window_extent()
    else:
        text.set_rotation(0)
        box = text.get_window_extent()
        text.set_rotation(np.rad2deg(turned))
    corners = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)])
    about = text.get_transform().transform(text.get_position())
    cos, sin = np.cos(turned), np.sin(turned)
    return (corners - about) @ np.array([[cos, sin], [-sin, cos]]) + about


def _apart(one, other):
    """Whether some line parts two rectangles by as much as half a pixel of overlap allows."""
    sides = [box[1] - box[0] for box in (one, other)] + [box[3] - box[0] for box in (one, other)]
    for side in sides:
        axis = side / np.linalg.norm(side)
        first, second = one @ axis, other @ axis
        if first.max() <= second.min() + 0.5 or second.max() <= first.min() + 0.5:
            return True
    return False
