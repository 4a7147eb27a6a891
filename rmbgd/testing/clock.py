"""A clock that is moved by hand, for tests and for simulated days."""

from __future__ import annotations

from datetime import UTC, datetime


class FakeClock:
    """Stands still until it is moved."""

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
