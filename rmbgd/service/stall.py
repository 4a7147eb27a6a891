"""POLICY: whether the line stands still although nothing holds it up: images wait, none moves, nothing computes.

Every thread may then say that it waits for another one, and no heartbeat shows it.

Does not look at anything, and does not act: the daemon gathers the facts and tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENGINE_AT_WORK = ("ready", "degraded")  # states of the engine in which it takes images
STOOD_STILL = 30.0  # s between two looks: beyond it this process was frozen, and its ages mean nothing


@dataclass(frozen=True, slots=True)
class Facts:
    """What is seen at one look.

    marks      per channel: (items ever sent, items ever finished)
    computing  a device has images in hand, or is being started: that has deadlines of its own
    excused    something else holds the line up on purpose: a pause, a GPU that is waited for
    """

    marks: Sequence[tuple[int, int]]
    computing: bool = False
    excused: bool = False

    @property
    def waits(self) -> bool:
        return any(sent > finished for sent, finished in self.marks)


class StallDetector:
    """One thread only. `stuck_after`: seconds without any movement."""

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._marks: tuple[tuple[int, int], ...] = ()
        self._since: float | None = None  # since nothing has moved that should
        self._last = 0.0

    def stuck(self, facts: Facts, now: float) -> bool:
        """`now`: monotonic, s."""
        marks, before = tuple(facts.marks), self._last
        moved = marks != self._marks
        self._marks, self._last = marks, now
        if moved or not facts.waits or facts.computing or facts.excused:
            self._since = None
            return False
        if self._since is None or now - before > STOOD_STILL:
            self._since = now
        return now - self._since > self._stuck_after


def is_excused(*, paused: object, engine: Mapping[str, object]) -> bool:
    """Whether the line may stand still. `paused`: why nothing is claimed; `engine`: as the health event has it."""
    return bool(paused) or engine.get("state") not in ENGINE_AT_WORK
