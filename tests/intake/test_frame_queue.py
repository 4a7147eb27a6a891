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


def test_originals_that_stay_take_no_places_from_those_that_wait(film: Build) -> None:
    loop = film(originals="keep", intake={"tracked_maximum": 16})
    for number in range(60):
        loop.drop(name(number))
    jobs: list[Job] = []
    for _ in range(120):
        found = loop.jobs(0.5)
        for job in found:
            loop.end(job)
        jobs += found
    assert numbers(jobs) == list(range(60))
    scans = []
    with mock.patch.object(
        loop.reconciler._scanner, "_scan", side_effect=lambda *given, **more: scans.append(given) or (set(), 0)
    ):
        loop.turn(0.1, times=5)
    assert scans == []


@pytest.mark.parametrize("way", ["event", "directory"])
def test_frames_that_find_no_place_are_not_missing(film: Build, way: str) -> None:
    loop = film(intake={"tracked_maximum": 16}, frame_window=8)
    loop.turn(1.0)
    order = list(range(60))
    random.Random(3).shuffle(order)
    for number in order:
        loop.drop(name(number))
        if way == "event":
            loop.hear(name(number))
    if way == "directory":
        loop.reconciler._scanner.hints.directory("shop", "take")
    jobs = drained(loop, rounds=200)
    assert (numbers(jobs), notes(jobs)) == (list(range(60)), [])
    assert loop.events.named("sequence.gap") == []


@pytest.mark.parametrize("other", ["marker", "link"])
def test_what_takes_no_place_does_not_end_a_look_at_a_full_folder(film: Build, other: str) -> None:
    loop = film(intake={"tracked_maximum": 16})
    for number in range(2, 40):
        loop.drop(name(number))
    loop.turn(0.5, times=2)
    loop.drop(name(0))
    loop.drop(name(1))
    if other == "marker":
        loop.drop("take/sequence.end", b"")
    else:
        (loop.roots["input"] / "x.png").symlink_to("/etc/passwd")
    jobs = drained(loop, rounds=200)
    assert (numbers(jobs), notes(jobs)) == (list(range(40)), [])


def test_a_folder_that_is_polled_is_looked_through_before_a_frame_is_passed_over(film: Build) -> None:
    loop = film(intake={"reconcile_lossy": 600.0})
    loop.drop(name(0))
    loop.drop(name(2))
    end_all(loop, loop.jobs(0.5, times=6))
    loop.drop(name(1))
    assert numbers(drained(loop)) == [1, 2]
    assert loop.events.named("sequence.gap") == []


def test_frames_that_changed_as_they_were_to_be_claimed_go_in_order_afterwards(film: Build) -> None:
    loop = film()
    for number in range(6):
        loop.drop(name(number))
    loop.turn(0.5)
    claimed = loop.reconciler._claims.claim

    def changed(files):
        for number in range(6):
            (loop.roots["input"] / name(number)).chmod(0o600)
        return claimed(files)

    with mock.patch.object(loop.reconciler._claims, "claim", side_effect=changed):
        assert loop.turn(2.0, times=2) == []
    jobs = drained(loop)
    assert (numbers(jobs), notes(jobs)) == (list(range(6)), [])


def test_several_frames_that_come_back_are_claimed_again_in_their_places(film: Build) -> None:
    loop = film()
    for number in range(6):
        loop.drop(name(number))
    for job in loop.jobs(0.5, times=6):
        loop.reconciler.give_back(job, "memory", "")
    jobs = drained(loop)
    assert (numbers(jobs), notes(jobs)) == (list(range(6)), [])


def test_a_frame_that_cannot_be_put_back_yet_is_counted_once(film: Build) -> None:
    loop = film()
    for number in range(2):
        loop.drop(name(number))
    jobs = loop.jobs(0.5, times=6)
    with mock.patch.object(loop.reconciler._claims, "give_back", side_effect=OSError("away")):
        for job in jobs:
            loop.reconciler.give_back(job, "storage", "")
        loop.drop("take/sequence.end", b"")
        loop.hear("take/sequence.end")
        loop.turn(2.0, times=3)
    assert loop.events.named("sequence.done") == []
    again = drained(loop)
    assert (numbers(again), notes(again)) == ([0, 1], [])
    assert loop.told("sequence.done", "why", "missing") == [("marker", 0)]


def test_a_marker_that_may_not_be_removed_ends_its_sequence_once(film: Build) -> None:
    loop = film()
    with mock.patch("rmbgd.intake.reconciler.os.unlink", side_effect=PermissionError):
        for number in range(4):
            loop.drop(name(number))
            loop.hear(name(number))
            loop.drop("take/sequence.end", b"") if not number else None
            loop.hear("take/sequence.end")
            drained(loop, rounds=10)
    assert len(loop.events.named("sequence.done")) == 1


def test_a_gap_is_told_although_the_first_claim_behind_it_failed(film: Build) -> None:
    loop = film()
    loop.drop(name(0))
    loop.drop(name(2))
    end_all(loop, loop.jobs(0.5, times=6))
    with mock.patch.object(loop.ledger, "claim", side_effect=StorageFault("io_error", "")):
        assert drained(loop, rounds=10) == []
    assert numbers(drained(loop)) == [2]
    assert loop.told("sequence.gap", "first", "last") == [(1, 1)]
