"""Complete frames of one drop folder, handed out in the order of each sequence; and which sequences are over.

The reconcile thread's alone. Sequences do not wait for each other: the folder's next frame is the oldest of those that
may go.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.events import Emit
from rmbgd.intake.readiness import ArrivingFile
from rmbgd.sequence.filters import Filters
from rmbgd.sequence.numbering import FrameNumber, frame_number, is_ended_by
from rmbgd.sequence.order import Next, OrderRules, SequenceOrder
from rmbgd.sequence.turns import Turns
from rmbgd.store.records import FrameTurn

NO_NUMBER = "no_number"
LOOK_EVERY = 1.0  # s between two looks whether a sequence is over


@dataclass(slots=True)
class _Sequence:
    order: SequenceOrder[str]
    began: float
    restarts: bool  # it had ended: a number that came before begins it again
    ticket: int = 0  # of the frame that was sent last
    in_flight: int = 0
    apart: int = 0  # frames that went for themselves
    moved: float | None = None  # when one was sent or ended last
    sent: bool = False
    arriving: dict[int, ArrivingFile] = field(default_factory=dict)  # files that are not complete yet


class FrameQueue:
    """`waiting` by path: whatever the backlog keeps of a file that may be claimed is its own affair."""

    def __init__(self, folder: Folder, filters: Filters, turns: Turns, clock: Clock, emit: Emit) -> None:
        self._name, self._filters, self._turns, self._clock, self._emit = folder.name, filters, turns, clock, emit
        self._rules = OrderRules(folder.frame_wait, folder.frame_window, folder.sequence_quiet)
        self._sequences: dict[str, _Sequence] = {}
        self._stills: deque[str] = deque()
        self._chosen: dict[str, Next[str]] = {}  # by path: taken, and not sent yet
        self._tickets = itertools.count(1)
        self._next_look = 0.0
        self._markers: dict[str, float] = {}  # by path: since when it is known; long ago once it has ended a sequence
        self.unseen = False  # files of the folder that the backlog had no room for were not looked at
        self.seen_at = 0.0  # when those that come first were last looked at

    # ---------------------------------------------------------------------------------------------- what waits

    def arrives(self, path: str, arrival: ArrivingFile) -> None:
        """It is there, and not complete yet."""
        if (place := frame_number(path)) is not None:
            self._of(place.sequence).arriving[place.number] = arrival

    def add(self, path: str) -> None:
        """It may be claimed."""
        place = frame_number(path)
        if place is None:
            self._stills.append(path)
        else:
            self._of(place.sequence).order.add(place.number, path)

    def discard(self, path: str) -> None:
        place = frame_number(path)
        if place is None:
            self._stills = deque(each for each in self._stills if each != path)
        elif (sequence := self._sequences.get(place.sequence)) is not None:
            sequence.order.discard(place.number, path)
            sequence.arriving.pop(place.number, None)

    def rank(self, path: str) -> int:
        """How far behind the frame that its sequence wants; files with a low rank are looked at first."""
        place = frame_number(path)
        if place is None:
            return 0
        sequence = self._sequences.get(place.sequence)
        wanted = sequence.order.wanted if sequence is not None else None
        return place.number - (wanted or 0) if wanted is None or place.number >= wanted else 0

    def heads(self, now: float) -> Iterator[str]:
        """The path of the next frame of each sequence that may go now."""
        yield from itertools.islice(self._stills, 1)
        for sequence in self._sequences.values():
            if (chosen := self._look(sequence, now)) is not None:
                yield chosen.frame

    def take(self, path: str, now: float) -> None:
        """It goes: one of `heads`."""
        if self._stills and self._stills[0] == path:
            self._stills.popleft()
            return
        place = _place(path)
        order = self._sequences[place.sequence].order
        chosen = self._look(self._sequences[place.sequence], now)
        assert chosen is not None
        order.take(chosen, now)
        self._chosen[path] = chosen

    def wants_all_seen(self, now: float) -> bool:
        """Is a missing frame about to be passed over that may be among files not looked at since?"""
        orders = (sequence.order for sequence in self._sequences.values())
        return any(
            (since := order.wanted_since) is not None and self.seen_at <= since and since + self._rules.wait <= now
            for order in orders
        )

    def next_moment(self, now: float) -> float | None:
        moments = [sequence.order.waits_until() for sequence in self._sequences.values()]
        if self._sequences or self._markers:
            moments.append(max(self._next_look, now + LOOK_EVERY / 2))
        return min((moment for moment in moments if moment is not None and moment > now), default=None)

    # ---------------------------------------------------------------------------------------------- what was taken

    def sent(self, path: str) -> FrameTurn:
        """It was claimed and goes into the pipeline: its turn there."""
        place = frame_number(path)
        if place is None:
            return FrameTurn(os.path.dirname(path) or ".", None, 0, 0, NO_NUMBER)
        sequence, chosen = self._of(place.sequence), self._chosen.pop(path, None)
        sequence.in_flight += 1
        sequence.moved = self._clock.monotonic()
        if chosen is not None and chosen.gap is not None:
            gap = chosen.gap
            self._emit(
                "sequence.gap",
                folder=self._name,
                sequence=place.sequence,
                first=gap.first,
                last=gap.last,
                frames=gap.last - gap.first + 1,
                why=gap.why,
            )
        if chosen is not None and chosen.note:
            sequence.apart += 1
            return FrameTurn(place.sequence, place.number, 0, 0, chosen.note)
        if not sequence.sent:
            sequence.sent, sequence.began = True, sequence.moved
        sequence.restarts = False
        previous, sequence.ticket = sequence.ticket, next(self._tickets)
        return FrameTurn(place.sequence, place.number, sequence.ticket, previous)

    def sent_again(self, path: str) -> FrameTurn:
        """After a crash, in the order of its numbers."""
        place = frame_number(path)
        if place is not None:
            order = self._of(place.sequence).order
            order.wanted = max(order.wanted or 0, place.number + 1)
        return self.sent(path)

    def not_sent(self, path: str) -> None:
        """It could not be claimed."""
        if (chosen := self._chosen.pop(path, None)) is not None:
            self._sequences[_place(path).sequence].order.give_back(chosen)

    def ended(self, turn: FrameTurn) -> None:
        """A frame has left the pipeline, one way or another."""
        if (sequence := self._sequences.get(turn.sequence)) is not None and turn.number is not None:
            sequence.in_flight -= 1
            sequence.moved = self._clock.monotonic()

    def returned(self, path: str, turn: FrameTurn) -> None:
        """It goes back to the folder; what is known of its file decides when it comes again."""
        self.ended(turn)
        if turn.ticket and turn.number is not None and turn.sequence in self._sequences:
            self._sequences[turn.sequence].order.give_back(Next(path, turn.number))

    # ---------------------------------------------------------------------------------------------- the end

    def mark_end(self, marker: str) -> bool:
        """A marker lies beside frames: their sequences end once nothing of them waits. False: that is known."""
        new = marker not in self._markers
        self._markers.setdefault(marker, self._clock.monotonic())
        return new

    def end(self, sequence: str | None) -> int:
        """An operator ends one, or all of the folder; how many."""
        found = [each for name, each in self._sequences.items() if sequence in (None, name)]
        for each in found:
            each.order.ending = each.order.ending or "command"
        self._next_look = 0.0
        return len(found)

    def look_for_ends(self, now: float) -> list[str]:
        """Close the sequences that are over; answers the markers that are used up."""
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_EVERY
        for name, sequence in list(self._sequences.items()):
            markers = [marker for marker in self._markers if is_ended_by(name, marker)]
            if markers:
                sequence.order.ending = "marker"
            if sequence.in_flight or sequence.arriving or not (why := sequence.order.end_reason(now)):
                continue
            del self._sequences[name]
            self._markers.update(dict.fromkeys(markers, -math.inf))
            self._close(name, sequence, why)
        used = [marker for marker, since in self._markers.items() if now >= since + self._rules.quiet]
        over = [marker for marker in used if not any(is_ended_by(name, marker) for name in self._sequences)]
        for marker in over:
            del self._markers[marker]
        return over

    def is_blocked(self, path: str) -> bool:
        """Does it wait for a frame before it that is missing?"""
        place = frame_number(path)
        sequence = None if place is None else self._sequences.get(place.sequence)
        return sequence is not None and sequence.order.wanted_since is not None

    def describe(self) -> list[dict[str, object]]:
        """Of every sequence that is not over, for people."""
        return [
            {
                "folder": self._name,
                "sequence": name,
                "wanted": each.order.wanted,
                "waiting": len(each.order),
                "in_flight": each.in_flight,
                "missing": each.order.missing,
                "apart": each.apart,
                "blocked": each.order.wanted_since is not None,
                "ending": each.order.ending,
            }
            for name, each in self._sequences.items()
        ]

    def _close(self, name: str, sequence: _Sequence, why: str) -> None:
        seconds = round(max(0.0, (sequence.moved or sequence.began) - sequence.began), 3)
        said = self._filters.close(self._name, name)
        self._turns.forget(self._name, name)
        if not sequence.sent and not sequence.apart:
            return  # nothing of it came through in this run
        rate = round(int(str(said["frames"])) / seconds, 2) if seconds else None
        keys = {"missing": sequence.order.missing, "apart": sequence.apart, "seconds": seconds, "why": why}
        self._emit(
            "sequence.done", folder=self._name, sequence=name, **said, **keys, **({"rate": rate} if rate else {})
        )

    def _of(self, name: str) -> _Sequence:
        if (sequence := self._sequences.get(name)) is None:
            found = self._filters.resume(self._name, name)
            wanted = None if found.last is None else found.last + 1
            is_over = found.ended or found.age > self._rules.quiet  # the service was stopped before its time was over
            order: SequenceOrder[str] = SequenceOrder(self._rules, wanted)
            sequence = self._sequences[name] = _Sequence(order, self._clock.monotonic(), is_over)
        return sequence

    def _look(self, sequence: _Sequence, now: float) -> Next[str] | None:
        order = sequence.order
        chosen = order.look(now)
        if chosen is not None and chosen.note and sequence.restarts:
            sequence.restarts = False
            order.begin_again()
            chosen = order.look(now)
        if chosen is not None and chosen.passes and self._may_be_here(sequence, chosen.number):
            return None
        return chosen

    def _may_be_here(self, sequence: _Sequence, number: int) -> bool:
        """Is a frame before this one just arriving, or perhaps among the files that nobody has looked at?"""
        since = sequence.order.wanted_since
        unseen = self.unseen and since is not None and self.seen_at <= since
        return unseen or any(n < number and each.gate == "quiet" for n, each in sequence.arriving.items())


def _place(path: str) -> FrameNumber:
    place = frame_number(path)
    assert place is not None
    return place
