"""POLICY: how many leases a worker holds, which of them it extends, when an image is run alone, and what still waits.

A lease is extended only while its image moves: a device that hangs loses its leases, and another worker gets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rmbgd.pipeline.items import STAGES

LEASED = "leased"
ORDER = (LEASED, *STAGES, "ended")
ATTEMPTS_ALONE = 2
"""Times that an image may end its process while it runs alone, before it is a dead letter."""
ATTEMPTS_OF_UNITS = 5
"""Times that a film or a sequence may be in work when its process ends: it takes too long to let nothing run beside."""


@dataclass(frozen=True, slots=True)
class LeaseProgress:
    """Of one lease, in seconds of a monotonic clock. `stage`: the last that its image went on to, at `moved_at`.

    is_unit  it is a film or a sequence, whose frames move
    """

    leased_at: float
    stage: str
    moved_at: float
    is_unit: bool = False


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """lease: until it expires unless it is extended; maximum: however often it is. Seconds."""

    lease: float
    maximum: float

    @property
    def interval(self) -> float:
        """Between two looks at leases: one may be late, or lost, and the next still comes in time."""
        return self.lease / 3


def may_extend(lease: LeaseProgress, entered: Mapping[str, float], now: float, times: LeaseTimes) -> bool:
    """Does its image move, or the line in which it waits?

    entered  when an image last went on to each stage. What enters a later stage leaves room behind it.
    """
    if lease.is_unit:  # it may take hours, and to read or to store a film takes minutes
        return now - lease.moved_at <= times.maximum
    if now - lease.leased_at > times.maximum:
        return False
    later = ORDER[ORDER.index(lease.stage) + 1 :]
    last = max(lease.moved_at, *(entered.get(stage, lease.moved_at) for stage in later))
    return now - last <= times.lease


class Window:
    """How many leases a worker holds at once: additive increase, multiplicative decrease (Chiu and Jain, 1989).

    It grows while images end soon after they were leased, and shrinks when they do not: where the GPU is away, images
    stay longer, so that other workers get them. Belongs to one thread.
    """

    def __init__(self, capacity: int, times: LeaseTimes) -> None:
        self._capacity, self._soon = capacity, times.lease / 10
        self.size = float(min(START, capacity))

    def ended(self, seconds: float) -> None:
        """An image ended so long after it was leased."""
        if seconds <= self._soon:
            self.size = min(self.size + 1, float(self._capacity))
        elif seconds > 2 * self._soon:
            self.size = max(1.0, self.size * SHRINKS)


START = 4  # leases of a worker that has not ended any image yet
SHRINKS = 0.9  # a factor for each image that stayed too long; a whole batch of them comes at once


class WaitingMessages:
    """How many messages wait at each place, a (stream, consumer), as the broker told in the last TOLD_FOR seconds.

    What it told longer ago is forgotten: a worker that leases nothing, or not from there, knows nothing of it. Belongs
    to one thread.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[int, float]] = {}

    def told(self, counts: Mapping[tuple[str, str], int], now: float) -> None:
        self._told.update((place, (count, now)) for place, count in counts.items())

    def known(self, now: float) -> dict[tuple[str, str], int]:
        return {place: count for place, (count, at) in self._told.items() if now - at < TOLD_FOR}


TOLD_FOR = 60.0  # s


def runs_alone(deliveries: int, given_back_at: int | None) -> bool:
    """Is it a suspect: did the last worker that had it neither end it nor give it back?

    deliveries     how often it was delivered, this time included
    given_back_at  the delivery after which a worker gave it back in good order, if one did
    """
    return deliveries > 1 and given_back_at != deliveries - 1
