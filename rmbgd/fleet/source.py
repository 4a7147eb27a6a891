"""Leases images from the queue: a Source whose claims are leases on NATS JetStream instead of renames in a folder.

Takes as many names as the pipeline has room for, extends a lease while its image moves, acknowledges it once the result
is in its root and the event is written, and gives back what it cannot do now. What a worker left that died runs
alone. The queue is only told what the roots say: an image that has its answer there is not computed again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from rmbgd.clock import Clock, backoff
from rmbgd.config.load import Config
from rmbgd.errors import Reason
from rmbgd.events import Emit
from rmbgd.fleet import message
from rmbgd.fleet.attempts import AttemptLedger
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.dead import DeadLetters
from rmbgd.fleet.held import Held, HeldLeases
from rmbgd.fleet.lease import (
    ATTEMPTS_ALONE,
    LEASED,
    LeaseProgress,
    LeaseTimes,
    WaitingMessages,
    Window,
    may_extend,
    runs_alone,
)
from rmbgd.fleet.leased_sequence import Ending
from rmbgd.fleet.pulls import ACK, BrokerFault, Delivery, NotConnected, put_back
from rmbgd.fleet.queue_check import QueueCheck
from rmbgd.fleet.root import Root, RootInput, job_of
from rmbgd.fleet.root_states import RootStates
from rmbgd.fleet.suspects import LeasedSuspects
from rmbgd.fleet.triage import UNSEEN_WAIT, Settled, Todo, Triage
from rmbgd.fleet.units import WAIT, Begun, Units
from rmbgd.fleet.workers import WorkerReports, worker_name
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.inbox import Inbox
from rmbgd.intake.source import IntakeQuestion, IntakeStatistics
from rmbgd.intake.startup_recovery import Recovered
from rmbgd.intake.watcher import FolderWatch
from rmbgd.mounts import free_bytes
from rmbgd.pipeline.items import Arrival, Rejection, Timing
from rmbgd.pipeline.pipeline import images_maximum
from rmbgd.pipeline.queue import Sender
from rmbgd.sequence.sequences import Sequences
from rmbgd.store.outbox import job_keys
from rmbgd.store.records import Job

MOST_DOWNLOADS = 16  # images of buckets taken at once: all of them must be here before their leases end
LOOKS_AT_ONCE = 8  # images whose roots are asked at the same time: a share answers in milliseconds, but each waits
QUEUE_NAMES = {message.HOT: "hot", message.BULK: "bulk"}  # in the status file and the metrics
FAILURES_TOLD = 5  # in a row: a connection that does not answer is given up before
STOP_PATIENCE = 5.0  # s for what is still owed to the broker


class LeaseSource(Inbox):
    """`run` and every method with a leading underscore are the reconcile thread's, but `_extend`, which is the loop's.

    describe     what the service says of itself for the fleet's status; called on the loop
    on_compared  called once the broker has been asked for the first time, whether it answered or not
    """

    def __init__(
        self,
        config: Config,
        *,
        broker: Broker,
        roots: Mapping[str, Root],
        clock: Clock,
        emit: Emit,
        heartbeat: Heartbeat,
        describe: Callable[[], Mapping[str, object]],
        on_compared: Callable[[], None],
        sequences: Sequences,
    ) -> None:
        super().__init__()
        self._config, self._broker, self._roots, self._worker = config, broker, roots, worker_name()
        self._clock, self._emit, self._heartbeat, self._on_compared = clock, emit, heartbeat, on_compared
        source = config.source
        self._times, self._retry_wait = LeaseTimes(source.lease, source.lease_maximum), source.retry_wait
        self._ledger = AttemptLedger(broker, self._worker)
        self._units = Units(config, roots, sequences, broker, self._worker, self._ledger, clock, emit)
        self._triage = Triage(roots, self._ledger, emit, source.retry_wait)
        self._reports = WorkerReports(broker, self._worker, self._report, self.drain)
        self._describe_service = describe
        self._reported = (clock.monotonic(), 0)  # when, and how many had ended; the loop's
        self._window = Window(images_maximum(config.pipeline), self._times)
        self._space = DiskSpaceGuard(config, emit)
        self._held = HeldLeases()
        self._entered: dict[str, float] = {}  # stage -> when an image last went on to it; single writes
        self._suspects = LeasedSuspects()
        self._owed: list[tuple[str, bytes]] = []  # answers that the broker has not taken yet
        self._states = RootStates(roots, config.intake.root_check, source.retry_wait, clock, emit)
        self._stale: deque[int] = deque()  # jobs that were not begun and do not move; the loop appends
        self._lapsed: deque[int] = deque()  # jobs that were begun and do not move; the loop appends
        self._queue = QueueCheck(broker, roots, source.lease, clock, emit)
        self._dead = DeadLetters(broker, emit)
        self._failures = 0
        self._asked = False
        self._drained = False
        self._waiting_there = WaitingMessages()
        self._statistics = IntakeStatistics()
        self._looks = ThreadPoolExecutor(LOOKS_AT_ONCE, "look")

    # ------------------------------------------------------------------------------------------------ as a Source

    @property
    def watches(self) -> Sequence[FolderWatch]:
        return ()

    def recover(self, alive: Callable[[], None] = lambda: None) -> Recovered:
        """Nothing: leases of the last run expire, or were given back. The connection is begun."""
        alive()
        self._broker.start()
        self._broker.every(self._reports.run)
        return Recovered()

    def hold_suspects(self) -> None:
        """Nothing: what a worker died with runs alone, on whichever has it next."""

    def statistics(self) -> IntakeStatistics:
        return self._statistics

    def moved(self, job: int, stage: str) -> None:
        now = self._clock.monotonic()
        self._held.moved(job, stage, now)
        self._entered[stage] = now

    def drain(self, drained: bool) -> None:
        """An administrator wants this worker to lease nothing more, or to go on."""
        if drained != self._drained:
            self._drained = drained
            self._emit("source.drained" if drained else "source.undrained", worker=self._worker)
            self.wake()

    def ask(self, question: IntakeQuestion, timeout: float) -> list[dict[str, object]] | None:
        """What waits is in the queue, where nobody can list it."""
        if question.about == "sequences":
            return super().ask(question, timeout)
        if not question.in_work:
            return []
        return self._held.describe(question.folder, question.limit, self._clock.monotonic())

    def finish_returns(self) -> int:
        count = self._settle()
        with suppress(BrokerFault):  # what arrived behind the last question
            untaken = [*self._units.stop_looking(), *self._broker.end_leasing()]
            self._owed += [(each.reply, self._triage.untaken(each)) for each in untaken]
        deadline = self._clock.monotonic() + STOP_PATIENCE
        while self._owed and self._clock.monotonic() < deadline:
            time.sleep(0.1)
            self._pay()
        return count

    def release(self) -> None:
        self._looks.shutdown(wait=False, cancel_futures=True)
        self._broker.close(self._reports.withdraw)

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        """Until closed; leases of images that are in work are extended until the service has ended."""
        self._broker.every(self._keep_alive)
        self._broker.every(self._units.locks.run)
        with jobs, refusals:
            while not self._closing:
                self._heartbeat.waiting()  # for the broker, each of whose answers has a deadline
                self._settle()
                self._heartbeat.working()
                self._look_after()
                self._send_suspect(jobs)
                self._judge(self._units.looked(), jobs, refusals)
                if self._units.send(jobs, refusals, self._held, self._closed()):
                    self.wake()
                self._take(jobs, refusals)

    def _look_after(self) -> None:
        """What is due now and then."""
        self._broker.check()
        now = self._clock.monotonic()
        self._states.check()
        if self._space.due(now):
            self._space.check(now, {folder: free_bytes(path) for folder, path in self._space.outputs.items()})
        waiting = self._waiting_there.known(now)
        self._statistics = IntakeStatistics(
            waiting=sum(waiting.values()),
            in_flight=len(self._held),
            paused=self._why_paused(),
            folders={name: self._describe(name, waiting) for name in self._roots},
        )

    def _describe(self, root: str, there: Mapping[tuple[str, str], int]) -> dict[str, object]:
        cause = self._states.cause(root)
        name = message.consumer(root)
        waiting = {short: there[stream, name] for stream, short in QUEUE_NAMES.items() if (stream, name) in there}
        return {"mode": "lease", "waiting": waiting, **({"cause": cause} if cause else {})}

    def _why_paused(self) -> str | None:
        if self._drained:
            return "drained"
        if self._by_operator:
            return ":".join(filter(None, ("operator", ",".join(sorted(self._by_operator - {""})))))
        if self._space.closed:
            return "disk_full"
        return next(iter(self._paused_folders().values()), None) or ("broker" if self._failures else None)

    def _take(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        """Lease as many as there is room for, and send on what is to be done."""
        closed = self._closed() | self._states.avoided()
        names = [] if self._drained or "" in closed else [name for name in self._roots if name not in closed]
        names.sort(key=lambda name: -self._roots[name].folder.priority)
        units, images = self._units.wanted(names), [name for name in names if name not in self._units]
        room = min(jobs.free(), int(self._window.size) - len(self._held) + len(self._units))
        room = min(room, MOST_DOWNLOADS) if self._config.bucket else room
        images = images if room > 0 else []
        units = units if jobs.free() else []
        idle = not (units or images) or bool(self._suspects)
        self._heartbeat.waiting()
        try:
            if not idle:
                self._queue.check()
            deliveries = self._broker.arrived() if idle else self._units.lease(units, images, room, self._waiting_there)
        except BrokerFault as fault:
            self._heard_from_broker(fault)
            return
        if not deliveries and (idle or self._units.wants_to_send):
            if idle:
                self._compared()
            else:
                self._heard_from_broker(None)
            self._sleep(WAIT / 4 if self._suspects or not idle else WAIT, self._heartbeat)
            return
        self._heard_from_broker(None)
        self._heartbeat.working()
        told = {(each.stream, each.consumer): each.waiting for each in deliveries}
        self._waiting_there.told(told, self._clock.monotonic())
        if self._config.bucket:
            self._heartbeat.waiting()  # for the storage, each of whose answers has a deadline
        for delivery in filter(self._units.is_one, deliveries):  # its frames are listed, which may take long
            self._units.look(delivery, seen := self._looks.submit(self._triage.look, delivery))
            seen.add_done_callback(lambda _: self.wake())
        others = [delivery for delivery in deliveries if not self._units.is_one(delivery)]
        self._judge(self._looks.map(self._triage.look, others), jobs, refusals)

    def _judge(self, looks: Iterable[Todo | Settled], jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        avoid: dict[str, str] = {}
        served: set[str] = set()  # consumers that brought something usable
        for seen in looks:
            if isinstance(seen, Todo):
                self._begin(seen, jobs, refusals)
            else:
                stored = not seen.dead or self._dead.bury(seen.delivery, seen.dead)
                self._owe(seen.delivery, seen.word if stored else put_back(self._retry_wait))
                avoid.update([seen.avoid] if seen.avoid is not None else [])
            if isinstance(seen, Todo) or seen.avoid is None:
                served.add(seen.delivery.consumer)
        self._states.seen({root for root in self._roots if message.consumer(root) in served}, avoid)

    def _closed(self) -> set[str]:
        """Roots of which nothing is to be begun; "" stands for all."""
        return {*self._paused_folders(), *self._space.closed, *self._by_operator, *self._states.away}

    def _compared(self) -> None:
        if not self._asked:
            self._asked = True
            self._on_compared()

    def _heard_from_broker(self, fault: BrokerFault | None) -> None:
        """The connection tells of itself; what is said here is what a broker that is there lacks."""
        self._compared()
        if fault is None:
            self._failures = 0
            self._states.unusable.pop("", None)
            return
        self._failures += 1
        # One question without an answer is no news where the next has one.
        if fault.kind != "unreachable" or self._failures >= FAILURES_TOLD:
            if self._states.unusable.get("") != fault.detail and not isinstance(fault, NotConnected):
                self._emit("source.unusable", detail=fault.detail)
            self._states.unusable[""] = fault.detail
        self._sleep(backoff(self._failures, 0.25, self._retry_wait), self._heartbeat)

    # ------------------------------------------------------------------------------------------------ one lease

    def _begin(self, todo: Todo, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        announced, found, now = todo.announced, todo.found, self._clock.monotonic()
        job = job_of(announced, found, now, lease=todo.delivery.name, attempt=todo.attempts.alone + 1)
        progress = LeaseProgress(now, LEASED, now, is_unit=announced.root in self._units)
        held = Held(todo.delivery, announced, todo.attempts, progress, job)
        self._held.add(held)
        if found.state == "refused":
            self._refuse(held, found.reason, found.detail, refusals)
        elif held.progress.is_unit:
            self._begin_unit(held, found, jobs, refusals)
        elif held.attempts.alone >= ATTEMPTS_ALONE:
            detail = f"the worker died {held.attempts.alone} times while it ran alone, and once or more beside others"
            held.is_dead = True
            self._refuse(held, Reason.CRASH_LOOP, detail, refusals)
        elif runs_alone(held.delivery.deliveries, held.attempts.given_back_at):
            if len(self._units):
                self._units.let_suspects_go_first()
            if len(self._units) or not self._suspects.add(held):  # still a suspect when it comes back
                self._end(held, put_back(UNSEEN_WAIT))
        else:
            jobs.send(job)

    def _begin_unit(self, held: Held, found: RootInput, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        begun: Begun = "busy"
        with suppress(BrokerFault, OSError):
            if not len(self._suspects):
                begun = self._units.begin(held, found)
        if begun == "goes_on":
            self._held.remove(held)
        elif begun == "dead":
            held.is_dead = True
            self._refuse(held, Reason.CRASH_LOOP, f"{held.attempts.alone} workers died while it was in work", refusals)
        elif begun == "busy":
            if not runs_alone(held.delivery.deliveries, held.attempts.given_back_at):
                self._forgive(held)
            self._end(held, put_back(self._retry_wait))
        elif held.sequence is None:
            jobs.send(held.job)

    def _refuse(self, held: Held, reason: Reason, detail: str, refusals: Sender[Arrival]) -> None:
        refusals.send(Rejection(held.job, reason, detail, "intake", Timing()))

    def _send_suspect(self, jobs: Sender[Job]) -> None:
        """One at a time, and nothing beside it."""
        busy = any(held.alone for held in self._held.all()) or len(self._held) > len(self._suspects)
        held = self._suspects.next(self._closed())
        if held is None or busy or not jobs.free():
            return
        try:
            held.attempts = self._ledger.begins_alone(held.announced.identity, held.attempts)
        except BrokerFault:  # it could not be counted, so it does not begin
            return
        self._suspects.remove(held)
        held.alone = True
        jobs.send(held.job)

    # ------------------------------------------------------------------------------------------------ the end of one

    def _settle(self) -> int:
        """Answer for what the pipeline has ended or put back; how many were put back."""
        notes = self._take_notes()
        for question in notes.questions:
            question.answer.put(self._units.describe(question.folder)[: question.limit])
        for job_id in notes.ended:
            if (held := self._held.pop_frame(job_id)) is not None and held.sequence is not None:
                held.sequence.ended(job_id)
            elif (held := self._held.get(job_id)) is not None:
                self._done(held)
        for job, why in notes.returns:
            if (held := self._held.pop_frame(job.job_id)) is not None and held.sequence is not None:
                held.sequence.returned(job.job_id, why)
            elif (held := self._held.get(job.job_id)) is not None:
                self._returned(held, why)
        for held in filter(None, map(self._held.get, _taken(self._stale))):
            if held.sequence is not None:
                held.sequence.stop("stale")
            else:
                if not self._suspects.remove(held):  # else it stays one; begun here all the same, it is done twice
                    self._forgive(held)
                self._end(held, put_back())
        for held in filter(None, map(self._held.get, _taken(self._lapsed))):
            if {"", held.announced.root} & self._closed():  # it waits for a disk, and is not to blame
                self._forgive(held)
            if held.sequence is not None:  # another worker goes on with it
                held.sequence.stop("lost")
        everything = self._closing or self._drained or "" in self._by_operator
        shut = {*self._by_operator, *self._space.closed, *self._states.away}
        self._units.stop("stopping", None if everything or "" in shut else shut)
        for held, ending, why in self._units.settle():
            self._sequence_over(held, ending, why)
        for held in self._suspects.take_out(None if everything else self._by_operator):  # what was not begun
            self._end(held, put_back())
        self._pay()
        return len(notes.returns)

    def _done(self, held: Held) -> None:
        if held.is_dead and not self._dead.bury(held.delivery, held.announced.root):
            self._end(held, put_back(self._retry_wait))  # its root has the answer then, and only this is left
            return
        self._entered["ended"] = now = self._clock.monotonic()
        if not held.progress.is_unit:
            self._window.ended(now - held.progress.leased_at)
        if held.delivery.deliveries > 1:
            self._ledger.forget(held.announced.identity)
        self._end(held, ACK)

    def _forgive(self, held: Held) -> None:
        """It is no suspect for the next worker, and this was no attempt."""
        attempts = replace(held.attempts, alone=held.attempts.alone - held.alone)
        self._ledger.given_back(held.announced.identity, attempts, held.delivery.deliveries)

    def _returned(self, held: Held, why: str) -> None:
        """It could not be judged: another worker may, or this one later."""
        self._entered["ended"] = self._clock.monotonic()
        if why in ("changed", "vanished"):
            announced = held.announced
            try:
                now = self._roots[announced.root].fingerprint(announced.key)
            except OSError:
                now = announced.fingerprint
            if now != announced.fingerprint:
                state = "gone" if now is None else "superseded"
                self._triage.tell(held.delivery, announced, why=state, detail="while it was worked on")
                self._ledger.forget(announced.identity)
                self._end(held, ACK)
                return
        delay = 0.0 if why in ("stopping", "changed", "review") else self._retry_wait
        self._forgive(held)
        self._end(held, put_back(delay))

    def _sequence_over(self, held: Held, ending: Ending, why: str) -> None:
        if ending in ("answered", "gone"):
            detail = "done" if ending == "answered" else "while it was worked on"
            self._triage.tell(held.delivery, held.announced, why=ending, detail=detail)
        if ending != "stopped":
            self._done(held)
        elif why == "lost":  # another worker has it, and nothing is to be said of its lease
            self._end(held, b"")
        else:
            self._forgive(held)
            self._end(held, put_back(0.0 if why == "stopping" else self._retry_wait))

    def _end(self, held: Held, word: bytes) -> None:
        self._held.remove(held)
        self._units.end(held)
        self._roots[held.announced.root].discard(held.job)
        if word:
            self._owe(held.delivery, word)

    def _owe(self, delivery: Delivery, word: bytes) -> None:
        """Any thread. Sent soon, over whichever connection; one that never is costs a second look."""
        self._owed.append((delivery.reply, word))

    def _pay(self) -> None:
        owed, self._owed = self._owed, []
        try:
            self._broker.answer(owed)
        except BrokerFault:
            self._owed = [*owed, *self._owed][-10_000:]

    # ------------------------------------------------------------------------------------------------ the loop's

    def _report(self) -> dict[str, object]:
        """For the fleet's status."""
        (before, count), now, ended = self._reported, self._clock.monotonic(), self._ended_total
        self._reported = (now, ended)
        rate = (ended - count) / max(now - before, 1e-3)
        trouble = {"": self._queue.clocks} if self._queue.clocks else {}
        trouble |= self._states.troubles()
        told: dict[str, object] = {"rate": round(rate, 3), "leases": len(self._held), "trouble": trouble}
        told |= {"paused": self._statistics.paused, "roots": sorted(self._roots)}
        return told | dict(self._describe_service())

    async def _keep_alive(self) -> None:
        """Extend the leases of images that move. Of one that does not, tell once."""
        told: set[int] = set()
        while True:
            await asyncio.sleep(self._times.interval)
            now = self._clock.monotonic()
            leases = {held.job.job_id: held for held in self._held.all()}
            moving = {job for job, held in leases.items() if may_extend(held.progress, self._entered, now, self._times)}
            replies = [held.delivery.reply for job, held in leases.items() if job in moving]
            await self._broker.extend([*replies, *self._units.replies_looked_at()])
            for job, held in leases.items():
                if job in moving | told:
                    continue
                if held.progress.stage == LEASED:
                    self._stale.append(job)
                else:
                    self._lapsed.append(job)
                    self._emit("lease.lost", **job_keys(held.job), stage=held.progress.stage)
            told = leases.keys() - moving


def _taken(jobs: deque[int]) -> list[int]:
    """What is there, while another thread appends."""
    return [jobs.popleft() for _ in range(len(jobs))]
