"""All devices of the service: what they are built from, which of them are usable, and when the service can start."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.engine.arena import Arena
from rmbgd.engine.gpu_supervisor import GpuSupervisor
from rmbgd.engine.supervisor import CpuSupervisor, DeviceSupervisor, DeviceViews, StartThread
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineLost
from rmbgd.events import Emit

SIZES = (1, 2, 4, 8, 16)  # assumed while no device has said what it takes
HOW = ("runtime", "runtime_version", "precision", "precision_because")  # of a model's facts


class Stopped(EngineLost):
    """The service is stopping, and no device will come up any more."""


class Devices:
    """`supervisors`: one GPU or more, and the CPU behind them; or the CPU alone. Any thread may ask."""

    def __init__(self, supervisors: Sequence[DeviceSupervisor], views: DeviceViews, models: Sequence[str]) -> None:
        self.supervisors, self.views = tuple(supervisors), views
        self._first = tuple(each for each in supervisors if not each.is_fallback)
        self._fallback = next((each for each in supervisors if each.is_fallback), None)
        self._models = models
        self._description: Future[EngineDescription] = Future()
        views.listen(self._decide)

    def start(self, start_thread: StartThread) -> None:
        for supervisor in self.supervisors:
            supervisor.start(start_thread)

    def description(self) -> EngineDescription:
        """What images will be computed by, once that is decided: by the first device that passed its self-test, or
        because all GPUs failed and the fallback serves. A fallback that is kept loaded is there by then, so that no
        failover waits for its start. Raises ModelError, and Stopped when the service stops first."""
        return self._description.result()

    def stop_waiting(self) -> None:
        """The service is stopping: a device that is down is not waited for."""
        with self.views.lock:
            if not self._description.done():
                self._description.set_exception(Stopped("the service is stopping and no engine is ready"))
            self.views.changed()

    def _decide(self) -> None:
        """After every change, with the lock."""
        if not self._description.done():
            self._resolve()
        if self._description.done() and self._description.exception() is None:
            for supervisor in self._first:
                if isinstance(supervisor, GpuSupervisor):
                    supervisor.report_absence()

    def _resolve(self) -> None:
        first, fallback = self._first, self._fallback
        usable = [each.description for each in first if each.view.usable and each.description is not None]
        errors = [each.model_error for each in first if each.model_error is not None]
        if usable:
            if not (isinstance(fallback, CpuSupervisor) and fallback.loading):
                self._description.set_result(usable[0])
        elif len(errors) == len(first):  # what the operator has to mend before any of them can compute
            self._description.set_exception(errors[0])
        elif any(each.undecided for each in first) or isinstance(first[0], CpuSupervisor):
            return
        elif fallback is None or fallback.view.usable:
            # The weights that were asked for have not been seen: what is computed now must not be found again later.
            unseen: dict[str, dict[str, object]]
            unseen = {name: {"sha256": f"not seen {uuid.uuid4()}"} for name in self._models}
            self._description.set_result(EngineDescription(self.device, unseen, SIZES))
        elif fallback.model_error is not None:
            self._description.set_exception(fallback.model_error)

    @property
    def device(self) -> str:
        """Those in use now, by name."""
        if usable := self.views.usable_gpus:
            return ", ".join(view.device for view in usable)
        last = self._fallback or self._first[0]
        return last.device if isinstance(last, CpuSupervisor) else "none"

    def describe(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "state": self._state(),
            "device": self.device,
            "restarts": sum(each.restarts for each in self.supervisors),
            "failures": sum(each.failures for each in self.supervisors),
        }
        if isinstance(self._first[0], GpuSupervisor):
            facts["devices"] = {each.device: each.describe() for each in self.supervisors}
        return facts

    def cpu_models(self) -> dict[str, dict[str, object]]:
        """How the CPU computes each of its models, and why; empty until its worker has started."""
        last = self.supervisors[-1]
        models = last.description.models if isinstance(last, CpuSupervisor) and last.description else {}
        return {name: {key: facts[key] for key in HOW if key in facts} for name, facts in models.items()}

    def _state(self) -> str:
        usable, first = self.views.usable_gpus, self._first
        if isinstance(first[0], CpuSupervisor):
            return "ready" if usable else "starting" if first[0].description is None else "restarting"
        if not usable and any(each.undecided for each in first):
            return "starting"
        if not usable and (self._fallback is None or not self._fallback.view.usable):
            return "waiting"
        away = any(not each.view.usable and not each.undecided for each in first)
        return "degraded" if away and len(first) > 1 else "ready"


@dataclass(slots=True)
class EngineContext:
    """What devices are built from, and what the service keeps of them: every worker that may have a process, so that
    it can see whether one is busy, and kill them all."""

    config: Config
    arena: Arena
    emit: Emit
    clock: Clock
    stopping: threading.Event = field(default_factory=threading.Event)
    gives_up: bool = False  # an engine that cannot start for the same reason twice ends the run: nobody mends it
    devices: Devices | None = None  # set once, by the thread that builds them
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _workers: list[EngineWorker] = field(default_factory=list)  # under the lock
    _aborted: bool = False  # under the lock

    def add(self, worker: EngineWorker) -> EngineWorker:
        with self._lock:
            self._workers = [*(each for each in self._workers if not each.ended), worker]
            if self._aborted:
                worker.abort()
        return worker

    def stop_waiting(self) -> None:
        """The service is stopping: a worker that is down is not waited for, one that works may finish."""
        self.stopping.set()
        if self.devices is not None:
            self.devices.stop_waiting()

    def abort(self) -> None:
        """Patience is over: kill every engine process, and those that are still to come, so that its thread gets an
        answer and can put the rest back."""
        self.stop_waiting()
        with self._lock:
            self._aborted = True
            for worker in self._workers:
                worker.abort()

    @property
    def device(self) -> str | None:
        """In use now; None before that is known."""
        return self.devices.device if self.devices is not None else None

    @property
    def busy(self) -> bool:
        """A process computes, is checked, or starts: each of that has a deadline."""
        with self._lock:
            return any(worker.asking for worker in self._workers)

    def describe(self) -> dict[str, object]:
        """For the health event. Waits for nothing."""
        return {"state": "starting"} if self.devices is None else self.devices.describe()

    def cpu_models(self) -> dict[str, dict[str, object]]:
        """As Devices says it; for the status file."""
        return {} if self.devices is None else self.devices.cpu_models()


EngineFactory = Callable[[EngineContext], Devices]
"""Builds the devices; may take seconds. Called by a thread of the pipeline."""
