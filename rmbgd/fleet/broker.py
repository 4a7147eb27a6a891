"""The connection to the broker (NATS JetStream), on an event loop in a thread of its own; methods for other threads.

It connects again by itself, for ever. What was leased over a connection that was lost may still be acknowledged over
the next one: the broker knows its leases by their subjects.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.kv import KeyValue

from rmbgd.clock import backoff
from rmbgd.config.load import SourceSettings
from rmbgd.fleet.credentials import encryption, proof
from rmbgd.fleet.pulls import IN_PROGRESS, BrokerFault, Delivery, NotConnected, Pulls

T = TypeVar("T")

OLDEST_SERVER = (2, 11)  # older ones lost streams in crashes (jepsen.io/analyses/nats-2.12.1), or know no TTL of keys
CONNECT_TIMEOUT = 5.0  # s
ANSWER_TIMEOUT = 10.0  # s for one question, which may wait for a disk
FLUSH_TIMEOUT = 86_400  # s; longer than a connection that does not answer is kept
AT_ONCE = 64  # messages that are published before the first of them is answered
FULL = 10077  # error code of the server: the stream has as many messages as it may
LOST_CHECK = 1.0  # s
RETRY_FIRST, RETRY_MAXIMUM = 0.25, 5.0  # s between two tries to connect


class Broker:
    """`start`, `close` and every method without `async` may be called from any thread but the loop's.

    on_change(error)  called on the loop, with None for each connection that stands, else with why there is none
    """

    def __init__(self, settings: SourceSettings, name: str, on_change: Callable[[BrokerFault | None], None]) -> None:
        self._settings, self._name, self._on_change = settings, name, on_change
        self._options = proof(settings.credentials) | encryption(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushes: set[asyncio.Task[None]] = set()  # of this connection, that were not answered yet
        self._broken: BaseException | None = None
        self._client: Client | None = None  # the loop's, like all below
        self._fault = BrokerFault("unreachable", "not connected yet")
        self._denied = ""  # what the server refused last
        self._pulls: Pulls | None = None
        self._buckets: dict[str, KeyValue] = {}  # of this connection
        self._connected = asyncio.Event()
        self.version = ""
        self.connections = 0  # made so far

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
        """The loop's. Raises NotConnected."""
        if self._client is None:
            raise NotConnected(self._fault.kind, self._fault.detail)
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
                self.connections += 1
                self._connected.set()
                self._on_change(None)
                while not client.is_closed:  # a reset may end it without a word (nats-py 2.16)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(closed.wait(), LOST_CHECK)
                        break
                self._end_flushes()
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
                await self._flush(self._client)
            await self._client.close()
        self._end_flushes()

    async def _flush(self, client: Client) -> None:
        """What was published has arrived. Raises TimeoutError, and ConnectionClosedError where it was lost meanwhile.

        The library stops reading at the answer to a flush that was given up before (nats-py 2.16), so that the
        connection is deaf until pings are missed. Therefore none is given up: it ends with its connection.
        """
        flush = asyncio.ensure_future(client.flush(timeout=FLUSH_TIMEOUT))
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)
        try:
            await asyncio.wait_for(asyncio.shield(flush), CONNECT_TIMEOUT)
        except asyncio.CancelledError:
            if not flush.cancelled():
                raise
            raise nats.errors.ConnectionClosedError from None  # by `_end_flushes`

    def _end_flushes(self) -> None:
        for flush in self._flushes:
            flush.cancel()

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
                denied = self._denied.removeprefix("nats: ").strip("'")
                raise BrokerFault("denied", f"{denied}: use the key of the role that may") from error
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
            self._pulls = Pulls(client)
            await self._pulls.begin()
        with self._faults():
            leased = await self._pulls.lease(places, count, wait)
            if not leased and self._denied:  # a request that is not allowed has no answer
                raise TimeoutError
            return leased

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
                await self._flush(client)

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
        """The loop's, like all of these. Raises BrokerFault."""
        found = await self.read(bucket, key)
        return None if found is None else found[0]

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        with self._faults():
            await (await self._bucket(bucket)).put(key, value)

    async def put_first(self, bucket: str, key: str, value: bytes) -> int | None:
        """Its revision; None where the key has a value."""
        with self._faults():
            try:
                return await (await self._bucket(bucket)).create(key, value)
            except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyNotFoundError):
                return None

    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> int | None:
        """The new revision; None where it has another one than that by now."""
        with self._faults():
            try:
                return await (await self._bucket(bucket)).update(key, value, last=revision)
            except nats.js.errors.KeyWrongLastSequenceError:
                return None

    async def read(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """A value, and its revision."""
        with self._faults():
            try:
                entry = await (await self._bucket(bucket)).get(key)
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
                return None
            return entry.value or b"", int(entry.revision or 0)

    async def delete_revision(self, bucket: str, key: str, revision: int) -> None:
        """Unless it has another one by now."""
        with self._faults(), suppress(nats.js.errors.KeyWrongLastSequenceError):
            await (await self._bucket(bucket)).delete(key, last=revision)

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
