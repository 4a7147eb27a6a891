"""The broker of the tests: what it stores outlives its death, and is gone once its store is."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import pytest

from rmbgd.config.load import SourceSettings
from rmbgd.fleet.broker import Broker as Connection
from rmbgd.fleet.pulls import BrokerFault
from tests.support.broker import PATIENCE, Broker
from tests.support.standstill import stand_still

pytestmark = pytest.mark.integration


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def stored(broker: Broker, *, add: bytes = b"") -> int:
    """Messages in a stream, which is made where it is not there."""

    async def ask() -> int:
        client = await nats.connect(broker.url, allow_reconnect=False)
        try:
            stream = client.jetstream()
            await stream.add_stream(name="S", subjects=["s"])
            if add:
                await stream.publish("s", add)
            return (await stream.stream_info("S")).state.messages
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(ask(), 20))


def test_messages_outlive_a_killed_broker_and_not_its_store(broker: Broker) -> None:
    assert stored(broker, add=b"one") == 1
    assert 1 << 20 < broker.rss() < 1 << 30
    broker.kill()
    broker.start()
    assert stored(broker) == 1
    broker.stop()
    broker.wipe()
    broker.start()
    assert stored(broker) == 0


def test_a_connection_that_ends_without_a_word_is_made_again(broker: Broker) -> None:
    """nats-py calls nobody where a reset meets what it has not sent yet."""
    connection = Connection(SourceSettings(servers=[broker.url]), "test", lambda _: None)
    connection.start()
    try:
        connection.wait_until_connected(PATIENCE)
        client = connection.client
        client._closed_cb = client._disconnected_cb = None
        broker.kill()
        broker.start()
        deadline = time.monotonic() + PATIENCE
        while connection.connections < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        connection.close()


def test_a_connection_outlives_answers_that_come_too_late(broker: Broker) -> None:
    connection = Connection(SourceSettings(servers=[broker.url]), "test", lambda _: None)
    connection.start()
    try:
        connection.wait_until_connected(PATIENCE)
        stand_still(broker.pid)
        try:
            with pytest.raises(BrokerFault, match="see that nats-server runs there"):
                connection.answer([("nobody", b"")])
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        for _ in range(2):
            connection.answer([("nobody", b"")])
            assert connection.ask(lambda client: client.jetstream().account_info()).memory == 0
        assert connection.connections == 1
    finally:
        connection.close()


def test_a_connection_that_is_lost_while_it_is_waited_for_is_the_brokers_fault(broker: Broker) -> None:
    connection = Connection(SourceSettings(servers=[broker.url]), "test", lambda _: None)
    connection.start()
    try:
        connection.wait_until_connected(PATIENCE)
        stand_still(broker.pid)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(connection.answer, [("nobody", b"")])
            while not connection._flushes:
                time.sleep(0.01)
            broker.kill()
            with pytest.raises(BrokerFault):
                waiting.result(PATIENCE)
    finally:
        connection.close()
