"""The broker of the tests: what it stores outlives its death, and is gone once its store is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from tests.support.broker import Broker

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
