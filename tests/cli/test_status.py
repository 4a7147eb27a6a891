"""What `rmbgd status` says of a service, in words, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from rmbgd.cli.status_file import ServiceState, by_lock, judge
from rmbgd.cli.status_text import Mood, rows, troubles
from rmbgd.cli.table import print_table
from rmbgd.clock import SystemClock
from rmbgd.errors import Exit
from rmbgd.store.ledger import Ledger
from rmbgd.telemetry.jsonl import process_start

NOW = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
WATCHED = {"mode": "events", "cause": None, "armed": 1, "wanted": 1, "overflows": 0, "missed": 0, "more": False}


def status_record(**changes: Any) -> dict[str, Any]:
    images = {"waiting": 3, "in_flight": 2, "oldest_waiting": 9.0, "done": 5, "failed": 1, "postponed": 0}
    engine = {"device": "cuda:0", "engine": {"state": "ready", "restarts": 0}}
    health = {"uptime": 100000.0, "paused": None, "rss_bytes": 1 << 28, "arena_bytes": 1 << 26, **images, **engine}
    times = {"written_at": "2026-01-01T00:00:00.000Z", "started_at": "2025-12-31T00:00:00.000Z", "interval": 2.0}
    process = {"phase": "ready", "version": "0.1.0", "pid": 42, "process_start": 777, "monotonic": 1000.0}
    problem = {"event": "image.failed", "time": "2026-01-01T00:00:00.000Z", "path": "doc.pdf"}
    problem |= {"reason": "unidentified", "detail": "not an image", "job": 7, "milliseconds": {"wait": 7.67}}
    rates = {"per_minute": {"1m": 12.0, "5m": 10.5}, "stalled": []}
    return process | times | rates | {"last_problem": problem, "health": health} | changes


@pytest.mark.parametrize(
    ("record", "now", "start", "expected"),
    [
        (None, 1001.0, 777, ServiceState.NOT_RUNNING),
        (status_record(), 1001.0, 777, ServiceState.RUNNING),
        (status_record(), 1001.0, None, ServiceState.NOT_RUNNING),
        (status_record(), 1001.0, 778, ServiceState.NOT_RUNNING),  # another process got the number
        (status_record(), 1010.0, 777, ServiceState.RUNNING),
        (status_record(), 1010.1, 777, ServiceState.STALE),
        (status_record(interval=60.0), 1300.0, 777, ServiceState.RUNNING),
        (status_record(phase="stopped"), 9999.0, None, ServiceState.STOPPED),
        (status_record(stalled=["decode-0"]), 1001.0, 777, ServiceState.HUNG),
    ],
)
def test_state_by_the_status_file(
    record: dict[str, Any] | None, now: float, start: int | None, expected: ServiceState
) -> None:
    state, _ = judge(record, now=now, process_start=lambda _: start, where="/run/rmbgd/status.json")
    assert expected == state


def shown(record: dict[str, Any]) -> dict[str, str]:
    return {row.label: row.text for row in rows(record, NOW)}


def test_each_model_on_the_cpu_is_said_with_its_precision_and_why() -> None:
    facts = {"runtime": "openvino", "runtime_version": "2026.4", "precision": "bfloat16"}
    models = {"u2netp": facts | {"precision_because": "it takes 0.2 s"}, "x": facts, "older": {}}
    said = [row.text for row in rows(status_record(cpu_models=models), NOW) if row.label == "cpu"]
    assert said == ["u2netp in openvino 2026.4, bfloat16: it takes 0.2 s", "x in openvino 2026.4, bfloat16"]


def test_rows_show_what_a_person_asks_first() -> None:
    said = shown(status_record())
    assert "cuda:0, ready" == said["device"]
    assert "3 waiting, 2 in flight, the oldest for 9 s" == said["queue"]
    assert "12 a minute, 10.5 over five minutes" == said["rate"]
    assert "5 done, 1 rejected, 0 put back" == said["images"]
    assert "doc.pdf rejected 2 min ago: unidentified (not an image)" == said["last problem"]
    assert "27 h 46 min, since 2025-12-31 00:00 UTC" == said["up"]
    assert not {"image memory", "config"} & said.keys(), "a version before this one does not say it"


@pytest.mark.parametrize(
    ("facts", "said", "mood"),
    [
        ({}, "watching (inotify, 1 directory)", Mood.GOOD),
        ({"armed": 12}, "watching (inotify, 12 directories)", Mood.GOOD),
        ({"more": True}, "watching (inotify, 1 directory); it holds more files than are looked at once", Mood.GOOD),
        (
            {"overflows": 3, "missed": 2},
            "watching (inotify, 1 directory); file events: 3 overflows, 2 missed",
            Mood.GOOD,
        ),
        (
            {"mode": "poll", "cause": "watch_limit", "wanted": 9},
            "polling: inotify watches for 1 of 9 directories; raise fs.inotify.max_user_watches",
            Mood.ODD,
        ),
        (
            {"mode": "poll"},
            "polling: file events are switched off, or not sent by this file system",
            Mood.PLAIN,
        ),
        (
            {"mode": "waiting", "cause": "denied"},
            "cannot be read: denied: this service may not look into it; run `rmbgd doctor`",
            Mood.BAD,
        ),
        (
            {"mode": "waiting", "cause": "missing"},
            "cannot be read: missing: there is no such directory; make it, or mount its disk",
            Mood.BAD,
        ),
        (
            {"mode": "waiting", "cause": "in_use"},
            "waiting: another service claims from it; run `rmbgd doctor`",
            Mood.BAD,
        ),
        ({"mode": "waiting"}, "not looked at yet", Mood.PLAIN),
    ],
)  # fmt: skip
def test_a_folder_is_told_in_words(facts: dict[str, Any], said: str, mood: Mood) -> None:
    (row,) = [row for row in rows(status_record(folders={"main": WATCHED | facts}), NOW) if row.label == "folder main"]
    assert (said, mood) == (row.text, row.mood)


@pytest.mark.parametrize(
    ("paused", "said"),
    [
        ("operator", "paused by an operator"),
        ("operator:shop", "paused by an operator in folder shop"),
        ("operator:a,b", "paused by an operator in folders a, b"),
        ("disk_full", "paused, as the disk is full"),
        ("of_tomorrow", "paused (of_tomorrow)"),
    ],
)
def test_a_pause_is_told_in_words(paused: str, said: str) -> None:
    record = status_record()
    record["health"]["paused"] = paused
    assert (said, [said]) == (shown(record)["paused"], troubles(record))


def test_devices_are_told_with_temperature_and_state() -> None:
    record = status_record()
    hot = {"state": "cooling", "trips": 2, "temperature": 91.0, "dwell": 40.0}
    lost = {"state": "lost", "trips": 1, "operator_action": "reboot"}
    record["health"]["engine"]["devices"] = {"cuda:0": hot, "cuda:1": lost, "cpu": {"state": "on_demand"}}
    found = [(row.label, row.text, row.mood) for row in rows(record, NOW) if row.label.startswith("- ")]
    assert found == [
        ("- cuda:0", "cooling, 91 °C, 2 trips, next try in 40 s", Mood.ODD),
        ("- cuda:1", "lost, 1 trip: reboot", Mood.BAD),
        ("- cpu", "on demand", Mood.PLAIN),
    ]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"of": 1500, "left": 95.0}, "a.mp4: 300 of 1500 frames, 12.3 a second, 95 s left"),
        ({"of": None, "left": None}, "a.mp4: 300 frames, 12.3 a second"),
    ],
)
def test_the_film_in_work_is_shown_with_the_time_left(facts: dict[str, Any], said: str) -> None:
    film = {"folder": "films", "path": "a.mp4", "frames": 300, "rate": 12.34, "seconds": 24.4} | facts
    assert shown(status_record(film=film))["film"] == said
    assert "film" not in shown(status_record(film=None))


def test_a_problem_that_is_no_image_is_told_by_its_sentence() -> None:
    keys = {"kind": "read_only", "path": "/srv/out", "detail": "Read-only file system"}
    problem = {"event": "storage.paused", "time": "2026-01-01T00:01:57Z", **keys}
    said = "paused, read_only at /srv/out: Read-only file system, 3 s ago"
    assert said == shown(status_record(last_problem=problem))["last problem"]


def test_last_outcomes_are_told_the_newest_first() -> None:
    at = {"folder": "shop", "at": "2026-01-01T00:01:50.000Z"}
    recent = [
        {"event": "image.done", "path": "wall.jpg", "verdict": "empty", "seconds": 1.25, **at},
        {"event": "image.failed", "path": "doc.pdf", "reason": "unidentified", "seconds": None, **at},
        {"event": "image.done", "path": "shoe.jpg", "verdict": "ok", "seconds": 0.9, **at},
    ]
    assert [row.text for row in rows(status_record(recent=recent), NOW) if row.label == "10 s ago"] == [
        "wall.jpg done, no subject in 1.2 s",
        "doc.pdf rejected: unidentified",
        "shoe.jpg done in 0.9 s",
    ]


def test_after_a_stop_only_what_is_still_true_is_told(
    configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any
) -> None:
    path = configuration()
    record = status_record(phase="stopped", folders={"main": WATCHED})
    (tmp_path / "run" / "status.json").write_text(json.dumps(record))
    status, out, _ = rmbgd("status", "--config", path)
    assert Exit.NOT_RUNNING == status
    assert out.startswith("rmbgd is stopped: in good order at 2026-01-01 00:00 UTC\n")
    assert ["was", "images", "version", "last"] == [line.split()[0] for line in out.splitlines()[1:]]


def test_in_a_pipe_lines_are_neither_wrapped_nor_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, "utf-8"))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("a", "b", box=None)
    table.add_row("x" * 300, "靴.jpg 61 °C")
    table.add_row("y", "")
    print_table(table)
    sys.stdout.flush()
    _, first, second = taken.getvalue().decode().splitlines()
    assert (f" {'x' * 300}  靴.jpg 61 °C", " y") == (first, second)


def test_models_list_in_a_pipe_has_a_line_for_each_model(
    rmbgd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = rmbgd("models", "list", "--models-dir", tmp_path)[1].splitlines()
    assert 1 == sum("u2netp" in line and "Apache-2.0" in line and "built in" in line for line in lines)
    assert [line.rstrip() for line in lines] == lines


@pytest.mark.parametrize(
    ("leased", "resident", "kept", "said"),
    [
        (64, 512, 0, "512 MiB resident: 64 MiB in use, 448 MiB soon given back"),
        (64, 512, 256, "512 MiB resident: 64 MiB in use, 256 MiB page-locked for a device, 256 MiB soon given back"),
        (64, 16, 0, "16 MiB resident: 16 MiB in use, 0 MiB soon given back"),  # lent, and not written yet
    ],
)
def test_status_says_why_memory_is_resident(leased: int, resident: int, kept: int, said: str) -> None:
    record = status_record(arena_kept=kept << 20)
    record["health"] |= {"arena_bytes": leased << 20, "arena_resident": resident << 20}
    assert said == shown(record)["image memory"]


def test_status_without_a_service_says_so(configuration: Callable[..., Path], rmbgd: Any) -> None:
    path = configuration()
    assert (Exit.NOT_RUNNING, "") == rmbgd("status", "--config", path)[::2]
    status, out, _ = rmbgd("status", "--json", "--config", path)
    assert (Exit.NOT_RUNNING, "not running") == (status, json.loads(out)["verdict"])


def test_status_of_a_running_service(configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any) -> None:
    """From the file alone: this very process plays the service. Names in it cannot steer the terminal."""
    path = configuration()
    problem = {"event": "image.failed", "path": "\x1b[2J[bold]a.jpg", "reason": "corrupt"}
    problem |= {"time": "2026-01-01T00:00:00Z"}
    me = {"pid": os.getpid(), "process_start": process_start(os.getpid()), "monotonic": time.monotonic()}
    record = status_record(interval=60.0, last_problem=problem, **me)
    (tmp_path / "run" / "status.json").write_text(json.dumps(record))
    status, out, err = rmbgd("status", "--config", path)
    assert (Exit.OK, "") == (status, err)
    assert out.startswith(f"rmbgd is running: process {os.getpid()}")
    assert r"\x1b[2J[bold]a.jpg" in out
    assert out.isascii()
    waiting = WATCHED | {"mode": "waiting", "cause": "denied"}
    (tmp_path / "run" / "status.json").write_text(json.dumps(record | {"folders": {"main": waiting, "b": WATCHED}}))
    status, out, _ = rmbgd("status", "--config", path)
    assert Exit.OK == status
    assert out.startswith(f"rmbgd is running, but 1 of 2 folders cannot be read: process {os.getpid()}")


@pytest.mark.parametrize("text", ['{"phase": "rea', "[1, 2]", '{"phase": "ready"}', "", None])
def test_what_is_no_status_file_is_told_as_that(
    configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any, text: str | None
) -> None:
    path, place = configuration(), tmp_path / "run" / "status.json"
    place.mkdir() if text is None else place.write_text(text)
    status, out, _ = rmbgd("status", "--config", path)
    assert (Exit.NOT_RUNNING, f"rmbgd is not running: {place} is no status file of rmbgd") == (
        status,
        out.partition(" (")[0],
    )


@pytest.mark.parametrize(
    ("locked", "blind", "expected"),
    [
        (False, True, ServiceState.STOPPED),
        (None, False, ServiceState.STOPPED),  # what the file says holds
        (None, True, ServiceState.UNKNOWN),
        (True, False, ServiceState.UNSEEN),
    ],
)
def test_state_by_the_lock(locked: bool | None, blind: bool, expected: ServiceState) -> None:
    path = Path("/run/rmbgd/status.json")
    assert expected == by_lock(ServiceState.STOPPED, "why", path, locked, blind=blind)[0]


@pytest.mark.parametrize("left", [None, "stopped", "torn"])
def test_a_service_without_its_status_file_is_seen_by_its_lock(
    configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any, left: str | None
) -> None:
    path = configuration()
    if left:
        record = json.dumps(status_record(phase="stopped"))
        (tmp_path / "run" / "status.json").write_text(record if left == "stopped" else record[:-9])
    with closing(Ledger(tmp_path / "state" / "ledger.sqlite", SystemClock())):
        status, out, _ = rmbgd("status", "--config", path)
        assert (Exit.FAILED, True) == (status, out.startswith("rmbgd is running, but unseen: "))
        assert f"make {tmp_path}/run again" in out
    assert "not running" in rmbgd("status", "--config", path)[1] or left == "stopped"
