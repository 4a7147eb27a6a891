"""New images pass a backfill: they wait for what is already leased, and for nothing that waits in the queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rmbgd.fleet.message import BULK
from tests.support.fleet import FleetUnderTest
from tests.support.images import samples

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(180)]

PIPELINE = {"queue": 4, "batch_maximum": 4, "decode_threads": 1, "finish_threads": 1}
ROOM = 3 * PIPELINE["queue"] + 2 * PIPELINE["batch_maximum"] + PIPELINE["decode_threads"] + PIPELINE["finish_threads"]
SLOW: dict[str, Any] = {"engine": {"delay": 0.1}}  # s of each batch


def done(fleet: FleetUnderTest) -> list[tuple[float, str]]:
    """When, by the clock that all processes of a machine share, and which, in the order of all workers together."""
    return sorted((event["monotonic"], event["path"]) for event in fleet.events("image.done"))


def test_new_images_pass_a_backfill(tmp_path: Path) -> None:
    bulk, hot = samples(range(400)), samples(range(400, 420))
    with FleetUnderTest(tmp_path, lease=20.0, settings={"pipeline": PIPELINE}, options=SLOW) as fleet:
        fleet.announce([fleet.write(name, data) for name, data in bulk.items()], BULK)
        fleet.start()
        fleet.wait(lambda: all(len(each.named("image.done")) > ROOM for each in fleet.workers), "a full pipeline")
        announced = [fleet.write(name, data) for name, data in hot.items()]
        leased, came = fleet.queued()[1], time.monotonic()
        fleet.announce(announced)
        fleet.wait_until_settled()
        fleet.assert_all_done(bulk | hot)
        order = [path for when, path in done(fleet) if when > came]
        waited = [sum(path in bulk for path in order[: order.index(name)]) for name in hot]
        assert len(done(fleet)) == fleet.computed() == len(bulk | hot)
        assert max(waited) <= leased + ROOM < sum(path in bulk for path in order)
