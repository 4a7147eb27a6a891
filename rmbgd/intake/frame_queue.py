"""Complete frames of one drop folder, handed out in the order of each sequence; and which sequences are over.

The reconcile thread's alone. Sequences do not wait for each other: the folder's next frame is the oldest of those that
may go.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from dataclasses import dataclass, field

from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.events import Emit
from rmbgd.intake.readiness import ArrivingFile
from rmbgd.sequence.numbering import FrameNumber, frame_number
from rmbgd.sequence.order import LATE, NO_NUMBER, Gap, Next, OrderRules, SequenceOrder
from rmbgd.sequence.sequences import Sequences
from rmbgd.store.records import FrameTurn

MARKERS_KEPT = 1000  # that may not be removed
LOOK_EVERY = 1.0  # s between two looks whether a sequence is over


@dataclass(slots=True)
class _Marker:
    path: str
    ctime_ns: int
    since: float
    used: bool = False  # it has ended a sequence


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
    arriving: dict[str, tuple[int, ArrivingFile]] = field(default_factory=dict)  # by path: files not complete yet
    over: bool = False  # it was ended, by whatever; else only quiet for long


class FrameQueue:
    """Knows files by their paths; what else is known of them, the backlog has."""

    def __init__(self, folder: Folder, sequences: Sequences, clock: Clock, emit: Emit) -> None:
        self._name, self._shared, self._clock, self._emit = folder.name, sequences, clock, sequences.emit(emit)
        self._rules = OrderRules(folder.frame_wait, folder.frame_window, folder.sequence_quiet)
        self._sequences: dict[str, _Sequence] = {}
        self._stills: deque[str] = deque()
        self._chosen: dict[str, Next[str]] = {}  # by path: taken, and not sent yet
        self._tickets = itertools.count(1)
        self._next_look = 0.0
        self._markers: dict[str, _Marker] = {}  # by directory
        self._used: dict[str, int] = {}  # markers that may not be removed: path -> ctime
        self.unseen = False  # files of the folder were not looked at, as the backlog had no room
        self.seen_at = -math.inf  # since when every file that comes first was looked at

    # ---------------------------------------------------------------------------------------------- what waits

    def arrives(self, path: str, arrival: ArrivingFile) -> None:
        """It is there, and not complete yet."""
        if (place := frame_number(path)) is not None:
            self._of(place.sequence).arriving[path] = place.number, arrival

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
            sequence.arriving.pop(path, None)

    def rank(self, path: str, lowest: dict[str, int]) -> int:
        """How far behind the frame that its sequence wants; files with a low rank are looked at first.

        lowest  by sequence, of a new one: the lowest number that was found so far; kept here
        """
        place = frame_number(path)
        if place is None:
            return 0
        sequence = self._sequences.get(place.sequence)
        wanted = sequence.order.wanted if sequence is not None else None
        if wanted is None:
            wanted = lowest[place.sequence] = min(place.number, lowest.get(place.sequence, place.number))
        return max(0, place.number - wanted)

    def lost_sight(self) -> None:
        """A file got no place in the backlog: any that is missing may be there."""
        self.unseen, self.seen_at = True, -math.inf

    def heads(self, now: float) -> list[str]:
        """The paths of the next frame of each sequence that may go now."""
        chosen = (self._look(sequence, now) for sequence in self._sequences.values())
        return [*itertools.islice(self._stills, 1), *(each.frame for each in chosen if each is not None)]

    def head_after(self, path: str, now: float) -> list[str]:
        """What may go now that this one has gone: of its sequence, or the next still."""
        place = frame_number(path)
        if place is None:
            return [*itertools.islice(self._stills, 1)]
        chosen = self._look(self._sequences[place.sequence], now)
        return [] if chosen is None else [chosen.frame]

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
        """Is a missing frame about to be passed over, and nobody has looked since whether it is there?"""
        orders = (sequence.order for sequence in self._sequences.values() if sequence.order.wanted_since is not None)
        return any(order.wants_to_pass(now) and self.seen_at <= (order.wanted_since or 0.0) for order in orders)

    def next_moment(self, now: float) -> float | None:
        moments = [sequence.order.waits_until() for sequence in self._sequences.values()]
        if self._sequences or self._markers:
            moments.append(max(self._next_look, now + LOOK_EVERY / 2))
        return min((moment for moment in moments if moment is not None and moment > now), default=None)

    # ---------------------------------------------------------------------------------------------- what was taken

    def sent(self, path: str, *, is_refused: bool = False) -> FrameTurn:
        """It was claimed and goes into the pipeline: its turn there. One that is refused unread needs none."""
        place = frame_number(path)
        if place is None:
            return FrameTurn(os.path.dirname(path) or ".", None, 0, 0, NO_NUMBER)
        sequence, chosen = self._of(place.sequence), self._chosen.pop(path, None)
        sequence.in_flight += 1
        sequence.moved = self._clock.monotonic()
        self._tell_gap(place.sequence, None if chosen is None else chosen.gap)
        if chosen is not None and chosen.note:
            sequence.apart += 1
            return FrameTurn(place.sequence, place.number, 0, 0, chosen.note)
        if is_refused:
            return FrameTurn(place.sequence, place.number, 0, 0)
        if not sequence.sent:
            sequence.sent, sequence.began = True, sequence.moved
        sequence.restarts = False
        previous, sequence.ticket = sequence.ticket, next(self._tickets)
        return FrameTurn(place.sequence, place.number, sequence.ticket, previous)

    def sent_again(self, path: str) -> FrameTurn:
        """After a crash, in the order of its numbers; but one that was late before is late again."""
        place = frame_number(path)
        if place is not None:
            order = self._of(place.sequence).order
            if self._shared.filters.is_before(self._name, place.sequence, place.number):
                self._chosen[path] = Next(path, place.number, LATE)
            else:
                order.wanted = max(order.wanted or 0, place.number + 1)
        return self.sent(path)

    def not_sent(self, path: str) -> None:
        """It could not be claimed. Of several the last first."""
        if (chosen := self._chosen.pop(path, None)) is not None:
            sequence = _place(path).sequence
            self._tell_gap(sequence, self._sequences[sequence].order.give_back(chosen))

    def _tell_gap(self, sequence: str, gap: Gap | None) -> None:
        if gap is not None:
            frames = {"first": gap.first, "last": gap.last, "frames": gap.last - gap.first + 1}
            self._emit("sequence.gap", folder=self._name, sequence=sequence, **frames, why=gap.why)

    def ended(self, turn: FrameTurn) -> None:
        """A frame has left the pipeline, one way or another."""
        if (sequence := self._sequences.get(turn.sequence)) is not None and turn.number is not None:
            sequence.in_flight -= 1
            sequence.moved = sequence.order.last_moved = self._clock.monotonic()

    def returned(self, path: str, turn: FrameTurn) -> None:
        """It goes back to the folder; what is known of its file decides when it comes again."""
        self.ended(turn)
        if turn.ticket and turn.number is not None and turn.sequence in self._sequences:
            gap = self._sequences[turn.sequence].order.give_back(Next(path, turn.number))
            self._tell_gap(turn.sequence, gap)

    # ---------------------------------------------------------------------------------------------- the end

    def mark_end(self, path: str, ctime_ns: int) -> bool:
        """A marker lies beside frames: their sequences end once nothing of them waits. False: that is known."""
        if self._used.get(path) == ctime_ns or os.path.dirname(path) in self._markers:
            return False
        self._markers[os.path.dirname(path)] = _Marker(path, ctime_ns, self._clock.monotonic())
        return True

    def marker_stays(self, marker: _Marker) -> None:
        """It could not be removed: it has done what it is for all the same."""
        if len(self._used) >= MARKERS_KEPT:
            self._used.clear()
        self._used[marker.path] = marker.ctime_ns

    def end(self, sequence: str | None) -> int:
        """An operator ends one, or all of the folder; how many."""
        found = [each for name, each in self._sequences.items() if sequence in (None, name)]
        for each in found:
            each.order.ending = each.order.ending or "command"
        self._next_look = 0.0
        return len(found)

    def look_for_ends(self, now: float) -> list[_Marker]:
        """Close the sequences that are over; answers the markers that are used up."""
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_EVERY
        open_beside: set[str] = set()
        for name, sequence in list(self._sequences.items()):
            beside = os.path.dirname(name)
            marker = self._markers.get(beside)
            if marker is not None:
                sequence.order.ending = "marker"
            on_its_way = any(arrival.gate != "blocked" for _, arrival in sequence.arriving.values())
            why = "" if sequence.in_flight or on_its_way or self.unseen else sequence.order.end_reason(now)
            if not why:
                open_beside.add(beside)
                continue
            del self._sequences[name]
            if marker is not None:
                marker.used = True
            self._close(name, sequence, why)
        over = {
            beside: marker
            for beside, marker in self._markers.items()
            if beside not in open_beside and (marker.used or now >= marker.since + self._rules.quiet)
        }
        for beside in over:
            del self._markers[beside]
        return list(over.values())

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
        keys = {"missing": sequence.order.missing, "apart": sequence.apart}
        said = self._shared.close(self._name, name, seconds=seconds, why=why, **keys)
        if sequence.sent or sequence.apart:  # else nothing of it came through in this run
            self._emit("sequence.done", **said)

    def _of(self, name: str) -> _Sequence:
        if (sequence := self._sequences.get(name)) is None:
            found = self._shared.resume(self._name, name)
            wanted = None if found.last is None else found.last + 1
            is_over = found.ended or found.age > self._rules.quiet  # the service was stopped before its time was over
            order: SequenceOrder[str] = SequenceOrder(self._rules, wanted)
            sequence = self._sequences[name] = _Sequence(order, self._clock.monotonic(), is_over, over=found.ended)
        return sequence

    def _look(self, sequence: _Sequence, now: float) -> Next[str] | None:
        order = sequence.order
        chosen = order.look(now)
        if chosen is not None and chosen.note and sequence.restarts and (sequence.over or not order.has_regular):
            sequence.restarts = False
            order.begin_again()
            chosen = order.look(now)
        if chosen is not None and chosen.passes and self._may_be_here(sequence, chosen.number):
            return None
        return chosen

    def _may_be_here(self, sequence: _Sequence, number: int) -> bool:
        """Is a frame before this one just arriving, or perhaps among the files that nobody has looked at?"""
        since, wanted = sequence.order.wanted_since, sequence.order.wanted or 0
        unseen = since is not None and self.seen_at <= since
        return unseen or any(wanted <= n < number and each.gate == "quiet" for n, each in sequence.arriving.values())


def _place(path: str) -> FrameNumber:
    place = frame_number(path)
    assert place is not None
    return place
