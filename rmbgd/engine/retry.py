"""POLICY: what an engine fault means for the images of the batch: halve it, isolate each, or reject one as poison.

A fault says nothing about which image caused it. So every image of a failed batch is isolated: from then on it runs
alone, on the CPU fallback where there is one, because what ends one device's process may end the next one's. An image
is poison when it was part of `tries` faults, the last of them alone and on the fallback, if there is one; and it is
rejected by a worker that has passed its self-test since. So the fault in company counts, which saves a process, and no
image is rejected because of a device that is sick itself. Shortage of memory blames no image while the batch can be
halved. (The field calls such an image a poison message.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GROW_AFTER = 64  # batches computed at a limit that memory imposed, after which twice as many images are tried again


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one image from the devices that it ran on. Times are monotonic seconds."""

    runs: int = 0  # it was given to a device so often
    faults: int = 0  # it was part of
    isolated: bool = False  # it has met a fault: it runs alone
    failed_alone_on: frozenset[str] = frozenset()  # devices
    detail: str = ""  # of the last fault that it met alone
    put_back_at: float = -math.inf  # it waits again since then
    behind: float = -math.inf  # it lines up behind what came before then, when it failed alone


NEW = History()  # of an image that no device has seen yet


def after_fault(history: History, *, device: str, detail: str, alone: bool, now: float) -> History:
    """A worker was lost, or gave nonsense, with this image in its batch."""
    known = replace(history, runs=history.runs + 1, faults=history.faults + 1, isolated=True, put_back_at=now)
    if not alone:
        return known
    return replace(known, failed_alone_on=history.failed_alone_on | {device}, detail=detail, behind=now)


def after_shortage(history: History, *, device: str, detail: str, alone: bool, now: float) -> History:
    """The device had too little memory for the batch: half of it may pass. Alone, nothing is left to halve."""
    if alone:
        return after_fault(history, device=device, detail=detail, alone=True, now=now)
    return after_interruption(history, now=now)


def after_interruption(history: History, *, now: float) -> History:
    """The device was taken away for a reason that no image can cause."""
    return replace(history, runs=history.runs + 1, put_back_at=now)


def is_poison(history: History, *, tries: int, fallback: str | None) -> bool:
    """`fallback`: the device of last resort, where there is one that can be relied on."""
    last = {fallback} if fallback is not None else history.failed_alone_on
    return history.faults >= tries and bool(last & history.failed_alone_on)


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

    def lift(self) -> None:
        """A fresh process: what was measured in another says nothing."""
        self.images = None

    def of(self, largest: int) -> int:
        return largest if self.images is None else min(largest, self.images)
