"""POLICY: whether a device passed its self-test, from what a fresh process measured on it.

What was not measured counts as failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import HealthSettings
from rmbgd.engine.health_types import ProbeReport


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failed` is empty when the device passed, else the name of the first step that did not."""

    failed: str
    detail: str = ""
    reading: float | None = None
    threshold: float | None = None

    @property
    def passed(self) -> bool:
        return not self.failed


PASSED = Verdict("")

GOLDEN_FACTORS = {"bfloat16": 2.0}
"""Times health.golden_mean and golden_peak, by precision. bfloat16 has 8 bits: a healthy device may come near bounds
that every other precision keeps easily."""


def golden_factor(models: Iterable[Mapping[str, object]]) -> float:
    """Of the least exact of some models, from their facts."""
    return max((GOLDEN_FACTORS.get(str(facts.get("precision")), 1.0) for facts in models), default=1.0)


def judge(report: ProbeReport, health: HealthSettings) -> Verdict:
    """The first step that failed, in the order in which they are taken. A number that is not finite fails its step."""
    if not report.fresh_process:
        return Verdict("process", "the process has served before; only a fresh one can clear a device")
    if report.enumerated is not True:
        return Verdict("enumerate", report.error or "the device did not answer")
    if report.model_intact is not True:
        return Verdict("model", report.error or "the loaded weights are not what was expected")
    if report.canary_passes is None or report.canary_passes < health.probe_passes:
        return Verdict("canary", report.error or "not finished", report.canary_passes, health.probe_passes)
    if report.canary_bad != 0:
        return Verdict("canary", "bad blocks", report.canary_bad, 0)
    if not (golden := _golden_of(report, health)).passed:
        return replace(golden, detail=report.error or golden.detail)
    if not _within(report.test_seconds, health.probe_timeout):
        return Verdict("timeout", report.error or "it took too long", report.test_seconds, health.probe_timeout)
    if not _within(report.seconds, float("inf")):
        return Verdict("latency", report.error or "not measured")
    if report.baseline is not None and not _within(report.seconds, health.probe_slowness * report.baseline):
        return Verdict("latency", "slower than it was", report.seconds, health.probe_slowness * report.baseline)
    return Verdict("error", report.error) if report.error else PASSED


def _golden_of(report: ProbeReport, health: HealthSettings) -> Verdict:
    return judge_golden(report.golden_mean, report.golden_peak, health, report.golden_factor)


def judge_golden(mean: float | None, peak: float | None, health: HealthSettings, factor: float = 1.0) -> Verdict:
    """Whether the golden image came out as stored: the same two bounds as in a probe, times `golden_factor`."""
    if not _within(mean, bound := factor * health.golden_mean):
        return Verdict("golden", "mean difference", mean, bound)
    if not _within(peak, bound := factor * health.golden_peak):
        return Verdict("golden", "largest difference", peak, bound)
    return PASSED


def _within(value: float | None, bound: float) -> bool:
    return value is not None and 0 <= value <= bound and value < float("inf")


def golden_difference(
    alpha: NDArray[np.floating], stored: NDArray[np.floating], outliers: float
) -> tuple[float, float]:
    """(mean, peak) difference of two alphas, float [H, W] in 0..1; `peak` leaves out the worst share `outliers`.

    Another shape, or anything that is not finite, gives infinities: an answer that cannot be is never close.
    """
    if alpha.shape != stored.shape or not np.isfinite(alpha).all():
        return float("inf"), float("inf")
    difference = np.abs(alpha.astype(np.float64) - stored.astype(np.float64)).ravel()
    kept = max(difference.size - int(outliers * difference.size), 1)
    return float(difference.mean()), float(np.partition(difference, kept - 1)[kept - 1])
