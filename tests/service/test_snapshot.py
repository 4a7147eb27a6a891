"""What the health event, the status file and the status line say, from given facts."""

from __future__ import annotations

from typing import Any

import pytest

from rmbgd.events import problems_with
from rmbgd.service.health import Identity, ProcessFacts, Rate, health_keys, status_line, status_record

PROCESS = ProcessFacts(rss_bytes=1 << 28, descriptors=40, threads=12)


def described(**changes: Any) -> dict[str, Any]:
    """A daemon's snapshot in which nothing is remarkable."""
    return {
        "device": "cpu",
        "waiting": 3,
        "in_flight": 2,
        "oldest_waiting": 1.5,
        "arena_bytes": 0,
        "channels": {},
        "paused": None,
        "engine": {},
        "ledger_rows": 7,
    } | changes


def test_health_keys_are_those_of_the_vocabulary() -> None:
    """No key too many, none too few; counts that never happened are zero."""
    keys = health_keys(described(), {"image.done": 5}, PROCESS, 60.0, {})

    assert [] == problems_with("health", keys)
    assert (5, 0, 0) == (keys["done"], keys["failed"], keys["postponed"])


def test_what_could_not_be_written_is_told_with_the_place() -> None:
    """A log on a full disk is seen in the heartbeat that the journal still gets."""
    keys = health_keys(described(), {}, PROCESS, 60.0, {"file": 3, "console": 0})

    assert {"file": 3} == keys["unwritten"]
    assert [] == problems_with("health", keys)


def test_snapshot_that_lacks_a_key_is_a_defect() -> None:
    """Better a service that does not start than a heartbeat without its facts."""
    lacking = described()
    del lacking["device"]

    with pytest.raises(KeyError, match="device"):
        health_keys(lacking, {}, PROCESS, 60.0, {})


def test_more_than_the_event_needs_goes_to_the_status_file() -> None:
    """The daemon may show more there, and cannot overwrite what the file says of itself."""
    record = status_record(
        Identity(7, 99, "boot", "run", "1.0", 100.0, "then"),
        "ready",
        {"uptime": 1.0},
        extra=described(folders=["a"]),
        rates={"1m": 2.0},
        stalled=[],
        last_problem=None,
        written_at="now",
        monotonic=101.0,
        interval=2.0,
    )

    assert ["a"] == record["folders"]
    assert "device" not in record
    assert (7, "ready", 101.0) == (record["pid"], record["phase"], record["monotonic"])


def test_rate_is_that_of_the_window() -> None:
    """Sixty images in the last minute are sixty a minute, whatever was before."""
    rate = Rate(60.0)
    for second in range(0, 301, 2):
        rate.sample(1000.0 + second, 0 if second < 240 else second - 240)

    assert pytest.approx(60.0, rel=0.05) == rate.per_minute()


def test_rate_of_one_sample_is_nothing() -> None:
    """Just started: no rate, and no division by zero."""
    rate = Rate(60.0)
    rate.sample(1.0, 5)

    assert 0.0 == rate.per_minute()


def test_status_line_names_what_matters_first() -> None:
    """systemctl status shows device, queue and outcome; a pause is not hidden among them."""
    health = health_keys(described(paused="disk_full"), {"image.done": 5, "image.failed": 1}, PROCESS, 60.0, {})

    assert "ready on cpu; paused (disk_full); 3 waiting, 2 in flight; 5 done, 1 refused; 12 a minute" == status_line(
        "ready", health, per_minute=12.2, stalled=[]
    )


def test_status_line_says_safe_mode() -> None:
    """Who looks at systemctl status sees why the GPU is idle."""
    health = health_keys(described(), {}, PROCESS, 60.0, {})

    line = status_line("ready", health, per_minute=0.0, stalled=[], safe_mode=True)

    assert line.startswith("ready on cpu in safe mode; 3 waiting")


def test_status_line_of_a_hung_service_says_who() -> None:
    """The last words before the watchdog bites name the thread."""
    health = health_keys(described(), {}, PROCESS, 60.0, {})

    assert "hung: decode-0; the watchdog is not fed" == status_line("ready", health, per_minute=0, stalled=["decode-0"])
