"""Retries a write until the disk accepts it, and pauses the intake meanwhile. Nothing is lost, only late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from rmbgd.clock import Clock, backoff
from rmbgd.errors import LedgerFault, StorageFault
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.items import JobSource

T = TypeVar("T")

# Seconds between retries: space that came back is used within 8 s, and a full disk costs no CPU.
RETRY_FIRST, RETRY_MAXIMUM = 1.0, 8.0


class Released(Exception):
    """The service is stopping and the disk still refuses; with the fault."""


class StorageRetry:
    """Shared by the finish threads."""

    def __init__(self, intake: JobSource, emit: Emit, clock: Clock) -> None:
        self._intake = intake
        self._emit = emit
        self._clock = clock
        self._changed = threading.Condition()
        # (where, kind) -> when it began; None: the ledger's, of which its own thread tells. Guarded by _changed.
        self._since: dict[tuple[str, str], float | None] = {}
        self._released = False  # guarded by _changed

    def retry_until_writable(self, action: Callable[[], T], where: str, heartbeat: Heartbeat) -> T:
        """The result of `action`, however long it raises StorageFault.

        `where` names what shares a fate, such as one folder's output. Raises Released when the service stops meanwhile.
        """
        failures = 0
        while True:
            try:
                result = action()
            except StorageFault as fault:
                failures += 1
                self._begin(where, fault)
                self._wait(fault, backoff(failures, RETRY_FIRST, RETRY_MAXIMUM), heartbeat)
            else:
                if failures:
                    self._end(where)
                return result

    def release(self) -> None:
        """The service is stopping: end every retry."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def _begin(self, where: str, fault: StorageFault) -> None:
        with self._changed:
            if (where, fault.kind) in self._since:
                return
            of_ledger = isinstance(fault, LedgerFault)
            self._since[where, fault.kind] = None if of_ledger else self._clock.monotonic()
        self._intake.pause(f"{fault.kind}:{where}")
        if not of_ledger:
            self._emit("storage.paused", kind=fault.kind, path=fault.path, detail=fault.detail)

    def _end(self, where: str) -> None:
        """Something was written there: every refusal noted of it is over, or the next try will note it again."""
        with self._changed:
            over = {key: since for key, since in self._since.items() if key[0] == where}
            for key in over:
                del self._since[key]
            self._changed.notify_all()
        for (_, kind), since in over.items():
            self._intake.resume(f"{kind}:{where}")
            if since is not None:
                self._emit("storage.resumed", kind=kind, seconds=round(self._clock.monotonic() - since, 3))

    def _wait(self, fault: StorageFault, seconds: float, heartbeat: Heartbeat) -> None:
        with self._changed:
            if not self._released:
                heartbeat.waiting()
                self._changed.wait(seconds)
                heartbeat.working()
            if self._released:
                raise Released(fault)
