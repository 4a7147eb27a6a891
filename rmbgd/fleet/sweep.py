"""Announces again what a root has without an answer: makes lost events, a wiped broker and mistakes harmless."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rmbgd.errors import RmbgdError
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.compare import UNKNOWN, answered
from rmbgd.fleet.message import BULK, HOT, Announcement, queue_for
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.root import Entry, Root
from rmbgd.fleet.streams import MESSAGES_MAXIMUM, queue_states

WAITING_MAXIMUM = 1000  # images of a root on the queue; beyond, what waits there would be announced a second time
BATCH = 256  # names published at once
OLD_MAXIMUM = 10_000  # images that one sweep announces behind the new ones; more is a backfill's work
RECONNECT_PATIENCE = 60.0  # s


@dataclass(slots=True)
class Swept:
    """seen: inputs that were looked at; announced: those without an answer; temporaries: removed.

    left     without an answer, and not announced: a queue had no room, or too many of its images wait
    unknown  whose records cannot be read
    unread   folders that cannot be read
    waiting  images on the queue; where they are too many, nothing was looked at
    """

    seen: int = 0
    announced: int = 0
    left: int = 0
    unknown: int = 0
    unread: int = 0
    temporaries: int = 0
    waiting: int = 0


def sweep(broker: Broker, root: Root, *, younger_than: float | None = None) -> Swept:
    """Compare a root and announce what is missing; of what changed in the last `younger_than` seconds, or all.

    What came lately goes to the queue of new images, what is older to the one behind it. What is on a queue already
    comes twice and is found answered then, so a queue where many images wait gets nothing.
    Raises OSError, BrokerFault, RmbgdError where the root is not there.
    """
    if trouble := root.trouble():
        raise RmbgdError(f"root '{root.folder.name}': {trouble}")
    waiting = {state.stream: state.waiting for state in queue_states(broker, [root.folder.name])}
    swept = Swept(waiting=waiting[HOT])
    if swept.waiting > WAITING_MAXIMUM:
        return swept
    room = {HOT: MESSAGES_MAXIMUM, BULK: OLD_MAXIMUM if waiting[BULK] <= WAITING_MAXIMUM else 0}
    batches: dict[str, list[Entry]] = {HOT: [], BULK: []}
    unread: list[str] = []

    def wanted() -> Iterable[Entry]:
        for entry in root.inputs(unread):
            if entry.unchanged >= root.quiet and (younger_than is None or entry.age < younger_than):
                swept.seen += 1
                yield entry

    def announce(stream: str) -> None:
        batch, batches[stream] = batches[stream], []
        room[stream] -= len(batch)
        swept.announced += (published := _publish_patiently(broker, stream, root, batch))
        if published < len(batch):
            swept.left += len(batch) - published
            room[stream] = 0

    for entry, kind in answered(root, wanted()):
        swept.unknown += kind == UNKNOWN
        if kind:
            continue
        stream = queue_for(entry.age)
        if not room[stream]:
            swept.left += 1
            continue
        batches[stream].append(entry)
        if len(batches[stream]) >= min(BATCH, room[stream]):
            announce(stream)
    for stream in filter(batches.get, batches):
        announce(stream)
    swept.unread, swept.temporaries = len(unread), root.remove_leftovers()
    return swept


def _publish_patiently(broker: Broker, stream: str, root: Root, batch: Sequence[Entry]) -> int:
    """How many; fewer than all where the queue is full. Raises BrokerFault."""
    left, until = batch, time.monotonic() + RECONNECT_PATIENCE
    while True:
        try:
            refused = _refused(broker, stream, root, left, again=True)
        except BrokerFault as fault:
            refused = [(entry, fault) for entry in left]
        left, faults = [entry for entry, _ in refused], [fault for _, fault in refused]
        if not faults or any(fault.kind == "full" for fault in faults):
            return len(batch) - len(left)
        if any(fault.kind != "unreachable" for fault in faults) or time.monotonic() > until:
            raise faults[0]
        time.sleep(1.0)


def _refused(
    broker: Broker, stream: str, root: Root, entries: Iterable[Entry], *, again: bool
) -> list[tuple[Entry, BrokerFault]]:
    """Announce these; those that were not stored, and why. Raises BrokerFault where none was."""
    folder, entries = root.folder, list(entries)
    names = [Announcement(folder.name, entry.key, entry.fingerprint, folder.recipe) for entry in entries]
    answers = broker.publish([(each.subject(stream), each.encode(), "" if again else each.identity) for each in names])
    return [(entry, answer) for entry, answer in zip(entries, answers, strict=True) if answer is not None]


def publish(broker: Broker, stream: str, root: Root, entries: Sequence[Entry], *, again: bool = False) -> int:
    """Announce these; how many. `again`: also those that were announced just now, and lost their result since.

    Raises BrokerFault: the first that was refused.
    """
    if refused := _refused(broker, stream, root, entries, again=again):
        raise BrokerFault(refused[0][1].kind, refused[0][1].detail)
    return len(entries)
