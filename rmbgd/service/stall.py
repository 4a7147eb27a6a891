"""POLICY: detect a pipeline that is stuck although every thread says that it only waits.

Images wait, none is finished, no device computes, and nothing excuses it. Each thread may then be waiting for another
one, so no heartbeat shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENGINE_AT_WORK = ("ready", "degraded")  # states of the engine in which it takes images
FROZEN_AFTER = 30.0  # s between two looks: beyond it this process did not run, and its ages mean nothing


@dataclass(frozen=True, slots=True)
class StallFacts:
    """What one look at the pipeline found.

    progress   per queue: (items ever sent, items ever finished); an item that is taken and put back changes neither, so
               images that fail again and again do not look like work
    computing  a device has images in hand, or is being started: those have deadlines of their own
    excused    something holds the pipeline up on purpose: a pause, a GPU that is waited for
    """

    progress: Sequence[tuple[int, int]]
    computing: bool = False
    excused: bool = False


class StallDetector:
    """One thread only. `stuck_after`: seconds without progress."""

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._progress: tuple[tuple[int, int], ...] = ()
        self._since: float | None = None  # since nothing has moved that should
        self._last = 0.0

    def is_stalled(self, facts: StallFacts, now: float) -> bool:
        """Look once more, at `now` (monotonic, s)."""
        progress, last = tuple(facts.progress), self._last
        moved = progress != self._progress
        self._progress, self._last = progress, now
        unfinished = any(sent > finished for sent, finished in progress)  # also those that were taken and may come back
        if moved or not unfinished or facts.computing or facts.excused:
            self._since = None
            return False
        if self._since is None or now - last > FROZEN_AFTER:
            self._since = now
        return now - self._since > self._stuck_after


def is_excused(*, paused: object, engine: Mapping[str, object]) -> bool:
    """May the pipeline stand still? `paused`: why nothing is claimed; `engine`: as in the health event.

    A pause of the operator's is no excuse: what is in the pipeline is finished all the same, and nothing else is there.
    """
    held_up = bool(paused) and str(paused).partition(":")[0] != "operator"
    return held_up or engine.get("state") not in ENGINE_AT_WORK
