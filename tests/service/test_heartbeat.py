"""Which threads hang, from the last heartbeat of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.heartbeat import Heartbeats, Pulse, stalled
from rmbgd.testing.clock import FakeClock

AFTER = 30.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def heartbeats(clock: FakeClock) -> Heartbeats:
    return Heartbeats(clock)


def test_thread_that_waits_is_never_stalled(clock: FakeClock, heartbeats: Heartbeats) -> None:
    """Waiting for others may take for ever; a thread that has not said anything yet counts as waiting too."""
    heartbeats.new("decode").waiting()
    heartbeats.new("late")
    clock.advance(1e6)

    assert [] == heartbeats.stalled(clock.monotonic(), AFTER)


def test_thread_that_works_too_long_is_named(clock: FakeClock, heartbeats: Heartbeats) -> None:
    """Only the one that neither waits nor progresses, only beyond the limit, and only until its next step."""
    slow, brisk = heartbeats.new("slow"), heartbeats.new("brisk")
    slow.working()
    clock.advance(AFTER)
    brisk.working()

    assert [] == heartbeats.stalled(clock.monotonic(), AFTER)
    clock.advance(0.001)
    assert ["slow"] == heartbeats.stalled(clock.monotonic(), AFTER)
    slow.working()
    assert [] == heartbeats.stalled(clock.monotonic(), AFTER)


def test_time_in_which_the_whole_process_stood_still_does_not_count() -> None:
    """After SIGSTOP and SIGCONT every thread has the full time again, and no more."""
    readings = [Pulse("decode", waiting=False, since=100.0)]

    assert [] == stalled(readings, 1000.0 + AFTER, AFTER, awake_since=1000.0)
    assert ["decode"] == stalled(readings, 1000.1 + AFTER, AFTER, awake_since=1000.0)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1e6))),
    st.floats(0, 1e6),
    st.floats(0.1, 1e3),
    st.floats(0, 1e6),
)
def test_stalled_are_just_those_that_work_and_are_old(
    said: list[tuple[bool, float]], now: float, after: float, awake: float
) -> None:
    """The rule, against every combination of waiting, age and standing still."""
    readings = [Pulse(str(index), waiting, since) for index, (waiting, since) in enumerate(said)]

    expected = [
        reading.name
        for reading in readings
        if not reading.waiting and now - reading.since > after and now - awake > after
    ]
    assert expected == stalled(readings, now, after, awake_since=awake)
