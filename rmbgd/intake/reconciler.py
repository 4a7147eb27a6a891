"""The intake's thread: compares folders with the ledger, claims what is complete, takes back what comes back.

Files are claimed as long as the decoders have room for them; what they have no room for stays in its folder.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable
from dataclasses import replace

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import SystemFileSystem, folder_beneath
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake import readiness
from rmbgd.intake.claim import ClaimResult, Claims
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.empty_folders import EmptyFolders
from rmbgd.intake.frame_queue import FrameQueue
from rmbgd.intake.inbox import Inbox
from rmbgd.intake.priority_queue import Complete
from rmbgd.intake.readiness import ArrivingFile
from rmbgd.intake.scanner import LOOKS_AT_ONCE, Scanner
from rmbgd.intake.source import IntakeQuestion, IntakeStatistics
from rmbgd.intake.startup_recovery import Recovered, Recovery
from rmbgd.mounts import free_bytes
from rmbgd.pipeline.items import Arrival, Rejection, Timing
from rmbgd.pipeline.pipeline import images_maximum
from rmbgd.pipeline.queue import Sender
from rmbgd.publish.archive import Archiver
from rmbgd.publish.publisher import Publisher
from rmbgd.sequence.sequences import Sequences
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import Job

PRUNE_EVERY = 3600.0  # s
PRUNE_PAUSE = 1.0  # s between two batches of one pruning
FLUSH_EVERY = 5.0  # s between two looks whether something waits for a commit that does not come
COUNT_EVERY = 60.0  # s between two counts of the ledger's rows, which read all of them


class Maintenance:
    """What is due now and then: archiving that failed, pruning of old rows, counting of rows."""

    def __init__(self, ledger: Ledger, archiver: Archiver, clock: Clock, scanner: Scanner, retry: float) -> None:
        self.ledger_rows = 0
        self._ledger, self._archiver, self._scanner, self._retry = ledger, archiver, scanner, retry
        self._next_archive = self._next_count = self._next_flush = clock.monotonic()
        self._next_prune = clock.monotonic() + PRUNE_EVERY
        self._prune_after = 0

    def next_moment(self) -> float:
        return min(self._next_archive, self._next_prune)

    def work(self, now: float) -> None:
        if now >= self._next_archive:
            self._next_archive = self._archiver.retry() or now + self._retry
        try:
            if now >= self._next_prune:
                self._prune_after = self._ledger.prune(self._scanner.is_in_place, after=self._prune_after)
                self._next_prune = now + (PRUNE_PAUSE if self._prune_after else PRUNE_EVERY)
            if now >= self._next_flush:
                self._next_flush = now + FLUSH_EVERY
                self._ledger.flush()
            if now >= self._next_count:
                self._next_count = now + COUNT_EVERY
                self.ledger_rows = sum(self._ledger.counts().values())
        except StorageFault:  # the next claim meets the same fault, and reports it
            self._prune_after, self._next_prune = 0, now + PRUNE_EVERY


class Reconciler(Inbox):
    """`run` and every method with a leading underscore are the reconcile thread's; its own others the main thread's."""

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
        sequences: Sequences | None = None,
    ) -> None:
        super().__init__()
        sequences = sequences or Sequences()
        self._frames = {
            folder.name: FrameQueue(folder, sequences, clock, emit)
            for folder in config.folder
            if folder.kind == "frames"
        }
        self._config, self._ledger, self._clock, self._emit, self._heartbeat = config, ledger, clock, emit, heartbeat
        self._scanner = Scanner(config, ledger, clock, emit, heartbeat, on_compared, self.wake, self._frames)
        self._backlog, self.watches = self._scanner.backlog, self._scanner.watches
        self._claims = Claims({folder.name: folder for folder in config.folder}, ledger, SystemFileSystem(), emit)
        self._space = DiskSpaceGuard(config, emit)
        self._recovery = Recovery(config, ledger, publisher, emit, self.watches)
        self._maintenance = Maintenance(ledger, publisher.archiver, clock, self._scanner, config.intake.reconcile)
        self._folder_paths = {folder.name: str(folder.input) for folder in config.folder}
        self._live = {folder.name for folder in config.folder if folder.latency == "realtime"}
        self._film_folders = {folder.name for folder in config.folder if folder.kind == "films"}
        self._frames_maximum = images_maximum(config.pipeline)
        self._suspects_held = False  # written before `run`
        self._stranded: list[tuple[Job, str]] = []  # came back while their folder was away
        self._in_work: dict[int, tuple[Job, ArrivingFile | None]] = {}  # by job; with what was known of the file
        self._empty_folders = EmptyFolders({folder.name: folder for folder in config.folder})
        self._sent = 0
        self._statistics = IntakeStatistics()  # one reference, replaced

    def hold_suspects(self) -> None:
        """Before `run`: what the last run died with stays claimed and waits for another run; the rest is served."""
        self._suspects_held = True

    def recover(self, alive: Callable[[], None] = lambda: None) -> Recovered:
        """Before `run`; calls `alive` now and then."""
        return self._recovery.recover(alive)

    def finish_returns(self) -> int:
        """Put back what came back after `run` had returned: call it when no thread of the pipeline is left."""
        count = 0
        for job, _ in (*self._take_notes().returns, *self._stranded):
            with contextlib.suppress(OSError, StorageFault):  # row and claimed file stay; the next start takes them up
                self._claims.give_back(job)
                count += 1
        return count

    def release(self) -> None:
        """The locks of the folders."""
        for watch in self.watches:
            watch.lock.release()

    def statistics(self) -> IntakeStatistics:
        """Any thread's."""
        return self._statistics

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        """Until closed. `refusals` go straight to the finish stage."""
        with jobs, refusals:
            try:
                while not self._closing:
                    if not self._step(jobs, refusals):
                        self._wait()
            finally:
                for watch in self.watches:
                    watch.close()

    def _step(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> bool:
        """Every duty once. False when there is nothing more to do for now."""
        self._heartbeat.working()
        back = self._scanner.check_folders()
        try:
            for folder in back:
                self._recover_again(folder)
            notes = self._take_notes()
            for question in notes.questions:
                question.answer.put(self._answer(question))
            self._take_back(notes.returns, notes.ended)
            self._send_suspect(jobs)
            self._scanner.take_hints(rescan=notes.rescan)
            if self._ledger.database.refused is None:
                self._scanner.compare_due()
            self._scanner.look_due()
            claimed = self._claim(jobs, refusals)
        except StorageFault:  # of the ledger: whatever was being considered is considered again
            self._scanner.compare_again()
            for folder in {*back, *(job.folder for job, _ in self._stranded)}:
                self._scanner.treat_as_absent(folder)
            claimed = False
        self._maintain()
        return claimed

    def _wait(self) -> None:
        now = self._clock.monotonic()
        moments = [
            now + self._config.intake.root_check,
            self._scanner.next_moment(),
            self._maintenance.next_moment(),
            self._empty_folders.next_moment(),
            self._space.next_check(now),
            *(queue.next_moment(now) for queue in self._frames.values()),
        ]
        self._sleep(min(moment for moment in moments if moment is not None) - now, self._heartbeat)

    def _maintain(self) -> None:
        now = self._clock.monotonic()
        if self._space.due(now):
            self._space.check(now, {folder: free_bytes(path) for folder, path in self._space.outputs.items()})
        self._maintenance.work(now)
        self._empty_folders.work(now)
        for name, queue in self._frames.items():
            if not self._scanner.is_present(name) or any(job.folder == name for job, _ in self._stranded):
                continue  # what is away is not over
            for marker in queue.look_for_ends(now):
                below, file = os.path.split(marker.path)
                try:
                    with folder_beneath(self._folder_paths[name], below) as place:
                        os.unlink(file, dir_fd=place)
                except OSError:  # it may not be removed, or somebody has
                    queue.marker_stays(marker)
        oldest = self._backlog.oldest() if len(self._backlog) < LOOKS_AT_ONCE else None
        refused = "disk_full" if self._space.closed else "ledger" if self._ledger.database.refused else None
        folders = "" if "" in self._by_operator else ",".join(sorted(self._by_operator))
        by_operator = ":".join(filter(None, ("operator", folders)))
        self._statistics = IntakeStatistics(
            waiting=len(self._backlog),
            in_flight=max(0, self._sent - self._ended_total),
            oldest_waiting=None if oldest is None else round(now - oldest, 3),
            paused=next(iter(self._paused_folders().values()), None)
            or refused
            or (by_operator if self._by_operator else None),
            ledger_rows=self._maintenance.ledger_rows,
            folders=self._scanner.describe(),
        )

    def _recover_again(self, folder: str) -> None:
        """A folder is back whose claimed files could not be reached."""
        if found := self._recovery.recover_folder(folder, alive=self._heartbeat.working):
            self._emit("intake.recovered", **found.event())
        back = [each for each in self._stranded if each[0].folder == folder]
        self._stranded = [each for each in self._stranded if each[0].folder != folder]
        self._take_back(back, [])

    def _send_suspect(self, jobs: Sender[Job]) -> None:
        """One image at a time of those that the last run died with, and nothing beside it."""
        if not self._suspects_held and jobs.free() and (job := self._recovery.suspects.next()) is not None:
            self._sent += 1
            if (queue := self._frames.get(job.folder)) is not None:
                job = replace(job, turn=queue.sent_again(job.relative_path))
            self._in_work[job.job_id] = job, None
            jobs.send(job)

    # ------------------------------------------------------------------------------------------------ claims

    def _claim(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> bool:
        """Take as many complete files as the decoders have room for. False when there was nothing to do."""
        if self._ledger.database.refused is not None:  # the ledger's thread tries it, and wakes this one
            return False
        now = self._clock.monotonic()
        closed = {*self._paused_folders(), *self._space.closed, *self._by_operator}
        suspects = not self._suspects_held and self._recovery.suspects.remain()
        files = (
            []
            if suspects or "" in closed
            else self._backlog.take(
                jobs.free(), closed, now, self._frames_free(), jobs.statistics().capacity // 4, self._films_free()
            )
        )
        if not files:
            return False
        try:
            results = self._claims.claim(files)
        except StorageFault:
            for complete in reversed(files):
                self._not_sent(complete)
                self._backlog.complete(complete)
            return False
        for result in reversed(results):  # the last first, so that the order can be taken back
            if result.job is None:
                self._not_sent(result.complete)
        for result in results:
            if result.job is None:
                self._not_claimed(result, now)
            else:
                self._send(result.job, result.complete, jobs, refusals)
        return any(result.job is not None for result in results)

    def _send(self, job: Job, complete: Complete, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        self._sent += 1
        if (queue := self._frames.get(job.folder)) is not None:
            job = replace(job, turn=queue.sent(job.relative_path, is_refused=bool(complete.refusal)))
        self._in_work[job.job_id] = job, None if complete.refusal else complete.arrival
        if not complete.refusal:
            jobs.send(replace(job, refilled=complete.arrival.refilled))
            return
        reason = Reason.EMPTY if complete.refusal == "empty" else Reason.TRUNCATED
        patience = self._config.intake.incomplete_timeout
        detail = f"its end is missing ({complete.refusal}); no change for {patience:g} s"
        # Recorded before anything else can happen: a next run must not let a decoder that overlooks the end judge it.
        with contextlib.suppress(StorageFault):  # the finish stage records it too, and waits for the disk
            self._ledger.failed(refused(job_keys(job), reason, detail))
        refusals.send(Rejection(job, reason, detail, "intake", Timing()))

    def _not_claimed(self, result: ClaimResult, now: float) -> None:
        key, arrival = result.complete.key, result.complete.arrival
        if result.why in ("vanished", "handled"):
            return
        if result.why == "blocked":
            self._scanner.report_blocked(key, arrival.version.ctime_ns, result.detail)
        if result.why == "changed":
            if (version := self._claims.version_at(*key)) is None:
                return
            changed = readiness.observed(arrival, version, now, announced=False, rules=self._config.intake)
        if result.why != "changed" or not changed:
            readiness.put_off(arrival, now)
        self._backlog.put(key, arrival)

    def _not_sent(self, complete: Complete) -> None:
        if (queue := self._frames.get(complete.key[0])) is not None:
            queue.not_sent(complete.key[1])

    def _films_free(self) -> int:
        """One film at a time: those that wait do so in their folder, and take no place of an image."""
        return 0 if any(job.folder in self._film_folders for job, _ in self._in_work.values()) else 1

    def _frames_free(self) -> dict[bool, int]:
        """Frames that may still be claimed, of realtime folders and of others: those that wait for one before them must
        not fill the pipeline."""
        free = dict.fromkeys((True, False), self._frames_maximum)
        for job, _ in self._in_work.values():
            if job.turn is not None:
                free[job.folder in self._live] -= 1
        return free

    # ------------------------------------------------------------------------------------------------ what is asked

    def _answer(self, question: IntakeQuestion) -> list[dict[str, object]]:
        if question.about == "images":
            return self._in_work_now(question) if question.in_work else self._waiting_now(question)
        queues = [queue for name, queue in self._frames.items() if question.folder in (None, name)]
        found = [each for queue in queues for each in queue.describe() if question.sequence in (None, each["sequence"])]
        if question.about == "end":
            for queue in queues:
                queue.end(question.sequence)
        return found[: question.limit]

    def _in_work_now(self, question: IntakeQuestion) -> list[dict[str, object]]:
        now = self._clock.monotonic()
        jobs = (job for job, _ in self._in_work.values() if question.folder in (None, job.folder))
        return [
            {"folder": job.folder, "path": job.relative_path, "job": job.job_id, "attempt": job.attempt}
            | {"seconds": round(max(0.0, now - job.claimed_at), 3), "bytes": job.version.size}
            for job in heapq.nsmallest(question.limit, jobs, key=lambda job: job.claimed_at)
        ]

    def _waiting_now(self, question: IntakeQuestion) -> list[dict[str, object]]:
        """`gate`: as in readiness, or what holds complete files; `left`: seconds until that is judged anew."""
        now, found = self._clock.monotonic(), []
        for (folder, path), arrival, complete in self._backlog.longest_waiting(question.limit, question.folder):
            gate = self._closed_by(folder, path) if complete else arrival.gate
            patience = arrival.changed_at + self._config.intake.incomplete_timeout
            ends = {"quiet": arrival.look_at} | dict.fromkeys(readiness.MISSING, patience)
            left = ends.get(gate)
            waited, unchanged = (round(max(0.0, now - since), 3) for since in (arrival.first_seen, arrival.changed_at))
            found.append(
                {"folder": folder, "path": path, "seconds": waited, "bytes": arrival.version.size, "gate": gate}
                | {"unchanged": unchanged, "left": None if left is None else round(max(0.0, left - now), 3)}
            )
        return found

    def _closed_by(self, folder: str, path: str) -> str:
        """Why this complete file is not claimed; "room" when only the pipeline's room is lacking."""
        if self._by_operator & {"", folder}:
            return "operator"
        if (kind := self._paused_folders().get(folder)) is not None:
            return kind
        if folder in self._space.closed:
            return "disk_full"
        if self._ledger.database.refused is not None:
            return "ledger"
        if not self._suspects_held and self._recovery.suspects.remain():
            return "suspects"
        return "frame" if folder in self._frames and self._frames[folder].is_blocked(path) else "room"

    # ------------------------------------------------------------------------------------------------ what comes back

    def _take_back(self, returns: list[tuple[Job, str]], ended: list[int]) -> None:
        now = self._clock.monotonic()
        for job, _ in filter(None, (self._in_work.pop(job_id, None) for job_id in ended)):
            if job.turn is not None:
                self._frames[job.folder].ended(job.turn)
            if job.claimed_by_rename:
                self._empty_folders.left(job.folder, job.relative_path, now)
        for job, why in sorted(returns, key=lambda each: -each[0].turn.ticket if each[0].turn is not None else 0):
            self._heartbeat.working()
            _, arrival = self._in_work.pop(job.job_id, (job, None))
            try:
                path = self._claims.give_back(job)
            except (StorageFault, OSError):  # the ledger refuses, the folder is away, no descriptor is left
                self._stranded.append((job, why))
                self._recovery.suspects.left(job.job_id)
                self._scanner.treat_as_absent(job.folder)
                continue
            if job.turn is not None:
                self._frames[job.folder].returned(job.relative_path, job.turn)
            self._back(job, why, path, arrival)

    def _back(self, job: Job, why: str, path: str | None, arrival: ArrivingFile | None) -> None:
        """The file is in its folder again: what was known of it still holds."""
        if path is None or (version := self._claims.version_at(job.folder, path)) is None:
            return
        now = self._clock.monotonic()
        same = replace(version, ctime_ns=0) == replace(job.version, ctime_ns=0)
        if arrival is None or not same or path != job.relative_path:
            remote = self._scanner.is_remote(job.folder)
            arrival = readiness.appeared(version, now, announced=False, remote=remote, rules=self._config.intake)
        else:
            arrival.version = version  # our own renames changed its ctime
            arrival.cut_off = arrival.cut_off or why == "incomplete"
            readiness.put_off(arrival, now)
        self._backlog.put((job.folder, path), arrival)
