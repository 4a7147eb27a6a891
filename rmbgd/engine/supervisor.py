"""Supervises one device: restarts its worker with backoff, counts its faults, and emits the engine's events.

Each device has one thread that computes (pipeline/infer.py) and one supervisor. The supervisor brings up a worker that
has passed its self-test and hands it over through one slot; the device's thread uses that worker and no other, and
reports what became of each batch. What others may know is the `view`, which is replaced as a whole and read without a
lock.

What threads share is under one lock for all devices, which is never held while a device, a process or a sensor is
waited for.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from rmbgd.clock import Clock, backoff
from rmbgd.engine.ipc import kind_of
from rmbgd.engine.retry import MemoryLimit
from rmbgd.engine.types import BatchReport, DeviceView, EngineDescription, Limit
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError, EngineFault, EngineLost, EngineMemory, ModelError
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

END_PATIENCE = 15.0  # s for threads and processes to be gone when the service stops; what is stuck is left behind
FAILED_STARTS = 5  # in a row, for whatever reasons, after which a run that nobody attends to gives up
ABORT_AGAIN = 0.1  # s between two orders to a process that was about to be started just then

StartThread = Callable[[str, Callable[[], None]], threading.Thread]
"""Starts a named thread. What the thread raises ends the service, and is not lost."""


class DeviceViews:
    """The views of all devices, the lock of all supervisors, and what to call after a change."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.all: tuple[DeviceView, ...] = ()  # written under the lock, read by any thread without it
        self.isolated = 0  # images that have met a fault and have no outcome yet; under the lock
        self.number_batch = count(1).__next__  # of a batch that has ended; atomic, so any thread may ask for the next
        self._listeners: list[Callable[[], None]] = []  # added to while the service is built

    def add(self, view: DeviceView) -> int:
        with self.lock:
            self.all = (*self.all, view)
            return len(self.all) - 1

    def publish(self, index: int, view: DeviceView) -> None:
        with self.lock:
            if self.all[index] != view:
                self.all = (*self.all[:index], view, *self.all[index + 1 :])
            self.changed()

    def isolate(self, by: int) -> None:
        """So many images more, or less, are isolated."""
        with self.lock:
            self.isolated += by
            self.changed()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after every change, with the lock: it must not wait."""
        self._listeners.append(listener)

    def changed(self) -> None:
        with self.lock:
            for listener in self._listeners:
                listener()

    @property
    def usable_gpus(self) -> list[DeviceView]:
        return [view for view in self.all if view.usable and not view.is_fallback]

    @property
    def fallback(self) -> DeviceView | None:
        """The device of last resort, as long as it can be relied on."""
        return next((view for view in self.all if view.is_fallback and not view.missing), None)


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """What every supervisor is made from."""

    device: str
    views: DeviceViews
    make: Callable[..., EngineWorker]  # gives a worker that was not started; keywords go over its usual options
    emit: Emit
    clock: Clock
    is_fallback: bool = False  # it is the CPU behind the GPUs
    substitutes: Mapping[str, str] = field(default_factory=dict)  # model asked for -> that computes here, if another


class DeviceSupervisor(ABC):
    """What every device has: a slot with a worker, its faults and restarts."""

    def __init__(self, parts: DeviceParts) -> None:
        self.device, self.is_fallback, self.substitutes = parts.device, parts.is_fallback, parts.substitutes
        self.description: EngineDescription | None = None  # of the last worker that was ready
        self.model_error: ModelError | None = None  # what the operator has to mend before it can be used
        self.restarts = 0
        self.failures = 0  # in a row, since a batch was computed
        self._views, self._make, self._emit, self._clock = parts.views, parts.make, parts.emit, parts.clock
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None  # its own, once it is started
        # Everything below is under the lock.
        self._worker: EngineWorker | None = None  # the slot
        self._busy = False  # the device's thread uses the worker, which then belongs to it alone
        self._computing: tuple[int, ...] = ()  # jobs that it computes
        self._fault_at: float | None = None  # of the first fault since a worker was ready
        self._missing = False  # it stands behind others, and could not be started
        self.index = parts.views.add(DeviceView(parts.device, parts.is_fallback))

    # ------------------------------------------------------------------------------------------------ what others see

    @property
    def view(self) -> DeviceView:
        largest = self.description.batch_sizes[-1] if self.description else 1
        return DeviceView(
            self.device, self.is_fallback, self._usable(), self._missing, self._limit(largest), self.description
        )

    @property
    @abstractmethod
    def undecided(self) -> bool:
        """It has neither passed its self-test nor failed, and never has: the service is starting."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """For the health event. Any thread."""

    @abstractmethod
    def _limit(self, largest: int) -> int:
        """Images that it takes at once, of those that its worker takes."""

    @abstractmethod
    def _usable(self) -> bool: ...

    def publish(self) -> None:
        self._views.publish(self.index, self.view)

    # ---------------------------------------------------------------------------------------- the device's thread

    @abstractmethod
    def ready_worker(self, heartbeat: Heartbeat) -> EngineWorker | None:
        """The worker, for the caller alone until `report` or `report_ok`; None when the device went out of service."""

    def release_worker(self) -> None:
        """The batch is done, or the worker was not needed after all."""
        with self._views.lock:
            self._busy, self._computing = False, ()
            self._tidy()
            self.publish()

    def computing(self, images: Sequence[int]) -> None:
        with self._views.lock:
            self._computing = tuple(images)

    def report_ok(self, report: BatchReport) -> None:
        with self._views.lock:
            self.failures = 0
            self._emit_limits(report.limits)
            self._answered(len(report.answers))
            self.release_worker()

    def report(self, fault: EngineFault, images: int) -> bool:
        """A batch of so many failed. Whether one of them may have caused it."""
        worker = self._worker
        assert worker is not None
        if not (stays := self._stays(fault, images)):
            self._dispose(worker)
        with self._views.lock:
            if not stays:
                self._worker = None
            self._emit_fault(fault, self._computing)
            blamed = self._failed(fault, images)
            self.release_worker()
        return blamed

    # ------------------------------------------------------------------------------------------------ life

    def start(self, start_thread: StartThread) -> None:
        self._thread = start_thread(f"health-{self.device}", self._run)

    @abstractmethod
    def _run(self) -> None:
        """What its own thread does, until `close`."""

    def stop(self) -> None:
        """From now on nothing that happens means anything, and no new worker is started."""
        with self._views.lock:
            self._closing.set()
            self.publish()

    @abstractmethod
    def close(self) -> None:
        """No process and, as far as nothing is stuck, no thread after this. The last call of the device's thread."""

    # ------------------------------------------------------------------------------------------------ under the lock

    def _tidy(self) -> None:  # noqa: B027 - the CPU's own thread looks after its worker
        """A worker that was condemned while it was busy goes now."""

    @abstractmethod
    def _answered(self, images: int) -> None:
        """A batch of so many was computed."""

    @abstractmethod
    def _stays(self, fault: EngineFault, images: int) -> bool:
        """Whether its worker goes on after such a fault in a batch of so many. Without the lock."""

    @abstractmethod
    def _failed(self, fault: EngineFault, images: int) -> bool: ...

    @abstractmethod
    def _dispose(self, worker: EngineWorker) -> None:
        """End a process after a fault. Without the lock."""

    def _adopt(self, worker: EngineWorker, description: EngineDescription, began: float) -> None:
        """A worker that was started at `began` (monotonic s) and has passed its self-test takes the slot."""
        now = self._clock.monotonic()
        first = self.description is None
        self._worker, self.description, self.device = worker, description, description.device
        if first:
            keys = {"models": description.models, "batch_sizes": list(description.batch_sizes)}
            detail = {"detail": description.detail} if description.detail else {}
            self._emit("engine.started", device=self.device, **keys, seconds=round(now - began, 3), **detail)
        else:
            self.restarts += 1
            since = began if self._fault_at is None else self._fault_at
            self._emit("engine.restarted", device=self.device, seconds=round(now - since, 3), restarts=self.restarts)
        self._fault_at = None
        self._emit_limits(description.limits)

    def _emit_fault(self, fault: EngineFault, images: Sequence[int]) -> None:
        if self._worker is None:
            self.failures += 1
            if self._fault_at is None:
                self._fault_at = self._clock.monotonic()
        facts = {"kind": kind_of(fault), "detail": str(fault), "images": list(images), "restarts": self.restarts}
        self._emit("engine.fault", device=self.device, **facts)

    def _emit_limits(self, limits: Sequence[Limit]) -> None:
        for limit in limits:
            self._emit("engine.limited", device=self.device, what=limit.what, detail=limit.detail)


class CpuSupervisor(DeviceSupervisor):
    """The CPU: its worker is restarted with backoff. As fallback it is kept loaded, or started on demand."""

    def __init__(
        self,
        parts: DeviceParts,
        *,
        delay_maximum: float,  # s; longest pause between two starts of a worker that keeps failing
        interval: float,  # s between two looks at an idle process
        stopping: threading.Event,  # set when the service stops: a worker that is down is not waited for
        warm: bool = True,  # it is loaded all the time; else while no GPU is usable, or an isolated image waits
        undecided_gpus: Callable[[], bool] = lambda: False,
        gives_up: bool = False,  # a second start that fails for the same reason ends the run
    ) -> None:
        super().__init__(parts)
        self._delay_maximum, self._interval, self._warm = delay_maximum, interval, warm
        self._stopping, self._undecided_gpus, self._gives_up = stopping, undecided_gpus, gives_up
        self._failed_starts: list[str] = []  # why, since a worker was ready; its own thread's
        self._next_start = self._clock.monotonic()
        self._memory = MemoryLimit()  # under the lock
        self._starting: EngineWorker | None = None  # by its own thread; under the lock
        self._wake = threading.Condition(self._views.lock)
        self._views.listen(self._wake.notify_all)

    @property
    def undecided(self) -> bool:
        return self.description is None and self.model_error is None

    @property
    def loading(self) -> bool:
        """It is kept loaded, and is being loaded for the first time."""
        return self._warm and self.undecided and not self._missing

    def describe(self) -> dict[str, object]:
        if self._worker is None and self._missing:
            return {"state": "missing"}
        return {"state": "ready" if self._worker is not None else "starting" if self._is_wanted() else "on_demand"}

    def _usable(self) -> bool:
        return self._worker is not None

    def ready_worker(self, heartbeat: Heartbeat) -> EngineWorker | None:
        with self._views.lock:
            if self._worker is not None:
                self._busy = True
                self._worker.attach(heartbeat)
            return self._worker

    def _limit(self, largest: int) -> int:
        return self._memory.of(largest)

    def _answered(self, images: int) -> None:  # noqa: ARG002 - any batch counts
        self._memory.passed()

    def _stays(self, fault: EngineFault, images: int) -> bool:
        """Short of memory it may take fewer images at once; for one alone a fresh process has the least in memory."""
        return isinstance(fault, EngineMemory) and images > 1

    def _failed(self, fault: EngineFault, images: int) -> bool:
        if isinstance(fault, EngineMemory):
            self._memory.halve(images)
        if self._worker is None:
            self._wait_before_start()
        return True  # the CPU itself is never to blame

    def _dispose(self, worker: EngineWorker) -> None:
        worker.close()

    def _wait_before_start(self) -> None:
        """Not at all after the first failure, then 1, 2, 4 ... s."""
        self._next_start = self._clock.monotonic() + backoff(self.failures - 1, 1.0, self._delay_maximum)

    def _is_wanted(self) -> bool:
        if not self.is_fallback or self._warm:
            return True
        return self._views.isolated > 0 or not (self._views.usable_gpus or self._undecided_gpus())

    # ------------------------------------------------------------------------------------------------ its own thread

    def _run(self) -> None:
        while not self._closing.is_set():
            self.tick()
            with self._views.lock:
                if not self._closing.is_set() and not self._is_due():
                    self._wake.wait(self.pause)

    @property
    def pause(self) -> float:
        """Seconds until a process that is down may be started, or one that is there is looked at again."""
        until_start = self._next_start - self._clock.monotonic()
        return min(self._interval, until_start) if self._worker is None and until_start > 0 else self._interval

    def tick(self) -> None:
        """One look: whether the process is there, wanted, or to be started."""
        if self._is_due():
            self._start_worker()
        with self._views.lock:
            worker = self._worker
            if worker is None or self._busy:
                return
            gone = not worker.alive
            if not gone and self._is_wanted():
                return
            self._worker = None
            if gone:
                self._emit_fault(EngineLost("its process is gone"), ())
                self._wait_before_start()
            self.publish()
        worker.attach(NullHeartbeat())
        worker.close()

    def _is_due(self) -> bool:
        with self._views.lock:
            if self._closing.is_set() or self._stopping.is_set() or self._worker is not None:
                return False
            fatal = self.model_error is not None and not self.is_fallback and self.description is None
            return not fatal and self._is_wanted() and self._clock.monotonic() >= self._next_start

    def _start_worker(self) -> None:
        began = self._clock.monotonic()
        with self._views.lock:
            self._starting = worker = self._make()
        try:
            description = worker.start()
        except (EngineFault, ModelError) as error:
            worker.close()
            self._start_failed(error)
        else:
            with self._views.lock:
                self._missing, self.model_error, self._failed_starts = False, None, []
                self._memory = MemoryLimit()  # what was measured in another process says nothing
                self._adopt(worker, description, began)
                self.publish()
        finally:
            with self._views.lock:
                self._starting = None

    def _start_failed(self, error: EngineFault | ModelError) -> None:
        """Weights that cannot be used end the first start of a device that nothing stands behind. Later on, and for the
        fallback, they are a fault like any other: they may be mended while the service runs."""
        why = str(error).partition("\n")[0]
        with self._views.lock:
            if self._closing.is_set() or self._stopping.is_set():  # it was killed, or would have to be
                return
            self.model_error = error if isinstance(error, ModelError) else None
            if self.model_error is None or self.is_fallback or self.description is not None:
                self._emit_fault(error if isinstance(error, EngineFault) else EngineLost(str(error)), ())
                self._wait_before_start()
            if self.is_fallback and not self._missing:
                self._missing = True
                self._emit("engine.degraded", device=self.device, reason="no_standby", reading=why)
            self.publish()
            if self._gives_up:
                self._give_up(why)

    def _give_up(self, why: str) -> None:
        """If another start is in vain, and no GPU works. Raises ConfigError."""
        self._failed_starts.append(re.sub(r"process \d+|; its last words.*", "", why))
        again, others = self._failed_starts.count(self._failed_starts[-1]) > 1, bool(self._views.usable_gpus)
        if (again or len(self._failed_starts) >= FAILED_STARTS) and not (others or self._undecided_gpus()):
            raise ConfigError(f"the engine cannot be started: {why}")

    def close(self) -> None:
        self.stop()
        deadline = self._clock.monotonic() + END_PATIENCE
        thread = self._thread
        while thread is not None and thread.is_alive() and self._clock.monotonic() < deadline:
            with self._views.lock:
                self._wake.notify_all()
                if self._starting is not None:
                    self._starting.abort()
            thread.join(ABORT_AGAIN)
        if thread is not None and thread.is_alive():  # stuck in the kernel; the process ends with ours
            return
        with self._views.lock:
            worker, self._worker = self._worker, None
            self.publish()
        if worker is not None:
            worker.attach(NullHeartbeat())  # the device's thread, which asks, says no more
            worker.close()
