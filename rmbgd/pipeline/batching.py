"""POLICY: which of the waiting images a device takes as its next batch.

The busy device is the timer: while it computes, images gather, and when it is free whatever waits goes, up to the
largest size that is allowed. A size is used only exactly full (5 go as 4, then 1): an empty place costs as much as an
image. Realtime images go first and alone, suspects alone, all others in the order in which they came, whatever
folder they are from: a folder that drops thousands delays the others by what was there before them, and no more.

A device takes images only while it is well. The CPU fallback takes them while no GPU is well, and always those that
have met a fault (retry.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rmbgd.engine.types import DeviceView

GAIN = 0.02  # a larger batch must save at least this share of the time per image, or it only makes each of them later
HEAD_START = 60.0
"""Seconds by which a realtime image counts as older than it is. It overtakes everything in a queue that keeps up, and
an image that has waited for longer is not overtaken any more: a flood of realtime images delays the others, but does
not starve them."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What matters of one waiting image.

    model     name of the model it asks for; a batch has one
    realtime  its folder does not want to wait for company
    suspect   the service or a worker went down with it before: it goes alone
    since     when it became ready, seconds on the clock that `now` is read from
    latency   seconds that it should take at most, as its folder wants; infinite where it does not matter
    isolated  it has met a fault of a worker in this run of the service
    """

    model: str
    realtime: bool
    suspect: bool
    since: float
    latency: float
    isolated: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the waiting images are for one device now."""

    ordinary: bool
    isolated: bool


def share(device: DeviceView, devices: Sequence[DeviceView], *, stopping: bool) -> Share:
    """`devices`: all of them, `device` included. When the service stops, a device that takes none takes those that no
    other will, to give them back."""
    gpus = [each.device for each in devices if each.usable and not each.is_fallback]
    fallbacks = [each.device for each in devices if each.usable and each.is_fallback]
    relied_on = any(each.is_fallback and not each.missing for each in devices)
    ordinary, isolated = gpus or fallbacks, fallbacks if relied_on else gpus
    if device.usable:
        return Share(device.device in ordinary, device.device in isolated)
    return Share(stopping and not ordinary, stopping and not isolated)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may be.

    sizes    allowed by the engine and the settings, ascending, 1 among them
    wait     seconds that the oldest image may wait for company; 0 is hardly ever worse
    seconds  measured seconds per batch, by size, where measured
    """

    sizes: tuple[int, ...]
    wait: float = 0.0
    seconds: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 1 not in self.sizes or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"batch sizes {self.sizes} must be ascending and begin with 1")


def choose(waiting: Sequence[Waiting], limits: Limits, now: float, share: Share) -> list[int] | float | None:
    """Indices of `waiting` (at least one) that go now, the moment to ask again, or None when none is for this device.

    An infinite `now` means that nothing more will come.
    """
    own = [index for index, image in enumerate(waiting) if (share.isolated if image.isolated else share.ordinary)]
    if not own:
        return None
    head = min(own, key=lambda index: waiting[index].since - HEAD_START * waiting[index].realtime)
    first = waiting[head]
    if first.realtime or first.suspect:
        return [head]
    alike = [
        index
        for index in own
        if (image := waiting[index]).model == first.model and not image.suspect and not image.realtime
    ]
    targets = [waiting[index].latency for index in alike]
    size = batch_size(targets, limits)
    deadline = first.since + limits.wait
    if now < deadline and size < batch_size(targets + [min(targets)] * limits.sizes[-1], limits):
        return deadline
    return alike[:size]


def batch_size(targets: Sequence[float], limits: Limits) -> int:
    """The size to use when images with these latencies wait, in order: the largest full, in time, and worth it."""
    best, seconds = 1, limits.seconds
    for size in limits.sizes:
        # An image may just miss one batch and be in the next, so two batches must fit into what it should take.
        if size > len(targets) or (size > 1 and 2 * _expected(size, seconds) > min(targets[:size])):
            break
        measured = size in seconds and best in seconds
        if not measured or seconds[size] / size <= (1 - GAIN) * seconds[best] / best:
            best = size
    return best


def table(limits: Limits, latency: float) -> list[int]:
    """How many go when 1, 2, 3 ... wait, of a folder with this latency; for the log."""
    return [batch_size([latency] * count, limits) for count in range(1, limits.sizes[-1] + 1)]


def _expected(size: int, seconds: Mapping[int, float]) -> float:
    """What a batch takes; where not measured, no more than a larger one, nor than smaller ones in its place."""
    if size in seconds:
        return seconds[size]
    larger = [taken for measured, taken in seconds.items() if measured > size]
    smaller = [taken * size / measured for measured, taken in seconds.items() if measured < size]
    return min(larger + smaller, default=0.0)
