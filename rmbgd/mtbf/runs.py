"""From the lines of one boot to the runs of the service in it: when each began, was ready, and how it ended.

Does not know what came before or after the boot: timeline.py puts boots together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from rmbgd import events
from rmbgd.mtbf.logs import Boot, ImageCounts, Mark

EXIT_SLACK = 1.0  # s; the recorder's clock is read in another process, lines may cross
BAD_CONFIGURATION = "78"  # the exit status that means: mend the configuration, no restart
CONFIGURING = "start"  # the stage that service.failed names then


class End(StrEnum):
    """How a run ended, as far as its own boot tells."""

    PLANNED = "planned"  # asked to stop
    FAILED = "failed"
    REFUSED = "refused"  # the configuration cannot be used: the operator's to mend, no failure of the service
    UNKNOWN = "unknown"  # the last line is just the last line


@dataclass(slots=True)
class Ending:
    """`late` is set when a stop that was asked for ended badly, e.g. by the stop timeout."""

    how: End
    at: float
    cause: str = ""
    detail: str = ""
    late: str = ""


@dataclass(slots=True)
class Run:
    """One process of the service. Times are monotonic seconds of its boot; `ready` is None when it never was."""

    pid: int
    start: float
    ready: float | None
    last: float
    marks: list[Mark] = field(default_factory=list)
    exit: Mark | None = None
    begins_in_the_middle: bool = False

    def named(self, *events: str) -> list[Mark]:
        return [mark for mark in self.marks if mark.event in events]


@dataclass(slots=True)
class Epoch:
    """One boot, cleaned: lines in order and once, its place on the wall clock, its runs.

    offset   wall minus monotonic time, as it held for longest
    steps    (monotonic time, seconds) of each jump of the wall clock
    orphans  exits recorded of processes that wrote nothing else
    """

    boot_id: str
    offset: float
    last: float
    runs: list[Run]
    images: ImageCounts
    steps: list[tuple[float, float]]
    orphans: list[Mark]
    twice: int
    one_shots: int


def epoch(boots: Iterable[Boot]) -> Epoch:
    """The boot that all of these are parts of."""
    parts = sorted(boots, key=lambda boot: boot.first)
    # Lines of one millisecond stay in the order in which they were written.
    marks = sorted((mark for part in parts for mark in part.marks), key=lambda mark: mark.at)
    single = list({(mark.at, mark.digest): mark for mark in marks}.values())  # the place of the first
    columns = parts[0].images
    for part in parts[1:]:
        columns.extend(part.images)
    images, twice = columns.ordered()
    last = max(part.last for part in parts)
    offset, steps = _clock(sorted(entry for part in parts for entry in part.clock), last)
    runs, one_shots = _runs(single, images)
    orphans = _pair_exits(runs, [mark for mark in single if mark.event == "service.exit"])
    return Epoch(
        parts[0].boot_id, offset, last, runs, images, steps, orphans, twice + len(marks) - len(single), one_shots
    )


def _clock(entries: list[tuple[float, float]], last: float) -> tuple[float, list[tuple[float, float]]]:
    """(the offset that held for longest, the jumps between one and the next)."""
    held: dict[float, float] = {}
    for (at, offset), (until, _) in zip(entries, [*entries[1:], (last, 0.0)], strict=True):
        known = next((known for known in held if abs(known - offset) <= 1.0), offset)
        held[known] = held.get(known, 0.0) + max(until - at, 0.0)
    jumps = [(at, offset - before) for (_, before), (at, offset) in pairwise(entries) if abs(offset - before) > 1.0]
    return max(held, key=lambda offset: held[offset]), jumps


def _runs(marks: list[Mark], images: ImageCounts) -> tuple[list[Run], int]:
    """(runs of the service, how many one-shot runs were left out)."""
    runs: list[Run] = []
    open_run: dict[int, Run] = {}
    for mark in marks:
        if mark.event == "service.exit":
            continue
        run = open_run.get(mark.pid)
        if run is None or mark.event == "service.start":
            run = Run(mark.pid, mark.at, None, mark.at, begins_in_the_middle=mark.event != "service.start")
            open_run[mark.pid] = run
            runs.append(run)
        run.marks.append(mark)
        run.last = mark.at
    _add_images(runs, images)
    service = [run for run in runs if run.named("service.start", "service.ready", "health", "service.stopping")]
    for run in service:
        ready = run.named("service.ready")
        if ready:
            run.ready = ready[0].at
        elif run.begins_in_the_middle:
            run.ready = run.start
    return sorted(service, key=lambda run: (run.start, run.pid)), len(runs) - len(service)


def _add_images(runs: list[Run], images: ImageCounts) -> None:
    """Images are signs of life too. Those of a process without any other line make a one-shot run."""
    by_pid: dict[int, list[Run]] = {}
    for run in runs:
        by_pid.setdefault(run.pid, []).append(run)
    for at, pid in zip(images.at, images.pid, strict=True):
        mine = by_pid.get(pid)
        if mine is None:
            run = Run(pid, at, None, at)
            by_pid[pid] = [run]
            runs.append(run)
            continue
        run = next((run for run in reversed(mine) if run.start <= at), mine[0])
        run.last = max(run.last, at)
        if at < run.start and run.begins_in_the_middle:
            run.start = at


def _pair_exits(runs: list[Run], exits: list[Mark]) -> list[Mark]:
    """Give each recorded exit to the run that it ended; what is left over is returned. Runs are in order of start."""
    starts = [run.start for run in runs]
    orphans = []
    for mark in exits:
        for run in reversed(runs[: bisect_right(starts, mark.at)]):
            pid = mark.keys.get("ended_pid")
            if run.last > mark.at + EXIT_SLACK or (pid is not None and run.pid != pid):
                continue  # still alive then, or another process: two of them at once
            if run.exit is None:
                run.exit = mark
            else:
                orphans.append(mark)
            break
        else:
            orphans.append(mark)
    return orphans


def ending(run: Run) -> Ending:
    """How the run ended, by what it said itself and by what the exit recorder saw."""
    asked = next((mark for mark in run.named("service.stopping") if _is_signal(mark.keys)), None)
    failed = next(iter(run.named("service.failed")), None)
    stopping = next(iter(run.named("service.stopping")), None)
    stopped = next(iter(run.named("service.stop")), None)
    seen = _exit_words(run.exit)
    if asked and (failed is None or failed.at >= asked.at):
        late = seen[0] if seen else ""
        if failed is not None:
            late = f"failed: {failed.keys.get('stage', '?')}"
        return Ending(End.PLANNED, asked.at, str(asked.keys.get("cause", "")), late=late)
    if failed:
        detail = str(failed.keys.get("error", ""))
        at = min(failed.at, stopping.at) if stopping else failed.at
        return Ending(End.FAILED, at, f"failed: {failed.keys.get('stage', '?')}", detail)
    if stopping:
        return Ending(End.FAILED, stopping.at, f"failed: {stopping.keys.get('cause', '?')}")
    if stopped:
        clean = stopped.keys.get("exit_code") in (0, None)
        how = End.PLANNED if clean else End.FAILED
        return Ending(how, stopped.at, "stopped" if clean else f"exit status {stopped.keys.get('exit_code')}")
    if run.exit is not None:
        if seen is None:
            return Ending(End.PLANNED, run.exit.at, "exit 0")
        how = End.REFUSED if refused(run.exit) else End.FAILED
        return Ending(how, run.exit.at, *seen)
    return Ending(End.UNKNOWN, run.last)


def _is_signal(keys: dict[str, Any]) -> bool:
    cause = str(keys.get("cause", ""))
    return cause.startswith("SIG") or cause == events.SAFE_MODE_OVER


def refused(mark: Mark) -> bool:
    """The process found its configuration unusable and said so by its exit status."""
    return str(mark.keys.get("status")) == BAD_CONFIGURATION


def never_could(run: Run) -> bool:
    """The run found its configuration unusable: by its exit status, else by the stage that it says it failed in."""
    if run.exit is not None:
        return refused(run.exit)
    return any(mark.keys.get("stage") == CONFIGURING for mark in run.named("service.failed"))


def _exit_words(mark: Mark | None) -> tuple[str, str] | None:
    """(cause, detail) of a recorded exit; None when it was a success or was not recorded."""
    if mark is None or mark.keys.get("result") == "success":
        return None
    result, code, status = (str(mark.keys.get(key, "?")) for key in ("result", "code", "status"))
    return exit_cause(result, status), f"{code} {status}"


def exit_cause(result: str, status: str) -> str:
    """One phrase for systemd's words: watchdog, signal KILL, exit status 1, ..."""
    if result in ("signal", "core-dump"):
        return f"signal {status.removeprefix('SIG')}"
    return f"exit status {status}" if result == "exit-code" else result


# --- Within one run: times of which nothing was heard, and times at which work waited and nothing came out.


Hole = tuple[float, float]


@dataclass(slots=True)
class Stall:
    begin: float
    end: float
    detail: str = ""


def gaps(run: Run, images: ImageCounts, begin: float, end: float, limit: float) -> list[Hole]:
    """Stretches of more than `limit` seconds between two lines of the run, within begin..end."""
    heard = {mark.at for mark in run.marks if begin <= mark.at <= end}
    heard.update(images.at[row] for row in images.between(begin, end) if images.pid[row] == run.pid)
    return [(a, b) for a, b in pairwise(sorted(heard | {begin, end})) if b - a > limit]


def stalls(
    run: Run, images: ImageCounts, begin: float, end: float, limit: float, holes: Sequence[Hole], *, failed: bool
) -> list[Stall]:
    """Stretches in which a claimed image waited and none was concluded for more than `limit` seconds.

    Seen at heartbeats, which say what is in flight; a pause for the disk's sake is none. Besides, what the service
    itself reported as a stall, if that took as long, or if the run failed in it (`failed`: the run ended in failure).
    """
    outcomes = [images.at[row] for row in images.between(begin, end) if images.pid[row] == run.pid]
    found = _by_heartbeats(run, outcomes, begin, end, limit, holes)
    found += _as_reported(run, begin, end, limit, failed=failed)
    return _merged(found, holes)


def _by_heartbeats(
    run: Run, outcomes: list[float], begin: float, end: float, limit: float, holes: Sequence[Hole]
) -> list[Stall]:
    found: list[Stall] = []
    heartbeats = [mark for mark in run.named("health") if begin <= mark.at <= end]
    moved = begin  # when work last came out, or last did not wait
    next_outcome = 0
    fences = sorted(hole[1] for hole in holes)
    for heartbeat in heartbeats:
        while next_outcome < len(outcomes) and outcomes[next_outcome] <= heartbeat.at:
            moved = max(moved, outcomes[next_outcome])
            next_outcome += 1
        moved = max([moved, *(fence for fence in fences if fence <= heartbeat.at)])
        if not _waits(heartbeat):
            moved = heartbeat.at
        elif heartbeat.at - moved > limit and not (found and found[-1].begin == moved):
            ends = [mark.at for mark in heartbeats if mark.at > heartbeat.at and not _waits(mark)][:1]
            ends += outcomes[next_outcome : next_outcome + 1]
            found.append(Stall(moved, min([*ends, end]), "an image in flight, none concluded"))
    return found


def _waits(heartbeat: Mark) -> bool:
    in_flight = heartbeat.keys.get("in_flight")
    return isinstance(in_flight, (int, float)) and in_flight > 0 and not heartbeat.keys.get("paused")


def _as_reported(run: Run, begin: float, end: float, limit: float, *, failed: bool) -> list[Stall]:
    found: list[Stall] = []
    reports = run.named("service.stalled", "service.stall_ended")
    for report, after in zip(reports, [*reports[1:], None], strict=False):
        if report.event != "service.stalled" or not begin <= report.at <= end:
            continue
        since = max(report.at - _seconds(report), begin)
        over = after is not None and after.at <= end
        until = after.at if after is not None and over else end
        if until - since > limit or (failed and not over):
            found.append(Stall(since, until, f"hung: {report.keys.get('threads', '?')}"))
    return found


def _seconds(mark: Mark) -> float:
    value = mark.keys.get("seconds")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _merged(found: list[Stall], holes: Sequence[Hole]) -> list[Stall]:
    """Overlapping stalls are one; what was not observed is cut out of them."""
    result: list[Stall] = []
    for stall in sorted(found, key=lambda stall: stall.begin):
        if result and stall.begin <= result[-1].end:
            result[-1].end = max(result[-1].end, stall.end)
        else:
            result.append(stall)
    pieces: list[Stall] = []
    for stall in result:
        begin = stall.begin
        for hole_begin, hole_end in holes:
            if hole_end <= begin or hole_begin >= stall.end:
                continue
            if hole_begin > begin:
                pieces.append(Stall(begin, hole_begin, stall.detail))
            begin = hole_end
        if stall.end > begin:
            pieces.append(Stall(begin, stall.end, stall.detail))
    return pieces
