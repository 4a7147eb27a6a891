"""Pull requests for messages of JetStream, and what they bring: deliveries, and the answers that one may get."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from rmbgd.errors import RmbgdError

REQUEST_TIMEOUT = 5.0  # s for the end of a request that does not wait


class BrokerFault(RmbgdError):
    """The broker cannot be reached, or refuses. Whatever was asked for is asked for again later.

    kind  "unreachable", "denied", "missing" (a stream or a consumer), "full", "unfit" (its version), "refused"
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind, self.detail = kind, detail
        super().__init__(detail)


class NotConnected(BrokerFault):
    """There is no connection, for the reason that `on_change` of the connection was told of."""


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


class Pulls:
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
            async with asyncio.timeout(REQUEST_TIMEOUT):
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
