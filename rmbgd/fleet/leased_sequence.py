"""A leased sequence of frames: which of its frames goes next, in which turn, and when it is over.

All of its frames are there when it is announced, so none is waited for. What a worker left that died is gone on with:
frames with a result are passed over, those behind the state of the temporal filter follow from it.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from rmbgd.clock import Clock
from rmbgd.events import Emit
from rmbgd.fleet.message import Announcement
from rmbgd.fleet.root import RootAnswer, RootInput, SequenceFrame, told_again
from rmbgd.fleet.sequence_root import SequenceRoot, is_of_sequence, sequence_of
from rmbgd.sequence.order import DOUBLED, LATE, NO_NUMBER
from rmbgd.sequence.sequences import Sequences
from rmbgd.store.outbox import job_keys
from rmbgd.store.records import FrameTurn, Job, Leased

Ending = Literal["", "complete", "answered", "gone", "stopped"]
"""How it has ended: not yet; each frame has its answer, or had it before; none is there; it goes back to the queue."""


class LeasedSequence:
    """The reconcile thread's.

    tickets    numbers of turns, unique in the process
    recovered  a worker died with it: what it published may lack its events
    gives_up   a frame that cannot be read is to be refused: workers have tried for long enough
    """

    def __init__(
        self,
        announced: Announcement,
        lease: str,
        found: RootInput,
        root: SequenceRoot,
        sequences: Sequences,
        tickets: Iterator[int],
        clock: Clock,
        emit: Emit,
        *,
        recovered: bool = False,
        gives_up: bool = False,
    ) -> None:
        self.root, self.announced = root, announced
        self._lease, self._input, self._sequences, self._tickets = lease, str(root.folder.input), sequences, tickets
        self._clock, self._emit, self._recovered, self._gives_up = clock, emit, recovered, gives_up
        self._is_still = not is_of_sequence(announced.fingerprint)
        self.name = announced.key if self._is_still else sequence_of(announced.key) or ""
        self._left = deque(found.frames)
        self._in_work: dict[int, Job] = {}
        self._unreadable: deque[Job] = deque()
        self._began = clock.monotonic()
        self._ticket = 0
        self._passed: int | None = None  # number of the frame that came last in its order
        self._missing = self._apart = 0
        self._sent = 0
        self._dropped = False  # a frame was not what was announced when it was read
        self.stopped = ""  # why no more of its frames are to be sent
        kept = sequences.filters.resume(announced.root, self.name)
        known = [frame for frame in self._left if frame.number == kept.last]
        known += [self._left[0]] if self._left else []
        goes_on = kept.last is not None and any(root.answer_of_frame(frame) is not None for frame in known)
        self._kept = kept if goes_on else None  # else nothing of this version has a result: it begins again

    @property
    def may_send(self) -> bool:
        return bool(self._left) and not self.stopped

    def __len__(self) -> int:
        """Frames in the pipeline."""
        return len(self._in_work)

    def next(self) -> Job | None:
        """The next frame; None: it has a result, or there is none. Raises OSError, and then it comes again."""
        frame = self._left[0]
        answer = self.root.answer_of_frame(frame)
        self._left.popleft()
        if answer is not None:
            if frame.number is not None and not self._is_doubled(frame):
                self._passed = frame.number
            self._tell_again(frame, answer)
            return None
        job = self._job(frame, self._turn(frame))
        self._in_work[job.job_id] = job
        self._sent += 1
        return job

    def ended(self, job_id: int) -> None:
        """A frame has its result, or was refused."""
        self._in_work.pop(job_id, None)

    def returned(self, job_id: int, why: str) -> None:
        """A frame could not be judged."""
        job = self._in_work.pop(job_id)
        if why in ("changed", "vanished"):
            self._dropped = True
        elif why == "storage" and self._gives_up:
            self._unreadable.append(job)
        else:
            self.stopped = self.stopped or why

    def unreadable(self) -> Job | None:
        """A frame that is to be refused, as nobody can read it; it is in the pipeline then."""
        if not self._unreadable:
            return None
        job = self._unreadable.popleft()
        self._in_work[job.job_id] = job
        return job

    def stop(self, why: str) -> None:
        """Send nothing more. Where all have been sent it comes to its end: one that comes back stops it."""
        if self._left:
            self.stopped = self.stopped or why

    def ending(self) -> Ending:
        """How it has ended, if it has. To be asked until then, and once."""
        if self._in_work or self._unreadable or (self._left and not self.stopped):
            return ""
        if not self.stopped and self._dropped:
            with suppress(OSError):
                if self.root.fingerprint(self.announced.key) is None:
                    self._leave()
                    return "gone"
            self.stopped = "changed"  # another look says what there is now
        if self.stopped:
            self._leave()
            return "stopped"
        if not self._is_still:
            self._close()
        return "complete" if self._sent else "answered"

    def describe(self) -> dict[str, object]:
        wanted = self._left[0].number if self._left else None
        found: dict[str, object] = {"folder": self.announced.root, "sequence": self.name, "wanted": wanted}
        found |= {"waiting": len(self._left), "in_flight": len(self), "missing": self._missing, "apart": self._apart}
        return found | {"blocked": False, "ending": self.stopped or "complete"}

    def _close(self) -> None:
        with suppress(OSError):  # then an old refusal stays beside the results
            self.root.withdraw_refusal(self.announced.key)
        seconds = round(max(0.0, self._clock.monotonic() - self._began), 3)
        counts = {"missing": self._missing, "apart": self._apart}
        said = self._sequences.close(self.announced.root, self.name, seconds=seconds, why="complete", **counts)
        if self._sent or self._recovered:
            self._emit("sequence.done", **said)

    def _leave(self) -> None:
        self._sequences.filters.leave(self.announced.root, self.name)
        self._sequences.turns.forget(self.announced.root, self.name)

    def _turn(self, frame: SequenceFrame) -> FrameTurn:
        if frame.number is None:
            self._apart += 1
            return FrameTurn(frame.path.rpartition("/")[0] or ".", None, 0, 0, NO_NUMBER)
        if self._is_doubled(frame) or self._is_late(frame.number):
            self._apart += 1
            note = DOUBLED if self._is_doubled(frame) else LATE
            return FrameTurn(self.name, frame.number, 0, 0, note)
        if self._passed is not None and frame.number > self._passed + 1:
            gap = {"first": self._passed + 1, "last": frame.number - 1, "frames": frame.number - self._passed - 1}
            self._missing += gap["frames"]
            self._emit("sequence.gap", folder=self.announced.root, sequence=self.name, **gap, why="absent")
        self._passed = frame.number
        previous, self._ticket = self._ticket, next(self._tickets)
        return FrameTurn(self.name, frame.number, self._ticket, previous)

    def _is_doubled(self, frame: SequenceFrame) -> bool:
        return self._passed is not None and frame.number == self._passed

    def _is_late(self, number: int) -> bool:
        """Have frames behind it been published, and none of them will be again?"""
        kept = self._kept
        if kept is None or kept.last is None or kept.first is None or number > kept.last:
            return False
        return kept.ended or number < kept.first

    def _tell_again(self, frame: SequenceFrame, answer: RootAnswer) -> None:
        """Of a frame that was published when the worker died: nobody knows whether its event was written."""
        kept = self._kept
        if not self._recovered or kept is None or kept.last is None or kept.first is None or frame.number is None:
            return
        if kept.first <= frame.number <= kept.last and not kept.ended:
            turn = FrameTurn(self.name, frame.number, 0, 0)
            event, keys = told_again(answer, job_keys(self._job(frame, turn)))
            self._emit(event, **keys)

    def _job(self, frame: SequenceFrame, turn: FrameTurn) -> Job:
        place = (self.announced.root, frame.path, f"{self._input}/{frame.path}", frame.version, 1)
        now, leased = self._clock.monotonic(), Leased(self._lease, frame.fingerprint)
        return Job(
            secrets.randbits(48), *place, now, now, claimed_by_rename=False, final=True, leased=leased, turn=turn
        )
