"""Whether a figure can be read: no two of its texts overlap, none leaves it, and none is too small."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axis import Axis
from matplotlib.text import Text

SMALLEST = 7  # points


def texts_of(figure):
    """Every text that shows, after the figure is laid out."""
    figure.draw_without_rendering()
    off = {
        label
        for axis in figure.findobj(Axis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    for axes in figure.findobj(lambda artist: hasattr(artist, "axison")):
        if not axes.axison:
            off |= {label for axis in (axes.xaxis, axes.yaxis) for label in axis.findobj(Text)}
    found = dict.fromkeys(figure.findobj(Text))
    return [text for text in found if text.get_text().strip() and text.get_visible() and text not in off]


def assert_legible(figure, fewest=1):
    """Fail where two texts overlap, one is cut off or too small, or where there are not even ``fewest``."""
    texts = texts_of(figure)
    assert len(texts) >= fewest
    assert min(text.get_fontsize() for text in texts) >= SMALLEST
    corners = {text: _corners(text) for text in texts}
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in corners.items():
        inside = box.min() >= -1 and box[:, 0].max() <= width + 1 and box[:, 1].max() <= height + 1
        assert inside, f"{text.get_text()!r} leaves the figure"
    for one, other in itertools.combinations(texts, 2):
        clash = not _apart(corners[one], corners[other])
        assert not clash, f"{one.get_text()!r} overlaps {other.get_text()!r}"


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
