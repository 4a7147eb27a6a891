"""Two minutes of soak with a fault every four seconds; the arithmetic of its slopes. In full: tools/soak.py."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from tests.support.slopes import slope
from tools.soak import report, soak

SECONDS, FAULT_EVERY = 120.0, 4.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soak_loses_nothing(tmp_path: Path) -> None:
    """Good and hostile images under random faults: every one ends once, the good ones as their cutouts."""
    result = soak(tmp_path, seconds=SECONDS, fault_every=FAULT_EVERY, seed=20_261_122)
    assert sum(result["faults"].values()) >= 10
    assert result["remembered"] < result["done"] + result["refused"]
    assert result["done"] > 0
    assert result["refused"] > 0
    assert "too short to be judged" in report(result)


@pytest.mark.parametrize("true", [0.0, 5.0])
def test_slope_lies_within_its_bounds(true: float) -> None:
    """In some 95 of 100 series with noise and a new level in each life, whose readings resemble their neighbours."""
    dice = random.Random(1)
    within = 0
    for _ in range(200):
        times, values = [], []
        for life in range(3):
            noise, here = 0.0, []
            for step in range(100):
                noise = 0.5 * noise + dice.gauss(0, 1)
                here.append(1000 * life + true * step / 100 + noise)
            times.append([step / 100 for step in range(100)])
            values.append(here)
        found = slope(times, values)
        within += found.low <= true <= found.high
    assert 180 <= within <= 199


def test_too_few_readings_bound_nothing() -> None:
    """Four readings of two lives leave no certainty, and a straight line has no doubt."""
    assert slope([[0, 1], [2, 3]], [[5, 6], [0, 1]])[1:] == (-math.inf, math.inf)
    assert slope([[0, 1, 2, 3, 4]], [[0, 2, 4, 6, 8]]) == (2, 2, 2)
