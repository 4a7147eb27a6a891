"""The slope of a quantity over time with its 95 % bounds, from readings that resemble their neighbours.

Ordinary least squares with an intercept for each life of the process; the error is widened for readings that are not
independent, by their lag-1 autocorrelation (effective number n (1 - r) / (1 + r)). Student's t by Peiser's expansion.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959964  # the normal distribution's 97.5 % quantile


class Slope(NamedTuple):
    value: float
    low: float
    high: float

    def rounded(self) -> list[float | None]:
        """For JSON, which knows no infinity: None for a bound that nothing is known of."""
        return [round(each, 3) if math.isfinite(each) else None for each in self]


def slope(times: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> Slope:
    """One sequence per life. Infinite bounds where there is too little to tell."""
    x = [each - sum(life) / len(life) for life in times for each in life]
    y = [each - sum(life) / len(life) for life in values for each in life]
    spread = sum(each * each for each in x)
    if len(x) < 3 + len(times) or not spread:
        return Slope(0.0, -math.inf, math.inf)
    value = sum(a * b for a, b in zip(x, y, strict=True)) / spread
    rest = [b - value * a for a, b in zip(x, y, strict=True)]
    power = sum(each * each for each in rest)
    if not power:
        return Slope(value, value, value)
    near = max(0.0, min(0.99, sum(a * b for a, b in itertools.pairwise(rest)) / power))
    free = max(1.0, len(x) * (1 - near) / (1 + near) - len(times) - 1)
    student = Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
    bound = student * math.sqrt(power / (len(x) - len(times) - 1) / spread * (1 + near) / (1 - near))
    return Slope(value, value - bound, value + bound)
