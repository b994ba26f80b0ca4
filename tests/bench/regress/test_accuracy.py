"""What is said of accuracies over seeds, held against closed forms, and of losses and accuracies by round."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from bench.regress.accuracy import (
    COARSE,
    CONFIDENCE,
    DOUBLED_EVERY,
    FEWEST_IMAGES,
    FINE,
    POWER,
    Judged,
    corrected,
    judge_accuracy,
    judge_learning,
    smallest_drop,
)
from bench.regress.judgement import Verdict
from bench.regress.measurements import CellMeasures

BASE = [0.70, 0.74, 0.72, 0.71, 0.73]


def moved(*points):
    """Accuracies that many points from BASE, and BASE itself for so many seeds."""
    base = BASE[: len(points)]
    return base, [accuracy + point / 100 for accuracy, point in zip(base, points, strict=True)]


# --- accuracy over seeds -------------------------------------------------------------------------------


def test_the_interval_is_students_by_hand():
    # mean -2, deviation 1, three seeds: -2 +- 4.302653 / sqrt(3)
    judged = judge_accuracy(*moved(-1, -2, -3))
    half = 0.01 * 4.302653 / 3**0.5
    mean = np.mean(BASE[:3])
    assert judged.interval == pytest.approx(((-0.02 - half) / mean, (-0.02 + half) / mean), rel=1e-6)
    assert judged.change == pytest.approx(-0.02 / mean)
    assert judged.p_value == pytest.approx(stats.ttest_1samp([-1, -2, -3], 0).pvalue)
    assert (judged.base, judged.new) == pytest.approx((mean, mean - 0.02))


@pytest.mark.parametrize(
    ("points", "margin", "verdict"),
    [
        ((-2, -2.2, -1.8, -2.1, -1.9), 0, Verdict.WORSE),
        ((2, 2.2, 1.8, 2.1, 1.9), 0, Verdict.BETTER),
        ((-2, -2.2, -1.8, -2.1, -1.9), 0.03, Verdict.SAME),
        ((-2, -2.2, -1.8, -2.1, -1.9), 0.02, Verdict.UNSURE),
        ((2, 2.2, 1.8, 2.1, 1.9), 0.02, Verdict.SAME),
        ((3, -4, 1, -2, 2), 0, Verdict.UNSURE),
        ((0.2, -0.2, 0.1, 0, -0.1), 0, Verdict.SAME),
        ((0.2, -0.2, 0.1, 0, -0.1), 0.001, Verdict.UNSURE),
    ],
)
def test_a_verdict_follows_from_where_the_interval_lies(points, margin, verdict):
    assert judge_accuracy(*moved(*points), margin=margin).verdict is verdict


def test_equal_accuracies_are_the_same_whatever_the_spread_of_seeds():
    judged = judge_accuracy(BASE, BASE)
    assert judged.verdict is Verdict.SAME
    assert judged.change == 0


def test_one_seed_says_nothing_of_a_difference():
    judged = judge_accuracy(*moved(-20))
    assert judged.verdict is Verdict.UNJUDGED
    assert judged.note == judge_accuracy(*moved(20)).note, "or a line would be told of each cell"
    assert judged.change == pytest.approx(-0.2 / 0.7)
    assert judge_accuracy([0.7], [0.7]).verdict is Verdict.SAME


def test_differences_that_are_all_alike_are_no_certainty():
    judged = judge_accuracy([0.70, 0.74], [0.69, 0.73])
    assert judged.verdict is Verdict.UNSURE
    assert "over 2 seeds, whose spread is taken for that of one image" in judged.note


def test_a_large_drop_does_not_hide_in_that_all_seeds_drop_alike():
    judged = judge_accuracy(*moved(*[-10] * 5), images=200)
    half = 0.005 * stats.t.ppf((1 + CONFIDENCE) / 2, 4) / 5**0.5
    assert judged.verdict is Verdict.WORSE
    assert judged.interval == pytest.approx(((-0.1 - half) / 0.72, (-0.1 + half) / 0.72))
    assert judged.p_value == pytest.approx(2 * stats.t.sf(20 * 5**0.5, 4))
    assert judge_accuracy(*moved(*[-10] * 5)).verdict is Verdict.WORSE


@pytest.mark.parametrize(
    ("images", "verdict"), [((-1, -1, -1, 0, -1), Verdict.SAME), ((-3, -3, -3, -2, -3), Verdict.WORSE)]
)
def test_a_drop_of_an_image_in_most_seeds_may_be_chance(images, verdict):
    points = [100 * x / 450 for x in images]
    assert judge_accuracy(*moved(*points)).verdict is Verdict.WORSE
    assert judge_accuracy(*moved(*points), images=450).verdict is verdict


@pytest.mark.parametrize("nothing", [None, nan, inf])
def test_a_seed_that_lacks_a_side_does_not_count(nothing):
    base, new = moved(-2, -2.2, -1.8, -2.1, -1.9)
    with_gap = judge_accuracy([*base, nothing, 0.1], [*new, 0.9, nothing])
    assert with_gap == judge_accuracy(base, new)
    assert judge_accuracy([nothing], [0.5]).verdict is Verdict.UNJUDGED


def test_sides_of_unlike_many_seeds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        judge_accuracy([0.5, 0.6], [0.5])


def test_a_base_of_zero_has_no_relative_change():
    judged = judge_accuracy([0, 0, 0], [0.10, 0.11, 0.12])
    assert judged.verdict is Verdict.BETTER
    assert judged.change is None
    assert judged.interval is None
    assert "+11.00 points" in judged.note


def test_the_smallest_drop_is_found_as_often_as_stated():
    drop, seeds = smallest_drop(5, 1.0), 5
    drawn = np.random.default_rng(0).normal(-drop, 1.0, (20_000, seeds))
    # with the true deviation known the drop is 2.8 / sqrt(5) = 1.25; of five seeds it has to be estimated
    assert drop == pytest.approx(1.66, abs=0.05)
    upper = drawn.mean(1) + stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * drawn.std(1, ddof=1) / seeds**0.5
    assert np.mean(upper < 0) == pytest.approx(POWER, abs=0.01)


def test_the_smallest_drop_shrinks_with_seeds_and_grows_with_their_spread():
    assert smallest_drop(10, 0.01) < smallest_drop(5, 0.01) < smallest_drop(5, 0.02)
    assert smallest_drop(5, 0.01, power=0.95) > smallest_drop(5, 0.01)


def test_what_could_have_been_seen_is_told_with_the_margin():
    points = (3, -4, 1, -2, 2)
    drop = 100 * smallest_drop(5, np.std(points, ddof=1) / 100)
    assert f"a drop of {drop:.2f} points" in judge_accuracy(*moved(*points)).note
    assert f"a drop of {drop + 1:.2f} points" in judge_accuracy(*moved(*points), margin=0.01).note


def test_equals_are_called_worse_as_rarely_as_stated():
    draws = np.random.default_rng(1).normal(0, 0.02, (400, 5))
    verdicts = [judge_accuracy([0.5] * 5, list(0.5 + row)).verdict for row in draws]
    expected = (1 - CONFIDENCE) / 2
    assert verdicts.count(Verdict.WORSE) / len(draws) == pytest.approx(expected, abs=0.02)
    assert 0 < verdicts.count(Verdict.WORSE) < len(draws) * 2 * expected


def worse(p_value):
    return Judged(Verdict.WORSE, 0.7, 0.6, p_value=p_value, note="-10 points")


def test_among_many_comparisons_chance_is_allowed_for():
    same = Judged(Verdict.SAME, 0.7, 0.7, p_value=1.0)
    untested = Judged(Verdict.UNJUDGED, 0.7, 0.6)
    # Holm: 0.01 x 4, then 0.02 x 3
    first, second, *rest = corrected([worse(0.01), worse(0.02), same, same, untested])
    assert first == worse(0.01)
    assert second.verdict is Verdict.UNSURE
    assert "among 4 comparisons (Holm: p = 0.06)" in second.note
    assert rest == [same, same, untested]
    assert corrected([worse(0.02)]) == [worse(0.02)]
    assert corrected([]) == []


# --- losses and accuracies by round ----------------------------------------------------------------------

LOSSES = (None, 2.9, 2.6, 2.5, 2.4)
ACCURACIES = (0.50, 0.60, 0.70, 0.72, 0.74)


def cell(seed=0, losses=LOSSES, accuracies=ACCURACIES, test_images=450, **config):
    return CellMeasures({"seed": seed, **config}, {}, losses, accuracies, test_images)


def raised(values, number, factor):
    """The values with that of one round multiplied."""
    return tuple(x * factor if place == number else x for place, x in enumerate(values))


def test_the_same_numbers_are_the_same():
    judged = judge_learning([cell(), cell(1)], [cell(), cell(1)])
    assert judged.verdict is Verdict.SAME
    assert judged.note == "no digit differs"


def test_rounding_is_let_pass_and_what_is_beyond_is_not():
    below, beyond = (
        judge_learning([cell()], [cell(losses=raised(LOSSES, 1, 1 + share * FINE.loss))])
        for share in (0.9, 1.2)
    )
    assert below.verdict is Verdict.SAME
    assert below.change == pytest.approx(0.9 * FINE.loss)
    assert beyond.verdict is Verdict.CHANGED


def test_the_first_round_that_changed_is_named_with_the_seed_that_changed_most():
    new = [
        cell(0, raised(LOSSES, 4, 2.0)),
        cell(1, raised(LOSSES, 2, 1.01)),
        cell(2, raised(LOSSES, 2, 1.02)),
        cell(3),
    ]
    judged = judge_learning([cell(seed) for seed in range(4)], new)
    assert judged.verdict is Verdict.CHANGED
    assert "from round 2 on, in 3 of 4 seeds: loss 2.652 instead of 2.6 (seed 2)" in judged.note
    assert (judged.base, judged.new) == pytest.approx((2.6, 2.652))
    assert judged.change == pytest.approx(0.02)


def test_small_losses_are_compared_by_their_difference():
    small = (None, 1e-3, 1e-4)
    moved_on = raised(small, 2, 1.5)
    assert judge_learning([cell(losses=small)], [cell(losses=moved_on)]).verdict is Verdict.SAME
    assert (
        judge_learning([cell(losses=small)], [cell(losses=raised(small, 1, 1.5))]).verdict is Verdict.CHANGED
    )


def test_rounding_may_grow_from_round_to_round():
    rounds = 4 * DOUBLED_EVERY
    base = cell(losses=(2.0,) * (rounds + 1), accuracies=())
    late = judge_learning([base], [cell(losses=raised(base.losses, rounds, 1.001), accuracies=())])
    early = judge_learning([base], [cell(losses=raised(base.losses, 1, 1.001), accuracies=())])
    assert (late.verdict, early.verdict) == (Verdict.SAME, Verdict.CHANGED)
    later = judge_learning([base], [cell(losses=raised(base.losses, rounds, 1.002), accuracies=())])
    assert later.verdict is Verdict.CHANGED


def test_not_anything_passes_after_enough_rounds():
    base = cell(losses=(2.0,) * 20_000, accuracies=())
    judged = judge_learning([base], [cell(losses=raised(base.losses, 19_999, 1.2), accuracies=())])
    assert judged.verdict is Verdict.CHANGED
    assert "from round 19999 on" in judged.note


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"name": "tiny", "dtype": "bfloat16"}},
        {"compute": {"matmul_precision": "high"}},
        {"codec": {"name": "topk"}},
    ],
)
def test_half_precision_and_top_k_round_more(config):
    off = 0.9 * COARSE.loss
    base, new = cell(**config), cell(losses=raised(LOSSES, 1, 1 + off), **config)
    assert judge_learning([base], [new]).verdict is Verdict.SAME
    assert judge_learning([cell(model="tiny")], [new]).verdict is Verdict.CHANGED


@pytest.mark.parametrize(
    ("images", "more", "verdict"),
    [
        (450, FEWEST_IMAGES, Verdict.SAME),
        (450, FEWEST_IMAGES + 1, Verdict.CHANGED),
        (10_000, 19, Verdict.SAME),
        (10_000, 21, Verdict.CHANGED),
    ],
)
def test_a_few_images_change_sides_by_rounding(images, more, verdict):
    base = cell(accuracies=(300 / images,), losses=(), test_images=images)
    new = replace(base, accuracies=((300 + more) / images,))
    assert judge_learning([base], [new]).verdict is verdict
    assert judge_learning([new], [base]).verdict is verdict


@pytest.mark.parametrize("nothing", [None, nan])
def test_a_loss_that_went_missing_is_a_change(nothing):
    judged = judge_learning([cell()], [cell(losses=(None, 2.9, nothing, 2.5, 2.4))])
    assert judged.verdict is Verdict.CHANGED
    assert judged.note == "from round 2 on, in 1 of 1 seed: loss none instead of 2.6 (seed 0)"
    assert judge_learning([cell()], [cell(losses=(nothing,) * 5)]).verdict is Verdict.CHANGED


@pytest.mark.parametrize("nothing", [None, nan])
def test_a_loss_that_both_lack_is_none(nothing):
    gap = (None, 2.9, nothing, 2.5, 2.4)
    assert judge_learning([cell(losses=gap)], [cell(losses=gap)]).verdict is Verdict.SAME


def test_what_base_never_measured_is_left_out():
    assert judge_learning([cell(losses=())], [cell()]).verdict is Verdict.SAME
    nothing = cell(losses=(None,), accuracies=())
    assert judge_learning([nothing], [cell()]).verdict is Verdict.UNJUDGED


def test_rounds_that_one_side_lacks_are_a_change():
    shorter = cell(losses=LOSSES[:4], accuracies=ACCURACIES[:4])
    judged = judge_learning([cell()], [shorter])
    assert judged.verdict is Verdict.CHANGED
    assert "from round 4 on" in judged.note
    assert judge_learning([shorter], [cell()]).verdict is Verdict.CHANGED


def test_four_seeds_of_one_run_are_named_together():
    streams = {"split": 0, "participation": 1, "init": 2, "order": 3}
    judged = judge_learning([cell(streams)], [cell(streams, raised(LOSSES, 1, 2.0))])
    assert "(seed 0-1-2-3)" in judged.note
