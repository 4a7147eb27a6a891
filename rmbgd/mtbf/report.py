"""What the logs of one or many machines amount to: hours, failures, and numbers that carry their bounds with them.

A mean time between failures is never given without a bound, and not at all where the failures show a trend. Does not
print: text.py, page.py and the JSON of `as_dict` show the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rmbgd import __version__
from rmbgd.mtbf.machine import Machine
from rmbgd.mtbf.statistics import (
    TREND_LIMIT,
    confidence_of,
    coverage_lower,
    hours_needed,
    laplace,
    lower_bound,
    poisson_mean,
    quantile,
    two_sided,
)
from rmbgd.mtbf.timeline import Failure, Kind, Outcome, Trip

FORMAT = 1  # of the JSON; raised when a key changes its meaning
HOUR = 3600.0
YEAR_MINUTES = 365 * 24 * 60
PERCENTS = (0.5, 0.6, 0.8, 0.9, 0.95)
STAGES = ("wait", "decode", "queue", "engine", "encode", "sync", "total")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `failures` in `hours` say about a mean time between them.

    point     None without failures, and where a trend makes one number a lie
    lower     one-sided bounds: confidence -> hours
    interval  two-sided, at `confidence`; its end is infinite without failures
    trend     Laplace's U, None without failures
    """

    hours: float
    failures: int
    confidence: float
    point: float | None
    lower: dict[float, float]
    interval: tuple[float, float]
    trend: float | None

    @property
    def doubtful(self) -> bool:
        """Failures come more, or less, often as time goes by: a constant rate is no fit, nor are the bounds."""
        return self.trend is not None and abs(self.trend) > TREND_LIMIT

    @property
    def bound(self) -> float:
        return self.lower[self.confidence]


def estimate(hours: float, times: Sequence[tuple[float, Sequence[float]]], confidence: float) -> Estimate:
    """From (hours, hours of its failures) per machine."""
    failures = sum(len(each) for _, each in times)
    trend = laplace(times)
    doubtful = trend is not None and abs(trend) > TREND_LIMIT
    return Estimate(
        hours=hours,
        failures=failures,
        confidence=confidence,
        point=hours / failures if failures and not doubtful else None,
        lower={each: lower_bound(hours, failures, each) for each in sorted({*PERCENTS, confidence})},
        interval=two_sided(hours, failures, confidence),
        trend=trend,
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one machine, or of all of them together."""

    name: str
    machines: list[Machine]
    confidence: float
    claim: float | None

    @property
    def window(self) -> tuple[float, float] | None:
        windows = [window for machine in self.machines if (window := machine.window)]
        return (min(begin for begin, _ in windows), max(end for _, end in windows)) if windows else None

    @property
    def hours(self) -> float:
        return sum(machine.operating for machine in self.machines) / HOUR

    def seconds(self, kind: Kind) -> float:
        return sum(machine.timeline.seconds(kind) for machine in self.machines)

    @property
    def failures(self) -> list[tuple[Machine, Failure]]:
        found = [(machine, failure) for machine in self.machines for failure in machine.failures]
        return sorted(found, key=lambda entry: entry[1].at)

    @property
    def trips(self) -> list[Trip]:
        return sorted((trip for machine in self.machines for trip in machine.trips), key=lambda trip: trip.at)

    @property
    def mtbf(self) -> Estimate:
        times = [
            (machine.operating / HOUR, [failure.operated / HOUR for failure in machine.failures])
            for machine in self.machines
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
        return (failures * scale if failures else None, poisson_mean(failures, 1 - self.confidence) * scale)

    @property
    def outcomes(self) -> Counter[Outcome]:
        return Counter(trip.outcome for trip in self.trips)

    @property
    def coverage(self) -> tuple[int, int, float] | None:
        """(avoided, of how many that could have been an outage, share at least, at `confidence`); None without any."""
        avoided = self.outcomes[Outcome.AVOIDED]
        tried = avoided + self.outcomes[Outcome.BROKEN]
        return (avoided, tried, coverage_lower(avoided, tried, self.confidence)) if tried else None

    @property
    def between_failovers(self) -> Estimate:
        return estimate(self.hours, self._trip_times(), self.confidence)

    def _trip_times(self) -> list[tuple[float, list[float]]]:
        return [
            (machine.operating / HOUR, [machine.timeline.operated_until(trip.at) / HOUR for trip in machine.trips])
            for machine in self.machines
        ]

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
        names = {name for machine in self.machines for each in machine.epochs for name in each.images.stages}
        for stage in [*STAGES, *sorted(names - set(STAGES))]:
            values = sorted(
                value for machine in self.machines for each in machine.epochs for value in each.images.values(stage)
            )
            if values:
                found[stage] = (quantile(values, 0.05), quantile(values, 0.5), quantile(values, 0.95))
        return found

    @property
    def claimed(self) -> tuple[float, float, float] | None:
        """(the claim in hours, confidence that it holds, hours that would show it with as many failures)."""
        if self.claim is None:
            return None
        failures = len(self.failures)
        return (
            self.claim,
            confidence_of(self.claim, self.hours, failures),
            hours_needed(self.claim, failures, self.confidence),
        )


@dataclass(frozen=True, slots=True)
class Report:
    machines: list[Machine]
    confidence: float
    claim: float | None
    lines: int

    @property
    def total(self) -> Summary:
        return Summary("all", self.machines, self.confidence, self.claim)

    @property
    def each(self) -> list[Summary]:
        return [Summary(machine.name, [machine], self.confidence, self.claim) for machine in self.machines]

    def as_dict(self) -> dict[str, Any]:
        """For programs: everything, in hours, seconds and RFC 3339, with null for what is undefined."""
        return {
            "format": FORMAT,
            "version": __version__,
            "lines": self.lines,
            "confidence": self.confidence,
            "total": _summary(self.total),
            "machines": [
                {"name": one.name} | _summary(one) | {"notes": one.machines[0].notes,
                "versions": sorted(one.machines[0].versions), "spans": _spans(one.machines[0])}
                for one in self.each
            ],
        }  # fmt: skip


def _summary(one: Summary) -> dict[str, Any]:
    window, rate, coverage, claimed = one.window, one.per_million, one.coverage, one.claimed
    outcomes = one.count("outcomes")
    return {
        "window": {"from": time(window[0]), "to": time(window[1])} if window else None,
        "operating_hours": one.hours,
        "down_seconds": sum(one.down),
        "planned_seconds": one.seconds(Kind.PLANNED),
        "unobserved_seconds": one.seconds(Kind.UNOBSERVED),
        "power_losses": {
            "count": sum(machine.power_losses for machine in one.machines),
            "seconds": one.seconds(Kind.POWER_LOSS),
        },
        "failed_starts": sum(machine.timeline.failed_starts for machine in one.machines),
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
            "outcomes": {str(outcome): one.outcomes[outcome] for outcome in Outcome},
            "away_hours": sum(trip.until - trip.at for trip in one.trips) / HOUR,
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
        "reasons": {name: dict(table.most_common()) for name, table in one.reasons.items()},
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


def _spans(machine: Machine) -> list[list[Any]]:
    return [[time(span.begin), time(span.end), str(span.kind)] for span in machine.timeline.spans]


def time(seconds: float) -> str | None:
    """RFC 3339 in UTC; None for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None
