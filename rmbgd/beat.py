"""Signs of life of one loop: it works, or it waits for something that is allowed to take long.

A leaf: knows neither what the loop does nor who judges. The health monitor implements it; channels, the arena and the
engine report through it whenever they block.
"""

from __future__ import annotations

from typing import Protocol


class Beat(Protocol):
    """Belongs to one thread, which alone calls it; cheap enough for every item."""

    def waiting(self) -> None:
        """About to block on another part of the service; however long that takes, this loop is not hung."""
        ...

    def working(self) -> None:
        """Progress, now. A loop that neither waits nor says this for long is hung."""
        ...


class NoBeat:
    """For threads that nobody judges."""

    def waiting(self) -> None:
        pass

    def working(self) -> None:
        pass
