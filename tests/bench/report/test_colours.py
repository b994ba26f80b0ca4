"""Methods are told apart: by readers of every colour vision, and in grey."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bench.catalogue import method_modules
from bench.report.names import METHODS
from bench.report.styles import SPARE, STYLES, styles_of
from tests.bench.report.made import LEVEL, make_results, make_run, make_runs

# Machado, Oliveira and Fernandes 2009, IEEE TVCG 15(6), severity 1.0: on linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
D65 = np.array([0.95047, 1.0, 1.08883])

PAPER = ("zero_shot", "full_finetune", "linear_probe", "attention_adapter", "flora", "vision_finetune")
# Of CIEDE2000, where 1 is about what can be noticed side by side: told apart at a glance, and in thin lines.
CLEAR = 10.0
# Of CIE L*, 0 to 100.
CLEAR_IN_GREY = 10.0
ALL = [*STYLES.items(), *((f"spare {index}", style) for index, style in enumerate(SPARE))]


def lab(colour, vision="usual"):
    """A colour as the eye of this vision has it, in CIE L*a*b* (D65)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x = TO_XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / D65
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one, other):
    """CIEDE2000 (Sharma, Wu and Dalal 2005, Color Res. Appl. 30) of two colours in CIE L*a*b*."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25**7)))
    c1, c2 = np.hypot((1 + g) * a1, b1), np.hypot((1 + g) * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, (1 + g) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    ml, mc = (l1 + l2) / 2, (c1 + c2) / 2
    mh = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    t = 1 + sum(size * np.cos(np.radians(times * mh + shift)) for size, times, shift in waves)
    sl = 1 + 0.015 * (ml - 50) ** 2 / np.sqrt(20 + (ml - 50) ** 2)
    sc, sh = 1 + 0.045 * mc, 1 + 0.015 * mc * t
    rc = 2 * np.sqrt(mc**7 / (mc**7 + 25**7))
    rt = -np.sin(np.radians(60 * np.exp(-(((mh - 275) / 25) ** 2)))) * rc
    return np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * dc / sc * dh / sh)


def apart(one, other):
    """The least that two styles differ by in colour, over all visions."""
    return min(difference(lab(one.colour, vision), lab(other.colour, vision)) for vision in VISIONS)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [  # of the table that Sharma, Wu and Dalal give to check implementations by
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((50, 0, 0), (50, -1, 2), 2.3669),
    ],
)
def test_differences_are_those_of_the_standard(one, other, expected):
    assert difference(one, other) == pytest.approx(expected, abs=1e-4)


def test_simulation_leaves_grey_alone_and_takes_what_a_vision_cannot_see():
    for vision in VISIONS:
        np.testing.assert_allclose(lab("#808080", vision), lab("#808080"), atol=0.6)
    red, green = lab("#d62728"), lab("#2ca02c")
    assert difference(red, green) > 70
    assert difference(lab("#d62728", "deuteranopia"), lab("#2ca02c", "deuteranopia")) < 5
    assert difference(lab("#00c0c0"), lab("#00b0ff")) > 20
    assert difference(lab("#00c0c0", "tritanopia"), lab("#00b0ff", "tritanopia")) < 6


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(PAPER, 2)))
def test_methods_of_the_paper_are_told_apart_by_colour_alone_in_every_vision(one, other):
    assert apart(STYLES[one], STYLES[other]) >= CLEAR


def test_methods_close_in_colour_differ_in_marker_line_and_hatch():
    close = [(a, b) for (_, a), (_, b) in itertools.combinations(ALL, 2) if apart(a, b) < CLEAR]
    assert close  # there are more methods than colours
    for one, other in close:
        for part in ("marker", "line", "hatch"):
            assert getattr(one, part) != getattr(other, part), (one, other)


def test_methods_close_in_grey_differ_in_marker_or_line_and_in_hatch():
    for (_, one), (_, other) in itertools.combinations(ALL, 2):
        if abs(lab(one.colour)[0] - lab(other.colour)[0]) < CLEAR_IN_GREY:
            assert (one.marker, one.line) != (other.marker, other.line), (one, other)
            assert one.hatch != other.hatch or "" in (one.marker, other.marker), (one, other)


def test_colours_are_seen_on_white():
    for name, style in ALL:
        assert lab(style.colour)[0] < 76, name


def test_every_method_has_a_name_and_a_look_of_its_own():
    assert set(method_modules()) <= set(METHODS)
    assert set(STYLES) == set(METHODS)
    assert len(set(METHODS.values())) == len(METHODS)
    assert len({style.colour for _, style in ALL}) == len(ALL)
    assert len({(style.marker, str(style.line)) for _, style in ALL}) == len(ALL)


def test_a_method_looks_the_same_in_every_set_and_variants_keep_apart():
    many = styles_of(make_results(methods=(*METHODS, "a", "b"))[0])
    for name, label in METHODS.items():
        assert styles_of(make_runs(make_run(name)))[label] == many[label] == STYLES[name]
    assert len({(s.colour, s.marker, str(s.line)) for s in many.values()}) == len(many)
    variants = styles_of(make_runs(*(make_run(**{"method.rank": r}) for r in (2.0, 4.0, 8.0))))
    assert len({s.marker for s in variants.values()}) == len({s.hatch for s in variants.values()}) == 3


@pytest.mark.parametrize("method", [*STYLES, "one that is not known"])
def test_variants_of_a_method_are_told_apart_by_colour(method):
    variants = styles_of(make_runs(*(make_run(method, **{"method.rank": r}) for r in (2.0, 4.0, 8.0))))
    colours = [lab(style.colour) for style in variants.values()]
    assert len(colours) == 3
    assert min(difference(*pair) for pair in itertools.combinations(colours, 2)) >= 15


def test_methods_that_are_not_known_keep_apart_however_many():
    names = [f"own {index:02}" for index in range(2 * len(SPARE))]
    drawn = styles_of(make_runs(*(make_run(method=name) for name in (*LEVEL, *names))))
    assert len({(s.colour, s.marker) for s in drawn.values()}) == len(drawn)
