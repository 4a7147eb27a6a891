"""Time, as a value that is passed in: durations come from a clock that never steps, stamps from the wall clock.

Does not sleep and knows no time zone but UTC.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds on a clock that never steps; only differences mean anything."""
        ...

    def wall(self) -> datetime:
        """The wall clock in UTC: for stamps that people read, never for durations."""
        ...


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)


class FakeClock:
    """A clock that moves only when told. For tests and for simulated days."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._epoch = datetime(2026, 1, 1, tzinfo=UTC).timestamp() - start

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self._epoch + self._now, UTC)

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def step_wall(self, seconds: float) -> None:
        """Move the wall clock alone, as NTP or an operator does."""
        self._epoch += seconds
