"""Within one run: times of which nothing was heard, and times at which work waited and nothing came out.

Times are monotonic seconds of the run's boot. Knows nothing of other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rmbgd.mtbf.ingest import Mark
from rmbgd.mtbf.pictures import Pictures
from rmbgd.mtbf.runs import Run

Hole = tuple[float, float]


@dataclass(slots=True)
class Stall:
    begin: float
    end: float
    detail: str = ""


def gaps(run: Run, pictures: Pictures, begin: float, end: float, limit: float) -> list[Hole]:
    """Stretches of more than `limit` seconds between two lines of the run, within begin..end."""
    heard = {mark.at for mark in run.marks if begin <= mark.at <= end}
    heard.update(pictures.at[row] for row in pictures.between(begin, end) if pictures.pid[row] == run.pid)
    return [(a, b) for a, b in pairwise(sorted(heard | {begin, end})) if b - a > limit]


def stalls(
    run: Run, pictures: Pictures, begin: float, end: float, limit: float, holes: Sequence[Hole], *, failed: bool
) -> list[Stall]:
    """Stretches in which a claimed picture waited and none was concluded for more than `limit` seconds.

    Seen at heartbeats, which say what is in flight; a pause for the disk's sake is none. Besides, what the service
    itself reported as a stall, if that took as long, or if the run failed in it (`failed`: the run ended in failure).
    """
    outcomes = [pictures.at[row] for row in pictures.between(begin, end) if pictures.pid[row] == run.pid]
    found = _by_heartbeats(run, outcomes, begin, end, limit, holes)
    found += _as_reported(run, begin, end, limit, failed=failed)
    return _merged(found, holes)


def _by_heartbeats(
    run: Run, outcomes: list[float], begin: float, end: float, limit: float, holes: Sequence[Hole]
) -> list[Stall]:
    found: list[Stall] = []
    beats = [mark for mark in run.named("health") if begin <= mark.at <= end]
    moved = begin  # when work last came out, or last did not wait
    next_outcome = 0
    fences = sorted(hole[1] for hole in holes)
    for beat in beats:
        while next_outcome < len(outcomes) and outcomes[next_outcome] <= beat.at:
            moved = max(moved, outcomes[next_outcome])
            next_outcome += 1
        moved = max([moved, *(fence for fence in fences if fence <= beat.at)])
        if not _waits(beat):
            moved = beat.at
        elif beat.at - moved > limit and not (found and found[-1].begin == moved):
            ends = [mark.at for mark in beats if mark.at > beat.at and not _waits(mark)][:1]
            ends += outcomes[next_outcome : next_outcome + 1]
            found.append(Stall(moved, min([*ends, end]), "a picture in flight, none concluded"))
    return found


def _waits(beat: Mark) -> bool:
    in_flight = beat.keys.get("in_flight")
    return isinstance(in_flight, (int, float)) and in_flight > 0 and not beat.keys.get("paused")


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
