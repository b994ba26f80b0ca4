"""When one of two revisions is slower: the statistics, on rounds made up of known noise."""

import math

import numpy as np
import pytest

from bench.regress.decision import (
    EARLY,
    MIN_ROUNDS,
    Spread,
    decide,
    log_ratio,
    spread_of,
)
from bench.regress.judgement import Verdict

BLOCKS = 6


def rounds(generator, slower=0.0, n=10, between=0.01, within=0.02, drift=0.3):
    """Make up rounds: each has a level (drift), its processes differ (between), its bursts do (within)."""
    base, new = [], []
    for _ in range(n):
        level = np.exp(generator.normal(0, drift))
        lucky = generator.normal(0, between)
        bursts = np.exp(generator.normal(0, within, (2, 2 * BLOCKS)))
        base.append((level * bursts[0]).tolist())
        new.append((level * bursts[1] * (1 + slower) * np.exp(lucky)).tolist())
    return base, new


def share(verdict, trials=200, seed=0, **kinds):
    generator = np.random.default_rng(seed)
    return sum(decide(*rounds(generator, **kinds)).verdict is verdict for _ in range(trials)) / trials


def test_a_slowdown_of_ten_percent_is_found_through_drift_many_times_as_large():
    assert share(Verdict.WORSE, slower=0.10) >= 0.99


def test_the_same_revision_is_not_called_slower_or_faster():
    assert share(Verdict.SAME) >= 0.95
    assert share(Verdict.WORSE) == share(Verdict.BETTER) == 0


def test_where_rounds_are_noisy_nothing_is_alarmed_and_the_power_says_so():
    generator = np.random.default_rng(1)
    decisions = [decide(*rounds(generator, between=0.08)) for _ in range(600)]
    assert sum(decision.verdict is Verdict.WORSE for decision in decisions) <= 3  # 0.6 are to be expected
    assert np.median([decision.seen for decision in decisions]) > 1.15


def test_a_tenth_of_rounds_gone_wrong_neither_alarms_nor_hides_a_slowdown():
    generator = np.random.default_rng(2)
    verdicts = {0.0: [], 0.15: []}
    for slower, found in verdicts.items():
        for _ in range(200):
            base, new = rounds(generator, slower, n=12)
            new[generator.integers(12)] = [9 * x for x in new[0]]
            found.append(decide(base, new).verdict)
    assert Verdict.WORSE not in verdicts[0.0]
    assert verdicts[0.15].count(Verdict.WORSE) >= 198


def test_a_speed_up_is_better_and_a_small_slowdown_is_the_same():
    assert share(Verdict.BETTER, slower=-0.15) >= 0.99
    assert share(Verdict.SAME, slower=0.02, n=16) >= 0.95


def test_the_ratio_is_that_planted_and_the_interval_holds_it():
    generator = np.random.default_rng(3)
    decisions = [decide(*rounds(generator, slower=0.2)) for _ in range(200)]
    assert np.median([decision.ratio for decision in decisions]) == pytest.approx(1.2, rel=0.005)
    # a bootstrap of ten rounds is somewhat too narrow
    assert np.mean([decision.low <= 1.2 <= decision.high for decision in decisions]) > 0.93


def test_what_is_said_to_be_seen_is_seen():
    generator = np.random.default_rng(4)
    seen = np.median([decide(*rounds(generator, between=0.03)).seen for _ in range(100)])
    found = share(Verdict.WORSE, slower=seen - 1, between=0.03, seed=5)
    assert 0.8 <= found <= 1.0  # the spread that it rests on is itself known from ten rounds


def test_fewer_rounds_than_needed_are_not_judged():
    generator = np.random.default_rng(6)
    decision = decide(*rounds(generator, slower=1.0, n=MIN_ROUNDS - 1))
    assert decision.verdict is Verdict.UNJUDGED
    assert "5 rounds; 6 are needed" in decision.note
    assert decide([], []).verdict is Verdict.UNJUDGED


def test_an_early_look_asks_for_more_than_the_last():
    generator = np.random.default_rng(7)
    base, new = rounds(generator, slower=0.08, n=6, between=0.02)
    thresholds = [decide(base, new, false_alarms=0.001 * part).threshold for part in (1, EARLY)]
    assert thresholds[1] > thresholds[0]
    assert decide(base, new, comparisons=20).threshold > thresholds[0]


def test_the_noise_known_of_a_machine_lowers_the_threshold_unless_these_rounds_are_noisier():
    generator = np.random.default_rng(8)
    base, new = rounds(generator, n=6, between=0.03)
    alone = decide(base, new)
    own = spread_of([log_ratio(*pair) for pair in zip(base, new, strict=True)]).deviation
    assert decide(base, new, known=Spread(own, 40)).threshold < alone.threshold
    assert decide(base, new, known=Spread(0.99 * own, 40)).threshold == alone.threshold


def test_log_ratio_is_the_median_of_blocks_and_drift_within_a_block_cancels():
    # A B B A: the machine slows down steadily, and both sides see the same of it
    steps = [1.0, 1.1, 1.2, 1.3]
    assert log_ratio([steps[0], steps[3]], [steps[1], steps[2]]) == pytest.approx(0.0)
    assert log_ratio([1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 50, 50]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("sides", [([1.0], [1.0]), ([1.0, 1.0], [1.0]), ([], []), ([1.0, 0.0], [1.0, 1.0])])
def test_rounds_that_are_no_blocks_of_positive_times_are_refused(sides):
    with pytest.raises(ValueError, match="a round must hold blocks of two positive times a side"):
        log_ratio(*sides)


def test_spread_is_the_deviation_of_normal_values_whatever_a_few_of_them_do():
    generator = np.random.default_rng(9)
    values = generator.normal(0.5, 0.02, 400)
    values[:20] = 30.0
    assert spread_of(values).deviation == pytest.approx(0.02, rel=0.25)
    even = [0.1, -0.1, 0.1, -0.1]
    assert spread_of(even) == Spread(pytest.approx(np.std(even, ddof=1)), 3)
    assert spread_of(even, centre=0.0) == Spread(pytest.approx(0.1), 4)


def test_the_same_rounds_give_the_same_decision():
    base, new = rounds(np.random.default_rng(10), slower=0.05)
    assert decide(base, new) == decide(base, new)
