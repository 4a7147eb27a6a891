"""The mathematics of failures in time: bounds on a mean time between failures, confidence, trend, coverage.

Standard library only: chi-square quantiles with even degrees of freedom are sums of Poisson terms, so the bounds come
from those sums and a bisection, exact to the last digits of a float. Knows nothing of logs.

Model: failures come at a constant rate, and watching ends at a given time (a time-truncated test). With r failures in
T hours the lower bound at confidence c is T / m, where m is the Poisson mean at which r or fewer failures have the
probability 1 - c; this is 2T / chi2(c; 2r + 2). Terms as in IEC 60050-192, bounds as in IEC 60605-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

TREND_LIMIT = 1.645  # |U| beyond it: a constant rate is doubtful, at 90 % two-sided


def poisson_at_most(count: int, mean: float) -> float:
    """P(X <= count) for X ~ Poisson(mean), by the sum itself."""
    if mean <= 0:
        return 1.0
    logarithm = math.log(mean)
    return min(math.fsum(math.exp(i * logarithm - mean - math.lgamma(i + 1)) for i in range(count + 1)), 1.0)


def poisson_mean(count: int, probability: float) -> float:
    """The mean at which P(X <= count) equals `probability`, inside 0..1: half of chi2(1 - p; 2 count + 2)."""
    high = float(count + 1)
    while poisson_at_most(count, high) > probability:
        high *= 2
    return _bisect(lambda mean: poisson_at_most(count, mean) > probability, 0.0, high)


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """The point in [low, high] where `below` turns from true to false, to the precision of a float."""
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if below(middle) else (low, middle)
    return middle


def lower_bound(hours: float, failures: int, confidence: float) -> float:
    """The mean time between failures is at least this, at `confidence` (one-sided). 0 when nothing was watched."""
    return hours / poisson_mean(failures, 1 - confidence) if hours > 0 else 0.0


def two_sided(hours: float, failures: int, confidence: float) -> tuple[float, float]:
    """The interval that holds the mean time between failures at `confidence`; its end is infinite without failures."""
    tail = (1 - confidence) / 2
    upper = hours / poisson_mean(failures - 1, 1 - tail) if failures else math.inf
    return lower_bound(hours, failures, 1 - tail), upper


def laplace(systems: Sequence[tuple[float, Sequence[float]]]) -> float | None:
    """Laplace's trend statistic U over systems of (hours watched, hours of its failures); None without failures.

    Positive: failures come more often as time goes by. Under a constant rate U is about standard normal. For one
    system it is (mean(t) - T/2) / (T sqrt(1 / (12 r))); several are pooled, each with its own T (Ascher, Feingold).
    """
    excess = math.fsum(time - hours / 2 for hours, times in systems for time in times)
    variance = math.fsum(len(times) * hours**2 / 12 for hours, times in systems)
    return excess / math.sqrt(variance) if variance > 0 else None


def coverage_lower(successes: int, trials: int, confidence: float) -> float:
    """The share of successes is at least this, at `confidence` (Clopper and Pearson, one-sided); 0 without any."""
    if successes in (0, trials):
        return math.pow(1 - confidence, 1 / trials) if successes else 0.0

    def at_least(share: float) -> float:
        logs = (
            math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)
            + i * math.log(share) + (trials - i) * math.log1p(-share)
            for i in range(successes, trials + 1)
        )  # fmt: skip
        return math.fsum(math.exp(value) for value in logs)

    return _bisect(lambda share: at_least(share) < 1 - confidence, 0.0, 1.0)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value that `share` of all values do not exceed (nearest rank). The sequence is sorted and not empty."""
    return ascending[max(math.ceil(share * len(ascending)) - 1, 0)]
