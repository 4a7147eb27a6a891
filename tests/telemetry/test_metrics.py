"""The metrics file: names, labels, and how it is replaced."""

from __future__ import annotations

import itertools
import os
import re
import stat
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from rmbgd.config.load import parse
from rmbgd.engine import failover
from rmbgd.engine.health_types import FaultKind, Phase
from rmbgd.errors import ConfigError, Reason
from rmbgd.events import EVENTS
from rmbgd.telemetry.metrics import FINDINGS, LABELS, NOT_COUNTED, VALUES, Metrics, open_metrics

DONE = {
    "folder": "shop", "device": "cuda:0", "model": "birefnet", "verdict": "ok", "bytes_in": 1000, "bytes_out": 500,
    "milliseconds": {"decode": 12.0, "total": 300.0},
}  # fmt: skip
HEALTH = {
    "device": "cuda:0", "waiting": 3, "rss_bytes": 1 << 20, "paused": None,
    "engine": {"devices": {"cuda:0": {"state": "ok", "temperature": 61.0}, "cpu": {"state": "standby"}}},
}  # fmt: skip


FOLDERS = [
    {"name": name, **dict.fromkeys(("input", "output", "failed", "done"), f"/srv/{name}")} for name in ("shop", "web")
]
CONFIG = parse({"folder": FOLDERS})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda event, /, **keys: None, CONFIG)


def text(metrics: Metrics) -> str:
    with tempfile.NamedTemporaryFile() as file:
        metrics.write(Path(file.name))
        return Path(file.name).read_text()


def series(metrics: Metrics, name: str) -> set[str]:
    """Labels and value of each series whose name begins so."""
    return {line.removeprefix(name) for line in text(metrics).splitlines() if line.startswith(name)}


def test_every_event_has_a_counter_of_its_name(metrics: Metrics):
    found = text(metrics)
    wanted = [f"# TYPE rmbgd_{name.replace('.', '_')}_total counter" for name in EVENTS if name not in NOT_COUNTED]
    assert len(wanted) > 30
    assert [line for line in wanted if line not in found] == []


def test_failures_begin_with_zero(metrics: Metrics):
    """increase() does not see the first failure of a series that begins with it."""
    for folder, reason in itertools.product(("shop", "web"), Reason):
        assert f'{{folder="{folder}",reason="{reason}"}} 0.0' in series(metrics, "rmbgd_image_failed_total")
    assert '{device="cpu",kind="lost"} 0.0' in series(metrics, "rmbgd_engine_fault_total")
    assert '{kind="disk_full"} 0.0' in series(metrics, "rmbgd_storage_paused_total")
    assert '{hook="on_failed"} 0.0' in series(metrics, "rmbgd_hook_failed_total")
    assert {" 0.0"} == series(metrics, "rmbgd_service_stalled_total")
    metrics("engine.started", device="cuda:0", models={}, batch_sizes=[], seconds=1.0)
    assert '{device="cuda:0",kind="memory"} 0.0' in series(metrics, "rmbgd_engine_fault_total")
    assert '{from="cuda:0",reason="temperature",to="cpu"} 0.0' in series(metrics, "rmbgd_engine_failover_total")
    assert not {
        each for each in series(metrics, "rmbgd_engine_failover_total") if 'from="cpu",' in each and 'to="cpu"' in each
    }


def test_folders_without_number_make_no_series_without_number():
    many = parse({"folder": [{**FOLDERS[0], "name": str(number)} for number in range(1000)]})
    assert len(text(Metrics(lambda event, /, **keys: None, many)).splitlines()) < 20_000


def test_values_of_labels_are_those_of_the_engine():
    findings = re.findall(r'Finding\(\s*"(\w+)"', Path(failover.__file__).read_text())
    good = {"well_again", "probe_passed", "found", "cooled", "dwell_over"}
    assert {*findings, *FaultKind} - good - {FaultKind.MEMORY, FaultKind.UNCLEAN_CAPTURE} <= set(FINDINGS)
    assert set(VALUES["engine.state", "to"]) == set(Phase)


def test_metrics_need_their_library_only_where_they_are_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert open_metrics(CONFIG, lambda event, /, **keys: None) is None
    wanted = parse({"health": {"metrics_file": "/run/rmbgd/rmbgd.prom"}})
    with pytest.raises(ConfigError, match=r"prometheus_client.*pip install 'rmbgd\[metrics\]'"):
        open_metrics(wanted, lambda event, /, **keys: None)


def test_labels_are_keys_that_their_event_must_have():
    """A label that may be absent, or that outsiders choose, would split or multiply series."""
    for event, labels in LABELS.items():
        required = {key for key in EVENTS[event].keys if not key.endswith("?")}
        assert set(labels) <= required, event
        assert not {"path", "output", "detail", "job", "error", "line"} & set(labels)


def test_an_image_is_counted(metrics: Metrics):
    metrics("image.done", **DONE)
    labels = '{device="cuda:0",folder="shop",model="birefnet",verdict="ok"}'
    assert f"{labels} 1.0" in series(metrics, "rmbgd_image_done_total")
    assert series(metrics, "rmbgd_image_bytes_total") == {'{direction="in"} 1000.0', '{direction="out"} 500.0'}
    assert series(metrics, "rmbgd_image_seconds_sum") == {'{stage="decode"} 0.012', '{stage="total"} 0.3'}
    buckets = {'{le="0.01",stage="decode"} 0.0', '{le="0.025",stage="decode"} 1.0'}
    assert series(metrics, "rmbgd_image_seconds_bucket") >= buckets
    assert "_created" not in text(metrics)


def test_gauges_follow_the_heartbeat(metrics: Metrics):
    assert series(metrics, "rmbgd_waiting_files") == {" NaN"}
    metrics("health", **HEALTH)
    assert series(metrics, "rmbgd_waiting_files") == {" 3.0"}
    assert series(metrics, "rmbgd_resident_memory_bytes") == {" 1.048576e+06"}
    assert series(metrics, "rmbgd_paused") == {" 0.0"}
    assert series(metrics, "rmbgd_device_temperature_celsius") == {'{device="cuda:0"} 61.0'}
    assert '{device="cpu",state="standby"} 1.0' in series(metrics, "rmbgd_device_state")
    metrics("health", **HEALTH | {"unwritten": {"file": 7}})
    assert series(metrics, "rmbgd_unwritten_lines") == {'{place="file"} 7.0'}
    metrics("health", **HEALTH)
    assert series(metrics, "rmbgd_unwritten_lines") == set()


def test_what_waits_on_the_queue_of_a_fleet_is_told_by_root(metrics: Metrics):
    waits = {"shop": {"mode": "lease", "waiting": {"hot": 7, "bulk": 0}}, "web": {"mode": "lease", "waiting": {}}}
    metrics.health(HEALTH | {"folders": waits})
    found = {'{folder="shop",queue="bulk"} 0.0', '{folder="shop",queue="hot"} 7.0'}
    assert series(metrics, "rmbgd_waiting_messages") == found
    metrics("health", **HEALTH)  # the event does not have it
    assert series(metrics, "rmbgd_waiting_messages") == found
    metrics.health(HEALTH | {"folders": {"shop": {"mode": "lease", "waiting": {}}, "drop": {"mode": "events"}}})
    assert series(metrics, "rmbgd_waiting_messages") == set()


def test_what_the_heartbeat_no_longer_says_is_not_shown(metrics: Metrics):
    """A stale temperature would look healthy; two GPUs in use are a series each, and none for both together."""
    metrics("health", **HEALTH)
    metrics("health", **HEALTH | {"device": None, "engine": {"devices": {"cpu": {}}}})
    assert series(metrics, "rmbgd_device") == set()
    gone = {"devices": {"cuda:0": {"state": "lost", "temperature": None}}}
    metrics("health", **HEALTH | {"device": "cuda:0, cuda:1", "engine": gone})
    assert series(metrics, "rmbgd_device_temperature_celsius") == set()
    assert series(metrics, "rmbgd_device_state") == {'{device="cuda:0",state="lost"} 1.0'}
    assert series(metrics, "rmbgd_device_in_use") == {'{device="cuda:0"} 1.0', '{device="cuda:1"} 1.0'}


def test_every_event_passes_known_or_not():
    """Counting must not stop what the log would take."""
    passed: list[tuple[str, dict[str, object]]] = []
    metrics = Metrics(lambda event, /, **keys: passed.append((event, keys)), CONFIG)
    events = [("image.done", DONE), ("health", HEALTH), ("invented.event", {"anything": 1})]
    for event, keys in events:
        metrics(event, **keys)
    assert passed == events


def test_the_file_is_replaced_whole_and_readable_by_all(metrics: Metrics, tmp_path: Path):
    path = tmp_path / "rmbgd.prom"
    path.write_text("old")
    with ExitStack() as stack, path.open() as reader:
        stack.callback(os.umask, os.umask(0o077))
        metrics.write(path)
        assert reader.read() == "old"
    assert path.read_text() == text(metrics)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["rmbgd.prom"]


def test_a_disk_that_refuses_costs_the_file_and_nothing_else(metrics: Metrics, tmp_path: Path):
    metrics.write(tmp_path / "missing" / "rmbgd.prom")
    assert os.listdir(tmp_path) == []
