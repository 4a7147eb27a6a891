"""POLICY: what a list of measured times says, and which part of a line holds the others up.

Measures nothing and knows no clock: it is given numbers. Percentiles are values that were seen (nearest rank), and are
left out where too few were taken to know them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

P95_NEEDS, P99_NEEDS = 20, 100  # measurements: below, the rank is the slowest one, which is chance
HAND_OVER = "hand-over"  # what a round trip takes beyond the engine's own stages


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of one kind, in ms. `jitter` is p99 - p50. None where too few were measured."""

    count: int
    mean: float
    p50: float
    p95: float | None
    p99: float | None
    jitter: float | None
    longest: float


def spread(milliseconds: Sequence[float]) -> Spread:
    """Raises ValueError for no times at all."""
    if not milliseconds:
        raise ValueError("nothing was measured")
    ordered = sorted(milliseconds)
    count, p50 = len(ordered), ranked(ordered, 0.50)
    p99 = ranked(ordered, 0.99) if count >= P99_NEEDS else None
    return Spread(
        count=count,
        mean=sum(ordered) / count,
        p50=p50,
        p95=ranked(ordered, 0.95) if count >= P95_NEEDS else None,
        p99=p99,
        jitter=None if p99 is None else p99 - p50,
        longest=ordered[-1],
    )


def ranked(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values: the smallest that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def stages_of(round_trip: float, stages: Mapping[str, float]) -> dict[str, float]:
    """What a batch took by stage, in ms; the round trip's rest are messages, and waking two processes."""
    return {**stages, HAND_OVER: max(0.0, round_trip - sum(stages.values()))}


def largest(shares: Mapping[str, float]) -> tuple[str, float]:
    """The name with the largest value, and its share of the sum; ("", 0) where there is nothing to compare."""
    total = sum(shares.values())
    if not shares or total <= 0:
        return "", 0.0
    name = max(shares, key=lambda each: shares[each])
    return name, shares[name] / total


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that threads waited at the channels of a line, summed over the threads of a side, up to one moment."""

    jobs_empty: float
    frames_full: float
    frames_empty: float
    arrivals_full: float
    arrivals_empty: float


def busy(before: Waits, after: Waits, seconds: float, *, decoders: int, finishers: int) -> dict[str, float]:
    """Share of its threads' time, 0..1, that each stage did not wait for another, between two readings.

    A stage that never waits is the one that the others wait for. Decoders and engine share the way out (`arrivals`): a
    full one is counted to the engine, whose results go there.
    """
    if seconds <= 0:
        raise ValueError(f"{seconds} seconds between two readings")
    decode = (after.jobs_empty - before.jobs_empty) + (after.frames_full - before.frames_full)
    engine = (after.frames_empty - before.frames_empty) + (after.arrivals_full - before.arrivals_full)
    finish = after.arrivals_empty - before.arrivals_empty
    waited = {"decode": decode / decoders, "engine": engine, "finish": finish / finishers}
    return {stage: min(1.0, max(0.0, 1.0 - each / seconds)) for stage, each in waited.items()}


def bottleneck(shares: Mapping[str, float], milliseconds: Mapping[str, float]) -> str:
    """The stage that waits least; of `finish`, the longer half in `milliseconds`: encode, or sync (disk)."""
    stage = max(shares, key=lambda each: shares[each])
    if stage != "finish":
        return "decode" if stage == "decode" else "device"
    return "disk" if milliseconds.get("sync", 0.0) > milliseconds.get("encode", 0.0) else "encode"
