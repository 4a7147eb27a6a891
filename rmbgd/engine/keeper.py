"""The lane that stands by on the CPU, shared by all GPUs, and the thread that keeps it at hand: started again when it
died in idleness, tried again when it could not be started, while the GPUs work.

Does not decide who computes, nor what stands in. The first start belongs to whoever needs it first.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Protocol

from rmbgd.clock import Clock
from rmbgd.engine.lane import Lane
from rmbgd.engine.turns import Turn
from rmbgd.errors import EngineFault, EngineLost, ModelError
from rmbgd.events import Emit
from rmbgd.heartbeat import NullHeartbeat

END_PATIENCE = 15.0  # s for the thread to be gone when the service stops
ABORT_AGAIN = 0.1  # s between two orders to a process that was about to be started just then


class Process(Protocol):
    """What the keeper asks of the engine's process. Any thread."""

    @property
    def alive(self) -> bool: ...

    def abort(self) -> None: ...


class Standby:
    """`warm`: it stays loaded; else it is started when needed and closed afterwards. `interval`: s between two looks.

    What is not said to be for any thread is for the one that has `turn`.
    """

    def __init__(self, lane: Lane, *, warm: bool, interval: float, emit: Emit, clock: Clock) -> None:
        self.lane, self.warm = lane, warm
        self.turn = Turn()
        self.process: Process | None = None  # of the engine made last; set by whoever makes it, read by any thread
        self._interval, self._emit, self._clock = interval, emit, clock
        self._missing = False  # it could not be started, and was not since; written by him who has the turn
        self._starting = False  # by the keeper's own thread; written by it, read by any
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)

    @property
    def ready(self) -> bool:
        """Any thread."""
        return self.lane.ready

    @property
    def missing(self) -> bool:
        """It is not to be relied on: the last start failed. Any thread."""
        return self._missing

    @property
    def model_error(self) -> ModelError | None:
        """What the operator has to mend before it can stand in. Any thread."""
        return self.lane.model_error

    def describe(self, *, needed: bool) -> dict[str, object]:
        """For the health event. Any thread."""
        if self.lane.ready:
            return {"state": "ready"}
        if self._missing:
            return {"state": "missing"}
        return {"state": "starting" if self.warm or needed else "on_demand"}

    def start(self) -> None:
        """Begin to look after it."""
        self._thread.start()

    def started(self) -> None:
        """It is loaded."""
        self._missing = False

    def failed(self, fault: EngineFault) -> None:
        """It could not be started. Told once, until it is there; not when the service is stopping."""
        if not self._missing and not self._closing.is_set():
            self._missing = True
            why = str(fault).partition("\n")[0]
            self._emit("engine.degraded", device=self.lane.device, reason="no_standby", reading=why)

    def tick(self) -> None:
        """One look. Any thread; it has nothing to do while somebody else is at it."""
        if not self.turn.try_take(NullHeartbeat()):
            return
        try:
            process = self.process
            if self.lane.ready and process is not None and not process.alive:
                with suppress(EngineFault):
                    self.lane.look(_gone)
            tried = self.lane.description is not None or self.lane.failures > 0
            due = self._clock.monotonic() >= self.lane.next_start
            if self.warm and tried and due and not self.lane.ready and not self._closing.is_set():
                self._start_lane()
        finally:
            self.turn.give()

    def _start_lane(self) -> None:
        self._starting = True
        try:
            self.lane.start()
        except EngineFault as fault:
            self.failed(fault)
        else:
            self.started()
        finally:
            self._starting = False

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self.tick()

    def close(self) -> None:
        """No process and no thread after this. The last user's last call."""
        self._closing.set()
        if not self._ended():  # stuck in the kernel; the process goes with ours
            return
        self.turn.take(NullHeartbeat())
        try:
            self.lane.close()
        finally:
            self.turn.give()

    def _ended(self) -> bool:
        if self._thread.ident is None:
            return True
        deadline = self._clock.monotonic() + END_PATIENCE
        while self._thread.is_alive() and self._clock.monotonic() < deadline:
            process = self.process
            if self._starting and process is not None:
                process.abort()
            self._thread.join(ABORT_AGAIN)
        return not self._thread.is_alive()


def _gone() -> None:
    raise EngineLost("its process is gone")
