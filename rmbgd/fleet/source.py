"""Leases images from the queue: a Source whose claims are leases on NATS JetStream instead of renames in a folder.

Takes as many names as the pipeline has room for, extends a lease while its image moves, acknowledges it once the result
is in its root and the event is written, and gives back what it cannot do now. What a worker left that died runs
alone. The queue is only told what the roots say: an image that has its answer there is not computed again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from rmbgd.fleet.pulls import ACK, BrokerFault, Delivery, NotConnected, put_back
from rmbgd.fleet.root import Root, job_of
from rmbgd.fleet.streams import clock_ahead, unfit
from rmbgd.fleet.triage import UNSEEN_WAIT, Todo, Triage
from rmbgd.fleet.workers import WorkerReports, worker_name
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.inbox import Inbox
from rmbgd.intake.source import IntakeQuestion, IntakeStatistics
from rmbgd.intake.startup_recovery import Recovered
from rmbgd.intake.watcher import FolderWatch
from rmbgd.mounts import free_bytes, is_there
from rmbgd.pipeline.items import Arrival, Rejection, Timing
from rmbgd.pipeline.pipeline import images_maximum
from rmbgd.pipeline.queue import Sender
from rmbgd.store.outbox import job_keys
from rmbgd.store.records import Job

MOST_DOWNLOADS = 16  # images of buckets taken at once: all of them must be here before their leases end
LOOKS_AT_ONCE = 8  # images whose roots are asked at the same time: a share answers in milliseconds, but each waits
WAIT = 1.0  # s that one question for messages waits for the first
SUSPECTS_HELD = 8  # that wait here for their turn to run alone; more go back to the queue
QUEUE_NAMES = {message.HOT: "hot", message.BULK: "bulk"}  # in the status file and the metrics
FAILURES_TOLD = 5  # in a row: a connection that does not answer is given up before
CLOCKS_APART, CLOCKS_EVERY = 60.0, 3600.0  # s
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
    ) -> None:
        super().__init__()
        self._config, self._broker, self._roots, self._worker = config, broker, roots, worker_name()
        self._clock, self._emit, self._heartbeat, self._on_compared = clock, emit, heartbeat, on_compared
        source = config.source
        self._times, self._retry_wait = LeaseTimes(source.lease, source.lease_maximum), source.retry_wait
        self._ledger = AttemptLedger(broker, self._worker)
        self._triage = Triage(roots, self._ledger, emit, source.retry_wait)
        self._reports = WorkerReports(broker, self._worker, self._report, self.drain)
        self._describe_service = describe
        self._reported = (clock.monotonic(), 0)  # when, and how many had ended; the loop's
        self._window = Window(images_maximum(config.pipeline), self._times)
        self._space = DiskSpaceGuard(config, emit)
        self._held = HeldLeases()
        self._entered: dict[str, float] = {}  # stage -> when an image last went on to it; single writes
        self._suspects: list[Held] = []
        self._owed: list[tuple[str, bytes]] = []  # answers that the broker has not taken yet
        self._away: dict[str, str] = {}  # roots that are not there -> why
        self._unusable: dict[str, str] = {}  # roots whose messages cannot be served here -> why
        self._avoided: dict[str, float] = {}  # those of which nothing is leased until then
        self._stale: deque[int] = deque()  # jobs that were not begun and do not move; the loop appends
        self._lapsed: deque[int] = deque()  # jobs that were begun and do not move; the loop appends
        self._clocks = ""  # how they differ
        self._unstored = ""  # why a dead letter could not be
        self._next_root_check = self._next_clocks = self._failures = 0.0
        self._asked = False
        self._checked = 0  # the connection whose streams and consumers are as they should be
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

    def moved(self, job: Job, stage: str) -> None:
        now = self._clock.monotonic()
        self._held.moved(job.job_id, stage, now)
        self._entered[stage] = now

    def drain(self, drained: bool) -> None:
        """An administrator wants this worker to lease nothing more, or to go on."""
        if drained != self._drained:
            self._drained = drained
            self._emit("source.drained" if drained else "source.undrained", worker=self._worker)
            self.wake()

    def ask(self, question: IntakeQuestion, timeout: float) -> list[dict[str, object]] | None:  # noqa: ARG002
        """What waits is in the queue, where nobody can list it."""
        if not question.in_work:
            return []
        now = self._clock.monotonic()
        jobs = [held.job for held in self._held.all()]
        wanted = sorted((job for job in jobs if question.folder in (None, job.folder)), key=lambda job: job.claimed_at)
        return [
            {"folder": job.folder, "path": job.relative_path, "job": job.job_id, "attempt": job.attempt}
            | {"seconds": round(max(0.0, now - job.claimed_at), 3), "bytes": job.version.size}
            for job in wanted[: question.limit]
        ]

    def finish_returns(self) -> int:
        count = self._settle()
        with suppress(BrokerFault):  # what arrived behind the last question
            self._owed += [(each.reply, self._triage.untaken(each)) for each in self._broker.end_leasing()]
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
        with jobs, refusals:
            while not self._closing:
                self._heartbeat.waiting()  # for the broker, each of whose answers has a deadline
                self._settle()
                self._heartbeat.working()
                self._look_after()
                self._send_suspect(jobs)
                self._take(jobs, refusals)

    def _look_after(self) -> None:
        """What is due now and then."""
        self._broker.check()
        now = self._clock.monotonic()
        if now >= self._next_root_check:
            self._next_root_check = now + self._config.intake.root_check
            self._check_roots()
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
        cause = self._away.get(root) or self._unusable.get(root) or self._unusable.get("")
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

    def _check_roots(self) -> None:
        for name, root in self._roots.items():
            folder = root.folder
            there = is_there(str(folder.input), require_mount=folder.require_mount) and os.path.isdir(folder.output)
            cause = "" if there else "missing"
            if cause and name not in self._away:
                self._away[name] = cause
                self._emit("folder.waiting", folder=name, cause=cause)
            elif not cause and self._away.pop(name, None) is not None:
                self._emit("folder.watching", folder=name, mode="lease", file_system="", watches=0)

    def _take(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        """Lease as many as there is room for, and send on what is to be done."""
        now = self._clock.monotonic()
        avoided = {root for root, until in self._avoided.items() if until > now}
        closed = self._closed() | avoided
        names = [] if self._drained or "" in closed else [name for name in self._roots if name not in closed]
        room = min(jobs.free(), int(self._window.size) - len(self._held))
        room = min(room, MOST_DOWNLOADS) if self._config.bucket else room
        names.sort(key=lambda name: -self._roots[name].folder.priority)
        places = [(stream, message.consumer(name)) for stream in message.QUEUES for name in names]
        idle = not names or room <= 0 or bool(self._suspects)
        self._heartbeat.waiting()
        try:
            if not idle:
                self._check_queue()
            deliveries = self._broker.arrived() if idle else self._broker.lease(places, room, WAIT)
        except BrokerFault as fault:
            self._heard_from_broker(fault)
            return
        if idle and not deliveries:
            self._compared()
            self._sleep(WAIT / 4 if self._suspects else WAIT, self._heartbeat)
            return
        self._heard_from_broker(None)
        self._heartbeat.working()
        now = self._clock.monotonic()
        if not idle and len(deliveries) < room:  # every place was asked
            self._waiting_there.told(dict.fromkeys(places, 0), now)
        self._waiting_there.told({(each.stream, each.consumer): each.waiting for each in deliveries}, now)
        if self._config.bucket:
            self._heartbeat.waiting()  # for the storage, each of whose answers has a deadline
        avoid: dict[str, str] = {}
        served: set[str] = set()  # consumers that brought something usable
        for seen in self._looks.map(self._triage.look, deliveries):
            if isinstance(seen, Todo):
                self._begin(seen, jobs, refusals)
            else:
                stored = not seen.dead or self._bury(seen.delivery, seen.dead)
                self._owe(seen.delivery, seen.word if stored else put_back(self._retry_wait))
                avoid.update([seen.avoid] if seen.avoid is not None else [])
            if isinstance(seen, Todo) or seen.avoid is None:
                served.add(seen.delivery.consumer)
        for root in self._roots:
            if message.consumer(root) in served:
                self._unusable.pop(root, None)
            elif root in avoid:
                self._avoid(root, avoid[root])

    def _closed(self) -> set[str]:
        """Roots of which nothing is to be begun; "" stands for all."""
        return {*self._paused_folders(), *self._space.closed, *self._by_operator, *self._away}

    def _check_queue(self) -> None:
        """Once for each connection, until it is fit. Raises BrokerFault."""
        if self._checked != (connection := self._broker.connections):
            if found := unfit(self._broker, self._roots, self._times.lease):
                raise BrokerFault("unfit", f"{found[0]}; mend it with `rmbgd fleet setup --change`")
            self._checked = connection
        if (now := self._clock.monotonic()) >= self._next_clocks:
            self._compare_clocks()
            self._next_clocks = now + CLOCKS_EVERY

    def _compare_clocks(self) -> None:
        ahead = clock_ahead(self._broker)
        self._clocks = ""
        if abs(ahead) > CLOCKS_APART:
            way = "ahead of" if ahead > 0 else "behind"
            self._clocks = f"its clock is {round(abs(ahead))} s {way} the broker's; set both by NTP"
            self._emit("source.clock", seconds=round(abs(ahead), 1), detail=self._clocks)

    def _compared(self) -> None:
        if not self._asked:
            self._asked = True
            self._on_compared()

    def _heard_from_broker(self, fault: BrokerFault | None) -> None:
        """The connection tells of itself; what is said here is what a broker that is there lacks."""
        self._compared()
        if fault is None:
            self._failures = 0
            self._unusable.pop("", None)
            return
        self._failures += 1
        # One question without an answer is no news where the next has one.
        if fault.kind != "unreachable" or self._failures >= FAILURES_TOLD:
            if self._unusable.get("") != fault.detail and not isinstance(fault, NotConnected):
                self._emit("source.unusable", detail=fault.detail)
            self._unusable[""] = fault.detail
        self._sleep(backoff(int(self._failures), 0.25, self._retry_wait), self._heartbeat)

    # ------------------------------------------------------------------------------------------------ one lease

    def _begin(self, todo: Todo, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        announced, found, now = todo.announced, todo.found, self._clock.monotonic()
        job = job_of(announced, found, now, lease=todo.delivery.name, attempt=todo.attempts.alone + 1)
        held = Held(todo.delivery, announced, todo.attempts, LeaseProgress(now, LEASED, now), job)
        self._held.add(held)
        if found.state == "refused":
            self._refuse(held, found.reason, found.detail, refusals)
        elif held.attempts.alone >= ATTEMPTS_ALONE:
            detail = f"the worker died {held.attempts.alone} times while it ran alone, and once or more beside others"
            held.is_dead = True
            self._refuse(held, Reason.CRASH_LOOP, detail, refusals)
        elif runs_alone(held.delivery.deliveries, held.attempts.given_back_at):
            if len(self._suspects) < SUSPECTS_HELD:
                self._suspects.append(held)
            else:  # still a suspect when it comes back
                self._end(held, put_back(UNSEEN_WAIT))
        else:
            jobs.send(job)

    def _refuse(self, held: Held, reason: Reason, detail: str, refusals: Sender[Arrival]) -> None:
        refusals.send(Rejection(held.job, reason, detail, "intake", Timing()))

    def _send_suspect(self, jobs: Sender[Job]) -> None:
        """One at a time, and nothing beside it."""
        busy = any(held.alone for held in self._held.all()) or len(self._held) > len(self._suspects)
        closed = self._closed()
        held = next((each for each in self._suspects if not {"", each.announced.root} & closed), None)
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
            question.answer.put([])
        for job_id in notes.ended:
            if (held := self._held.get(job_id)) is not None:
                self._done(held)
        for job, why in notes.returns:
            if (held := self._held.get(job.job_id)) is not None:
                self._returned(held, why)
        for held in filter(None, map(self._held.get, _taken(self._stale))):
            if held in self._suspects:  # it stays one
                self._suspects.remove(held)
            else:  # begun here all the same, it is done twice
                self._forgive(held)
            self._end(held, put_back())
        for held in filter(None, map(self._held.get, _taken(self._lapsed))):
            if {"", held.announced.root} & self._closed():  # it waits for a disk, and is not to blame
                self._forgive(held)
        everything = self._closing or self._drained or "" in self._by_operator
        for held in list(self._suspects):  # what was not begun
            if everything or held.announced.root in self._by_operator:
                self._suspects.remove(held)
                self._end(held, put_back())
        self._pay()
        return len(notes.returns)

    def _done(self, held: Held) -> None:
        if held.is_dead and not self._bury(held.delivery, held.announced.root):
            self._end(held, put_back(self._retry_wait))  # its root has the answer then, and only this is left
            return
        self._entered["ended"] = now = self._clock.monotonic()
        self._window.ended(now - held.progress.leased_at)
        if held.delivery.deliveries > 1:
            self._ledger.forget(held.announced.identity)
        self._end(held, ACK)

    def _bury(self, delivery: Delivery, root: str) -> bool:
        """A dead letter, for `rmbgd fleet retry-dead`; its refusal is in the root already. Was it stored?"""
        subject = f"{message.DEAD_SUBJECT}.{message.token(root)}"
        try:
            [fault] = self._broker.publish([(subject, delivery.data, "")])
        except BrokerFault as error:
            fault = error
        if fault is not None and not isinstance(fault, NotConnected) and self._unstored != fault.detail:
            self._unstored = fault.detail
            self._emit("source.unusable", folder=root, detail=f"a dead letter cannot be stored: {fault.detail}")
        return fault is None

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

    def _end(self, held: Held, word: bytes) -> None:
        self._held.remove(held)
        self._roots[held.announced.root].discard(held.job)
        self._owe(held.delivery, word)

    def _avoid(self, root: str, why: str) -> None:
        """Lease nothing of it for a while: its images wait in the queue, for machines that can."""
        self._avoided[root] = self._clock.monotonic() + self._retry_wait
        if self._unusable.get(root) != why:
            self._unusable[root] = why
            self._emit("source.unusable", folder=root, detail=why)

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
        trouble = {"": self._clocks} if self._clocks else {}
        trouble |= {name: f"it is {cause}" for name, cause in dict(self._away).items()} | dict(self._unusable)
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
            await self._broker.extend([held.delivery.reply for job, held in leases.items() if job in moving])
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
