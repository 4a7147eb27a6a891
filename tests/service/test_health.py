"""The health thread: its event, the status file, and when the watchdog is not fed."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from rmbgd.config.load import ServiceSettings
from rmbgd.events import RecordedEvents, problems_with
from rmbgd.heartbeat import Heartbeats
from rmbgd.service.exit_recorder import STATUS_FILE
from rmbgd.service.health import Counters, HealthMonitor, Rate, health_keys, process_facts, status_line
from rmbgd.service.systemd import Notifier
from rmbgd.testing.clock import FakeClock

PROCESS = {"rss_bytes": 1 << 28, "descriptors": 40, "threads": 12}
SNAPSHOT = {
    "device": "cpu", "waiting": 3, "in_flight": 2, "oldest_waiting": 1.5, "arena_bytes": 0, "arena_resident": 0,
    "channels": {}, "paused": None, "engine": {}, "ledger_rows": 7, "reviews": 2,
}  # fmt: skip


class Monitored:
    """A monitor with everything around it scripted: clock, systemd, events, snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.events = folder, FakeClock(), RecordedEvents()
        self.counters = Counters(self.events)
        self.heartbeats = Heartbeats(self.clock)
        self.notified: list[str] = []
        self.stacks: list[float] = []  # when they were shown
        self.monitor = HealthMonitor(
            ServiceSettings(runtime_directory=folder, health_interval=60, status_interval=2),
            heartbeats=self.heartbeats,
            counters=self.counters,
            describe=lambda: SNAPSHOT | {"folders": ["shop"]},
            notifier=Notifier(self.notified.append, watchdog_seconds=30.0),
            clock=self.clock,
            on_stall=lambda: self.stacks.append(self.clock.monotonic()),
            environ={"INVOCATION_ID": "abc"},
        )

    def ticks(self, seconds: float, *, step: float = 2.0) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.monitor.tick()

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / STATUS_FILE).read_bytes()))

    def fed(self) -> int:
        return self.notified.count("WATCHDOG=1")


@pytest.fixture
def health(tmp_path: Path) -> Monitored:
    return Monitored(tmp_path)


def test_health_event_comes_once_per_interval_when_ready(health: Monitored) -> None:
    health.ticks(300)
    assert [] == health.events.named("health")
    health.monitor.phase = "ready"
    health.ticks(302)
    assert 5 == len(health.events.named("health"))
    health.clock.advance(3600)
    health.ticks(10)
    assert 6 == len(health.events.named("health"))


def test_watchdog_is_fed_while_all_threads_wait_or_progress(health: Monitored) -> None:
    busy, idle = health.heartbeats.new("busy"), health.heartbeats.new("idle")
    idle.waiting()
    for _ in range(50):
        busy.working()
        health.ticks(2)
    assert 50 == health.fed()
    assert health.monitor.period <= 30.0 / 4


def test_watchdog_is_not_fed_for_a_thread_that_hangs(health: Monitored) -> None:
    """One event as it begins, one at its end; stacks long before systemd's abort, whose own may end in the middle."""
    heartbeat, began = health.heartbeats.new("decode-0"), health.clock.monotonic()
    heartbeat.working()
    health.ticks(30)
    before = health.fed()
    health.ticks(120)

    assert before == health.fed()
    assert [{"threads": ["decode-0"], "seconds": 30.0}] == health.events.named("service.stalled")
    assert ["decode-0"] == health.status()["stalled"]
    assert [began + 32] == health.stacks
    heartbeat.waiting()
    health.ticks(20)
    assert 1 == len(health.events.named("service.stalled"))
    (ended,) = health.events.named("service.stall_ended")
    assert pytest.approx(120.0, abs=2.0) == ended["seconds"]
    assert health.fed() > before


def test_waking_after_a_stop_of_the_whole_process_is_no_stall(health: Monitored) -> None:
    """SIGSTOP for ten minutes: the monitor stood still as well, so no thread is blamed."""
    health.heartbeats.new("decode-0").working()
    health.ticks(10)
    health.clock.advance(600)
    health.ticks(20)
    assert [] == health.events.named("service.stalled")


def test_step_of_the_wall_clock_changes_nothing(health: Monitored) -> None:
    health.monitor.phase = "ready"
    health.heartbeats.new("decode-0").waiting()
    for step in (-86400, 2 * 86400):
        health.ticks(20)
        health.clock.step_wall(step)
    health.ticks(10)
    assert [] == health.events.events


def test_status_file_says_who_and_what(health: Monitored) -> None:
    health.monitor.phase = "ready"
    health.ticks(60)
    status = health.status()
    assert [STATUS_FILE] == [path.name for path in health.folder.iterdir()]
    assert ("ready", "abc", 2.0) == (status["phase"], status["invocation_id"], status["interval"])
    assert ("cpu", ["shop"]) == (status["health"]["device"], status["folders"])
    assert "device" not in status
    assert status["monotonic"] - status["started"] == pytest.approx(60.0)
    assert 0o644 == (health.folder / STATUS_FILE).stat().st_mode & 0o777


def test_last_problem_is_kept_with_its_time(health: Monitored) -> None:
    health.counters("intake.blocked", folder="shop", path="a.jpg", cause="permission")
    health.ticks(2)
    first = health.status()["last_problem"]
    health.counters("service.reload")
    health.ticks(2)
    assert first == health.status()["last_problem"]
    assert ("intake.blocked", "permission") == (first["event"], first["cause"])
    assert first["time"].endswith("Z")


def test_status_file_names_the_last_outcomes(health: Monitored) -> None:
    """The newest first, eight at most; what is put back has not ended."""
    count, shop = Counters(lambda *_, **__: None), {"folder": "shop"}
    for number in range(9):
        count("image.done", **shop, path=f"{number}.jpg", verdict="ok", milliseconds={"total": 1234.5}, job=number)
    count("image.postponed", **shop, path="later.jpg", why="memory")
    count("image.failed", **shop, path="doc.pdf", reason="unidentified", milliseconds={})
    health.monitor._counters = count
    health.ticks(2)
    first, second, *more = health.status()["recent"]
    times = [each.pop("at") for each in (first, second)]
    assert {
        "event": "image.failed",
        "folder": "shop",
        "path": "doc.pdf",
        "reason": "unidentified",
        "seconds": None,
    } == first
    assert {"event": "image.done", "folder": "shop", "path": "8.jpg", "verdict": "ok", "seconds": 1.234} == second
    assert [f"{number}.jpg" for number in range(7, 1, -1)] == [each["path"] for each in more]
    assert all(time.endswith("Z") for time in times)


def test_missing_runtime_directory_blinds_but_does_not_stop(tmp_path: Path) -> None:
    """Said once when it begins and once when it is over; a directory that may be made is made again."""
    (tmp_path / "gone").write_text("a file in its place")
    health = Monitored(tmp_path / "gone" / "run")
    health.monitor.phase = "ready"
    health.ticks(64)
    assert 32 == health.fed()
    (event,) = health.events.named("health")
    assert 30 <= event["unwritten"]["status"] <= 32  # type: ignore[index]
    (lost,) = health.events.named("status.lost")
    assert (str(health.folder / STATUS_FILE), True) == (lost["path"], "Not a directory" in str(lost["cause"]))
    (tmp_path / "gone").unlink()
    health.ticks(4)
    assert [{"path": lost["path"], "seconds": 64.0}] == health.events.named("status.written")
    shutil.rmtree(health.folder)
    health.ticks(4)
    assert "ready" == health.status()["phase"]
    assert 1 == len(health.events.named("status.lost"))


def test_systemd_gets_the_status_when_ready(health: Monitored) -> None:
    health.ticks(4)
    assert [] == [message for message in health.notified if message.startswith("STATUS=")]
    health.monitor.phase = "ready"
    health.ticks(2)
    assert "STATUS=ready on cpu; 3 waiting, 2 in flight; 0 done, 0 rejected; 0 a minute" in health.notified


def test_metrics_get_the_health_keys_with_every_status(health: Monitored) -> None:
    seen: list[Any] = []
    health.monitor._on_status = seen.append
    health.ticks(6)
    assert [2.0, 4.0, 6.0] == [keys["uptime"] for keys in seen]


def test_run_returns_when_closed(health: Monitored) -> None:
    thread = threading.Thread(target=health.monitor.run)
    thread.start()
    health.monitor.close()
    thread.join()
    assert health.fed() >= 1
    health.monitor.finished()
    assert "stopped" == health.status()["phase"]


def test_defect_in_the_snapshot_ends_the_health_thread(health: Monitored) -> None:
    """Better a service that ends than a health event without its facts: what the snapshot lacks is not swallowed."""
    health.monitor._describe = lambda: {key: SNAPSHOT[key] for key in SNAPSHOT if key != "device"}
    with pytest.raises(KeyError, match="device"):
        health.monitor.run()


def test_counters_count_by_name_and_pass_on() -> None:
    events = RecordedEvents()
    counters = Counters(events)
    for _ in range(2):
        counters("service.reload")
    assert ({"service.reload": 2}, None) == (counters.counts(), counters.last_problem)
    assert [("service.reload", {})] * 2 == events.events


def test_facts_of_the_process_are_those_of_the_kernel(tmp_path: Path) -> None:
    before = process_facts()
    with (tmp_path / "open").open("w"):
        after = process_facts()
    assert 1 == after["descriptors"] - before["descriptors"]
    assert after["rss_bytes"] > 1 << 20
    assert after["threads"] >= 1


def test_health_keys_are_those_of_the_vocabulary() -> None:
    keys = health_keys(SNAPSHOT, {"image.done": 5}, PROCESS, 60.0, {"file": 0, "console": 0})
    lossy = health_keys(SNAPSHOT, {}, PROCESS, 60.0, {"file": 3, "console": 0})
    assert [] == problems_with("health", keys) + problems_with("health", lossy)
    assert (5, 0, 0) == (keys["done"], keys["failed"], keys["postponed"])
    assert "unwritten" not in keys
    assert {"file": 3} == lossy["unwritten"]


def test_rate_is_that_of_the_window() -> None:
    rate = Rate(60.0)
    rate.sample(1000.0, 0)
    assert 0.0 == rate.per_minute()
    for second in range(2, 301, 2):
        rate.sample(1000.0 + second, max(second - 240, 0))
    assert pytest.approx(60.0, rel=0.05) == rate.per_minute()


@pytest.mark.parametrize(
    ("paused", "arguments", "line"),
    [
        ("disk_full", {}, "ready on cpu; paused (disk_full); 3 waiting, 2 in flight; 5 done, 1 rejected; 12 a minute"),
        (None, {"safe_mode": 1}, "ready on cpu in safe mode; 3 waiting, 2 in flight; 5 done, 1 rejected; 12 a minute"),
        (None, {"stalled": ["decode-0"]}, "hung: decode-0; the watchdog is not fed"),
    ],
)  # fmt: skip
def test_status_line_names_what_matters_first(paused: str | None, arguments: dict[str, Any], line: str) -> None:
    health = health_keys(SNAPSHOT | {"paused": paused}, {"image.done": 5, "image.failed": 1}, PROCESS, 60.0, {})
    assert line == status_line("ready", health, **{"per_minute": 12.2, "stalled": []} | arguments)
