"""How many leases a worker holds, which it extends, and what runs alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.fleet.lease import (
    LEASED,
    ORDER,
    START,
    TOLD_FOR,
    LeaseProgress,
    LeaseTimes,
    WaitingMessages,
    Window,
    may_extend,
    runs_alone,
)

TIMES = LeaseTimes(60.0, 1800.0)
SECONDS = st.floats(0, 10_000)
STAGES = st.sampled_from(ORDER[:-1])  # what has ended has no lease
ENTERED = st.dictionaries(st.sampled_from(ORDER), SECONDS)


def progress(stage: str = LEASED, moved_at: float = 0.0, leased_at: float = 0.0) -> LeaseProgress:
    return LeaseProgress(leased_at, stage, moved_at)


# --- extending


def test_a_lease_is_extended_while_its_image_moves() -> None:
    assert may_extend(progress("decode", moved_at=100.0), {}, 160.0, TIMES)
    assert not may_extend(progress("decode", moved_at=100.0), {}, 160.1, TIMES)


@pytest.mark.parametrize("position", range(len(ORDER) - 1))
def test_an_image_that_waits_is_not_stuck_while_those_before_it_move(position: int) -> None:
    stage, later = ORDER[position], ORDER[position + 1]
    assert may_extend(progress(stage), {later: 990.0}, 1000.0, TIMES)
    assert not may_extend(progress(stage), {later: 900.0}, 1000.0, TIMES)


@pytest.mark.parametrize("stage", ORDER[:-1])
def test_what_goes_into_its_own_stage_or_an_earlier_one_does_not_help_it(stage: str) -> None:
    behind = ORDER[: ORDER.index(stage) + 1]
    assert not may_extend(progress(stage), dict.fromkeys(behind, 1000.0), 1000.0, TIMES)


def test_no_lease_lasts_for_ever() -> None:
    moving = dict.fromkeys(ORDER, 1801.0)
    assert may_extend(progress("engine", 1800.0), moving, 1800.0, TIMES)
    assert not may_extend(progress("engine", 1801.0), moving, 1801.0, TIMES)


def test_a_film_may_take_hours_and_each_of_its_frames_as_long_as_an_image() -> None:
    film = LeaseProgress(0.0, "engine", 9000.0, is_unit=True)
    assert may_extend(film, {}, 9000.0 + TIMES.maximum, TIMES)
    assert not may_extend(film, dict.fromkeys(ORDER, 10_900.0), 9000.1 + TIMES.maximum, TIMES)


@given(stage=STAGES, moved_at=SECONDS, entered=ENTERED, now=SECONDS, later=SECONDS)
def test_time_alone_never_makes_a_lease_extendable_again(
    stage: str, moved_at: float, entered: dict[str, float], now: float, later: float
) -> None:
    lease = progress(stage, moved_at)
    first, second = sorted((now, later))
    if may_extend(lease, entered, second, TIMES):
        assert may_extend(lease, entered, first, TIMES)


def test_a_lost_look_at_leases_costs_none() -> None:
    """Two of three may be late, or be lost on their way, before a lease expires."""
    assert TIMES.interval * 2 < TIMES.lease


# --- how many


@given(capacity=st.integers(1, 500), ended=st.lists(SECONDS, max_size=200))
def test_a_window_stays_within_its_bounds(capacity: int, ended: list[float]) -> None:
    window = Window(capacity, TIMES)
    assert window.size == min(START, capacity)
    for seconds in ended:
        before = window.size
        window.ended(seconds)
        assert 1 <= window.size <= capacity
        assert window.size <= before + 1


@given(ended=st.lists(st.floats(0, TIMES.lease / 10), min_size=200, max_size=300))
def test_a_worker_whose_images_end_soon_fills_its_pipeline(ended: list[float]) -> None:
    window = Window(100, TIMES)
    for seconds in ended:
        window.ended(seconds)
    assert window.size == 100


@given(ended=st.lists(st.floats(TIMES.lease / 5 + 0.001, 1e6), min_size=60, max_size=80))
def test_a_worker_whose_images_stay_gets_one_at_a_time(ended: list[float]) -> None:
    window = Window(100, TIMES)
    for _ in range(100):
        window.ended(0.0)
    for seconds in ended:
        window.ended(seconds)
    assert int(window.size) == 1


def test_a_batch_that_is_neither_quick_nor_slow_changes_nothing() -> None:
    window = Window(100, TIMES)
    window.ended(TIMES.lease / 10 + 1)
    assert window.size == START


# --- alone


@given(deliveries=st.integers(1, 100), given_back_at=st.none() | st.integers(1, 100))
def test_only_what_a_worker_left_behind_runs_alone(deliveries: int, given_back_at: int | None) -> None:
    left_behind = deliveries > 1 and given_back_at != deliveries - 1
    assert runs_alone(deliveries, given_back_at) is left_behind


@pytest.mark.parametrize(
    ("deliveries", "given_back_at", "alone"),
    [
        (1, None, False),  # new
        (2, 1, False),  # given back
        (2, None, True),  # its worker died
        (3, 1, True),  # given back, then its worker died
        (3, 2, False),  # its worker died, then another gave it back
    ],
)
def test_what_runs_alone(deliveries: int, given_back_at: int | None, alone: bool) -> None:
    assert runs_alone(deliveries, given_back_at) is alone


# --- what waits


def test_what_the_broker_told_long_ago_is_not_known() -> None:
    waiting, hot, bulk = WaitingMessages(), ("HOT", "workers-a"), ("BULK", "workers-a")
    assert waiting.known(0.0) == {}
    waiting.told({hot: 5, bulk: 9}, 0.0)
    waiting.told({hot: 0}, 30.0)
    assert waiting.known(TOLD_FOR - 0.1) == {hot: 0, bulk: 9}
    assert waiting.known(TOLD_FOR) == {hot: 0}
    waiting.told({bulk: 3}, TOLD_FOR + 10.0)
    assert waiting.known(TOLD_FOR + 30.0) == {bulk: 3}
