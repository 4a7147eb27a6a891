"""What other threads tell the intake's loop, and what wakes it. Notes only: the loop decides what follows.

Does not call anybody and holds its lock for the length of a note.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from rmbgd.beat import Beat
from rmbgd.jobs import Job


@dataclass(frozen=True, slots=True)
class Notes:
    """Everything that was told since the last look. `returns`: (job, why) of pictures that could not be judged."""

    returns: list[tuple[Job, str]]
    ended: list[int]
    rescan: bool


class Mailbox:
    """Written by any thread, read by the reconcile thread, except where a line says otherwise."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._awake = False  # guarded by _changed, like all below
        self._closing = False
        self._rescan = False
        self._paused: set[str] = set()
        self._returns: list[tuple[Job, str]] = []
        self._ended: deque[int] = deque()
        self._ended_total = 0

    # ------------------------------------------------------------------------------------------------ any thread's

    def wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def close(self) -> None:
        """The main thread's: claim nothing more."""
        with self._changed:
            self._closing = True
        self.wake()

    def rescan(self) -> None:
        with self._changed:
            self._rescan = True
        self.wake()

    def pause(self, reason: str) -> None:
        with self._changed:
            self._paused.add(reason)

    def resume(self, reason: str) -> None:
        with self._changed:
            self._paused.discard(reason)
        self.wake()

    def give_back(self, job: Job, why: str) -> None:
        with self._changed:
            self._returns.append((job, why))
            self._ended_total += 1
        self.wake()

    def ended(self, job: Job) -> None:
        with self._changed:
            self._ended.append(job.job_id)
            self._ended_total += 1
        self.wake()

    # ------------------------------------------------------------------------------------------------ the loop's

    @property
    def closing(self) -> bool:
        with self._changed:
            return self._closing

    @property
    def ended_total(self) -> int:
        with self._changed:
            return self._ended_total

    def take(self) -> Notes:
        """Everything since the last call."""
        with self._changed:
            notes = Notes(self._returns, list(self._ended), self._rescan)
            self._returns, self._ended, self._rescan = [], deque(), False
            return notes

    def paused(self) -> dict[str, str]:
        """Why nothing is claimed, by folder: reasons are written "kind:folder"."""
        with self._changed:
            return {reason.partition(":")[2]: reason.partition(":")[0] for reason in sorted(self._paused)}

    def wait(self, seconds: float, beat: Beat) -> None:
        """Until somebody wakes us, or that long; not at all when somebody has."""
        with self._changed:
            if not self._awake and seconds > 0:
                beat.waiting()
                self._changed.wait(seconds)
            self._awake = False
        beat.working()
