"""Build one machine's timeline: up, down, stopped on purpose or not observed; failures and failovers.

Definitions (terms of IEC 60050-192, wording ours):
- Failure: unplanned loss of the required function. An end that was not asked for, a process that vanished, a stall, a
  start that failed. A planned stop, a reboot, a refused configuration, a failover and a bad image are none.
- Operating time: monotonic time between ready and the end of a run, less stalls, less outages of the ledger, and less
  gaps in the heartbeat. A run without an end ends at its last line; what follows counts as down. A full disk and a
  pause are the operator's: no failure, and told apart.
- A boot that follows without an end of the run before is a power loss: a state of its own, and no failure unless asked
  for.

Times here are seconds since 1970, each boot placed as a whole, so that durations within a boot are monotonic ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from rmbgd.mtbf.logs import DONE, POSTPONED, LogEvent, number
from rmbgd.mtbf.runs import (
    Boot,
    End,
    Interval,
    RunEnd,
    ServiceRun,
    ending,
    exit_cause,
    gaps,
    is_refusal,
    pauses,
    stalls,
)


class State(StrEnum):
    UP = "up"
    DOWN = "down"
    PLANNED = "planned"
    UNOBSERVED = "unobserved"
    POWER_LOSS = "power_loss"


@dataclass(slots=True)
class Span:
    begin: float
    end: float
    kind: State


@dataclass(slots=True)
class Failure:
    at: float
    cause: str
    detail: str
    until: float | None  # ready again; None when the log ends before
    operated: float  # seconds in service before it

    @property
    def down(self) -> float | None:
        return None if self.until is None else self.until - self.at


class Timeline:
    """The life of one machine from its boots, in order. `gap`, `stall`: seconds beyond which silence counts as one."""

    def __init__(self, boots: Sequence[Boot], gap: float, stall: float, *, power_loss_is_failure: bool) -> None:
        self.spans: list[Span] = []
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.failed_starts = 0
        self.full: list[Interval] = []  # while the service worked: no room on a disk; neither failure nor down
        self._gap, self._stall = gap, stall
        self._power_loss_is_failure = power_loss_is_failure
        self._off: Span | None = None  # not up since its begin; where it is DOWN, by the last failure
        self._operated = 0.0
        self._up_until = float("-inf")  # placed time up to which the service is already counted as up
        for boot in boots:
            entries: list[tuple[float, ServiceRun | LogEvent]] = [(run.start, run) for run in boot.runs]
            entries += [(exit_.at, exit_) for exit_ in boot.orphans]
            entries.sort(key=lambda entry: entry[0])
            for _, entry in entries:
                if isinstance(entry, ServiceRun):
                    latest = next((at for at, other in reversed(entries) if other is not entry), float("-inf"))
                    last_of_boot = latest < entry.last
                    self._add_run(entry, boot, last_of_boot, last_of_all=last_of_boot and boot is boots[-1])
                elif entry.at + boot.offset > self._up_until:  # of a process that wrote nothing
                    self._add_failed_start(entry.at + boot.offset, exit_cause(entry), "", is_refusal(entry))
        self._paused = list(_operator_pauses(boots))
        self.notes += [
            f"the wall clock jumped by {seconds:+.0f} s around {stamp(at + boot.offset)}, or the machine slept; "
            "durations are monotonic and not touched by it"
            for boot in boots
            for at, seconds in boot.steps
        ]

    def paused_seconds(self) -> float:
        """In service, while an operator had paused a folder or all."""
        up = [(span.begin, span.end) for span in self.spans if span.kind is State.UP]
        return sum(max(0.0, min(until, end) - max(since, begin)) for since, until in self._paused for begin, end in up)

    def seconds(self, kind: State) -> float:
        return sum(span.end - span.begin for span in self.spans if span.kind == kind)

    def operated_until(self, at: float) -> float:
        """Seconds in service up to `at`."""
        return sum(min(span.end, at) - span.begin for span in self.spans if span.kind is State.UP and span.begin < at)

    def _add_run(self, run: ServiceRun, boot: Boot, last_of_boot: bool, last_of_all: bool) -> None:
        end = ending(run)
        if run.ready is None:
            start = run.start + boot.offset
            if start < self._up_until:
                self.notes.append(f"a second process was started at {stamp(start)} while one was running")
            elif end.how is not End.PLANNED and not (end.how is End.UNKNOWN and last_of_all):
                stages = [event.keys.get("stage") for event in run.named("service.failed")]
                refused = "start" in stages if run.exit is None else is_refusal(run.exit)
                self._add_failed_start(start, end.cause or "vanished", end.detail, refused)
            return  # else it was stopped, or the log ends, while starting
        if end.at < run.ready or end.at - run.last > self._gap:
            end.at = max(run.last, run.ready)  # nothing was heard for long before its end was seen
        begin = max(run.ready + boot.offset, self._up_until)
        if run.ready + boot.offset < begin and end.at + boot.offset <= begin:
            self.notes.append(f"two runs of the service at once around {stamp(begin)}; counted once")
            return
        if self._off is not None:
            if begin < self._off.begin:
                self.notes.append(f"the wall clock was set back over a reboot around {stamp(begin)}; no time counted")
            if self._off.kind is State.DOWN:
                self.failures[-1].until = max(begin, self._off.begin)
            self._end_off(begin)
        end = self._add_up(run, boot, begin - boot.offset, end)
        self._end_run(end, end.at + boot.offset, last_of_boot, last_of_all)

    def _end_off(self, at: float) -> None:
        if self._off is not None and at > self._off.begin:
            self.spans.append(Span(self._off.begin, at, self._off.kind))
        self._off = None

    def _add_up(self, run: ServiceRun, boot: Boot, begin: float, end: RunEnd) -> RunEnd:
        """Add the run from `begin` to its end, less gaps and stalls. A stall at its end becomes the end."""
        holes = gaps(run, boot.images, begin, end.at, self._gap)
        found = stalls(run, boot.images, begin, end.at, self._stall, holes, end.how is End.FAILED)
        self.full += [(since + boot.offset, until + boot.offset) for since, until in pauses(run, begin, end.at)[1]]
        planned = end.how is End.PLANNED and found and found[-1].cause == "ledger"  # the operator came to mend it
        if found and found[-1].end >= end.at and not planned:
            tail = found.pop()
            cause = f"{end.cause}, after a stall" if end.how is End.FAILED and tail.cause == "stall" else tail.cause
            end = RunEnd(End.FAILED, tail.begin, cause, tail.detail)
            holes = [hole for hole in holes if hole[0] < tail.begin]
        cuts = [(*hole, State.UNOBSERVED, "", "") for hole in holes]
        cuts += [(stall.begin, stall.end, State.DOWN, stall.cause, stall.detail) for stall in found]
        at = begin
        for cut_begin, cut_end, kind, cause, detail in [*sorted(cuts), (end.at, end.at, State.UP, "", "")]:
            if cut_begin > at:
                self.spans.append(Span(at + boot.offset, cut_begin + boot.offset, State.UP))
                self._operated += cut_begin - at
            if kind is not State.UP:
                self.spans.append(Span(cut_begin + boot.offset, cut_end + boot.offset, kind))
            if kind is State.DOWN:
                until = cut_end + boot.offset
                self.failures.append(Failure(cut_begin + boot.offset, cause, detail, until, self._operated))
            at = cut_end
        self._up_until = end.at + boot.offset
        return end

    def _end_run(self, end: RunEnd, at: float, last_of_boot: bool, last_of_all: bool) -> None:
        if end.how is End.PLANNED:
            self._off = Span(at, at, State.PLANNED)
            if end.late:  # the function was given up on purpose, so it is down for no time
                self.failures.append(Failure(at, f"{end.late} while stopping", "", at, self._operated))
        elif end.how is End.REFUSED:
            self._refuse(at)
        elif end.how is End.FAILED:
            self._fail(at, end.cause, end.detail)
        elif not last_of_boot:
            self._fail(at, "vanished", "no end was recorded, and another process followed in the same boot")
        elif not last_of_all and self._power_loss_is_failure:
            self._fail(at, "power loss", "another boot followed without an end")
        elif not last_of_all:
            self._off = Span(at, at, State.POWER_LOSS)

    def _fail(self, at: float, cause: str, detail: str) -> None:
        self._off = Span(at, at, State.DOWN)
        self.failures.append(Failure(at, cause, detail, None, self._operated))

    def _refuse(self, at: float) -> None:
        self.notes.append(f"configuration refused at {stamp(at)}: counted as the operator's")
        self._off = self._off or Span(at, at, State.PLANNED)

    def _add_failed_start(self, at: float, cause: str, detail: str, by_configuration: bool) -> None:
        """The first one after a planned stop is a failure; in an outage it only prolongs it."""
        self.failed_starts += 1
        if by_configuration:
            self._refuse(at)
        elif self._off is None or self._off.kind is not State.DOWN:
            self._end_off(at)
            self._fail(at, f"start: {cause}", detail)


def _operator_pauses(boots: Sequence[Boot]) -> Iterator[Interval]:
    """From the first folder's pause to the end of the last one's; they hold over restarts."""
    held: set[str] = set()
    begin = 0.0
    for boot in boots:
        for event in (event for run in boot.runs for event in run.named("service.paused", "service.resumed", "health")):
            known = str(event.keys.get("paused") or "")
            if event.event == "health" and known.startswith("operator"):
                if not held:  # its event is in no log: rotated away, or the service was killed just then
                    begin, held = event.at + boot.offset, {*known.partition(":")[2].split(",")}
            elif event.event == "service.paused":
                begin = begin if held else event.at + boot.offset
                held.add(str(event.keys.get("folder", "")))
            elif event.event == "service.resumed" or event.keys.get("paused") is None:
                # A health event without a pause: the ledger that knew of one was lost.
                left = held - {str(event.keys.get("folder", ""))} if event.event == "service.resumed" else set()
                if held and not left:
                    yield begin, event.at + boot.offset
                held = left
    if held:
        yield begin, float("inf")


def stamp(seconds: float) -> str:
    """2026-01-31 09:15Z, for people."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s"


# --- failovers: when and why a device was left, when it was taken back, and whether that avoided an outage


class TripOutcome(StrEnum):
    AVOIDED = "avoided"  # images were concerned, and all came out in time while the device was away, without a failure
    IDLE = "idle"  # nothing was to be done meanwhile
    BROKEN = "broken"  # an image was lost to the engine or came late, or the service failed
    OPEN = "open"  # not back by the end of the run or of the log


@dataclass(slots=True)
class Trip:
    at: float
    until: float  # it came back, or the run ended
    device: str  # that work left
    to: str
    reason: str
    images: int
    outcome: TripOutcome
    threshold: float | None = None  # °C, where heat was the reason


def trips(boots: Sequence[Boot], failures: Sequence[Failure], deadline: float) -> Iterator[Trip]:
    """Every failover of a machine. `deadline`: seconds from claim to outcome beyond which an image came late."""
    for boot in boots:
        for run in boot.runs:
            moves = run.named("engine.failover", "engine.failback")
            for place, move in enumerate(moves, 1):
                if move.event == "engine.failover":
                    yield _trip(move, moves[place:], run, boot, failures, deadline)


def _trip(
    move: LogEvent, later: list[LogEvent], run: ServiceRun, boot: Boot, failures: Sequence[Failure], deadline: float
) -> Trip:
    device, to, reason = (str(move.keys.get(key, "?")) for key in ("from", "to", "reason"))
    # Work returns to the device, or leaves it once more although its return was not recorded.
    directions = {"engine.failback": "to", "engine.failover": "from"}
    back = next((other.at for other in later if other.keys.get(directions[other.event]) == device), None)
    end, images = run.last if back is None else back, boot.images
    totals = images.stages.get("total", ())
    rows = [row for row in images.between(move.at, end) if images.pid[row] == run.pid and images.kind[row] != POSTPONED]
    late = any(totals[row] > deadline * 1000 for row in rows if totals and images.kind[row] == DONE)
    announced = move.keys.get("images")
    concerned = max(len(rows), len(announced) if isinstance(announced, list) else 0)
    failed = any(move.at <= failure.at - boot.offset <= end for failure in failures)
    if late or failed or any(images.engine[row] for row in rows):
        outcome = TripOutcome.BROKEN
    elif back is None:
        outcome = TripOutcome.OPEN
    else:
        outcome = TripOutcome.AVOIDED if concerned else TripOutcome.IDLE
    threshold = number(move.keys.get("threshold")) if reason == "temperature" else None
    return Trip(move.at + boot.offset, end + boot.offset, device, to, reason, concerned, outcome, threshold)
