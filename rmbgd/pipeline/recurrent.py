"""Hands frames of recurrent networks to devices one after another, and those of a sequence to one device."""

from __future__ import annotations

from collections.abc import Callable

from rmbgd.engine.types import DeviceView, FrameLink
from rmbgd.sequence.turns import OrderGate, ordered
from rmbgd.store.records import Job

SEQUENCES = 4096  # whose device is remembered


class RecurrentFrames:
    """Shared by the threads of all devices; `may_take` is called with the lock of the queue of frames."""

    def __init__(self, gate: OrderGate, on_open: Callable[[], None]) -> None:
        """`on_open`: a frame more may be taken."""
        self._gate, self._on_open = gate, on_open
        self._devices: dict[tuple[str, str], str] = {}  # sequence -> device of its last frame; single operations

    def may_take(self, job: Job, device: str, views: tuple[DeviceView, ...]) -> bool:
        """Has the frame before it been computed, and by this device, unless that one takes no images now?"""
        if (turn := ordered(job)) is None:
            return True
        last = self._devices.get((job.folder, turn.sequence))
        elsewhere = last is not None and last != device and any(view.usable and view.device == last for view in views)
        return not elsewhere and self._gate.is_open(job)

    def computed(self, job: Job, device: str) -> None:
        if (turn := ordered(job)) is None:
            return
        if len(self._devices) >= SEQUENCES:
            self._devices.clear()
        self._devices[job.folder, turn.sequence] = device
        self._gate.let_pass(job)
        self._on_open()

    @staticmethod
    def link(job: Job) -> FrameLink | None:
        """What a recurrent network needs to know of a frame."""
        turn = ordered(job)
        return None if turn is None else FrameLink(f"{job.folder}/{turn.sequence}", turn.ticket, turn.previous)
