"""Announces complete images on the queue: takes the place of the pipeline in a service that does not compute.

The intake, with all its checks, hands over what is complete; its name is published, and the ledger remembers that. A
queue that is full, or a broker that is away, makes the intake wait; the files wait in their folders. Frames are taken
one by one, and their sequence is announced when the intake says that it is over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rmbgd.clock import backoff
from rmbgd.engine.types import EngineDescription
from rmbgd.errors import StorageFault
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import HOT, Announcement, queue_for
from rmbgd.fleet.pulls import BrokerFault, NotConnected
from rmbgd.fleet.root import Root
from rmbgd.fleet.sequence_root import SequenceRoot, sequence_key
from rmbgd.fleet.share import fingerprint_of
from rmbgd.fs import storage_faults
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.items import Arrival, Postponed, Rejection
from rmbgd.pipeline.pipeline import PipelineContext
from rmbgd.pipeline.queue import NoSenders, QueueStatistics, Receiver, Sender, queue
from rmbgd.pipeline.storage_retry import Released
from rmbgd.publish.publisher import SourceChanged
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import Job, Leased

BATCH = 64  # names that are published before their answers are waited for
RETRY_FIRST = 0.25  # s
FAILURES_TOLD = 5  # in a row, without an answer
LOOK_EVERY = 0.5  # s between two looks whether a sequence is over


class Announcer:
    """Ends and threads as a Pipeline has them; its owner closes the last sender of jobs, and both threads end."""

    def __init__(self, context: PipelineContext, broker: Broker, roots: Mapping[str, Root]) -> None:
        assert context.sequences.announced is not None
        config, clock = context.engine.config, context.engine.clock
        self._roots, self._sequences = roots, context.sequences.announced
        self._context, self._broker, self._ledger, self._source = context, broker, context.ledger, context.source
        self._recipes: Mapping[str, str] = {folder.name: folder.recipe for folder in config.folder}
        self._retry_wait, self._stopping = config.source.retry_wait, context.engine.stopping
        self._storage_retry, self._clock, self._emit = context.storage_retry, clock, context.engine.emit
        self.jobs: Sender[Job]
        self._waiting: Receiver[Job]
        self.jobs, self._waiting = queue(config.pipeline.queue, "jobs", clock, context.on_room)
        self._arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = queue(config.pipeline.queue, "arrivals", clock)
        self._paused: set[str] = set()  # folders of which nothing is taken; the thread "announce" has it

    def start(self) -> None:
        heartbeat = self._context.new_heartbeat("announce")
        jobs, back = self._waiting.clone(heartbeat), self._arrivals[0].clone(heartbeat)
        self._context.start_thread("announce", partial(self._announce, jobs, back, heartbeat))
        heartbeat = self._context.new_heartbeat("finish-0")
        self._context.start_thread("finish-0", partial(self._finish, self._arrivals[1].clone(heartbeat), heartbeat))
        self._arrivals[1].close()
        if any(folder.kind == "frames" for folder in self._context.engine.config.folder):
            heartbeat = self._context.new_heartbeat("sequences")
            self._context.start_thread("sequences", partial(self._announce_sequences, heartbeat))
        self._broker.start()
        self._context.on_ready(EngineDescription("none", {}, ()))  # no device is needed

    def exit_stage(self) -> Sender[Arrival]:
        return self._arrivals[0].clone()

    def take_back(self) -> None:
        """Put back what was not announced. Returns when the last producer of jobs has gone."""
        with self._waiting, self._arrivals[0]:
            for job in self._waiting:
                self._source.give_back(job, "stopping", "not announced when the service stopped")

    def statistics(self) -> list[QueueStatistics]:
        return [self._waiting.statistics(), self._arrivals[0].statistics()]

    def film(self) -> None:
        return None

    # ------------------------------------------------------------------------------------------------ thread bodies

    def _announce(self, jobs: Receiver[Job], back: Sender[Arrival], heartbeat: Heartbeat) -> None:
        with jobs, back:
            try:
                while True:
                    taken = jobs.receive_chosen(lambda waiting, _now: tuple(range(min(len(waiting), BATCH))))
                    self._publish([job for job in taken if _sequence_of(job) is None], heartbeat)
                    self._take_frames([job for job in taken if _sequence_of(job) is not None], heartbeat)
            except NoSenders:
                return

    def _publish(self, jobs: Sequence[Job], heartbeat: Heartbeat) -> None:
        """Until each is stored; given back when the service stops before that."""
        failures, said = 0, ""
        while jobs and not self._stopping.is_set():
            heartbeat.waiting()
            fault = None
            try:
                answers = self._broker.publish([self._message(job) for job in jobs])
            except BrokerFault as error:
                fault, answers = error, [error] * len(jobs)
            heartbeat.working()
            self._announced([job for job, answer in zip(jobs, answers, strict=True) if answer is None], heartbeat)
            left = [(job, answer) for job, answer in zip(jobs, answers, strict=True) if answer is not None]
            jobs = [job for job, _ in left]
            if not left:
                break
            fault = left[0][1]
            failures += 1
            self._hold(jobs)
            if not _tells_itself(fault, failures) and fault.detail != said:
                said = fault.detail
                self._emit("source.unusable", detail=f"images cannot be announced: {said}")
            heartbeat.waiting()
            self._stopping.wait(backoff(failures, RETRY_FIRST, self._retry_wait))
        self._let_go()
        for job in jobs:
            self._source.give_back(job, "stopping", "not announced when the service stopped")

    def _message(self, job: Job) -> tuple[str, bytes, str]:
        announced = self._announcement(job)
        age = self._clock.wall().timestamp() - job.version.ctime_ns / 1e9
        return announced.subject(queue_for(age)), announced.encode(), announced.identity

    def _announcement(self, job: Job) -> Announcement:
        return Announcement(job.folder, job.relative_path, fingerprint_of(job.version), self._recipes[job.folder])

    def _take_frames(self, jobs: Sequence[Job], heartbeat: Heartbeat) -> None:
        """Their sequences are open."""
        if self._remember(jobs, heartbeat, {(job.folder, _sequence_of(job) or "") for job in jobs}):
            for job in jobs:
                self._source.ended(job)

    def _announce_sequences(self, heartbeat: Heartbeat) -> None:
        """Those that are over, until the service stops."""
        failures, said = 0, ""
        while not self._stopping.is_set():
            fault: Exception | None = None
            for folder, sequence in self._sequences.over():
                if self._stopping.is_set() or (isinstance(fault, BrokerFault) and fault.kind == "unreachable"):
                    break
                heartbeat.working()
                try:
                    self._announce_sequence(folder, sequence, heartbeat)
                except (BrokerFault, OSError, StorageFault) as error:
                    fault = error
            failures = 0 if fault is None else failures + 1
            detail = "" if fault is None or _tells_itself(fault, failures) else str(fault)
            if detail and detail != said:
                self._emit("source.unusable", detail=f"sequences cannot be announced: {detail}")
            said = detail
            heartbeat.waiting()
            self._stopping.wait(backoff(failures, RETRY_FIRST, self._retry_wait) if failures else LOOK_EVERY)

    def _announce_sequence(self, folder: str, sequence: str, heartbeat: Heartbeat) -> None:
        if (root := self._roots.get(folder)) is not None and isinstance(root, SequenceRoot):
            fingerprint = root.fingerprint(key := sequence_key(sequence))
            if fingerprint is not None:
                announced = Announcement(folder, key, fingerprint, self._recipes[folder])
                heartbeat.waiting()
                [fault] = self._broker.publish([(announced.subject(HOT), announced.encode(), announced.identity)])
                heartbeat.working()
                if fault is not None:
                    raise fault
                told = {"fingerprint": fingerprint, "recipe": announced.recipe}
                self._emit("sequence.announced", folder=folder, sequence=sequence, **told)
        self._sequences.announced(folder, sequence)

    def _remember(self, jobs: Sequence[Job], heartbeat: Heartbeat, sequences: Collection[tuple[str, str]] = ()) -> bool:
        """That these are announced, or their sequences are open. False where the service stops before it can: the next
        run announces them again."""
        if not jobs:
            return False

        def write() -> None:
            with storage_faults(str(self._context.engine.config.service.state_directory)):
                for folder, sequence in sequences:
                    self._sequences.add(folder, sequence)
            self._ledger.announced([job.job_id for job in jobs])

        try:
            self._storage_retry.retry_until_writable(write, jobs[0].folder, heartbeat)
        except Released as released:
            for job in jobs:
                self._source.give_back(job, "stopping", f"held back by the disk: {released}")
            return False
        return True

    def _announced(self, jobs: Sequence[Job], heartbeat: Heartbeat) -> None:
        if not self._remember(jobs, heartbeat):
            return
        now = self._clock.monotonic()
        for job in jobs:
            keys = {key: value for key, value in job_keys(job).items() if key not in ("attempt", "sequence")}
            seconds, announced = round(now - job.first_seen, 3), self._announcement(job)
            told = {"fingerprint": announced.fingerprint, "recipe": announced.recipe, "seconds": seconds}
            self._emit("image.announced", **keys, **told)
            self._source.ended(job)

    def _hold(self, jobs: Sequence[Job]) -> None:
        for folder in {job.folder for job in jobs} - self._paused:
            self._paused.add(folder)
            self._source.pause(f"broker:{folder}")

    def _let_go(self) -> None:
        for folder in self._paused:
            self._source.resume(f"broker:{folder}")
        self._paused.clear()

    def _finish(self, arrivals: Receiver[Arrival], heartbeat: Heartbeat) -> None:
        """What the intake rejects itself: a file whose end never came."""
        with arrivals:
            for arrival in arrivals:
                if isinstance(arrival, Rejection):
                    self._refuse(arrival, heartbeat)
                elif isinstance(arrival, Postponed):
                    self._source.give_back(arrival.job, arrival.why, arrival.detail)

    def _refuse(self, rejection: Rejection, heartbeat: Heartbeat) -> None:
        job = replace(rejection.job, leased=Leased("", fingerprint_of(rejection.job.version)))
        outcome = refused(job_keys(job), rejection.reason, rejection.detail, stage=rejection.stage)

        def record() -> None:
            self._ledger.failed(outcome)
            self._context.publisher.refuse(job, outcome)
            self._ledger.original_moved(job.job_id)

        try:
            self._storage_retry.retry_until_writable(record, job.folder, heartbeat)
        except Released as released:
            self._source.give_back(job, "stopping", f"held back by the disk: {released}")
            return
        except SourceChanged as changed:
            self._source.give_back(job, changed.why, changed.detail)
            return
        self._ledger.outbox.deliver(outcome, self._emit)
        self._source.ended(job)

    def close(self) -> None:
        self._broker.close()


def _tells_itself(fault: Exception, failures: int) -> bool:
    """Does the connection say that it is lost? Then nothing more need be said."""
    is_away = isinstance(fault, BrokerFault) and fault.kind == "unreachable" and failures < FAILURES_TOLD
    return is_away or isinstance(fault, NotConnected)


def _sequence_of(job: Job) -> str | None:
    """None for what is announced by itself: an image, a film, a still among frames."""
    return None if job.turn is None or job.turn.number is None else job.turn.sequence
