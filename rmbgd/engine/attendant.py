"""Whoever looks after one GPU: feeds the failover policy with what is seen and met, and does what it decides.

Does not compute images, and decides nothing itself: failover.py does. Everything it shares is under one lock that
nobody holds while a device, a process or a sensor is waited for:

- its own thread reads the sensor, once per interval; a sensor that hangs is told as a bad check (deadline.py);
- a probe has a thread of its own, which owns the process until it is adopted (proving.py);
- the engine's owner tells of faults and answers, and asks for the process that has proved itself;
- a process that is not wanted any more is killed, then ended and reaped on a thread of its own: one that is stuck
  inside the driver keeps nobody waiting.

Where there are several GPUs their attendants share that lock, so that one can wait for a change of any of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmbgd.clock import Clock
from rmbgd.config.load import HealthSettings
from rmbgd.engine.failover import step
from rmbgd.engine.golden_references import References
from rmbgd.engine.health_types import (
    Changed,
    Check,
    Decision,
    Degraded,
    DeviceState,
    EndProcess,
    Failback,
    Failover,
    Fault,
    FaultKind,
    Phase,
    Probed,
    RepeatGolden,
    Sample,
    StartProbe,
)
from rmbgd.engine.proving import Proof, Result, sha256_of
from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.telling import Moves, Teller
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, ModelError
from rmbgd.events import Emit
from rmbgd.heartbeat import NullHeartbeat

FIRST_PROBE_INTERVAL = 0.5  # s between checks while a device that was never left proves itself: the service is starting
END_PATIENCE = 15.0  # s for threads and processes to be gone when the service stops; what is stuck is left behind


class TimedSensor(Protocol):
    """A sensor that keeps its deadline (health.deadline.DeadlineSensor)."""

    def read(self) -> Reading: ...

    def close(self) -> None: ...


class Attendant:
    """Looks after `device`. `make` gives a worker for it that was not started; `others` says which GPUs besides it are
    in use now; `changed` is the lock, where it is shared."""

    def __init__(
        self,
        device: str,
        *,
        health: HealthSettings,
        sensor: TimedSensor,
        make: Callable[[], EngineWorker],
        references: References,
        moves: Moves,
        emit: Emit,
        clock: Clock,
        others: Callable[[], Sequence[str]] = tuple,
        changed: threading.Condition | None = None,
    ) -> None:
        self.device = device
        self._health, self._sensor, self._make, self._references = health, sensor, make, references
        self._clock = clock
        self.in_use = False  # written under the lock, read by any thread without it: it may hold a lock of its own
        self._sweep: Callable[[], None] = _nothing  # set before it starts
        self._listener: Callable[[], None] = _nothing  # set once, by whoever feeds the device
        # Everything from here to `_reading` is under the lock.
        self._changed = changed or threading.Condition(threading.RLock())
        self._state = DeviceState()
        self._undecided = True
        self._proof: Proof | None = None  # the newest one, until it is adopted or dismissed
        self._worker: EngineWorker | None = None  # adopted, until it is condemned
        self._worker_number = 0
        self._computing: tuple[int, ...] = ()  # jobs that the owner has in hand
        self._baseline: float | None = None
        self._sha256: dict[str, object] = {}
        self._model_error: ModelError | None = None
        self._teller = Teller(device, moves, emit, clock, others)
        self._golden_wanted = False
        self._reading: Reading | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []  # under the lock
        self._own = threading.Thread(target=self._run, name=f"health-{device}", daemon=True)

    def start(self) -> None:
        self._own.start()

    def after_check(self, sweep: Callable[[], None]) -> None:
        """Call it after every check, on this one's thread, without the lock. Before the start."""
        self._sweep = sweep

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after every change, with the lock: it must not wait."""
        self._listener = listener

    # ------------------------------------------------------------------------------------------------ its own thread

    def _run(self) -> None:
        while not self._closing.wait(self.tick()):
            pass
        self._sensor.close()

    def tick(self) -> float:
        """One check. Seconds until the next one."""
        seconds = self._check()
        self._sweep()
        return seconds

    def _check(self) -> float:
        reading = self._sensor.read()
        with self._changed:
            self._reading = reading
            worker, number = self._worker, self._worker_number
            gone = worker is not None and not self._computing and not worker.alive
            self.tell(Check(reading))
            if gone and self._worker is worker:
                self.tell(Fault(FaultKind.STICKY, number, "its process is gone"))
            starting = self._undecided and self._state.phase is Phase.PROBING
            return min(self._health.interval, FIRST_PROBE_INTERVAL) if starting else self._health.interval

    # ------------------------------------------------------------------------------------------------ any thread

    def tell(self, sample: Sample) -> None:
        """Feed the policy, and do what it decides. Nothing is decided any more when the service stops."""
        with self._changed:
            if self._closing.is_set():
                return
            self._state, decisions = step(self._state, sample, self._clock.monotonic(), self._health)
            state = self._state
            if state.trips or state.looks or state.in_use:
                self._undecided = False
            self.in_use = state.in_use
            for decision in decisions:
                self._obey(decision)
            self._tell_everybody()

    @property
    def state(self) -> DeviceState:
        with self._changed:
            return self._state

    def describe(self) -> dict[str, object]:
        """For the health event."""
        with self._changed:
            state, reading = self._state, self._reading
        facts: dict[str, object] = {"state": str(state.phase), "trips": state.trips}
        if reading is not None and reading.temperature is not None:
            facts["temperature"] = reading.temperature
        if not state.in_use and state.phase not in (Phase.PROBING, Phase.ABSENT):
            facts["dwell"] = round(max(state.next_probe - self._clock.monotonic(), 0.0), 1)
        if state.operator_action:
            facts["operator_action"] = state.operator_action
        return facts

    def wait(self, done: Callable[[], bool]) -> None:
        """Until `done`; it is asked again after each change. `wake` makes it ask, too."""
        with self._changed:
            self._changed.wait_for(done)

    def wake(self) -> None:
        with self._changed:
            self._tell_everybody()

    # ------------------------------------------------------------------------------------------- the engine's owner

    @property
    def undecided(self) -> bool:
        """The device has neither proved itself nor failed, and never has: the service is starting."""
        with self._changed:
            return self._undecided

    @property
    def model_error(self) -> ModelError | None:
        """What the operator has to mend before the device can ever be used."""
        with self._changed:
            return None if self._sha256 else self._model_error

    def process(self) -> int | None:
        """The number of the process that may compute, None while none may."""
        with self._changed:
            return self._state.process if self.in_use else None

    def adopt(self, number: int) -> tuple[EngineWorker, EngineDescription, float] | None:
        """The process that proved itself, when it came up, and what it is. It is the owner's from now on."""
        with self._changed:
            proof = self._proof
            if proof is None or proof.number != number or proof.description is None:
                return None
            self._proof = None
            self._worker, self._worker_number = proof.adopt(), number
            return self._worker, proof.description, proof.began

    def computing(self, images: Sequence[int]) -> None:
        """What the owner has in hand; empty when it is done with it."""
        with self._changed:
            self._computing = tuple(images)

    def faulted(self, number: int, fault: EngineFault) -> None:
        self.tell(Fault(fault_kind(fault), number, str(fault).partition("\n")[0]))

    def take_golden_wish(self) -> bool:
        """Whether the golden image is to be computed now, because it came out wrong before."""
        with self._changed:
            wanted, self._golden_wanted = self._golden_wanted, False
            return wanted

    def references(self, description: EngineDescription) -> Mapping[str, NDArray[np.float32]]:
        """The CPU's answers by model. They are at hand for a device in use: it has been compared with them."""
        return self._references.of(description) or {}

    def went_aside(self) -> None:
        """Work goes elsewhere although the device was never in use: once, at start."""
        with self._changed:
            if not self._state.in_use:
                self._teller.never_came()

    def bury(self, worker: EngineWorker) -> None:
        """End a process on a thread of its own, which is nobody's heartbeat."""
        worker.belongs_to(NullHeartbeat())

        def end() -> None:
            worker.close()
            if worker.abandoned:
                self.tell(Fault(FaultKind.UNKILLABLE, 0, "its process cannot be killed"))

        self._spawn("burial", end)

    def stop(self) -> None:
        """From now on nothing that happens means anything. Before the owner gives his processes up."""
        with self._changed:
            self._closing.set()
            self.in_use = False
            self._tell_everybody()

    def close(self) -> None:
        """No process and, as far as nothing is stuck, no thread after this. The owner's last call."""
        self.stop()
        with self._changed:
            proof, self._proof = self._proof, None
            if proof is not None:
                proof.dismiss()
        if self._own.ident is None:  # never started
            self._sensor.close()
        else:
            self._own.join(END_PATIENCE)
        while True:
            with self._changed:
                if not self._threads:
                    return
                thread = self._threads.pop()
            thread.join(END_PATIENCE)

    # ------------------------------------------------------------------------------------------------ under the lock

    def _tell_everybody(self) -> None:
        self._changed.notify_all()
        self._listener()

    def _obey(self, decision: Decision) -> None:
        match decision:
            case Changed() | Degraded() | Failover() | Failback():
                self._teller.tell(decision, self._computing)
            case EndProcess():
                self._end_process(at_once=decision.at_once)
            case StartProbe():
                self._start_probe(decision.process)
            case RepeatGolden():
                self._golden_wanted = True

    def _end_process(self, *, at_once: bool) -> None:
        proof, self._proof = self._proof, None
        if proof is not None:
            proof.dismiss()
        worker, self._worker = self._worker, None
        if worker is not None and (at_once or not self._computing):
            worker.abort()  # its owner buries it

    def _start_probe(self, number: int) -> None:
        if self._closing.is_set():
            return
        self._proof = proof = Proof(
            number,
            self._make(),
            self._references,
            device=self.device,
            sha256=self._sha256,
            baseline=self._baseline,
            health=self._health,
            clock=self._clock,
        )
        self._spawn("probe", lambda: proof.run(self._probed))

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        with self._changed:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=body, name=f"{name}-{self.device}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _probed(self, proof: Proof, result: Result) -> None:
        """Called by the probe's thread."""
        with self._changed:
            if proof is not self._proof:  # dismissed meanwhile
                return
            self._model_error = result.model_error
            kind = fault_kind(result.fault) if result.fault is not None else None
            if kind in (FaultKind.NO_DEVICE, FaultKind.UNKILLABLE):
                self.tell(Fault(kind, proof.number, result.report.error))
                return
            self.tell(Probed(proof.number, result.report))
            if self._state.proved and result.description is not None:
                self._baseline = self._baseline or result.report.seconds
                self._sha256 = self._sha256 or sha256_of(result.description)


def _nothing() -> None:
    pass


def fault_kind(fault: EngineFault) -> FaultKind:
    """What a fault of an engine's process says of its device."""
    if isinstance(fault, EngineMemory):
        return FaultKind.MEMORY
    if isinstance(fault, EngineLost) and fault.cause in ("no_device", "unkillable"):
        return FaultKind(fault.cause)
    return FaultKind.STICKY
