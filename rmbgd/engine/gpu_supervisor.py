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

from rmbgd.config.load import HealthSettings
from rmbgd.engine import health_types
from rmbgd.engine.degradation import Degradation
from rmbgd.engine.failover import step
from rmbgd.engine.health_types import Changed, Decision, DeviceState, Fault, FaultKind, Finding, Phase, Sample
from rmbgd.engine.probe import GoldenReferences, Probe, ProbeResult, sha256_of
from rmbgd.engine.selftest import golden_difference, golden_factor, judge_golden
from rmbgd.engine.sensors.base import DeadlineSensor, Reading
from rmbgd.engine.supervisor import END_PATIENCE, DeviceParts, DeviceSupervisor
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineFault, EngineLost, EngineMemory
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

DEVICE_GONE = (FaultKind.NO_DEVICE, FaultKind.UNKILLABLE)
REAP_PATIENCE = 0.5  # s for a faulty process to be gone; its images are to be elsewhere within two
CONFIGURED = Degradation()
FIRST_PROBE_INTERVAL = 0.5  # s between checks while it proves itself for the first time: the service is starting


class GpuSupervisor(DeviceSupervisor):
    """A GPU: the policy of failover.py is fed with what is read and reported, and what it decides is carried out."""

    undecided = True  # changed under the lock

    def __init__(
        self,
        parts: DeviceParts,
        *,
        health: HealthSettings,
        sensor: DeadlineSensor,
        references: GoldenReferences,
        model: str,
        aside: tuple[str, str],  # (device, model) that work goes to while no GPU is usable; empty when it waits
        degradation: Degradation = CONFIGURED,
    ) -> None:
        super().__init__(parts)
        self._health, self._sensor, self._references = health, sensor, references
        self._model, self._fallback = model, aside
        # Everything below is under the lock.
        self._degradation = degradation
        self._state = DeviceState()
        self._number = 0  # of the process in the slot
        self._probe: Probe | None = None  # the newest one, until it is adopted or dismissed
        self._sha256: dict[str, object] = {}  # of the models that were accepted first
        self._baseline: float | None = None  # s that the golden image took then
        self._memory_test_due = self._golden_due = 0.0
        self._away_since: float | None = None  # since work goes elsewhere, or waits
        self._reading: Reading | None = None
        self._threads: list[threading.Thread] = []

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
        return largest if self._state.in_use and not self._state.trial_left else 1

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
            starting = self.undecided and self._state.phase is Phase.PROBING
            return min(self._health.interval, FIRST_PROBE_INTERVAL) if starting else self._health.interval

    def tell(self, sample: Sample) -> None:
        """Feed the policy, and apply what it decides. Nothing is decided any more when the service stops."""
        with self._views.lock:
            if self._closing.is_set():
                return
            self._state, decisions = step(self._state, sample, self._clock.monotonic(), self._health)
            state = self._state
            if state.trips or state.looks or state.in_use or state.phase is Phase.SHORT:
                self.undecided = False
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
        while now >= self._golden_due:
            self._golden_due = now + self._health.golden_interval
            if self._state.process != self._number:
                return
            self._check_golden(worker)

    def _check_golden(self, worker: EngineWorker) -> None:
        assert self.description is not None
        for model, reference in (self._references.of(self.description) or {}).items():
            found = worker.golden(model)
            mean, peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            factor = golden_factor([self.description.models[model]])
            verdict = judge_golden(mean, peak, self._health, factor)
            self.tell(health_types.GoldenChecked(verdict.passed, self._number, verdict.reading, verdict.threshold))
            if not verdict.passed:
                return

    def _answered(self, images: int) -> None:
        self.tell(health_types.Answered(self._number, images))

    def _stays(self, fault: EngineFault, images: int) -> bool:  # noqa: ARG002 - a fresh process plans anew
        return False

    def _failed(self, fault: EngineFault, images: int) -> bool:  # noqa: ARG002
        kind = fault_kind(fault)
        number = self._number  # the first of the two faults may let the next process in
        in_use = self._state.in_use and self._state.process == number
        blamed = in_use and kind not in DEVICE_GONE and not self._closing.is_set()
        self.tell(Fault(kind, number, str(fault).partition("\n")[0]))
        return blamed

    def _dispose(self, worker: EngineWorker) -> None:
        worker.abort()
        self._reap(worker)

    def close(self) -> None:
        self.stop()
        with self._views.lock:
            self._dismiss_probe()
            self._empty_slot()
            threads, self._threads = self._threads, []
        if self._thread is None:
            self._sensor.close()
        else:
            self._thread.join(END_PATIENCE)
        for thread in threads:
            thread.join(END_PATIENCE)

    # ------------------------------------------------------------------------------------------------ under the lock

    def _apply(self, decision: Decision) -> None:
        if isinstance(decision, Changed | Finding):
            event, keys = health_types.event_of(self.device, decision)
            self._emit(event, **keys)
        match decision:
            case Changed(is_failover=True):
                self._emit_failover(decision.finding)
            case Changed(after=Phase.OK):
                self._emit_failback()
            case health_types.EndProcess(at_once):
                self._end_process(at_once=at_once)
            case health_types.StartProbe(number):
                self._start_probe(number)
            case health_types.RepeatGolden():
                self._golden_due = 0.0

    def _dismiss_probe(self) -> None:
        if self._probe is not None:
            self._probe.dismiss()
            self._probe = None

    def _end_process(self, *, at_once: bool) -> None:
        self._dismiss_probe()
        if self._worker is not None and (at_once or not self._busy):
            self._worker.abort()  # while it is busy, the device's thread finds out, and reports it
        if not self._busy:
            self._empty_slot()

    def _tidy(self) -> None:
        if self._worker is not None and not self._usable() and not self._closing.is_set():
            self._empty_slot()
            self._fill_slot()

    def _empty_slot(self) -> None:
        if self._worker is not None:
            self._reap(self._worker)
            self._worker = None

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
            self._make(**self._degradation.options),
            self._references,
            device=self.device,
            sha256=self._sha256,
            baseline=self._baseline,
            health=self._health,
            clock=self._clock,
        )
        dying = [thread for thread in self._threads if thread.is_alive()]

        def run() -> None:
            """When the processes before it are gone, or given up: until then they have memory, or the device."""
            for thread in dying:
                thread.join(END_PATIENCE)
            probe.run(self._probed)

        self._spawn("probe", run)

    def _probed(self, probe: Probe, result: ProbeResult) -> None:
        """Called by the probe's thread."""
        with self._views.lock:
            if probe is not self._probe:  # dismissed meanwhile
                return
            self.model_error = None if self._sha256 else result.model_error
            kind = None if result.fault is None else self._degrade(result.fault, result.report.error)
            if kind is not None and kind is not FaultKind.STICKY:
                self.tell(Fault(kind, probe.number, result.report.error))
                return
            self.tell(health_types.Probed(probe.number, result.report))
            if self._state.proved and result.description is not None:
                self._degradation = self._degradation.after_pass()
                self._baseline = self._baseline or result.report.seconds
                self._sha256 = self._sha256 or sha256_of(result.description)

    def _degrade(self, fault: EngineFault, why: str) -> FaultKind:
        """What a fault before the process had passed says of its device; the next process may do without something."""
        kind, limit = fault_kind(fault), None
        if kind is FaultKind.UNCLEAN_CAPTURE and self._degradation.graphs:
            self._degradation, limit = self._degradation.after_unclean_capture(why)
        elif kind in (FaultKind.STICKY, FaultKind.UNCLEAN_CAPTURE):
            kind = FaultKind.STICKY
            if not (isinstance(fault, EngineLost) and fault.cause == KILLED_FROM_OUTSIDE):
                self._degradation, limit = self._degradation.after_fault(why)
        self._emit_limits([limit] if limit else [])
        return kind

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

    def report_absence(self) -> None:
        """Work goes elsewhere because the device was not well when the service started. Emitted once."""
        with self._views.lock:
            if self.undecided or self._state.in_use or self._away_since is not None or self._closing.is_set():
                return
            self._away_since = self._clock.monotonic()
            aside, model = self._aside()
            reason = "gpu_not_ready" if aside else "waiting_for_gpu"
            self._emit("engine.degraded", device=self.device, reason=reason, **({"model": model} if aside else {}))

    def _emit_failover(self, finding: Finding) -> None:
        self._away_since = self._clock.monotonic()
        facts, (aside, model) = health_types.facts_of(finding), self._aside()
        if not aside:
            self._emit("engine.degraded", device=self.device, reason="waiting_for_gpu", **facts)
            return
        facts |= {"from": self.device, "to": aside, "model": model}
        self._emit("engine.failover", images=list(self._computing), reason=finding.reason, **facts)

    def _emit_failback(self) -> None:
        if self._away_since is None:  # it was not away: well again after a suspicion, or at first
            return
        seconds = round(self._clock.monotonic() - self._away_since, 3)
        self._away_since = None
        keys = {"from": self._aside()[0] or "none", "to": self.device, "model": self._model}
        self._emit("engine.failback", **keys, seconds=seconds)

    def _aside(self) -> tuple[str, str]:
        """(devices, model) that do this one's work: the other GPUs while one is usable, else the fallback."""
        others = ", ".join(view.device for view in self._views.usable_gpus if view.device != self.device)
        return (others, self._model) if others else self._fallback


def fault_kind(fault: EngineFault) -> FaultKind:
    """What a fault of an engine process says of its device."""
    if isinstance(fault, EngineMemory):
        return FaultKind.MEMORY
    if isinstance(fault, EngineLost) and fault.cause in (*DEVICE_GONE, FaultKind.UNCLEAN_CAPTURE):
        return FaultKind(fault.cause)
    return FaultKind.STICKY
