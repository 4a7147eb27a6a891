"""Films and sequences in a fleet: each is one lease of one worker, however many frames it has."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import Literal

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.errors import Reason
from rmbgd.events import Emit
from rmbgd.fleet.attempts import AttemptLedger
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.held import Held, HeldLeases
from rmbgd.fleet.lease import ATTEMPTS_OF_UNITS, WaitingMessages, runs_alone
from rmbgd.fleet.leased_sequence import Ending, LeasedSequence
from rmbgd.fleet.message import QUEUES, Announcement, consumer
from rmbgd.fleet.pulls import BrokerFault, Delivery
from rmbgd.fleet.root import Root, RootInput
from rmbgd.fleet.sequence_root import SequenceRoot
from rmbgd.fleet.triage import UNREADABLE_AFTER, Settled, Todo
from rmbgd.fleet.unit_locks import UnitLocks
from rmbgd.pipeline.items import Arrival, Rejection, Timing
from rmbgd.pipeline.pipeline import images_maximum
from rmbgd.pipeline.queue import Sender
from rmbgd.sequence.sequences import Sequences
from rmbgd.store.records import Job

WAIT = 1.0  # s that one question for messages waits for the first
SEQUENCES_AT_ONCE = 4  # of one worker: one alone would leave a device idle where its frames wait for each other
LOOKS = 256  # at frames in a row: there may be many that have a result
SUSPECTS_FIRST = 10.0  # s without a new film or sequence, after an image came that is to run alone

Begun = Literal["begun", "goes_on", "busy", "dead"]
"""What became of a unit: it goes on, as this worker has it; it has no room, or another has it; or it was in work when
too many workers died."""


class Units:
    """Those that this worker has. The reconcile thread's, but for the coroutine of `locks`."""

    def __init__(
        self,
        config: Config,
        roots: Mapping[str, Root],
        sequences: Sequences,
        broker: Broker,
        worker: str,
        ledger: AttemptLedger,
        clock: Clock,
        emit: Emit,
    ) -> None:
        kinds = {name: root.folder.kind for name, root in roots.items()}
        self.films = {name for name, kind in kinds.items() if kind == "films"}
        self.sequences = {name: root for name, root in roots.items() if isinstance(root, SequenceRoot)}
        self._has_images = len(roots) > len(self.films) + len(self.sequences)
        self._consumers = {consumer(name) for name in roots if name in self}
        self._shared, self._ledger, self._clock, self._emit = sequences, ledger, clock, emit
        self._broker, self._lease, self._retry_wait = broker, config.source.lease, config.source.retry_wait
        self._connection, self._ask_own_until = 1, 0.0  # the first brings nothing that it has
        self._looking: dict[str, tuple[Delivery, Future[Todo | Settled]]] = {}  # by the reply
        self.locks = UnitLocks(broker, worker)
        self._frames_maximum = images_maximum(config.pipeline)
        self._tickets = itertools.count(1)
        self._held: deque[Held] = deque()
        self._not_before = 0.0  # monotonic s

    def __contains__(self, root: str) -> bool:
        return root in self.films or root in self.sequences

    def __len__(self) -> int:
        return len(self._held)

    def wanted(self, names: Collection[str]) -> list[str]:
        """Roots of which one more may be leased now."""
        now = self._clock.monotonic()
        if now < self._not_before or self._looking:
            return []
        if self._connection != self._broker.connections:  # what it has may come again, if the broker was away for long
            self._connection, self._ask_own_until = self._broker.connections, now + 2 * self._lease
        own = {held.announced.root for held in self._held} if now < self._ask_own_until else set()
        return [name for name in names if name in self and (self._has_room(name) or name in own)]

    def lease(self, units: Sequence[str], images: Sequence[str], room: int, waiting: WaitingMessages) -> list[Delivery]:
        """One message of these `units`, and up to `room` of these roots of images. Raises BrokerFault."""
        found: list[Delivery] = []
        for wanted, most, wait in ((units, 1, 0.0 if images else WAIT), (images, room, WAIT)):
            places = [(stream, consumer(name)) for stream in QUEUES for name in wanted]
            if not places:
                continue
            try:
                deliveries = self._broker.lease(places, most, 0.0 if found or self.wants_to_send else wait)
            except BrokerFault:
                if not found:  # else that is leased, and the next question tells
                    raise
                break
            found += deliveries
            if len(deliveries) < most:  # every place was asked
                waiting.told(dict.fromkeys(places, 0), self._clock.monotonic())
        return found

    def let_suspects_go_first(self) -> None:
        self._not_before = self._clock.monotonic() + SUSPECTS_FIRST

    def begin(self, held: Held, found: RootInput) -> Begun:
        """Raises BrokerFault, OSError; then nothing has begun."""
        announced, delivery = held.announced, held.delivery
        if (own := self._own(announced)) is not None:
            if (own.delivery.stream, own.delivery.sequence) != (delivery.stream, delivery.sequence):
                return "busy"
            own.delivery = delivery  # the broker was away for a lease: this one is extended and answered now
            if own.sequence is not None and own.sequence.stopped == "lost":
                own.sequence.stopped = "lease"
            return "goes_on"
        if not self._has_room(announced.root):
            return "busy"
        held.lock = self.locks.take(announced, delivery)
        if held.lock is None:
            return "busy"
        with ExitStack() as stack:
            stack.callback(self.locks.give, held.lock)
            begun = self._begin(held, found)
            stack.pop_all()  # it is given back at the end
        return begun

    def _begin(self, held: Held, found: RootInput) -> Begun:
        announced, delivery = held.announced, held.delivery
        is_suspect = runs_alone(delivery.deliveries, held.attempts.given_back_at)
        if (root := self.sequences.get(announced.root)) is not None:
            shared = (self._shared, self._tickets, self._clock, self._emit)
            gives_up = held.attempts.unreadable * self._retry_wait > UNREADABLE_AFTER
            held.sequence = LeasedSequence(
                announced, delivery.name, found, root, *shared, recovered=is_suspect, gives_up=gives_up
            )
        if is_suspect:
            held.attempts = self._ledger.begins_alone(announced.identity, held.attempts)
        if held.attempts.alone >= ATTEMPTS_OF_UNITS:
            held.sequence = None
            return "dead"
        self._held.append(held)
        return "begun"

    def send(self, jobs: Sender[Job], refusals: Sender[Arrival], leases: HeldLeases, closed: Collection[str]) -> bool:
        """As many frames as there is room for, of one sequence after another. Images have half of the queue.

        Answers whether it has looked at so many that it paused: call it again soon.
        """
        for held in self._held:
            while held.sequence is not None and (unread := held.sequence.unreadable()) is not None:
                leases.add_frame(held, unread.job_id)
                detail = "it could not be read for an hour, while its root could"
                refusals.send(Rejection(unread, Reason.IO_ERROR, detail, "intake", Timing()))
        room = min(jobs.free(), self._frames_maximum - sum(map(len, self._leased())))
        if self._has_images:
            room = min(room, max(1, jobs.statistics().capacity // 2) - leases.unbegun())
        looks = LOOKS
        ready = [held for held in self._held if not {"", held.announced.root} & set(closed)]
        while room > 0 and looks:
            ready = [held for held in ready if held.sequence is not None and held.sequence.may_send]
            if not ready:
                return False
            for held in ready[:room]:
                looks -= 1
                job = self._next(held)
                leases.moved(held.job.job_id, held.progress.stage, self._clock.monotonic())
                if job is not None:
                    leases.add_frame(held, job.job_id)
                    jobs.send(job)
                    room -= 1
                if not looks:
                    break
        self._held.rotate(-1)
        return not looks

    @property
    def wants_to_send(self) -> bool:
        return any(sequence.may_send for sequence in self._leased())

    def stop(self, why: str, roots: Collection[str] | None = None) -> None:
        """Send nothing more of the sequences of these roots, or of any: other workers go on with them."""
        for sequence in self._leased():
            if roots is None or sequence.announced.root in roots:
                sequence.stop(why)

    def settle(self) -> list[tuple[Held, Ending, str]]:
        """Sequences that have ended, each once; how, and why it was stopped."""
        found: list[tuple[Held, Ending, str]] = []
        for held in self._held:
            if held.sequence is not None:
                if held.lock is not None and held.lock.is_lost:
                    held.sequence.stop("lost")
                if ending := held.sequence.ending():
                    self._count_unreadable(held)
                    found.append((held, ending, held.sequence.stopped))
        return found

    def _count_unreadable(self, held: Held) -> None:
        assert held.sequence is not None
        if held.sequence.stopped == "storage" and not held.sequence.root.trouble():
            with suppress(BrokerFault):
                held.attempts = self._ledger.unreadable(held.announced.identity, held.attempts)

    # ------------------------------------------------------------------------------------------------ looks

    def is_one(self, delivery: Delivery) -> bool:
        return delivery.consumer in self._consumers

    def look(self, delivery: Delivery, seen: Future[Todo | Settled]) -> None:
        """What there is to do for it is being looked at."""
        self._looking[delivery.reply] = delivery, seen

    def looked(self) -> list[Todo | Settled]:
        found = [(reply, seen) for reply, (_, seen) in self._looking.items() if seen.done()]
        for reply, _ in found:
            del self._looking[reply]
        return [seen.result() for _, seen in found]

    def replies_looked_at(self) -> list[str]:
        """The loop's: of leases that are to be extended meanwhile."""
        return list(self._looking.copy())

    def stop_looking(self) -> list[Delivery]:
        found, self._looking = [delivery for delivery, _ in self._looking.values()], {}
        return found

    # ------------------------------------------------------------------------------------------------ the end of one

    def end(self, held: Held) -> None:
        with suppress(ValueError):
            self._held.remove(held)
        if held.lock is not None:
            self.locks.give(held.lock)

    def describe(self, root: str | None) -> list[dict[str, object]]:
        """Sequences, for people."""
        return [each.describe() for each in self._leased() if root in (None, each.announced.root)]

    def _next(self, held: Held) -> Job | None:
        assert held.sequence is not None
        try:
            return held.sequence.next()
        except OSError:
            held.sequence.stop("storage")
            return None

    def _own(self, announced: Announcement) -> Held | None:
        """The one that this worker has already, or another version of it."""
        place = (announced.root, announced.key)
        return next((held for held in self._held if (held.announced.root, held.announced.key) == place), None)

    def _has_room(self, root: str) -> bool:
        count = sum((held.sequence is None) == (root in self.films) for held in self._held)
        return count < (1 if root in self.films else SEQUENCES_AT_ONCE)

    def _leased(self) -> Sequence[LeasedSequence]:
        return [held.sequence for held in self._held if held.sequence is not None]
