"""Locks on films and sequences in a fleet: two messages may name the same one, as a sweep announces it again.

A key in a bucket of the broker, which forgets it a minute after it was written last. It names the message that the
worker has leased: who gets the same message again may take it over, as its first lease has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import dataclass

from rmbgd.fleet.broker import ANSWER_TIMEOUT, Broker
from rmbgd.fleet.message import Announcement
from rmbgd.fleet.pulls import BrokerFault, Delivery
from rmbgd.fleet.streams import WORKERS
from rmbgd.fleet.workers import REPORT_EVERY


@dataclass(slots=True)
class UnitLock:
    """One that was taken; `revision` and `is_lost`, whether somebody else has it by now, are the loop's to set."""

    key: str
    value: bytes
    revision: int
    is_lost: bool = False


class UnitLocks:
    """`run` is the loop's, all others another thread's."""

    def __init__(self, broker: Broker, worker: str) -> None:
        self._broker, self._worker = broker, worker
        self._mutex = threading.Lock()
        self._held: dict[str, UnitLock] = {}  # by key; guarded by _mutex

    def take(self, announced: Announcement, delivery: Delivery) -> UnitLock | None:
        """None: another message of it is worked on. Raises BrokerFault."""
        told = json.dumps([announced.root, announced.key])
        key = f"unit.{hashlib.sha256(told.encode()).hexdigest()[:32]}"
        message = delivery.name.partition("/")[0]
        value = json.dumps({"message": message, "worker": self._worker}).encode()
        revision = self._broker.call(self._take(key, value, message), 4 * ANSWER_TIMEOUT)
        if revision is None:
            return None
        lock = UnitLock(key, value, revision)
        with self._mutex:
            self._held[key] = lock
        return lock

    def give(self, lock: UnitLock) -> None:
        """Where the broker cannot be reached, it forgets it by itself."""
        with self._mutex:
            is_ours = self._held.get(lock.key) is lock
            if is_ours:
                del self._held[lock.key]
        if is_ours:
            with suppress(BrokerFault):
                self._broker.call(self._broker.delete_revision(WORKERS, lock.key, lock.revision), ANSWER_TIMEOUT)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            with self._mutex:
                held = list(self._held.values())
            for lock in held:
                with suppress(BrokerFault):  # it may still be there with the next connection
                    await self._keep(lock)

    async def _keep(self, lock: UnitLock) -> None:
        revision = await self._broker.replace(WORKERS, lock.key, lock.value, lock.revision)
        if revision is None:  # an answer may have been lost; or the broker was away for so long that it forgot the key
            found = await self._broker.read(WORKERS, lock.key)
            if found is None:
                revision = await self._broker.put_first(WORKERS, lock.key, lock.value)
            elif found[0] == lock.value:
                revision = found[1]
        with self._mutex:
            if self._held.get(lock.key) is not lock:
                return
            if revision is not None:
                lock.revision = revision
                return
            del self._held[lock.key]
        lock.is_lost = True

    async def _take(self, key: str, value: bytes, message: str) -> int | None:
        if (revision := await self._broker.put_first(WORKERS, key, value)) is not None:
            return revision
        if (found := await self._broker.read(WORKERS, key)) is None:
            return await self._broker.put_first(WORKERS, key, value)
        with suppress(ValueError, AttributeError):
            if json.loads(found[0]).get("message") == message:
                return await self._broker.replace(WORKERS, key, value, found[1])
        return None
