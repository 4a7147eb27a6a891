"""Sum up the logs of one or many machines: hours, failures, and estimates that carry their bounds with them.

A mean time between failures is never given without a bound, and not at all where the failures show a trend.
text.py, html.py and the JSON of `as_dict` show the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rmbgd import __version__
from rmbgd.mtbf import statistics
from rmbgd.mtbf.machine import MachineHistory
from rmbgd.mtbf.timeline import Failure, State, Trip, TripOutcome

FORMAT = 1  # of the JSON; raised when a key changes its meaning
HOUR = 3600.0
YEAR_MINUTES = 365 * 24 * 60
PERCENTS = (0.5, 0.6, 0.8, 0.9, 0.95)
STAGES = ("wait", "decode", "queue", "engine", "encode", "sync", "total")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `failures` in some hours say about a mean time between them.

    point     None without failures, and where a trend makes one number a lie
    lower     one-sided bounds: confidence -> hours
    interval  two-sided, at `confidence`; its end is infinite without failures
    trend     Laplace's U, None without failures
    doubtful  failures come more, or less, often as time goes by: a constant rate is no fit, nor are the bounds
    """

    failures: int
    confidence: float
    point: float | None
    lower: dict[float, float]
    interval: tuple[float, float]
    trend: float | None
    doubtful: bool

    @property
    def bound(self) -> float:
        return self.lower[self.confidence]


def estimate(hours: float, times: Sequence[tuple[float, Sequence[float]]], confidence: float) -> Estimate:
    """From (hours, hours of its failures) per machine."""
    failures = sum(len(each) for _, each in times)
    trend = statistics.laplace(times)
    doubtful = trend is not None and abs(trend) > statistics.TREND_LIMIT
    return Estimate(
        failures=failures,
        confidence=confidence,
        point=hours / failures if failures and not doubtful else None,
        lower={each: statistics.lower_bound(hours, failures, each) for each in sorted({*PERCENTS, confidence})},
        interval=statistics.two_sided(hours, failures, confidence),
        trend=trend,
        doubtful=doubtful,
    )


@dataclass(frozen=True, slots=True)
class MtbfSummary:
    """The figures of one machine, or of all of them together."""

    machines: list[MachineHistory]
    confidence: float
    claim: float | None

    @property
    def name(self) -> str:
        return self.machines[0].name if len(self.machines) == 1 else f"{len(self.machines)} machines"

    @property
    def window(self) -> tuple[float, float] | None:
        """(first, last) of what is known, seconds since 1970; None without a run of the service."""
        windows = [window for machine in self.machines if (window := machine.window)]
        return (min(begin for begin, _ in windows), max(end for _, end in windows)) if windows else None

    @property
    def hours(self) -> float:
        return sum(machine.operating for machine in self.machines) / HOUR

    def seconds(self, kind: State) -> float:
        return sum(machine.timeline.seconds(kind) for machine in self.machines)

    @property
    def failures(self) -> list[tuple[MachineHistory, Failure]]:
        found = [(machine, failure) for machine in self.machines for failure in machine.failures]
        return sorted(found, key=lambda entry: entry[1].at)

    @property
    def failed_starts(self) -> int:
        return sum(machine.timeline.failed_starts for machine in self.machines)

    @property
    def trips(self) -> list[Trip]:
        return sorted((trip for machine in self.machines for trip in machine.trips), key=lambda trip: trip.at)

    @property
    def away(self) -> float:
        """Seconds in which a device had been left."""
        return sum(trip.until - trip.at for trip in self.trips)

    @property
    def mtbf(self) -> Estimate:
        times = [
            (each.operating / HOUR, [failure.operated / HOUR for failure in each.failures]) for each in self.machines
        ]
        return estimate(self.hours, times, self.confidence)

    @property
    def between_failovers(self) -> Estimate:
        times = [
            (each.operating / HOUR, [each.timeline.operated_until(trip.at) / HOUR for trip in each.trips])
            for each in self.machines
        ]
        return estimate(self.hours, times, self.confidence)

    @property
    def down(self) -> list[float]:
        """Seconds of each outage that is over."""
        return [failure.down for _, failure in self.failures if failure.down is not None]

    @property
    def mttr(self) -> float | None:
        """Mean seconds until ready again, over the outages that are over."""
        return sum(self.down) / len(self.down) if self.down else None

    @property
    def availability(self) -> float | None:
        """None without a failure: the one that has not come yet would decide it."""
        operated = self.hours * HOUR
        return operated / (operated + sum(self.down)) if self.failures and operated else None

    @property
    def down_minutes_a_year(self) -> float:
        return (1 - (self.availability or 0)) * YEAR_MINUTES

    def count(self, table: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for machine in self.machines:
            total.update(machine.counts[table])
        return total

    @property
    def images(self) -> int:
        """Concluded: published or refused."""
        outcomes = self.count("outcomes")
        return outcomes["done"] + outcomes["failed"]

    @property
    def per_million(self) -> tuple[float | None, float] | None:
        """(failures per million images, None without failures; upper bound at `confidence`); None without any."""
        if not self.images:
            return None
        failures, scale = len(self.failures), 1e6 / self.images
        return (failures * scale if failures else None, statistics.poisson_mean(failures, 1 - self.confidence) * scale)

    @property
    def outcomes(self) -> Counter[TripOutcome]:
        return Counter(trip.outcome for trip in self.trips)

    @property
    def coverage(self) -> tuple[int, int, float] | None:
        """(avoided, of how many that could have been an outage, share at least, at `confidence`); None without any."""
        avoided = self.outcomes[TripOutcome.AVOIDED]
        tried = avoided + self.outcomes[TripOutcome.BROKEN]
        return (avoided, tried, statistics.coverage_lower(avoided, tried, self.confidence)) if tried else None

    @property
    def reasons(self) -> dict[str, Counter[str]]:
        """Why things went other than well, most frequent first in each table."""
        return {
            "failures": Counter(failure.cause for _, failure in self.failures),
            "failovers": Counter(trip.reason for trip in self.trips),
            "engine faults": self.count("faults"),
            "refused images": self.count("refused"),
            "postponed images": self.count("postponed"),
            "storage pauses": self.count("paused"),
        }

    def stage_times(self) -> dict[str, tuple[float, float, float]]:
        """Stage -> milliseconds that 5, 50 and 95 % of the published images do not exceed."""
        found: dict[str, tuple[float, float, float]] = {}
        tables = [boot.images for machine in self.machines for boot in machine.boots]
        names = {name for table in tables for name in table.stages}
        for stage in [*STAGES, *sorted(names - set(STAGES))]:
            if values := sorted(value for table in tables for value in table.values(stage)):
                low, middle, high = (statistics.quantile(values, share) for share in (0.05, 0.5, 0.95))
                found[stage] = (low, middle, high)
        return found

    @property
    def claimed(self) -> tuple[float, float, float] | None:
        """(the claim in hours, confidence that it holds, hours that would show it with as many failures)."""
        if self.claim is None:
            return None
        failures = len(self.failures)
        sure = statistics.confidence_of(self.claim, self.hours, failures)
        return self.claim, sure, statistics.hours_needed(self.claim, failures, self.confidence)


@dataclass(frozen=True, slots=True)
class MtbfReport(MtbfSummary):
    """All machines together, and each of them. `lines`: how many were read."""

    lines: int

    @property
    def each(self) -> list[MtbfSummary]:
        return [MtbfSummary([machine], self.confidence, self.claim) for machine in self.machines]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(machine, what its logs do not say and how it was counted)."""
        return [(machine.name, note) for machine in self.machines for note in machine.notes]

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


def _summary(one: MtbfSummary) -> dict[str, Any]:
    window, rate, coverage, claimed = one.window, one.per_million, one.coverage, one.claimed
    outcomes = one.count("outcomes")
    return {
        "window": {"from": time(window[0]), "to": time(window[1])} if window else None,
        "operating_hours": one.hours,
        "down_seconds": sum(one.down),
        "planned_seconds": one.seconds(State.PLANNED),
        "unobserved_seconds": one.seconds(State.UNOBSERVED),
        "power_losses": {
            "count": sum(machine.power_losses for machine in one.machines), "seconds": one.seconds(State.POWER_LOSS),
        },
        "failed_starts": one.failed_starts,
        "mtbf": _estimate(one.mtbf),
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
            "done": outcomes["done"], "refused": outcomes["failed"], "postponed": outcomes["postponed"],
            "by_device": dict(one.count("devices")),
            "failures_per_million": rate and {"point": rate[0], "upper": rate[1]},
        },
        "failovers": {
            "count": len(one.trips),
            "outcomes": {str(outcome): one.outcomes[outcome] for outcome in TripOutcome},
            "away_hours": one.away / HOUR,
            "coverage": coverage and {"avoided": coverage[0], "of": coverage[1], "lower": coverage[2]},
            "mean_time_between": _estimate(one.between_failovers),
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
            name.replace("images", "pictures"): dict(table.most_common()) for name, table in one.reasons.items()
        },
        "stage_milliseconds": {
            stage: {"p5": low, "p50": middle, "p95": high} for stage, (low, middle, high) in one.stage_times().items()
        },
    }  # fmt: skip


def _estimate(found: Estimate) -> dict[str, Any]:
    lower, upper = found.interval
    return {
        "hours": found.point,
        "lower_hours": {f"{confidence:g}": bound for confidence, bound in found.lower.items()},
        "two_sided_hours": [lower, upper if found.failures else None],
        "failures": found.failures,
        "trend": found.trend,
        "constant_rate_doubtful": found.doubtful,
    }


def time(seconds: float) -> str | None:
    """RFC 3339 in UTC; None for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None
