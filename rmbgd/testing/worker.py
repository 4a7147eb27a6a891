"""A worker without a process: a backend called in the thread that asks, for tests of whatever uses workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.supervisor import DeviceViews
from rmbgd.engine.types import BatchReport, EngineDescription, Golden, MemoryTestPass, Work, mismatch
from rmbgd.engine.wiring import cpu_supervisor
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, EngineNonsense
from rmbgd.heartbeat import Heartbeat
from rmbgd.testing.engine import FakeBackend

T = TypeVar("T")


class InProcessWorker(EngineWorker):
    """An EngineWorker in all that its users see. After a fault that is no shortage of memory it is gone, as a process
    would be."""

    pid: int | None = None
    asking = ended = abandoned = lingers = False

    def __init__(self, make: Callable[[], FakeBackend]) -> None:
        self._make = make
        self.backend: FakeBackend | None = None
        self._killed = False

    @property
    def alive(self) -> bool:
        return self.backend is not None and not self.ended and not self._killed

    def attach(self, heartbeat: Heartbeat, *, patience: float | None = None) -> None:
        """Nothing here waits."""

    def start(self) -> EngineDescription:
        self.backend = self._make()
        return self._call(lambda backend: backend.start())

    def run(self, batch: Sequence[Work]) -> BatchReport:
        report = self._call(lambda backend: backend.segment(batch))
        if mistaken := mismatch(batch, report):
            self.close()
            raise EngineNonsense(mistaken)
        return report

    def golden(self, model: str) -> Golden:
        return self._call(lambda backend: backend.golden(model))

    def canary(self, blocks: int) -> MemoryTestPass:
        return self._call(lambda backend: backend.canary(blocks))

    def abort(self) -> None:
        self._killed = True
        if self.backend is not None:
            self.backend.release()

    def close(self) -> None:
        if self.backend is not None and not self.ended:
            self.backend.close()
        self.ended = True

    def _call(self, question: Callable[[FakeBackend], T]) -> T:
        assert self.backend is not None
        self.asking = True
        try:
            if self._killed or self.ended:
                raise EngineLost("killed")
            answer = question(self.backend)
            if self._killed:
                raise EngineLost("killed")
        except EngineMemory:
            raise
        except EngineFault:
            self.close()
            raise
        finally:
            self.asking = False
        return answer


def in_process(make: Callable[[EngineContext], FakeBackend]) -> Callable[[EngineContext], Devices]:
    """Builds the one device of a service: backends that `make` gives, one after the other, without a process."""

    def build(context: EngineContext) -> Devices:
        views = DeviceViews()
        supervisor = cpu_supervisor(context, views, lambda: context.add(InProcessWorker(lambda: make(context))))
        return Devices([supervisor], views, [])

    return build
