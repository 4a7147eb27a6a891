"""Announces again what a root has without an answer: makes lost events, a wiped broker and mistakes harmless."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rmbgd.fleet.broker import Broker
from rmbgd.fleet.compare import answered
from rmbgd.fleet.message import HOT, Announcement
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.root import Entry, Root
from rmbgd.fleet.streams import queue_states

WAITING_MAXIMUM = 1000  # images of a root on the queue; beyond, what waits there would be announced a second time
BATCH = 256  # names published at once


@dataclass(frozen=True, slots=True)
class Swept:
    """seen: inputs that were looked at; announced: those without an answer; temporaries: removed.

    waiting  images on the queue; where they are too many, nothing was looked at
    """

    seen: int = 0
    announced: int = 0
    temporaries: int = 0
    waiting: int = 0


def sweep(broker: Broker, root: Root, *, younger_than: float | None = None) -> Swept:
    """Compare a root and announce what is missing; of what changed in the last `younger_than` seconds, or all.

    What is on the queue already comes twice and is found answered then, so nothing is done while many images wait.
    Raises OSError, BrokerFault.
    """
    waiting = sum(state.waiting for state in queue_states(broker, [root.folder.name]) if state.stream == HOT)
    if waiting > WAITING_MAXIMUM:
        return Swept(waiting=waiting)
    seen = announced = 0
    batch: list[Entry] = []

    def wanted() -> Iterable[Entry]:
        nonlocal seen
        for entry in root.inputs():
            if entry.age >= root.quiet and (younger_than is None or entry.age < younger_than):
                seen += 1
                yield entry

    for entry, kind in answered(root, wanted()):
        if not kind:
            batch.append(entry)
        if len(batch) >= BATCH:
            announced += publish(broker, HOT, root, batch, again=True)
            batch = []
    announced += publish(broker, HOT, root, batch, again=True)
    return Swept(seen, announced, root.remove_leftovers(), waiting)


def publish(broker: Broker, stream: str, root: Root, entries: Iterable[Entry], *, again: bool = False) -> int:
    """Announce these; how many. `again`: also those that were announced just now, and lost their result since.

    Raises BrokerFault: the first that was refused.
    """
    folder = root.folder
    names = [Announcement(folder.name, entry.key, entry.fingerprint, folder.recipe) for entry in entries]
    answers = broker.publish([(each.subject(stream), each.encode(), "" if again else each.identity) for each in names])
    refused = [answer for answer in answers if answer is not None]
    if refused:
        raise BrokerFault(refused[0].kind, refused[0].detail)
    return len(names)
