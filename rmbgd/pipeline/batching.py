"""Policy: which of the waiting pictures go to the engine now. A pure function of what waits, the limits and the time.

Does not take anything from a channel, wait, or measure: the segment loop does, with this as its `choose`.

The busy device is the timer: while it computes, pictures gather, and when it is free whatever waits goes, up to the
largest size that is allowed. A size is used only exactly full (5 go as 4, then 1): an empty place costs as much as a
picture. Realtime pictures go first and alone, suspects alone, all others in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GAIN = 0.02
"""A larger batch must save at least this share of the time per picture, or it only makes each of them later."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What matters of one waiting picture.

    model     name of the model it asks for; a batch has one
    realtime  its folder does not want to wait for company
    suspect   the service or an engine went down with it before: nobody else should suffer again
    since     when it became ready, seconds on the clock that `now` is read from
    """

    model: str
    realtime: bool
    suspect: bool
    since: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may be.

    sizes    allowed by the engine and the settings, ascending, 1 among them
    wait     seconds that the oldest picture may wait for company; 0 is hardly ever worse
    seconds  measured seconds per batch, by size, where measured
    latency  target in seconds for one picture, or None: a picture may just miss one batch and be in the next, so two
             batches must fit into it
    """

    sizes: tuple[int, ...]
    wait: float = 0.0
    seconds: Mapping[int, float] = field(default_factory=dict)
    latency: float | None = None

    def __post_init__(self) -> None:
        if 1 not in self.sizes or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"batch sizes {self.sizes} must be ascending and begin with 1")


def choose(waiting: Sequence[Waiting], limits: Limits, now: float) -> list[int] | float:
    """Indices of `waiting` (oldest first, at least one) that go now, or the moment to ask again.

    An infinite `now` means that nothing more will come.
    """
    for index, picture in enumerate(waiting):
        if picture.realtime:
            return [index]
    first = waiting[0]
    if first.suspect:
        return [0]
    alike = [i for i, picture in enumerate(waiting) if picture.model == first.model and not picture.suspect]
    size = batch_size(len(alike), limits)
    deadline = first.since + limits.wait
    if now < deadline and size < batch_size(limits.sizes[-1], limits):
        return deadline
    return alike[:size]


def batch_size(count: int, limits: Limits) -> int:
    """The size to use when `count` pictures are there: the largest that is full, in time, and worth it."""
    best = 1
    for size in limits.sizes:
        if size > count or _too_slow(size, limits):
            break
        if _worth_it(size, best, limits):
            best = size
    return best


def table(limits: Limits) -> dict[int, int]:
    """How many go, by how many wait; for the log."""
    return {count: batch_size(count, limits) for count in range(1, limits.sizes[-1] + 1)}


def _too_slow(size: int, limits: Limits) -> bool:
    if limits.latency is None or size == 1:
        return False
    known = [seconds for measured, seconds in limits.seconds.items() if measured <= size]
    return 2 * max(known, default=0.0) > limits.latency


def _worth_it(size: int, smaller: int, limits: Limits) -> bool:
    if size not in limits.seconds or smaller not in limits.seconds:
        return True
    return limits.seconds[size] / size <= (1 - GAIN) * limits.seconds[smaller] / smaller
