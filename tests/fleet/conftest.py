"""A broker that is set up; sockets that the NATS client leaves to the collector end with their test."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.config.load import SourceSettings
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.streams import set_up
from tests.support.broker import Broker as BrokerUnderTest


@pytest.fixture(autouse=True)
def _sockets_end_with_their_test() -> Iterator[None]:
    yield
    with warnings.catch_warnings():  # after a login that fails the library closes no socket
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def fitted(tmp_path: Path) -> Iterator[Broker]:
    """A connection to a broker that has all that the roots "shop" and "away" need."""
    with BrokerUnderTest(tmp_path) as server:
        broker = Broker(SourceSettings(servers=[server.url]), "test", lambda _: None)
        broker.start()
        try:
            broker.wait_until_connected(20)
            set_up(broker, ["shop", "away"], 60.0, change=False)
            yield broker
        finally:
            broker.close()
