"""POLICY: what one reading says against a device. The unknown is never good; what a board cannot know is left out.

Does not remember anything and decides nothing: failover.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rmbgd.config.load import HealthSettings
from rmbgd.engine.health_types import Check
from rmbgd.engine.sensors.base import OUT_OF_REACH, Problem, Reading


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a word for it, what was read, and the limit it broke."""

    reason: str
    reading: float | str | None = None
    threshold: float | None = None


def lost(reading: Reading, health: HealthSettings) -> Finding | None:
    """The device is out of reach: off the bus, without a driver, or its firmware is dead."""
    if reading.problem in OUT_OF_REACH:
        return Finding(str(reading.problem), reading.detail or None)
    for xid in reading.xids:
        if xid in health.xid_lost:
            return Finding("xid", xid)
    return None


def sick(reading: Reading, uncorrected: int | None, health: HealthSettings) -> Finding | None:
    """The device says itself that it is damaged. `uncorrected`: the ECC count when last seen, None when never."""
    for xid in reading.xids:
        if xid in health.xid_quarantine:
            return Finding("xid", xid)
    count = reading.ecc_uncorrected
    if count is not None and uncorrected is not None and count > uncorrected:
        return Finding("ecc_uncorrected", count, uncorrected)
    if reading.remap_failed:
        return Finding("row_remap_failed")
    return None


def hot(reading: Reading, health: HealthSettings) -> Finding | None:
    if reading.temperature is not None and reading.temperature > health.hot:
        return Finding("temperature", reading.temperature, health.hot)
    return None


def bad(check: Check, health: HealthSettings) -> Finding | None:
    """The check cannot be called good. One alone proves nothing."""
    reading = check.reading
    if reading.problem is not None:
        return Finding(str(reading.problem), reading.detail or None)
    if reading.temperature is None and (health.require_temperature or reading.lacks("temperature")):
        return Finding("no_temperature")
    if reading.temperature is not None and not math.isfinite(reading.temperature):
        return Finding("no_temperature")
    if asked := operator_action(reading):
        return Finding("recovery_pending", asked)
    if not check.heartbeat:
        return Finding("no_heartbeat")
    return None


def operator_action(reading: Reading | None) -> str:
    """What only a person can do for the device; empty when nothing, or when the board cannot tell."""
    if reading is None:
        return ""
    if reading.remap_failed:
        return "replace_gpu"
    if reading.recovery not in (None, "none"):
        return str(reading.recovery)
    return "reboot" if reading.problem is Problem.DRIVER_MISMATCH else ""
