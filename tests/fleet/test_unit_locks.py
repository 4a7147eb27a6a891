"""Locks on films and sequences: one message has them, what dies loses them, with the rights of a worker's key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rmbgd.config.load import SourceSettings
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import HOT, Announcement
from rmbgd.fleet.pulls import Delivery
from rmbgd.fleet.streams import WORKERS, KeyValues, set_up
from rmbgd.fleet.unit_locks import UnitLock, UnitLocks
from rmbgd.fleet.workers import read_workers
from tests.fleet.test_keys import Site

pytestmark = pytest.mark.integration

FILM = Announcement("shop", "a.mp4", "1-1", "default")


def delivery(sequence: int, deliveries: int = 1) -> Delivery:
    return Delivery(HOT, "workers-shop", FILM.encode(), "", sequence, deliveries, 0)


class Worker:
    def __init__(self, broker: Broker, name: str) -> None:
        self.locks = UnitLocks(broker, name)
        self.broker = broker

    def keep(self, lock: UnitLock) -> None:
        self.broker.call(self.locks._keep(lock), 20)


def test_one_message_has_it_until_it_is_given_back(fitted: Broker) -> None:
    first, second = Worker(fitted, "a"), Worker(fitted, "b")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    assert second.locks.take(FILM, delivery(2)) is None
    assert second.locks.take(Announcement("shop", "b.mp4", "1-1", "default"), delivery(3)) is not None
    assert second.locks.take(Announcement("away", "a.mp4", "1-1", "default"), delivery(3)) is not None
    newer = Announcement("shop", "a.mp4", "2-2", "default")
    assert second.locks.take(newer, delivery(4)) is None
    first.keep(lock)
    assert not lock.is_lost
    assert second.locks.take(FILM, delivery(2)) is None
    first.locks.give(lock)
    assert second.locks.take(FILM, delivery(2)) is not None


def test_who_gets_the_same_message_again_takes_it_over(fitted: Broker) -> None:
    first, second = Worker(fitted, "a"), Worker(fitted, "b")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    assert second.locks.take(FILM, delivery(1, deliveries=2)) is not None
    first.keep(lock)
    assert lock.is_lost
    first.locks.give(lock)  # it has none any more, and takes none from the other
    assert second.locks.take(FILM, delivery(9)) is None


def test_a_lock_that_the_broker_forgot_is_lost_where_another_took_it(fitted: Broker) -> None:
    first, second = Worker(fitted, "a"), Worker(fitted, "b")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    KeyValues(fitted, WORKERS).delete(lock.key)  # as it does a minute after it was written last
    first.keep(lock)
    assert not lock.is_lost
    assert second.locks.take(FILM, delivery(2)) is None
    KeyValues(fitted, WORKERS).delete(lock.key)
    assert second.locks.take(FILM, delivery(2)) is not None
    first.keep(lock)
    assert lock.is_lost


def test_an_answer_that_was_lost_loses_no_lock(fitted: Broker) -> None:
    first = Worker(fitted, "a")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    KeyValues(fitted, WORKERS).put(lock.key, lock.value)  # as it wrote it, without hearing of it
    first.keep(lock)
    first.keep(lock)
    assert not lock.is_lost


def test_who_lost_it_gives_back_nothing_of_others(fitted: Broker) -> None:
    first, second = Worker(fitted, "a"), Worker(fitted, "b")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    assert second.locks.take(FILM, delivery(1, deliveries=2)) is not None
    first.locks.give(lock)  # before it looked
    assert Worker(fitted, "c").locks.take(FILM, delivery(3)) is None


def test_what_stands_there_that_is_no_lock_keeps_others_out(fitted: Broker) -> None:
    first = Worker(fitted, "a")
    lock = first.locks.take(FILM, delivery(1))
    assert lock is not None
    for value in (b"", b"[]", b"\xff"):
        KeyValues(fitted, WORKERS).put(lock.key, value)
        assert Worker(fitted, "b").locks.take(FILM, delivery(1)) is None


def test_locks_are_no_workers(fitted: Broker) -> None:
    assert Worker(fitted, "a").locks.take(FILM, delivery(1)) is not None
    assert read_workers(fitted) == []


def test_many_at_once_are_one(fitted: Broker) -> None:
    async def take() -> list[int | None]:
        locks = [UnitLocks(fitted, str(number)) for number in range(20)]
        return await asyncio.gather(*(each._take("unit.x", b"{}", f"{HOT}:{n}") for n, each in enumerate(locks)))

    found = fitted.call(take(), 20)
    assert sum(each is not None for each in found) == 1


def test_a_worker_may_lock_with_its_key(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def connection(role: str) -> Broker:
        settings = SourceSettings(servers=[site.broker.url], credentials=site.directory / f"{role}.nk")
        broker = Broker(settings, role, lambda _: None)
        broker.start()
        broker.wait_until_connected(20)
        return broker

    with site.broker:
        admin, worker = connection("admin"), connection("worker")
        try:
            set_up(admin, ["shop"], 60.0, change=False)
            mine = Worker(worker, "a")
            lock = mine.locks.take(FILM, delivery(1))
            assert lock is not None
            assert mine.locks.take(FILM, delivery(2)) is None
            mine.keep(lock)
            assert not lock.is_lost
            mine.locks.give(lock)
            assert mine.locks.take(FILM, delivery(2)) is not None
        finally:
            worker.close()
            admin.close()
