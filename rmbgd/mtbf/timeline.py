"""The life of one machine: when the service was up, down, stopped on purpose, or not observed, and each failure.

Definitions (terms of IEC 60050-192, wording ours):
- Failure: unplanned loss of the required function. An end that nobody asked for, a process that vanished, a stall, a
  start that failed. A planned stop, a reboot, a refused configuration, a failover and a bad image are none.
- Operating time: monotonic time between ready and the end of a run, less stalls and less gaps in the heartbeat. A run
  without an end ends at its last line; what follows counts as down.
- A boot that follows without an end of the run before is a power loss: told apart, and no failure unless asked for.

Knows runs; reads no file and prints nothing. Times here are seconds since 1970, each boot placed as a whole, so that
durations within a boot are monotonic ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from rmbgd.mtbf.logs import DONE, FAILED, Mark
from rmbgd.mtbf.runs import End, Ending, Epoch, Run, ending, exit_cause, gaps, never_could, refused, stalls


class Kind(StrEnum):
    UP = "up"
    DOWN = "down"
    PLANNED = "planned"
    UNOBSERVED = "unobserved"
    POWER_LOSS = "power_loss"


@dataclass(slots=True)
class Span:
    begin: float
    end: float
    kind: Kind

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(slots=True)
class Failure:
    """`until`: ready again, or None when the log ends before. `operated`: seconds in service before it."""

    at: float
    cause: str
    detail: str = ""
    until: float | None = None
    operated: float = 0.0

    @property
    def down(self) -> float | None:
        return None if self.until is None else self.until - self.at


@dataclass(slots=True)
class Limits:
    """What counts as a gap and as a stall on this machine, in seconds."""

    heartbeat: float
    gap: float
    stall: float


@dataclass(slots=True)
class Timeline:
    spans: list[Span] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed_starts: int = 0

    def seconds(self, kind: Kind) -> float:
        return sum(span.seconds for span in self.spans if span.kind is kind)

    def operated_until(self, at: float) -> float:
        """Seconds in service up to `at`."""
        ups = [span for span in self.spans if span.kind is Kind.UP and span.begin < at]
        return sum(min(span.end, at) - span.begin for span in ups)


@dataclass(slots=True)
class _Off:
    """Since when the service is not up, why, and the failure that this belongs to, if any."""

    since: float
    kind: Kind
    failure: Failure | None = None


class _Walk:
    """From one run to the next, in order."""

    def __init__(self, limits: Limits, *, power_loss_is_failure: bool) -> None:
        self.timeline = Timeline()
        self._limits = limits
        self._power_loss_is_failure = power_loss_is_failure
        self._off: _Off | None = None
        self._operated = 0.0
        self._up_until = float("-inf")  # placed time up to which the service is already counted as up

    def run(self, run: Run, epoch: Epoch, *, last_of_boot: bool, last_of_all: bool) -> None:
        if run.ready is None:
            self._unready(run, epoch, last_of_all=last_of_all)
            return
        end = ending(run)
        if end.at < run.ready or end.at - run.last > self._limits.gap:
            end.at = max(run.last, run.ready)  # nothing was heard for long before its end was seen
        begin = max(run.ready + epoch.offset, self._up_until)
        if run.ready + epoch.offset < begin and end.at + epoch.offset <= begin:
            self.timeline.notes.append(f"two runs of the service at once around {stamp(begin)}; counted once")
            return
        self._back(begin)
        self._up(run, epoch, begin - epoch.offset, end)
        self._ended(end, end.at + epoch.offset, last_of_boot=last_of_boot, last_of_all=last_of_all)

    def orphan(self, at: float, result: str, status: str, *, by_configuration: bool) -> None:
        """An exit of a process that wrote nothing: a start that failed early."""
        if at > self._up_until:
            self._failed_start(at, exit_cause(result, status), by_configuration=by_configuration)

    # --- up

    def _back(self, at: float) -> None:
        if self._off is None:
            return
        if at < self._off.since:
            self.timeline.notes.append(f"the wall clock was set back over a reboot around {stamp(at)}; no time counted")
        elif at > self._off.since:
            self.timeline.spans.append(Span(self._off.since, at, self._off.kind))
        if self._off.failure is not None:
            self._off.failure.until = max(at, self._off.since)
        self._off = None

    def _up(self, run: Run, epoch: Epoch, begin: float, end: Ending) -> None:
        """Add the run from `begin` to its end, less gaps and stalls. A stall at its end becomes the end."""
        holes = gaps(run, epoch.images, begin, end.at, self._limits.gap)
        found = stalls(run, epoch.images, begin, end.at, self._limits.stall, holes, failed=end.how is End.FAILED)
        if found and found[-1].end >= end.at:
            tail = found.pop()
            cause = "stall" if end.how is not End.FAILED else f"{end.cause}, after a stall"
            end.how, end.at, end.cause, end.detail, end.late = End.FAILED, tail.begin, cause, tail.detail, ""
            holes = [hole for hole in holes if hole[0] < tail.begin]
        cuts = [(*hole, Kind.UNOBSERVED, "") for hole in holes]
        cuts += [(stall.begin, stall.end, Kind.DOWN, stall.detail) for stall in found]
        at = begin
        for cut_begin, cut_end, kind, detail in sorted(cuts):
            self._add_up(at, cut_begin, epoch)
            self.timeline.spans.append(Span(cut_begin + epoch.offset, cut_end + epoch.offset, kind))
            if kind is Kind.DOWN:
                self._failure(cut_begin + epoch.offset, "stall", detail, until=cut_end + epoch.offset)
            at = cut_end
        self._add_up(at, end.at, epoch)
        self._up_until = end.at + epoch.offset

    def _add_up(self, begin: float, end: float, epoch: Epoch) -> None:
        if end > begin:
            self.timeline.spans.append(Span(begin + epoch.offset, end + epoch.offset, Kind.UP))
            self._operated += end - begin

    def _failure(self, at: float, cause: str, detail: str = "", until: float | None = None) -> Failure:
        failure = Failure(at, cause, detail, until, self._operated)
        self.timeline.failures.append(failure)
        return failure

    # --- down

    def _ended(self, end: Ending, at: float, *, last_of_boot: bool, last_of_all: bool) -> None:
        if end.how is End.PLANNED:
            self._off = _Off(at, Kind.PLANNED)
            if end.late:  # the function was given up on purpose, so it is down for no time
                self._failure(at, f"{end.late} while stopping", until=at)
        elif end.how is End.REFUSED:
            self._off = _Off(at, Kind.PLANNED)
            self.timeline.notes.append(f"configuration refused at {stamp(at)}: counted as the operator's")
        elif end.how is End.FAILED:
            self._off = _Off(at, Kind.DOWN, self._failure(at, end.cause, end.detail))
        elif not last_of_boot:
            failure = self._failure(
                at, "vanished", "no end was recorded, and another process followed in the same boot"
            )
            self._off = _Off(at, Kind.DOWN, failure)
        elif not last_of_all:
            if self._power_loss_is_failure:
                self._off = _Off(at, Kind.DOWN, self._failure(at, "power loss", "another boot followed without an end"))
            else:
                self._off = _Off(at, Kind.POWER_LOSS)

    def _unready(self, run: Run, epoch: Epoch, *, last_of_all: bool) -> None:
        """A run that never became ready."""
        end = ending(run)
        start = run.start + epoch.offset
        if start < self._up_until:
            self.timeline.notes.append(f"a second process was started at {stamp(start)} while one was running")
            return
        if end.how is End.PLANNED or (end.how is End.UNKNOWN and last_of_all):
            return  # stopped, or the log ends, while starting
        self._failed_start(start, end.cause or "vanished", end.detail, by_configuration=never_could(run))

    def _failed_start(self, at: float, cause: str, detail: str = "", *, by_configuration: bool) -> None:
        """The first one after a planned stop is a failure; in an outage it only prolongs it."""
        self.timeline.failed_starts += 1
        if by_configuration:
            self.timeline.notes.append(f"configuration refused at {stamp(at)}: counted as the operator's")
            self._off = self._off or _Off(at, Kind.PLANNED)
            return
        if self._off is not None and self._off.kind is Kind.DOWN:
            return
        if self._off is not None and at > self._off.since:
            self.timeline.spans.append(Span(self._off.since, at, self._off.kind))
        self._off = _Off(at, Kind.DOWN, self._failure(at, f"start: {cause}", detail))


def timeline(epochs: Sequence[Epoch], limits: Limits, *, power_loss_is_failure: bool = False) -> Timeline:
    """The life of one machine from its boots, in order."""
    walk = _Walk(limits, power_loss_is_failure=power_loss_is_failure)
    for number, epoch in enumerate(epochs):
        later = number + 1 < len(epochs)
        events: list[tuple[float, Run | Mark]] = [(run.start, run) for run in epoch.runs]
        events += [(mark.at, mark) for mark in epoch.orphans]
        events.sort(key=lambda entry: entry[0])
        for _, entry in events:
            if isinstance(entry, Mark):
                words = str(entry.keys.get("result", "?")), str(entry.keys.get("status", "?"))
                walk.orphan(entry.at + epoch.offset, *words, by_configuration=refused(entry))
                continue
            latest = events[-1] if events[-1][1] is not entry else events[-2:][0]
            follows = latest[1] is not entry and latest[0] >= entry.last
            walk.run(entry, epoch, last_of_boot=not follows, last_of_all=not follows and not later)
    _note_clock(epochs, walk.timeline)
    return walk.timeline


def _note_clock(epochs: Sequence[Epoch], result: Timeline) -> None:
    for epoch in epochs:
        for at, seconds in epoch.steps:
            when = stamp(at + epoch.offset)
            said = f"the wall clock jumped by {seconds:+.0f} s around {when}, or the machine slept"
            result.notes.append(f"{said}; durations are monotonic and not touched by it")


def stamp(seconds: float) -> str:
    """2026-01-31 09:15Z, for people."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s"


# --- Failovers: which device was left when and why, when it was taken back, and whether an outage was avoided by it.


class Outcome(StrEnum):
    """AVOIDED: images were concerned, and all came out in time while the device was away, without a failure."""

    AVOIDED = "avoided"
    IDLE = "idle"  # nothing was to be done meanwhile
    BROKEN = "broken"  # an image was lost to the engine or came late, or the service failed
    OPEN = "open"  # not back by the end of the run or of the log


@dataclass(slots=True)
class Trip:
    at: float
    until: float
    device: str
    to: str
    reason: str
    images: int
    outcome: Outcome
    threshold: float | None = None  # °C, where heat was the reason


def trips(epochs: Sequence[Epoch], failures: Sequence[Failure], deadline: float) -> list[Trip]:
    """Every failover of a machine. `deadline`: seconds from claim to outcome beyond which an image came late."""
    return [
        trip
        for epoch in epochs
        for run in epoch.runs
        for trip in _of_run(run, epoch, [failure.at for failure in failures], deadline)
    ]


def _of_run(run: Run, epoch: Epoch, failures: list[float], deadline: float) -> list[Trip]:
    marks = run.named("engine.failover", "engine.failback")
    found = []
    for number, mark in enumerate(marks):
        if mark.event != "engine.failover":
            continue
        device = str(mark.keys.get("from", "?"))
        back = next((later.at for later in marks[number + 1 :] if _concerns(later.event, later.keys, device)), None)
        end = run.last if back is None else back
        concerned, fine = _images(run, epoch, mark.at, end, deadline)
        announced = mark.keys.get("images")
        concerned = max(concerned, len(announced) if isinstance(announced, list) else 0)
        fine = fine and not any(mark.at <= at - epoch.offset <= end for at in failures)
        if not fine:
            outcome = Outcome.BROKEN
        elif back is None:
            outcome = Outcome.OPEN
        else:
            outcome = Outcome.AVOIDED if concerned else Outcome.IDLE
        found.append(
            Trip(
                mark.at + epoch.offset,
                end + epoch.offset,
                device,
                str(mark.keys.get("to", "?")),
                str(mark.keys.get("reason", "?")),
                concerned,
                outcome,
                _threshold(mark.keys),
            )
        )
    return found


def _threshold(keys: dict[str, object]) -> float | None:
    value = keys.get("threshold")
    return float(value) if keys.get("reason") == "temperature" and isinstance(value, (int, float)) else None


def _concerns(event: str, keys: dict[str, object], device: str) -> bool:
    """Work returns to the device, or leaves it once more although its return was not recorded."""
    return keys.get("to" if event == "engine.failback" else "from") == device


def _images(run: Run, epoch: Epoch, begin: float, end: float, deadline: float) -> tuple[int, bool]:
    """(images concluded meanwhile, whether none was lost to the engine or came late)."""
    table = epoch.images
    totals = table.stages.get("total")
    concerned, fine = 0, True
    for row in table.between(begin, end):
        if table.pid[row] != run.pid:
            continue
        if table.kind[row] == DONE:
            concerned += 1
            fine = fine and (totals is None or not totals[row] > deadline * 1000)
        elif table.kind[row] == FAILED:
            concerned += 1
            fine = fine and not table.engine[row]
    return concerned, fine
