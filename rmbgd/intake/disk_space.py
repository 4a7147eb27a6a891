"""POLICY: too little free space on an output stops claiming for its folder, until there is half as much again."""

from __future__ import annotations

from collections.abc import Mapping

from rmbgd.config.load import Config
from rmbgd.events import Emit

CHECK_EVERY = 2.0  # s
HYSTERESIS = 1.5  # so that a disk at the brink does not make the service stop and go


class DiskSpaceGuard:
    """Belongs to the reconcile thread. `outputs`: folder -> path of its output."""

    def __init__(self, config: Config, emit: Emit) -> None:
        self._minimum = config.pipeline.free_bytes_minimum
        self.outputs = {folder.name: str(folder.output) for folder in config.folder}
        self._emit = emit
        self.closed: dict[str, float] = {}  # folders that lack space -> since when
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        return bool(self._minimum) and now >= self._next

    def check(self, now: float, free: Mapping[str, int | None]) -> None:
        """`free`: bytes by folder; None where the output cannot be asked: publishing finds out, and retries."""
        self._next = now + CHECK_EVERY
        for folder, count in free.items():
            if count is None:
                continue
            if folder in self.closed:
                if count >= HYSTERESIS * self._minimum:
                    since = self.closed.pop(folder)
                    self._emit("storage.resumed", kind="disk_full", seconds=round(now - since, 3))
            elif count < self._minimum:
                self.closed[folder] = now
                detail = f"{count} bytes free; pipeline.free_bytes_minimum is {self._minimum}"
                self._emit("storage.paused", kind="disk_full", path=self.outputs[folder], detail=detail)

    def next_check(self, now: float) -> float | None:
        return max(now, self._next) if self.closed else None
