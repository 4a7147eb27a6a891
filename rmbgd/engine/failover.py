"""POLICY: circuit breaker of one GPU: whether images go to it, or to the CPU until it has passed a self-test again.

A state machine per device: (state, sample, now) -> (state, decisions). In the field's words: closed (ok, suspect), open
(cooling, quarantined, lost, absent), half-open (probing, and the trial that follows).

    ABSENT ─> PROBING ─> OK <─> SUSPECT         images go to the device in OK and SUSPECT only
                 ^        └──┬─────┘
                 │           ├─> COOLING        too hot, or slowed down for long
                 └───────────┼─> QUARANTINED    bad checks, memory errors, a fault that poisons its process
                             ├─> SHORT          fresh processes ran out of memory again and again
                             └─> LOST           off the bus, or no driver (from any phase)

Rules that hold whatever the samples are, and that a property test checks:
- OK follows only a probe that passed, in a process that was started after the last trip;
- each trip keeps the device away for the cooldown (setting `dwell`), doubled with each further trip up to
  `dwell_maximum`, and trips are forgotten only after `forgive_after` of uninterrupted OK, so a flapping device costs at
  most 29 failovers a day;
- what is not known is never good: an unreadable sensor is a bad check.

After a fail-back the device is in OK, since work is back on it, but takes `trial_pictures` one at a time first, and any
fault among them trips it again.

Shortage of memory is no trip. The process divided what was free when it started, so somebody else took memory since: a
fresh one divides anew, at once at first, then after pauses that double like those after trips.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rmbgd.clock import backoff
from rmbgd.config.load import HealthSettings
from rmbgd.engine import health_types
from rmbgd.engine.health_types import OUT_OF_USE, Decision, DeviceState, FaultKind, Finding, Phase, Sample
from rmbgd.engine.selftest import judge
from rmbgd.engine.sensors.base import OUT_OF_REACH, Problem, Reading
from rmbgd.engine.types import MemoryTestPass

HAS_PROCESS = health_types.IN_USE | {Phase.PROBING}
STOOD_STILL = 3  # intervals between two checks: beyond it this process was frozen, and its ages mean nothing


def step(state: DeviceState, sample: Sample, now: float, health: HealthSettings) -> tuple[DeviceState, list[Decision]]:
    """What the sample changes. Pure: the same three give the same answer, and `state` is not touched."""
    rules = HealthRules(state, now, health)
    match sample:
        case Reading():
            rules.check(sample)
        case health_types.Fault():
            rules.fault(sample)
        case health_types.GoldenChecked():
            rules.golden(sample)
        case health_types.Probed():
            rules.probed(sample)
        case health_types.Answered():
            rules.answered(sample)
        case MemoryTestPass():
            rules.memory_test(sample)
    return rules.state, rules.decisions


def cooldown(trips: int, health: HealthSettings) -> float:
    """Seconds away from a device after so many trips: doubling, bounded."""
    return backoff(max(trips, 1), health.dwell, health.dwell_maximum)


# --- what one reading says against a device; what a board cannot know is left out


def out_of_reach(reading: Reading, health: HealthSettings) -> Finding | None:
    """The device is out of reach: off the bus, without a driver, or its firmware is dead."""
    if reading.problem in OUT_OF_REACH:
        return Finding(str(reading.problem), reading.detail or None)
    return next((Finding("xid", xid) for xid in reading.xids if xid in health.xid_lost), None)


def damaged(reading: Reading, uncorrected: int | None, health: HealthSettings) -> Finding | None:
    """The device says itself that it is damaged. `uncorrected`: the ECC count when last seen, None when never."""
    for xid in reading.xids:
        if xid in health.xid_quarantine:
            return Finding("xid", xid)
    count = reading.ecc_uncorrected
    if count is not None and uncorrected is not None and count > uncorrected:
        return Finding("ecc_uncorrected", count, uncorrected)
    if reading.remap_failed:
        return Finding("row_remap_failed")
    return None


def too_hot(reading: Reading, health: HealthSettings) -> Finding | None:
    if reading.temperature is not None and reading.temperature > health.hot:
        return Finding("temperature", reading.temperature, health.hot)
    return None


def bad_check(reading: Reading, health: HealthSettings) -> Finding | None:
    """The check cannot be called good. One alone proves nothing."""
    if reading.problem is not None:
        return Finding(str(reading.problem), reading.detail or None)
    if reading.temperature is None:
        unknown = health.require_temperature or reading.lacks("temperature")
    else:
        unknown = not math.isfinite(reading.temperature)
    if unknown:
        return Finding("no_temperature")
    if asked := operator_action(reading):
        return Finding("recovery_pending", asked)
    return None


def operator_action(reading: Reading | None) -> str:
    """What only a person can do for the device; empty when nothing, or when the board cannot tell."""
    if reading is None:
        return ""
    if reading.remap_failed:
        return "replace_gpu"
    if reading.recovery not in (None, "none"):
        return str(reading.recovery)
    return "reboot" if reading.problem is Problem.DRIVER_MISMATCH else ""


class HealthRules:
    """One step in the making: the state as it becomes, the decisions so far, and what each sample means."""

    def __init__(self, state: DeviceState, now: float, health: HealthSettings) -> None:
        self.state = state
        self.decisions: list[Decision] = []
        self.now = now
        self.health = health

    def set(self, **fields: object) -> None:
        self.state = replace(self.state, **fields)  # type: ignore[arg-type]

    def slowed_for_long(self, reading: Reading) -> bool:
        """Keep the two throttle times; whether it is slowed down beyond the grace."""
        if reading.throttle:
            if self.state.throttled_since is None:
                self.set(throttled_since=self.now, free_since=None)
        elif reading.throttle is not None and self.state.throttled_since is not None:
            self.set(throttled_since=None, free_since=self.now)
        since = self.state.throttled_since
        return since is not None and self.now - since > self.health.throttle_grace

    def discount_standstill(self) -> None:
        """After SIGSTOP or a frozen container, ages that grew meanwhile mean nothing."""
        last = self.state.last_check
        if last is None or self.now - last <= STOOD_STILL * self.health.interval:
            return
        if self.state.throttled_since is not None:
            self.set(throttled_since=self.now)
        if self.state.free_since is not None:
            self.set(free_since=self.now)

    def change(self, after: Phase, finding: Finding, reading: Reading | None = None) -> None:
        asked, state = operator_action(reading), self.state
        until = state.next_probe if after in OUT_OF_USE else None
        self.decisions.append(
            health_types.Changed(state.phase, after, replace(finding, operator_action=asked), state.trips, until)
        )
        self.set(phase=after, since=self.now, operator_action=asked or state.operator_action)

    def trip(self, after: Phase, finding: Finding, reading: Reading | None) -> None:
        """Leave the device, and stay away for longer than the last time."""
        trips = self.state.trips + 1
        self.set(trips=trips, next_probe=self.now + cooldown(trips, self.health))
        self._leave(after, finding, reading)

    def lose(self, finding: Finding, reading: Reading | None) -> None:
        if self.state.phase in HAS_PROCESS:
            self.trip(Phase.LOST, finding, reading)
        else:
            self.set(next_probe=max(self.state.next_probe, self.now + cooldown(1, self.health)))
            self._leave(Phase.LOST, finding, reading)

    def _leave(self, after: Phase, finding: Finding, reading: Reading | None) -> None:
        self.change(after, finding, reading)
        self._forget()
        self.decisions.append(health_types.EndProcess(at_once=after is not Phase.COOLING))

    def _forget(self) -> None:
        """What was counted about the process that is left says nothing about the next one."""
        self.set(
            proved=False, looks=0, bad=0, good=0, cool=0, trial_left=0, golden_failed=False, throttled_since=None,
            free_since=None, canary=health_types.ErrorWindow(), uncorrected=None,
        )  # fmt: skip

    def probe(self, finding: Finding) -> None:
        self._forget()
        self.set(process=self.state.process + 1)
        self.change(Phase.PROBING, finding)
        self.set(operator_action="")
        self.decisions.append(health_types.StartProbe(self.state.process))

    def replan(self) -> None:
        """Replace a process that ran short of memory. Checks that were good stay so: the device is well."""
        state, health = self.state, self.health
        soon = self.now - state.next_probe <= health.memory_faults_window
        shortages = state.shortages + 1 if soon else 1
        pause = backoff(shortages - health.memory_faults + 1, health.dwell, health.dwell_maximum)
        self.set(shortages=shortages, next_probe=self.now + pause)
        finding = Finding("replan", shortages, health.memory_faults)
        if pause:
            self._leave(Phase.SHORT, finding, None)
            return
        self.decisions.append(health_types.EndProcess(at_once=True))
        self.probe(finding)
        self.set(good=0 if state.phase is Phase.SUSPECT else state.good)

    def enter_if_ready(self) -> None:
        state, health = self.state, self.health
        if not state.proved or state.good < health.good_checks:
            return
        careful = state.trips or state.shortages >= health.memory_faults
        self.set(trial_left=health.trial_pictures if careful else 0, bad=0)
        self.change(Phase.OK, Finding("probe_passed"))

    # --- samples

    def check(self, reading: Reading) -> None:
        self.discount_standstill()
        self.set(last_check=self.now)
        phase = self.state.phase
        if phase in (Phase.ABSENT, Phase.LOST):
            if self.now >= self.state.next_probe:
                self._search(reading)
            return
        if lost := out_of_reach(reading, self.health):
            self.lose(lost, reading)
            return
        sick = damaged(reading, self.state.uncorrected, self.health)
        if reading.ecc_uncorrected is not None:
            self.set(uncorrected=reading.ecc_uncorrected)
        if phase is Phase.COOLING:
            self._check_cooling(reading, sick)
        elif phase in (Phase.QUARANTINED, Phase.SHORT):
            self._check_resting(reading, sick)
        elif sick:
            self.trip(Phase.QUARANTINED, sick, reading)
        elif hot := too_hot(reading, self.health):
            self.trip(Phase.COOLING, hot, reading)
        elif phase is Phase.PROBING:
            self._check_probing(reading)
        else:
            self._check_in_use(reading)

    def fault(self, sample: health_types.Fault) -> None:
        finding = Finding(sample.kind, sample.detail or None)
        if sample.kind in (FaultKind.NO_DEVICE, FaultKind.UNKILLABLE):
            if self.state.phase not in (Phase.LOST, Phase.ABSENT):
                self.lose(finding, None)
            return
        if sample.process != self.state.process:
            return
        if self.state.phase not in HAS_PROCESS:
            return
        if sample.kind is FaultKind.MEMORY:
            self.replan()
        elif sample.kind is FaultKind.UNCLEAN_CAPTURE and self.state.phase is Phase.PROBING:
            self.decisions.append(health_types.EndProcess(at_once=True))
            self.probe(finding)
        else:
            self.trip(Phase.QUARANTINED, finding, None)

    def golden(self, sample: health_types.GoldenChecked) -> None:
        if sample.process != self.state.process or not self.state.in_use:
            return
        self.set(golden_failed=not sample.passed)
        finding = Finding("golden_mismatch", sample.reading, sample.threshold)
        if not sample.passed and not self._bad_check(finding, None):
            self.decisions.append(health_types.RepeatGolden())

    def probed(self, sample: health_types.Probed) -> None:
        if sample.process != self.state.process or self.state.phase is not Phase.PROBING or self.state.proved:
            return
        verdict = judge(sample.report, self.health)
        if verdict.passed:
            self.set(proved=True)
            self.enter_if_ready()
        else:
            reason = f"probe_{verdict.failed}"
            reading = verdict.reading if verdict.reading is not None else verdict.detail
            self.trip(Phase.QUARANTINED, Finding(reason, reading, verdict.threshold), None)

    def answered(self, sample: health_types.Answered) -> None:
        if sample.process == self.state.process and self.state.in_use:
            self.set(trial_left=max(self.state.trial_left - sample.images, 0))

    def memory_test(self, sample: MemoryTestPass) -> None:
        if not self.state.in_use:
            return
        clean = self.state.canary.bad == 0
        self.set(canary=self.state.canary.add(sample, self.now, self.health.memory_window))
        rate, limit = self.state.canary.rate, self.health.memory_error_rate
        if rate > limit:
            self.trip(Phase.QUARANTINED, Finding("memory_errors", rate, limit), None)
        elif clean and self.state.canary.bad:
            self.decisions.append(Finding("memory_errors", rate, limit))

    # --- a check, by phase

    def _search(self, reading: Reading) -> None:
        """Is an absent or lost device there again?"""
        asked = operator_action(reading)
        finding = out_of_reach(reading, self.health)
        if finding is None and reading.problem is not None:
            finding = Finding(reading.problem, reading.detail or None)
        if finding is None and asked:
            finding = Finding("recovery_pending", reading.recovery)
        if finding is None:
            self.probe(Finding("found"))
            return
        if self.state.phase is Phase.ABSENT and self.state.looks == 0 and asked:
            self.decisions.append(Finding(finding.reason, finding.reading, operator_action=asked))
        self.set(looks=self.state.looks + 1, next_probe=self.now + cooldown(self.state.looks + 1, self.health))

    def _check_in_use(self, reading: Reading) -> None:
        if bad := bad_check(reading, self.health):
            self._bad_check(bad, reading)
        elif self.slowed_for_long(reading):
            seconds = self.now - (self.state.throttled_since or self.now)
            self.trip(Phase.COOLING, Finding("throttled", seconds, self.health.throttle_grace), reading)
        elif not self.state.golden_failed:
            self._good_check()
        else:
            self.decisions.append(health_types.RepeatGolden())

    def _good_check(self) -> None:
        self.set(bad=0)
        state, health = self.state, self.health
        if state.phase is Phase.OK:
            if state.throttled_since is not None:
                self.change(Phase.SUSPECT, Finding("throttled"))
                self.decisions.append(Finding("throttled"))
            elif state.trips and self.now - state.since >= health.forgive_after:
                self.set(trips=0)
            return
        freely = state.free_since is None or self.now - state.free_since >= health.throttle_grace
        if state.throttled_since is None and freely:
            self.set(free_since=None)
            self.change(Phase.OK, Finding("well_again"))

    def _bad_check(self, finding: Finding, reading: Reading | None) -> bool:
        """Count one bad check. Whether it tripped."""
        self.set(bad=self.state.bad + 1)
        if self.state.bad >= self.health.bad_checks:
            self.trip(Phase.QUARANTINED, finding, reading)
            return True
        if self.state.phase is Phase.OK:
            self.change(Phase.SUSPECT, finding)
            self.decisions.append(finding)
        return False

    def _check_probing(self, reading: Reading) -> None:
        if bad := bad_check(reading, self.health):
            self.set(good=0)
            self._bad_check(bad, reading)
        else:
            self.slowed_for_long(reading)  # keeps its times up to date
            self.set(good=self.state.good + 1, bad=0)
            self.enter_if_ready()

    def _check_cooling(self, reading: Reading, sick: Finding | None) -> None:
        if sick:
            self.change(Phase.QUARANTINED, sick, reading)
            self.decisions.append(health_types.EndProcess(at_once=True))
            return
        is_cool = reading.problem is None and not reading.throttle and not reading.lacks("temperature")
        if reading.temperature is not None:
            is_cool = is_cool and reading.temperature <= self.health.cool
        self.set(cool=self.state.cool + 1 if is_cool else 0)
        if self.state.cool >= self.health.cool_checks and self.now >= self.state.next_probe:
            self.probe(Finding("cooled"))

    def _check_resting(self, reading: Reading, sick: Finding | None) -> None:
        asked = operator_action(reading)
        if asked and asked != self.state.operator_action:
            self.decisions.append(Finding("recovery_pending", reading.recovery, operator_action=asked))
        if reading.problem is None:
            self.set(operator_action=asked)
        rests = reading.problem is None and not asked and not sick and not too_hot(reading, self.health)
        if rests and self.now >= self.state.next_probe:
            self.probe(Finding("dwell_over"))
