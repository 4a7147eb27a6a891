"""The intake's one thread: compares folders with the ledger, claims what is complete, and puts back what comes back.

The loop and the claims; where to look is survey.py's, what others say mailbox.py's. Reads no images. What is claimed
goes to the decoders as long as they have room; what they have no room for stays in its folder.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import SystemFileSystem
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake import readiness as settle
from rmbgd.intake.claim import Claimed, Claims, Unclaimed
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.priority_queue import Complete
from rmbgd.intake.readiness import Arrival
from rmbgd.intake.scanner import LOOKS_AT_ONCE, Scanner
from rmbgd.intake.startup_recovery import Answers, Recovered, Recovery
from rmbgd.intake.watcher import FolderWatch, Hints
from rmbgd.pipeline.items import Arrival as AtTheDoor
from rmbgd.pipeline.items import Rejection, Timing
from rmbgd.pipeline.queue import Sender
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job, Unfinished

# --- What is done now and then beside the intake's work: originals retired late, old rows forgotten, rows counted, and


PRUNE_EVERY = 3600.0  # s
PRUNE_PAUSE = 1.0  # s between two batches of one pruning
SETTLE_EVERY = 5.0  # s between two looks whether something waits for a commit that does not come
COUNT_EVERY = 60.0  # s between two counts of the ledger's rows, which read all of them


class Archiver(Protocol):
    """Originals that could not be moved or deleted after success."""

    def retry(self) -> float | None:
        """Try those that are due; when the next one will be."""
        ...


class Housekeeping:
    """`still_there(folder, path)`: rows of files that stay in place are kept while they do."""

    def __init__(
        self, ledger: Ledger, retirer: Archiver, clock: Clock, still_there: Callable[[str, str], bool], retry: float
    ) -> None:
        self.ledger_rows = 0
        self._ledger, self._retirer, self._still_there, self._retry = ledger, retirer, still_there, retry
        self._next_retire = self._next_count = self._next_settle = clock.monotonic()
        self._next_prune = clock.monotonic() + PRUNE_EVERY
        self._prune_after = 0

    def next_moment(self) -> float:
        return min(self._next_retire, self._next_prune)

    def work(self, now: float) -> None:
        if now >= self._next_retire:
            self._next_retire = self._retirer.retry() or now + self._retry
        try:
            if now >= self._next_prune:
                self._prune_after = self._ledger.prune(self._is_kept, after=self._prune_after)
                self._next_prune = now + (PRUNE_PAUSE if self._prune_after else PRUNE_EVERY)
            if now >= self._next_settle:
                self._next_settle = now + SETTLE_EVERY
                self._ledger.settle()
            if now >= self._next_count:
                self._next_count = now + COUNT_EVERY
                self.ledger_rows = sum(self._ledger.counts().values())
        except StorageFault:  # the next claim meets the same fault, and tells
            self._prune_after, self._next_prune = 0, now + PRUNE_EVERY

    def _is_kept(self, row: Unfinished) -> bool:
        return self._still_there(row.folder, row.relative_path)


# --- What other threads tell the intake's loop, and what wakes it. Notes only: the loop decides what follows.


@dataclass(frozen=True, slots=True)
class Notes:
    """Everything that was told since the last look. `returns`: (job, why) of images that could not be judged."""

    returns: list[tuple[Job, str]]
    ended: list[int]
    rescan: bool


class Inbox:
    """Written by any thread, read by the reconcile thread, except where a line says otherwise."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._awake = False  # guarded by _changed, like all below
        self._closing = False
        self._rescan = False
        self._paused: set[str] = set()
        self._returns: list[tuple[Job, str]] = []
        self._ended: deque[int] = deque()
        self._ended_total = 0

    # ------------------------------------------------------------------------------------------------ any thread's

    def wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def close(self) -> None:
        """The main thread's: claim nothing more."""
        with self._changed:
            self._closing = True
        self.wake()

    def rescan(self) -> None:
        with self._changed:
            self._rescan = True
        self.wake()

    def pause(self, reason: str) -> None:
        with self._changed:
            self._paused.add(reason)

    def resume(self, reason: str) -> None:
        with self._changed:
            self._paused.discard(reason)
        self.wake()

    def give_back(self, job: Job, why: str) -> None:
        with self._changed:
            self._returns.append((job, why))
            self._ended_total += 1
        self.wake()

    def ended(self, job: Job) -> None:
        with self._changed:
            self._ended.append(job.job_id)
            self._ended_total += 1
        self.wake()

    # ------------------------------------------------------------------------------------------------ the loop's

    @property
    def closing(self) -> bool:
        with self._changed:
            return self._closing

    @property
    def ended_total(self) -> int:
        with self._changed:
            return self._ended_total

    def take(self) -> Notes:
        """Everything since the last call."""
        with self._changed:
            notes = Notes(self._returns, list(self._ended), self._rescan)
            self._returns, self._ended, self._rescan = [], deque(), False
            return notes

    def paused(self) -> dict[str, str]:
        """Why nothing is claimed, by folder: reasons are written "kind:folder"."""
        with self._changed:
            return {reason.partition(":")[2]: reason.partition(":")[0] for reason in sorted(self._paused)}

    def wait(self, seconds: float, heartbeat: Heartbeat) -> None:
        """Until somebody wakes us, or that long; not at all when somebody has."""
        with self._changed:
            if not self._awake and seconds > 0:
                heartbeat.waiting()
                self._changed.wait(seconds)
            self._awake = False
        heartbeat.working()


# --- The intake's one thread: compares folders with the ledger, claims what is complete, and puts back what comes back.


LEDGER_PROBE = 2.0  # s between tries to claim while the ledger cannot be written


class Publisher(Answers, Protocol):
    """What the intake needs of the one who publishes."""

    @property
    def retirer(self) -> Archiver: ...


@dataclass(frozen=True, slots=True)
class IntakeStatistics:
    """For the health event. Replaced whole by the reconcile thread."""

    waiting: int = 0
    in_flight: int = 0
    oldest_waiting: float | None = None
    paused: str | None = None
    ledger_rows: int = 0
    folders: dict[str, dict[str, object]] = field(default_factory=dict)


class Reconciler:
    """Every method with a leading underscore is the reconcile thread's; the others say whose they are."""

    def __init__(
        self,
        config: Config,
        *,
        ledger: Ledger,
        publisher: Publisher,
        clock: Clock,
        emit: Emit,
        heartbeat: Heartbeat,
        on_compared: Callable[[], None],
    ) -> None:
        self._config, self._ledger, self._clock, self._emit, self._heartbeat = config, ledger, clock, emit, heartbeat
        self._mailbox = Inbox()
        self._survey = Scanner(config, ledger, clock, emit, heartbeat, on_compared)
        self._room = self._survey.room
        self._claims = Claims({folder.name: folder for folder in config.folder}, ledger, SystemFileSystem())
        self._space = DiskSpaceGuard(config, emit, clock)
        self._recovery = Recovery(config, ledger, publisher, clock, emit)
        self._keeping = Housekeeping(
            ledger, publisher.retirer, clock, self._survey.stands, retry=config.intake.reconcile
        )
        self._suspect: int | None = None  # a job that the last run died with, in work now; nothing else is meanwhile
        self._suspects_held = False  # written before `run`
        self._stranded: list[tuple[Job, str]] = []  # came back while their folder was away
        self._waiting_for_answer: dict[int, Arrival] = {}  # what was known of the files in work, by job
        self._ledger_refused_at: float | None = None  # the last time
        self._ledger_refused_since = 0.0  # the first time of that row
        self._sent = 0
        self._statistics = IntakeStatistics()  # one reference, replaced

    # ------------------------------------------------------------------------------------------------ the main thread's

    def attach(self, hints: Hints, watches: list[FolderWatch]) -> None:
        """Before `recover` and `run`."""
        self._survey.attach(hints, watches)

    def hold_suspects(self) -> None:
        """Before `run`: what the last run died with stays claimed and waits for another run; the rest is served."""
        self._suspects_held = True

    def recover(self) -> Recovered:
        """Take up what the last run left. Before `run`."""
        return self._recovery.recover()

    def close(self) -> None:
        """Claim nothing more; `run` returns soon."""
        self._mailbox.close()

    def rescan(self) -> None:
        """Compare every folder at once."""
        self._mailbox.rescan()

    def finish_returns(self) -> int:
        """Put back what came back after `run` had returned: call it when no thread of the line is left."""
        count = 0
        for job, _ in (*self._mailbox.take().returns, *self._stranded):
            try:
                self._claims.give_back(job)
                count += 1
            except (OSError, StorageFault):  # the row and the claimed file stay; the next start takes them up
                continue
        return count

    # ------------------------------------------------------------------------------------------------ any thread's

    def wake(self) -> None:
        self._mailbox.wake()

    def pause(self, reason: str) -> None:
        """Claim nothing of the folder that `reason` names after its colon."""
        self._mailbox.pause(reason)

    def resume(self, reason: str) -> None:
        self._mailbox.resume(reason)

    def give_back(self, job: Job, why: str, detail: str) -> None:  # noqa: ARG002 - the event has told the detail
        """An image that could not be judged: back to its folder."""
        self._mailbox.give_back(job, why)

    def ended(self, job: Job) -> None:
        """Done or refused: another version of the same path may be claimed now."""
        self._mailbox.ended(job)

    def statistics(self) -> IntakeStatistics:
        return self._statistics

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> None:
        """Until closed. Refusals go straight to the exit `door`."""
        with jobs, door:
            try:
                while not self._mailbox.closing:
                    if not self._turn(jobs, door):
                        self._wait()
            finally:
                self._survey.close()

    def _turn(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> bool:
        """Every duty once. False when there is nothing more to do for now."""
        self._heartbeat.working()
        try:
            self._check_ledger()
            for folder in self._survey.check_folders():
                self._recover_again(folder)
            notes = self._mailbox.take()
            self._take_back(notes.returns, notes.ended)
            self._send_suspect(jobs)
            self._survey.take_hints(rescan=notes.rescan)
            if self._ledger_refused_at is None:
                self._survey.compare_due()
            self._survey.look_due()
            claimed = self._claim(jobs, door)
        except StorageFault as fault:  # of the ledger: whatever was being considered is considered again
            self._ledger_refused(fault, [])
            self._survey.look_again()
            claimed = False
        self._keep_house()
        return claimed

    def _wait(self) -> None:
        """Until something happens or is due."""
        now = self._clock.monotonic()
        moments = [
            now + self._config.intake.root_check,
            self._survey.next_moment(),
            self._keeping.next_moment(),
            self._space.next_check(now),
            None if self._ledger_refused_at is None else self._ledger_refused_at + LEDGER_PROBE,
        ]
        self._mailbox.wait(min(moment for moment in moments if moment is not None) - now, self._heartbeat)

    def _keep_house(self) -> None:
        now = self._clock.monotonic()
        self._space.check(now)
        self._keeping.work(now)
        oldest = self._room.oldest() if len(self._room) < LOOKS_AT_ONCE else None
        refused = "ledger" if self._ledger_refused_at is not None else None
        self._statistics = IntakeStatistics(
            waiting=len(self._room),
            in_flight=max(0, self._sent - self._mailbox.ended_total),
            oldest_waiting=None if oldest is None else round(now - oldest, 3),
            paused=next(iter(self._mailbox.paused().values()), None) or self._space.paused() or refused,
            ledger_rows=self._keeping.ledger_rows,
            folders=self._survey.facts(),
        )

    # ------------------------------------------------------------------------------------------------ after a fall

    def _recover_again(self, folder: str) -> None:
        """A folder is back whose claimed files could not be reached."""
        found = self._recovery.recover_folder(folder)
        if found:
            self._emit("intake.recovered", **found.event())
        back = [each for each in self._stranded if each[0].folder == folder]
        self._stranded = [each for each in self._stranded if each[0].folder != folder]
        self._take_back(back, [])

    def _send_suspect(self, jobs: Sender[Job]) -> None:
        """One image at a time of those that the last run died with, and nothing beside it."""
        if self._suspect is not None and not self._ledger.is_in_flight(self._suspect):
            self._suspect = None
        if self._suspects_held:
            return
        if self._suspect is None and len(self._recovery.suspects) and jobs.free():
            job = self._recovery.suspects.next()
            if job is not None:
                self._suspect = job.job_id
                self._sent += 1
                jobs.send(job)

    def _check_ledger(self) -> None:
        """While it refuses, it is asked again now and then; nothing is claimed and nothing compared until it takes."""
        now = self._clock.monotonic()
        if self._ledger_refused_at is not None and now >= self._ledger_refused_at + LEDGER_PROBE:
            self._ledger.probe()
            self._emit("storage.resumed", kind="ledger", seconds=round(now - self._ledger_refused_since, 3))
            self._ledger_refused_at = None

    def _ledger_refused(self, fault: StorageFault, files: list[Complete]) -> None:
        now = self._clock.monotonic()
        if self._ledger_refused_at is None:
            self._emit("storage.paused", kind=fault.kind, path=fault.path, detail=fault.detail)
            self._ledger_refused_since = now
        self._ledger_refused_at = now
        for complete in files:
            self._room.complete(complete)

    # ------------------------------------------------------------------------------------------------ claims

    def _claim(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> bool:
        """Take as many complete files as the decoders have room for. False when there was nothing to do."""
        if self._ledger_refused_at is not None:
            return False
        now = self._clock.monotonic()
        closed = set(self._mailbox.paused()) | self._space.closed()
        suspects = not self._suspects_held and (self._suspect is not None or len(self._recovery.suspects))
        files = [] if suspects else self._room.take(jobs.free(), closed)
        if not files:
            return False
        try:
            results = self._claims.claim(files)
        except StorageFault as fault:
            self._ledger_refused(fault, files)
            return False
        progress = False
        for result in results:
            if isinstance(result, Claimed):
                progress = True
                self._send(result, jobs, door)
            else:
                self._not_claimed(result, now)
        return progress

    def _send(self, claimed: Claimed, jobs: Sender[Job], door: Sender[AtTheDoor]) -> None:
        job, complete = claimed.job, claimed.complete
        self._sent += 1
        if not complete.refusal:
            self._waiting_for_answer[job.job_id] = complete.arrival
            jobs.send(job)
            return
        reason = Reason.EMPTY if complete.refusal == "empty" else Reason.TRUNCATED
        waited = f"no change for {self._config.intake.incomplete_timeout:g} s"
        detail = f"its end is missing ({complete.refusal}); {waited}"
        # Recorded before anything else can happen: a next run must not let a decoder that overlooks the end judge it.
        with contextlib.suppress(StorageFault):  # the exit door records it too, and waits for the disk
            self._ledger.failed(job.job_id, reason, detail)
        door.send(Rejection(job, reason, detail, "intake", Timing()))

    def _not_claimed(self, result: Unclaimed, now: float) -> None:
        key, arrival = result.complete.key, result.complete.arrival
        if result.why in ("vanished", "handled"):
            return
        if result.why == "blocked":
            self._survey.tell_blocked(key, arrival.version.ctime_ns, result.detail)
        if result.why == "changed":
            version = self._claims.version_at(*key)
            if version is None:
                return
            settle.observed(arrival, version, now, announced=False, rules=self._survey.rules)
        else:
            settle.put_off(arrival, now)
        self._room.put(key, arrival)

    # ------------------------------------------------------------------------------------------------ what comes back

    def _take_back(self, returns: list[tuple[Job, str]], ended: list[int]) -> None:
        for job_id in ended:
            self._waiting_for_answer.pop(job_id, None)
        for job, why in returns:
            self._heartbeat.working()
            arrival = self._waiting_for_answer.pop(job.job_id, None)
            try:
                path = self._claims.give_back(job)
            except (StorageFault, OSError):  # the ledger refuses, the folder is away, no descriptor is left
                self._stranded.append((job, why))
                self._survey.treat_as_absent(job.folder)
                continue
            self._back(job, why, path, arrival)

    def _back(self, job: Job, why: str, path: str | None, arrival: Arrival | None) -> None:
        """The file stands in its folder again: what was known of it still holds."""
        version = self._claims.version_at(job.folder, path) if path is not None else None
        if path is None or version is None:
            return
        now = self._clock.monotonic()
        key = (job.folder, path)
        same = (version.inode, version.size, version.mtime_ns) == (
            job.version.inode,
            job.version.size,
            job.version.mtime_ns,
        )
        if arrival is None or not same or path != job.relative_path:
            remote = self._survey.is_remote(job.folder)
            arrival = settle.appeared(version, now, announced=False, remote=remote, rules=self._survey.rules)
        else:
            arrival.version = version  # our own renames changed its ctime
            arrival.cut_off = arrival.cut_off or why == "incomplete"
            settle.put_off(arrival, now)
        self._room.put(key, arrival)
