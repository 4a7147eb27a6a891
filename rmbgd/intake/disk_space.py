"""Free space on the outputs: below the minimum nothing of a folder is claimed, until there is half as much again.

Measures and tells; deletes nothing.
"""

from __future__ import annotations

import os

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.events import Emit

CHECK_EVERY = 2.0  # s
HYSTERESIS = 1.5  # so that a disk at the brink does not make the service stop and go


class DiskSpaceGuard:
    """Belongs to the reconcile thread."""

    def __init__(self, config: Config, emit: Emit, clock: Clock) -> None:
        self._minimum = config.pipeline.free_bytes_minimum
        self._outputs = {folder.name: str(folder.output) for folder in config.folder}
        self._emit = emit
        self._closed: dict[str, float] = {}  # folder -> since when
        self._next = clock.monotonic()

    def check(self, now: float) -> None:
        if now < self._next or not self._minimum:
            return
        self._next = now + CHECK_EVERY
        for folder, output in self._outputs.items():
            free = _free_bytes(output)
            if free is None:  # not there or not ours to ask: publishing finds out, and holds
                continue
            if folder in self._closed:
                if free >= HYSTERESIS * self._minimum:
                    since = self._closed.pop(folder)
                    self._emit("storage.resumed", kind="disk_full", seconds=round(now - since, 3))
            elif free < self._minimum:
                self._closed[folder] = now
                detail = f"{free} bytes free; pipeline.free_bytes_minimum is {self._minimum}"
                self._emit("storage.paused", kind="disk_full", path=output, detail=detail)

    def closed(self) -> set[str]:
        return set(self._closed)

    def paused(self) -> str | None:
        return "disk_full" if self._closed else None

    def next_check(self, now: float) -> float | None:
        return max(now, self._next) if self._closed else None


def _free_bytes(path: str) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
