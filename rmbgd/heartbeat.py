"""Signs of life of one loop: it works, or it waits for something that is allowed to take long.

A leaf: knows neither what the loop does nor who judges. The health monitor implements it; channels, the arena and the
engine report through it whenever they block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from rmbgd.clock import Clock


class Beat(Protocol):
    """Belongs to one thread, which alone calls it; cheap enough for every item."""

    def waiting(self) -> None:
        """About to block on another part of the service; however long that takes, this loop is not hung."""
        ...

    def working(self) -> None:
        """Progress, now. A loop that neither waits nor says this for long is hung."""
        ...


class NoBeat:
    """For threads that nobody judges."""

    def waiting(self) -> None:
        pass

    def working(self) -> None:
        pass


# --- Who is alive: each thread notes when it waits and when it works, and a pure function says who has hung.


@dataclass(frozen=True, slots=True)
class Reading:
    """What a beat said last, and when (monotonic seconds)."""

    name: str
    waiting: bool
    since: float


class ThreadBeat:
    """The pulse of one thread, which alone writes it."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._last = (True, clock.monotonic())  # (waiting, since); replaced whole, so a reader never sees half

    def waiting(self) -> None:
        """About to wait for others: may take for ever."""
        self._last = (True, self._clock.monotonic())

    def working(self) -> None:
        """A step begins: must be over, or be followed by another, before `stall_after`."""
        self._last = (False, self._clock.monotonic())

    def reading(self) -> Reading:
        waiting, since = self._last
        return Reading(self.name, waiting, since)


class Beats:
    """Every beat of the process. Threads come while the service is built; nobody leaves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beats: list[ThreadBeat] = []  # appended to while building; list.append is atomic

    def new(self, name: str) -> ThreadBeat:
        beat = ThreadBeat(name, self._clock)
        self._beats.append(beat)
        return beat

    def readings(self) -> list[Reading]:
        return [beat.reading() for beat in list(self._beats)]

    def stalled(self, now: float, stall_after: float, *, awake_since: float = -math.inf) -> list[str]:
        return stalled(self.readings(), now, stall_after, awake_since=awake_since)


def stalled(
    readings: Iterable[Reading], now: float, stall_after: float, *, awake_since: float = -math.inf
) -> list[str]:
    """Names of those who have worked on one step for longer than `stall_after` seconds.

    `awake_since` is when the whole process last came back from standing still (SIGSTOP, a frozen container, a suspended
    machine): time before it is nobody's fault.
    """
    return [
        reading.name
        for reading in readings
        if not reading.waiting and now - max(reading.since, awake_since) > stall_after
    ]
