"""Keeps frames of one sequence in order while several threads work on them: gates that they pass one after another.

A frame passes each gate once, however it ends, and never before the frame before it. Sequences do not wait for each
other, and nothing else waits for a sequence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from rmbgd.heartbeat import Heartbeat
from rmbgd.store.records import FrameTurn, Job


class OrderGate:
    """One point that frames pass in order. Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passed: dict[tuple[str, str], int] = {}  # sequence -> ticket that passed last; guarded by _changed

    def is_open(self, job: Job) -> bool:
        """Has the frame before this one passed?"""
        turn = ordered(job)
        return turn is None or self._passed.get((job.folder, turn.sequence), 0) >= turn.previous

    def wait(self, job: Job, heartbeat: Heartbeat) -> None:
        """Until it is open. To be called only where the frame before is certain to pass."""
        with self._changed:
            while not self.is_open(job):
                heartbeat.waiting()
                self._changed.wait()
        heartbeat.working()

    def turn(self, job: Job, heartbeat: Heartbeat) -> Turn:
        """A block in which this frame passes, unless it is left by an error: then it may try again."""
        return Turn(self, job, heartbeat)

    def let_pass(self, job: Job) -> None:
        """It has passed; more than once is the same as once."""
        if (turn := ordered(job)) is None:
            return
        key = job.folder, turn.sequence
        with self._changed:
            self._passed[key] = max(turn.ticket, self._passed.get(key, 0))
            self._changed.notify_all()

    def forget(self, folder: str, sequence: str) -> None:
        with self._changed:
            self._passed.pop((folder, sequence), None)


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one frame at one gate; may be entered again."""

    gate: OrderGate
    job: Job
    heartbeat: Heartbeat

    def __enter__(self) -> None:
        self.gate.wait(self.job, self.heartbeat)

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        if kind is None:
            self.gate.let_pass(self.job)


class Turns:
    """The gates of a pipeline.

    network  a recurrent network has computed it
    memory   a decoder gets memory for a frame: a later one that took the last of it would keep it for ever
    alpha    its matte follows from the one before it
    names    its files get their names
    deliver  its event is emitted
    """

    def __init__(self) -> None:
        self.network, self.memory, self.alpha = OrderGate(), OrderGate(), OrderGate()
        self.names, self.deliver = OrderGate(), OrderGate()
        self._listeners: list[Callable[[], None]] = []  # complete before the first frame

    def listen(self, on_open: Callable[[], None]) -> None:
        """Call this whenever a frame more may be finished."""
        self._listeners.append(on_open)

    def alpha_made(self, job: Job) -> None:
        """Or it gets none."""
        if ordered(job) is None or not self.alpha.is_open(job):
            return
        self.alpha.let_pass(job)
        for listener in self._listeners:
            listener()

    def ended(self, job: Job, heartbeat: Heartbeat) -> None:
        """However it ended: those behind it need not wait for it."""
        self.memory.let_pass(job)
        self.network.let_pass(job)  # all before it have ended, or have their mattes
        self.alpha_made(job)
        for gate in (self.names, self.deliver):
            with gate.turn(job, heartbeat):
                pass

    def forget(self, folder: str, sequence: str) -> None:
        """Nothing of it is in the pipeline."""
        for gate in (self.network, self.memory, self.alpha, self.names, self.deliver):
            gate.forget(folder, sequence)


def ordered(job: Job) -> FrameTurn | None:
    """The turn of a frame that has its place in the order."""
    return job.turn if job.turn is not None and job.turn.ticket else None
