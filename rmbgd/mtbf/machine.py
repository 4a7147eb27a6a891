"""Put the boots of each machine in order: its timeline, failovers, image counts, and notes on what was assumed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from rmbgd.events import devices_of
from rmbgd.mtbf.logs import DONE, FAILED, POSTPONED, BootLog, ImageTable, LogIndex, LogSource, counted, number
from rmbgd.mtbf.runs import Boot
from rmbgd.mtbf.statistics import quantile
from rmbgd.mtbf.timeline import Failure, State, Timeline, stamp, trips

HEARTBEAT = 60.0  # s, the service's default, where the log does not tell
MISSED_HEARTBEATS = 3  # that may be missing before a time counts as not observed
GAP_MINIMUM = 30.0  # s beyond one heartbeat; a busy disk delays lines
STALL_MINIMUM = 120.0  # s
STALL_LATENCIES = 10  # times the 95th percentile of the time from claim to outcome
PLAUSIBLE = 1577836800.0  # 2020-01-01: before it, no clock of a machine that runs rmbgd is right

# For images by outcome, and for events: the table in which they count; for events the key by which they count, too.
IMAGE_TABLES = {DONE: ("done", "devices"), FAILED: ("failed", "refused"), POSTPONED: ("postponed", "postponed")}
EVENT_TABLES = {
    "engine.fault": ("faults", "kind"), "storage.paused": ("paused", "kind"),
    "engine.restarted": ("restarted", "device"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HealthSample:
    at: float  # since 1970
    device: str  # in use
    hottest: float | None  # °C of the hottest device, where one was known


class MachineHistory:
    """All boots of one machine, from the logs of it in the order in which they were read."""

    def __init__(self, name: str, logs: list[BootLog], *, power_loss_is_failure: bool) -> None:
        self.name = name
        self.versions = {version for log in logs for version in log.versions} - {""}
        self.boots = [Boot(parts) for parts in _in_order(logs)]
        again = _drop_repeats(self.boots)
        self.gap, stall = _limits(self.boots)  # seconds without a line beyond which time counts as not observed
        self.timeline = life = Timeline(self.boots, self.gap, stall, power_loss_is_failure=power_loss_is_failure)
        self.notes = [*life.notes, *_notes(self.boots, life)]  # what had to be assumed or left out, for people
        if again:
            self.notes.append(f"{counted(again, 'outcome')} told again by the start after a crash, counted once")
        _add_published_twice(self.boots, life)
        self.failures = life.failures
        self.operating = life.seconds(State.UP)  # seconds in service
        self.trips = list(trips(self.boots, life.failures, stall))
        self.heartbeats = list(_heartbeats(self.boots))
        # "outcomes" of images; "devices", "refused", "postponed", "faults", "paused", "restarted" by reason or name
        self.counts = _counts(self.boots)
        # First and last of what is known, seconds since 1970.
        self.window = (life.spans[0].begin, max(span.end for span in life.spans)) if life.spans else None


def machines(index: LogIndex, *, power_loss_is_failure: bool = False) -> list[MachineHistory]:
    """Every machine of the logs, by name; edge10 comes after edge9."""
    named = _named(index)
    names: defaultdict[str, set[str]] = defaultdict(set)  # by boot
    for name, log in ((name, log) for name, logs in named.items() for log in logs):
        names[log.boot_id].add(name)
    result = []
    for name in sorted(named, key=_natural):
        logs = named[name]
        machine = MachineHistory(name, logs, power_loss_is_failure=power_loss_is_failure)
        sources = {log.source.device for log in logs}
        machine.notes[:0] = [note for source, note in index.notes if source in sources]
        shared = sorted({other for log in logs for other in names[log.boot_id]} - {name})
        if shared and not any(log.boot_id.startswith("unknown") for log in logs):
            machine.notes.append(
                f"shares a boot with {', '.join(shared)}: containers of one host, or one machine under two names; "
                "counted apart, write NAME= before both logs to count them as one"
            )
        result.append(machine)
    return result


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _named(index: LogIndex) -> dict[str, list[BootLog]]:
    """The machine of each boot: as the operator said, else the host that its lines name, else as its path says."""
    hosts: defaultdict[LogSource, set[str]] = defaultdict(set)
    for log in index.boots:
        hosts[log.source].update({log.host} - {""})
    named: defaultdict[str, list[BootLog]] = defaultdict(list)
    for log in index.boots:
        known = hosts[log.source]
        host = log.host or (min(known) if len(known) == 1 else "")
        named[log.source.device if log.source.given or not host else host].append(log)
    return named


def _in_order(logs: list[BootLog]) -> list[list[BootLog]]:
    """The parts of each boot. Boots of one log follow each other as in it, whatever the clocks say; logs, by clock."""
    parts: defaultdict[str, list[BootLog]] = defaultdict(list)
    for log in logs:
        parts[log.boot_id].append(log)
    begins: dict[LogSource, float] = {}  # of the boots that a source names first
    for group in parts.values():
        first = min(at + offset for log in group for at, offset in log.clock[:1])
        begins[group[0].source] = min(first, begins.get(group[0].source, first))
    return sorted(parts.values(), key=lambda group: begins[group[0].source])


def _limits(boots: Sequence[Boot]) -> tuple[float, float]:
    """(gap, stall): seconds beyond which silence counts as not observed, and work without an outcome as a stall."""
    runs = [run for boot in boots for run in boot.runs]
    starts = [number(start.keys.get("heartbeat")) for run in runs for start in run.named("service.start")]
    said = [interval for interval in starts if interval is not None]
    seen = [after.at - before.at for run in runs for before, after in pairwise(run.named("health"))]
    heartbeat = said[-1] if said else median(seen) if seen else HEARTBEAT
    totals = sorted(value for boot in boots for value in boot.images.values("total"))
    late = STALL_LATENCIES * quantile(totals, 0.95) / 1000 if totals else 0.0
    return max(MISSED_HEARTBEATS * heartbeat, heartbeat + GAP_MINIMUM), max(late, STALL_MINIMUM)


def _drop_repeats(boots: Sequence[Boot]) -> int:
    """Drop outcomes that a start reported again for a run that was killed after it had reported them; returns how many.

    Rows marked as reported again are few, as each needs a crash; only their work is remembered.
    """
    asked = {same for boot in boots for same, again in zip(boot.images.same, boot.images.again, strict=True) if again}
    reported: set[int] = set()
    dropped = 0
    for boot in boots if asked else ():
        table, kept = boot.images, []
        first = zip(table.same, table.again, table.kind, strict=True)
        reported |= {same for same, again, kind in first if not again and kind != POSTPONED and same in asked}
        for row, (same, again) in enumerate(zip(table.same, table.again, strict=True)):
            if not again or same not in reported:
                kept.append(row)
            if again:
                reported.add(same)
        boot.images = table.only(kept)
        dropped += len(table) - len(kept)
    return dropped


def _add_published_twice(boots: Sequence[Boot], life: Timeline) -> None:
    """A job that was published twice is a failure, of no duration."""
    for boot in boots:
        seen: set[int] = set()
        for at, kind, same in zip(boot.images.at, boot.images.kind, boot.images.same, strict=True):
            if kind == DONE and same in seen:
                moment = at + boot.offset
                life.failures.append(Failure(moment, "published twice", "", moment, life.operated_until(moment)))
            elif kind == DONE:
                seen.add(same)
    life.failures.sort(key=lambda failure: failure.at)


def _heartbeats(boots: Sequence[Boot]) -> Iterator[HealthSample]:
    for offset, health in ((boot.offset, each) for boot in boots for run in boot.runs for each in run.named("health")):
        known = [number(facts.get("temperature")) for facts in devices_of(health.keys).values()]
        hottest = max((value for value in known if value is not None), default=None)
        yield HealthSample(health.at + offset, str(health.keys.get("device") or "?"), hottest)


def outcomes(boots: Sequence[Boot]) -> Iterator[tuple[float, ImageTable, int]]:
    """(seconds since 1970, table, row) of each image outcome of the service, in order."""
    for boot in boots:
        pids = {run.pid for run in boot.runs}
        for row, (at, pid) in enumerate(zip(boot.images.at, boot.images.pid, strict=True)):
            if pid in pids:
                yield at + boot.offset, boot.images, row


FURTHER = ("recovered", "duplicate", "unmarked")


def further(machines: Sequence[MachineHistory]) -> Counter[str]:
    """How many `image.done` of a fleet there are beyond the first of each version of an image, by their mark (FURTHER).

    "recovered" was told again as a worker died, or its acknowledgement was lost; "duplicate" was computed twice; there
    should be no "unmarked". Costs some ten bytes an image while it counts: two of a filter, by which only the versions
    that may come twice, and about every sixteenth of the others, have to be remembered.
    """

    def published() -> Iterator[tuple[int, str]]:
        for _, table, row in (each for machine in machines for each in outcomes(machine.boots)):
            if table.kind[row] == DONE and (version := table.version[row]):
                mark = "duplicate" if table.duplicate[row] else "recovered" if table.again[row] else "unmarked"
                yield version, mark

    seen = bytearray(2 * sum(len(boot.images) for machine in machines for boot in machine.boots) + 1)
    asked: set[int] = set()
    for version, _ in published():
        byte, bit = divmod(version % (8 * len(seen)), 8)
        if seen[byte] >> bit & 1:
            asked.add(version)
        seen[byte] |= 1 << bit
    if not asked:
        return Counter()
    first: dict[int, str] = {}  # the mark of the one that counts: unmarked, where there is such a one
    found: Counter[str] = Counter()
    for version, mark in (each for each in published() if each[0] in asked):
        if (before := first.setdefault(version, "")) and (mark != "unmarked" or before == mark):
            found[mark] += 1
        else:
            first[version] = mark
            found.update([before] if before else [])
    return found


def _counts(boots: Sequence[Boot]) -> dict[str, Counter[str]]:
    """What happened how often: images by outcome, refusals and faults by reason, engines restarted."""
    tables: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, images, row in outcomes(boots):
        outcome, table = IMAGE_TABLES[images.kind[row]]
        tables["outcomes"][outcome] += 1
        tables[table][images.word[row]] += 1
    for event in (event for boot in boots for run in boot.runs for event in run.named(*EVENT_TABLES)):
        table, key = EVENT_TABLES[event.event]
        tables[table][str(event.keys.get(key, "?"))] += 1
    return tables


def _notes(boots: Sequence[Boot], life: Timeline) -> Iterator[str]:
    """What had to be assumed or left out, for people."""
    if gaps := [span for span in life.spans if span.kind is State.UNOBSERVED]:
        hours = life.seconds(State.UNOBSERVED) / 3600
        yield (
            f"{counted(len(gaps), 'gap')} in the heartbeat, {hours:.2f} h, the first at {stamp(gaps[0].begin)}: "
            "counted neither as operating nor as down"
        )
    if vanished := [failure for failure in life.failures if failure.cause == "vanished"]:
        yield (
            f"{counted(len(vanished), 'run')} without a recorded end, the first at {stamp(vanished[0].at)}: "
            "counted as failures, down from their last line on"
        )
    if lost := [span for span in life.spans if span.kind is State.POWER_LOSS]:
        yield (
            f"{counted(len(lost), 'boot')} without a recorded end of the one before, the first at "
            f"{stamp(lost[0].begin)}: power losses, counted neither as operating nor as failures"
        )
    if life.failures and life.failures[-1].until is None:
        yield f"still down at the end of the log, since {stamp(life.failures[-1].at)}: that time is not known"
    if repeated := sum(boot.repeated for boot in boots):
        yield f"{counted(repeated, 'line')} found more than once, counted once"
    if one_shots := sum(boot.one_shots for boot in boots):
        yield f"{counted(one_shots, 'run')} of other commands than the service left out"
    if any(boot.offset + boot.last < PLAUSIBLE for boot in boots):
        yield "a boot with a clock before 2020: its place on the time line is wrong, its durations are not"
    silent = HEARTBEAT * MISSED_HEARTBEATS
    runs = [run for boot in boots for run in boot.runs if run.ready is not None and run.last - run.ready > silent]
    if not all(run.first("health") for run in runs):
        yield "a run without heartbeats: its operating time can only be seen where lines stand close together"
