"""What puts names on the queue: announce, sweep after a wiped broker, backfill that is killed; and what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rmbgd.errors import Exit
from rmbgd.fleet.source import WAIT
from rmbgd.fleet.streams import consumer_configuration
from tests.support.fleet import FleetUnderTest
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]


def rmbgd(fleet: FleetUnderTest, *words: str, status: int = Exit.OK) -> str:
    """Of one command with a worker's configuration: what it prints."""
    done = begin(fleet, *words)
    out, err = done.communicate(timeout=120)
    assert (done.returncode, err) == (status, "") or status != Exit.OK, err
    assert done.returncode == status, out + err
    return out + err


def begin(fleet: FleetUnderTest, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rmbgd", *words, "--config", str(fleet.workers[0].config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=REPOSITORY, **pipes)


def grown_old(*paths: Path) -> None:
    """So that nobody takes them for uploads that go on."""
    an_hour_ago = time.time() - 3600
    for path in paths:
        os.utime(path, (an_hour_ago, an_hour_ago))


def write_all(fleet: FleetUnderTest, count: int) -> set[str]:
    names = {f"{number % 3}/{number}.png": sample_image(number) for number in range(count)}
    for name, data in names.items():
        fleet.write(name, data)
    grown_old(*(fleet.input / name for name in names))
    return set(names)


def test_a_wiped_broker_costs_one_sweep(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        done = write_all(fleet, 12)
        assert "12 images, 12 without a result announced" in rmbgd(fleet, "fleet", "sweep")
        fleet.wait(lambda: len(fleet.records()) == len(done), "results")
        stamps = {path: os.stat(fleet.output / path).st_mtime_ns for path in fleet.results()}
        computed = fleet.computed()
        more = {f"more-{number}.png" for number in range(6)}
        fleet.workers[0].stop()
        for number, name in enumerate(sorted(more)):
            fleet.write(name, sample_image(100 + number))
        grown_old(*(fleet.input / name for name in more))
        fleet.disconnect()
        fleet.broker.kill()
        fleet.broker.wipe()
        fleet.broker.start()
        fleet.workers[0].start()
        fleet.workers[0].wait_for("source.unusable")
        assert "made the stream RMBGD_HOT" in rmbgd(fleet, "fleet", "setup")
        assert "18 images, 6 without a result announced" in rmbgd(fleet, "fleet", "sweep")
        fleet.wait(lambda: len(fleet.records()) == len(done | more), "results")
        fleet.assert_all_done(done | more)
        assert fleet.computed() == computed + len(more)
        assert {path: os.stat(fleet.output / path).st_mtime_ns for path in stamps} == stamps


def test_announce_publishes_what_is_complete_and_waits_for_a_broker(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        announcer = ServiceUnderTest(
            tmp_path / "announcer",
            settings={"source": {"kind": "jetstream", "servers": [fleet.broker.url]}},
            folder={role: str(path) for role, path in fleet.roots.items()} | {"originals": "keep"},
            options={"announces": True},
        )
        with announcer:
            fleet.broker.stop()
            announcer.wait_for("source.lost")
            fleet.write("a/1.png", sample_image(1))
            (fleet.input / "half.png").write_bytes(sample_image(2)[:-40])
            fleet.broker.start()
            told = announcer.wait_for("image.announced", path="a/1.png")
            assert told["recipe"] == "default"
            fleet.start()
            fleet.wait(lambda: "a/1.png" in fleet.records(), "a result")
            os.rename(fleet.input / "a/1.png", fleet.input / "again.png")  # another name is another image
            announcer.wait_for("image.announced", path="again.png")
            fleet.wait(lambda: "again.png" in fleet.records(), "its result")
            assert announcer.named("image.announced", path="half.png") == []
        assert announcer.recorded("service.stop")[-1]["exit_code"] == 0


def test_a_full_queue_makes_the_announcer_wait(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        limit(fleet, 5)
        announcer = ServiceUnderTest(
            tmp_path / "announcer",
            settings={"source": {"kind": "jetstream", "servers": [fleet.broker.url], "retry_wait": 0.3}},
            folder={role: str(path) for role, path in fleet.roots.items()} | {"originals": "keep"},
            options={"announces": True},
        )
        names = {f"{number}.png" for number in range(30)}
        for number, name in enumerate(sorted(names)):
            fleet.write(name, sample_image(number))
        with announcer:
            announcer.wait_for("source.unusable")
            assert fleet.queued()[0] == 5
            fleet.start()
            fleet.wait(lambda: set(fleet.records()) == names, "all results")
            assert len(announcer.recorded("image.announced")) == len(names)


def limit(fleet: FleetUnderTest, messages: int) -> None:
    async def change(client: object) -> None:
        context = client.jetstream()  # type: ignore[attr-defined]
        config = (await context.stream_info("RMBGD_HOT")).config
        config.max_msgs = messages
        await context.update_stream(config)

    fleet.admin.ask(change)


def test_a_killed_backfill_goes_on(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=2, options={"engine": {"delay": 0.02}}) as fleet:
        fleet.start()
        names = write_all(fleet, 60)
        first = begin(fleet, "backfill", "shop", "--window", "8")
        fleet.wait(lambda: len(fleet.records()) >= 10, "some results")
        first.kill()
        first.communicate()
        told = json.loads(rmbgd(fleet, "backfill", "shop", "--window", "16", "--json"))
        assert (told["wanted"], told["done"], told["failed"], told["missing"]) == (60, 60, 0, 0)
        fleet.assert_all_done(names)
        assert fleet.computed() <= 60 + 8
        assert told["announced"] <= 50
        computed = fleet.computed()
        assert "60 images: 60 done, 0 rejected, 0 missing" in rmbgd(fleet, "backfill", "shop")
        assert fleet.computed() == computed


def test_what_backfill_finds_rejected_is_tried_again_when_asked(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        fleet.write("bad.png", b"no image at all")
        grown_old(fleet.input / "bad.png")
        assert "1 images: 0 done, 1 rejected, 0 missing" in rmbgd(fleet, "backfill", "shop")
        assert "1 images: 0 done, 1 rejected, 0 missing" in rmbgd(fleet, "backfill", "shop")
        assert len(fleet.events("image.failed")) == 1
        assert "1 rejected" in rmbgd(fleet, "backfill", "shop", "--retry-failed")
        assert len(fleet.events("image.failed")) == 2


def test_what_is_tried_again_does_not_depend_on_what_is_listed_last(tmp_path: Path) -> None:
    """Their names were announced a moment ago, and would be dropped as repeated."""
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        for name in ("a.png", "b.png"):
            fleet.write(name, b"no image at all")
        fleet.write("z.png", sample_image(1))
        grown_old(*(fleet.input / name for name in ("a.png", "b.png", "z.png")))
        assert "3 images: 1 done, 2 rejected, 0 missing" in rmbgd(fleet, "backfill", "shop")
        assert "3 images: 1 done, 2 rejected, 0 missing" in rmbgd(fleet, "backfill", "shop", "--retry-failed")
        assert len(fleet.events("image.failed")) == 4


def test_a_backfill_says_why_an_image_is_missing(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        write_all(fleet, 3)
        assert "3 images: 3 done" in rmbgd(fleet, "backfill", "shop")
        (fleet.input / "0/0.png").unlink()
        fleet.write("1/1.png", sample_image(7))
        for name in ("0/0.png", "1/1.png"):
            (fleet.output / name).unlink()
        told = json.loads(rmbgd(fleet, "backfill", "shop", "--json", status=Exit.FAILED))
        assert (told["done"], told["missing"]) == (1, 2)
        why = {"0/0.png": "it is gone; --relist", "1/1.png": "another version is there now; --relist"}
        assert told["why"] == why
        assert "2 images: 2 done" in rmbgd(fleet, "backfill", "shop", "--relist")


def test_an_administrator_sees_and_drains(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.start()
        shown = fleet.wait(lambda: json.loads(look(fleet)) if '"pid"' in look(fleet) else None, "a report")
        [worker] = shown["workers"]
        assert {"host", "pid", "version", "device", "rate", "leases", "roots"} <= worker.keys()
        assert {(each["root"], each["queue"]) for each in shown["queues"]} == {("shop", "new"), ("shop", "backfill")}
        host = worker["host"]
        assert "is drained" in rmbgd(fleet, "fleet", "drain", host)
        fleet.workers[0].wait_for("source.drained")
        time.sleep(2 * WAIT)  # a question for messages that was asked before may still bring one
        fleet.drop_all({"a.png": sample_image(1)})
        assert host in rmbgd(fleet, "fleet", "status")
        assert fleet.records() == {}
        rmbgd(fleet, "fleet", "resume", host)
        fleet.workers[0].wait_for("source.undrained")
        fleet.wait(lambda: set(fleet.records()) == {"a.png"}, "its result")
        assert "no worker reports from host 'nowhere'" in rmbgd(fleet, "fleet", "drain", "nowhere", status=Exit.FAILED)
        assert "no root 'shoq'" in rmbgd(fleet, "fleet", "sweep", "shoq", status=Exit.FAILED)


def look(fleet: FleetUnderTest) -> str:
    process = begin(fleet, "fleet", "status", "--json")
    with suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=60)[0]
    return ""


def test_a_queue_made_by_hand_is_not_leased_from_until_it_is_mended(tmp_path: Path) -> None:
    """Leases that end sooner than a worker thinks would be delivered again and again."""
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        shorten(fleet, 1.0)
        fleet.start()
        told = fleet.workers[0].wait_for("source.unusable")
        assert f"consumer workers-shop on RMBGD_HOT: ack_wait is 1.0, and should be {fleet.lease}" in told["detail"]
        fleet.drop_all({"a.png": sample_image(1)})
        said = rmbgd(fleet, "fleet", "setup", status=Exit.FAILED)
        assert "ack_wait is 1.0" in said
        assert "change it with --change" in said
        assert fleet.records() == {}
        assert "queue: consumer workers-shop on RMBGD_HOT: ack_wait is 1.0" in rmbgd(
            fleet, "doctor", status=Exit.FAILED
        )
        assert "ack_wait is 1.0, and should be 2.0, changed" in rmbgd(fleet, "fleet", "setup", "--change")
        fleet.wait(lambda: set(fleet.records()) == {"a.png"}, "its result")
        assert len(fleet.events("source.unusable")) == 1


def shorten(fleet: FleetUnderTest, lease: float) -> None:
    async def change(client: object) -> None:
        await client.jetstream().add_consumer("RMBGD_HOT", consumer_configuration("RMBGD_HOT", "shop", lease))  # type: ignore[attr-defined]

    fleet.admin.ask(change)
