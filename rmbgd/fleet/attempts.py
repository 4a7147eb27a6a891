"""The ledger of attempts, in a key-value bucket: how often an image ran alone, and whether it was given back.

Delivery counts are no attempts: a process that dies takes all images with it that it had leased, and one of them may be
to blame. So what comes back from a worker that died runs alone, and only that is counted, before it begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from rmbgd.fleet.broker import Broker
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.streams import ATTEMPTS, KeyValues


@dataclass(frozen=True, slots=True)
class Attempts:
    """alone: runs by itself that began; given_back_at: the delivery after which a worker gave it back in good order.

    unreadable  looks that found its root there and the image not to be read
    """

    alone: int = 0
    given_back_at: int | None = None
    unreadable: int = 0


class AttemptLedger:
    """Written by the one who has the lease of an image."""

    def __init__(self, broker: Broker, worker: str) -> None:
        self._bucket, self._worker = KeyValues(broker, ATTEMPTS), worker

    def read(self, identity: str) -> Attempts:
        """Raises BrokerFault."""
        found = self._bucket.get(identity)
        try:
            story: Mapping[str, Any] = json.loads(found) if found else {}
            return Attempts(int(story.get("alone", 0)), story.get("given_back_at"), int(story.get("unreadable", 0)))
        except (ValueError, AttributeError, TypeError):  # written by something else: it counts for nothing
            return Attempts()

    def begins_alone(self, identity: str, before: Attempts) -> Attempts:
        """Counted before it begins, so that the count survives whatever happens then. Raises BrokerFault."""
        after = replace(before, alone=before.alone + 1)
        self._write(identity, after)
        return after

    def given_back(self, identity: str, before: Attempts, deliveries: int) -> None:
        """It is no suspect when it is delivered the next time."""
        with suppress(BrokerFault):  # then it runs alone, which costs time only
            self._write(identity, replace(before, given_back_at=deliveries))

    def unreadable(self, identity: str, before: Attempts) -> Attempts:
        """Raises BrokerFault."""
        after = replace(before, unreadable=before.unreadable + 1)
        self._write(identity, after)
        return after

    def forget(self, identity: str) -> None:
        with suppress(BrokerFault):  # the bucket forgets it itself after some days
            self._bucket.delete(identity)

    def _write(self, identity: str, attempts: Attempts) -> None:
        self._bucket.put(identity, json.dumps(asdict(attempts) | {"worker": self._worker}).encode())
