"""Supervises one GPU: reads its sensor, probes it, checks its worker, and applies the health policy of failover.py.

- Its own thread reads the sensor, once per interval.
- A probe has a thread of its own, which owns the process until the supervisor adopts it (probe.py).
- A process that is not wanted any more is killed, then reaped on a thread of its own: one that is stuck inside the
  driver delays nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rmbgd.config.load import HealthSettings
from rmbgd.engine.failover import step
from rmbgd.engine.health_types import (
    Answered,
    Changed,
    Decision,
    Degraded,
    DeviceState,
    EndProcess,
    Fault,
    FaultKind,
    Finding,
    GoldenChecked,
    Phase,
    Probed,
    RepeatGolden,
    Sample,
    StartProbe,
    event_of,
    facts_of,
)
from rmbgd.engine.probe import GoldenReferences, Probe, ProbeResult, sha256_of
from rmbgd.engine.selftest import golden_difference, judge_golden
from rmbgd.engine.sensors.base import DeadlineSensor, Reading
from rmbgd.engine.supervisor import END_PATIENCE, DeviceParts, DeviceSupervisor
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

DEVICE_GONE = (FaultKind.NO_DEVICE, FaultKind.UNKILLABLE)
REAP_PATIENCE = 0.5  # s for a faulty process to be gone; its images are to be elsewhere within two
FIRST_PROBE_INTERVAL = 0.5  # s between checks while it proves itself for the first time: the service is starting


@dataclass(frozen=True, slots=True)
class Names:
    """How events call the two sides. `aside`: where work goes while no GPU is usable; empty when it waits."""

    aside: str
    aside_model: str
    own_model: str


class GpuSupervisor(DeviceSupervisor):
    """A GPU: the policy of failover.py is fed with what is read and reported, and what it decides is carried out."""

    def __init__(
        self,
        parts: DeviceParts,
        *,
        health: HealthSettings,
        sensor: DeadlineSensor,
        references: GoldenReferences,
        names: Names,
    ) -> None:
        super().__init__(parts)
        self._health, self._sensor, self._references, self._names = health, sensor, references, names
        # Everything below is under the lock.
        self._state = DeviceState()
        self._number = 0  # of the process in the slot
        self._undecided = True
        self._probe: Probe | None = None  # the newest one, until it is adopted or dismissed
        self._sha256: dict[str, object] = {}  # of the models that were accepted first
        self._baseline: float | None = None  # s that the golden image took then
        self._golden_wanted = False
        self._memory_test_due = self._golden_due = 0.0
        self._away_since: float | None = None  # since work goes elsewhere, or waits
        self._reading: Reading | None = None
        self._threads: list[threading.Thread] = []

    @property
    def undecided(self) -> bool:
        return self._undecided

    def describe(self) -> dict[str, object]:
        with self._views.lock:
            state, reading = self._state, self._reading
        facts: dict[str, object] = {"state": str(state.phase), "trips": state.trips}
        if reading is not None and reading.temperature is not None:
            facts["temperature"] = reading.temperature
        if not state.in_use and state.phase not in (Phase.PROBING, Phase.ABSENT):
            facts["dwell"] = round(max(state.next_probe - self._clock.monotonic(), 0.0), 1)
        if state.operator_action:
            facts["operator_action"] = state.operator_action
        return facts

    def _usable(self) -> bool:
        fits = self._worker is not None and self._number == self._state.process
        return fits and self._state.in_use and not self._closing.is_set()

    def _limit(self, largest: int) -> int:
        limit = self._state.batch_limit
        return largest if limit is None else min(largest, limit)

    # ------------------------------------------------------------------------------------------------ its own thread

    def _run(self) -> None:
        while not self._closing.wait(self.tick()):
            pass
        self._sensor.close()

    def tick(self) -> float:
        """One check. Seconds until the next one."""
        reading = self._sensor.read()
        with self._views.lock:
            self._reading = reading
            worker, number = self._worker, self._number
            gone = worker is not None and not self._busy and not worker.alive
            self.tell(reading)
            if gone and self._worker is worker:
                self.tell(Fault(FaultKind.STICKY, number, "its process is gone"))
            starting = self._undecided and self._state.phase is Phase.PROBING
            return min(self._health.interval, FIRST_PROBE_INTERVAL) if starting else self._health.interval

    def tell(self, sample: Sample) -> None:
        """Feed the policy, and apply what it decides. Nothing is decided any more when the service stops."""
        with self._views.lock:
            if self._closing.is_set():
                return
            self._state, decisions = step(self._state, sample, self._clock.monotonic(), self._health)
            state = self._state
            if state.trips or state.looks or state.in_use:
                self._undecided = False
            for decision in decisions:
                self._apply(decision)
            self._fill_slot()
            self.publish()

    # ---------------------------------------------------------------------------------------- the device's thread

    def ready_worker(self, heartbeat: Heartbeat) -> EngineWorker | None:
        """Checked first, when a memory test or the golden image is due: with work at hand that costs milliseconds, and
        without any a sick device does no harm until the next image."""
        with self._views.lock:
            worker = self._worker
            if worker is None or not self._usable():
                return None
            self._busy = True
            worker.attach(heartbeat, patience=REAP_PATIENCE)
        try:
            self._check_worker(worker)
        except EngineMemory as fault:
            self.tell(Fault(fault_kind(fault), self._number, str(fault).partition("\n")[0]))
        except EngineFault as fault:
            self.report(fault, 0)
            return None
        with self._views.lock:
            if self._usable():
                return worker
        self.release_worker()
        return None

    def _check_worker(self, worker: EngineWorker) -> None:
        now = self._clock.monotonic()
        if now >= self._memory_test_due:
            self._memory_test_due = now + self._health.canary_interval
            with suppress(EngineMemory):  # images have the memory: no test this time, and no fault
                self.tell(worker.canary(self._health.canary_blocks))
        # A wrong answer is repeated at once, until it is right or the device is left: no image goes there before.
        while self._take_golden_wish() or now >= self._golden_due:
            self._golden_due = now + self._health.golden_interval
            if self._state.process != self._number:
                return
            self._check_golden(worker)

    def _check_golden(self, worker: EngineWorker) -> None:
        assert self.description is not None
        for model, reference in (self._references.of(self.description) or {}).items():
            found = worker.golden(model)
            mean, peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            verdict = judge_golden(mean, peak, self._health)
            self.tell(GoldenChecked(verdict.passed, self._number, verdict.reading, verdict.threshold))
            if not verdict.passed:
                return

    def _take_golden_wish(self) -> bool:
        with self._views.lock:
            wanted, self._golden_wanted = self._golden_wanted, False
            return wanted

    def _answered(self, images: int) -> None:
        self.tell(Answered(self._number, images))

    def _failed(self, fault: EngineFault, *, dropped: bool) -> bool:
        kind = fault_kind(fault)
        number = self._number  # the first of the two faults may let the next process in
        in_use = self._state.in_use and self._state.process == number
        blamed = in_use and kind not in DEVICE_GONE and not self._closing.is_set()
        self.tell(Fault(kind, number, str(fault).partition("\n")[0]))
        if dropped and self._state.in_use and self._state.process == number:
            self.tell(Fault(FaultKind.STICKY, number, "its process was given up for want of memory"))
        return blamed

    def _dispose(self, worker: EngineWorker) -> None:
        if worker.lingers:
            self._reap(worker)
        else:
            worker.close()

    def close(self) -> None:
        self.stop()
        with self._views.lock:
            worker, self._worker = self._worker, None
            probe, self._probe = self._probe, None
            if probe is not None:
                probe.dismiss()
            if worker is not None:
                self._reap(worker)
        if self._thread is None:
            self._sensor.close()
        else:
            self._thread.join(END_PATIENCE)
        while True:
            with self._views.lock:
                if not self._threads:
                    return
                thread = self._threads.pop()
            thread.join(END_PATIENCE)

    # ------------------------------------------------------------------------------------------------ under the lock

    def _apply(self, decision: Decision) -> None:
        match decision:
            case Changed() | Degraded():
                event, keys = event_of(self.device, decision)
                self._emit(event, **keys)
                if isinstance(decision, Changed) and decision.is_failover:
                    self._emit_failover(decision.finding)
                elif isinstance(decision, Changed) and decision.after is Phase.OK:
                    self._emit_failback()
            case EndProcess(at_once):
                self._end_process(at_once=at_once)
            case StartProbe(number):
                self._start_probe(number)
            case RepeatGolden():
                self._golden_wanted = True

    def _end_process(self, *, at_once: bool) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.dismiss()
        if self._worker is None:
            return
        if self._busy:
            if at_once:
                self._worker.abort()  # the device's thread finds out, and reports it
            return
        worker, self._worker = self._worker, None
        worker.abort()
        self._reap(worker)

    def _tidy(self) -> None:
        if self._worker is not None and not self._usable() and not self._closing.is_set():
            worker, self._worker = self._worker, None
            self._reap(worker)
            self._fill_slot()

    def _fill_slot(self) -> None:
        """The process that passed its probe becomes the worker once the device is in use."""
        probe = self._probe
        if probe is None or not self._state.in_use or self._worker is not None:
            return
        if probe.number != self._state.process or probe.description is None:
            return
        self._probe, self._number = None, probe.number
        now = self._clock.monotonic()
        self._memory_test_due = now + self._health.canary_interval
        self._golden_due = now + self._health.golden_interval
        self.failures = 0
        self._adopt(probe.adopt(), probe.description, probe.began)

    def _start_probe(self, number: int) -> None:
        self._probe = probe = Probe(
            number,
            self._make(),
            self._references,
            device=self.device,
            sha256=self._sha256,
            baseline=self._baseline,
            health=self._health,
            clock=self._clock,
        )
        self._spawn("probe", lambda: probe.run(self._probed))

    def _probed(self, probe: Probe, result: ProbeResult) -> None:
        """Called by the probe's thread."""
        with self._views.lock:
            if probe is not self._probe:  # dismissed meanwhile
                return
            self.model_error = None if self._sha256 else result.model_error
            kind = fault_kind(result.fault) if result.fault is not None else None
            if kind is not None and kind in DEVICE_GONE:
                self.tell(Fault(kind, probe.number, result.report.error))
                return
            self.tell(Probed(probe.number, result.report))
            if self._state.proved and result.description is not None:
                self._baseline = self._baseline or result.report.seconds
                self._sha256 = self._sha256 or sha256_of(result.description)

    def _reap(self, worker: EngineWorker) -> None:
        """End a process on a thread of its own, which no heartbeat watches."""
        worker.attach(NullHeartbeat())

        def end() -> None:
            worker.close()
            if worker.abandoned:
                self.tell(Fault(FaultKind.UNKILLABLE, 0, "its process cannot be killed"))

        self._spawn("reap", end)

    def _spawn(self, name: str, body: Callable[[], None]) -> None:
        with self._views.lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=body, name=f"{name}-{self.device}", daemon=True)
            self._threads.append(thread)
            thread.start()

    # ------------------------------------------------------------------------------------------------ events at edges

    def report_absence(self) -> None:
        """Work goes elsewhere because the device was not well when the service started. Emitted once."""
        with self._views.lock:
            if self._undecided or self._state.in_use or self._away_since is not None or self._closing.is_set():
                return
            self._away_since = self._clock.monotonic()
            aside, model = self._aside()
            reason = "gpu_not_ready" if aside else "waiting_for_gpu"
            self._emit("engine.degraded", device=self.device, reason=reason, **({"model": model} if aside else {}))

    def _emit_failover(self, finding: Finding) -> None:
        self._away_since = self._clock.monotonic()
        aside, model = self._aside()
        if not aside:
            self._emit("engine.degraded", device=self.device, reason="waiting_for_gpu", **facts_of(finding))
            return
        edge = {"from": self.device, "to": aside, "model": model}
        images = list(self._computing)
        self._emit("engine.failover", images=images, reason=finding.reason, **facts_of(finding), **edge)

    def _emit_failback(self) -> None:
        if self._away_since is None:  # it was not away: well again after a suspicion, or at first
            return
        seconds = round(self._clock.monotonic() - self._away_since, 3)
        self._away_since = None
        keys = {"from": self._aside()[0] or "none", "to": self.device, "model": self._names.own_model}
        self._emit("engine.failback", **keys, seconds=seconds)

    def _aside(self) -> tuple[str, str]:
        """(devices, model) that do this one's work: the other GPUs while one is usable, else the fallback."""
        others = ", ".join(view.device for view in self._views.usable_gpus if view.device != self.device)
        return (others, self._names.own_model) if others else (self._names.aside, self._names.aside_model)


def fault_kind(fault: EngineFault) -> FaultKind:
    """What a fault of an engine process says of its device."""
    if isinstance(fault, EngineMemory):
        return FaultKind.MEMORY
    if isinstance(fault, EngineLost) and fault.cause in DEVICE_GONE:
        return FaultKind(fault.cause)
    return FaultKind.STICKY
