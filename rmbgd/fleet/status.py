"""What an administrator sees of a fleet: workers, how much waits for each root and for how long, dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats.js.errors
from nats.aio.client import Client

from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import BULK, DEAD, HOT, QUEUES, token
from rmbgd.fleet.streams import queue_states
from rmbgd.fleet.workers import drained_hosts, read_workers

NAMES = {HOT: "new", BULK: "backfill"}


@dataclass(frozen=True, slots=True)
class QueueLag:
    """Of one root on one queue. lag: seconds since the oldest message that is there was announced; None: none is."""

    root: str
    queue: str
    waiting: int
    leased: int
    redelivered: int
    lag: float | None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """workers: their reports; dead: letters in the stream; drained: hosts."""

    workers: list[dict[str, Any]]
    queues: list[QueueLag]
    dead: int
    drained: list[str]


def look(broker: Broker, roots: Sequence[str]) -> FleetStatus:
    """Raises BrokerFault."""
    states = queue_states(broker, roots)

    async def oldest(client: Client) -> dict[tuple[str, str], float | None]:
        context, found = client.jetstream(), dict[tuple[str, str], float | None]()
        for stream, subject in QUEUES.items():
            for root in roots:
                found[stream, root] = None
                try:
                    message = await context.get_msg(stream, subject=f"{subject}.{token(root)}", seq=1, next=True)
                except nats.js.errors.NotFoundError:
                    continue
                if isinstance(message.time, datetime):
                    found[stream, root] = max(0.0, (datetime.now(UTC) - message.time).total_seconds())
        return found

    async def dead(client: Client) -> int:
        return int((await client.jetstream().stream_info(DEAD)).state.messages)

    ages = broker.ask(oldest, 30.0)
    queues = [
        QueueLag(
            each.root, NAMES[each.stream], each.waiting, each.leased, each.redelivered, ages[each.stream, each.root]
        )
        for each in states
    ]
    hosts = [str(order.get("host", key)) for key, order in drained_hosts(broker).items()]
    return FleetStatus(read_workers(broker), queues, broker.ask(dead), sorted(hosts))
