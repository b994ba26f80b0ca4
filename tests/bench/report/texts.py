"""Whether the texts of a figure can be read: none over another, none off the figure, none too small."""

from __future__ import annotations

import itertools

from matplotlib.axis import Axis
from matplotlib.text import Text

SMALLEST = 7  # points


def shown_texts(figure):
    """Every text of a figure that is to be seen, laid out."""
    figure.draw_without_rendering()
    off = {
        label
        for axis in figure.findobj(Axis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    hidden = {label for axes in figure.findobj(lambda a: hasattr(a, "axison")) if not axes.axison
              for label in axes.findobj(Text)}  # fmt: skip
    found = dict.fromkeys(figure.findobj(Text))
    return [
        text for text in found
        if text.get_text().strip() and text.get_visible() and text not in off and text not in hidden
    ]  # fmt: skip


def check_texts(figure, at_least=1):
    """Assert that all are legible."""
    texts = shown_texts(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) >= at_least
    clashes = [
        (a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.fully_overlaps(other)
    ]
    assert not clashes
    frame = figure.bbox.padded(1)
    outside = [
        text for text, box in boxes
        if box.x0 < frame.x0 or box.y0 < frame.y0 or box.x1 > frame.x1 or box.y1 > frame.y1
    ]  # fmt: skip
    assert not outside
    assert min(text.get_fontsize() for text in texts) >= SMALLEST
