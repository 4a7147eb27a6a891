"""Frames are claimed in the order of their numbers, whatever the folder shows first; and sequences end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.errors import StorageFault
from rmbgd.intake.source import IntakeQuestion
from rmbgd.store.records import Job
from tests.intake.test_reconciler import Loop

Build = Callable[..., Loop]
WAIT = 2.0


@pytest.fixture
def film(tmp_path: Path) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(closing(Loop(tmp_path, kind="frames", **given)))


def name(number: int) -> str:
    return f"take/f{number:05}.png"


def end_all(loop: Loop, jobs: list[Job]) -> None:
    for job in jobs:
        loop.reconciler.ended(job)


def drained(loop: Loop, seconds: float = 0.5, rounds: int = 40) -> list[Job]:
    """Whatever comes in these rounds, each ended at once."""
    found: list[Job] = []
    for _ in range(rounds):
        jobs = loop.jobs(seconds)
        end_all(loop, jobs)
        found += jobs
    return found


def numbers(jobs: list[Job]) -> list[int | None]:
    return [job.turn.number for job in jobs if job.turn is not None]


def notes(jobs: list[Job]) -> list[str]:
    return [job.turn.note for job in jobs if job.turn is not None and job.turn.note]


def test_claimed_in_order_each_behind_the_one_before(film: Build) -> None:
    loop = film()
    order = list(range(30))
    random.Random(1).shuffle(order)
    for number in order:
        loop.drop(name(number))
    jobs = drained(loop)
    assert numbers(jobs) == list(range(30))
    turns = [job.turn for job in jobs if job.turn is not None]
    assert [turn.previous for turn in turns] == [0, *(turn.ticket for turn in turns[:-1])]
    assert {turn.sequence for turn in turns} == {"take/f"}


def test_more_frames_than_the_backlog_has_places_for(film: Build) -> None:
    """A folder shows its files in any order: those that come first get the places, and none is passed over."""
    loop = film(intake={"tracked_maximum": 16})
    order = list(range(200))
    random.Random(2).shuffle(order)
    for number in order:
        loop.drop(name(number))
    jobs = drained(loop, rounds=200)
    assert numbers(jobs) == list(range(200))
    assert loop.events.named("sequence.gap") == []


def test_no_more_at_once_than_may_wait_for_one_before_them(film: Build) -> None:
    loop = film(places=1000)
    for number in range(300):
        loop.drop(name(number))
    claimed = loop.jobs(0.5, times=20)
    assert 0 < len(claimed) == loop.reconciler._frames_maximum < 300
    end_all(loop, claimed)
    assert numbers(claimed + drained(loop)) == list(range(300))


def test_a_missing_frame_is_passed_over_after_its_time_and_told(film: Build) -> None:
    loop = film()
    for number in (0, 1, 3):
        loop.drop(name(number))
    assert numbers(drained(loop, rounds=8)) == [0, 1]
    assert loop.reconciler._waiting_now(IntakeQuestion(False, None, 10))[0]["gate"] == "frame"
    assert numbers(drained(loop)) == [3]
    assert loop.told("sequence.gap", "first", "last", "frames", "why") == [(2, 2, 1, "waited")]
    loop.drop(name(2))
    late = drained(loop)
    assert (numbers(late), notes(late)) == ([2], ["late_frame"])


def test_a_missing_frame_that_is_just_being_uploaded_is_waited_for(film: Build) -> None:
    loop = film()
    loop.drop(name(0))
    loop.drop(name(2))
    loop.drop(name(1), b"slow")
    for _ in range(20):
        loop.drop(name(1), os.urandom(9))  # it changes, and so is not complete
        loop.hear(name(1))
        end_all(loop, jobs := loop.jobs(0.4))
        assert not {1, 2} & set(numbers(jobs))
    assert numbers(drained(loop)) == [1, 2]
    assert loop.events.named("sequence.gap") == []


def test_a_frame_that_comes_back_is_claimed_again_in_its_place(film: Build) -> None:
    loop = film()
    loop.drop(name(0))
    (job,) = loop.jobs(0.5, times=6)
    loop.reconciler.give_back(job, "memory", "")
    for number in (1, 2):
        loop.drop(name(number))
    jobs = drained(loop)
    assert (numbers(jobs), notes(jobs)) == ([0, 1, 2], [])


def test_stills_doubles_and_numbers_of_any_size(film: Build) -> None:
    loop = film()
    for path in ("take/f0.png", "take/f00.png", "take/poster.png", f"big/{2**31 + 1}.png", f"big/{2**31}.png"):
        loop.drop(path)
    jobs = drained(loop)
    found = {job.relative_path: job.turn for job in jobs}
    assert sorted(notes(jobs)) == ["doubled_number", "no_number"]
    assert [turn.ticket for path, turn in found.items() if path == "take/poster.png" and turn is not None] == [0]
    big = [job.relative_path for job in jobs if job.relative_path.startswith("big/")]
    assert big == [f"big/{2**31}.png", f"big/{2**31 + 1}.png"]


def test_a_marker_ends_its_sequence_and_is_used_up(film: Build) -> None:
    loop = film()
    for number in range(3):
        loop.drop(name(number))
    loop.drop("other/0.png")
    loop.drop("take/sequence.end", b"")
    drained(loop)
    assert loop.told("sequence.done", "sequence", "missing", "why") == [("take/f", 0, "marker")]
    assert loop.waiting() == []
    assert [each["sequence"] for each in loop.reconciler._answer(IntakeQuestion(False, None, 9, "sequences"))] == [
        "other/"
    ]


def test_a_marker_waits_for_frames_that_are_on_their_way(film: Build) -> None:
    loop = film()
    loop.drop(name(0))
    drained(loop, rounds=6)
    loop.drop(name(1))
    loop.drop("take/sequence.end", b"")
    loop.hear("take/sequence.end")
    held = loop.jobs(0.5, times=8)
    assert numbers(held) == [1]
    assert loop.events.named("sequence.done") == []
    end_all(loop, held)
    drained(loop)
    assert len(loop.events.named("sequence.done")) == 1


def test_a_sequence_ends_by_quiet_and_goes_on_afterwards(film: Build) -> None:
    loop = film(sequence_quiet=30.0)
    loop.drop(name(0))
    drained(loop, 1.0, rounds=20)
    assert loop.events.named("sequence.done") == []
    drained(loop, 1.0, rounds=20)
    assert loop.told("sequence.done", "why", "missing") == [("quiet", 0)]
    loop.drop(name(1))
    again = drained(loop)
    assert (numbers(again), notes(again)) == ([1], [])


def test_an_operator_ends_sequences(film: Build) -> None:
    loop = film()
    for path in (name(0), "b/0.png"):
        loop.drop(path)
    drained(loop)
    asked = loop.reconciler._answer(IntakeQuestion(False, "shop", 9, "end", "b/"))
    assert [each["sequence"] for each in asked] == ["b/"]
    drained(loop)
    assert loop.told("sequence.done", "sequence", "why") == [("b/", "command")]


def test_a_claim_that_fails_does_not_cost_the_order(film: Build) -> None:
    loop = film()
    for number in range(4):
        loop.drop(name(number))
    with mock.patch.object(loop.ledger, "claim", side_effect=StorageFault("io_error", "")):
        assert drained(loop, rounds=6) == []
    jobs = drained(loop)
    assert (numbers(jobs), notes(jobs)) == ([0, 1, 2, 3], [])


def test_what_the_last_run_died_with_goes_first_in_order(film: Build, tmp_path: Path) -> None:
    loop = film()
    for number in range(3):
        loop.drop(name(number))
    held = loop.jobs(0.5, times=8)
    assert numbers(held) == [0, 1, 2]
    loop.ledger.next_attempt(loop.ledger.unfinished()[0])  # it died with frame 0 in hand twice
    loop.close()
    again = Loop(tmp_path, kind="frames")
    with closing(again):
        assert again.recovered.jobs == 3
        again.drop(name(3))
        jobs = []
        for _ in range(8):
            found = again.jobs(0.5)
            for job in found:
                again.end(replace(job, source=job.source))
            jobs += found
    assert numbers(jobs) == [0, 1, 2, 3]


def test_a_marker_without_a_sequence_does_not_stay(film: Build) -> None:
    loop = film(sequence_quiet=30.0)
    loop.drop("take/sequence.end", b"")
    drained(loop, 1.0, rounds=20)
    assert loop.waiting() == ["take/sequence.end"]
    drained(loop, 1.0, rounds=20)
    assert loop.waiting() == []
    assert loop.events.named("sequence.done") == []
