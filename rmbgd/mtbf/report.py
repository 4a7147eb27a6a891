"""Sum up the logs of one or many machines: hours, failures, and estimates that carry their bounds with them.

A mean time between failures is never given without a bound, and not at all where the failures show a trend.
text.py, html.py and the JSON of `as_dict` show the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rmbgd import __version__
from rmbgd.mtbf import statistics
from rmbgd.mtbf.machine import FURTHER, MachineHistory, further
from rmbgd.mtbf.timeline import State, TripOutcome

FORMAT = 1  # of the JSON; raised when a key changes its meaning
HOUR = 3600.0
YEAR_MINUTES = 365 * 24 * 60
PERCENTS = (0.5, 0.6, 0.8, 0.9, 0.95)
STAGES = ("wait", "decode", "queue", "engine", "encode", "sync", "total")
UNMARKED = (
    "{} times an image was published again, marked neither recovered nor duplicate: a defect, unless its result was "
    "removed, or its recipe changed, in between"
)
SHARES = (0.05, 0.5, 0.95)  # of the images whose times in a stage are given


class Estimate:
    """What failures say about a mean time between them, from (hours, hours of its failures) per machine."""

    def __init__(self, hours: float, times: Sequence[tuple[float, Sequence[float]]], confidence: float) -> None:
        self.failures = failures = sum(len(each) for _, each in times)
        self.confidence = confidence
        self.trend = statistics.laplace(times)  # Laplace's U, None without failures
        # Failures come more, or less, often as time goes by: a constant rate is no fit, nor are the bounds.
        self.doubtful = self.trend is not None and abs(self.trend) > statistics.TREND_LIMIT
        # None without failures, and where a trend makes one number a lie.
        self.point = hours / failures if failures and not self.doubtful else None
        # One-sided bounds in hours, by confidence.
        self.lower = {each: statistics.lower_bound(hours, failures, each) for each in sorted({*PERCENTS, confidence})}
        self.bound = self.lower[confidence]
        self.interval = statistics.two_sided(hours, failures, confidence)  # its end is infinite without failures

    def as_dict(self) -> dict[str, Any]:
        lower, upper = self.interval
        return {
            "hours": self.point,
            "lower_hours": {f"{confidence:g}": bound for confidence, bound in self.lower.items()},
            "two_sided_hours": [lower, upper if self.failures else None],
            "failures": self.failures,
            "trend": self.trend,
            "constant_rate_doubtful": self.doubtful,
        }


class MtbfReport:
    """The figures of one machine, or of all together. What is undefined is None. `lines`: how many were read."""

    def __init__(self, machines: list[MachineHistory], confidence: float, claim: float | None, lines: int = 0) -> None:
        self.machines, self.confidence, self.lines = machines, confidence, lines
        self.each = [self] if len(machines) == 1 else [MtbfReport([each], confidence, claim) for each in machines]
        # (machine, what its logs do not say and how it was counted)
        self.notes = [(machine.name, note) for machine in machines for note in machine.notes]
        self.name = machines[0].name if len(machines) == 1 else f"{len(machines)} machines"
        # First and last of what is known, seconds since 1970; None without a run of the service.
        windows = [window for machine in machines if (window := machine.window)]
        self.window = (min(begin for begin, _ in windows), max(end for _, end in windows)) if windows else None
        self.hours = hours = sum(machine.operating for machine in machines) / HOUR
        self.failed_starts = sum(machine.timeline.failed_starts for machine in machines)
        found = [(machine, failure) for machine in machines for failure in machine.failures]
        self.failures = sorted(found, key=lambda entry: entry[1].at)
        failures = len(found)
        # Seconds of each outage that is over, and their mean; the availability of a machine that never failed would be
        # decided by the failure that has not come yet.
        self.down = [failure.down for _, failure in self.failures if failure.down is not None]
        self.mttr = sum(self.down) / len(self.down) if self.down else None
        self.availability = hours * HOUR / (hours * HOUR + sum(self.down)) if failures and hours else None
        self.down_minutes_a_year = (1 - (self.availability or 0)) * YEAR_MINUTES
        times = [(one.operating / HOUR, [each.operated / HOUR for each in one.failures]) for one in machines]
        self.mtbf = Estimate(hours, times, confidence)
        most = statistics.poisson_mean(failures, 1 - confidence)  # failures that might have come, at `confidence`
        # (hours claimed, confidence that it holds, hours that would show it with as many failures)
        sure = 1 - statistics.poisson_at_most(failures, hours / claim) if claim else 0.0
        self.claimed = (claim, sure, claim * most) if claim else None
        self.trips = sorted((trip for machine in machines for trip in machine.trips), key=lambda trip: trip.at)
        self.away = sum(trip.until - trip.at for trip in self.trips)  # s in which a device had been left
        times = [
            (one.operating / HOUR, [one.timeline.operated_until(trip.at) / HOUR for trip in one.trips])
            for one in machines
        ]
        self.between_failovers = Estimate(hours, times, confidence)
        # (avoided, of how many that could have been an outage, share at least, at `confidence`)
        self.outcomes = Counter(trip.outcome for trip in self.trips)
        avoided = self.outcomes[TripOutcome.AVOIDED]
        tried = avoided + self.outcomes[TripOutcome.BROKEN]
        self.coverage = (avoided, tried, statistics.coverage_lower(avoided, tried, confidence)) if tried else None
        # Published again, by mark: each version of an image of a fleet counts once, on whichever machines.
        self.further = further(machines)
        self.done = self.count("outcomes")["done"] - self.further.total()  # images published
        self.images = self.done + self.count("outcomes")["failed"]  # concluded: published or rejected
        if self.further["unmarked"]:
            self.notes.append((self.name, UNMARKED.format(f"{self.further['unmarked']:,}")))
        # (failures per million images, None without failures; upper bound at `confidence`)
        scale = 1e6 / (self.images or 1)
        self.per_million = (failures * scale if failures else None, most * scale) if self.images else None
        # Why things went other than well.
        self.reasons = {
            "failures": Counter(failure.cause for _, failure in self.failures),
            "failovers": Counter(trip.reason for trip in self.trips),
            "engine faults": self.count("faults"),
            "rejected images": self.count("refused"),
            "postponed images": self.count("postponed"),
            "storage pauses": self.count("paused"),
        }

    def seconds(self, kind: State) -> float:
        return sum(machine.timeline.seconds(kind) for machine in self.machines)

    @property
    def full_disk(self) -> tuple[float, int]:
        """(seconds, incidents) in which a disk had no room: neither failure nor down."""
        found = [until - since for machine in self.machines for since, until in machine.timeline.full]
        return sum(found), len(found)

    @property
    def paused_hours(self) -> float:
        """In service, while an operator had paused a folder or all: no failure."""
        return sum(machine.timeline.paused_seconds() for machine in self.machines) / HOUR

    def count(self, table: str) -> Counter[str]:
        return sum((machine.counts[table] for machine in self.machines), Counter())

    def stage_times(self) -> dict[str, list[float]]:
        """Stage -> milliseconds that 5, 50 and 95 % of the published images do not exceed."""
        tables = [boot.images for machine in self.machines for boot in machine.boots]
        stages = [*STAGES, *sorted({name for table in tables for name in table.stages} - set(STAGES))]
        times = ((stage, sorted(value for table in tables for value in table.values(stage))) for stage in stages)
        return {stage: [statistics.quantile(each, share) for share in SHARES] for stage, each in times if each}

    def as_dict(self) -> dict[str, Any]:
        """For programs: everything, in hours, seconds and RFC 3339, with null for what is undefined."""
        return {
            "format": FORMAT,
            "version": __version__,
            "lines": self.lines,
            "confidence": self.confidence,
            "total": _summary(self),
            "machines": [
                {"name": machine.name, **_summary(one), "notes": machine.notes, "versions": sorted(machine.versions),
                 "spans": [[time(span.begin), time(span.end), str(span.kind)] for span in machine.timeline.spans]}
                for machine, one in zip(self.machines, self.each, strict=True)
            ],
        }  # fmt: skip


def _summary(one: MtbfReport) -> dict[str, Any]:
    window, rate, coverage, claimed = one.window, one.per_million, one.coverage, one.claimed
    outcomes = one.count("outcomes")
    return {
        "window": {"from": time(window[0]), "to": time(window[1])} if window else None,
        "operating_hours": one.hours,
        "down_seconds": sum(one.down),
        "planned_seconds": one.seconds(State.PLANNED),
        "unobserved_seconds": one.seconds(State.UNOBSERVED),
        "power_losses": {
            "count": sum(span.kind is State.POWER_LOSS for machine in one.machines for span in machine.timeline.spans),
            "seconds": one.seconds(State.POWER_LOSS),
        },
        "full_disk": {"seconds": one.full_disk[0], "incidents": one.full_disk[1]},
        "paused_hours": one.paused_hours,
        "failed_starts": one.failed_starts,
        "mtbf": one.mtbf.as_dict(),
        "mttr_seconds": one.mttr,
        "availability": one.availability,
        "claim": claimed
        and {"hours": claimed[0], "confidence": claimed[1], "hours_needed": claimed[2], "at": one.confidence},
        "failures": [
            {
                "machine": machine.name, "at": time(failure.at), "cause": failure.cause, "detail": failure.detail,
                "down_seconds": failure.down, "operated_hours": failure.operated / HOUR,
            }
            for machine, failure in one.failures
        ],
        "pictures": {
            "done": one.done, "further": {mark: one.further[mark] for mark in FURTHER},
            "refused": outcomes["failed"], "postponed": outcomes["postponed"],
            "by_device": dict(one.count("devices")),
            "failures_per_million": rate and {"point": rate[0], "upper": rate[1]},
        },
        "failovers": {
            "count": len(one.trips),
            "outcomes": {str(outcome): one.outcomes[outcome] for outcome in TripOutcome},
            "away_hours": one.away / HOUR,
            "coverage": coverage and {"avoided": coverage[0], "of": coverage[1], "lower": coverage[2]},
            "mean_time_between": one.between_failovers.as_dict(),
            "list": [
                {
                    "at": time(trip.at), "seconds": trip.until - trip.at, "from": trip.device, "to": trip.to,
                    "reason": trip.reason, "pictures": trip.images, "outcome": str(trip.outcome),
                }
                for trip in one.trips
            ],
        },
        "engine_restarts": dict(one.count("restarted")),
        "reasons": {
            name.replace("rejected", "refused").replace("images", "pictures"): dict(table.most_common())
            for name, table in one.reasons.items()
        },
        "stage_milliseconds": {
            stage: {"p5": low, "p50": middle, "p95": high} for stage, (low, middle, high) in one.stage_times().items()
        },
    }  # fmt: skip


def time(seconds: float) -> str | None:
    """RFC 3339 in UTC; None for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None
