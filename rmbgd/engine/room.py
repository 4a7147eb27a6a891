"""What an engine can be built from, and the means to watch it and to take it away from other threads.

Builds nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.engine.arena import Arena
from rmbgd.engine.seats import Seats
from rmbgd.engine.types import Backend
from rmbgd.engine.worker import EngineWorker
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat


class Watched(Protocol):
    """What others may ask of a routing. Any thread."""

    @property
    def device(self) -> str: ...

    def describe(self) -> dict[str, object]: ...

    def wake(self) -> None: ...


class EngineWatch:
    """What others may see of the engine: filled by those who build it, read by the main and the health thread."""

    def __init__(self) -> None:
        self.routing: Watched | None = None
        self._lock = threading.Lock()
        self._workers: list[EngineWorker] = []  # under the lock; those that may have a process
        self._aborted = False  # under the lock

    def add(self, worker: EngineWorker) -> EngineWorker:
        with self._lock:
            self._workers = [each for each in self._workers if not each.ended]
            self._workers.append(worker)
            if self._aborted:
                worker.abort()
        return worker

    @property
    def busy(self) -> bool:
        """A process computes, is looked at, or starts: each of that has a deadline."""
        with self._lock:
            return any(worker.asking for worker in self._workers)

    def abort(self) -> None:
        """Kill every process, and those that are still to come."""
        with self._lock:
            self._aborted = True
            for worker in self._workers:
                worker.abort()


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine can be built from."""

    config: Config
    arena: Arena
    emit: Emit
    clock: Clock
    heartbeat: Heartbeat
    stopping: threading.Event
    watch: EngineWatch = field(default_factory=EngineWatch)


EngineFactory = Callable[[EngineParts], Backend | Seats]
"""One engine, or a seat per device. Called by the thread of the first one."""


class EngineRoom:
    """Belongs to the main thread, except `engine`, which the first segment thread calls once."""

    def __init__(self, config: Config, arena: Arena, emit: Emit, clock: Clock, factory: EngineFactory) -> None:
        self._config, self._arena, self._emit, self._clock, self._factory = config, arena, emit, clock, factory
        self._stopping = threading.Event()
        self._watch = EngineWatch()

    def engine(self, heartbeat: Heartbeat) -> Backend | Seats:
        parts = EngineParts(self._config, self._arena, self._emit, self._clock, heartbeat, self._stopping, self._watch)
        return self._factory(parts)

    def give_up_waiting(self) -> None:
        """The service is stopping: an engine that is down is not waited for, one that works may finish."""
        self._stopping.set()
        if self._watch.routing is not None:
            self._watch.routing.wake()

    def abort(self) -> None:
        """Patience is over: kill every engine process, so that its owner gets its answer and can put the rest back."""
        self.give_up_waiting()
        self._watch.abort()

    @property
    def device(self) -> str | None:
        """In use now; None before that is known."""
        return self._watch.routing.device if self._watch.routing is not None else None

    @property
    def busy(self) -> bool:
        """A process has something to do, under a deadline."""
        return self._watch.busy

    def describe(self) -> dict[str, object]:
        """For the health event. Waits for nothing."""
        routing = self._watch.routing
        return {"state": "starting"} if routing is None else routing.describe()
