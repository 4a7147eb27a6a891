"""The mailbox of an intake thread: what other threads report to it, pauses, and what wakes it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from queue import Empty

from rmbgd.heartbeat import Heartbeat
from rmbgd.intake.source import IntakeQuestion
from rmbgd.store.records import Job


@dataclass(slots=True)
class Notes:
    """What other threads reported. `returns`: (job, why) of images that could not be judged."""

    returns: list[tuple[Job, str]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    questions: list[IntakeQuestion] = field(default_factory=list)
    rescan: bool = False


class Inbox:
    """What other threads report to the intake's thread, and what wakes it. Public methods may come from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._awake = False  # guarded by _changed, like all below; single values are read without it
        self._closing = False
        self._paused: set[str] = set()
        self._by_operator: frozenset[str] = frozenset()  # folders, "" for every one; replaced whole
        self._notes = Notes()
        self._ended_total = 0

    def wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def close(self) -> None:
        """Claim nothing more; `run` returns soon."""
        self._closing = True
        self.wake()

    def rescan(self) -> None:
        with self._changed:
            self._notes.rescan = True
        self.wake()

    def pause(self, reason: str) -> None:
        """Claim nothing of the folder that `reason` names after its colon."""
        with self._changed:
            self._paused.add(reason)

    def resume(self, reason: str) -> None:
        with self._changed:
            self._paused.discard(reason)
        self.wake()

    def pause_by_operator(self, folders: Collection[str]) -> None:
        """Claim nothing of these folders, and of all others again; "" means every one."""
        self._by_operator = frozenset(folders)
        self.wake()

    def ask(self, question: IntakeQuestion, timeout: float) -> list[dict[str, object]] | None:
        """The answer of the intake's thread; None when it is busy with something for so many seconds."""
        with self._changed:
            self._notes.questions.append(question)
        self.wake()
        try:
            return question.answer.get(timeout=timeout)
        except Empty:
            with self._changed, contextlib.suppress(ValueError):  # nobody waits for it any more
                self._notes.questions.remove(question)
            return None

    def give_back(self, job: Job, why: str, detail: str) -> None:  # noqa: ARG002 - the event has the detail
        """An image that could not be judged: back to its folder."""
        with self._changed:
            self._notes.returns.append((job, why))
            self._ended_total += 1
        self.wake()

    def moved(self, job: int, stage: str) -> None:
        """A claimed file is ours however long it takes."""

    def ended(self, job: Job) -> None:
        """Done or refused: another version of the same path may be claimed now."""
        with self._changed:
            self._notes.ended.append(job.job_id)
            self._ended_total += 1
        self.wake()

    def _take_notes(self) -> Notes:
        with self._changed:
            notes, self._notes = self._notes, Notes()
            return notes

    def _paused_folders(self) -> dict[str, str]:
        """Why nothing is claimed, by folder: reasons are written "kind:folder"."""
        with self._changed:
            return {reason.partition(":")[2]: reason.partition(":")[0] for reason in sorted(self._paused)}

    def _sleep(self, seconds: float, heartbeat: Heartbeat) -> None:
        """Until `wake`, or that long; not at all when it was called since the last sleep."""
        with self._changed:
            if not self._awake and seconds > 0:
                heartbeat.waiting()
                self._changed.wait(seconds)
            self._awake = False
        heartbeat.working()
