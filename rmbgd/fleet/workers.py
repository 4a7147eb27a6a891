"""What each worker of a fleet reports to the broker, for `rmbgd fleet status`; and orders to drain a host."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import rmbgd
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import token
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.streams import CONTROL, WORKERS, KeyValues

REPORT_EVERY = 10.0  # s; a report is forgotten after six of them


def worker_name(host: str = "", pid: int | None = None) -> str:
    """Of this process, unique in the fleet, as a key: HOST.PID"""
    return f"{token(host or socket.gethostname())}.{os.getpid() if pid is None else pid}"


def drain_key(host: str) -> str:
    return f"drain.{token(host)}"


def order_of(key: str, value: bytes) -> dict[str, Any] | None:
    """What the administrator ordered; None for anything else that stands there.

    The broker sends its answers to whatever subject a question names, without asking whether the asker may publish to
    that: so a feeder or worker can have it store an answer under any key, but not one of this shape.
    """
    with suppress(ValueError):
        order = json.loads(value)
        if isinstance(order, dict) and isinstance(host := order.get("host"), str) and drain_key(host) == key:
            return order
    return None


class WorkerReports:
    """Reports this worker every few seconds, and looks whether its host is to be drained. Its thread is the broker's.

    describe  what is to be said of it: state, device, images a second, leases
    drain     called with each order: whether its host is drained
    """

    def __init__(
        self, broker: Broker, name: str, describe: Callable[[], Mapping[str, object]], drain: Callable[[bool], None]
    ) -> None:
        self._broker, self._name, self._describe, self._drain = broker, name, describe, drain
        self._began = time.time()

    async def run(self) -> None:
        while True:
            await self._broker.connected()
            with suppress(BrokerFault):
                await self._broker.put(WORKERS, self._name, json.dumps(self._report()).encode())
                key = drain_key(socket.gethostname())
                found = await self._broker.get(CONTROL, key)
                if found is None or order_of(key, found):  # else it stays as it was
                    self._drain(found is not None)
            await asyncio.sleep(REPORT_EVERY)

    async def withdraw(self) -> None:
        """It ends in good order."""
        with suppress(BrokerFault):
            await self._broker.delete(WORKERS, self._name)

    def _report(self) -> dict[str, object]:
        known = {"host": socket.gethostname(), "pid": os.getpid(), "version": rmbgd.__version__, "since": self._began}
        return known | {"time": time.time()} | dict(self._describe())


def read_workers(broker: Broker) -> list[dict[str, Any]]:
    """Reports of all workers, by host and process. Raises BrokerFault."""
    found = []
    for value in KeyValues(broker, WORKERS).all().values():
        with suppress(ValueError):
            report = json.loads(value)
            if isinstance(report, dict) and "host" in report:  # else it is a lock (unit_locks.py)
                found.append(report)
    return sorted(found, key=lambda report: (str(report.get("host")), str(report.get("pid"))))


def drained_hosts(broker: Broker) -> dict[str, dict[str, Any]]:
    """Host, as a key has it -> who ordered it, and when. Raises BrokerFault."""
    orders = {}
    for key, value in KeyValues(broker, CONTROL).all().items():
        if (order := order_of(key, value)) is not None:
            orders[key.removeprefix("drain.")] = order
    return orders


def order_drain(broker: Broker, host: str, person: str) -> None:
    """Its workers lease nothing more, until `end_drain`. Raises BrokerFault."""
    story = {"host": host, "person": person, "time": time.time()}
    KeyValues(broker, CONTROL).put(drain_key(host), json.dumps(story).encode())


def end_drain(broker: Broker, host: str) -> None:
    KeyValues(broker, CONTROL).delete(drain_key(host))
