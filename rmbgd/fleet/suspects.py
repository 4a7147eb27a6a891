"""Images that a worker died with, in the hands of another one: they wait for their turn to run alone."""

from __future__ import annotations

from collections.abc import Collection

from rmbgd.fleet.held import Held

MOST = 8  # that wait here; more go back to the queue


class LeasedSuspects:
    """The reconcile thread's."""

    def __init__(self) -> None:
        self._waiting: list[Held] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, held: Held) -> bool:
        """False where there is no room."""
        if len(self._waiting) >= MOST:
            return False
        self._waiting.append(held)
        return True

    def next(self, closed: Collection[str]) -> Held | None:
        """The first of a root that is not closed; "" stands for all."""
        return next((held for held in self._waiting if not {"", held.announced.root} & set(closed)), None)

    def remove(self, held: Held) -> bool:
        """Was it there?"""
        if held not in self._waiting:
            return False
        self._waiting.remove(held)
        return True

    def take_out(self, roots: Collection[str] | None) -> list[Held]:
        """Those of these roots, or all."""
        found = [held for held in self._waiting if roots is None or held.announced.root in roots]
        self._waiting = [held for held in self._waiting if held not in found]
        return found
