"""Whether the pipeline is stuck although nothing holds it up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.service.stall import StallDetector, StallFacts, is_excused

PROGRESS = [(5, 5), (4, 2), (2, 2)]
STILL = StallFacts(PROGRESS)


def looks(detector: StallDetector, *facts: StallFacts, start: float = 0.0) -> list[bool]:
    return [detector.is_stalled(each, start + 10.0 * number) for number, each in enumerate(facts)]


def test_images_that_do_not_move_are_a_stall_after_a_while() -> None:
    detector = StallDetector(60.0)
    assert looks(detector, *[STILL] * 9) == [False] * 8 + [True]
    assert not detector.is_stalled(StallFacts([(5, 5), (4, 3), (2, 2)]), 100.0)


@pytest.mark.parametrize(
    "interruption",
    [
        StallFacts([(5, 5), (4, 3), (2, 2)]),  # one was finished
        StallFacts([(5, 5), (5, 2), (2, 2)]),  # one came
        StallFacts(PROGRESS, computing=True),
        StallFacts(PROGRESS, excused=True),
        StallFacts([(5, 5), (4, 4), (2, 2)]),  # all were finished
    ],
)
def test_progress_or_an_excuse_begins_it_anew(interruption: StallFacts) -> None:
    assert looks(StallDetector(60.0), *[STILL] * 7, interruption, *[STILL] * 7) == [False] * 15


def test_time_in_which_the_process_was_frozen_does_not_count() -> None:
    """After SIGSTOP no thread had a chance to move anything."""
    detector = StallDetector(60.0)
    looks(detector, *[STILL] * 3)
    assert not detector.is_stalled(STILL, 5000.0)
    assert looks(detector, *[STILL] * 7, start=5010.0) == [False] * 6 + [True]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans()), max_size=60))
def test_a_stall_is_an_unbroken_series_without_progress(history: list[tuple[int, int, bool, bool]]) -> None:
    """True only after a series of looks with equal counts, unfinished images, and no excuse, longer than the time."""
    detector, series, before = StallDetector(60.0), 0, None
    for number, (finished, unfinished, computing, excused) in enumerate(history):
        progress = (finished + unfinished, finished)
        still = progress == before and unfinished and not computing and not excused
        series, before = series + 1 if still else 0, progress
        assert detector.is_stalled(StallFacts([progress], computing, excused), 10.0 * number) == (series > 7)


@pytest.mark.parametrize(
    ("paused", "state", "excused"),
    [
        (None, "ready", False), (None, "degraded", False), ("disk_full", "ready", True), (None, "waiting", True),
        (None, "starting", True), (None, "restarting", True), ("operator", "ready", False),
        ("operator:shop", "ready", False),
    ],
)  # fmt: skip
def test_what_excuses_the_pipeline(paused: object, state: str, excused: bool) -> None:
    assert is_excused(paused=paused, engine={"state": state}) is excused
