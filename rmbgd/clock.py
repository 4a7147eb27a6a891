"""Clocks that are passed in, so that tests can move them; and exponential backoff."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds on a clock that never steps; only differences mean anything."""

    def wall(self) -> datetime:
        """The wall clock in UTC: for stamps that people read, never for durations."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)


def backoff(failures: int, first: float, maximum: float) -> float:
    """Seconds to wait after so many failures in a row: none, then `first`, then doubled each time up to `maximum`."""
    if failures < 1:
        return 0.0
    return min(first * 2.0 ** min(failures - 1, 64), maximum)
