"""Step detection: what was planted is found where it is, and nothing where nothing is."""

import numpy as np
import pytest

from bench.perf.experiment import Setting
from bench.perf.steps import history_steps
from bench.regress.steps import FEWEST_REVISIONS, exact_steps, noisy_steps


def series(seed, n, noise, *planted):
    """Values around 1 with relative noise and steps, each (at, share)."""
    values = np.exp(noise * np.random.default_rng(seed).standard_normal(n))
    for at, share in planted:
        values[at:] *= 1 + share
    return values.tolist()


def places(fit):
    return [step.index for step in fit.steps]


# --- exact ---------------------------------------------------------------------------------------------


def test_any_change_of_what_is_exact_is_a_step():
    fit = exact_steps([100, 100, 101, 101, 100])
    assert [(x.index, x.before, x.after) for x in fit.steps] == [(2, 100, 101), (4, 101, 100)]
    assert fit.steps[0].change == pytest.approx(0.01)
    assert [(x.start, x.stop, x.level) for x in fit.pieces] == [(0, 2, 100), (2, 4, 101), (4, 5, 100)]


def test_texts_step_without_a_share():
    (step,) = exact_steps(["abc", "abc", "def"]).steps
    assert (step.index, step.before, step.after, step.change) == (2, "abc", "def", None)


def test_a_step_from_zero_has_no_share():
    assert exact_steps([0, 3]).steps[0].change is None


def test_where_a_small_step_may_be_is_said_as_a_range():
    within = []
    for seed in range(60):
        for step in noisy_steps(series(seed, 100, 0.03, (50, 0.06))).steps:
            within.append(step.earliest <= 50 <= step.latest)
            assert step.earliest <= step.index <= step.latest
    assert len(within) >= 50
    assert sum(within) >= 0.9 * len(within)


@pytest.mark.parametrize("find", [exact_steps, noisy_steps])
@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0]])
def test_few_values_have_no_step(find, values):
    assert not find(values).steps


# --- noisy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, -0.1])
@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_a_planted_step_is_found_where_it_is(share, noise):
    (step,) = noisy_steps(series(1, 50, noise, (30, share))).steps
    assert abs(step.index - 30) <= 1
    assert step.earliest <= 30 <= step.latest < step.earliest + 3
    assert step.change == pytest.approx(share, abs=noise)
    assert step.p_value <= 0.001


def test_several_steps_are_told_apart_even_in_a_short_series():
    values = series(2, 24, 0.008, (9, 0.2), (14, 0.1), (20, -0.3))
    assert places(noisy_steps(values)) == [9, 14, 20]


def test_constant_series_have_no_steps():
    fits = [noisy_steps(series(seed, 30, 0.03)) for seed in range(150)]
    assert sum(len(fit.steps) + len(fit.drifts) for fit in fits) == 0


def test_busy_days_are_rarely_taken_for_steps():
    stepping = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).standard_normal(100)
        for index in range(1, 100):
            noise[index] = 0.5 * noise[index - 1] + 0.75**0.5 * noise[index]
        stepping += bool(noisy_steps(np.exp(0.03 * noise).tolist()).steps)
    assert stepping <= 3  # 20 if neighbours were taken for independent


def test_what_never_varies_has_no_step():
    assert noisy_steps([1.0] * 50).steps == []


def test_one_or_two_that_stand_out_are_no_step():
    values = series(3, 40, 0.01)
    assert places(noisy_steps([*values[:20], 2.0, *values[20:]])) == []
    assert places(noisy_steps([*values[:20], 2.0, 2.1, *values[20:]])) == []
    assert places(noisy_steps([*values, 2.0, 2.0])) == []


def test_a_third_confirms_what_two_began():
    values = series(3, 40, 0.01)
    assert places(noisy_steps([*values, 2.0, 2.01, 2.02])) == [40]
    assert FEWEST_REVISIONS == 3


def test_an_outlier_does_not_hide_a_step():
    values = series(4, 50, 0.02, (25, 0.1))
    values[10], values[40] = 3.0, 0.3
    assert [abs(x - 25) <= 1 for x in places(noisy_steps(values))] == [True]


def test_steps_that_are_too_small_do_not_count():
    values = series(5, 100, 0.001, (50, 0.01))
    assert places(noisy_steps(values)) == []
    assert places(noisy_steps(values, smallest=0.005)) == [50]


def test_what_creeps_is_a_drift_and_no_step():
    values = np.array(series(6, 60, 0.01)) * np.linspace(1, 1.3, 60)
    fit = noisy_steps(values.tolist())
    (drift,) = fit.drifts
    assert (fit.steps, drift.start, drift.stop) == ([], 0, 60)
    assert drift.change == pytest.approx(0.3, abs=0.03)


def test_what_creeps_from_midway_on_is_one_step_and_a_drift():
    ramp = np.concatenate([np.ones(50), np.linspace(1, 1.1, 50)])
    for seed in range(5):
        fit = noisy_steps((np.array(series(seed, 100, 0.01)) * ramp).tolist())
        (step,), (drift,) = fit.steps, fit.drifts
        assert 50 <= step.index <= drift.start < drift.stop == 100


def test_two_steps_in_one_direction_are_no_drift():
    fit = noisy_steps(series(7, 60, 0.01, (20, 0.1), (40, 0.1)))
    assert (places(fit), fit.drifts) == ([20, 40], [])


def test_differences_count_in_their_own_unit_where_they_are_no_shares():
    values = [0.9 + x for x in 0.002 * np.random.default_rng(8).standard_normal(40)]
    values[20:] = [x - 0.02 for x in values[20:]]
    fit = noisy_steps(values, smallest=0.005, relative=False)
    assert places(fit) == [20]
    assert places(noisy_steps(values, smallest=0.05, relative=False)) == []


def test_values_of_zero_are_no_shares():
    fit = noisy_steps([0.0] * 20 + [5.0] * 20)
    assert places(fit) == [20]
    assert fit.steps[0].change is None


def test_the_simulation_finds_what_it_plants():
    figures = history_steps(Setting(quick=True)).figures
    assert figures["found_20_percent"] == 1.0
    assert all(x["series_with_a_step"] == 0 for x in figures["constant"].values())
    assert figures["drift"]["series_with_a_step"] == 0
