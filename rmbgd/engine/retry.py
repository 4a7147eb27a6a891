"""POLICY: what an engine fault means for the images of the batch: halve it, isolate each, or reject one.

A fault says nothing about which image caused it. So every image of a failed batch is isolated: from then on it runs
alone, on the CPU fallback where there is one, because what ends one device's process may end the next one's.

An image is poison when `tries` faults count against it, ALONE of them at least with it alone on one device (the
fallback, if there is one). Every worker has passed its self-test before it gets an image, and the one that rejects the
image has passed it since, so no image is rejected for a device that is sick itself. If another batch failed on that
device in between, the device may be at fault: the count begins again, but RESTARTS times at most, so that an image ends
also where everything fails. (Two poison images disturb each other until then.) Shortage of memory blames no image while
the batch can be halved. (The field calls such an image a poison message.)

A process that was killed from outside is no fault of an image. But an image that needs more memory than there is brings
the kernel's OOM killer each time: after KILLS with it alone, and other images computed in between, it is rejected as
exhausts_memory. Where nothing else is computed, because no other image is there or because all are killed, kills within
BURST count as one: the self-test that each new worker passes then stands for the other images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rmbgd.errors import Reason

GROW_AFTER = 64  # batches computed at a limit that memory imposed, after which twice as many images are tried again
ALONE = 2  # faults with the image alone that it takes at least: one may always be an accident
RESTARTS = 3  # times that the count against an image begins again
KILLS = 3  # from outside, with the image alone
BURST = 60.0  # s in which kills with nothing computed in between count as one: something else is at work


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one image from the devices that it ran on. Times are monotonic seconds, numbers BadEnd's."""

    runs: int = 0  # it was given to a device so often
    faults: int = 0  # that count against it
    isolated: bool = False  # it has met a fault: it runs alone
    alone: Mapping[str, int] = field(default_factory=dict)  # device -> of these faults, those that it met alone there
    faulted: int = 0  # number of the last of these faults
    restarts: int = 0  # times that the count began again
    kills: int = 0  # from outside, with it alone, that count
    killed: int = 0  # number of the last of these kills
    killed_at: float = -math.inf  # its time
    detail: str = ""  # of the last fault or kill that it met alone
    put_back_at: float = -math.inf  # it waits again since then
    behind: float = -math.inf  # it lines up behind what came before then, when it failed alone


NEW = History()  # of an image that no device has seen yet


@dataclass(frozen=True, slots=True)
class BadEnd:
    """A batch has ended without answers. Numbers grow with every batch that ends, on any device."""

    device: str
    detail: str
    alone: bool  # one image
    now: float
    number: int
    passed: int = 0  # number of the last batch that this device computed before
    failed: int = 0  # number of the last one that failed there before; being killed from outside is no failure


def after_fault(history: History, end: BadEnd) -> History:
    """A worker was lost, or gave nonsense, with this image in its batch."""
    if history.faults and end.failed > history.faulted and history.restarts < RESTARTS:
        history = replace(history, faults=0, alone={}, restarts=history.restarts + 1)
    known = replace(_back(history, end), faults=history.faults + 1, faulted=end.number)
    if not end.alone:
        return known
    return replace(known, alone={**history.alone, end.device: history.alone.get(end.device, 0) + 1})


def after_not_finite(history: History, end: BadEnd) -> History:
    """The device computed the batch, but of this image no finite alpha: its numbers are too large for the device's
    type. That is the image's matter, and not the device's: the fallback computes in float32."""
    return after_fault(history, replace(end, alone=True))


def after_shortage(history: History, end: BadEnd) -> History:
    """The device had too little memory for the batch: half of it may pass. Alone, nothing is left to halve."""
    return after_fault(history, end) if end.alone else after_interruption(history, end)


def after_kill(history: History, end: BadEnd) -> History:
    """The process was killed from outside, with this image in its batch."""
    known = _back(history, end)
    if end.alone and (end.passed > history.killed or end.now - history.killed_at >= BURST):
        return replace(known, kills=history.kills + 1, killed=end.number, killed_at=end.now)
    return known


def after_interruption(history: History, end: BadEnd) -> History:
    """The device was taken away for a reason that no image can cause."""
    return replace(history, runs=history.runs + 1, put_back_at=end.now)


def _back(history: History, end: BadEnd) -> History:
    known = replace(history, runs=history.runs + 1, isolated=True, put_back_at=end.now)
    return replace(known, detail=end.detail, behind=end.now) if end.alone else known


def verdict(history: History, *, tries: int, fallback: str | None) -> Reason | None:
    """Why the image is rejected, if it is. `fallback`: the device of last resort, where one can be relied on."""
    alone = history.alone.get(fallback, 0) if fallback is not None else max(history.alone.values(), default=0)
    if history.faults >= tries and alone >= ALONE:
        return Reason.POISON
    return Reason.EXHAUSTS_MEMORY if history.kills >= KILLS else None


@dataclass(slots=True)
class MemoryLimit:
    """Images that fit into a device's memory at once: halved by a shortage, tried twice as large after a while."""

    images: int | None = None  # None: as many as the backend takes
    _batches: int = 0

    def halve(self, batch: int) -> None:
        self.images, self._batches = max(1, batch // 2), 0

    def passed(self) -> None:
        """A batch was computed."""
        if self.images is not None:
            self._batches += 1
            if self._batches >= GROW_AFTER:
                self.images, self._batches = 2 * self.images, 0

    def of(self, largest: int) -> int:
        return largest if self.images is None else min(largest, self.images)
