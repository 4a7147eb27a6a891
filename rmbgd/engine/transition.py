"""POLICY: how a device's state moves from one phase to another, and what must be remembered or forgotten then.

Does not know why it should move: the rules of failover.py do.
"""

from __future__ import annotations

from dataclasses import replace

from rmbgd.config.load import HealthSettings
from rmbgd.engine import findings
from rmbgd.engine.findings import Finding
from rmbgd.engine.health_types import (
    IN_USE,
    Changed,
    Decision,
    DeviceState,
    EndProcess,
    ErrorWindow,
    Failback,
    Failover,
    Phase,
    StartProbe,
)
from rmbgd.engine.sensors.base import Reading

STOOD_STILL = 3  # intervals between two checks: beyond it this process was frozen, and its ages mean nothing


def dwell(trips: int, health: HealthSettings) -> float:
    """Seconds away from a device after so many trips: doubling, bounded."""
    doublings = min(max(trips, 1) - 1, 64)
    return min(health.dwell * float(2**doublings), health.dwell_maximum)


class Turn:
    """One step in the making: the state as it becomes, and the decisions so far."""

    def __init__(self, state: DeviceState, now: float, health: HealthSettings) -> None:
        self.state = state
        self.decisions: list[Decision] = []
        self.now = now
        self.health = health

    def set(self, **fields: object) -> None:
        self.state = replace(self.state, **fields)  # type: ignore[arg-type]

    # --- times

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
        """After SIGSTOP or a frozen container, ages that grew meanwhile are nobody's fault."""
        last = self.state.last_check
        if last is None or self.now - last <= STOOD_STILL * self.health.interval:
            return
        if self.state.throttled_since is not None:
            self.set(throttled_since=self.now)
        if self.state.free_since is not None:
            self.set(free_since=self.now)
        if self.state.phase is Phase.PROBING:
            self.set(since=self.state.since + (self.now - last))

    # --- transitions

    def change(
        self, after: Phase, finding: Finding, reading: Reading | None = None, until: float | None = None
    ) -> None:
        asked = findings.operator_action(reading)
        state = self.state
        self.decisions.append(
            Changed(state.phase, after, finding.reason, finding.reading, finding.threshold, state.trips, until, asked)
        )
        self.set(phase=after, since=self.now, operator_action=asked or state.operator_action)

    def trip(self, after: Phase, finding: Finding, reading: Reading | None) -> None:
        """Leave the device, and stay away for longer than the last time."""
        was_in_use = self.state.in_use
        trips = self.state.trips + 1
        until = self.now + dwell(trips, self.health)
        self.set(trips=trips, next_probe=until)
        self.change(after, finding, reading, until)
        self._forget(away_since=self.now if was_in_use else self.state.away_since)
        if was_in_use:
            asked = findings.operator_action(reading)
            self.decisions.append(Failover(finding.reason, finding.reading, finding.threshold, asked))
        self.decisions.append(EndProcess(at_once=after is not Phase.COOLING))

    def lose(self, finding: Finding, reading: Reading | None) -> None:
        if self.state.phase in IN_USE | {Phase.PROBING}:
            self.trip(Phase.LOST, finding, reading)
            return
        until = max(self.state.next_probe, self.now + dwell(1, self.health))
        self.set(next_probe=until)
        self.change(Phase.LOST, finding, reading, until)
        self._forget(away_since=self.state.away_since)
        self.decisions.append(EndProcess(at_once=True))

    def _forget(self, *, away_since: float | None) -> None:
        """What was counted about the process that is left says nothing about the next one."""
        self.set(
            away_since=away_since, proved=False, looks=0, bad=0, good=0, cool=0, trial_left=0, golden_failed=False,
            throttled_since=None, free_since=None, memory_faults=(), canary=ErrorWindow(), uncorrected=None,
        )  # fmt: skip

    def probe(self, reason: str) -> None:
        self._forget(away_since=self.state.away_since)
        self.set(process=self.state.process + 1)
        self.change(Phase.PROBING, Finding(reason))
        self.set(operator_action="")
        self.decisions.append(StartProbe(self.state.process))

    def enter_if_ready(self) -> None:
        state = self.state
        if not (state.proved and state.good >= self.health.good_checks):
            return
        again = state.trips > 0
        self.set(trial_left=self.health.trial_pictures if again else 0, bad=0)
        self.change(Phase.OK, Finding("probe_passed"))
        if state.away_since is not None:
            self.decisions.append(Failback(self.now - state.away_since))
            self.set(away_since=None)
