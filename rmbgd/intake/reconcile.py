"""The intake's one thread: compares folders with the ledger, waits until files are complete, and claims them.

Events, the first scan and every later one go through one door, `_consider`; nothing skips the gates. Reads no pictures.
What is claimed goes to the decoders as long as they have room; what they have no room for stays in its folder.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rmbgd.beat import Beat
from rmbgd.clock import Clock
from rmbgd.config import Config, Folder
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fsops import SystemFs
from rmbgd.intake import settle
from rmbgd.intake.claims import Claimed, Claims, Unclaimed
from rmbgd.intake.gates import look
from rmbgd.intake.hints import Heard, Hints
from rmbgd.intake.ledger import Ledger
from rmbgd.intake.mounts import file_system, is_local
from rmbgd.intake.opening import kind_of, version_of
from rmbgd.intake.recovery import Answers, Recovered, Recovery
from rmbgd.intake.room import SpaceGuard
from rmbgd.intake.scanning import Ignored, Seen, scan
from rmbgd.intake.settle import Arrival, Verdict
from rmbgd.intake.waiting import Complete, Key, WaitingRoom
from rmbgd.intake.watcher import FolderWatch
from rmbgd.jobs import Arrival as AtTheDoor
from rmbgd.jobs import Job, Rejection, Timing, Version
from rmbgd.pipeline.channel import Sender

LOOKS_AT_ONCE = 512  # files looked into before the other duties get their turn again
UNANNOUNCED_AFTER = 5.0  # s; a file that is older and that no event told of was missed, not just faster than its event
PRUNE_EVERY = 3600.0  # s
COUNT_EVERY = 60.0  # s between two counts of the ledger's rows, which read all of them
CHANNEL_POLL = 0.02  # s; a decoder that takes a job makes room without telling, a job that ends tells
LEDGER_PROBE = 2.0  # s between tries to claim while the ledger cannot be written


class Retirer(Protocol):
    """Originals that could not be moved or deleted after success."""

    def retry(self) -> float | None:
        """Try those that are due; when the next one will be."""
        ...


class Publisher(Answers, Protocol):
    """What the intake needs of the one who publishes."""

    @property
    def retirer(self) -> Retirer: ...


@dataclass(frozen=True, slots=True)
class IntakeStatistics:
    """For the health event. Replaced whole by the reconcile thread."""

    waiting: int = 0
    in_flight: int = 0
    oldest_waiting: float | None = None
    paused: str | None = None
    ledger_rows: int = 0
    folders: dict[str, dict[str, object]] = field(default_factory=dict)


@dataclass(slots=True)
class _Watched:
    """One drop folder. Only the reconcile thread touches it."""

    folder: Folder
    watch: FolderWatch
    ignored: Ignored
    remote: bool = False
    compared_at: float | None = None
    due: bool = True  # compare at once
    more: bool = False  # the waiting room was full: files were left unseen
    surprised: bool = True  # events may have been lost since the last comparison, so what it finds proves nothing
    was_absent: bool = False


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
        beat: Beat,
        on_compared: Callable[[], None],
    ) -> None:
        self._config, self._ledger, self._publisher = config, ledger, publisher
        self._clock, self._emit, self._beat, self._on_compared = clock, emit, beat, on_compared
        intake = config.intake
        self._rules = settle.Rules(
            intake.quiet_closed,
            intake.quiet_unknown,
            intake.quiet_remote,
            intake.incomplete_timeout,
            intake.stuck_upload,
        )
        folders = {folder.name: folder for folder in config.folder}
        self._room = WaitingRoom(config.folder, intake.tracked_maximum)
        self._claims = Claims(folders, ledger, SystemFs())
        self._space = SpaceGuard(config, emit, clock)
        self._watched: dict[str, _Watched] = {}
        self._hints: Hints | None = None
        self._recovery = Recovery(config, ledger, publisher, clock, emit)
        self._suspect: int | None = None  # a job that the last run died with, in work now; nothing else is meanwhile
        self._stranded: list[tuple[Job, str]] = []  # came back while their folder was away
        self._waiting_for_answer: dict[int, Arrival] = {}  # what was known of the files in work, by job
        self._told: set[tuple[Key, int]] = set()  # blocked files that were told, by ctime
        self._first_round_told = False
        self._ledger_refused_at: float | None = None
        self._next_prune = clock.monotonic() + PRUNE_EVERY
        self._next_retire: float | None = clock.monotonic()
        self._prune_after = 0
        self._ledger_rows = 0
        self._next_count = clock.monotonic()
        self._sent = 0
        self._statistics = IntakeStatistics()  # one reference, replaced
        self._changed = threading.Condition()
        self._awake = False  # guarded by _changed, like all below
        self._closing = False
        self._rescan = False
        self._paused: set[str] = set()
        self._returns: deque[tuple[Job, str]] = deque()
        self._ended: deque[int] = deque()
        self._ended_total = 0

    # ------------------------------------------------------------------------------------------------ the main thread's

    def attach(self, hints: Hints, watches: list[FolderWatch]) -> None:
        """Before `recover` and `run`."""
        self._hints = hints
        for watch in watches:
            self._watched[watch.folder.name] = _Watched(watch.folder, watch, Ignored(watch.folder.ignore))

    def recover(self) -> Recovered:
        """Take up what the last run left. Before `run`."""
        return self._recovery.recover()

    def close(self) -> None:
        """Claim nothing more; `run` returns soon."""
        with self._changed:
            self._closing = True
        self.wake()

    def rescan(self) -> None:
        """Compare every folder at once."""
        with self._changed:
            self._rescan = True
        self.wake()

    def finish_returns(self) -> int:
        """Put back what came back after `run` had returned: call it when no thread of the line is left."""
        count = 0
        for job, _ in (*self._returns, *self._stranded):
            try:
                self._claims.give_back(job)
                count += 1
            except (OSError, StorageFault):  # the row and the claimed file stay; the next start takes them up
                continue
        return count

    # ------------------------------------------------------------------------------------------------ any thread's

    def wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def pause(self, reason: str) -> None:
        """Claim nothing of the folder that `reason` names after its colon."""
        with self._changed:
            self._paused.add(reason)

    def resume(self, reason: str) -> None:
        with self._changed:
            self._paused.discard(reason)
        self.wake()

    def give_back(self, job: Job, why: str, detail: str) -> None:  # noqa: ARG002 - the event has told the detail
        """A picture that could not be judged: back to its folder."""
        with self._changed:
            self._returns.append((job, why))
            self._ended_total += 1
        self.wake()

    def ended(self, job: Job) -> None:
        """Done or refused: another version of the same path may be claimed now."""
        with self._changed:
            self._ended.append(job.job_id)
            self._ended_total += 1
        self.wake()

    def statistics(self) -> IntakeStatistics:
        return self._statistics

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> None:
        """Until closed. Refusals go straight to the exit `door`."""
        with jobs, door:
            try:
                while not self._is_closing():
                    if not self._turn(jobs, door):
                        self._wait()
            finally:
                for watched in self._watched.values():
                    watched.watch.close()

    def _turn(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> bool:
        """Every duty once. False when there is nothing more to do for now."""
        self._beat.working()
        try:
            self._check_ledger()
            self._check_folders()
            self._take_returns()
            self._send_suspect(jobs)
            self._take_hints()
            self._compare_due()
            self._look_due()
            claimed = self._claim(jobs, door)
        except StorageFault as fault:  # of the ledger: whatever was being considered is considered again
            self._ledger_refused(fault, [], self._clock.monotonic())
            for watched in self._watched.values():
                watched.due = watched.surprised = True
            claimed = False
        self._housekeeping()
        return claimed

    def _check_ledger(self) -> None:
        """While it refuses, is it asked again now and then; nothing is claimed and nothing compared until it takes."""
        now = self._clock.monotonic()
        if self._ledger_refused_at is not None and now >= self._ledger_refused_at + LEDGER_PROBE:
            self._ledger.probe()
            self._emit("storage.resumed", kind="ledger", seconds=round(now - self._ledger_refused_since, 3))
            self._ledger_refused_at = None

    def _is_closing(self) -> bool:
        with self._changed:
            return self._closing

    def _wait(self) -> None:
        """Until something happens or is due."""
        now = self._clock.monotonic()
        moments = [self._next_prune, self._room.next_look(), self._next_retire, self._space.next_check(now)]
        moments += [self._next_compare(watched) for watched in self._watched.values()]
        moments.append(now + self._config.intake.root_check)
        if self._ledger_refused_at is not None:
            moments.append(self._ledger_refused_at + LEDGER_PROBE)
        if self._room.claimable(self._closed_folders()):
            moments.append(now + CHANNEL_POLL)
        soonest = min(moment for moment in moments if moment is not None)
        with self._changed:
            if not self._awake and soonest > now:
                self._beat.waiting()
                self._changed.wait(soonest - now)
            self._awake = False
        self._beat.working()

    def _send_suspect(self, jobs: Sender[Job]) -> None:
        """One picture at a time of those that the last run died with, and nothing beside it."""
        if self._suspect is not None and not self._ledger.is_in_flight(self._suspect):
            self._suspect = None
        if self._suspect is None and len(self._recovery.suspects) and jobs.free():
            job = self._recovery.suspects.next()
            if job is not None:
                self._suspect = job.job_id
                self._sent += 1
                jobs.send(job)

    # ------------------------------------------------------------------------------------------------ where to look

    def _check_folders(self) -> None:
        """Is every folder there, and its watch alive?"""
        for name, watched in self._watched.items():
            if watched.watch.check():
                watched.due = watched.surprised = True
                watched.remote = not is_local(file_system(str(watched.folder.input)))
            if watched.watch.present and watched.was_absent:
                watched.was_absent = False
                self._recover_again(name)
            if not watched.watch.present and not watched.was_absent:
                watched.was_absent = True
                watched.due = False
                self._room.forget_folder(name)

    def _recover_again(self, folder: str) -> None:
        """A folder is back whose claimed files could not be reached."""
        found = self._recovery.recover_folder(folder)
        if found:
            self._emit("intake.recovered", **found.event())
        back = [each for each in self._stranded if each[0].folder == folder]
        self._stranded = [each for each in self._stranded if each[0].folder != folder]
        with self._changed:
            self._returns.extend(back)

    def _take_hints(self) -> None:
        assert self._hints is not None
        hinted = self._hints.take()
        with self._changed:
            rescan, self._rescan = self._rescan, False
        for name, watched in self._watched.items():
            if rescan or name in hinted.whole:
                watched.due = watched.surprised = True
        for name, path in hinted.directories:
            watched = self._watched[name]
            if watched.folder.recursive and not watched.ignored.path(path + "/x"):
                self._scan(watched, path, announced=True)
        for (name, path), heard in hinted.files.items():
            watched = self._watched[name]
            if watched.watch.present and not watched.ignored.path(path):
                self._consider_path(watched, path, announced=heard >= Heard.APPEARED)

    def _next_compare(self, watched: _Watched) -> float | None:
        if not watched.watch.present or watched.compared_at is None:
            return None
        return watched.compared_at + watched.watch.compare_every

    def _compare_due(self) -> None:
        if self._ledger_refused_at is not None:
            return
        now = self._clock.monotonic()
        for watched in self._watched.values():
            if not watched.watch.present:
                continue
            moment = self._next_compare(watched)
            more = watched.more and self._room.half_empty(watched.folder.name)
            if watched.due or more or moment is None or moment <= now:
                self._compare(watched, now)
        if not self._first_round_told and all(
            not each.watch.present or each.compared_at is not None for each in self._watched.values()
        ):
            self._first_round_told = True
            self._on_compared()

    def _compare(self, watched: _Watched, now: float) -> None:
        """The whole folder against what is known."""
        proves = not (watched.due or watched.surprised or watched.more)
        watched.due = watched.more = False
        seen, missed = self._scan(watched, "", announced=False)
        watched.compared_at = now
        if not watched.more:
            watched.surprised = False
            watched.watch.compared(seen.directories, missed if proves else 0)

    def _scan(self, watched: _Watched, below: str, *, announced: bool) -> tuple[Seen, int]:
        seen, missed = Seen(), 0
        root = str(watched.folder.input)
        wall = self._clock.wall().timestamp()
        try:
            for entry in scan(root, below, watched.ignored, recursive=watched.folder.recursive, seen=seen):
                key = (watched.folder.name, entry.relative_path)
                if self._room.full(watched.folder.name) and self._room.get(key) is None:
                    watched.more = True  # they wait in the folder, which costs no memory
                    break
                self._beat.working()
                new = self._consider(watched, entry.relative_path, entry.status, announced=announced)
                missed += new and wall - entry.status.st_ctime > UNANNOUNCED_AFTER
        except OSError:  # the folder has gone, or turned unreadable: the watch says so at its next check
            pass
        for path, error in seen.unreadable:
            self._tell_blocked((watched.folder.name, path), 0, error.strerror or str(error))
        return seen, missed

    # ------------------------------------------------------------------------------------------------ the one door

    def _consider_path(self, watched: _Watched, path: str, *, announced: bool) -> None:
        key = (watched.folder.name, path)
        try:
            status = os.lstat(os.path.join(watched.folder.input, path))
        except OSError:
            self._room.forget(key)
            return
        if stat.S_ISDIR(status.st_mode):
            return
        if self._room.full(key[0]) and self._room.get(key) is None:
            watched.more = watched.surprised = True
            return
        self._consider(watched, path, status, announced=announced)

    def _consider(self, watched: _Watched, path: str, status: os.stat_result, *, announced: bool) -> bool:
        """An entry was seen, somehow. True when it is new here."""
        key = (watched.folder.name, path)
        version = version_of(status)
        if (refusal := self._not_ours_to_read(watched, status)) is not None:
            self._room.forget(key)
            self._refuse_in_place(key, version, *refusal)
            return False
        now = self._clock.monotonic()
        arrival = self._room.get(key)
        if arrival is not None:
            before = arrival.look_at
            if (
                settle.observed(arrival, version, now, announced=announced, rules=self._rules)
                or arrival.look_at < before
            ):
                self._room.put(key, arrival)
            return False
        if self._ledger.handled(*key, version):  # kept, or refused, or done and nobody lets us move it
            return False
        self._room.put(
            key, settle.appeared(version, now, announced=announced, remote=watched.remote, rules=self._rules)
        )
        return True

    def _not_ours_to_read(self, watched: _Watched, status: os.stat_result) -> tuple[Reason, str] | None:
        if not stat.S_ISREG(status.st_mode):
            return Reason.NOT_REGULAR, kind_of(status.st_mode)
        if status.st_nlink > 1 and status.st_uid not in (os.geteuid(), _owner_of(str(watched.folder.input))):
            # Somebody else's file, linked in to be read with our rights; the folder's owner may link what is theirs.
            return Reason.HARDLINK, f"{status.st_nlink} names, and owned by user {status.st_uid}"
        return None

    def _refuse_in_place(self, key: Key, version: Version, reason: Reason, detail: str) -> None:
        """It stays where it is, unread, and is told once."""
        folder, path = key
        job = self._ledger.refuse(folder, path, version, reason, detail)
        if job is not None:
            self._emit(
                "image.failed", job=job, folder=folder, path=path, attempt=0, milliseconds={}, reason=str(reason),
                detail=detail, stage="intake",
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ is it complete?

    def _look_due(self) -> None:
        now = self._clock.monotonic()
        for count, (key, arrival) in enumerate(self._room.due(now)):
            self._beat.working()
            self._look(key, arrival, now)
            if count >= LOOKS_AT_ONCE:
                break

    def _look(self, key: Key, arrival: Arrival, now: float) -> None:
        watched = self._watched[key[0]]
        try:
            version, facts = look(str(watched.folder.input), key[1], remote=arrival.remote)
        except ImageError as error:  # swapped for a link or a pipe since it was seen
            self._room.forget(key)
            self._refuse_in_place(key, arrival.version, error.reason, error.detail)
            return
        except (FileNotFoundError, NotADirectoryError):
            self._room.forget(key)
            return
        except OSError as error:
            self._tell_blocked(key, arrival.version.ctime_ns, error.strerror or str(error))
            settle.put_off(arrival, now)
            self._room.put(key, arrival)
            return
        if settle.observed(arrival, version, now, announced=False, rules=self._rules):
            self._room.put(key, arrival)
            return
        decision = settle.judge(arrival, facts, now, self._rules)
        if decision.tell_incomplete:
            self._emit("intake.incomplete", folder=key[0], path=key[1], gate=decision.gate)
        if decision.tell_stuck:
            waited = round(now - arrival.first_seen, 1)
            self._emit("intake.stuck_upload", folder=key[0], path=key[1], seconds=waited)
        if decision.verdict is Verdict.WAIT:
            self._room.put(key, arrival)
            return
        refusal = decision.gate if decision.verdict is Verdict.REFUSE else ""
        self._room.complete(Complete(key, arrival, decision.verdict is not Verdict.READY, refusal))

    def _tell_blocked(self, key: Key, ctime_ns: int, cause: str) -> None:
        if (key, ctime_ns) not in self._told:
            if len(self._told) > self._config.intake.hints_maximum:
                self._told.clear()
            self._told.add((key, ctime_ns))
            self._emit("intake.blocked", folder=key[0], path=key[1], cause=cause)

    # ------------------------------------------------------------------------------------------------ claims

    def _closed_folders(self) -> set[str]:
        """Folders of which nothing is claimed for now."""
        with self._changed:
            closed = {reason.partition(":")[2] for reason in self._paused}
        return closed | self._space.closed()

    def _claim(self, jobs: Sender[Job], door: Sender[AtTheDoor]) -> bool:
        """Take as many complete files as the decoders have room for. False when there was nothing to do."""
        if self._ledger_refused_at is not None:
            return False
        now = self._clock.monotonic()
        suspects = self._suspect is not None or len(self._recovery.suspects)
        files = [] if suspects else self._room.take(jobs.free(), self._closed_folders())
        if not files:
            return False
        try:
            results = self._claims.claim(files)
        except StorageFault as fault:
            self._ledger_refused(fault, files, now)
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
        door.send(Rejection(job, reason, f"its end is missing ({complete.refusal}); {waited}", "intake", Timing()))

    def _not_claimed(self, result: Unclaimed, now: float) -> None:
        key, arrival = result.complete.key, result.complete.arrival
        if result.why in ("vanished", "handled"):
            return
        if result.why == "blocked":
            self._tell_blocked(key, arrival.version.ctime_ns, result.detail)
        if result.why == "changed":
            version = self._claims.version_at(*key)
            if version is None:
                return
            settle.observed(arrival, version, now, announced=False, rules=self._rules)
        else:
            settle.put_off(arrival, now)
        self._room.put(key, arrival)

    def _ledger_refused(self, fault: StorageFault, files: list[Complete], now: float) -> None:
        if self._ledger_refused_at is None:
            self._emit("storage.paused", kind=fault.kind, path=fault.path, detail=fault.detail)
            self._ledger_refused_since = now
        self._ledger_refused_at = now
        for complete in files:
            self._room.complete(complete)

    _ledger_refused_since = 0.0

    # ------------------------------------------------------------------------------------------------ what comes back

    def _take_returns(self) -> None:
        with self._changed:
            returns, self._returns = self._returns, deque()
            ended, self._ended = self._ended, deque()
        for job_id in ended:
            self._waiting_for_answer.pop(job_id, None)
        for job, why in returns:
            self._beat.working()
            arrival = self._waiting_for_answer.pop(job.job_id, None)
            try:
                path = self._claims.give_back(job)
            except StorageFault:
                self._stranded.append((job, why))
                self._watched[job.folder].was_absent = True  # tried again with the next look at the folder
                continue
            except OSError:  # its folder is away, and the claimed file with it
                self._stranded.append((job, why))
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
            remote = self._watched[job.folder].remote
            arrival = settle.appeared(version, now, announced=False, remote=remote, rules=self._rules)
        else:
            arrival.version = version  # our own renames changed its ctime
            arrival.cut_off = arrival.cut_off or why == "incomplete"
            settle.put_off(arrival, now)
        self._room.put(key, arrival)

    # ------------------------------------------------------------------------------------------------ housekeeping

    def _housekeeping(self) -> None:
        now = self._clock.monotonic()
        self._space.check(now)
        if self._next_retire is not None and now >= self._next_retire:
            self._next_retire = self._publisher.retirer.retry() or now + self._config.intake.reconcile
        if now >= self._next_prune:
            self._prune(now)
        if now >= self._next_count:
            self._ledger_rows, self._next_count = self._count_rows(), now + COUNT_EVERY
        with self._changed:
            in_flight = self._sent - self._ended_total
            paused = next((reason.partition(":")[0] for reason in sorted(self._paused)), None)
        oldest = self._room.oldest() if len(self._room) < LOOKS_AT_ONCE else None
        self._statistics = IntakeStatistics(
            waiting=len(self._room),
            in_flight=max(0, in_flight),
            oldest_waiting=None if oldest is None else round(now - oldest, 3),
            paused=paused or self._space.paused() or ("ledger" if self._ledger_refused_at is not None else None),
            ledger_rows=self._ledger_rows,
            folders={name: self._folder_facts(watched) for name, watched in self._watched.items()},
        )

    def _folder_facts(self, watched: _Watched) -> dict[str, object]:
        status = watched.watch.status()
        return {
            "mode": status.mode,
            "cause": status.cause,
            "armed": status.armed,
            "wanted": status.wanted,
            "overflows": status.overflows,
            "missed": status.missed,
            "more": watched.more,
        }

    def _prune(self, now: float) -> None:
        """Forget old rows, a batch at a time."""
        try:
            self._prune_after = self._ledger.prune(self._still_there, after=self._prune_after)
        except StorageFault:
            self._prune_after = 0
        self._next_prune = now + (1.0 if self._prune_after else PRUNE_EVERY)

    def _count_rows(self) -> int:
        try:
            return sum(self._ledger.counts().values())
        except StorageFault:
            return self._statistics.ledger_rows

    def _still_there(self, row: object) -> bool:
        folder, path = getattr(row, "folder", ""), getattr(row, "relative_path", "")
        watched = self._watched.get(folder)
        return watched is not None and os.path.lexists(os.path.join(watched.folder.input, path))


def _owner_of(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:  # it has just gone; so has what is in it
        return None
