"""Hosts of a fleet, each a network namespace: one dies whole, one loses its link, one has a clock that is ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import main as cli
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import HOT, consumer
from rmbgd.fleet.source import WAIT
from tests.support.audit import SET_OF_THREE, outputs_of
from tests.support.broker import JETSTREAM
from tests.support.fleet import ROOT, FleetUnderTest
from tests.support.images import assert_cutout_of, sample_image, samples
from tests.support.network import Network
from tests.support.service import ServiceUnderTest

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(180)]

SLOW = {"engine": {"delay": 0.1}}  # s of each batch, so that everybody gets some
QUICK_PINGS = 'ping_interval: "1s"\nping_max: 1\n'  # a broker that gives a silent client up within seconds
AHEAD = 600.0  # s
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@contextmanager
def fleet_on(base: Path, hosts: Sequence[str], **options: Any) -> Iterator[tuple[Network, FleetUnderTest]]:
    """The broker and we ourselves on a host "broker", each worker on one of `hosts`; files are everybody's."""
    with ExitStack() as stack:
        network = stack.enter_context(Network("broker", *sorted(set(hosts))))
        with network.inside("broker"):
            address = network.addresses["broker"]
            fleet = FleetUnderTest(base, workers=len(hosts), address=address, options=SLOW, **options)
            stack.enter_context(fleet)
        for worker, host in zip(fleet.workers, hosts, strict=True):
            worker.prefix = network.prefix(host)
        yield network, fleet


def assert_all_whole(fleet: FleetUnderTest, images: dict[str, bytes], recipe: dict[str, Any]) -> None:
    """Each image has all files of its newest version, nothing else is visible; no lease gave two results."""
    fleet.assert_all_done(images)
    assert set(fleet.results()) == {output for name in images for output in outputs_of(name, recipe)}
    for name, data in images.items():
        assert_cutout_of(data, fleet.output / name)
    assert all(name.startswith(".") for name in fleet.temporaries())
    assert fleet.failures() == {}
    assert fleet.unexplained() == []
    leases = [event["lease"] for event in fleet.events("image.done")]
    assert len(leases) == len(set(leases))


def deliveries(broker: Broker) -> int:
    """Leases that the broker gave of new images, so far."""

    async def ask(client: Any) -> int:
        return int((await client.jetstream().consumer_info(HOT, consumer(ROOT))).delivered.consumer_seq)

    return broker.ask(ask)


def is_connected(worker: ServiceUnderTest) -> bool:
    return [each["event"] for each in worker.events if each["event"].startswith("source.")][-1] == "source.connected"


def hold_in_engine(worker: ServiceUnderTest) -> None:
    """Until it has leases of images that do not come out of its engine."""
    worker.hold.touch()
    worker.wait(lambda: worker.given() > worker.computed(), "an image in the engine")


def test_a_host_that_dies_whole_is_not_missed(tmp_path: Path) -> None:
    images = samples(range(200))
    with fleet_on(tmp_path, ["a", "b", "b"], recipe=SET_OF_THREE) as (network, fleet):
        fleet.start()
        announced = fleet.drop_all(images)
        fleet.wait(lambda: all(worker.named("image.done") for worker in fleet.workers), "results of each")
        lost = fleet.workers[1:]
        for worker in lost:
            hold_in_engine(worker)
        assert network.kill_all("b") == len(lost)
        leases = fleet.queued()[1]
        assert [worker.reap() for worker in lost] == [-9, -9]
        done = len(fleet.records())
        fleet.wait_until_settled()
        assert done < len(images)
        assert_all_whole(fleet, images, SET_OF_THREE)
        assert set(fleet.done_counts()) == {(each.key, each.fingerprint) for each in announced}
        assert 0 < fleet.alone() <= leases
        assert network.pids("b") == []


@pytest.mark.parametrize("outlives", [True, False], ids=["connection-outlives-it", "connection-is-lost"])
def test_a_host_whose_link_was_down_takes_part_again(tmp_path: Path, outlives: bool) -> None:
    """Meanwhile others get what it had leased, and newer versions of some; its late results are harmless."""
    images, later = samples(range(200)), samples(range(200, 210))
    pings = "" if outlives else QUICK_PINGS
    with fleet_on(tmp_path, ["a", "b"], recipe=SET_OF_THREE, broker=JETSTREAM + pings) as (network, fleet):
        here, there = fleet.start().workers
        fleet.drop_all(images)
        fleet.wait(lambda: all(worker.named("image.done") for worker in fleet.workers), "results of each")
        hold_in_engine(there)
        network.link("b", up=False)
        newer = {name: sample_image(int(name[:-4]) + 1000) for name in sorted(images.keys() - fleet.records().keys())}
        assert newer
        fleet.drop_all(newer)
        there.hold.unlink()
        time.sleep(2 * fleet.lease)
        network.link("b", up=True)
        fleet.wait_until_settled()
        assert_all_whole(fleet, images | newer, SET_OF_THREE)
        if not outlives:
            there.wait_for("source.lost", kind="unreachable")
        there.wait(lambda: is_connected(there), "a connection")
        assert cli.main(["pause", "--config", str(here.config)]) == 0
        time.sleep(2 * WAIT)  # a question for messages that was asked before may still bring one
        fleet.drop_all(later)
        fleet.wait_until_settled()
        assert_all_whole(fleet, images | newer | later, SET_OF_THREE)
        assert {each["path"] for each in there.recorded("image.done")} >= later.keys()
        assert fleet.computed() <= deliveries(fleet.admin)
        assert [len(here.recorded(f"source.{name}")) for name in ("connected", "lost", "unusable")] == [1, 0, 0]
        lost = [event["kind"] for event in there.recorded("source.lost")]
        assert lost == [] if outlives else set(lost) == {"unreachable"}
        assert there.recorded("source.unusable") == []


def clock_ahead(seconds: float) -> list[str]:
    """A command prefix: whoever runs behind it takes it to be later. Times of files are as they are."""
    if not LIBRARY.exists():
        pytest.skip(f"needs {LIBRARY} (apt-get install libfaketime)")
    return [
        "env", f"LD_PRELOAD={LIBRARY}", f"FAKETIME=+{seconds:g}s", "NO_FAKE_STAT=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"
    ]  # fmt: skip


def test_a_worker_whose_clock_is_ahead_works_beside_others(tmp_path: Path) -> None:
    images = samples(range(100))
    with FleetUnderTest(tmp_path, recipe=SET_OF_THREE, options=SLOW) as fleet:
        fleet.workers[1].prefix = clock_ahead(AHEAD)
        fleet.start()
        announced = fleet.drop_all(images)
        fleet.wait(lambda: all(worker.named("image.done") for worker in fleet.workers), "results of each")
        now = datetime.now(UTC).timestamp()
        ahead = [
            datetime.fromisoformat(each.named("image.done")[0]["time"]).timestamp() - now for each in fleet.workers
        ]
        assert [seconds > AHEAD / 2 for seconds in ahead] == [False, True]
        told = [each.recorded("source.clock") for each in fleet.workers]
        assert [len(each) for each in told] == [0, 1]
        assert abs(told[1][0]["seconds"] - AHEAD) < 60
        assert "ahead of the broker's" in told[1][0]["detail"]
        fleet.wait_until_settled()
        assert_all_whole(fleet, images, SET_OF_THREE)
        assert fleet.done_counts() == {(each.key, each.fingerprint): 1 for each in announced}
        assert fleet.computed() == len(images)
