"""How many lines of somebody else's output are passed on: many at once, few in the long run. Reads no clock."""

from __future__ import annotations

LINES_AT_ONCE = 50  # lines that may come together before the rest is only counted
LINES_PER_SECOND = 5.0


class LineLimit:
    """A token bucket: LINES_AT_ONCE together, LINES_PER_SECOND in the long run. One thread only."""

    def __init__(self, now: float) -> None:
        self._tokens = float(LINES_AT_ONCE)
        self._at = now
        self._left_out = 0

    def allows(self, now: float) -> bool:
        self._tokens = min(LINES_AT_ONCE, self._tokens + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return False
        self._tokens -= 1
        return True

    def take_left_out(self) -> int:
        """Lines refused since the last call."""
        count, self._left_out = self._left_out, 0
        return count
