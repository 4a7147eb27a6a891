"""The bounds and the trend, against published digits, against SciPy where it is there, and against their meaning."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.mtbf.statistics import (
    confidence_of,
    coverage_lower,
    hours_needed,
    laplace,
    lower_bound,
    poisson_at_most,
    poisson_mean,
    quantile,
    two_sided,
)

V1_HOURS = 3048 - 120 / 3600
V2_HOURS = 13 * 720 - (2.6 + 31 + 300) / 3600


@pytest.mark.parametrize(
    ("confidence", "hours"), [(0.5, 4397.29), (0.6, 3326.42), (0.8, 1893.81), (0.9, 1323.72), (0.95, 1017.44)]
)
def test_lower_bounds_without_a_failure(confidence: float, hours: float):
    """Vector V1, to all printed digits."""
    assert hours == round(lower_bound(V1_HOURS, 0, confidence), 2)


@pytest.mark.parametrize(("confidence", "hours"), [(0.9, 1401.019), (0.95, 1207.160)])
def test_lower_bounds_with_three_failures(confidence: float, hours: float):
    """Vector V2, to all printed digits."""
    assert hours == round(lower_bound(V2_HOURS, 3, confidence), 3)


def test_the_two_sided_interval():
    """Vector V2: 90 %, both ends."""
    assert (1207.160, 11446.747) == tuple(round(value, 3) for value in two_sided(V2_HOURS, 3, 0.9))


def test_without_failures_there_is_no_upper_bound():
    """Vector V1: nothing says how good it may be."""
    assert two_sided(V1_HOURS, 0, 0.9)[1] == math.inf


@pytest.mark.parametrize(("hours", "failures", "confidence"), [(V1_HOURS, 0, 0.62353), (V2_HOURS, 3, 0.35276)])
def test_confidence_in_a_claim(hours: float, failures: int, confidence: float):
    """Vectors V1 and V2 for 3,120 h, to all printed digits."""
    assert confidence == round(confidence_of(3120, hours, failures), 5)


@pytest.mark.parametrize(
    ("failures", "confidence", "hours"),
    [(0, 0.9, 7184.1), (1, 0.9, 12135.9), (2, 0.9, 16605.6), (3, 0.9, 20844.0), (0, 0.95, 9346.7)],
)
def test_hours_that_a_claim_needs(failures: int, confidence: float, hours: float):
    """For 3,120 h."""
    assert hours == round(hours_needed(3120, failures, confidence), 1)


@pytest.mark.parametrize(
    ("confidence", "freedom", "value"),
    [(0.9, 2, 4.6052), (0.95, 2, 5.9915), (0.9, 8, 13.3616), (0.95, 8, 15.5073), (0.05, 6, 1.6354)],
)
def test_chi_square_quantiles(confidence: float, freedom: int, value: float):
    """As printed in tables."""
    assert value == round(2 * poisson_mean(freedom // 2 - 1, 1 - confidence), 4)


def test_a_rate_of_events_with_its_interval():
    """17 in 720 h: one per 42.4 h, 90 % interval [28.2, 66.5] h."""
    assert (28.2, 66.5) == tuple(round(value, 1) for value in two_sided(720, 17, 0.9))


def test_trend_of_one_system():
    """T = 9360, failures at 100, 2000, 8000: U = -0.8419."""
    assert round(laplace([(9360, [100, 2000, 8000])]) or 0, 4) == -0.8419


def test_trend_is_undefined_without_failures():
    """Nothing to say."""
    assert laplace([(720, []), (720, [])]) is None


def test_pooled_trend_of_equal_systems():
    """Two systems with the same failures: twice the evidence, so U grows by the root of two."""
    one = laplace([(100, [80, 90])])
    two = laplace([(100, [80, 90]), (100, [80, 90])])

    assert one is not None
    assert two == pytest.approx(one * math.sqrt(2))


@pytest.mark.parametrize(("trials", "percent"), [(17, 87.3), (169, 98.6), (230, 99.0), (2302, 99.9)])
def test_coverage_without_a_miss(trials: int, percent: float):
    """Successes in a row show little: 17 of 17 shows 87.3 % at 90 %."""
    assert percent == round(100 * coverage_lower(trials, trials, 0.9), 1)


@settings(deadline=None)
@given(st.integers(0, 60), st.floats(0.01, 0.99))
def test_bounds_agree_with_chi_square(failures: int, confidence: float):
    """SciPy's quantiles, where it is installed."""
    chi2 = pytest.importorskip("scipy.stats").chi2

    assert poisson_mean(failures, 1 - confidence) == pytest.approx(chi2.ppf(confidence, 2 * failures + 2) / 2, rel=1e-9)


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_coverage_agrees_with_beta(trials: int, data):
    """Clopper and Pearson's lower bound is a quantile of the beta distribution."""
    beta = pytest.importorskip("scipy.stats").beta
    successes = data.draw(st.integers(1, trials))
    confidence = data.draw(st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))

    expected = beta.ppf(1 - confidence, successes, trials - successes + 1)
    assert coverage_lower(successes, trials, confidence) == pytest.approx(expected, rel=1e-7)


@settings(deadline=None)
@given(st.integers(0, 2000), st.floats(0.001, 5000))
def test_the_sum_is_a_probability_even_for_many_failures(count: int, mean: float):
    """Large counts neither overflow nor lose the tail."""
    assert 0 <= poisson_at_most(count, mean) <= 1
    assert poisson_at_most(count, mean) <= poisson_at_most(count + 1, mean) + 1e-9


@settings(deadline=None)
@given(st.floats(1, 1e6), st.integers(0, 50), st.floats(0.05, 0.99))
def test_confidence_and_bound_are_each_other_s_inverse(hours: float, failures: int, confidence: float):
    """One can be exactly c sure of the lower bound at c."""
    bound = lower_bound(hours, failures, confidence)

    assert confidence_of(bound, hours, failures) == pytest.approx(confidence, abs=1e-9)


def test_nothing_watched_bounds_nothing():
    """Zero hours."""
    assert lower_bound(0, 0, 0.9) == 0.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.95, 4), (1.0, 4)])
def test_quantiles_are_values_that_occurred(share: float, value: float):
    """Nearest rank."""
    assert value == quantile([1, 2, 3, 4], share)
