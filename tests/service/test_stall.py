"""Whether the line stands still although nothing holds it up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.service.stall import Facts, StallDetector, is_excused

WAITING = [(5, 0), (4, 2), (2, 0)]


def looks(watermark: StallDetector, *facts: Facts, every: float = 10.0, start: float = 0.0) -> list[bool]:
    return [watermark.stuck(each, start + every * number) for number, each in enumerate(facts)]


def test_images_that_nobody_moves_are_stuck_after_a_while() -> None:
    """Nothing moves, nothing computes, nothing excuses it: stuck once the time is over, not before."""
    assert looks(StallDetector(60.0), *[Facts(WAITING)] * 9) == [False] * 8 + [True]


@pytest.mark.parametrize(
    "interruption",
    [
        Facts([(5, 0), (4, 1), (3, 1)]),  # one went on
        Facts([(5, 0), (5, 3), (2, 0)]),  # one came
        Facts(WAITING, computing=True),
        Facts(WAITING, excused=True),
        Facts([(5, 0), (4, 0), (2, 0)]),  # nothing waits
    ],
)
def test_whatever_moves_or_may_stand_begins_it_anew(interruption: Facts) -> None:
    """One movement, one batch, one pause: the time counts from there."""
    said = looks(StallDetector(60.0), *[Facts(WAITING)] * 7, interruption, *[Facts(WAITING)] * 7)

    assert said == [False] * 15


def test_time_in_which_the_process_was_frozen_does_not_count() -> None:
    """After SIGSTOP nobody had a chance to move anything."""
    watermark = StallDetector(60.0)
    looks(watermark, *[Facts(WAITING)] * 3)

    assert not watermark.stuck(Facts(WAITING), 5000.0)
    assert looks(watermark, *[Facts(WAITING)] * 7, start=5010.0) == [False] * 6 + [True]


def test_it_ends_as_soon_as_something_moves() -> None:
    """Stuck is no state that has to be left on purpose."""
    watermark = StallDetector(60.0)
    looks(watermark, *[Facts(WAITING)] * 9)

    assert not watermark.stuck(Facts([(5, 0), (4, 1), (3, 1)]), 100.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans()), max_size=60))
def test_who_moves_computes_or_has_nothing_is_never_stuck(history: list[tuple[int, int, bool, bool]]) -> None:
    """True only after an unbroken series of equal looks that is longer than the time."""
    watermark, series = StallDetector(60.0), 0
    before = None
    for number, (sent, waiting, computing, excused) in enumerate(history):
        facts = Facts([(sent, waiting)], computing, excused)
        still = facts.marks == before and waiting and not computing and not excused
        series = series + 1 if still else 0
        before = facts.marks
        assert watermark.stuck(facts, 10.0 * number) == (series > 7)


@pytest.mark.parametrize(
    ("paused", "state", "excused"),
    [
        (None, "ready", False), (None, "degraded", False), ("disk_full", "ready", True), (None, "waiting", True),
        (None, "starting", True), (None, "restarting", True),
    ],
)  # fmt: skip
def test_what_excuses_the_line(paused: object, state: str, excused: bool) -> None:
    """A pause, and an engine that takes nothing: waited for, starting, or started again."""
    assert is_excused(paused=paused, engine={"state": state}) is excused
