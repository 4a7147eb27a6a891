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
