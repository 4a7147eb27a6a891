"""The bounds and the trend, against published digits, against SciPy where it is there, and against their meaning."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.mtbf import statistics

# The vectors that are published: V1, 127 days without a failure; V2, 13 machines for 720 h each with three failures.
V1_HOURS = 3048 - 120 / 3600
V2_HOURS = 13 * 720 - (2.6 + 31 + 300) / 3600


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        *(
            (lambda c=confidence: statistics.lower_bound(V1_HOURS, 0, c), hours)
            for confidence, hours in [(0.5, 4397.29), (0.6, 3326.42), (0.8, 1893.81), (0.9, 1323.72), (0.95, 1017.44)]
        ),
        (lambda: statistics.lower_bound(V2_HOURS, 3, 0.9), 1401.019),
        (lambda: statistics.lower_bound(V2_HOURS, 3, 0.95), 1207.160),
        (lambda: statistics.lower_bound(0, 0, 0.9), 0.0),  # nothing watched bounds nothing
        (lambda: statistics.two_sided(V2_HOURS, 3, 0.9), (1207.160, 11446.747)),
        (lambda: statistics.two_sided(V1_HOURS, 0, 0.9), (1017.436, math.inf)),  # nothing says how good it may be
        (lambda: statistics.two_sided(720, 17, 0.9), (28.2, 66.5)),  # one per 42.4 h
        # How sure one can be of 3120 h, and the hours that would show them.
        (lambda: 1 - statistics.poisson_at_most(0, V1_HOURS / 3120), 0.62353),
        (lambda: 1 - statistics.poisson_at_most(3, V2_HOURS / 3120), 0.35276),
        *(
            (lambda r=failures, c=confidence: 3120 * statistics.poisson_mean(r, 1 - c), hours)
            for failures, confidence, hours in [
                (0, 0.9, 7184.1), (1, 0.9, 12135.9), (2, 0.9, 16605.6), (3, 0.9, 20844.0), (0, 0.95, 9346.7),
            ]
        ),
        *(  # chi-square quantiles, as printed in tables
            (lambda c=confidence, f=freedom: 2 * statistics.poisson_mean(f // 2 - 1, 1 - c), value)
            for confidence, freedom, value in [
                (0.9, 2, 4.6052), (0.95, 2, 5.9915), (0.9, 8, 13.3616), (0.95, 8, 15.5073), (0.05, 6, 1.6354),
            ]
        ),
        (lambda: statistics.poisson_at_most(2, 0.0), 1.0),
        (lambda: statistics.poisson_at_most(1, 2.0), 0.406),  # 3 e^-2
        (lambda: statistics.laplace([(9360, [100, 2000, 8000])]), -0.8419),
        (lambda: statistics.laplace([(1, [0.5, 0.9])]), 0.9798),  # 0.4 by the root of 1/6
        (lambda: statistics.laplace([(100, [80, 90])]), 1.7146),
        (lambda: statistics.laplace([(100, [80, 90])] * 2), 2.4249),  # pooled: by the root of 2
        (lambda: statistics.TREND_LIMIT, 1.645),  # of a standard normal, at 90 % two-sided
        # Successes in a row show little: 17 of 17 shows 87.3 % at 90 %.
        (lambda: 100 * statistics.coverage_lower(17, 17, 0.9), 87.3),
        (lambda: 100 * statistics.coverage_lower(2302, 2302, 0.9), 99.9),
        (lambda: statistics.coverage_lower(0, 17, 0.9), 0.0),
        (lambda: statistics.coverage_lower(1, 2, 0.9), 0.0513),  # 1 - (1 - p)^2 = 0.1
        *(  # nearest rank
            (lambda s=share: statistics.quantile([1, 2, 3, 4], s), value)
            for share, value in [(0.0, 1), (0.5, 2), (0.51, 3), (0.95, 4), (1.0, 4)]
        ),
    ],
)  # fmt: skip
def test_published_digits(found: Callable[[], float | tuple[float, ...]], expected: float | tuple[float, ...]):
    printed = expected if isinstance(expected, tuple) else (expected,)
    values = found()
    for value, digits in zip(values if isinstance(values, tuple) else (values,), printed, strict=True):
        assert value == pytest.approx(digits, abs=0.5000001 * 10.0 ** -len(str(digits).partition(".")[2]))


@pytest.mark.parametrize("systems", [[(720, []), (720, [])], [(0, [0])]])
def test_no_trend_without_failures_or_without_a_time(systems: list[tuple[float, list[float]]]):
    assert statistics.laplace(systems) is None


@settings(deadline=None)
@given(st.integers(0, 60), st.floats(0.01, 0.99))
def test_bounds_agree_with_chi_square(failures: int, confidence: float):
    chi2 = pytest.importorskip("scipy.stats").chi2
    assert statistics.poisson_mean(failures, 1 - confidence) == pytest.approx(
        chi2.ppf(confidence, 2 * failures + 2) / 2, rel=1e-9
    )


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_coverage_agrees_with_beta(trials: int, data):
    beta = pytest.importorskip("scipy.stats").beta
    successes = data.draw(st.integers(1, trials))
    confidence = data.draw(st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
    expected = beta.ppf(1 - confidence, successes, trials - successes + 1)
    assert statistics.coverage_lower(successes, trials, confidence) == pytest.approx(expected, rel=1e-7)


@settings(deadline=None)
@given(st.integers(0, 2000), st.floats(0.001, 5000))
def test_the_sum_is_a_probability_even_for_many_failures(count: int, mean: float):
    assert 0 <= statistics.poisson_at_most(count, mean) <= 1
    assert statistics.poisson_at_most(count, mean) <= statistics.poisson_at_most(count + 1, mean) + 1e-9


@settings(deadline=None)
@given(st.floats(1, 1e6), st.integers(0, 50), st.floats(0.05, 0.99))
def test_confidence_and_bound_are_each_other_s_inverse(hours: float, failures: int, confidence: float):
    bound = statistics.lower_bound(hours, failures, confidence)
    assert 1 - statistics.poisson_at_most(failures, hours / bound) == pytest.approx(confidence, abs=1e-9)
