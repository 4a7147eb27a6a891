"""POLICY: which frame of a sequence goes next; how long a missing one is waited for; what is too late.

Frames wait in their folder, which costs no memory, until every frame before them has gone. A number that is missing is
waited for from the moment at which it is wanted; then, or when too many frames wait behind it, it is passed over. What
comes after that, or has a number that came before, goes at once, for itself.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Frame = TypeVar("Frame", bound=Hashable)

LATE, DOUBLED, NO_NUMBER = "late_frame", "doubled_number", "no_number"
"""Why a frame goes for itself, unfiltered: a later one has gone; its number was there already; it has none."""

GAPS_KEPT = 256  # ranges of numbers passed over; what comes late has one of them, what came twice has not


@dataclass(frozen=True, slots=True)
class OrderRules:
    """wait: seconds for a missing frame. window: frames that wait behind it at most. quiet: seconds without a frame
    after which a sequence has ended."""

    wait: float
    window: int
    quiet: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that were passed over, both included, and why: "waited" or "window"."""

    first: int
    last: int
    why: str

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True, slots=True)
class Next(Generic[Frame]):
    """What goes next. `note`: why it goes out of order, LATE or DOUBLED; empty where it does not.

    passes  frames before it are missing, or may be; gap: those that are known to be
    """

    frame: Frame
    number: int
    note: str = ""
    passes: bool = False
    gap: Gap | None = None


@dataclass(slots=True)
class SequenceOrder(Generic[Frame]):
    """The frames of one sequence that may be claimed. One thread's; `now` is in monotonic seconds.

    wanted  the number that goes next; None until the first has gone
    """

    rules: OrderRules
    wanted: int | None = None
    wanted_since: float | None = None  # since when it is missing while others wait
    last_moved: float | None = None  # when the last one came or went
    ending: str = ""  # why it ends as soon as nothing waits: "marker", "command"
    missing: int = 0
    _waiting: dict[int, list[Frame]] = field(default_factory=dict)
    _numbers: list[int] = field(default_factory=list)  # heap of the keys of _waiting, and of some that have left it
    _apart: deque[Next[Frame]] = field(default_factory=deque)
    _gaps: deque[Gap] = field(default_factory=lambda: deque(maxlen=GAPS_KEPT))

    def add(self, number: int, frame: Frame) -> None:
        self.last_moved = None  # set by the next look
        if self.wanted is not None and number < self.wanted:
            note = LATE if any(number in gap for gap in self._gaps) else DOUBLED
            self._apart.append(Next(frame, number, note))
        elif number in self._waiting:
            self._waiting[number].append(frame)
        else:
            self._waiting[number] = [frame]
            heapq.heappush(self._numbers, number)

    def discard(self, number: int, frame: Frame) -> None:
        """It has gone, or has changed: it is not waiting any more."""
        if frame in (frames := self._waiting.get(number, [])):
            frames.remove(frame)
            if not frames:
                del self._waiting[number]
        else:
            self._apart = deque(each for each in self._apart if each.frame != frame)

    def __len__(self) -> int:
        return len(self._apart) + sum(map(len, self._waiting.values()))

    def look(self, now: float) -> Next[Frame] | None:
        """What may go now."""
        if self.last_moved is None:
            self.last_moved = now
        if self._apart:
            return self._apart[0]
        if (number := self._first()) is None:
            self.wanted_since = None
            return None
        frame, why = self._waiting[number][0], ""
        if number != (self.wanted or 0):  # a new sequence begins with 0 where there is one
            if self.wanted_since is None:
                self.wanted_since = now
            if not self.wants_to_pass(now):
                return None
            why = "waited" if now >= self.wanted_since + self.rules.wait else "window"
        gap = Gap(self.wanted, number - 1, why) if why and self.wanted is not None else None
        return Next(frame, number, passes=bool(why), gap=gap)

    @property
    def has_regular(self) -> bool:
        """Does a frame wait that has its place in the order?"""
        return bool(self._waiting)

    def wants_to_pass(self, now: float) -> bool:
        """Would it pass over what is missing?"""
        since = self.wanted_since
        return since is not None and (now >= since + self.rules.wait or len(self._waiting) >= self.rules.window)

    def waits_until(self) -> float | None:
        """When the missing frame is passed over, if one is missing."""
        return None if self.wanted_since is None else self.wanted_since + self.rules.wait

    def take(self, chosen: Next[Frame], now: float) -> None:
        """`chosen`, as `look` has just answered, goes."""
        self.last_moved = now
        if chosen.note:
            self._apart.popleft()
            return
        frames = self._waiting.pop(chosen.number)
        self._apart.extend(Next(frame, chosen.number, DOUBLED) for frame in frames[1:])
        if chosen.gap is not None:
            self._gaps.append(chosen.gap)
            self.missing += chosen.gap.last - chosen.gap.first + 1
        self.wanted, self.wanted_since = chosen.number + 1, None

    def give_back(self, chosen: Next[Frame]) -> Gap | None:
        """It did not go after all. Its number is wanted again, unless one behind it has gone: then it is missing.

        Of several the last is to be given back first. Answers the gap that it leaves.
        """
        if chosen.note:
            return None
        if self.wanted != chosen.number + 1:
            self._gaps.append(gap := Gap(chosen.number, chosen.number, "vanished"))
            self.missing += 1
            return gap
        self.wanted = chosen.number
        if chosen.gap is not None and chosen.gap in self._gaps:
            self._gaps.remove(chosen.gap)
            self.missing -= chosen.gap.last - chosen.gap.first + 1
            self.wanted = chosen.gap.first
        return None

    def begin_again(self) -> None:
        """It had ended, and comes once more from its first frame."""
        self.wanted, self.missing = None, 0
        self._gaps.clear()
        apart, self._apart = self._apart, deque()
        for each in apart:
            self.add(each.number, each.frame)

    def end_reason(self, now: float) -> str:
        """Why it has ended, or "". To be asked when nothing of it is being worked on."""
        if len(self):
            return ""
        if self.ending:
            return self.ending
        quiet = self.last_moved is not None and now >= self.last_moved + self.rules.quiet
        return "quiet" if quiet else ""

    def _first(self) -> int | None:
        while self._numbers and self._numbers[0] not in self._waiting:
            heapq.heappop(self._numbers)
        return self._numbers[0] if self._numbers else None
