"""The metrics file: names, labels, and how it is replaced."""

from __future__ import annotations

import math
import os
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rmbgd.events import EVENTS
from rmbgd.telemetry.metrics import LABELS, NOT_COUNTED, Metrics

DONE = {
    "folder": "shop", "device": "cuda:0", "model": "birefnet", "verdict": "ok", "bytes_in": 1000, "bytes_out": 500,
    "milliseconds": {"decode": 12.0, "total": 300.0},
}  # fmt: skip
HEALTH = {
    "device": "cuda:0", "waiting": 3, "rss_bytes": 1 << 20, "paused": None,
    "engine": {"devices": {"cuda:0": {"state": "ok", "temperature": 61.0}, "cpu": {"state": "standby"}}},
}  # fmt: skip


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda event, /, **keys: None)


def text(metrics: Metrics) -> str:
    with tempfile.NamedTemporaryFile() as file:
        metrics.write(Path(file.name))
        return Path(file.name).read_text()


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series, read back by prometheus_client's own parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text(metrics))
        for sample in family.samples
    }


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def test_every_event_has_a_counter_of_its_name(metrics: Metrics):
    found = text(metrics)
    wanted = [f"# TYPE rmbgd_{name.replace('.', '_')}_total counter" for name in EVENTS if name not in NOT_COUNTED]
    assert len(wanted) > 30
    assert [line for line in wanted if line not in found] == []


def test_labels_are_keys_that_their_event_must_have():
    """A label that may be absent, or that outsiders choose, would split or multiply series."""
    for event, labels in LABELS.items():
        required = {key for key in EVENTS[event].keys if not key.endswith("?")}
        assert set(labels) <= required, event
        assert not {"path", "output", "detail", "job", "error", "line"} & set(labels)


def test_an_image_is_counted(metrics: Metrics):
    metrics("image.done", **DONE)
    found = samples(metrics)
    of = labelled(folder="shop", device="cuda:0", model="birefnet", verdict="ok")
    assert found["rmbgd_image_done_total", of] == 1
    assert found["rmbgd_image_bytes_total", labelled(direction="in")] == 1000
    assert found["rmbgd_image_seconds_sum", labelled(stage="total")] == pytest.approx(0.3)
    assert found["rmbgd_image_seconds_bucket", labelled(stage="decode", le="0.01")] == 0
    assert found["rmbgd_image_seconds_bucket", labelled(stage="decode", le="0.025")] == 1
    assert not [name for name, _ in found if name.endswith("_created")]


def test_gauges_follow_the_heartbeat(metrics: Metrics):
    assert math.isnan(samples(metrics)["rmbgd_waiting_files", frozenset()])
    metrics("health", **HEALTH)
    found = samples(metrics)
    assert found["rmbgd_waiting_files", frozenset()] == 3
    assert found["rmbgd_resident_memory_bytes", frozenset()] == 1 << 20
    assert found["rmbgd_paused", frozenset()] == 0
    assert found["rmbgd_device_temperature_celsius", labelled(device="cuda:0")] == 61.0
    assert found["rmbgd_device_state", labelled(device="cpu", state="standby")] == 1


def test_what_the_heartbeat_no_longer_says_is_not_shown(metrics: Metrics):
    """A stale temperature would look healthy; two GPUs in use are a series each, and none for both together."""
    metrics("health", **HEALTH)
    metrics("health", **HEALTH | {"device": None, "engine": {"devices": {"cpu": {}}}})
    assert not {"rmbgd_device_in_use", "rmbgd_device_state"} & {name for name, _ in samples(metrics)}
    gone = {"devices": {"cuda:0": {"state": "lost", "temperature": None}}}
    metrics("health", **HEALTH | {"device": "cuda:0, cuda:1", "engine": gone})
    found = samples(metrics)
    assert "rmbgd_device_temperature_celsius" not in {name for name, _ in found}
    assert {labelled(device="cuda:0", state="lost")} == {of for name, of in found if name == "rmbgd_device_state"}
    in_use = {of: value for (name, of), value in found.items() if name == "rmbgd_device_in_use"}
    assert in_use == {labelled(device="cuda:0"): 1, labelled(device="cuda:1"): 1}


def test_every_event_passes_known_or_not():
    """Counting must not stop what the log would take."""
    passed: list[tuple[str, dict[str, object]]] = []
    metrics = Metrics(lambda event, /, **keys: passed.append((event, keys)))
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
