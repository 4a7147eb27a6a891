"""Figures from lists of times: percentiles that were seen, and the stage that the others wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.bench.samples import HAND_OVER, Waits, bottleneck, busy, largest, ranked, spread, stages_of

NO_WAITS = Waits(0.0, 0.0, 0.0, 0.0, 0.0)


def test_percentiles_are_ranks() -> None:
    """Of 1 to 1000 ms the ranks are known, and the jitter is p99 - p50."""
    found = spread([float(n) for n in range(1000, 0, -1)])

    assert (1000, 500.5, 500, 950, 990, 490, 1000) == (
        found.count, found.mean, found.p50, found.p95, found.p99, found.jitter, found.longest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "p95", "p99"), [(19, False, False), (20, True, False), (99, True, False), (100, True, True)]
)
def test_percentile_of_too_few_is_left_out(count: int, p95: bool, p99: bool) -> None:
    """The slowest of a handful is no 99th percentile, and without one there is no jitter."""
    found = spread([1.0] * count)

    assert (p95, p99, p99) == (found.p95 is not None, found.p99 is not None, found.jitter is not None)


def test_nothing_measured_is_an_error() -> None:
    """No figure is made up."""
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_one_of_the_values_and_covers_its_share(values: list[float], share: float) -> None:
    """At least that share of all values is no larger."""
    ordered = sorted(values)
    value = ranked(ordered, share)

    assert value in ordered
    assert sum(each <= value for each in ordered) >= share * len(ordered) - 1e-9


def test_hand_over_is_what_the_stages_leave() -> None:
    """And never negative, though clocks of two processes are compared."""
    assert {"network": 7.0, HAND_OVER: 3.0} == stages_of(10.0, {"network": 7.0})
    assert 0.0 == stages_of(10.0, {"network": 11.0})[HAND_OVER]


def test_largest_has_its_share() -> None:
    """3 of 4 is three quarters; nothing has no largest."""
    assert ("b", 0.75) == largest({"a": 1.0, "b": 3.0})
    assert ("", 0.0) == largest({})
    assert ("", 0.0) == largest({"a": 0.0})


@pytest.mark.parametrize(
    ("after", "bound"),
    [
        # engine and finishers wait for something to come: decoding is slow
        (replace(NO_WAITS, frames_empty=8.0, arrivals_empty=18.0), "decode"),
        # decoders cannot get rid of their frames, finishers wait
        (replace(NO_WAITS, frames_full=19.0, arrivals_empty=18.0), "device"),
        # the engine cannot get rid of its results, the decoders not of their frames
        (replace(NO_WAITS, frames_full=19.0, arrivals_full=9.0), "encode"),
    ],
)
def test_who_waits_least_holds_the_others_up(after: Waits, bound: str) -> None:
    """Ten seconds of two decoders, one engine and two finishers."""
    shares = busy(NO_WAITS, after, 10.0, decoders=2, finishers=2)

    assert bound == bottleneck(shares, {"encode": 2.0, "sync": 1.0})


def test_finishing_is_bound_by_its_longer_half() -> None:
    """Encoding is processors, syncing is the disk."""
    shares = {"decode": 0.1, "engine": 0.2, "finish": 0.9}

    assert ("encode", "disk") == (
        bottleneck(shares, {"encode": 2.0, "sync": 1.0}),
        bottleneck(shares, {"encode": 1.0, "sync": 2.0}),
    )


def test_busy_counts_between_two_readings_only() -> None:
    """What was waited before the first reading, such as for the engine to load, does not count."""
    before = Waits(100.0, 0.0, 50.0, 0.0, 100.0)
    after = Waits(104.0, 6.0, 55.0, 0.0, 110.0)

    assert {"decode": 0.5, "engine": 0.5, "finish": 0.5} == busy(before, after, 10.0, decoders=2, finishers=2)


def test_no_time_between_two_readings_is_an_error() -> None:
    """A share of nothing is no number."""
    with pytest.raises(ValueError, match="0 seconds"):
        busy(NO_WAITS, NO_WAITS, 0, decoders=1, finishers=1)
