"""Find the runs of the service within one boot: start, ready, end, gaps in the log, and stalls.

Power losses and failures over several boots are timeline.py's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise, zip_longest

from rmbgd import events
from rmbgd.mtbf.logs import BootLog, ImageTable, LogEvent, number

EXIT_SLACK = 1.0  # s; the recorder's clock is read in another process, lines may cross
LEDGER_FILE = "ledger.sqlite"
FULL = ("disk_full", "quota")
ONE_OUTAGE = 60.0  # s between two pauses for the ledger that are one outage
BAD_CONFIGURATION = "78"  # the exit status that means: mend the configuration, no restart

Interval = tuple[float, float]


class End(StrEnum):
    PLANNED = "planned"  # asked to stop
    FAILED = "failed"
    REFUSED = "refused"  # the configuration cannot be used: the operator's to mend, no failure of the service
    UNKNOWN = "unknown"  # the last line is just the last line


@dataclass(slots=True)
class RunEnd:
    how: End
    at: float
    cause: str = ""  # of a failure
    detail: str = ""
    late: str = ""  # why a stop that was asked for ended badly, e.g. by the stop timeout


@dataclass(slots=True)
class ServiceRun:
    pid: int
    start: float  # monotonic seconds of its boot, as the next two
    last: float
    ready: float | None = None  # None when it never was
    events: list[LogEvent] = field(default_factory=list)
    exit: LogEvent | None = None
    begins_in_the_middle: bool = False

    def named(self, *names: str) -> list[LogEvent]:
        return [event for event in self.events if event.event in names]

    def first(self, name: str) -> LogEvent | None:
        return next(iter(self.named(name)), None)


class Boot:
    """One boot, cleaned: lines in order and once, its place on the wall clock, its runs. `parts`: its logs, as read."""

    def __init__(self, parts: Sequence[BootLog]) -> None:
        # Lines of one millisecond stay in the order in which they were written.
        lines = sorted((event for part in parts for event in part.events), key=lambda event: event.at)
        once = list({(event.at, event.digest): event for event in lines}.values())  # the place of the first
        found = parts[0].images
        for part in parts[1:]:
            found.extend(part.images)
        self.images = found.ordered()
        self.repeated = len(found) - len(self.images) + len(lines) - len(once)  # lines found more than once
        self.last = max(part.last for part in parts)
        # `offset`: wall minus monotonic time, as it held for longest; `steps`: when the wall clock jumped, by what.
        self.offset, self.steps = _clock(sorted(entry for part in parts for entry in part.clock), self.last)
        runs = _runs([event for event in once if event.event != "service.exit"], self.images)
        self.runs = [run for run in runs if run.named("service.start", "service.ready", "health", "service.stopping")]
        self.runs.sort(key=lambda run: (run.start, run.pid))
        self.one_shots = len(runs) - len(self.runs)  # runs of other commands than the service, left out
        # Exits recorded of processes that wrote nothing else.
        self.orphans = _pair_exits(self.runs, [event for event in once if event.event == "service.exit"])


def _clock(entries: list[Interval], last: float) -> tuple[float, list[Interval]]:
    """(the offset that held for longest, the jumps between one and the next)."""
    held: dict[float, float] = {}
    for (at, offset), (until, _) in pairwise([*entries, (last, 0.0)]):
        known = next((known for known in held if abs(known - offset) <= 1.0), offset)
        held[known] = held.get(known, 0.0) + max(until - at, 0.0)
    jumps = [(at, offset - before) for (_, before), (at, offset) in pairwise(entries) if abs(offset - before) > 1.0]
    return max(held, key=lambda offset: held[offset]), jumps


def _runs(lines: list[LogEvent], images: ImageTable) -> list[ServiceRun]:
    """The runs of any command of ours. Images are signs of life, too."""
    by_pid: dict[int, list[ServiceRun]] = {}
    for event in lines:
        runs = by_pid.setdefault(event.pid, [])
        starts = event.event == "service.start"
        if starts or not runs:
            runs.append(ServiceRun(event.pid, event.at, event.at, begins_in_the_middle=not starts))
        runs[-1].events.append(event)
        runs[-1].last = event.at
    for at, pid in zip(images.at, images.pid, strict=True):
        runs = by_pid.setdefault(pid, [])
        if not runs:
            runs.append(ServiceRun(pid, at, at))
        run = next((run for run in reversed(runs) if run.start <= at), runs[0])
        run.last = max(run.last, at)
        if at < run.start and run.begins_in_the_middle:
            run.start = at
    found = [run for runs in by_pid.values() for run in runs]
    for run in found:
        ready = run.first("service.ready")
        run.ready = ready.at if ready else run.start if run.begins_in_the_middle else None
    return found


def _pair_exits(runs: list[ServiceRun], exits: list[LogEvent]) -> list[LogEvent]:
    """Give each recorded exit to the run that it ended; what is left over is returned. Runs are in order of start."""
    starts = [run.start for run in runs]
    orphans = []
    for event in exits:
        pid = event.keys.get("ended_pid")
        before = reversed(runs[: bisect_right(starts, event.at)])
        # A run that is still alive then, or has another pid: there were two processes at once.
        ended = next((run for run in before if run.last <= event.at + EXIT_SLACK and pid in (None, run.pid)), None)
        if ended is None or ended.exit is not None:
            orphans.append(event)
        else:
            ended.exit = event
    return orphans


def ending(run: ServiceRun) -> RunEnd:
    """How the run ended, by what it said itself and by what the exit recorder saw."""
    causes = ((event, str(event.keys.get("cause", ""))) for event in run.named("service.stopping"))
    asked = next((event for event, why in causes if why.startswith("SIG") or why == events.SAFE_MODE_OVER), None)
    failed, stopping, stopped = (run.first(f"service.{name}") for name in ("failed", "stopping", "stop"))
    seen = run.exit if run.exit is not None and run.exit.keys.get("result") != "success" else None
    stage = f"failed: {failed.keys.get('stage', '?')}" if failed else ""
    if asked and (failed is None or failed.at >= asked.at):
        late = stage or (exit_cause(seen) if seen else "")
        return RunEnd(End.PLANNED, asked.at, late=late)
    if failed:
        at = min(failed.at, stopping.at) if stopping else failed.at
        return RunEnd(End.FAILED, at, stage, str(failed.keys.get("error", "")))
    if stopping and stopping.keys.get("cause") == events.LEDGER_DAMAGED:
        told = [_outage_text(event) for event in run.named("storage.paused") if event.keys.get("kind") == "ledger"]
        return RunEnd(End.FAILED, stopping.at, "ledger", [events.LEDGER_DAMAGED, *told][-1])
    if stopping:
        return RunEnd(End.FAILED, stopping.at, f"failed: {stopping.keys.get('cause', '?')}")
    if stopped:
        status = stopped.keys.get("exit_code")
        return RunEnd(End.PLANNED if status in (0, None) else End.FAILED, stopped.at, f"exit status {status}")
    if seen:
        detail = f"{seen.keys.get('code', '?')} {seen.keys.get('status', '?')}"
        return RunEnd(End.REFUSED if is_refusal(seen) else End.FAILED, seen.at, exit_cause(seen), detail)
    return RunEnd(End.PLANNED, run.exit.at) if run.exit else RunEnd(End.UNKNOWN, run.last)


def is_refusal(exit_: LogEvent) -> bool:
    return str(exit_.keys.get("status")) == BAD_CONFIGURATION


def exit_cause(exit_: LogEvent) -> str:
    """One phrase for systemd's words: watchdog, signal KILL, exit status 1, ..."""
    result, status = str(exit_.keys.get("result", "?")), str(exit_.keys.get("status", "?"))
    if result in ("signal", "core-dump"):
        return f"signal {status.removeprefix('SIG')}"
    return f"exit status {status}" if result == "exit-code" else result


# --- within one run: gaps, of which nothing was heard, stalls, in which work waited and none came out, and pauses


@dataclass(slots=True)
class Stall:
    begin: float
    end: float
    detail: str = ""
    cause: str = "stall"


def gaps(run: ServiceRun, images: ImageTable, begin: float, end: float, limit: float) -> list[Interval]:
    """Stretches of more than `limit` seconds between two lines of the run, within begin..end."""
    heard = {begin, end, *(event.at for event in run.events if begin <= event.at <= end)}
    return [(a, b) for a, b in pairwise(sorted(heard.union(_outcomes(run, images, begin, end)))) if b - a > limit]


def _outcomes(run: ServiceRun, images: ImageTable, begin: float, end: float) -> list[float]:
    return [images.at[row] for row in images.between(begin, end) if images.pid[row] == run.pid]


def stalls(
    run: ServiceRun, images: ImageTable, begin: float, end: float, limit: float, holes: Sequence[Interval], failed: bool
) -> list[Stall]:
    """Stretches in which a claimed image waited and none was concluded for more than `limit` seconds.

    Seen at heartbeats, which say what is in flight; a pause for the disk's sake is none. Besides, what the service
    itself reported as a stall, and its pauses for the ledger; those that the run's end interrupts only if they took as
    long, or if it ended in failure (`failed`). `holes` are the gaps of the run: they are cut out, for nothing was
    observed in them. Overlapping stalls are one.
    """
    found = pauses(run, begin, end)[0]
    found += list(_by_heartbeats(run, _outcomes(run, images, begin, end), begin, end, limit, holes))
    reports = run.named("service.stalled", "service.stall_ended")
    for report, after in zip_longest(reports, reports[1:]):
        if report.event == "service.stalled" and begin <= report.at <= end:
            since = max(report.at - (number(report.keys.get("seconds")) or 0.0), begin)
            over = after is not None and after.at <= end
            until = after.at if after is not None and over else end
            if until - since > limit or failed or over:
                found.append(Stall(since, until, f"hung: {report.keys.get('threads', '?')}"))
    merged: list[Stall] = []
    for stall in sorted(found, key=lambda stall: stall.begin):
        if merged and stall.begin <= merged[-1].end:
            merged[-1].end = max(merged[-1].end, stall.end)
        else:
            merged.append(stall)
    pieces: list[Stall] = []
    for stall in merged:
        at = stall.begin
        for hole_begin, hole_end in [*holes, (stall.end, stall.end)]:
            if at < min(hole_begin, stall.end):
                pieces.append(Stall(at, min(hole_begin, stall.end), stall.detail, stall.cause))
            at = max(at, hole_end)
    return pieces


def pauses(run: ServiceRun, begin: float, end: float) -> tuple[list[Stall], list[Interval]]:
    """(outages of the ledger, stretches with a full disk) within begin..end.

    Logs before there was a kind `ledger` paused with another kind and the ledger's path, and resumed with this one.
    """
    outages: list[Stall] = []
    full: list[Interval] = []
    unfinished: list[tuple[LogEvent, bool]] = []  # pauses that were not resumed yet; of the ledger?

    def close(at: float, closed: list[tuple[LogEvent, bool]]) -> None:
        for event, of_ledger in closed:
            unfinished.remove((event, of_ledger))
            since, until = max(event.at, begin), min(at, end)
            if until <= since:
                continue
            if event.keys.get("kind") in FULL:
                _join(full, since, until)
            elif of_ledger:
                if outages and since - outages[-1].end <= ONE_OUTAGE:
                    outages[-1].end = max(outages[-1].end, until)
                else:
                    outages.append(Stall(since, until, _outage_text(event), "ledger"))

    for event in run.named("storage.paused", "storage.resumed"):
        kind = event.keys.get("kind")
        if event.event == "storage.paused":
            of_ledger = kind == "ledger" or str(event.keys.get("path", "")).endswith(f"/{LEDGER_FILE}")
            unfinished.append((event, of_ledger))
        elif kind == "ledger":
            close(event.at, [each for each in unfinished if each[1]])
        else:
            close(event.at, [each for each in unfinished if each[0].keys.get("kind") == kind][:1])
    close(end, list(unfinished))
    return outages, full


def _outage_text(paused: LogEvent) -> str:
    cause = paused.keys.get("cause") or paused.keys.get("kind")
    return f"the ledger could not be used ({cause}): {paused.keys.get('detail', '?')}"


def _join(intervals: list[Interval], begin: float, end: float) -> None:
    """Add one whose end is not before theirs: what it overlaps becomes one with it."""
    while intervals and begin <= intervals[-1][1]:
        earlier = intervals.pop()
        begin, end = min(begin, earlier[0]), max(end, earlier[1])
    intervals.append((begin, end))


def _by_heartbeats(
    run: ServiceRun, outcomes: list[float], begin: float, end: float, limit: float, holes: Sequence[Interval]
) -> Iterator[Stall]:
    heartbeats = [event for event in run.named("health") if begin <= event.at <= end]
    moved = begin  # when work last came out, or last did not wait
    told = None  # the beginning of the latest stall
    for heartbeat in heartbeats:
        concluded = bisect_right(outcomes, heartbeat.at)
        moved = max([moved, *outcomes[:concluded][-1:], *(hole[1] for hole in holes if hole[1] <= heartbeat.at)])
        if not _waits(heartbeat):
            moved = heartbeat.at
        elif heartbeat.at - moved > limit and moved != told:
            told = moved
            ends = [later.at for later in heartbeats if later.at > heartbeat.at and not _waits(later)][:1]
            ends += outcomes[concluded : concluded + 1]
            yield Stall(moved, min([*ends, end]), "an image in flight, none concluded")


def _waits(heartbeat: LogEvent) -> bool:
    paused = str(heartbeat.keys.get("paused") or "")  # an operator's pause holds up nothing that is in flight
    return (number(heartbeat.keys.get("in_flight")) or 0) > 0 and (not paused or paused.startswith("operator"))
