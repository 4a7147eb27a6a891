"""Films and sequences in a fleet: one lease of one worker; killed, announced twice, gone on with by another."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import pytest

from rmbgd.config.load import Folder, Recipe
from rmbgd.errors import Reason
from rmbgd.fleet.lease import ATTEMPTS_OF_UNITS
from rmbgd.fleet.message import BULK, HOT, Announcement
from rmbgd.fleet.sequence_root import SequenceRoot, sequence_key
from rmbgd.fleet.share import SharedRoot
from tests.fleet.test_feeding import grown_old, rmbgd
from tests.integration.test_frames import frame
from tests.support.films import film
from tests.support.fleet import LEASE, ROOT, FleetUnderTest
from tests.support.mounts import disk, mount, mounted, unmount
from tests.support.service import ServiceUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

FRAMES = {"kind": "frames", "temporal": "steady", "sequence_quiet": 1.0}
FILMS = {"kind": "films", "temporal": "steady"}
SMALL = {"pipeline": {"arena_bytes": 64 << 20, "free_bytes_minimum": 0}}


def frames(count: int, *, take: int = 0) -> dict[str, bytes]:
    return {f"take{take}/f{number:04}.png": frame(number, take=take) for number in range(count)}


def announcement(fleet: FleetUnderTest, sequence: str) -> Announcement:
    """Of the sequence as it stands there."""
    root = SequenceRoot(SharedRoot(Folder(name=ROOT, **fleet.folder), Recipe()))
    found = root.fingerprint(key := sequence_key(sequence))
    assert found is not None
    return Announcement(ROOT, key, found, "default")


def drop_sequence(fleet: FleetUnderTest, images: dict[str, bytes], sequence: str) -> Announcement:
    for name, data in images.items():
        fleet.write(name, data)
    announced = announcement(fleet, sequence)
    fleet.announce([announced])
    return announced


def workers_of(fleet: FleetUnderTest) -> dict[str, set[int]]:
    """Sequence -> workers that computed frames of it."""
    found = defaultdict(set)
    for number, worker in enumerate(fleet.workers):
        for event in worker.recorded("image.done"):
            found[event["sequence"]].add(number)
    return dict(found)


def by_one_service(tmp_path: Path, images: dict[str, bytes]) -> dict[str, bytes]:
    """What a service with a folder of its own makes of them."""
    with ServiceUnderTest(tmp_path / "alone", folder=FRAMES | {"frame_wait": 30.0}) as alone:
        alone.drop_all(images)
        alone.wait_for_endings(len(images))
        return {str(path.relative_to(alone.output)): path.read_bytes() for path in alone.output.rglob("*.png")}


def test_sequences_are_leased_whole_and_come_out_as_by_one_service(tmp_path: Path) -> None:
    takes = [frames(40, take=take) for take in range(6)]
    images = {name: data for take in takes for name, data in take.items()}
    with FleetUnderTest(tmp_path / "fleet", folder=FRAMES) as fleet:
        fleet.start()
        for number, take in enumerate(takes):
            drop_sequence(fleet, take, f"take{number}/f")
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert fleet.results() == by_one_service(tmp_path, images)
        assert all(len(workers) == 1 for workers in workers_of(fleet).values())
        assert all(worker.recorded("image.done") for worker in fleet.workers)
        for worker in fleet.workers:
            for sequence in workers_of(fleet):
                numbers = [each["frame"] for each in worker.recorded("image.done") if each["sequence"] == sequence]
                assert numbers in ([], list(range(40)))
        over = fleet.events("sequence.done")
        assert sorted((each["sequence"], each["frames"], each["why"]) for each in over) == [
            (f"take{number}/f", 40, "complete") for number in range(6)
        ]
        assert all("flicker" in each for each in over)
        assert set(fleet.done_counts().values()) == {1}
        assert fleet.temporaries() == []


def test_another_worker_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    images = frames(120)
    with FleetUnderTest(tmp_path / "fleet", folder=FRAMES, options={"engine": {"delay": 0.02}}) as fleet:
        first, second = fleet.workers
        first.start()
        drop_sequence(fleet, images, "take0/f")
        fleet.wait(lambda: len(fleet.records()) >= 20, "the first frames")
        first.kill()
        before = {name for name in images if (fleet.output / name).exists()}  # a record may stand before its file
        second.start()
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert fleet.results() == by_one_service(tmp_path, images)
        again = {each["path"] for each in second.recorded("image.done") if not each.get("recovered")}
        assert not again & before
        assert fleet.unexplained() == []
        [started] = second.recorded("sequence.started")
        assert started["state"] == "resumed"
        assert second.recorded("sequence.gap") == []


def test_a_sequence_that_is_announced_twice_is_one_workers(tmp_path: Path) -> None:
    images = frames(120)
    with FleetUnderTest(tmp_path, folder=FRAMES, options={"engine": {"delay": 0.02}}) as fleet:
        fleet.start()
        announced = drop_sequence(fleet, images, "take0/f")
        fleet.wait(lambda: len(fleet.records()) >= 5, "the first frames")
        fleet.put(announced.encode(), announced.encode())
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert len(workers_of(fleet)["take0/f"]) == 1
        assert set(fleet.done_counts().values()) == {1}
        dropped = fleet.events("lease.dropped")
        assert [each["why"] for each in dropped] == ["answered", "answered"]


def test_a_worker_keeps_its_sequence_while_the_broker_is_away(tmp_path: Path) -> None:
    """For longer than a lease: the message comes again, to the worker that has it."""
    images, later = frames(150), frames(20, take=1)
    with FleetUnderTest(tmp_path / "fleet", workers=1, folder=FRAMES, options={"engine": {"delay": 0.03}}) as fleet:
        [worker] = fleet.start().workers
        drop_sequence(fleet, images, "take0/f")
        fleet.wait(lambda: len(fleet.records()) >= 10, "the first frames")
        fleet.disconnect()
        fleet.broker.kill()
        worker.wait_for("source.lost")
        time.sleep(1.5 * LEASE)
        fleet.broker.start()
        worker.wait_for("source.connected", since=len(worker.events))
        drop_sequence(fleet, later, "take1/f")
        fleet.wait_until_settled()
        fleet.assert_all_done(images | later)
        assert fleet.results() == by_one_service(tmp_path, images | later)
        assert set(fleet.done_counts().values()) == {1}
        assert sorted(each["frames"] for each in worker.recorded("sequence.done")) == [20, 150]
        assert fleet.alone() == 0


def test_a_share_that_goes_away_ends_no_sequence(tmp_path: Path) -> None:
    images = frames(250)
    with (
        disk(tmp_path / "disk") as device,
        FleetUnderTest(tmp_path, workers=1, folder=FRAMES, options={"engine": {"delay": 0.02}}) as fleet,
        mounted(fleet.input, "ext4", "rw", device),
    ):
        fleet.start()
        for name, data in images.items():
            (fleet.input / name).parent.mkdir(exist_ok=True)
            (fleet.input / name).write_bytes(data)
        fleet.announce([announcement(fleet, "take0/f")])
        fleet.wait(lambda: len(fleet.records()) >= 10, "the first frames")
        unmount(fleet.input)
        fleet.workers[0].wait_for("source.unusable", folder=ROOT)  # it came again, and there is nothing
        assert fleet.stored(HOT, BULK) == 1
        mount(fleet.input, "ext4", "rw", device)
        fleet.wait_until_settled()
        fleet.assert_all_done(images)


def test_an_output_that_goes_away_is_not_made_anew(tmp_path: Path) -> None:
    images = frames(250)
    with FleetUnderTest(tmp_path, workers=1, folder=FRAMES, options={"engine": {"delay": 0.02}}) as fleet:
        fleet.start()
        drop_sequence(fleet, images, "take0/f")
        fleet.wait(lambda: len(fleet.records()) >= 10, "the first frames")
        fleet.output.rename(tmp_path / "away")
        fleet.workers[0].wait_for("storage.paused")
        assert not fleet.output.exists()
        (tmp_path / "away").rename(fleet.output)
        fleet.wait_until_settled()
        fleet.assert_all_done(images)


def test_a_worker_that_stops_leaves_its_sequence_to_others(tmp_path: Path) -> None:
    images = frames(100)
    with FleetUnderTest(tmp_path / "fleet", folder=FRAMES, options={"engine": {"delay": 0.02}}) as fleet:
        first, second = fleet.workers
        first.start()
        drop_sequence(fleet, images, "take0/f")
        fleet.wait(lambda: len(fleet.records()) >= 20, "the first frames")
        first.stop()
        assert first.recorded("sequence.done") == []
        assert len(fleet.records()) < 100
        second.start()
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert fleet.results() == by_one_service(tmp_path, images)
        assert set(fleet.done_counts().values()) == {1}
        assert fleet.alone() == 0


def test_what_comes_later_goes_on_and_bad_frames_stop_nothing(tmp_path: Path) -> None:
    images = frames(30)
    bad = {"take0/f0030.png": b"no image"}
    with FleetUnderTest(tmp_path, workers=1, folder=FRAMES) as fleet:
        [worker] = fleet.start().workers
        drop_sequence(fleet, images | bad | {"take0/f0031.png": frame(31), "take0/f00031.png": frame(32)}, "take0/f")
        fleet.wait_until_settled()
        assert fleet.failures() == {"take0/f0030.png": "unidentified"}
        assert set(fleet.records()) == set(images) | {"take0/f0031.png", "take0/f00031.png"}
        [doubled] = [each for each in worker.recorded("image.done") if "doubled_number" in each.get("notes", [])]
        assert doubled["path"] == "take0/f0031.png"  # the second by its name
        assert worker.recorded("sequence.gap") == []
        later = {f"take0/f{number:04}.png": frame(number) for number in (33, 34)}
        drop_sequence(fleet, later, "take0/f")
        fleet.wait_until_settled()
        [gap] = worker.recorded("sequence.gap")
        assert (gap["first"], gap["last"], gap["why"]) == (32, 32, "absent")
        assert [each["state"] for each in worker.recorded("sequence.started")] == ["new", "resumed"]
        drop_sequence(fleet, {"take0/f0032.png": frame(32)}, "take0/f")
        fleet.wait_until_settled()
        [late] = [each for each in worker.recorded("image.done") if "late_frame" in each.get("notes", [])]
        assert late["frame"] == 32
        again = frames(5)
        for name in (*images, "take0/f0030.png", *later, "take0/f0031.png", "take0/f00031.png", "take0/f0032.png"):
            (fleet.input / name).unlink()
        drop_sequence(fleet, again, "take0/f")
        fleet.wait_until_settled()
        assert worker.recorded("sequence.started")[-1]["state"] == "reset"
        assert [each["frame"] for each in worker.recorded("image.done")[-5:]] == [0, 1, 2, 3, 4]


def test_a_frame_that_kills_its_workers_costs_its_sequence_alone(tmp_path: Path) -> None:
    deadly = "take0/f0005.png"
    with FleetUnderTest(tmp_path, folder=FRAMES, options={"deadly": deadly}) as fleet:
        fleet.start()
        drop_sequence(fleet, frames(10), "take0/f")
        others = frames(30, take=1)
        drop_sequence(fleet, others, "take1/f")
        crashes = 0

        def settled() -> bool:
            nonlocal crashes
            crashes += fleet.restart_dead()
            return fleet.stored(HOT, BULK) == 0

        fleet.wait(settled, "empty queues", timeout=150.0)
        fleet.wait_until_ready()
        assert crashes == ATTEMPTS_OF_UNITS
        assert fleet.failures() == {"take0/f#": Reason.CRASH_LOOP}
        assert set(others) <= set(fleet.records())
        assert deadly not in fleet.records()
        assert fleet.partial() == []
        assert fleet.dead_letters() == 1
        assert fleet.unexplained() == []


def test_a_sweep_and_a_backfill_announce_what_has_no_answer(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1, folder=FRAMES) as fleet:
        images = frames(8) | frames(8, take=1)
        for name, data in images.items():
            fleet.write(name, data)
        grown_old(*(fleet.input / name for name in images))
        fleet.start()
        assert "2 images, 2 without a result announced" in rmbgd(fleet, "fleet", "sweep")
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert "2 images, 0 without a result announced" in rmbgd(fleet, "fleet", "sweep")
        more = frames(4, take=2)
        for name, data in more.items():
            fleet.write(name, data)
        told = json.loads(rmbgd(fleet, "backfill", ROOT, "--json"))
        assert (told["wanted"], told["done"], told["missing"]) == (3, 3, 0)
        fleet.assert_all_done(images | more)
        assert set(fleet.done_counts().values()) == {1}


def test_the_announcer_names_a_sequence_once_it_is_over(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1, folder=FRAMES) as fleet:
        announcer = ServiceUnderTest(
            tmp_path / "announcer",
            settings={"source": {"kind": "jetstream", "servers": [fleet.broker.url]}},
            folder=fleet.folder | {"sequence_quiet": 60.0},
            options={"announces": True},
        )
        fleet.start()
        announcer.start()
        for name, data in frames(12).items():
            fleet.write(name, data)
        fleet.write("cover.png", frame(99))
        announcer.wait_for("image.announced", path="cover.png")
        fleet.wait(lambda: "cover.png" in fleet.records(), "a still")
        announcer.wait((announcer.state / "open-sequences.json").exists, "the sequence to be known")
        announcer.kill()  # in the middle of it
        with announcer.start():
            for number in range(12, 20):
                fleet.write(f"take0/f{number:04}.png", frame(number))
            assert announcer.recorded("sequence.announced") == []
            fleet.write("take0/sequence.end", b"")
            told = announcer.wait_for("sequence.announced")
            assert (told["sequence"], told["fingerprint"].split("-")[1]) == ("take0/f", "20")
            fleet.wait_until_settled()
            assert set(fleet.records()) == {"cover.png", *(f"take0/f{number:04}.png" for number in range(20))}
            fleet.wait(lambda: not (fleet.input / "take0/sequence.end").exists(), "the marker to be used up")
            assert announcer.recorded("sequence.done") == []
        [still] = [each for each in fleet.events("image.done") if each["path"] == "cover.png"]
        assert still["notes"] == ["no_number"]


def test_films_are_leased_one_at_a_time(tmp_path: Path) -> None:
    films = {f"{name}.mp4": film(frames=30) for name in "abcd"} | {"bad.mp4": b"no film"}
    with FleetUnderTest(tmp_path, folder=FILMS, settings=SMALL, options={"engine": {"delay": 0.02}}) as fleet:
        fleet.start()
        fleet.drop_all(films)
        fleet.wait_until_settled()
        assert set(fleet.records()) == set(films) - {"bad.mp4"}
        assert fleet.failures() == {"bad.mp4": "unidentified"}
        assert fleet.partial() == []
        assert all(worker.recorded("image.done") for worker in fleet.workers)
        assert set(fleet.done_counts().values()) == {1}


def test_a_film_is_begun_again_by_another_worker(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, folder=FILMS, settings=SMALL) as fleet:
        first, second = fleet.workers
        first.hold.touch()
        first.start()
        [announced] = fleet.drop_all({"a.mp4": film(frames=60)})
        first.wait(first.given, "a frame in the engine")
        second.start()
        fleet.put(announced.encode())
        first.kill()
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.mp4"])
        [done] = [each for each in second.recorded("image.done") if not each.get("recovered")]
        assert done["frames"] == 60
        assert fleet.unexplained() == []
        assert {"a.mov", "a.mov.json"} <= set(os.listdir(fleet.output))
