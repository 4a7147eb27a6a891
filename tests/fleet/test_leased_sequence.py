"""A leased sequence: which frames go, in which turn, what is said of those that are missing; sequences not over yet."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from rmbgd.config.load import Folder, Recipe
from rmbgd.events import RecordedEvents
from rmbgd.fleet.leased_sequence import LeasedSequence
from rmbgd.fleet.message import Announcement
from rmbgd.fleet.root import RootAnswer, RootInput, SequenceFrame
from rmbgd.fleet.sequence_root import SequenceRoot
from rmbgd.fleet.share import SharedRoot
from rmbgd.fs import FileVersion
from rmbgd.sequence.filters import FilterRules, Filters
from rmbgd.sequence.numbering import frame_number
from rmbgd.sequence.open_sequences import FILE, OpenSequences
from rmbgd.sequence.sequences import Sequences
from rmbgd.sequence.turns import Turns
from rmbgd.testing.clock import FakeClock

DONE = {"device": "cpu", "model": "fake", "width": 8, "height": 8, "format": "PNG", "bytes_in": 1, "coverage": 0.5}
DONE |= {"soft": 0.1, "verdict": "ok", "batch": 1, "reused": False, "sha256_in": ""}


class Bench:
    """Sequences of one worker after another, without files; `answered`: frames with a result."""

    def __init__(self, base: Path) -> None:
        self.base, self.clock, self.events = base, FakeClock(), RecordedEvents()
        folder = Folder(name="takes", kind="frames", originals="keep", input=base, output=base, failed=base)
        self.root = SequenceRoot(SharedRoot(folder, Recipe()))
        self.answered: set[str] = set()
        self.root.answer_of_frame = self._answer  # type: ignore[method-assign]
        self.sequences = self.worker()

    def _answer(self, frame: SequenceFrame) -> RootAnswer | None:
        story = {"output": frame.path, "bytes": 1, "sha256": "", "done": DONE}
        return RootAnswer("done", story) if frame.path in self.answered else None

    def worker(self) -> Sequences:
        """Another one, with the same states."""
        rules = {"takes": FilterRules(steady=True, states=self.base / "states")}
        return Sequences(Turns(), Filters(rules, 3, self.events))

    def lease(self, *names: str, recovered: bool = False, gives_up: bool = False) -> LeasedSequence:
        frames = [self._frame(name) for name in names]
        frames.sort(key=lambda frame: (frame.number or 0, frame.path))
        announced = Announcement("takes", "f#", "frames-0-0", "default")
        if names == ("cover.png",):
            announced = Announcement("takes", "cover.png", "2-3", "default")
        found = RootInput("ready", frames=tuple(frames))
        tickets = iter(range(1, 1000))
        shared = (self.root, self.sequences, tickets, self.clock, self.events)
        return LeasedSequence(announced, "HOT:1/1", found, *shared, recovered=recovered, gives_up=gives_up)

    @staticmethod
    def _frame(name: str) -> SequenceFrame:
        place = frame_number(name)
        return SequenceFrame(name, place and place.number, FileVersion(1, 2, 3, 4), "2-3")

    def work_off(self, sequence: LeasedSequence, most: int = 1000) -> list[tuple[int | None, str]]:
        """Frames that go, in order: number and note."""
        found: list[tuple[int | None, str]] = []
        while len(found) < most and sequence.may_send:
            if (job := sequence.next()) is None:
                continue
            turn = job.turn
            found.append((turn.number, turn.note))
            if turn.ticket:
                size = (8, 8)
                self.sequences.filters.apply(job, np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
            self.answered.add(job.relative_path)
            sequence.ended(job.job_id)
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_frames_go_in_their_order_each_behind_the_one_before_it(bench: Bench) -> None:
    sequence = bench.lease("f2.png", "f10.png", "f1.png", "f3.png")
    jobs = [sequence.next() for _ in range(4)]
    assert [job.turn.number for job in jobs] == [1, 2, 3, 10]
    assert [(job.turn.previous, job.turn.ticket) for job in jobs] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert {job.leased.fingerprint for job in jobs} == {"2-3"}
    assert not sequence.may_send
    assert sequence.ending() == ""
    for job in jobs:
        sequence.ended(job.job_id)
    assert sequence.ending() == "complete"
    [gap] = bench.events.named("sequence.gap")
    assert (gap["first"], gap["last"], gap["frames"], gap["why"]) == (4, 9, 6, "absent")


def test_what_is_said_when_it_is_over(bench: Bench) -> None:
    sequence = bench.lease("f0.png", "f1.png", "f3.png", "f03.png")
    bench.work_off(sequence)
    bench.clock.advance(2.0)
    assert sequence.ending() == "complete"
    [done] = bench.events.named("sequence.done")
    told = {key: done[key] for key in ("sequence", "frames", "first", "last", "missing", "apart", "seconds", "why")}
    assert told == {
        "sequence": "f", "frames": 3, "first": 0, "last": 3, "missing": 1, "apart": 1, "seconds": 2.0, "why": "complete"
    }  # fmt: skip


def test_another_worker_goes_on_behind_the_last_answer(bench: Bench) -> None:
    names = [f"f{number}.png" for number in range(10)]
    bench.work_off(bench.lease(*names), 6)
    bench.answered -= {"f4.png", "f5.png"}  # computed, and not published when the worker died
    bench.sequences = bench.worker()
    assert bench.work_off(bench.lease(*names)) == [(number, "") for number in range(4, 10)]
    assert [each["state"] for each in bench.events.named("sequence.started")] == ["new", "resumed"]
    assert bench.events.named("sequence.gap") == []


def test_what_comes_later_goes_on_where_it_ended(bench: Bench) -> None:
    sequence = bench.lease("f0.png", "f1.png")
    bench.work_off(sequence)
    sequence.ending()
    assert bench.work_off(bench.lease("f0.png", "f1.png", "f2.png")) == [(2, "")]
    assert [each["state"] for each in bench.events.named("sequence.started")] == ["new", "resumed"]


def test_a_frame_before_those_that_are_published_is_late(bench: Bench) -> None:
    sequence = bench.lease("f1.png", "f3.png", "f4.png")
    bench.work_off(sequence)
    sequence.ending()
    later = bench.lease("f0.png", "f1.png", "f2.png", "f3.png", "f4.png", "f5.png")
    assert bench.work_off(later) == [(0, "late_frame"), (2, "late_frame"), (5, "")]
    assert len(bench.events.named("sequence.gap")) == 1


def test_a_sequence_that_is_all_new_begins_again(bench: Bench) -> None:
    names = ["f0.png", "f1.png", "f2.png"]
    sequence = bench.lease(*names)
    bench.work_off(sequence)
    sequence.ending()
    bench.answered.clear()
    assert bench.work_off(bench.lease(*names)) == [(0, ""), (1, ""), (2, "")]
    assert bench.events.named("sequence.started")[-1]["why"] == "its numbers begin again"


def test_a_still_is_announced_by_itself_and_has_no_end(bench: Bench) -> None:
    sequence = bench.lease("cover.png")
    assert bench.work_off(sequence) == [(None, "no_number")]
    assert sequence.ending() == "complete"
    assert bench.events.named("sequence.done") == []


def test_what_goes_back_stops_it_once_nothing_is_in_work(bench: Bench) -> None:
    sequence = bench.lease("f0.png", "f1.png", "f2.png")
    bench.work_off(sequence, 1)
    first, second = sequence.next(), sequence.next()
    sequence.returned(first.job_id, "storage")
    assert (sequence.stopped, sequence.may_send, sequence.ending()) == ("storage", False, "")
    sequence.ended(second.job_id)
    assert sequence.ending() == "stopped"
    assert bench.sequences.filters._filters == {}  # another worker has them
    assert bench.events.named("sequence.done") == []


@pytest.mark.parametrize(("there", "ending"), [("frames-0-0", "stopped"), ("frames-1-1", "stopped"), (None, "gone")])
def test_a_frame_that_was_another_ends_nothing_while_any_is_there(bench: Bench, there: str | None, ending: str) -> None:
    """A share that went away, or a file that was put in its place with the same size and time, is no new version; and
    nobody announces that one was removed."""
    sequence = bench.lease("f0.png", "f1.png")
    first, second = sequence.next(), sequence.next()
    sequence.returned(first.job_id, "vanished")
    sequence.ended(second.job_id)
    bench.root.fingerprint = lambda _: there  # type: ignore[method-assign]
    assert sequence.ending() == ending
    assert bench.events.named("sequence.done") == []


def test_a_root_that_cannot_be_asked_ends_nothing(bench: Bench) -> None:
    sequence = bench.lease("f0.png")
    sequence.returned(sequence.next().job_id, "vanished")

    def fails(_: str) -> str:
        raise OSError("stale")

    bench.root.fingerprint = fails  # type: ignore[method-assign]
    assert sequence.ending() == "stopped"


def test_what_is_all_in_work_comes_to_its_end_whatever_stops_it(bench: Bench) -> None:
    sequence = bench.lease("f0.png", "f1.png")
    first, second = sequence.next(), sequence.next()
    sequence.ended(first.job_id)
    sequence.stop("stopping")
    assert sequence.ending() == ""
    sequence.ended(second.job_id)
    assert sequence.ending() == "complete"


def test_what_comes_back_at_a_stop_goes_to_another_worker(bench: Bench) -> None:
    sequence = bench.lease("f0.png")
    job = sequence.next()
    sequence.stop("stopping")
    sequence.returned(job.job_id, "stopping")
    assert (sequence.ending(), sequence.stopped) == ("stopped", "stopping")


def test_a_frame_that_nobody_can_read_is_refused_in_the_end(bench: Bench) -> None:
    sequence = bench.lease("f0.png", "f1.png")
    sequence.returned(sequence.next().job_id, "storage")
    assert (sequence.unreadable(), sequence.ending()) == (None, "stopped")
    sequence = bench.lease("f0.png", "f1.png", gives_up=True)
    first, second = sequence.next(), sequence.next()
    sequence.returned(first.job_id, "storage")
    sequence.ended(second.job_id)
    assert sequence.ending() == ""
    assert sequence.unreadable() is first
    assert (sequence.unreadable(), sequence.ending()) == (None, "")
    sequence.ended(first.job_id)
    assert sequence.ending() == "complete"


def test_a_sequence_with_all_answers_is_answered(bench: Bench) -> None:
    bench.answered |= {"f0.png", "f1.png"}
    sequence = bench.lease("f0.png", "f1.png")
    assert bench.work_off(sequence) == []
    assert sequence.ending() == "answered"
    assert bench.events.events == []


def test_what_a_dead_worker_published_last_is_told_again(bench: Bench) -> None:
    names = [f"f{number}.png" for number in range(10)]
    bench.work_off(bench.lease(*names), 6)
    bench.answered -= {"f5.png"}
    bench.sequences = bench.worker()
    assert [number for number, _ in bench.work_off(bench.lease(*names, recovered=True))] == [5, 6, 7, 8, 9]
    told = bench.events.named("image.done")
    assert [(each["frame"], each["recovered"]) for each in told] == [(3, True), (4, True)]  # of three states kept


# --- sequences that are not over yet


def test_what_the_disk_refuses_is_not_open_yet(tmp_path: Path) -> None:
    sequences = opened(tmp_path, FakeClock())
    with mock.patch("rmbgd.sequence.open_sequences.atomic_write", side_effect=OSError("full")):
        for _ in range(2):
            with pytest.raises(OSError, match="full"):
                sequences.add("takes", "f")
    sequences.add("takes", "f")
    assert (tmp_path / FILE).read_text() == '[["takes", "f"]]'


def opened(base: Path, clock: FakeClock) -> OpenSequences:
    folder = Folder(name="takes", kind="frames", originals="keep", input=base, output=base, failed=base)
    return OpenSequences(base, {"takes": folder.model_copy(update={"sequence_quiet": 10.0})}, clock)


def test_a_sequence_is_announced_once_the_intake_says_that_it_is_over(tmp_path: Path) -> None:
    sequences = opened(tmp_path, FakeClock())
    sequences.begun("takes", "f")
    sequences.add("takes", "f")
    assert sequences.over() == []
    sequences.close("takes", "f")
    assert sequences.over() == [("takes", "f")]
    sequences.announced("takes", "f")
    assert sequences.over() == []
    assert (tmp_path / FILE).read_text() == "[]"


def test_a_sequence_that_goes_on_while_it_is_announced_is_announced_again(tmp_path: Path) -> None:
    sequences = opened(tmp_path, FakeClock())
    sequences.add("takes", "f")
    sequences.close("takes", "f")
    sequences.begun("takes", "f")  # a frame more has come
    sequences.announced("takes", "f")
    assert sequences.over() == []
    sequences.close("takes", "f")
    assert sequences.over() == [("takes", "f")]


def test_what_the_last_run_left_is_over_when_it_stays_quiet(tmp_path: Path) -> None:
    clock = FakeClock()
    first = opened(tmp_path, clock)
    for name in ("f", "g"):
        first.add("takes", name)
    first.close("takes", "f")  # killed before it is announced
    second = opened(tmp_path, clock)
    second.begun("takes", "g")
    clock.advance(9.0)
    assert second.over() == []
    clock.advance(1.0)
    assert second.over() == [("takes", "f")]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["takes"]]', "\x00"])
def test_a_file_that_is_none_opens_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert opened(tmp_path, FakeClock()).over() == []


def test_a_sequence_that_nobody_knows_is_not_announced(tmp_path: Path) -> None:
    sequences = opened(tmp_path, FakeClock())
    sequences.close("takes", "only refused before it was complete")
    assert sequences.over() == []
