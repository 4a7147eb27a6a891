"""When the disk refuses: hold the result, pause the intake, try again, go on by itself. Nothing is lost, only late.

Knows neither what is written nor which errors are the disk's: that is the table in fsops.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from rmbgd.clock import Clock
from rmbgd.errors import StorageFault
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat

T = TypeVar("T")

# Seconds between tries, the last repeated: space that came back is used within 8 s, and a full disk costs no CPU.
PROBE_AFTER = (1.0, 2.0, 4.0, 8.0)


class Intake(Protocol):
    """What the hold needs of the intake."""

    def pause(self, reason: str) -> None: ...

    def resume(self, reason: str) -> None: ...


class Released(Exception):
    """The hold was lifted because the service is stopping; the disk still refuses."""

    def __init__(self, fault: StorageFault) -> None:
        self.fault = fault
        super().__init__(str(fault))


class StorageRetry:
    """Shared by the finish threads."""

    def __init__(self, intake: Intake, emit: Emit, clock: Clock) -> None:
        self._intake = intake
        self._emit = emit
        self._clock = clock
        self._changed = threading.Condition()
        self._since: dict[tuple[str, str], float] = {}  # (where, kind) -> when it began; guarded by _changed
        self._released = False  # guarded by _changed

    def insist(self, action: Callable[[], T], where: str, heartbeat: Heartbeat) -> T:
        """The result of `action`, however long the disk refuses it.

        `where` names what shares a fate, such as one folder's output. Raises Released when the service stops meanwhile.
        """
        for tries in range(1 << 30):
            try:
                result = action()
            except StorageFault as fault:
                self._begin(where, fault)
                self._wait(fault, PROBE_AFTER[min(tries, len(PROBE_AFTER) - 1)], heartbeat)
            else:
                if tries:
                    self._end(where)
                return result
        raise AssertionError("unreachable: the loop outlives the machine")

    def release(self) -> None:
        """The service is stopping: whoever waits gives up."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def paused(self) -> str | None:
        """The kind of refusal, or None."""
        with self._changed:
            return next((kind for _, kind in self._since), None)

    def _begin(self, where: str, fault: StorageFault) -> None:
        with self._changed:
            if (where, fault.kind) in self._since:
                return
            self._since[where, fault.kind] = self._clock.monotonic()
        self._intake.pause(f"{fault.kind}:{where}")
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
            self._emit("storage.resumed", kind=kind, seconds=round(self._clock.monotonic() - since, 3))

    def _wait(self, fault: StorageFault, seconds: float, heartbeat: Heartbeat) -> None:
        with self._changed:
            if self._released:
                raise Released(fault)
            heartbeat.waiting()
            self._changed.wait(seconds)
            heartbeat.working()
            if self._released:
                raise Released(fault)
