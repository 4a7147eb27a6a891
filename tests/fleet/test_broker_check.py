"""A broker that could lose what it confirmed is found, with what to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rmbgd.fleet.broker_check import check_broker, judge
from tests.support.broker import JETSTREAM, Broker

WELL: tuple[dict[str, Any], dict[str, Any]] = (
    {"version": "2.15.1", "host": "127.0.0.1", "port": 4222, "http_host": "127.0.0.1", "http_port": 8222,
     "auth_required": True},
    {"storage": 0, "config": {"sync_always": True, "max_storage": 1000, "store_dir": "/s"}},
)  # fmt: skip


def errors(broker: Broker) -> list[str]:
    return [str(finding) for finding in check_broker(broker.monitor) if finding.fatal]


@pytest.mark.integration
def test_sync_always_is_asked_of_the_running_broker(tmp_path: Path) -> None:
    with Broker(tmp_path / "a") as broker:
        assert errors(broker) == []
    with Broker(tmp_path / "b", JETSTREAM.replace("sync_interval: always, ", "")) as broker:
        [found] = errors(broker)
        assert "sync_interval is not `always`" in found
        assert broker.monitor in found
    with Broker(tmp_path / "c", "max_payload: 16KB") as broker:
        [found] = errors(broker)
        assert "JetStream is off" in found


@pytest.mark.integration
def test_a_broker_that_is_just_being_started_is_waited_for(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(check_broker, broker.monitor, 30.0)
        with broker:
            assert not [found for found in asked.result(60) if found.fatal]


def test_a_broker_that_does_not_answer_is_named() -> None:
    for url in ("http://127.0.0.1:1", "file:///etc/passwd"):
        [found] = check_broker(url)
        assert found.fatal
        assert f"{url}: the broker does not answer" in str(found)


@pytest.mark.parametrize(
    ("general", "jetstream", "said"),
    [
        ({}, {}, []),
        ({"version": "2.9.10"}, {}, ["error: h: nats-server 2.9.10 is too old"]),
        ({}, {"disabled": True}, ["error: h: JetStream is off"]),
        ({}, {"storage": 950}, ["warning: h: the store in /s holds 950 of at most 1,000 bytes"]),
        ({"host": "0.0.0.0"}, {}, ["warning: h: clients reach 0.0.0.0:4222 without TLS"]),
        ({"host": "0.0.0.0", "tls_required": True}, {}, []),
        ({"http_host": "10.0.0.1"}, {}, ["warning: h: the monitoring port 10.0.0.1:8222 has no login"]),
        ({"auth_required": False}, {}, ["warning: h: clients need no key"]),
    ],
)
def test_each_finding(general: dict[str, Any], jetstream: dict[str, Any], said: list[str]) -> None:
    found = [str(each) for each in judge("h", WELL[0] | general, WELL[1] | jetstream)]
    assert [text[: len(start)] for text, start in zip(found, said, strict=True)] == said
