"""What there is to do for a leased message: nothing, because its root has the answer, or an image to be processed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fleet import message
from rmbgd.fleet.attempts import AttemptLedger, Attempts
from rmbgd.fleet.lease import runs_alone
from rmbgd.fleet.message import Announcement, BadMessage
from rmbgd.fleet.pulls import ACK, TERMINATE, BrokerFault, Delivery, put_back
from rmbgd.fleet.root import Root, RootAnswer, RootInput, done_again

UNREADABLE_AFTER = 3600.0  # s that an image may not be readable, while its root is, before it is rejected
UNSEEN_WAIT = 5.0  # s before a file is looked for again: NFS shows a new one, or a new version, only after seconds


@dataclass(frozen=True, slots=True)
class Todo:
    """An image to be processed, or to be refused, as `found` says."""

    delivery: Delivery
    announced: Announcement
    attempts: Attempts
    found: RootInput


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is to be done: `word` answers the delivery. `avoid`: root and why nothing more of it is to be leased."""

    delivery: Delivery
    word: bytes
    avoid: tuple[str, str] | None = None


class Triage:
    """Usable from several threads at once; keeps nothing."""

    def __init__(self, roots: Mapping[str, Root], ledger: AttemptLedger, emit: Emit, retry_wait: float) -> None:
        self._roots, self._ledger, self._emit, self._retry_wait = roots, ledger, emit, retry_wait

    def look(self, delivery: Delivery) -> Todo | Settled:
        try:
            announced = message.decode(delivery.data)
        except BadMessage as error:
            self.tell(delivery, None, why="bad_message", detail=str(error))
            return Settled(delivery, TERMINATE)
        root = self._roots.get(announced.root)
        if root is None or message.consumer(announced.root) != delivery.consumer:
            self.tell(delivery, announced, why="bad_message", detail="it names another root than its subject does")
            return Settled(delivery, TERMINATE)
        attempts, key, fingerprint = Attempts(), announced.key, announced.fingerprint
        try:
            if delivery.deliveries > 1:
                attempts = self._ledger.read(announced.identity)
            if announced.recipe != root.folder.recipe:
                recipes = f"is to have recipe '{announced.recipe}', and has '{root.folder.recipe}'"
                why = f"root '{announced.root}' {recipes} here; give all machines the same configuration"
                return self._give_back(delivery, announced, attempts, self._retry_wait, why)
            if (answer := root.answer(key, fingerprint, refusals=delivery.deliveries > 1)) is not None:
                return self._answered(delivery, announced, answer)
            found = root.source(key, fingerprint)
        except BrokerFault:
            return Settled(delivery, put_back(UNSEEN_WAIT))
        except (OSError, StorageFault) as error:
            if trouble := root.trouble() or (str(error) if isinstance(error, FileNotFoundError) else ""):
                return self._give_back(delivery, announced, attempts, self._retry_wait, trouble)
            if delivery.deliveries > 1 and time.time() - delivery.announced > UNREADABLE_AFTER:
                with suppress(OSError, StorageFault):
                    return Todo(delivery, announced, attempts, root.refusable(key, str(error), Reason.IO_ERROR))
            keys = _keys(delivery, announced)
            self._emit("image.postponed", **keys, why="storage", detail=f"it cannot be read now: {error}")
            return self._give_back(delivery, announced, attempts, self._retry_wait)
        if found.state not in ("gone", "superseded"):
            return Todo(delivery, announced, attempts, found)
        if delivery.deliveries == 1:  # perhaps this machine does not see it yet
            return self._give_back(delivery, announced, attempts, UNSEEN_WAIT)
        self.tell(delivery, announced, why=found.state, detail="another version has its own announcement")
        return Settled(delivery, ACK)

    def untaken(self, delivery: Delivery) -> bytes:
        """The answer to one that was not looked at. Raises BrokerFault."""
        try:
            announced = message.decode(delivery.data)
        except BadMessage:
            return put_back()
        attempts = self._ledger.read(announced.identity) if delivery.deliveries > 1 else Attempts()
        return self._give_back(delivery, announced, attempts, 0.0).word

    def tell(self, delivery: Delivery, announced: Announcement | None, **told: str) -> None:
        """That it is dropped, and why."""
        keys: dict[str, str] = {}
        if announced is not None:
            keys = {"folder": announced.root, "path": announced.key, "fingerprint": announced.fingerprint}
        self._emit("lease.dropped", lease=delivery.name, **keys, **told)

    def _answered(self, delivery: Delivery, announced: Announcement, answer: RootAnswer) -> Settled:
        """The root has its answer. One that was leased before may lack its event: the worker died behind publishing."""
        if delivery.deliveries == 1:
            self.tell(delivery, announced, why="answered", detail=answer.kind)
            return Settled(delivery, ACK)
        keys = _keys(delivery, announced)
        if answer.kind == "done":
            self._emit("image.done", **(done_again(answer.story) | keys), recovered=True)
        else:
            told = {key: answer.story.get(key, "") for key in ("reason", "detail", "stage")}
            self._emit("image.failed", **keys, **told, recovered=True)
        self._ledger.forget(announced.identity)
        return Settled(delivery, ACK)

    def _give_back(
        self, delivery: Delivery, announced: Announcement, attempts: Attempts, delay: float, why: str = ""
    ) -> Settled:
        if not runs_alone(delivery.deliveries, attempts.given_back_at):  # a suspect stays one
            self._ledger.given_back(announced.identity, attempts, delivery.deliveries)
        return Settled(delivery, put_back(delay), (announced.root, why) if why else None)


def _keys(delivery: Delivery, announced: Announcement) -> dict[str, Any]:
    """What events say of an image that no job was begun for."""
    keys: dict[str, Any] = {"job": secrets.randbits(48), "folder": announced.root, "path": announced.key}
    return keys | {
        "attempt": 1, "lease": delivery.name, "fingerprint": announced.fingerprint, "milliseconds": {}
    }  # fmt: skip
