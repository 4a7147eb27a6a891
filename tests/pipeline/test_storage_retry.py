"""A disk that refuses delays the results; nothing is lost."""

from unittest.mock import Mock, call

import pytest

from rmbgd.errors import LedgerFault, StorageFault
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline import storage_retry
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.testing.clock import FakeClock

pytestmark = pytest.mark.timeout(10)


class Disk:
    """Refuses as often as told, then takes data."""

    def __init__(self, refusals, clock=None):
        self.refusals, self.clock = refusals, clock or FakeClock()

    def write(self):
        self.clock.advance(1.00004)  # milliseconds are enough for the log
        self.refusals -= 1
        if self.refusals >= 0:
            raise StorageFault("disk_full", "no space", path="/out")
        return "written"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage_retry, "RETRY_MAXIMUM", 0.001)


@pytest.mark.parametrize("refusals", [5, 0])
def test_a_disk_that_comes_back_is_told_by_one_edge_each_way(quick, refusals):
    intake, events, clock = Mock(), RecordedEvents(), FakeClock()
    disk = Disk(refusals, clock)
    assert "written" == StorageRetry(intake, events, clock).retry_until_writable(disk.write, "shop", NullHeartbeat())
    edges = [call.pause("disk_full:shop"), call.resume("disk_full:shop")]
    assert (edges if refusals else []) == intake.mock_calls
    assert [keys["kind"] for keys in events.named("storage.paused")] == ["disk_full"] * bool(refusals)
    assert [keys["seconds"] for keys in events.named("storage.resumed")] == [5.0] * bool(refusals)


def test_the_ledger_pauses_the_intake_and_its_own_thread_tells(quick):
    """Several finish threads and the intake meet one refusal of the ledger; it is told once, with its cause."""
    intake, events, refusals = Mock(), RecordedEvents(), iter([LedgerFault("denied", "", path="/ledger")])

    def write():
        for fault in refusals:
            raise fault

    StorageRetry(intake, events, FakeClock()).retry_until_writable(write, "shop", NullHeartbeat())
    assert [call.pause("ledger:shop"), call.resume("ledger:shop")] == intake.mock_calls
    assert [] == events.events


def test_the_wait_doubles_and_the_heartbeat_knows_of_it(monkeypatch):
    retry, heartbeat, waits = StorageRetry(Mock(), RecordedEvents(), FakeClock()), Mock(), []
    monkeypatch.setattr(retry._changed, "wait", waits.append)
    retry.retry_until_writable(Disk(6).write, "shop", heartbeat)
    assert [1.0, 2.0, 4.0, 8.0, 8.0, 8.0] == waits
    assert [call.waiting(), call.working()] * 6 == heartbeat.mock_calls


def test_stopping_releases_who_waits(monkeypatch):
    hold = StorageRetry(Mock(), RecordedEvents(), FakeClock())
    monkeypatch.setattr(hold._changed, "wait", lambda _: hold.release())
    with pytest.raises(Released, match="disk_full: no space"):
        hold.retry_until_writable(Disk(1 << 30).write, "shop", NullHeartbeat())


def test_one_folder_coming_back_says_nothing_of_another(quick):
    intake = Mock()
    hold = StorageRetry(intake, RecordedEvents(), FakeClock())
    hold._begin("other", StorageFault("read_only", "", path="/other"))
    hold.retry_until_writable(Disk(1).write, "shop", NullHeartbeat())
    edges = [call.pause("read_only:other"), call.pause("disk_full:shop"), call.resume("disk_full:shop")]
    assert edges == intake.mock_calls
