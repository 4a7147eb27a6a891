"""Workers of a fleet whose images are objects in a bucket: a real broker, a storage that speaks S3, kills and hangs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.config.load import load
from rmbgd.fleet import streams
from rmbgd.fleet.message import HOT, Announcement
from rmbgd.fleet.worker import open_roots
from tests.fleet.test_feeding import rmbgd
from tests.support.fleet import ROOT, FleetUnderTest
from tests.support.images import assert_cutout_of, sample_image, samples
from tests.support.storage import Storage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

CLOUD = "cloud"
PLACES = {role: f"s3://{CLOUD}/{role}" for role in ("input", "output", "failed")}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage(tmp_path / "storage") as storage:
        storage.make(CLOUD)
        yield storage


def fleet_on(storage: Storage, base: Path, workers: int = 2) -> FleetUnderTest:
    base.mkdir()
    bucket = {"name": CLOUD} | PLACES
    return FleetUnderTest(base, workers=workers, settings={"s3": storage.settings, "arrays": {"bucket": [bucket]}})


def set_up(fleet: FleetUnderTest) -> None:
    streams.set_up(fleet.admin, [ROOT, CLOUD], fleet.lease, change=True)


def upload(storage: Storage, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        storage.put(CLOUD, f"input/{name}", data)


def wait_for_answers(fleet: FleetUnderTest, storage: Storage, count: int) -> None:
    def answers() -> int:
        return len(storage.objects(CLOUD, "output/")) + len(storage.objects(CLOUD, "failed/"))

    fleet.wait(lambda: answers() >= count, f"{count} answers in the bucket", timeout=120.0)


def queued(fleet: FleetUnderTest) -> int:
    return sum(state.waiting + state.leased for state in streams.queue_states(fleet.admin, [CLOUD]))


def assert_all_done(storage: Storage, images: dict[str, bytes]) -> None:
    results = storage.objects(CLOUD, "output/")
    assert set(results) == set(images)
    for name, data in images.items():
        assert_cutout_of(data, results[name])


def test_images_of_a_bucket_cost_few_requests_and_nothing_a_second_time(storage: Storage, tmp_path: Path) -> None:
    images = samples(range(50))
    upload(storage, images | {"torn.png": sample_image()[:200]})
    with fleet_on(storage, tmp_path / "fleet") as fleet:
        set_up(fleet)
        fleet.start()
        assert json.loads(rmbgd(fleet, "fleet", "sweep", CLOUD, "--json"))["announced"] == 51
        wait_for_answers(fleet, storage, 51)
        fleet.wait(lambda: queued(fleet) == 0, "an empty queue")
        asked = storage.asked(CLOUD)
        counts = {(method, key): count for (method, key), count in asked.items() if ".rmbgd-probe" not in key}
        for name in images:
            assert counts["GET", f"input/{name}"] == counts["PUT", f"output/{name}"] == 1
            assert counts["HEAD", f"output/{name}"] == 2  # one of the sweep's, one of the worker's
        assert {event["reason"] for event in fleet.events("image.failed")} == {"truncated"}
        assert json.loads(storage.read(CLOUD, "failed/torn.png.error.json"))["reason"] == "truncated"

        assert json.loads(rmbgd(fleet, "fleet", "sweep", CLOUD, "--json"))["announced"] == 0
        root = open_roots(load(fleet.workers[0].config))[CLOUD]
        every = [Announcement(CLOUD, each.key, each.fingerprint, "default") for each in root.inputs()]
        messages = [(each.subject(HOT), each.encode(), "") for each in every if each.key != "torn.png"]
        assert not any(fleet.admin.publish(messages))
        fleet.wait(lambda: queued(fleet) == 0, "an empty queue")
        asked = storage.asked(CLOUD)
        assert all(asked["PUT", f"output/{name}"] == asked["GET", f"input/{name}"] == 1 for name in images)
        assert {event["why"] for event in fleet.events("lease.dropped")} == {"answered"}
        spools = [worker.state / "spool" / CLOUD for worker in fleet.workers]
        assert [path for spool in spools for path in spool.rglob("*") if path.is_file()] == []
    assert_all_done(storage, images)


def test_killed_workers_and_a_storage_that_hangs_lose_nothing(storage: Storage, tmp_path: Path) -> None:
    images = samples(range(120))
    upload(storage, images)
    with fleet_on(storage, tmp_path / "fleet") as fleet:
        set_up(fleet)
        fleet.start()
        rmbgd(fleet, "fleet", "sweep", CLOUD)
        fleet.wait(lambda: fleet.computed() > 10, "some images")
        fleet.workers[0].kill()
        fleet.restart_dead()
        with storage.hanging():
            time.sleep(3.0)  # longer than a request waits
        fleet.workers[1].kill()
        fleet.restart_dead()
        wait_for_answers(fleet, storage, len(images))
        fleet.wait(lambda: queued(fleet) == 0, "an empty queue")
    assert_all_done(storage, images)
    assert storage.objects(CLOUD, "failed/") == {}


def test_a_backfill_of_a_bucket_ends_complete(storage: Storage, tmp_path: Path) -> None:
    images = samples(range(30))
    upload(storage, images)
    with fleet_on(storage, tmp_path / "fleet", workers=1) as fleet:
        set_up(fleet)
        fleet.start()
        told = json.loads(rmbgd(fleet, "backfill", CLOUD, "--json"))
        assert {key: told[key] for key in ("wanted", "done", "failed", "missing")} == {
            "wanted": 30, "done": 30, "failed": 0, "missing": 0,
        }  # fmt: skip
    assert_all_done(storage, images)
