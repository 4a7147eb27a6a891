"""How close two answers to the golden image are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rmbgd.config.load import HealthSettings
from rmbgd.engine.selftest import golden_difference, judge_golden

STORED = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)


def test_equal_answers_differ_by_nothing():
    """Mean and peak are 0."""
    assert golden_difference(STORED, STORED, 0.001) == (0.0, 0.0)


def test_the_worst_pixels_are_left_out_of_the_peak():
    """Ten of 10,000 pixels may differ by anything; the eleventh counts."""
    alpha = STORED.copy()
    alpha.ravel()[:10] += 1.0
    _, peak = golden_difference(alpha, STORED, 0.001)
    assert peak == 0.0

    alpha.ravel()[10] += 1.0
    _, peak = golden_difference(alpha, STORED, 0.001)
    assert peak == pytest.approx(1.0)


def test_the_mean_is_over_all_pixels():
    """A difference of 0.01 everywhere."""
    mean, _ = golden_difference(STORED + 0.01, STORED, 0.001)

    assert mean == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("alpha", [STORED[:50], np.full_like(STORED, math.nan)])
def test_an_answer_that_cannot_be_is_never_close(alpha):
    """Another size, or anything that is not finite."""
    mean, peak = golden_difference(alpha, STORED, 0.001)

    assert not judge_golden(mean, peak, HealthSettings()).passed


def test_an_empty_mask_is_caught():
    """A device that answers zeros without an error."""
    mean, peak = golden_difference(np.zeros_like(STORED), STORED, 0.001)
    verdict = judge_golden(mean, peak, HealthSettings())

    assert verdict.failed == "golden"
    assert verdict.threshold == pytest.approx(2 / 255)
