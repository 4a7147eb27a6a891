"""One machine, whole: its boots put in order, its timeline, its failovers, its images, and what had to be assumed.

Does not add machines up: report.py does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from rmbgd.events import devices_of
from rmbgd.mtbf.logs import DONE, FAILED, POSTPONED, Boot, Reading
from rmbgd.mtbf.runs import Epoch, epoch
from rmbgd.mtbf.statistics import quantile
from rmbgd.mtbf.timeline import Failure, Kind, Limits, Timeline, Trip, stamp, timeline, trips

HEARTBEAT = 60.0  # s, the service's default, where the log does not tell
MISSED_BEATS = 3  # heartbeats that may be missing before a time counts as not observed
GAP_MINIMUM = 30.0  # s beyond one heartbeat; a busy disk delays lines
STALL_MINIMUM = 120.0  # s
STALL_LATENCIES = 10  # times the 95th percentile of the time from claim to outcome
PLAUSIBLE = 1577836800.0  # 2020-01-01: before it, no clock of a machine that runs rmbgd is right


@dataclass(slots=True)
class Beat:
    """One heartbeat: the device in use, and the temperature of each device where it was known. `at` since 1970."""

    at: float
    device: str
    temperatures: dict[str, float]


@dataclass(slots=True)
class Machine:
    name: str
    epochs: list[Epoch]
    timeline: Timeline
    trips: list[Trip]
    heartbeats: list[Beat]
    limits: Limits
    counts: dict[str, Counter[str]]
    notes: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    power_losses: int = 0

    @property
    def operating(self) -> float:
        """Seconds in service."""
        return self.timeline.seconds(Kind.UP)

    @property
    def failures(self) -> list[Failure]:
        return self.timeline.failures

    @property
    def window(self) -> tuple[float, float] | None:
        """(first, last) of what is known, seconds since 1970."""
        spans = self.timeline.spans
        return (spans[0].begin, max(span.end for span in spans)) if spans else None

    def images(self) -> Iterable[tuple[float, Epoch, int]]:
        """(seconds since 1970, epoch, row) of each outcome of the service, in order."""
        for each in self.epochs:
            pids = {run.pid for run in each.runs}
            for row, at in enumerate(each.images.at):
                if each.images.pid[row] in pids:
                    yield at + each.offset, each, row


def machines(reading: Reading, *, power_loss_is_failure: bool = False) -> list[Machine]:
    """Every machine of the logs, by name."""
    named = _names(reading)
    homes: dict[str, set[str]] = {}
    for name, boots in named.items():
        for boot in boots:
            homes.setdefault(boot.boot_id, set()).add(name)
    result = []
    for name, boots in sorted(named.items(), key=lambda entry: _natural(entry[0])):
        machine = _machine(name, boots, power_loss_is_failure=power_loss_is_failure)
        sources = {boot.source.device for boot in boots}
        machine.notes[:0] = [text for source, text in reading.notes if source in sources]
        shared = sorted({other for boot in boots for other in homes[boot.boot_id]} - {name})
        if shared and not any(boot.boot_id.startswith("unknown") for boot in boots):
            machine.notes.append(
                f"shares a boot with {', '.join(shared)}: containers of one host, or one machine under two names; "
                "counted apart, write NAME= before both logs to count them as one"
            )
        result.append(machine)
    return result


def _natural(name: str) -> list[tuple[int, int, str]]:
    """An order in which edge10 comes after edge9."""
    return [(int(part), 0, "") if part.isdigit() else (-1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _names(reading: Reading) -> dict[str, list[Boot]]:
    """The machine of each boot: as the operator said, else the host that its lines name, else as its path says."""
    hosts: dict[int, set[str]] = {}
    for boot in reading.boots:
        hosts.setdefault(id(boot.source), set()).update({boot.host} - {""})
    named: dict[str, list[Boot]] = {}
    for boot in reading.boots:
        name = boot.source.device
        if not boot.source.given:
            known = hosts[id(boot.source)]
            name = boot.host or (next(iter(known)) if len(known) == 1 else name)
        named.setdefault(name, []).append(boot)
    return named


def _machine(name: str, boots: list[Boot], *, power_loss_is_failure: bool) -> Machine:
    parts: dict[str, list[Boot]] = {}
    for boot in boots:
        parts.setdefault(boot.boot_id, []).append(boot)
    first = {key: min(boot.first for boot in group) for key, group in parts.items()}
    epochs = [epoch(parts[key]) for key in _in_order(parts, first)]
    again = _once(epochs)
    limits = _limits(epochs)
    life = timeline(epochs, limits, power_loss_is_failure=power_loss_is_failure)
    notes = _notes(epochs, life)
    if again:
        notes.append(f"{again} outcome{'s' * (again > 1)} told again by the start after a crash, counted once")
    _published_twice(epochs, life)
    return Machine(
        name=name,
        epochs=epochs,
        timeline=life,
        trips=trips(epochs, life.failures, limits.stall),
        heartbeats=_heartbeats(epochs),
        limits=limits,
        counts=_counts(epochs),
        notes=notes,
        versions={version for boot in boots for version in boot.versions} - {""},
        power_losses=sum(span.kind is Kind.POWER_LOSS for span in life.spans),
    )


def _in_order(parts: dict[str, list[Boot]], first: dict[str, tuple[int, int]]) -> list[str]:
    """Boots of one log as they follow each other in it, whatever the clocks say; several logs by their clocks."""
    logs: dict[int, list[str]] = {}
    for key, group in parts.items():
        logs.setdefault(id(min(group, key=lambda boot: boot.first).source), []).append(key)

    def begins(keys: list[str]) -> float:
        return min(at + offset for key in keys for boot in parts[key] for at, offset in boot.clock[:1])

    return [key for keys in sorted(logs.values(), key=begins) for key in sorted(keys, key=lambda key: first[key])]


def _limits(epochs: Sequence[Epoch]) -> Limits:
    said = [
        float(mark.keys["heartbeat"])
        for each in epochs
        for run in each.runs
        for mark in run.named("service.start")
        if isinstance(mark.keys.get("heartbeat"), (int, float))
    ]
    seen = [
        after.at - before.at
        for each in epochs
        for run in each.runs
        for before, after in zip(run.named("health"), run.named("health")[1:], strict=False)
    ]
    heartbeat = max(said[-1:] or ([median(seen)] if seen else [HEARTBEAT]))
    totals = sorted(value for each in epochs for value in each.images.values("total"))
    stall = STALL_LATENCIES * quantile(totals, 0.95) / 1000 if totals else 0.0
    return Limits(
        heartbeat=heartbeat,
        gap=max(MISSED_BEATS * heartbeat, heartbeat + GAP_MINIMUM),
        stall=max(stall, STALL_MINIMUM),
    )


def _once(epochs: Sequence[Epoch]) -> int:
    """Leave out what a start told again for a run that was killed when it had told it already; answers how many."""
    asked = set[int]().union(*(each.images.told_again() for each in epochs))
    told: set[int] = set()
    count = 0
    for each in epochs if asked else ():
        each.images, repeated = each.images.without_repeats(asked, told)
        count += repeated
    return count


def _published_twice(epochs: Sequence[Epoch], life: Timeline) -> None:
    """A job that was published twice is a failure, of no duration."""
    for each in epochs:
        seen: set[int] = set()
        for at, kind, same in zip(each.images.at, each.images.kind, each.images.same, strict=True):
            if kind != DONE:
                continue
            if same in seen:
                moment = at + each.offset
                operated = life.operated_until(moment)
                life.failures.append(Failure(moment, "published twice", until=moment, operated=operated))
            seen.add(same)
    life.failures.sort(key=lambda failure: failure.at)


def _heartbeats(epochs: Sequence[Epoch]) -> list[Beat]:
    return [
        Beat(
            mark.at + each.offset,
            str(mark.keys.get("device") or "?"),
            {
                device: float(facts["temperature"])
                for device, facts in devices_of(mark.keys).items()
                if isinstance(facts.get("temperature"), (int, float))
            },
        )
        for each in epochs
        for run in each.runs
        for mark in run.named("health")
    ]


def _counts(epochs: Sequence[Epoch]) -> dict[str, Counter[str]]:
    """What happened how often: images by outcome, refusals and faults by reason, engines restarted."""
    outcomes: Counter[str] = Counter()
    words = {DONE: Counter[str](), FAILED: Counter[str](), POSTPONED: Counter[str]()}
    marks: dict[str, Counter[str]] = {
        "faults": Counter(), "paused": Counter(), "restarted": Counter(), "degraded": Counter(),
    }  # fmt: skip
    key_of = {
        "engine.fault": ("faults", "kind"),
        "storage.paused": ("paused", "kind"),
        "engine.restarted": ("restarted", "device"),
        "engine.degraded": ("degraded", "reason"),
    }
    for each in epochs:
        pids = {run.pid for run in each.runs}
        for pid, kind, word in zip(each.images.pid, each.images.kind, each.images.word, strict=True):
            if pid in pids:
                outcomes[("done", "failed", "postponed")[kind]] += 1
                words[kind][each.images.words[word]] += 1
        for run in each.runs:
            for mark in run.named(*key_of):
                table, key = key_of[mark.event]
                marks[table][str(mark.keys.get(key, "?"))] += 1
    return {
        "outcomes": outcomes, "devices": words[DONE], "refused": words[FAILED], "postponed": words[POSTPONED], **marks,
    }  # fmt: skip


def _notes(epochs: Sequence[Epoch], life: Timeline) -> list[str]:
    """What had to be assumed or left out, for people."""
    notes = list(life.notes)
    gaps = [span for span in life.spans if span.kind is Kind.UNOBSERVED]
    if gaps:
        hours = sum(span.seconds for span in gaps) / 3600
        notes.append(
            f"{len(gaps)} gap{'s' * (len(gaps) > 1)} in the heartbeat, {hours:.2f} h, the first at "
            f"{stamp(gaps[0].begin)}: counted neither as operating nor as down"
        )
    vanished = [failure for failure in life.failures if failure.cause == "vanished"]
    if vanished:
        notes.append(
            f"{len(vanished)} run{'s' * (len(vanished) > 1)} without a recorded end, the first at "
            f"{stamp(vanished[0].at)}: counted as failures, down from their last line on"
        )
    lost = [span for span in life.spans if span.kind is Kind.POWER_LOSS]
    if lost:
        notes.append(
            f"{len(lost)} boot{'s' * (len(lost) > 1)} without a recorded end of the one before, the first at "
            f"{stamp(lost[0].begin)}: power losses, counted neither as operating nor as failures"
        )
    if life.failures and life.failures[-1].until is None:
        notes.append(f"still down at the end of the log, since {stamp(life.failures[-1].at)}: that time is not known")
    twice = sum(each.twice for each in epochs)
    if twice:
        notes.append(f"{twice} line{'s' * (twice > 1)} found more than once, counted once")
    one_shots = sum(each.one_shots for each in epochs)
    if one_shots:
        notes.append(f"{one_shots} run{'s' * (one_shots > 1)} of other commands than the service left out")
    if any(each.offset + each.last < PLAUSIBLE for each in epochs):
        notes.append("a boot with a clock before 2020: its place on the time line is wrong, its durations are not")
    if any(run.ready is not None and not run.named("health") and run.last - run.ready > HEARTBEAT * MISSED_BEATS
           for each in epochs for run in each.runs):  # fmt: skip
        notes.append("a run without heartbeats: its operating time can only be seen where lines stand close together")
    return notes
