"""Which roots of a worker are away, and of which nothing is leased for a while; said once for each change."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from rmbgd.clock import Clock
from rmbgd.events import Emit
from rmbgd.fleet.root import Root
from rmbgd.mounts import is_there


class RootStates:
    """Written by the reconcile thread, read by any. `unusable`: "" has what the broker lacks."""

    def __init__(
        self, roots: Mapping[str, Root], check_every: float, retry_wait: float, clock: Clock, emit: Emit
    ) -> None:
        self._roots, self._every, self._retry_wait, self._clock, self._emit = (
            roots,
            check_every,
            retry_wait,
            clock,
            emit,
        )
        self.away: dict[str, str] = {}  # roots that are not there -> why
        self.unusable: dict[str, str] = {}  # roots whose messages cannot be served here -> why
        self._avoided: dict[str, float] = {}  # those of which nothing is leased until then
        self._next_check = 0.0

    def check(self) -> None:
        """Where it is due: are they there?"""
        if (now := self._clock.monotonic()) < self._next_check:
            return
        self._next_check = now + self._every
        for name, root in self._roots.items():
            folder = root.folder
            there = is_there(str(folder.input), require_mount=folder.require_mount) and os.path.isdir(folder.output)
            cause = "" if there else "missing"
            if cause and name not in self.away:
                self.away[name] = cause
                self._emit("folder.waiting", folder=name, cause=cause)
            elif not cause and self.away.pop(name, None) is not None:
                self._emit("folder.watching", folder=name, mode="lease", file_system="", watches=0)

    def seen(self, served: Collection[str], avoid: Mapping[str, str]) -> None:
        """Roots that brought something usable; and of others why nothing of them is to be leased for a while: their
        images wait in the queue, for machines that can."""
        for root in served:
            self.unusable.pop(root, None)
        for root, why in avoid.items():
            if root in served:
                continue
            self._avoided[root] = self._clock.monotonic() + self._retry_wait
            if self.unusable.get(root) != why:
                self.unusable[root] = why
                self._emit("source.unusable", folder=root, detail=why)

    def avoided(self) -> set[str]:
        now = self._clock.monotonic()
        return {root for root, until in self._avoided.items() if until > now}

    def cause(self, root: str) -> str | None:
        """Why nothing of it is leased."""
        return self.away.get(root) or self.unusable.get(root) or self.unusable.get("")

    def troubles(self) -> dict[str, str]:
        return {name: f"it is {cause}" for name, cause in dict(self.away).items()} | dict(self.unusable)
