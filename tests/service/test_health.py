"""The health thread: when it heartbeats, what it writes, and when it stops feeding the watchdog."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from rmbgd.config import load as config
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import Heartbeats
from rmbgd.service.health import STATUS_FILE, Counters, HealthMonitor, process_facts
from rmbgd.service.systemd import Notifier
from rmbgd.testing.clock import FakeClock
from tests.service.test_snapshot import described


class Watched:
    """A monitor with everything around it scripted: clock, systemd, events, snapshot."""

    def __init__(self, folder: Path, *, watchdog: float | None = 30.0, **settings: Any) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.events = RecordedEvents()
        self.counters = Counters(self.events)
        self.heartbeats = Heartbeats(self.clock)
        self.told: list[str] = []
        self.unwritten: dict[str, int] = {}
        service = config.ServiceSettings(runtime_directory=folder, health_interval=60, status_interval=2, **settings)
        self.monitor = HealthMonitor(
            service,
            heartbeats=self.heartbeats,
            counters=self.counters,
            describe=lambda: described(folders=["shop"]),
            notifier=Notifier(self.told.append, watchdog_seconds=watchdog),
            clock=self.clock,
            unwritten=lambda: self.unwritten,
            on_stall=lambda: self.told.append("stacks"),
            environ={"INVOCATION_ID": "abc"},
        )

    def ticks(self, seconds: float, *, step: float = 2.0) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.monitor.tick()

    def status(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / STATUS_FILE).read_bytes())
        return record

    def fed(self) -> int:
        return self.told.count("WATCHDOG=1")


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_heartbeat_comes_once_per_interval_when_ready(watched: Watched) -> None:
    """One health event a minute, the first a minute after ready, none before."""
    watched.ticks(300)
    assert [] == watched.events.named("health")
    watched.monitor.phase("ready")
    watched.ticks(302)

    assert 5 == len(watched.events.named("health"))


def test_heartbeat_does_not_make_up_for_time_that_the_machine_slept(watched: Watched) -> None:
    """After an hour of standing still there is one heartbeat, not sixty."""
    watched.monitor.phase("ready")
    watched.ticks(10)
    watched.clock.advance(3600)
    watched.ticks(10)

    assert 1 == len(watched.events.named("health"))


def test_watchdog_is_fed_while_everybody_waits_or_progresses(watched: Watched) -> None:
    """Every tick feeds, and a tick comes at least four times within systemd's patience."""
    busy, idle = watched.heartbeats.new("busy"), watched.heartbeats.new("idle")
    idle.waiting()
    for _ in range(50):
        busy.working()
        watched.ticks(2)

    assert 50 == watched.fed()
    assert watched.monitor.period <= 30.0 / 4


def test_watchdog_is_not_fed_for_a_thread_that_hangs(watched: Watched) -> None:
    """The feeding thread lives, and still does not feed: progress is what counts."""
    watched.heartbeats.new("decode-0").working()
    watched.ticks(30)
    before = watched.fed()
    watched.ticks(60)

    assert before == watched.fed()
    assert [{"threads": ["decode-0"], "seconds": 30.0}] == watched.events.named("service.stalled")
    assert ["decode-0"] == watched.status()["stalled"]


def test_end_of_a_stall_is_told_once_and_feeds_again(watched: Watched) -> None:
    """Edges, not levels: one event entering, one leaving."""
    heartbeat = watched.heartbeats.new("finish-1")
    heartbeat.working()
    watched.ticks(40)
    before = watched.fed()
    heartbeat.waiting()
    watched.ticks(20)

    assert 1 == len(watched.events.named("service.stalled"))
    (ended,) = watched.events.named("service.stall_ended")
    assert pytest.approx(10.0, abs=2.0) == ended["seconds"]
    assert watched.fed() > before


def test_stacks_are_shown_when_a_stall_begins(watched: Watched) -> None:
    """Once, and long before systemd aborts: what an abort shows may end in the middle."""
    watched.heartbeats.new("finish-1").working()
    watched.ticks(28)
    assert "stacks" not in watched.told
    watched.ticks(120)

    assert 1 == watched.told.count("stacks")


def test_waking_after_a_stop_of_the_whole_process_is_no_stall(watched: Watched) -> None:
    """SIGSTOP for ten minutes: the monitor stood still as well, so nobody is blamed."""
    watched.heartbeats.new("decode-0").working()
    watched.ticks(10)
    watched.clock.advance(600)
    watched.ticks(20)

    assert [] == watched.events.named("service.stalled")


def test_step_of_the_wall_clock_changes_nothing(watched: Watched) -> None:
    """A day forward or back by NTP fires no timer and stalls nobody."""
    watched.monitor.phase("ready")
    watched.heartbeats.new("decode-0").waiting()
    watched.ticks(20)
    watched.clock.step_wall(-86400)
    watched.ticks(20)
    watched.clock.step_wall(2 * 86400)
    watched.ticks(10)

    assert [] == watched.events.events


def test_status_file_says_who_and_what(watched: Watched) -> None:
    """Phase, process, boot, run, rates and the snapshot, readable by everybody who may enter the directory."""
    watched.monitor.phase("ready")
    for _ in range(30):
        watched.counters("service.reload")
        watched.ticks(2)

    status = watched.status()
    assert ("ready", "abc", 2.0) == (status["phase"], status["invocation_id"], status["interval"])
    assert ("cpu", ["shop"]) == (status["health"]["device"], status["folders"])
    assert status["monotonic"] - status["started"] == pytest.approx(60.0)
    assert 0o644 == (watched.folder / STATUS_FILE).stat().st_mode & 0o777


def test_last_problem_is_kept_with_its_time(watched: Watched) -> None:
    """`rmbgd status` shows the last thing that went wrong, not the last thing that happened."""
    watched.counters("intake.blocked", folder="shop", path="a.jpg", cause="permission")
    watched.ticks(2)
    first = watched.status()["last_problem"]
    watched.counters("service.reload")
    watched.ticks(2)

    assert first == watched.status()["last_problem"]
    assert ("intake.blocked", "permission") == (first["event"], first["cause"])


def test_last_word_is_stopped(watched: Watched) -> None:
    """After an orderly end the status file does not look as if something ran."""
    watched.monitor.phase("ready")
    watched.ticks(2)
    watched.monitor.finished()

    assert "stopped" == watched.status()["phase"]


def test_missing_runtime_directory_blinds_but_does_not_stop(tmp_path: Path) -> None:
    """The status file cannot be written: heartbeat and watchdog go on, and the loss is told."""
    watched = Watched(tmp_path / "gone")
    watched.monitor.phase("ready")
    watched.ticks(64)

    assert 32 == watched.fed()
    (heartbeat,) = watched.events.named("health")
    assert 30 <= heartbeat["unwritten"]["status"] <= 32  # type: ignore[index]


def test_status_file_is_replaced_whole(watched: Watched) -> None:
    """A reader that opened the old file still reads all of it: the name moves, the content does not change."""
    watched.ticks(2)
    with (watched.folder / STATUS_FILE).open() as old:
        watched.ticks(2)

        assert json.loads(old.read())["monotonic"] < watched.status()["monotonic"]
    assert [STATUS_FILE] == [path.name for path in watched.folder.iterdir()]


def test_systemd_is_told_the_status_when_ready(watched: Watched) -> None:
    """While starting and stopping the daemon's own words stand."""
    watched.ticks(4)
    assert [] == [said for said in watched.told if said.startswith("STATUS=")]
    watched.monitor.phase("ready")
    watched.ticks(2)

    assert "STATUS=ready on cpu; 3 waiting, 2 in flight; 0 done, 0 refused; 0 a minute" in watched.told


def test_metrics_get_the_health_keys_with_every_status(watched: Watched) -> None:
    """What scrapes see is as old as what `rmbgd status` shows, whatever the heartbeat's interval."""
    seen: list[Any] = []
    watched.monitor._on_status = seen.append
    watched.ticks(6)

    assert [2.0, 4.0, 6.0] == [health["uptime"] for health in seen]


def test_run_returns_when_closed(watched: Watched) -> None:
    """The loop ends by closing, and ticks at least once."""
    thread = threading.Thread(target=watched.monitor.run)
    thread.start()
    watched.monitor.close()
    thread.join()

    assert watched.fed() >= 1


def test_defect_in_the_snapshot_ends_the_health_thread(tmp_path: Path) -> None:
    """A half-alive service is not a state we support: what the snapshot raises is not swallowed."""
    watched = Watched(tmp_path)
    watched.monitor._describe = dict

    with pytest.raises(KeyError):
        watched.monitor.run()


def test_counters_count_by_name_and_pass_on() -> None:
    """They stand between the parts and the log, and change nothing of what passes."""
    events = RecordedEvents()
    counters = Counters(events)
    counters("service.reload")
    counters("service.reload")

    assert {"service.reload": 2} == counters.counts()
    assert [("service.reload", {}), ("service.reload", {})] == events.events
    assert counters.last_problem() is None


def test_facts_of_the_process_are_those_of_the_kernel(tmp_path: Path) -> None:
    """One more open file is one more descriptor; memory and threads are there."""
    before = process_facts()
    with (tmp_path / "open").open("w"):
        after = process_facts()

    assert 1 == after.descriptors - before.descriptors
    assert after.rss_bytes > 1 << 20
    assert after.threads >= 1
