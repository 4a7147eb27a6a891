"""Which threads hang, from the last heartbeat of each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmbgd.heartbeat import Heartbeats
from rmbgd.testing.clock import FakeClock

AFTER = 30.0
SECONDS = st.floats(0, 1e6)


def test_thread_that_works_too_long_is_named() -> None:
    """Only the one that neither waits, has yet to say anything, nor progresses; beyond the limit, until it moves."""
    clock = FakeClock()
    heartbeats = Heartbeats(clock)
    slow, brisk, idle = heartbeats.new("slow"), heartbeats.new("brisk"), heartbeats.new("idle")
    heartbeats.new("late")
    idle.waiting()
    slow.working()
    clock.advance(AFTER)
    brisk.working()
    assert [] == heartbeats.stalled(clock.monotonic(), AFTER)
    clock.advance(0.001)
    assert ["slow"] == heartbeats.stalled(clock.monotonic(), AFTER)
    slow.working()
    assert [] == heartbeats.stalled(clock.monotonic(), AFTER)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6))), SECONDS, st.floats(0.1, 1e3), SECONDS)
def test_stalled_are_just_those_that_work_and_are_old(
    said: list[tuple[bool, int]], now: float, after: float, awake: float
) -> None:
    clock = FakeClock()
    heartbeats = Heartbeats(clock)
    for name, (waiting, since) in enumerate(said):
        heartbeat = heartbeats.new(str(name))
        clock.advance(since - clock.monotonic())  # exact: whole seconds
        heartbeat.waiting() if waiting else heartbeat.working()
    late = [str(name) for name, (waiting, since) in enumerate(said) if not waiting and now - max(since, awake) > after]
    assert late == heartbeats.stalled(now, after, awake_since=awake)
