"""The connection to the broker (NATS JetStream), on an event loop in a thread of its own; methods for other threads.

It connects again by itself, for ever. What was leased over a connection that was lost may still be acknowledged over
the next one: the broker knows its leases by their subjects.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.kv import KeyValue

from rmbgd.clock import backoff
from rmbgd.config.load import SourceSettings
from rmbgd.errors import ConfigError, RmbgdError, explain
from rmbgd.fleet.keys import inbox_prefix

T = TypeVar("T")

OLDEST_SERVER = (2, 11)  # older ones lost streams in crashes (jepsen.io/analyses/nats-2.12.1), or know no TTL of keys
CONNECT_TIMEOUT = 5.0  # s
ANSWER_TIMEOUT = 10.0  # s for one question, which may wait for a disk
AT_ONCE = 64  # messages that are published before the first of them is answered
FULL = 10077  # error code of the server: the stream has as many messages as it may
RETRY_FIRST, RETRY_MAXIMUM = 0.25, 5.0  # s between two tries to connect


class BrokerFault(RmbgdError):
    """The broker cannot be reached, or refuses. Whatever was asked for is asked for again later.

    kind  "unreachable", "denied", "missing" (a stream or a consumer), "full", "unfit" (its version), "refused"
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind, self.detail = kind, detail
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A leased message. `reply` is the subject by which it is acknowledged, over whichever connection.

    sequence    of the message in its stream
    deliveries  how often it was delivered, this time included
    waiting     messages that wait behind it for the same consumer
    """

    stream: str
    consumer: str
    data: bytes
    reply: str
    sequence: int
    deliveries: int
    waiting: int

    @property
    def name(self) -> str:
        """In events."""
        return f"{self.stream}:{self.sequence}/{self.deliveries}"


ACK, IN_PROGRESS, TERMINATE = b"+ACK", b"+WPI", b"+TERM"


def put_back(delay: float = 0.0) -> bytes:
    """The answer to a delivery that is to be delivered again, so many seconds later."""
    return b"-NAK" + (json.dumps({"delay": int(delay * 1e9)}).encode() if delay else b"")


class Broker:
    """`start`, `close` and every method without `async` may be called from any thread but the loop's.

    on_change(error)  called on the loop, with None for each connection that stands, else with why there is none
    """

    def __init__(self, settings: SourceSettings, name: str, on_change: Callable[[BrokerFault | None], None]) -> None:
        self._settings, self._name, self._on_change = settings, name, on_change
        self._options = _proof(settings.credentials) | _encryption(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._client: Client | None = None  # the loop's, like all below
        self._fault = BrokerFault("unreachable", "not connected yet")
        self._denied = ""  # what the server refused last
        self._pulls: _Pulls | None = None
        self._buckets: dict[str, KeyValue] = {}  # of this connection
        self._connected = asyncio.Event()
        self.version = ""

    def start(self) -> None:
        self._thread.start()
        self.every(self._stay_connected)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """`last` is run before, if there is a connection."""
        if not self._thread.is_alive():
            return
        with suppress(BrokerFault):
            if last is not None and self._client is not None:
                self.call(last(), CONNECT_TIMEOUT)
        with suppress(BrokerFault):
            self.call(self._close(), ANSWER_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def every(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine of the loop's, until it ends or the connection is closed."""

        def begin() -> None:
            task = self._loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                self._broken = task.exception()

        self._loop.call_soon_threadsafe(begin)

    def check(self) -> None:
        """Raises what a coroutine of `every` was broken by: a bug."""
        if self._broken is not None:
            raise self._broken

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """What a coroutine of the loop's answers. Raises BrokerFault."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise BrokerFault("unreachable", f"no answer within {timeout:g} s {self._denied}".rstrip()) from None

    def wait_until_connected(self, timeout: float) -> None:
        """Raises BrokerFault."""

        try:
            self.call(self.connected(), timeout)
        except BrokerFault:
            raise self._fault from None

    async def connected(self) -> None:
        """The loop's: until there is a connection."""
        await self._connected.wait()

    # ------------------------------------------------------------------------------------------------ connection

    @property
    def client(self) -> Client:
        """The loop's. Raises BrokerFault."""
        if self._client is None:
            raise self._fault
        return self._client

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            closed = asyncio.Event()
            try:
                client = await self._connect(closed)
            except (TimeoutError, OSError, nats.errors.Error, BrokerFault) as error:
                failures += 1
                self._lost(error if isinstance(error, BrokerFault) else self._fault_of(error))
            else:
                failures = 0
                self._client, self._pulls, self._buckets = client, None, {}
                self._connected.set()
                self._on_change(None)
                await closed.wait()
                self._client = None
                self._connected.clear()
                self._lost(BrokerFault("unreachable", f"{self._servers}: the connection was lost"))
            await asyncio.sleep(backoff(max(1, failures), RETRY_FIRST, RETRY_MAXIMUM))

    async def _connect(self, closed: asyncio.Event) -> Client:
        async def on_closed() -> None:
            closed.set()

        failed: list[Exception] = []

        async def on_error(error: Exception) -> None:
            failed[:] = [error]
            if "permissions violation" in str(error).lower():
                self._denied = str(error)

        connection = nats.connect(
            servers=list(self._settings.servers),
            name=self._name,
            connect_timeout=int(CONNECT_TIMEOUT),
            allow_reconnect=False,
            max_reconnect_attempts=1,  # or it tries for minutes, and says nothing
            reconnect_time_wait=0,
            closed_cb=on_closed,
            disconnected_cb=on_closed,
            error_cb=on_error,
            ping_interval=10,
            max_outstanding_pings=2,
            **self._options,
        )
        try:
            client = await connection
        except nats.errors.NoServersError as error:
            cause = failed[0] if failed else error
            raise cause if isinstance(cause, (TimeoutError, OSError, nats.errors.Error)) else error from None
        version = client.connected_server_version
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        if (version.major, version.minor) < OLDEST_SERVER:
            await client.close()
            wanted = ".".join(map(str, OLDEST_SERVER))
            raise BrokerFault("unfit", f"{self._servers}: nats-server {self.version}; install {wanted} or newer there")
        return client

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._client is not None:
            with suppress(nats.errors.Error, asyncio.TimeoutError):
                await self._client.flush(timeout=int(CONNECT_TIMEOUT))
            await self._client.close()

    def _lost(self, fault: BrokerFault) -> None:
        self._fault = fault
        self._on_change(fault)

    @property
    def _servers(self) -> str:
        return ", ".join(self._settings.servers)

    def _fault_of(self, error: BaseException) -> BrokerFault:
        """In one line: what, where, what to do."""
        text = str(error) or type(error).__name__
        if "authorization" in text.lower() or isinstance(error, nats.errors.AuthorizationError):
            who = self._settings.credentials or "source.credentials, which is not set"
            return BrokerFault(
                "denied", f"{self._servers}: the broker does not accept {who}; give the right credentials"
            )
        if isinstance(error, ssl.SSLError) or "tls" in text.lower():
            return BrokerFault(
                "denied", f"{self._servers}: {text}; see source.tls_ca, and write tls:// where it asks for it"
            )
        reason = error.strerror if isinstance(error, OSError) and error.strerror else text.removeprefix("nats: ")
        return BrokerFault(
            "unreachable", f"{self._servers}: {reason}; see that nats-server runs there and can be reached"
        )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns what the client library raises into BrokerFault."""
        self._denied = ""
        try:
            yield
        except nats.js.errors.NoStreamResponseError as error:
            text = "no stream takes it; make the streams with `rmbgd fleet setup`"
            raise BrokerFault("missing", text) from error
        except nats.js.errors.APIError as error:
            full = error.err_code == FULL or "maximum" in (error.description or "")
            kind = "full" if full else {404: "missing", 503: "unreachable"}.get(error.code or 0, "refused")
            raise BrokerFault(kind, error.description or str(error)) from error
        except (TimeoutError, nats.errors.Error, OSError) as error:
            if self._denied:
                raise BrokerFault("denied", self._denied.removeprefix("nats: ")) from error
            raise self._fault_of(error) from error

    # ------------------------------------------------------------------------------------------------ leases

    def lease(self, places: Sequence[tuple[str, str]], count: int, wait: float) -> list[Delivery]:
        """Up to `count` messages of these (stream, consumer) pairs, the first ones first; waits until there is one.

        Raises BrokerFault: "missing" where a consumer is not there.
        """
        return self.call(self._lease(places, count, wait), wait + ANSWER_TIMEOUT)

    async def _lease(self, places: Sequence[tuple[str, str]], count: int, wait: float) -> list[Delivery]:
        client = self.client
        if self._pulls is None:
            self._pulls = _Pulls(client)
            await self._pulls.begin()
        with self._faults():
            return await self._pulls.lease(places, count, wait)

    def arrived(self) -> list[Delivery]:
        """What earlier questions brought after they had been answered: it is leased, and ours. Raises BrokerFault."""

        async def take() -> list[Delivery]:
            return self._pulls.take() if self._pulls is not None else []

        return self.call(take(), ANSWER_TIMEOUT)

    def end_leasing(self) -> list[Delivery]:
        """Ask for nothing more; what arrived that nobody took. Raises BrokerFault."""
        return self.call(self._end_leasing(), ANSWER_TIMEOUT)

    async def _end_leasing(self) -> list[Delivery]:
        pulls, self._pulls = self._pulls, None
        if pulls is None:
            return []
        with self._faults():
            return await pulls.end()

    def answer(self, answers: Sequence[tuple[str, bytes]]) -> None:
        """Acknowledge deliveries, or put them back: (reply, word) pairs, sent all or none. Raises BrokerFault."""

        async def send() -> None:
            with self._faults():
                client = self.client
                for reply, word in answers:
                    await client.publish(reply, word)
                await client.flush(timeout=int(CONNECT_TIMEOUT))

        if answers:
            self.call(send(), ANSWER_TIMEOUT)

    async def extend(self, replies: Sequence[str]) -> None:
        """The loop's. Where the broker cannot be reached, leases expire that nobody extends."""
        with suppress(BrokerFault), self._faults():
            for reply in replies:
                await self.client.publish(reply, IN_PROGRESS)

    # ------------------------------------------------------------------------------------------------ messages

    def publish(self, messages: Sequence[tuple[str, bytes, str]]) -> list[BrokerFault | None]:
        """Store (subject, data, identity) messages; answers for each None once it is on the broker's disk, or why not.

        The same identity within the stream's window is stored once.
        """
        rounds = -(-len(messages) // AT_ONCE)
        return self.call(self._publish(messages), ANSWER_TIMEOUT * (1 + rounds))

    async def _publish(self, messages: Sequence[tuple[str, bytes, str]]) -> list[BrokerFault | None]:
        found: list[BrokerFault | None] = []
        for start in range(0, len(messages), AT_ONCE):
            found += await asyncio.gather(*(self._publish_one(*each) for each in messages[start : start + AT_ONCE]))
        return found

    async def _publish_one(self, subject: str, data: bytes, identity: str) -> BrokerFault | None:
        try:
            with self._faults():
                headers = {"Nats-Msg-Id": identity} if identity else None
                await self.client.jetstream(timeout=ANSWER_TIMEOUT).publish(subject, data, headers=headers)
        except BrokerFault as fault:
            return fault
        return None

    # ------------------------------------------------------------------------------------------------ keys

    async def get(self, bucket: str, key: str) -> bytes | None:
        """The loop's, like `put` and `delete`. Raises BrokerFault."""
        with self._faults():
            try:
                return (await (await self._bucket(bucket)).get(key)).value
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
                return None

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        with self._faults():
            await (await self._bucket(bucket)).put(key, value)

    async def delete(self, bucket: str, key: str) -> None:
        with self._faults():
            await (await self._bucket(bucket)).delete(key)

    async def _bucket(self, name: str) -> KeyValue:
        if name not in self._buckets:
            self._buckets[name] = await self.client.jetstream(timeout=ANSWER_TIMEOUT).key_value(name)
        return self._buckets[name]

    # ------------------------------------------------------------------------------------------------ the rest

    def ask(self, question: Callable[[Client], Coroutine[Any, Any, T]], timeout: float = ANSWER_TIMEOUT) -> T:
        """What a coroutine over the connection answers. Raises BrokerFault for all that NATS raises."""

        async def put() -> T:
            with self._faults():
                return await question(self.client)

        return self.call(put(), timeout)


class _Pulls:
    """Pull requests of one connection, and what they brought. The loop's."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._number = 0
        self._open: dict[str, tuple[tuple[str, str], float]] = {}  # those that wait, by inbox: the place, until when
        self._arrived: list[Delivery] = []
        self._ended: dict[str, str | None] = {}  # those that do not wait: what the server said at their end
        self._changed = asyncio.Event()
        self._subscription: Subscription | None = None

    async def begin(self) -> None:
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._receive)

    def take(self, count: int | None = None) -> list[Delivery]:
        taken, self._arrived = self._arrived[:count], [] if count is None else self._arrived[count:]
        return taken

    async def end(self) -> list[Delivery]:
        """What arrived that nobody took."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]
        return self._arrived

    async def lease(self, places: Sequence[tuple[str, str]], count: int, wait: float) -> list[Delivery]:
        missing = ""
        for place in places:
            if len(self._arrived) >= count:
                break
            request = await self._request(place, {"batch": count - len(self._arrived), "no_wait": True})
            said = await self._end_of(request, count)
            if said.startswith(("503", "404 consumer")):
                missing = f"{place[1]} on {place[0]}"
        if missing and not self._arrived:
            raise BrokerFault("missing", f"no consumer {missing}; make it with `rmbgd fleet setup`")
        if not self._arrived and wait > 0:
            now = time.monotonic()
            self._open = {inbox: each for inbox, each in self._open.items() if each[1] > now}
            waiting = {place for place, _ in self._open.values()}
            for place in places[:count]:
                if place not in waiting:
                    await self._request(place, {"batch": 1, "expires": int(wait * 1e9)}, waits=wait)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._first(), wait)
        return self.take(count)

    async def _request(self, place: tuple[str, str], wanted: Mapping[str, object], *, waits: float = 0) -> str:
        self._number += 1
        inbox = f"{self._inbox}.{self._number}"
        if waits:
            self._open[inbox] = place, time.monotonic() + waits
        else:
            self._ended[inbox] = None
        stream, consumer = place
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        await self._client.publish(subject, json.dumps(wanted).encode(), inbox)
        return inbox

    async def _end_of(self, request: str, count: int) -> str:
        """What the server said at the end of a request that does not wait; "" when it brought enough."""
        with suppress(asyncio.TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while self._ended[request] is None and len(self._arrived) < count:
                    self._changed.clear()
                    await self._changed.wait()
        return self._ended.pop(request) or ""

    async def _first(self) -> None:
        while not self._arrived:
            self._changed.clear()
            await self._changed.wait()

    async def _receive(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is not None:
            if status != "100":  # a sign of life
                said = f"{status} {(message.headers or {}).get('Description', '')}".lower()
                self._open.pop(message.subject, None)
                if message.subject in self._ended:
                    self._ended[message.subject] = said
        elif (delivery := _delivery(message)) is not None:
            self._arrived.append(delivery)
            self._served((delivery.stream, delivery.consumer))
        self._changed.set()

    def _served(self, place: tuple[str, str]) -> None:
        """A request that waits brings one; the server says no more of it, nor does a message say whose it is."""
        for inbox, (asked, _) in self._open.items():
            if asked == place:
                del self._open[inbox]
                return


def _delivery(message: Msg) -> Delivery | None:
    """By the subject of its acknowledgement: $JS.ACK.[DOMAIN.HASH.]STREAM.CONSUMER.TIMES.SEQ.SEQ.TIME.LEFT[.X]"""
    words = message.reply.split(".")
    if words[:2] != ["$JS", "ACK"]:
        return None
    words = words[2:] if len(words) < 11 else words[4:]
    stream, consumer, times, sequence, _, _, left = words[:7]
    return Delivery(stream, consumer, message.data, message.reply, int(sequence), int(times), int(left))


def _proof(path: Path | None) -> dict[str, object]:
    """Options of the connection that prove who we are. Raises ConfigError, which never shows what the file holds."""
    if path is None:
        return {}
    try:
        status = os.stat(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = explain(error) if isinstance(error, OSError) else f"{path}: is no text"
        raise ConfigError(f"source.credentials: {why}") from error
    if stat.S_IMODE(status.st_mode) & 0o007:
        raise ConfigError(f"source.credentials: others may read {path}; take that away: chmod o= {path}")
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if any("BEGIN NATS USER JWT" in line for line in words):
        return {"user_credentials": str(path)}
    if len(words) == 1 and words[0].startswith("SU"):
        return {"nkeys_seed_str": words[0], "inbox_prefix": inbox_prefix(_public_key(words[0], path))}
    if len(words) == 2:
        return {"user": words[0], "password": words[1]}
    raise ConfigError(
        f"source.credentials: {path} is none of: NATS credentials, the seed of an nkey (SU...), a user and a password "
        "on two lines"
    )


def _public_key(seed: str, path: Path) -> str:
    import nkeys

    try:
        return str(nkeys.from_seed(seed.encode()).public_key.decode())
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError(f"source.credentials: {path}: no seed of an nkey; copy the file again") from error


def _encryption(settings: SourceSettings) -> dict[str, object]:
    if not any((settings.tls_ca, settings.tls_certificate, *(each.startswith("tls:") for each in settings.servers))):
        return {}
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_certificate is not None:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"source.tls_ca, tls_certificate or tls_key: {explain(error)}") from error
    return {"tls": context}
