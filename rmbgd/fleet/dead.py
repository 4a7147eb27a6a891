"""Dead letters: images that made their workers crash, announced again once the cause is mended."""

from __future__ import annotations

from collections.abc import Sequence

import nats.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DeliverPolicy

from rmbgd.events import Emit
from rmbgd.fleet import message
from rmbgd.fleet.attempts import AttemptLedger
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import BadMessage
from rmbgd.fleet.pulls import BrokerFault, Delivery, NotConnected
from rmbgd.fleet.root import Root

BATCH = 256
WAIT = 1.0  # s for more letters, before there are none


class DeadLetters:
    """A worker gives up an image. One thread's."""

    def __init__(self, broker: Broker, emit: Emit) -> None:
        self._broker, self._emit = broker, emit
        self._unstored = ""  # why the last one could not be

    def bury(self, delivery: Delivery, root: str) -> bool:
        """For `rmbgd fleet retry-dead`; its refusal is in the root already. Was it stored?"""
        subject = f"{message.DEAD_SUBJECT}.{message.token(root)}"
        try:
            [fault] = self._broker.publish([(subject, delivery.data, "")])
        except BrokerFault as error:
            fault = error
        if fault is not None and not isinstance(fault, NotConnected) and self._unstored != fault.detail:
            self._unstored = fault.detail
            self._emit("source.unusable", folder=root, detail=f"a dead letter cannot be stored: {fault.detail}")
        return fault is None


def retry_dead(broker: Broker, roots: Sequence[Root]) -> tuple[int, int]:
    """Announce all dead letters of these roots again, as if they had never been tried; (how many, how many are left).

    Each leaves the stream only when its name is on the queue. Raises BrokerFault, OSError.
    """
    known, attempts = {root.folder.name: root for root in roots}, AttemptLedger(broker, "administrator")
    retried = left = 0
    for sequence, data in _letters(broker):
        try:
            announced = message.decode(data)
        except BadMessage:
            left += 1
            continue
        root = known.get(announced.root)
        if root is None:
            left += 1
            continue
        attempts.forget(announced.identity)
        root.forget_refusal(announced.key)
        # Without an identity: the same name was on the queue before, perhaps within the window of duplicates.
        [fault] = broker.publish([(announced.subject(message.HOT), announced.encode(), "")])
        if fault is not None:
            raise BrokerFault(fault.kind, fault.detail)
        _delete(broker, sequence)
        retried += 1
    return retried, left


def _delete(broker: Broker, sequence: int) -> None:
    async def delete(client: Client) -> None:
        await client.jetstream().delete_msg(message.DEAD, sequence)

    broker.ask(delete)


def _letters(broker: Broker) -> list[tuple[int, bytes]]:
    async def read(client: Client) -> list[tuple[int, bytes]]:
        found = []
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, inactive_threshold=60.0)
        subject = f"{message.DEAD_SUBJECT}.*"
        pull = await client.jetstream().pull_subscribe(subject, stream=message.DEAD, config=config)
        try:
            while True:
                for each in await pull.fetch(BATCH, timeout=WAIT):
                    found.append((each.metadata.sequence.stream, each.data))
                    await each.ack()
        except (nats.errors.TimeoutError, TimeoutError):
            pass
        finally:
            await pull.unsubscribe()
        return found

    return broker.ask(read, 120.0)
