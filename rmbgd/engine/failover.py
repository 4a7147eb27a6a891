"""POLICY: whether a GPU is used. A state machine per device: (state, sample, now) -> (state, decisions).

Does not read a sensor, start a process, log or wait: whoever feeds it samples also carries out what it decides.

    ABSENT ─> PROBING ─> OK <─> SUSPECT         images go to the device in OK and SUSPECT only
                 ^        └──┬─────┘
                 │           ├─> COOLING        too hot, or slowed down for long
                 └───────────┼─> QUARANTINED    bad checks, memory errors, a fault that poisons its process
                             └─> LOST           off the bus, or no driver (from any phase)

Rules that hold whatever the samples are, and that a property test checks:
- OK follows only a probe that passed, in a process that was started after the last trip;
- each trip keeps the device away for `dwell`, doubled with each further trip up to `dwell_maximum`, and trips are
  forgotten only after `forgive_after` of uninterrupted OK, so a flapping device costs at most 29 failovers a day;
- what is not known is never good: an unreadable sensor is a bad check.

After a fail-back the device is in OK, since work is back on it, but takes `trial_pictures` one at a time first, and any
fault among them trips it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rmbgd.config.load import HealthSettings
from rmbgd.engine import findings
from rmbgd.engine.findings import Finding
from rmbgd.engine.health_types import (
    IN_USE,
    Answered,
    Check,
    Decision,
    Degraded,
    DeviceState,
    EndProcess,
    Fault,
    FaultKind,
    Golden,
    Phase,
    Probed,
    RepeatGolden,
    Sample,
)
from rmbgd.engine.selftest import judge
from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.transition import Turn, dwell
from rmbgd.engine.types import MemoryTestPass


def step(state: DeviceState, sample: Sample, now: float, health: HealthSettings) -> tuple[DeviceState, list[Decision]]:
    """What the sample changes. Pure: the same three give the same answer, and `state` is not touched."""
    turn = _Rules(state, now, health)
    match sample:
        case Check():
            turn.check(sample)
        case Fault():
            turn.fault(sample)
        case Golden():
            turn.golden(sample)
        case Probed():
            turn.probed(sample)
        case Answered():
            turn.answered(sample)
        case MemoryTestPass():
            turn.canary(sample)
    return turn.state, turn.decisions


class _Rules(Turn):
    """What each sample means in each phase."""

    # --- samples

    def check(self, sample: Check) -> None:
        reading = sample.reading
        self.discount_standstill()
        self.set(last_check=self.now)
        if self.state.phase in (Phase.ABSENT, Phase.LOST):
            if self.now >= self.state.next_probe:
                self._look(reading)
            return
        if lost := findings.lost(reading, self.health):
            self.lose(lost, reading)
            return
        sick = findings.sick(reading, self.state.uncorrected, self.health)
        self.set(uncorrected=reading.ecc_uncorrected if reading.ecc_uncorrected is not None else self.state.uncorrected)
        match self.state.phase:
            case Phase.OK | Phase.SUSPECT:
                self._check_in_use(sample, sick)
            case Phase.PROBING:
                self._check_probing(sample, sick)
            case Phase.COOLING:
                self._check_cooling(reading, sick)
            case Phase.QUARANTINED:
                self._check_quarantined(reading, sick)

    def fault(self, sample: Fault) -> None:
        finding = Finding(sample.kind, sample.detail or None)
        if sample.kind in (FaultKind.NO_DEVICE, FaultKind.UNKILLABLE):
            if self.state.phase not in (Phase.LOST, Phase.ABSENT):
                self.lose(finding, None)
            return
        if sample.process != self.state.process:
            return
        if sample.kind is FaultKind.MEMORY:
            window = self.health.memory_faults_window
            recent = tuple(at for at in self.state.memory_faults if self.now - at <= window)
            self.set(memory_faults=(*recent, self.now))
            often = len(self.state.memory_faults) >= self.health.memory_faults
            if not often and not (self.state.in_use and self.state.trial_left):
                return
            finding = Finding(sample.kind, len(self.state.memory_faults), self.health.memory_faults)
        if self.state.phase in IN_USE | {Phase.PROBING}:
            self.trip(Phase.QUARANTINED, finding, None)

    def golden(self, sample: Golden) -> None:
        if sample.process != self.state.process or not self.state.in_use:
            return
        if sample.passed:
            self.set(golden_failed=False)
            return
        self.set(golden_failed=True)
        if not self._bad_check(Finding("golden_mismatch", sample.reading, sample.threshold), None):
            self.decisions.append(RepeatGolden())

    def probed(self, sample: Probed) -> None:
        if sample.process != self.state.process or self.state.phase is not Phase.PROBING or self.state.proved:
            return
        verdict = judge(sample.report, self.health)
        seconds, limit = self.now - self.state.since, self.health.probe_timeout
        if seconds > limit:
            self.trip(Phase.QUARANTINED, Finding("probe_timeout", seconds, limit), None)
        elif verdict.passed:
            self.set(proved=True)
            self.enter_if_ready()
        else:
            reason = f"probe_{verdict.failed}"
            reading = verdict.reading if verdict.reading is not None else verdict.detail
            self.trip(Phase.QUARANTINED, Finding(reason, reading, verdict.threshold), None)

    def answered(self, sample: Answered) -> None:
        if sample.process == self.state.process and self.state.in_use:
            self.set(trial_left=max(self.state.trial_left - sample.images, 0))

    def canary(self, sample: MemoryTestPass) -> None:
        if not self.state.in_use:
            return
        clean = self.state.canary.bad == 0
        self.set(canary=self.state.canary.add(sample, self.now, self.health.memory_window))
        rate, limit = self.state.canary.rate, self.health.memory_error_rate
        if rate > limit:
            self.trip(Phase.QUARANTINED, Finding("memory_errors", rate, limit), None)
        elif clean and self.state.canary.bad:
            self.decisions.append(Degraded("memory_errors", rate, limit))

    # --- a check, by phase

    def _look(self, reading: Reading) -> None:
        """Is an absent or lost device there again?"""
        asked = findings.operator_action(reading)
        finding = findings.lost(reading, self.health)
        if finding is None and reading.problem is not None:
            finding = Finding(reading.problem, reading.detail or None)
        if finding is None and asked:
            finding = Finding("recovery_pending", reading.recovery)
        if finding is None:
            self.probe("found")
            return
        if self.state.phase is Phase.ABSENT and self.state.looks == 0 and asked:
            self.decisions.append(Degraded(finding.reason, finding.reading, operator_action=asked))
        self.set(looks=self.state.looks + 1, next_probe=self.now + dwell(self.state.looks + 1, self.health))

    def _check_in_use(self, sample: Check, sick: Finding | None) -> None:
        reading = sample.reading
        if sick:
            self.trip(Phase.QUARANTINED, sick, reading)
        elif hot := findings.hot(reading, self.health):
            self.trip(Phase.COOLING, hot, reading)
        elif bad := findings.bad(sample, self.health):
            self._bad_check(bad, reading)
        elif self.slowed_for_long(reading):
            seconds = self.now - (self.state.throttled_since or self.now)
            self.trip(Phase.COOLING, Finding("throttled", seconds, self.health.throttle_grace), reading)
        elif not self.state.golden_failed:
            self._good_check()
        else:
            self.decisions.append(RepeatGolden())

    def _good_check(self) -> None:
        self.set(bad=0)
        state, health = self.state, self.health
        if state.phase is Phase.OK:
            if state.throttled_since is not None:
                self.change(Phase.SUSPECT, Finding("throttled"))
                self.decisions.append(Degraded("throttled"))
            elif state.trips and self.now - state.since >= health.forgive_after:
                self.set(trips=0)
            return
        freely = state.free_since is None or self.now - state.free_since >= health.throttle_grace
        if state.throttled_since is None and freely:
            self.set(free_since=None)
            self.change(Phase.OK, Finding("well_again"))

    def _bad_check(self, finding: Finding, reading: Reading | None) -> bool:
        """Count one bad check of a device in use. Whether it tripped."""
        self.set(bad=self.state.bad + 1)
        if self.state.bad >= self.health.bad_checks:
            self.trip(Phase.QUARANTINED, finding, reading)
            return True
        if self.state.phase is Phase.OK:
            self.change(Phase.SUSPECT, finding)
            self.decisions.append(Degraded(finding.reason, finding.reading, finding.threshold))
        return False

    def _check_probing(self, sample: Check, sick: Finding | None) -> None:
        seconds = self.now - self.state.since
        if sick:
            self.trip(Phase.QUARANTINED, sick, sample.reading)
        elif hot := findings.hot(sample.reading, self.health):
            self.trip(Phase.COOLING, hot, sample.reading)
        elif seconds > self.health.probe_timeout:
            self.trip(Phase.QUARANTINED, Finding("probe_timeout", seconds, self.health.probe_timeout), sample.reading)
        elif bad := findings.bad(sample, self.health):
            self.set(good=0, bad=self.state.bad + 1)
            if self.state.bad >= self.health.bad_checks:
                self.trip(Phase.QUARANTINED, bad, sample.reading)
        else:
            self.slowed_for_long(sample.reading)  # keeps its times up to date
            self.set(good=self.state.good + 1, bad=0)
            self.enter_if_ready()

    def _check_cooling(self, reading: Reading, sick: Finding | None) -> None:
        if sick:
            self.change(Phase.QUARANTINED, sick, reading, self.state.next_probe)
            self.decisions.append(EndProcess(at_once=True))
            return
        is_cool = reading.problem is None and not reading.throttle and not reading.lacks("temperature")
        if reading.temperature is not None:
            is_cool = is_cool and reading.temperature <= self.health.cool
        self.set(cool=self.state.cool + 1 if is_cool else 0)
        if self.state.cool >= self.health.cool_checks and self.now >= self.state.next_probe:
            self.probe("cooled")

    def _check_quarantined(self, reading: Reading, sick: Finding | None) -> None:
        asked = findings.operator_action(reading)
        if asked and asked != self.state.operator_action:
            self.decisions.append(Degraded("recovery_pending", reading.recovery, operator_action=asked))
        if reading.problem is None:
            self.set(operator_action=asked)
        rests = reading.problem is None and not asked and not sick and not findings.hot(reading, self.health)
        if rests and self.now >= self.state.next_probe:
            self.probe("dwell_over")


@dataclass(frozen=True, slots=True)
class Route:
    """Where images go now. `devices` is empty when they wait in their folders."""

    devices: tuple[str, ...]
    standby: bool


def route(states: Mapping[str, DeviceState], health: HealthSettings) -> Route:
    """The GPUs in use; when none is, the CPU stands in, unless the operator prefers waiting."""
    in_use = tuple(name for name, state in states.items() if state.in_use)
    if in_use:
        return Route(in_use, standby=False)
    return Route((), standby=not health.require_gpu)
