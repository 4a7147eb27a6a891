"""Workers of a fleet, real ones with a real broker: killed, given what is bad; every image has one answer."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import main as cli
from rmbgd.errors import Reason
from rmbgd.fleet.message import BULK, HOT, Announcement
from rmbgd.fleet.source import WAIT
from tests.support.audit import SET_OF_THREE, outputs_of
from tests.support.fleet import DOUBTED, RETRY_WAIT, ROOT, FleetUnderTest
from tests.support.images import assert_cutout_of, sample_image, samples
from tests.support.service import ServiceUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PASSWORDS = """
jetstream { store_dir: "{store}", sync_interval: always, max_memory_store: 64MB, max_file_store: 1GB }
authorization { users = [ { user: right, password: secret } ] }
"""


def names_of(images: Mapping[str, bytes], recipe: Mapping[str, Any] | None = None) -> set[str]:
    return {output for name in images for output in outputs_of(name, recipe)}


# --- what they make


def test_a_fleet_makes_what_one_service_makes(tmp_path: Path) -> None:
    images = samples(range(200))
    with ServiceUnderTest(tmp_path / "alone") as alone:
        alone.serve_all(images)
        expected = {path.name: path.read_bytes() for path in alone.output.glob("*.png")}
    with FleetUnderTest(tmp_path / "fleet") as fleet:
        fleet.start()
        fleet.drop_all(images)
        fleet.wait_until_settled()
        assert fleet.results() == expected
        assert set(expected) == names_of(images)
        assert all(worker.recorded("image.done") for worker in fleet.workers)
        assert set(fleet.done_counts().values()) == {1}
        assert fleet.temporaries() == []


def test_equal_images_have_equal_results(tmp_path: Path) -> None:
    images = dict.fromkeys([f"{number}.png" for number in range(12)], sample_image())
    with FleetUnderTest(tmp_path, recipe=SET_OF_THREE) as fleet:
        fleet.start()
        fleet.drop_all(images)
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert set(fleet.results()) == names_of(images, SET_OF_THREE)
        assert len({(fleet.output / name).read_bytes() for name in images}) == 1


def test_a_refusal_stands_until_a_better_version_comes(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        worker = fleet.workers[0].start()
        fleet.drop_all({"s/a.png": b"no image", "s/b.png": sample_image(1)})
        fleet.wait_until_settled()
        assert fleet.failures() == {"s/a.png": Reason.UNIDENTIFIED}
        assert (fleet.input / "s/a.png").read_bytes() == b"no image"
        fleet.put(fleet.announcement("s/a.png").encode())
        worker.wait_for("lease.dropped", path="s/a.png", why="answered", detail="failed")
        fleet.drop_all({"s/a.png": sample_image(2)})
        fleet.wait_until_settled()
        assert fleet.failures() == {}
        fleet.assert_all_done(["s/a.png", "s/b.png"])


def test_an_image_that_vanishes_in_the_engine_leaves_nothing(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1, lease=30.0) as fleet:
        worker = fleet.workers[0].start()
        worker.hold.touch()
        fleet.drop_all(samples(range(2)))
        worker.wait(worker.given, "an image in the engine")
        (fleet.input / "0.png").unlink()
        worker.hold.unlink()
        fleet.wait_until_settled()
        fleet.assert_all_done(["1.png"])
        assert [event["why"] for event in worker.recorded("lease.dropped")] == ["gone"]


# --- workers that die


def begin_held(fleet: FleetUnderTest, images: Mapping[str, bytes]) -> list[Announcement]:
    """The first worker has leases, and images in its engine that it does not answer; the second has not begun."""
    first, second = fleet.workers
    first.hold.touch()
    first.start()
    announced = fleet.drop_all(dict(images))
    first.wait(first.given, "an image in the engine")
    second.start()
    return announced


def test_what_a_killed_worker_had_is_done_by_others(tmp_path: Path) -> None:
    images, recipe = samples(range(40)), SET_OF_THREE | {"review_below": DOUBTED}
    with FleetUnderTest(tmp_path, recipe=recipe, review=True) as fleet:
        announced = begin_held(fleet, images)
        first = fleet.workers[0]
        leases = fleet.queued()[1]
        first.kill()
        first.hold.unlink()
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert names_of(images, SET_OF_THREE) <= set(fleet.results())
        for name, data in images.items():
            if fleet.records()[name]["root"] == "output":
                assert_cutout_of(data, fleet.output / name)
        assert {story["root"] for story in fleet.records().values()} == {"output", "review"}
        assert 0 < fleet.alone() <= leases
        assert set(fleet.done_counts()) == {(each.key, each.fingerprint) for each in announced}
        assert fleet.unexplained() == []


def test_an_image_that_kills_its_worker_stops_nothing_else(tmp_path: Path) -> None:
    images = samples(range(48))
    deadly = "17.png"
    with FleetUnderTest(tmp_path, options={"deadly": deadly}) as fleet:
        fleet.start()
        fleet.drop_all(images)
        crashes = 0

        def settled() -> bool:
            nonlocal crashes
            crashes += fleet.restart_dead()
            return fleet.stored(HOT, BULK) == 0

        fleet.wait(settled, "empty queues")
        fleet.wait_until_ready()
        assert 1 <= crashes <= 3
        assert fleet.failures() == {deadly: Reason.CRASH_LOOP}
        fleet.assert_all_done(images.keys() - {deadly})
        assert fleet.dead_letters() == 1


def test_workers_that_are_killed_all_the_time_lose_nothing(tmp_path: Path) -> None:
    images, chosen = samples(range(300), size=(16, 12)), random.Random(11)
    with FleetUnderTest(tmp_path, workers=3, options={"engine": {"delay": 0.1}}) as fleet:
        fleet.start()
        fleet.drop_all(images)
        for _ in range(8):
            victim = chosen.choice(fleet.workers)
            before = len(fleet.records())
            fleet.wait(lambda before=before: len(fleet.records()) > before + 3 or fleet.stored(HOT, BULK) == 0, "work")
            victim.kill()
            fleet.restart_dead()
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert set(fleet.results()) == names_of(images)
        for name, data in images.items():
            assert_cutout_of(data, fleet.output / name)
        assert fleet.unexplained() == []
        fleet.wait_until_ready()


def test_a_worker_that_stops_gives_back_what_it_had_not_begun(tmp_path: Path) -> None:
    images = samples(range(60))
    with FleetUnderTest(tmp_path, lease=60.0, options={"engine": {"delay": 0.05}}) as fleet:
        begin_held(fleet, images)
        first = fleet.workers[0]
        first.signal(signal.SIGTERM)
        first.hold.unlink()
        assert first.reap() == 0
        fleet.wait_until_settled(30.0)  # far less than a lease
        fleet.assert_all_done(images)
        assert set(fleet.done_counts().values()) == {1}
        assert fleet.alone() == 0


def test_a_suspect_that_waits_too_long_for_its_turn_stays_one(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path) as fleet:
        first, second = fleet.workers
        first.hold.touch()
        first.start()
        fleet.drop_all(samples(range(2)))
        fleet.wait(lambda: fleet.queued()[1] == 2, "two leases")
        first.wait(first.given, "an image in the engine")
        first.kill()
        first.start()  # both are suspects, and it hangs in the first
        lost = first.wait_for("lease.lost")["path"]
        second.start()
        fleet.wait_until_settled()
        first.hold.unlink()
        first.wait_for("image.done", path=lost)
        time.sleep(1.0)  # it would run the other one now
        other = ({"0.png", "1.png"} - {lost}).pop()
        assert [event["path"] for event in fleet.events("image.done")].count(other) == 1
        assert fleet.alone() >= 3  # both, and the first again
        fleet.assert_all_done(samples(range(2)))


# --- versions


@pytest.mark.parametrize("slower", ["old", "new"])
def test_the_newer_version_of_an_image_stands_whichever_worker_is_slower(tmp_path: Path, slower: str) -> None:
    old, new = sample_image(1), sample_image(2)
    with FleetUnderTest(tmp_path, lease=30.0, recipe=SET_OF_THREE) as fleet:
        fleet.workers[1].hold.touch()
        begin_held(fleet, {"a.png": old})
        assert cli.main(["pause", "--config", str(fleet.workers[0].config)]) == 0
        time.sleep(2 * WAIT)  # a question for messages that was asked before may still bring one
        fleet.drop_all({"a.png": new})
        fleet.workers[1].wait(fleet.workers[1].given, "the new one in the engine")
        first, second = fleet.workers if slower == "new" else fleet.workers[::-1]
        first.hold.unlink()
        fleet.wait(lambda: fleet.queued()[1] < 2, "the faster one's answer")
        second.hold.unlink()
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])
        assert set(fleet.results()) == names_of({"a.png": new}, SET_OF_THREE)
        assert_cutout_of(new, fleet.output / "a.png")
        assert list(fleet.done_counts().values()) == [1]
        assert [event["why"] for event in fleet.events("lease.dropped")] == ["superseded"]


def test_a_version_that_was_announced_twice_is_computed_once(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        announced = fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.announce(announced)  # dropped by the broker
        fleet.announce(announced, BULK)  # another queue, which does not know it
        fleet.put(announced[0].encode())
        fleet.workers[0].wait_for("lease.dropped", count=2, why="answered")
        fleet.wait_until_settled()
        assert fleet.computed() == 1


# --- the broker


def test_a_broker_that_dies_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    images = samples(range(60))
    with FleetUnderTest(tmp_path, lease=5.0, options={"engine": {"delay": 0.05}}) as fleet:
        fleet.start()
        fleet.drop_all(images)
        fleet.wait(lambda: len(fleet.records()) > 5, "the first results")
        fleet.disconnect()
        fleet.broker.kill()
        for worker in fleet.workers:
            worker.wait_for("source.lost", kind="unreachable")
        done = len(fleet.records())
        fleet.broker.start()
        fleet.wait_until_settled()
        assert done < len(images)
        fleet.assert_all_done(images)
        assert fleet.computed() == len(images)  # nothing twice, and what was finished meanwhile was acknowledged late
        assert all(len(worker.recorded("source.connected")) == 2 for worker in fleet.workers)
        assert fleet.events("source.unusable") == []


def test_workers_wait_for_a_broker_that_is_not_there_at_their_start(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        worker = fleet.workers[0]
        fleet.disconnect()
        fleet.broker.stop()
        worker.start()  # ready
        worker.wait_for("source.lost", kind="unreachable")
        fleet.broker.start()
        worker.wait_for("source.connected")
        fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])
        causes = [event["detail"] for event in worker.recorded("source.lost")]
        assert len(causes) == len(set(causes))  # one that begins may also answer half


def test_a_wrong_password_is_said_once_and_the_right_one_works(tmp_path: Path) -> None:
    proof, right = tmp_path / "worker.creds", tmp_path / "right.creds"
    for path, word in ((proof, "mistaken"), (right, "secret")):
        path.write_text(f"right\n{word}\n")
        path.chmod(0o600)
    settings = {"source": {"credentials": str(proof)}}
    with FleetUnderTest(tmp_path, workers=1, broker=PASSWORDS, settings=settings, credentials=right) as fleet:
        worker = fleet.workers[0]
        worker.start()
        lost = worker.wait_for("source.lost", kind="denied")
        assert str(proof) in lost["detail"]
        assert "mistaken" not in lost["detail"]
        time.sleep(1.0)  # several more tries
        assert len(worker.recorded("source.lost")) == 1
        assert worker.recorded("source.unusable") == []
        assert worker.stop() == 0
        proof.write_bytes(right.read_bytes())
        worker.start()
        fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])


def test_a_broker_that_was_not_set_up_is_told_of_once(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.disconnect()
        fleet.broker.stop()
        fleet.broker.wipe()
        fleet.broker.start()
        worker = fleet.workers[0].start()
        said = worker.wait_for("source.unusable")
        assert "rmbgd fleet setup" in said["detail"]
        time.sleep(1.5)  # several more questions
        fleet.set_up()
        fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])
        told = [event["detail"] for event in worker.recorded("source.unusable")]
        assert len(told) == len(set(told))  # another one where it looks while that is being made


# --- what is bad


def test_a_root_that_is_away_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    """Files of a root that is not there are not gone."""
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        before = [fleet.write(name, data) for name, data in samples(range(3)).items()]
        after = [fleet.write(name, data) for name, data in samples(range(3, 6)).items()]
        away = fleet.input.with_name("away")
        fleet.input.rename(away)
        fleet.announce(before)
        worker = fleet.workers[0].start()
        worker.wait_for("folder.waiting", cause="missing", folder=ROOT)
        assert fleet.queued() == (len(before), 0, 0)
        away.rename(fleet.input)
        worker.wait_for("folder.watching", folder=ROOT)
        fleet.wait_until_settled()
        fleet.input.rename(away)
        fleet.announce(after)
        worker.wait_for("folder.waiting", count=2)
        away.rename(fleet.input)
        fleet.wait_until_settled()
        fleet.assert_all_done(samples(range(6)))
        assert worker.recorded("lease.dropped") == []
        assert fleet.alone() == 0


def test_a_worker_with_another_recipe_leaves_images_to_those_with_theirs(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path) as fleet:
        right, wrong = fleet.workers
        text = wrong.config.read_text()
        wrong.config.write_text(text.replace("[[folder]]", '[recipe.other]\n[[folder]]\nrecipe = "other"'))
        wrong.start()
        fleet.drop_all(images := samples(range(5)))
        said = wrong.wait_for("source.unusable", folder=ROOT)
        assert "'default'" in said["detail"]
        assert "'other'" in said["detail"]
        right.start()
        fleet.wait_until_settled()
        fleet.assert_all_done(images)
        assert len(wrong.recorded("source.unusable")) == 1
        assert len(right.recorded("image.done")) == len(images)
        assert fleet.alone() == 0


def test_names_with_a_recipe_of_yesterday_do_not_keep_others_waiting(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1, lease=20.0) as fleet:
        images = samples(range(8))
        announced = [fleet.write(name, data) for name, data in images.items()]
        worker = fleet.workers[0].start()
        pairs = [(replace(each, recipe="yesterday"), each) for each in announced]
        fleet.announce(itertools.chain.from_iterable(pairs))
        fleet.wait(lambda: set(fleet.records()) == set(images), "results", timeout=15 * RETRY_WAIT)
        assert fleet.queued()[0] + fleet.queued()[1] >= len(images)  # they wait for a machine that knows it
        assert worker.recorded("lease.dropped") == []


def test_messages_that_are_none_of_ours_are_dropped_and_told_of(tmp_path: Path) -> None:
    keys = ["../x", "/etc/passwd", "a/../../x", "", "a\0b", "a//b"]
    bad = [b"garbage", b"[1]", b"{}", b"x" * 50_000]
    bad += [Announcement(ROOT, key, "1-1", "default").encode() for key in keys]
    bad += [Announcement("other", "a.png", "1-1", "default").encode()]
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        worker = fleet.workers[0].start()
        fleet.put(*bad)
        fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])
        dropped = worker.recorded("lease.dropped")
        assert [event["why"] for event in dropped] == ["bad_message"] * len(bad)
        assert len({event["lease"] for event in dropped}) == len(bad)
        assert all(event["detail"] for event in dropped)


def test_links_that_lead_out_of_a_root_are_refused(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "a.png").write_bytes(sample_image())
        (fleet.input / "folder").symlink_to(outside)
        (fleet.input / "link.png").symlink_to(outside / "a.png")
        worker = fleet.workers[0].start()
        fleet.announce(fleet.announcement(name) for name in ("folder/a.png", "link.png"))
        fleet.drop_all({"a.png": sample_image()})
        fleet.wait_until_settled()
        fleet.assert_all_done(["a.png"])
        assert fleet.failures() == {"folder/a.png": Reason.NOT_REGULAR, "link.png": Reason.NOT_REGULAR}
        assert len(worker.recorded("image.failed")) == 2
        assert (outside / "a.png").exists()


def test_what_vanished_or_changed_before_it_was_leased_is_dropped(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        gone, changed = (fleet.write(name, sample_image()) for name in ("gone.png", "changed.png"))
        (fleet.input / "gone.png").unlink()
        fleet.write("changed.png", sample_image(1))
        worker = fleet.workers[0].start()
        fleet.announce([gone, changed])
        fleet.wait_until_settled()
        told = {event["path"]: event["why"] for event in worker.recorded("lease.dropped")}
        assert told == {"gone.png": "gone", "changed.png": "superseded"}
        assert fleet.alone() == 0


def test_a_worker_tells_how_many_messages_wait(tmp_path: Path) -> None:
    """In the status file and the metrics, by root and queue, for those who start more workers."""
    metrics = tmp_path / "rmbgd.prom"
    settings = {"health": {"metrics_file": str(metrics)}}
    with FleetUnderTest(tmp_path, workers=1, settings=settings, options={"engine": {"delay": 0.3}}) as fleet:
        names = [f"{number}.png" for number in range(60)]
        fleet.drop_all({name: sample_image(number) for number, name in enumerate(names)})
        fleet.start()

        def waits(queue: str) -> float | None:
            text = metrics.read_text() if metrics.exists() else ""
            found = re.search(rf'rmbgd_waiting_messages{{folder="{ROOT}",queue="{queue}"}} ([0-9.]+)', text)
            return float(found[1]) if found else None

        assert 0 < fleet.wait(lambda: waits("hot"), "messages that wait") < 60
        fleet.wait(lambda: len(fleet.records()) == len(names), "results")
        fleet.wait(lambda: (waits("hot"), waits("bulk")) == (0.0, 0.0), "an empty queue")
        status = json.loads((fleet.workers[0].runtime / "status.json").read_text())
        assert status["folders"][ROOT]["waiting"] == {"hot": 0, "bulk": 0}
