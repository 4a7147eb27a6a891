"""Heartbeat of one thread: it works, or it waits for something that may take long. Who has hung follows from that."""

from __future__ import annotations

import math
from typing import NamedTuple

from rmbgd.clock import Clock


class Pulse(NamedTuple):
    """The last sign of one heartbeat, and when it was given (monotonic seconds)."""

    waiting: bool
    since: float


class Heartbeat:
    """Belongs to one thread, which alone writes it; any thread may read it. Cheap enough for every item."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self.last = Pulse(waiting=True, since=clock.monotonic())  # replaced whole, so a reader never sees half

    def waiting(self) -> None:
        """About to block on another part of the service: however long that takes, this thread is not hung."""
        self.last = Pulse(waiting=True, since=self._clock.monotonic())

    def working(self) -> None:
        """A step begins: it must end, or be followed by another, before `stall_after`."""
        self.last = Pulse(waiting=False, since=self._clock.monotonic())


class NullHeartbeat(Heartbeat):
    """For threads that the watchdog does not watch."""

    def __init__(self) -> None:
        pass

    def waiting(self) -> None:
        pass

    def working(self) -> None:
        pass


class Heartbeats:
    """Every heartbeat of the process. Threads are added while the service is built; none is removed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heartbeats: list[Heartbeat] = []  # appended to while building; list.append is atomic

    def new(self, name: str) -> Heartbeat:
        heartbeat = Heartbeat(name, self._clock)
        self._heartbeats.append(heartbeat)
        return heartbeat

    def stalled(self, now: float, stall_after: float, *, awake_since: float = -math.inf) -> list[str]:
        """Names of the threads that have worked on one step for longer than `stall_after` seconds.

        `awake_since` is when the whole process last resumed after standing still (SIGSTOP, a frozen container, a
        suspended machine): time before it counts for nothing.
        """
        pulses = [(heartbeat.name, heartbeat.last) for heartbeat in self._heartbeats]
        return [
            name for name, (waiting, since) in pulses if not waiting and now - max(since, awake_since) > stall_after
        ]
