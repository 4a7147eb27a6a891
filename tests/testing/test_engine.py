"""The fake engine: exact alpha, and faults as scripted."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from rmbgd.errors import EngineLost, EngineMemory
from rmbgd.testing.engine import FakeBackend, expected_alpha


def test_alpha_is_the_green_channel_to_the_last_bit():
    """For every green and every source alpha the answer is the exact product, halves rounded up, at 8 and 16 bits."""
    green, source = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgb = np.stack([green * 0, green, green * 0], axis=-1)
    for levels in (255, 65535):
        exact = [floor(Fraction(p * levels, 255**2) + Fraction(1, 2)) for p in range(255**2 + 1)]
        expected = np.array(exact)[green.astype(int) * source]
        assert np.array_equal(expected_alpha(rgb, source, levels=levels), expected)
        assert np.array_equal(expected_alpha(rgb, levels=levels), expected_alpha(rgb, source * 0 + 255, levels=levels))
    assert np.array_equal(expected_alpha(rgb), green)


def test_the_report_measures_the_alpha(images):
    work = images.put()
    alpha = images.slot(work).rgb[..., 1] / 255
    matte = FakeBackend(images.arena.block).segment([work]).answers[0].matte
    assert matte.coverage == pytest.approx(alpha.mean())
    assert matte.peak == alpha.max()
    assert matte.solid == pytest.approx((alpha >= 0.5).mean())
    assert matte.soft == pytest.approx(((alpha > 0.05) & (alpha < 0.95)).mean())


@pytest.mark.parametrize(("step", "error"), {"memory": EngineMemory, "lost": EngineLost}.items())
def test_faults_come_when_the_script_says_and_leave_the_output_alone(images, step, error):
    work = images.put()
    engine = FakeBackend(images.arena.block, ["ok", step])
    engine.segment([work])
    images.slot(work).rgba[...] = 7
    with pytest.raises(error):
        engine.segment([work])
    assert (images.slot(work).rgba == 7).all()
    engine.segment([work])
    assert not (images.slot(work).rgba == 7).all()


def test_a_released_engine_no_longer_hangs(images):
    engine = FakeBackend(images.arena.block, ["hang", "delay:1000"])
    engine.release()
    assert engine.segment([images.put()]).answers[0].image_id == 1
    assert engine.segment([images.put(2)]).answers[0].image_id == 2


def test_a_step_that_does_not_exist_is_told(images):
    with pytest.raises(ValueError, match="no step 'tpyo'"):
        FakeBackend(images.arena.block, ["tpyo"]).segment([images.put()])
