"""Values of the circuit breaker (failover.py): phases, what it is fed with, what it decides and what it remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.types import MemoryTestPass


@dataclass(frozen=True, slots=True)
class ErrorWindow:
    """POLICY: the rate of bad blocks over the passes of the last `window` seconds."""

    passes: tuple[tuple[float, int, int], ...] = ()

    def add(self, found: MemoryTestPass, now: float, window: float) -> ErrorWindow:
        kept = tuple(entry for entry in self.passes if now - entry[0] <= window)
        return ErrorWindow((*kept, (now, found.blocks, found.bad)))

    @property
    def bad(self) -> int:
        return sum(bad for _, _, bad in self.passes)

    @property
    def rate(self) -> float:
        """Bad blocks per block checked; 0 when nothing was checked."""
        checked = sum(blocks for _, blocks, _ in self.passes)
        return self.bad / checked if checked else 0.0


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a probe measured. A field left None was not reached."""

    fresh_process: bool = False  # spawned for this probe, it has served nothing before
    enumerated: bool | None = None  # the device answered to its name in that process
    model_intact: bool | None = None  # the weights that were loaded have the expected sha256
    canary_passes: int | None = None  # full passes over the canary
    canary_bad: int | None = None  # bad blocks found in them
    golden_mean: float | None = None  # mean |alpha - stored alpha| on the golden image, 0..1
    golden_peak: float | None = None  # the same difference, largest over all pixels but the allowed share of outliers
    golden_factor: float = 1.0  # times the bounds of the two: selftest.golden_factor
    test_seconds: float | None = None  # that the memory test and the golden images took together
    seconds: float | None = None  # for the golden image, warm
    baseline: float | None = None  # s the same took when the device first proved itself
    error: str = ""  # what went wrong, when a step raised


class Phase(StrEnum):
    ABSENT = "absent"
    PROBING = "probing"
    OK = "ok"
    SUSPECT = "suspect"
    COOLING = "cooling"
    QUARANTINED = "quarantined"
    SHORT = "short_of_memory"
    LOST = "lost"


IN_USE = frozenset({Phase.OK, Phase.SUSPECT})
OUT_OF_USE = frozenset({Phase.COOLING, Phase.QUARANTINED, Phase.SHORT, Phase.LOST})


class FaultKind(StrEnum):
    """What an engine's process did, as far as the device is concerned."""

    MEMORY = "out_of_memory"  # somebody else took what was planned with: a fresh process plans anew
    STICKY = "sticky_fault"  # it died, hung, met a CUDA error that poisons it, or answered nonsense: never used again
    NO_DEVICE = "no_device"  # it found no device under that name
    UNCLEAN_CAPTURE = "unclean_capture"  # recording a graph left it unusable: the next one records none
    UNKILLABLE = "unkillable"  # it does not end even when killed: stuck in the driver


# --- what the policy is fed with, beside a reading every `interval` and the passes of the memory test


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the process number `process` (see StartProbe); what an older process did is ignored."""

    kind: FaultKind
    process: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GoldenChecked:
    """The golden image was computed in passing, and compared."""

    passed: bool
    process: int
    reading: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """The probe in the process number `process` is over."""

    process: int
    report: ProbeReport


@dataclass(frozen=True, slots=True)
class Answered:
    """The device answered this many images."""

    process: int
    images: int


Sample = Reading | Fault | GoldenChecked | Probed | Answered | MemoryTestPass

# --- what the policy decides


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong: a word for it, what was read, the limit it broke, and what only a person can do about it. As a
    decision of its own it is worth an event, once: the device is degraded."""

    reason: str
    reading: float | str | None = None
    threshold: float | None = None
    operator_action: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    """The phase changed: one event. `until` is the earliest time of the next probe, where there is one."""

    before: Phase
    after: Phase
    finding: Finding
    trips: int = 0
    until: float | None = None

    @property
    def is_failover(self) -> bool:
        return self.before in IN_USE and self.after not in IN_USE


@dataclass(frozen=True, slots=True)
class EndProcess:
    """The device's process is never used again. `at_once`: kill it; else what it is computing may finish."""

    at_once: bool


@dataclass(frozen=True, slots=True)
class StartProbe:
    """Spawn a fresh process under this number and probe the device in it; answer with Probed."""

    process: int


@dataclass(frozen=True, slots=True)
class RepeatGolden:
    """The golden image came out wrong: compute it again now."""


Decision = Changed | Finding | EndProcess | StartProbe | RepeatGolden


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All that the machine remembers of one device. Times are monotonic seconds."""

    phase: Phase = Phase.ABSENT
    since: float = 0.0  # entered `phase`
    process: int = 0  # number of the newest one; counts up with each probe
    proved: bool = False  # that process passed its probe
    trips: int = 0  # since the device was last well for `forgive_after`; failed probes count
    next_probe: float = -math.inf  # not before
    looks: int = 0  # in a row at an absent or lost device that did not find it
    bad: int = 0  # checks in a row
    good: int = 0  # likewise
    cool: int = 0  # likewise
    golden_failed: bool = False  # the golden image came out wrong and has not come out right since
    throttled_since: float | None = None  # it began to be slowed down
    free_since: float | None = None  # it ceased to be
    trial_left: int = 0  # images to go one by one
    shortages: int = 0  # of device memory, each soon after the process before it could be replaced
    canary: ErrorWindow = field(default_factory=ErrorWindow)  # recent passes
    uncorrected: int | None = None  # ECC count when last seen
    operator_action: str = ""  # as last emitted
    last_check: float | None = None

    @property
    def in_use(self) -> bool:
        return self.phase in IN_USE


def facts_of(finding: Finding) -> dict[str, object]:
    """Keys of an event: what was read, the limit, what a person has to do; each where there is one."""
    action = finding.operator_action or None
    facts = {"reading": finding.reading, "threshold": finding.threshold, "operator_action": action}
    return {key: value for key, value in facts.items() if value is not None}


def event_of(device: str, decision: Changed | Finding) -> tuple[str, dict[str, object]]:
    """The event that tells a decision, and its keys. Those of failover and fail-back need facts of the pipeline too."""
    if isinstance(decision, Finding):
        return "engine.degraded", {"device": device, "reason": decision.reason} | facts_of(decision)
    finding = decision.finding
    before, after = str(decision.before), str(decision.after)
    edge = {"device": device, "from": before, "to": after, "reason": finding.reason, "trips": decision.trips}
    until = {} if decision.until is None else {"until": decision.until}
    return "engine.state", edge | facts_of(finding) | until
