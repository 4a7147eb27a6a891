"""What the broker keeps for us: streams, consumers and key-value buckets: made, compared, asked how full they are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from rmbgd.fleet.broker import ANSWER_TIMEOUT, Broker
from rmbgd.fleet.message import DEAD, DEAD_SUBJECT, HOT, QUEUES, consumer, token
from rmbgd.fleet.pulls import BrokerFault

MESSAGES_MAXIMUM = 1_000_000  # of a stream: 265 MB at 265 bytes each
DUPLICATE_WINDOW = 300.0  # s in which an announcement that comes again is dropped; the broker remembers each in memory
ACKS_PENDING = 20_000  # leases of one root, of all workers together

ATTEMPTS, WORKERS, CONTROL = "rmbgd_attempts", "rmbgd_workers", "rmbgd_control"
BUCKETS = {ATTEMPTS: 7 * 86_400.0, WORKERS: 60.0, CONTROL: 0.0}
"""KeyValues -> seconds that a key is kept, 0: for ever."""


def stream_configurations() -> Iterator[StreamConfig]:
    for name, subject in QUEUES.items():
        yield StreamConfig(
            name=name,
            subjects=[f"{subject}.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,  # a full queue refuses: who announces waits
            max_msgs=MESSAGES_MAXIMUM,
            max_msgs_per_subject=-1,
            max_age=0,
            duplicate_window=DUPLICATE_WINDOW,
        )
    yield StreamConfig(
        name=DEAD,
        subjects=[f"{DEAD_SUBJECT}.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs=MESSAGES_MAXIMUM,
        max_msgs_per_subject=-1,
        max_age=0,
        duplicate_window=120.0,  # the server's default, which it reports
    )


def consumer_configuration(stream: str, root: str, lease: float) -> ConsumerConfig:
    """By which all workers share the messages of a root. Never given up: deliveries are not attempts."""
    return ConsumerConfig(
        durable_name=consumer(root),
        filter_subject=f"{QUEUES[stream]}.{token(root)}",
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=lease,
        max_deliver=-1,
        max_ack_pending=ACKS_PENDING,
    )


_NEEDED = ("subjects", "retention", "discard", "max_age", "max_msgs_per_subject")
"""Without these names would get lost; how much a queue holds is the administrator's choice."""
_COMPARED = (*_NEEDED, "storage", "max_msgs", "duplicate_window")
_COMPARED_OF_CONSUMERS = ("filter_subject", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending")


def set_up(broker: Broker, roots: Iterable[str], lease: float, *, change: bool) -> list[str]:
    """Make what is missing, and with `change` also what is otherwise than we make it, as far as the server allows it.

    Answers what was done, and what differs, a line each. Raises BrokerFault.
    """
    roots = list(roots)

    async def work(client: Client) -> list[str]:
        context, said = client.jetstream(), []
        for stream in stream_configurations():
            differences = await _stream(context, stream, _COMPARED)
            if differences is None:
                await context.add_stream(stream)
                said.append(f"made the stream {stream.name}")
            elif differences and change:
                await context.update_stream(stream)
            said += _changed(differences, change=change)
        for bucket, seconds in BUCKETS.items():
            try:
                await context.key_value(bucket)
            except (nats.js.errors.NotFoundError, nats.js.errors.BucketNotFoundError):
                await context.create_key_value(KeyValueConfig(bucket=bucket, history=1, ttl=seconds or None))
                said.append(f"made the bucket {bucket}")
        for name, wanted in _consumers(roots, lease):
            differences = await _consumer(context, name, wanted)
            if differences is None:
                await context.add_consumer(name, wanted)
                said.append(f"made the consumer {wanted.durable_name} on {name}")
            elif differences and change:
                await context.add_consumer(name, wanted)
            said += _changed(differences, change=change)
        return said

    return broker.ask(work, 60.0)


def unfit(broker: Broker, roots: Iterable[str], lease: float) -> list[str]:
    """How streams and consumers that are there differ from those we make, so that leases would not be what workers
    take them for. Raises BrokerFault: "missing" where one is not there."""
    roots = list(roots)

    async def look(client: Client) -> list[str]:
        context, said = client.jetstream(), []
        for stream in stream_configurations():
            differences = await _stream(context, stream, _NEEDED if stream.name in QUEUES else ())
            said += _there(differences, f"stream {stream.name}")
        for name, wanted in _consumers(roots, lease):
            said += _there(await _consumer(context, name, wanted), f"consumer {wanted.durable_name} on {name}")
        for bucket in BUCKETS:
            try:
                await context.key_value(bucket)
            except (nats.js.errors.NotFoundError, nats.js.errors.BucketNotFoundError):
                _there(None, f"bucket {bucket}")
        return said

    return broker.ask(look, 30.0)


def clock_ahead(broker: Broker) -> float:
    """Seconds that the clock of this host is ahead of the broker's. Raises BrokerFault."""

    async def ask(client: Client) -> float:
        answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{HOT}", timeout=ANSWER_TIMEOUT)).data)
        try:
            return time.time() - datetime.fromisoformat(answer["ts"]).timestamp()
        except (KeyError, TypeError, ValueError):  # it does not say
            return 0.0

    return broker.ask(ask, 2 * ANSWER_TIMEOUT)


def _there(differences: list[str] | None, what: str) -> list[str]:
    if differences is None:
        raise BrokerFault("missing", f"no {what}; make it with `rmbgd fleet setup`")
    return differences


def _consumers(roots: Iterable[str], lease: float) -> Iterator[tuple[str, ConsumerConfig]]:
    return ((stream, consumer_configuration(stream, root, lease)) for stream in QUEUES for root in roots)


async def _stream(context: JetStreamContext, wanted: StreamConfig, compared: Iterable[str]) -> list[str] | None:
    """How the one that is there differs; None: there is none."""
    try:
        found = (await context.stream_info(str(wanted.name))).config
    except nats.js.errors.NotFoundError:
        return None
    return [f"stream {wanted.name}: {each}" for each in _differences(wanted, found, compared)]


async def _consumer(context: JetStreamContext, stream: str, wanted: ConsumerConfig) -> list[str] | None:
    name = str(wanted.durable_name)
    try:
        found = (await context.consumer_info(stream, name)).config
    except nats.js.errors.NotFoundError:
        return None
    return [f"consumer {name} on {stream}: {each}" for each in _differences(wanted, found, _COMPARED_OF_CONSUMERS)]


def _changed(differences: list[str] | None, *, change: bool) -> list[str]:
    return [f"{each}{', changed' if change else ''}" for each in differences or ()]


def _differences(wanted: object, found: object, compared: Iterable[str]) -> list[str]:
    pairs = ((name, getattr(wanted, name), getattr(found, name)) for name in compared)
    return [f"{name} is {_said(there)}, and should be {_said(here)}" for name, here, there in pairs if here != there]


def _said(value: object) -> object:
    return getattr(value, "value", value)


@dataclass(frozen=True, slots=True)
class QueueState:
    """Of one root on one queue: messages that wait, that are leased, and leased not for the first time.

    waiting_pulls  requests of workers that wait for messages
    """

    stream: str
    root: str
    waiting: int
    leased: int
    redelivered: int
    waiting_pulls: int


def queue_states(broker: Broker, roots: Iterable[str]) -> list[QueueState]:
    """Of each root on each queue. Raises BrokerFault: "missing" where a consumer is."""
    roots = list(roots)

    async def look(client: Client) -> list[QueueState]:
        context, states = client.jetstream(), []
        for stream in QUEUES:
            for root in roots:
                try:
                    info = await context.consumer_info(stream, consumer(root))
                except nats.js.errors.NotFoundError as error:
                    text = f"{stream} has no consumer for root '{root}'; make it with `rmbgd fleet setup`"
                    raise BrokerFault("missing", text) from error
                counts = (info.num_pending, info.num_ack_pending, info.num_redelivered, info.num_waiting)
                states.append(QueueState(stream, root, *(count or 0 for count in counts)))
        return states

    return broker.ask(look, 30.0)


class KeyValues:
    """A key-value bucket. Keys are words of letters, digits, '-', '_', '=' and '.'. Raises BrokerFault."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker, self._name = broker, name

    def get(self, key: str) -> bytes | None:
        return self._broker.call(self._broker.get(self._name, key), ANSWER_TIMEOUT)

    def put(self, key: str, value: bytes) -> None:
        self._broker.call(self._broker.put(self._name, key, value), ANSWER_TIMEOUT)

    def delete(self, key: str) -> None:
        self._broker.call(self._broker.delete(self._name, key), ANSWER_TIMEOUT)

    def all(self) -> Mapping[str, bytes]:
        async def every(client: Client) -> dict[str, bytes]:
            bucket = await client.jetstream().key_value(self._name)
            try:
                keys = await bucket.keys()
            except nats.js.errors.NoKeysError:
                return {}
            found = {}
            for key in keys:
                try:
                    found[key] = (await bucket.get(key)).value or b""
                except (nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
                    continue
            return found

        return self._broker.ask(every, 60.0)
