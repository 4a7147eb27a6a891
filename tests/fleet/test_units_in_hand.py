"""Films and sequences that a worker has: how many, whose, and how their frames share the pipeline with images."""

from __future__ import annotations

import random
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from rmbgd.config.load import Folder, Recipe
from rmbgd.config.settings import PipelineSettings, SourceSettings
from rmbgd.events import RecordedEvents
from rmbgd.fleet.attempts import Attempts
from rmbgd.fleet.held import Held, HeldLeases
from rmbgd.fleet.lease import ATTEMPTS_OF_UNITS, LEASED, LeaseProgress, WaitingMessages
from rmbgd.fleet.message import HOT, Announcement
from rmbgd.fleet.pulls import BrokerFault, Delivery
from rmbgd.fleet.root import Root, RootInput, SequenceFrame, job_of
from rmbgd.fleet.sequence_root import SequenceRoot
from rmbgd.fleet.share import SharedRoot
from rmbgd.fleet.triage import Settled
from rmbgd.fleet.unit_locks import UnitLock
from rmbgd.fleet.units import LOOKS, SEQUENCES_AT_ONCE, SUSPECTS_FIRST, Units
from rmbgd.fs import FileVersion
from rmbgd.pipeline.queue import queue
from rmbgd.sequence.sequences import Sequences
from rmbgd.testing.clock import FakeClock

VERSION = FileVersion(1, 2, 3, 4)


class Bench:
    """A worker with a root of each kind; nothing has a result."""

    def __init__(self, base: Path, kinds: tuple[str, ...] = ("images", "frames", "films")) -> None:
        self.clock, self.leases = FakeClock(), HeldLeases()
        roots: dict[str, Root] = {}
        for kind in kinds:
            places = dict.fromkeys(("input", "output", "failed"), base)
            folder = Folder.model_validate({"name": kind, "kind": kind, "originals": "keep"} | places)
            root = SharedRoot(folder, Recipe())
            roots[kind] = SequenceRoot(root) if kind == "frames" else root
        config = SimpleNamespace(pipeline=PipelineSettings(queue=16), source=SourceSettings())
        self.ledger = Mock()
        self.ledger.begins_alone.side_effect = lambda _, before: Attempts(before.alone + 1)
        broker = Mock(connections=1)
        shared = (Sequences(), broker, "worker", self.ledger, self.clock, RecordedEvents())
        self.units = Units(config, roots, *shared)
        self.units.locks = Mock()
        self.units.locks.take.side_effect = lambda announced, _: UnitLock(announced.key, b"", 1)
        self._numbers = iter(range(1, 1000))

    def held(self, root: str, key: str, *, message: int = 0, deliveries: int = 1, alone: int = 0) -> Held:
        announced = Announcement(root, key, "frames-0-0" if root == "frames" else "1-1", "default")
        number = message or next(self._numbers)
        delivery = Delivery(HOT, "workers", b"", f"reply-{number}/{deliveries}", number, deliveries, 0)
        found = RootInput("ready", "", VERSION)
        job = job_of(announced, found, 0.0)
        return Held(delivery, announced, Attempts(alone), LeaseProgress(0.0, LEASED, 0.0, is_unit=True), job)

    def begin(self, held: Held, frames: int = 100) -> str:
        name = held.announced.key.removesuffix("#")
        listed = [SequenceFrame(f"{name}{number}.png", number, VERSION, "1-1") for number in range(frames)]
        begun = self.units.begin(held, RootInput("ready", "", VERSION, frames=listed))
        if begun == "begun":
            self.leases.add(held)
        return begun


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_worker_has_one_film_and_some_sequences(bench: Bench) -> None:
    assert bench.units.wanted(["images", "frames", "films"]) == ["frames", "films"]
    film = bench.held("films", "a.mp4")
    assert bench.begin(film) == "begun"
    assert bench.units.wanted(["frames", "films"]) == ["frames"]
    assert bench.begin(bench.held("films", "b.mp4")) == "busy"
    for number in range(SEQUENCES_AT_ONCE):
        assert bench.begin(bench.held("frames", f"take{number}/#")) == "begun"
    assert bench.units.wanted(["frames", "films"]) == []
    assert bench.begin(bench.held("frames", "more/#")) == "busy"
    bench.units.end(film)
    assert bench.units.wanted(["frames", "films"]) == ["films"]
    assert bench.units.locks.give.call_args.args == (film.lock,)


def test_what_another_worker_has_is_busy(bench: Bench) -> None:
    bench.units.locks.take.side_effect = lambda *_: None
    assert bench.begin(bench.held("films", "a.mp4")) == "busy"
    assert len(bench.units) == 0


@pytest.mark.parametrize("root", ["films", "frames"])
def test_its_own_that_comes_again_goes_on_with_the_new_lease(bench: Bench, root: str) -> None:
    first = bench.held(root, "f#", message=7)
    assert bench.begin(first) == "begun"
    again = bench.held(root, "f#", message=7, deliveries=2)
    assert bench.begin(again) == "goes_on"
    assert first.delivery is again.delivery
    assert len(bench.units) == 1
    assert bench.begin(bench.held(root, "f#", message=8)) == "busy"  # a sweep announced it again
    assert bench.ledger.begins_alone.call_count == 0
    assert bench.units.locks.take.call_count == 1


def test_a_sequence_that_is_being_left_is_not_begun_beside_it(bench: Bench) -> None:
    first = bench.held("frames", "f#", message=7)
    bench.begin(first)
    bench.units.stop("lost")
    assert bench.begin(bench.held("frames", "f#", message=8)) == "busy"
    again = bench.held("frames", "f#", message=7, deliveries=2)
    assert bench.begin(again) == "goes_on"
    assert bench.units.settle() == [(first, "stopped", "lease")]
    assert first.delivery is again.delivery  # which is answered


def test_after_an_outage_it_asks_for_what_it_has(bench: Bench) -> None:
    bench.units._broker.connections = 1
    assert bench.begin(bench.held("films", "a.mp4")) == "begun"
    assert bench.units.wanted(["frames", "films"]) == ["frames"]
    bench.units._broker.connections = 2
    assert bench.units.wanted(["frames", "films"]) == ["frames", "films"]
    bench.clock.advance(2 * bench.units._lease)
    assert bench.units.wanted(["frames", "films"]) == ["frames"]


def test_nothing_more_is_asked_for_while_one_is_looked_at(bench: Bench) -> None:
    seen: Future[Settled] = Future()
    delivery = bench.held("frames", "f#").delivery
    bench.units.look(delivery, seen)
    assert bench.units.wanted(["frames", "films"]) == []
    assert (bench.units.looked(), bench.units.replies_looked_at()) == ([], [delivery.reply])
    seen.set_result(found := Settled(delivery, b"+ACK"))
    assert (bench.units.looked(), bench.units.replies_looked_at()) == ([found], [])
    bench.units.look(delivery, Future())
    assert bench.units.stop_looking() == [delivery]
    assert bench.units.looked() == []


def test_a_lease_is_kept_although_the_next_question_fails(bench: Bench) -> None:
    one = bench.held("films", "a.mp4").delivery
    bench.units._broker.lease.side_effect = [[one], BrokerFault("missing", "no consumer")]
    assert bench.units.lease(["films"], ["images"], 8, WaitingMessages()) == [one]
    bench.units._broker.lease.side_effect = BrokerFault("missing", "no consumer")
    with pytest.raises(BrokerFault):
        bench.units.lease(["films"], ["images"], 8, WaitingMessages())


def test_a_full_answer_says_nothing_of_what_waits(bench: Bench) -> None:
    deliveries = [bench.held("images", str(number)).delivery for number in range(4)]
    bench.units._broker.lease.side_effect = [[deliveries[0]], deliveries[:3], [], deliveries[:2]]
    waiting = WaitingMessages()
    bench.units.lease(["films"], ["images"], 3, waiting)
    assert waiting.known(bench.clock.monotonic()) == {}
    bench.units.lease(["films"], ["images"], 3, waiting)
    assert set(waiting.known(bench.clock.monotonic()).values()) == {0}


def test_an_unreadable_frame_counts_once_its_root_can_be_read(bench: Bench) -> None:
    held = bench.held("frames", "a/#")
    bench.begin(held, frames=2)
    job = held.sequence.next()
    held.sequence.returned(job.job_id, "storage")
    bench.units.settle()
    assert bench.ledger.unreadable.call_count == 1


def test_what_many_workers_died_with_is_given_up(bench: Bench) -> None:
    assert bench.begin(bench.held("frames", "f#", deliveries=2, alone=ATTEMPTS_OF_UNITS - 2)) == "begun"
    dead = bench.held("frames", "g#", deliveries=2, alone=ATTEMPTS_OF_UNITS - 1)
    assert bench.begin(dead) == "dead"
    assert (dead.sequence, len(bench.units)) == (None, 1)
    bench.units.end(dead)
    assert bench.units.locks.give.call_args.args == (dead.lock,)


def test_what_cannot_be_begun_holds_no_lock_and_counts_for_nothing(bench: Bench) -> None:
    bench.units.sequences["frames"].answer_of_frame = Mock(side_effect=OSError("stale"))
    bench.units._shared.filters.resume = Mock(return_value=SimpleNamespace(first=0, last=3, ended=False, age=0.0))
    with pytest.raises(OSError, match="stale"):
        bench.begin(bench.held("frames", "f#", deliveries=2))
    assert len(bench.units) == 0
    assert bench.units.locks.give.call_count == 1
    assert bench.ledger.begins_alone.call_count == 0


def test_nothing_new_is_taken_while_an_image_is_to_run_alone(bench: Bench) -> None:
    bench.units.let_suspects_go_first()
    assert bench.units.wanted(["frames", "films"]) == []
    bench.clock.advance(SUSPECTS_FIRST)
    assert bench.units.wanted(["frames", "films"]) == ["frames", "films"]


# --- the queue of jobs


def test_images_and_frames_share_a_full_queue(bench: Bench) -> None:
    """One place becomes free at a time, and images wait without end: both go on, and each sequence as the others."""
    for name in ("a/#", "b/#"):
        bench.begin(bench.held("frames", name), frames=2000)
    sender, receiver = queue(16, "jobs", bench.clock)
    counts = {"images": 0, "a/": 0, "b/": 0}
    rng = random.Random(3)
    with sender, receiver:
        for step in range(2000):
            bench.units.send(sender, Mock(), bench.leases, set())
            for _ in range(sender.free()):
                sender.send(None)  # type: ignore[arg-type]
            if step < 20:
                continue
            places = tuple(sorted(rng.sample(range(16), 1)))
            [job] = receiver.receive_chosen(lambda _waiting, _now, places=places: places)
            if job is None:
                counts["images"] += 1
            else:
                counts[job.turn.sequence] += 1
                bench.leases.moved(job.job_id, "decode", 0.0)
                bench.leases.pop_frame(job.job_id).sequence.ended(job.job_id)
    assert min(counts.values()) > 300
    assert abs(counts["a/"] - counts["b/"]) < 100


def test_frames_alone_may_fill_the_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ("frames",))
    bench.begin(bench.held("frames", "a/#"))
    sender, receiver = queue(16, "jobs", bench.clock)
    with sender, receiver:
        bench.units.send(sender, Mock(), bench.leases, set())
        assert sender.free() == 0


def test_a_root_that_is_closed_sends_nothing(bench: Bench) -> None:
    bench.begin(bench.held("frames", "a/#"))
    sender, receiver = queue(16, "jobs", bench.clock)
    with sender, receiver:
        for closed in ({"frames"}, {""}):
            assert not bench.units.send(sender, Mock(), bench.leases, closed)
            assert sender.free() == 16


def test_it_pauses_among_frames_with_results(bench: Bench) -> None:
    bench.units.sequences["frames"].answer_of_frame = Mock(return_value=Mock(kind="done", story={}))
    held = bench.held("frames", "a/#")
    bench.begin(held, frames=LOOKS + 10)
    sender, receiver = queue(16, "jobs", bench.clock)
    with sender, receiver:
        assert bench.units.send(sender, Mock(), bench.leases, set())
        assert bench.units.settle() == []
        assert not bench.units.send(sender, Mock(), bench.leases, set())
    assert bench.units.settle() == [(held, "answered", "")]


def test_a_share_that_fails_stops_a_sequence(bench: Bench) -> None:
    held = bench.held("frames", "a/#")
    bench.begin(held)
    bench.units.sequences["frames"].answer_of_frame = Mock(side_effect=OSError("stale"))
    sender, receiver = queue(16, "jobs", bench.clock)
    with sender, receiver:
        bench.units.send(sender, Mock(), bench.leases, set())
    assert bench.units.settle() == [(held, "stopped", "storage")]


def test_a_lost_lock_stops_a_sequence(bench: Bench) -> None:
    held = bench.held("frames", "a/#")
    bench.begin(held)
    held.lock.is_lost = True
    assert bench.units.settle() == [(held, "stopped", "lost")]
