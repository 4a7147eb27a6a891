"""What there is to do for a leased message: nothing, because its root has the answer, or an image to be processed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rmbgd.clock import backoff
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fleet import message
from rmbgd.fleet.attempts import AttemptLedger, Attempts
from rmbgd.fleet.lease import runs_alone
from rmbgd.fleet.message import Announcement, BadMessage
from rmbgd.fleet.pulls import ACK, TERMINATE, BrokerFault, Delivery, put_back
from rmbgd.fleet.root import Root, RootAnswer, RootInput, told_again
from rmbgd.fleet.sequence_root import SequenceRoot, is_of_sequence

UNREADABLE_AFTER = 3600.0  # s that an image cannot be read, while its root can, before it is rejected
DELAY_MAXIMUM = 600.0  # s before a name with another recipe is looked at again
OTHER_RECIPE_MOST = 20  # such looks, where names with the right recipe come as well
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
    """Nothing is to be done: `word` answers the delivery. `avoid`: root and why nothing more of it is to be leased.

    dead  the root, where a dead letter is to be stored before
    """

    delivery: Delivery
    word: bytes
    avoid: tuple[str, str] | None = None
    dead: str = ""


class Triage:
    """Usable from several threads at once."""

    def __init__(self, roots: Mapping[str, Root], ledger: AttemptLedger, emit: Emit, retry_wait: float) -> None:
        self._roots, self._ledger, self._emit, self._retry_wait = roots, ledger, emit, retry_wait
        self._fitting: set[str] = set()  # roots of which a name came with the recipe that is configured here

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
                return self._other_recipe(delivery, announced, attempts, root)
            self._fitting.add(announced.root)
            if isinstance(root, SequenceRoot) and is_of_sequence(fingerprint):  # frames have answers, one by one
                answer = root.refusal(key, fingerprint)
            else:
                answer = root.answer(key, fingerprint, refusals=delivery.deliveries > 1)
            if answer is not None:
                return self._answered(delivery, announced, answer)
            found = root.source(key, fingerprint)
        except BrokerFault:
            return Settled(delivery, put_back(UNSEEN_WAIT))
        except (OSError, StorageFault) as error:
            if trouble := root.trouble() or (str(error) if isinstance(error, FileNotFoundError) else ""):
                return self._give_back(delivery, announced, attempts, self._retry_wait, trouble)
            with suppress(OSError, StorageFault, BrokerFault):
                attempts = self._ledger.unreadable(announced.identity, attempts)
                if attempts.unreadable * self._retry_wait > UNREADABLE_AFTER:
                    return Todo(delivery, announced, attempts, root.refusable(key, str(error), Reason.IO_ERROR))
            keys = _keys(delivery, announced)
            self._emit("image.postponed", **keys, why="storage", detail=f"it cannot be read now: {error}")
            return self._give_back(delivery, announced, attempts, self._retry_wait)
        if found.state not in ("gone", "superseded"):
            return Todo(delivery, announced, attempts, found)
        if delivery.deliveries == 1:  # perhaps this machine does not see it yet
            return self._give_back(delivery, announced, attempts, UNSEEN_WAIT)
        if found.frames:  # of a sequence that is written on: announced again, or what is there then is done
            return self._give_back(delivery, announced, attempts, self._retry_wait)
        self.tell(delivery, announced, why=found.state, detail="another version has its own announcement")
        return Settled(delivery, ACK)

    def _other_recipe(self, delivery: Delivery, announced: Announcement, attempts: Attempts, root: Root) -> Settled:
        """Where the announcer has another configuration, or the name is older than the configuration."""
        recipes = f"is to have recipe '{announced.recipe}', and has '{root.folder.recipe}'"
        fits = announced.root in self._fitting
        if fits and delivery.deliveries > OTHER_RECIPE_MOST:
            self.tell(
                delivery, announced, why="superseded", detail=f"it {recipes} by now; the sweep announces it again"
            )
            return Settled(delivery, ACK)
        why = "" if fits else f"root '{announced.root}' {recipes} here; give all machines the same configuration"
        delay = backoff(delivery.deliveries, self._retry_wait, DELAY_MAXIMUM)
        return self._give_back(delivery, announced, attempts, delay, why)

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
        event, keys = told_again(answer, _keys(delivery, announced))
        self._emit(event, **keys)
        self._ledger.forget(announced.identity)
        given_up = answer.kind == "failed" and answer.story.get("reason") == Reason.CRASH_LOOP
        return Settled(delivery, ACK, dead=announced.root if given_up else "")

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
