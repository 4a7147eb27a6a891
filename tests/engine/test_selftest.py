"""Whether a device passed its self-test, and how close two answers to the golden image are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rmbgd.config.load import HealthSettings
from rmbgd.engine.health_types import ProbeReport
from rmbgd.engine.selftest import PASSED, Verdict, golden_difference, golden_factor, judge, judge_golden
from tests.backends.cuda.test_cuda_engine import TOLERANCES

HEALTH = HealthSettings()
MEAN, PEAK, NAN = HEALTH.golden_mean, HEALTH.golden_peak, math.nan  # 2/255 and 16/255
SERVED = "the process has served before; only a fresh one can clear a device"
STORED = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
PROVED = ProbeReport(
    fresh_process=True, enumerated=True, model_intact=True, canary_passes=2, canary_bad=0,
    golden_mean=0.001, golden_peak=0.01, test_seconds=1.0, seconds=0.1, baseline=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, PASSED),
        ({"golden_mean": MEAN, "golden_peak": PEAK, "seconds": 0.2}, PASSED),  # the bounds are inclusive
        ({"seconds": 9.0, "baseline": None}, PASSED),
        ({"fresh_process": False}, Verdict("process", SERVED)),
        ({"enumerated": None}, Verdict("enumerate", "the device did not answer")),
        ({"enumerated": False, "error": "why"}, Verdict("enumerate", "why")),
        ({"model_intact": False}, Verdict("model", "the loaded weights are not what was expected")),
        ({"model_intact": None, "error": "why"}, Verdict("model", "why")),
        ({"canary_passes": None}, Verdict("canary", "not finished", None, 2)),
        ({"canary_passes": 1, "error": "why"}, Verdict("canary", "why", 1, 2)),
        ({"canary_bad": 1}, Verdict("canary", "bad blocks", 1, 0)),
        ({"canary_bad": None}, Verdict("canary", "bad blocks", None, 0)),
        ({"golden_mean": None, "error": "why"}, Verdict("golden", "why", None, MEAN)),
        ({"golden_mean": 2.1 / 255}, Verdict("golden", "mean difference", 2.1 / 255, MEAN)),
        ({"golden_mean": -0.1}, Verdict("golden", "mean difference", -0.1, MEAN)),
        ({"golden_mean": NAN}, Verdict("golden", "mean difference", NAN, MEAN)),
        ({"golden_mean": 2 * MEAN, "golden_peak": 2 * PEAK, "golden_factor": 2.0}, PASSED),
        ({"golden_mean": 4.1 / 255, "golden_factor": 2.0}, Verdict("golden", "mean difference", 4.1 / 255, 2 * MEAN)),
        ({"golden_peak": 16.1 / 255}, Verdict("golden", "largest difference", 16.1 / 255, PEAK)),
        ({"test_seconds": 120.0}, PASSED),
        ({"test_seconds": 120.1}, Verdict("timeout", "it took too long", 120.1, 120.0)),
        ({"test_seconds": None, "error": "why"}, Verdict("timeout", "why", None, 120.0)),
        ({"seconds": None}, Verdict("latency", "not measured")),
        ({"seconds": math.inf, "baseline": None, "error": "why"}, Verdict("latency", "why")),
        ({"seconds": 0.21}, Verdict("latency", "slower than it was", 0.21, 0.2)),
        ({"error": "weights file vanished"}, Verdict("error", "weights file vanished")),
    ],
)
def test_each_step_alone_fails_the_probe(change: dict[str, object], verdict: Verdict):
    """And so does a step that was not reached."""
    assert judge(replace(PROVED, **change), HEALTH) == verdict


def test_the_worst_pixels_are_left_out_of_the_peak():
    """Ten of 10,000 pixels may differ by anything; the eleventh counts."""
    assert golden_difference(STORED, STORED, 0.001) == (0.0, 0.0)
    assert golden_difference(STORED + 0.01, STORED, 0.001) == pytest.approx((0.01, 0.01), rel=1e-4)
    alpha = STORED.copy()
    alpha.ravel()[:10] += 1.0
    assert golden_difference(alpha, STORED, 0.001)[1] == 0.0
    alpha.ravel()[10] += 1.0
    assert golden_difference(alpha, STORED, 0.001)[1] == pytest.approx(1.0)
    assert golden_difference(alpha, STORED, 1.0)[1] == 0.0, "one pixel is always kept"


@pytest.mark.parametrize("alpha", [STORED[:50], np.full_like(STORED, math.nan), np.zeros_like(STORED)])
def test_an_answer_that_cannot_be_is_never_close(alpha: np.ndarray):
    """Another size, anything that is not finite, or zeros without an error."""
    verdict = judge_golden(*golden_difference(alpha, STORED, 0.001), HEALTH)
    assert (verdict.failed, verdict.threshold) == ("golden", MEAN)


@pytest.mark.parametrize(
    ("precisions", "factor"),
    [((), 1.0), (("float16",), 1.0), (("float32", "bfloat16"), 2.0), (("float8", "int8", None), 1.0)],
)
def test_bounds_are_wider_for_bfloat16_alone(precisions, factor):
    assert golden_factor({"precision": precision} for precision in precisions) == factor


@pytest.mark.parametrize(("precision", "mean", "peak"), [row[:3] for row in TOLERANCES])
def test_what_the_tests_on_a_gpu_allow_a_precision_passes_a_probe(precision: str, mean: float, peak: float):
    """With as much again to spare."""
    allowed = (2 * mean / 255, 2 * peak / 255, HEALTH, golden_factor([{"precision": precision}]))
    assert judge_golden(*allowed).passed
