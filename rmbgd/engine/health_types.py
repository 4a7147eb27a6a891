"""Values of the circuit breaker: phases, what it is fed with, what it decides and what it remembers.

Values only. What follows from what is failover.py's business.
"""

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
    """What a probe measured. A field left None was not reached.

    fresh_process   the process was spawned for this probe and has served nothing before
    enumerated      the device answered to its name in that process
    model_intact    the weights that were loaded have the expected sha256
    canary_passes   full passes over the canary
    canary_bad      bad blocks found in them
    golden_mean     mean |alpha - stored alpha| on the golden image, 0..1
    golden_peak     the same difference, largest over all pixels but the allowed share of outliers
    seconds         for the golden image, warm
    baseline        s the same took when the device first proved itself; None when there is none yet
    error           what went wrong, when a step raised
    """

    fresh_process: bool = False
    enumerated: bool | None = None
    model_intact: bool | None = None
    canary_passes: int | None = None
    canary_bad: int | None = None
    golden_mean: float | None = None
    golden_peak: float | None = None
    seconds: float | None = None
    baseline: float | None = None
    error: str = ""


class Phase(StrEnum):
    ABSENT = "absent"
    PROBING = "probing"
    OK = "ok"
    SUSPECT = "suspect"
    COOLING = "cooling"
    QUARANTINED = "quarantined"
    LOST = "lost"


IN_USE = frozenset({Phase.OK, Phase.SUSPECT})
OUT_OF_USE = frozenset({Phase.COOLING, Phase.QUARANTINED, Phase.LOST})


class FaultKind(StrEnum):
    """What an engine's process did, as far as the device is concerned."""

    MEMORY = "out_of_memory"  # the process is well; smaller batches may pass
    STICKY = "sticky_fault"  # it died, hung, met a CUDA error that poisons it, or answered nonsense: never used again
    NO_DEVICE = "no_device"  # it found no device under that name
    UNKILLABLE = "unkillable"  # it does not end even when killed: stuck in the driver


# --- what the policy is fed with


@dataclass(frozen=True, slots=True)
class Check:
    """One health check, every `interval`. `heartbeat`: the engine's process, if one should be there, answers."""

    reading: Reading
    heartbeat: bool = True


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


Sample = Check | Fault | GoldenChecked | Probed | Answered | MemoryTestPass

# --- what the policy decides


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong: a word for it, what was read, the limit it broke, and what only a person can do about it."""

    reason: str
    reading: float | str | None = None
    threshold: float | None = None
    operator_action: str = ""


@dataclass(frozen=True, slots=True)
class Failover(Finding):
    """Work leaves the device now."""


@dataclass(frozen=True, slots=True)
class Degraded(Finding):
    """Worth an event, once."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The phase changed: one event. `until` is the earliest time of the next probe, where there is one."""

    before: Phase
    after: Phase
    reason: str
    reading: float | str | None = None
    threshold: float | None = None
    trips: int = 0
    until: float | None = None
    operator_action: str = ""


@dataclass(frozen=True, slots=True)
class Failback:
    """Work returns to the device, one image at a time at first. `seconds`: since the failover."""

    seconds: float


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


Decision = Changed | Failover | Failback | Degraded | EndProcess | StartProbe | RepeatGolden


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All that the machine remembers of one device. Times are monotonic seconds.

    since          entered `phase`
    process        number of the newest process; counts up with each probe
    proved         that process passed its probe
    trips          since the device was last well for `forgive_after`; failed probes count
    away_since     of the last failover, until the fail-back
    next_probe     not before
    looks          in a row at an absent or lost device that did not find it
    bad, good, cool  checks in a row
    golden_failed  the golden image came out wrong and has not come out right since
    throttled_since, free_since  the device began to be, or ceased to be, slowed down
    trial_left     images to go one by one
    memory_faults  times of running out of device memory
    canary         recent passes
    uncorrected    ECC count when last seen
    operator_action  as last emitted
    last_check     when
    """

    phase: Phase = Phase.ABSENT
    since: float = 0.0
    process: int = 0
    proved: bool = False
    trips: int = 0
    away_since: float | None = None
    next_probe: float = -math.inf
    looks: int = 0
    bad: int = 0
    good: int = 0
    cool: int = 0
    golden_failed: bool = False
    throttled_since: float | None = None
    free_since: float | None = None
    trial_left: int = 0
    memory_faults: tuple[float, ...] = ()
    canary: ErrorWindow = field(default_factory=ErrorWindow)
    uncorrected: int | None = None
    operator_action: str = ""
    last_check: float | None = None

    @property
    def in_use(self) -> bool:
        return self.phase in IN_USE

    @property
    def batch_limit(self) -> int | None:
        """Images that may go to the device at once: 0 none, None as many as it takes."""
        if not self.in_use:
            return 0
        return 1 if self.trial_left else None


def facts_of(decision: Changed | Finding) -> dict[str, object]:
    """Keys of an event: what was read, the limit, what a person has to do; each where there is one."""
    facts = {"reading": decision.reading, "threshold": decision.threshold}
    facts["operator_action"] = decision.operator_action or None
    return {key: value for key, value in facts.items() if value is not None}


def event_of(device: str, decision: Changed | Degraded) -> tuple[str, dict[str, object]]:
    """The event that tells a decision, and its keys. Those of failover and fail-back need facts of the pipeline too."""
    if isinstance(decision, Degraded):
        return "engine.degraded", {"device": device, "reason": decision.reason} | facts_of(decision)
    before, after = str(decision.before), str(decision.after)
    edge = {"device": device, "from": before, "to": after, "reason": decision.reason, "trips": decision.trips}
    until = {} if decision.until is None else {"until": decision.until}
    return "engine.state", edge | facts_of(decision) | until
