"""Questions for messages, and what they bring: none is asked twice, and what nobody took goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmbgd.config.load import SourceSettings
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import BULK, HOT, QUEUES, Announcement, consumer
from rmbgd.fleet.pulls import ACK, BrokerFault, put_back
from rmbgd.fleet.streams import QueueState, queue_states, set_up
from tests.support.broker import Broker as BrokerUnderTest

pytestmark = pytest.mark.integration
ROOT = "shop"
PLACES = [(stream, consumer(ROOT)) for stream in QUEUES]
PATIENCE = 20.0  # s


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with BrokerUnderTest(tmp_path) as server:
        connection = Broker(SourceSettings(servers=[server.url]), "test", lambda _: None)
        connection.start()
        try:
            connection.wait_until_connected(PATIENCE)
            yield connection
        finally:
            connection.close()


@pytest.fixture
def ready(broker: Broker) -> Broker:
    set_up(broker, [ROOT], 60.0, change=False)
    return broker


def put(broker: Broker, key: str, stream: str = HOT) -> None:
    announced = Announcement(ROOT, key, "1-1", "default")
    assert broker.publish([(announced.subject(stream), announced.encode(), announced.identity)]) == [None]


def until(broker: Broker, condition: Callable[[QueueState], object], stream: str = HOT) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(state.stream == stream and condition(state) for state in queue_states(broker, [ROOT])):
        assert time.monotonic() < deadline, queue_states(broker, [ROOT])
        time.sleep(0.02)


def test_new_images_come_before_old_ones(ready: Broker) -> None:
    for number in range(3):
        put(ready, f"old-{number}", BULK)
        put(ready, f"new-{number}")
    found = [delivery for _ in range(3) for delivery in ready.lease(PLACES, 2, 0.0)]
    assert [delivery.stream for delivery in found] == [HOT, HOT, HOT, BULK, BULK, BULK]
    assert {delivery.deliveries for delivery in found} == {1}
    assert ready.lease(PLACES, 2, 0.0) == []


def test_a_question_that_was_answered_is_asked_again(ready: Broker) -> None:
    """Or an idle worker looks only now and then, and others get everything."""
    with ThreadPoolExecutor(1) as pool:
        for number in range(3):
            asked = pool.submit(ready.lease, PLACES, 4, PATIENCE)
            until(ready, lambda state: state.waiting_pulls)
            put(ready, f"{number}")
            (delivery,) = asked.result(PATIENCE)
            ready.answer([(delivery.reply, ACK)])
    until(ready, lambda state: state.leased == 0)


def test_what_arrived_and_nobody_took_is_told_at_the_end(ready: Broker) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ready.lease, PLACES, 4, PATIENCE)
        until(ready, lambda state: state.waiting_pulls, BULK)
        put(ready, "taken")
        (taken,) = asked.result(PATIENCE)
    put(ready, "not taken", BULK)
    until(ready, lambda state: state.leased, BULK)
    (left,) = ready.end_leasing()
    assert b"not taken" in left.data
    assert ready.end_leasing() == []
    ready.answer([(taken.reply, ACK), (left.reply, put_back())])
    (again,) = ready.lease(PLACES, 4, PATIENCE)
    assert (again.data, again.deliveries) == (left.data, 2)


def test_what_is_put_back_comes_again_over_any_connection(ready: Broker) -> None:
    put(ready, "a")
    (delivery,) = ready.lease(PLACES, 1, PATIENCE)
    ready.answer([(delivery.reply, put_back(0.2))])
    (again,) = ready.lease(PLACES, 1, PATIENCE)
    assert (again.deliveries, again.name) == (2, f"{HOT}:1/2")


def test_a_consumer_that_is_missing_is_named(broker: Broker) -> None:
    with pytest.raises(BrokerFault, match=f"{consumer(ROOT)}.*rmbgd fleet setup") as missing:
        broker.lease(PLACES, 1, 0.0)
    assert missing.value.kind == "missing"


def test_nobody_answers_for_a_stream_that_is_missing(broker: Broker) -> None:
    announced = Announcement(ROOT, "a", "1-1", "default")
    (fault,) = broker.publish([(announced.subject(HOT), announced.encode(), announced.identity)])
    assert fault is not None
    assert fault.kind == "missing"
