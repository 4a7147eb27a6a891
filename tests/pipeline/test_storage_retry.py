"""A disk that refuses delays the results; nothing is lost."""

import threading

import pytest

from rmbgd.errors import StorageFault
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline import storage_retry
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.testing.clock import FakeClock

pytestmark = pytest.mark.timeout(10)


class RecordedIntake:
    def __init__(self):
        self.calls = []

    def pause(self, reason):
        self.calls.append(("pause", reason))

    def resume(self, reason):
        self.calls.append(("resume", reason))


class Disk:
    """Refuses as often as told, then takes data."""

    def __init__(self, refusals):
        self.refusals = refusals
        self.asked = 0

    def write(self):
        self.asked += 1
        if self.asked <= self.refusals:
            raise StorageFault("disk_full", "no space", path="/out")
        return "written"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage_retry, "RETRY_MAXIMUM", 0.001)


def test_a_disk_that_comes_back_is_told_by_one_edge_each_way(quick):
    """However many tries it takes, the log has one pause and one resumption, and the intake likewise."""
    intake, events = RecordedIntake(), RecordedEvents()

    result = StorageRetry(intake, events, FakeClock()).retry_until_writable(Disk(5).write, "shop", NullHeartbeat())

    assert "written" == result
    assert [("pause", "disk_full:shop"), ("resume", "disk_full:shop")] == intake.calls
    assert ["storage.paused", "storage.resumed"] == [name for name, _ in events.events]


def test_a_disk_that_is_well_is_not_mentioned():
    """Success at the first try touches neither the log nor the intake."""
    intake, events = RecordedIntake(), RecordedEvents()

    StorageRetry(intake, events, FakeClock()).retry_until_writable(Disk(0).write, "shop", NullHeartbeat())

    assert [] == intake.calls
    assert [] == events.events


def test_stopping_releases_who_waits():
    """A disk that never comes back does not keep the service from stopping."""
    hold = StorageRetry(RecordedIntake(), RecordedEvents(), FakeClock())
    raised = []

    def insist():
        try:
            hold.retry_until_writable(Disk(1 << 30).write, "shop", NullHeartbeat())
        except Released as released:
            raised.append(released.fault.kind)

    thread = threading.Thread(target=insist)
    thread.start()
    hold.release()
    thread.join()

    assert ["disk_full"] == raised


def test_one_folder_coming_back_says_nothing_of_another(quick):
    """Each output has a disk of its own: only the one that takes data again is resumed."""
    intake = RecordedIntake()
    hold = StorageRetry(intake, RecordedEvents(), FakeClock())
    hold._begin("other", StorageFault("read_only", "", path="/other"))

    hold.retry_until_writable(Disk(1).write, "shop", NullHeartbeat())

    kinds = [("pause", "read_only:other"), ("pause", "disk_full:shop"), ("resume", "disk_full:shop")]
    assert kinds == intake.calls
