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

    def __init__(self, refusals, clock=None):
        self.refusals, self.clock = refusals, clock or FakeClock()
        self.asked = 0

    def write(self):
        self.asked += 1
        self.clock.advance(1.00004)  # milliseconds are enough for the log
        if self.asked <= self.refusals:
            raise StorageFault("disk_full", "no space", path="/out")
        return "written"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage_retry, "RETRY_MAXIMUM", 0.001)


@pytest.mark.parametrize("refusals", [5, 0])
def test_a_disk_that_comes_back_is_told_by_one_edge_each_way(quick, refusals):
    """However many tries it takes, log and intake have one pause and one resumption; none when it took the first."""
    intake, events, clock = RecordedIntake(), RecordedEvents(), FakeClock()
    disk = Disk(refusals, clock)
    assert "written" == StorageRetry(intake, events, clock).retry_until_writable(disk.write, "shop", NullHeartbeat())

    reasons = ["disk_full:shop"] if refusals else []
    assert [(edge, reason) for edge in ("pause", "resume") for reason in reasons] == intake.calls
    assert [keys["kind"] for keys in events.named("storage.paused")] == ["disk_full"] * len(reasons)
    assert [keys["seconds"] for keys in events.named("storage.resumed")] == [5.0] * len(reasons)


def test_the_wait_doubles_and_the_heartbeat_knows_of_it(monkeypatch):
    """One second, then twice as long up to eight."""
    retry, beats, waits = StorageRetry(RecordedIntake(), RecordedEvents(), FakeClock()), [], []
    monkeypatch.setattr(retry._changed, "wait", waits.append)
    heartbeat = NullHeartbeat()
    heartbeat.waiting, heartbeat.working = (lambda: beats.append("waiting")), (lambda: beats.append("working"))
    retry.retry_until_writable(Disk(6).write, "shop", heartbeat)

    assert [1.0, 2.0, 4.0, 8.0, 8.0, 8.0] == waits
    assert ["waiting", "working"] * 6 == beats


def test_stopping_releases_who_waits():
    """A disk that never comes back does not keep the service from stopping."""
    hold = StorageRetry(RecordedIntake(), RecordedEvents(), FakeClock())
    raised = []

    def insist():
        try:
            hold.retry_until_writable(Disk(1 << 30).write, "shop", NullHeartbeat())
        except Released as released:
            raised.append(released.args[0].kind)

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
