"""Scans drop folders, compares them with the ledger, and finds the files that may be claimed.

Events, the first scan and every later one go through one method, `_consider`; nothing skips the checks.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from rmbgd.access_rights import why_unreadable
from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ImageError, Reason
from rmbgd.events import Emit
from rmbgd.folder_lock import FolderLock, this_service
from rmbgd.fs import FileVersion, kind_of, version_of
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake import readiness
from rmbgd.intake.file_checks import check, has_companion
from rmbgd.intake.frame_queue import FrameQueue
from rmbgd.intake.ignored import Ignored
from rmbgd.intake.priority_queue import Backlog, Complete, Key
from rmbgd.intake.readiness import ArrivingFile, Readiness
from rmbgd.intake.watcher import FileEvent, FolderWatch, Hints
from rmbgd.mounts import file_system, is_local
from rmbgd.sequence.numbering import is_end_marker
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Unfinished

LOOKS_AT_ONCE = 512  # files looked into before the other duties of the thread continue
UNANNOUNCED_AFTER = 5.0  # s; a file that is older and had no event was missed, not just faster than its event


def scan(root: str, below: str, ignored: Ignored, *, recursive: bool) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """(relative path, stat) of every entry of the folder `root`/`below` and of those below it, in no order.

    Directories are among them when they are entered, with the error instead where that fails. What vanishes meanwhile
    is left out. Can be abandoned at any point. Raises OSError when `root` cannot be read.
    """
    todo = [below]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(os.path.join(root, here)) as entries:
                yield here, os.stat(os.path.join(root, here))
                for entry in entries:
                    path = os.path.join(here, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        if recursive and not ignored.folder(entry.name):
                            todo.append(path)
                    elif not ignored.file(entry.name):
                        with contextlib.suppress(FileNotFoundError):
                            yield path, entry.stat(follow_symlinks=False)
        except OSError as error:
            if not here:
                raise
            if not isinstance(error, FileNotFoundError):
                yield here, error


@dataclass(slots=True)
class _DropFolder:
    folder: Folder
    watch: FolderWatch
    ignored: Ignored
    remote: bool = False
    compared_at: float | None = None
    due: bool = True  # compare at once
    more: bool = False  # the backlog was full: files were left unseen
    events_lost: bool = True  # perhaps, since the last comparison: what the next one finds proves nothing
    was_absent: bool = False

    def compare_at_once(self) -> None:
        self.due = self.events_lost = True

    def next_compare(self) -> float | None:
        if not self.watch.present or self.compared_at is None:
            return None
        return self.compared_at + self.watch.compare_every


class Scanner:
    """Belongs to the reconcile thread. `backlog` holds what was found. Raises StorageFault when the ledger refuses."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        clock: Clock,
        emit: Emit,
        heartbeat: Heartbeat,
        on_compared: Callable[[], None],
        wake: Callable[[], None],
        frames: Mapping[str, FrameQueue],
    ) -> None:
        """`frames`: by folder of frames, what hands its files out."""
        self._settings = config.intake
        self._ledger, self._clock, self._emit, self._heartbeat = ledger, clock, emit, heartbeat
        self._on_compared: Callable[[], None] | None = on_compared  # None once it was called
        self.backlog = Backlog(config.folder, self._settings.tracked_maximum, frames)
        self._frames = frames
        self.hints = Hints(self._settings.hints_maximum, wake)
        me = this_service(config.service.state_directory)
        self.watches = [
            FolderWatch(folder, self._settings, self.hints, emit, clock, FolderLock(me)) for folder in config.folder
        ]
        self._folders = {
            watch.folder.name: _DropFolder(watch.folder, watch, Ignored(watch.folder.ignore)) for watch in self.watches
        }
        self._blocked: set[tuple[Key, int]] = set()  # files that were reported, by ctime
        self._held: set[tuple[Key, int]] = set()  # likewise, with a companion for long: they get no place

    def next_moment(self) -> float | None:
        moments = [self.backlog.next_look(), *(folder.next_compare() for folder in self._folders.values())]
        return min((moment for moment in moments if moment is not None), default=None)

    def compare_again(self) -> None:
        for folder in self._folders.values():
            folder.compare_at_once()

    def treat_as_absent(self, folder: str) -> None:
        """Its next check finds that it is back, and what is stranded is tried again."""
        self._folders[folder].was_absent = True

    def is_present(self, folder: str) -> bool:
        return self._folders[folder].watch.present and not self._folders[folder].was_absent

    def is_remote(self, folder: str) -> bool:
        return self._folders[folder].remote

    def is_in_place(self, row: Unfinished) -> bool:
        folder = self._folders.get(row.folder)
        return folder is not None and os.path.lexists(os.path.join(folder.watch.root, row.relative_path))

    def describe(self) -> dict[str, dict[str, object]]:
        return {name: folder.watch.status() | {"more": folder.more} for name, folder in self._folders.items()}

    # ------------------------------------------------------------------------------------------------ where to look

    def check_folders(self) -> list[str]:
        """Is every folder there, and its watch alive? Names of those that are back."""
        back: list[str] = []
        for name, folder in self._folders.items():
            if folder.watch.check():
                folder.compare_at_once()
                folder.remote = not is_local(file_system(folder.watch.root))
            if folder.watch.present and folder.was_absent:
                folder.was_absent = False
                back.append(name)
            elif not folder.watch.present and not folder.was_absent:
                folder.was_absent, folder.due = True, False
                self.backlog.forget_folder(name)
        return back

    def take_hints(self, *, rescan: bool) -> None:
        """Look where events point. `rescan`: compare every folder at once."""
        hinted = self.hints.take()
        for name in self._folders if rescan else hinted.whole:
            self._folders[name].compare_at_once()
        for name, path in hinted.directories:
            folder = self._folders[name]
            if folder.folder.recursive and not folder.ignored.path(path + "/x"):
                self._scan(folder, path, announced=True)
        for (name, path), heard in hinted.files.items():
            folder = self._folders[name]
            if folder.watch.present and not folder.ignored.path(path):
                self._consider_path(folder, path, announced=heard >= FileEvent.APPEARED)

    def compare_due(self) -> None:
        now = self._clock.monotonic()
        present = [folder for folder in self._folders.values() if folder.watch.present]
        for folder in present:
            moment = folder.next_compare()
            more = (folder.more and self.backlog.half_empty(folder.folder.name)) or self._is_missed(folder, now)
            if folder.due or more or moment is None or moment <= now:
                self._compare(folder, now)
        if self._on_compared is not None and all(folder.compared_at is not None for folder in present):
            self._on_compared()
            self._on_compared = None

    def _compare(self, folder: _DropFolder, now: float) -> None:
        proves = not (folder.due or folder.events_lost or folder.more)
        folder.due = folder.more = False
        directories, missed = self._scan(folder, "", announced=False)
        folder.compared_at = now
        if (queue := self._frames.get(folder.folder.name)) is not None:
            queue.unseen, queue.seen_at = folder.more, now
        if not folder.more:
            folder.events_lost = False
            folder.watch.compared(directories, missed if proves else 0)

    def _scan(self, folder: _DropFolder, below: str, *, announced: bool) -> tuple[set[int], int]:
        """Inodes of directories that were entered, and how many new files have been there for a while unannounced."""
        directories: set[int] = set()
        missed, name, wall = 0, folder.folder.name, self._clock.wall().timestamp()
        with contextlib.suppress(OSError):  # it has gone, or turned unreadable: the watch says so at its next check
            found_files = scan(folder.watch.root, below, folder.ignored, recursive=folder.folder.recursive)
            if name in self._frames and not below:
                found_files = self._nearest(folder, found_files)
            for path, found in found_files:
                if isinstance(found, OSError):
                    self.report_blocked((name, path), 0, why_unreadable(found, os.path.join(folder.watch.root, path)))
                elif stat.S_ISDIR(found.st_mode):
                    directories.add(found.st_ino)
                elif self._has_no_place(folder, path, found):  # they wait in the folder, which costs no memory
                    break
                else:
                    self._heartbeat.working()
                    new = self._consider(folder, path, found, announced=announced)
                    missed += new and wall - found.st_ctime > UNANNOUNCED_AFTER
        return directories, missed

    def _nearest(
        self, folder: _DropFolder, found: Iterable[tuple[str, os.stat_result | OSError]]
    ) -> Iterator[tuple[str, os.stat_result | OSError]]:
        """What was found, of the frames only as many as have a place, those whose turn comes first; they get theirs."""
        name, numbers, lowest = folder.folder.name, itertools.count(), dict[str, int]()
        queue = self._frames[name]
        files: list[tuple[int, int, str, os.stat_result]] = []  # heap, the farthest first
        farthest = False
        for path, status in found:
            self._heartbeat.working()
            if isinstance(status, OSError) or not stat.S_ISREG(status.st_mode) or is_end_marker(path):
                yield path, status
                continue
            key, version = (name, path), version_of(status)
            if self.backlog.get(key) is None and self._ledger.handled(*key, version):
                continue
            if (key, version.ctime_ns) in self._held:
                yield path, status
                continue
            heapq.heappush(files, (-queue.rank(path, lowest), -next(numbers), path, status))
            if len(files) > self.backlog.share:
                heapq.heappop(files)
                farthest = True
        if farthest:
            self.backlog.keep(folder.folder.name, {path for _, _, path, _ in files})
        for _, _, path, status in sorted(files, reverse=True):
            yield path, status
        folder.more = folder.more or farthest

    def _is_missed(self, folder: _DropFolder, now: float) -> bool:
        """Is a frame about to be passed over, and may be here all the same?"""
        queue = self._frames.get(folder.folder.name)
        return queue is not None and queue.wants_all_seen(now)

    def _has_no_place(self, folder: _DropFolder, path: str, status: os.stat_result) -> bool:
        name = folder.folder.name
        if not self.backlog.full(name) or self.backlog.get((name, path)) is not None:
            return False
        if (queue := self._frames.get(name)) is not None:
            if is_end_marker(path) or not stat.S_ISREG(status.st_mode):
                return False  # they take none
            queue.lost_sight()
        folder.more = True
        return True

    # ------------------------------------------------------------------------------------------------ every entry

    def _consider_path(self, folder: _DropFolder, path: str, *, announced: bool) -> None:
        key = (folder.folder.name, path)
        try:
            status = os.lstat(os.path.join(folder.watch.root, path))
        except OSError:
            self.backlog.forget(key)
            return
        if stat.S_ISDIR(status.st_mode):
            return
        if self._has_no_place(folder, path, status):
            folder.events_lost = True
            return
        self._consider(folder, path, status, announced=announced)

    def _consider(self, folder: _DropFolder, path: str, status: os.stat_result, *, announced: bool) -> bool:
        """An entry was seen, by an event or a scan. True when it is new here."""
        key = (folder.folder.name, path)
        if key[0] in self._frames and is_end_marker(path):
            if self._frames[key[0]].mark_end(path, status.st_ctime_ns):
                folder.compare_at_once()  # frames that came before it are known then
            return False
        version = version_of(status)
        if (refusal := _not_ours_to_read(folder.watch.root, status)) is not None:
            self._refuse_in_place(key, version, *refusal)
            return False
        now = self._clock.monotonic()
        arrival = self.backlog.get(key)
        if arrival is not None:
            before = arrival.look_at
            changed = readiness.observed(arrival, version, now, announced=announced, rules=self._settings)
            if changed or arrival.look_at < before:
                self.backlog.put(key, arrival)
            return False
        if self._ledger.handled(*key, version):  # kept, or refused, or done and may not be moved
            return False
        if (held := (key, version.ctime_ns)) in self._held:
            with contextlib.suppress(OSError):
                if has_companion(folder.watch.root, path):
                    return False
            self._held.discard(held)
        rules, remote = self._settings, folder.remote
        self.backlog.put(key, readiness.appeared(version, now, announced=announced, remote=remote, rules=rules))
        return True

    def _refuse_in_place(self, key: Key, version: FileVersion, reason: Reason, detail: str) -> None:
        """It stays where it is, unread, and is reported once."""
        self.backlog.forget(key)
        if (outcome := self._ledger.refuse(*key, version, reason, detail)) is not None:
            self._ledger.outbox.deliver(outcome, self._emit)

    # ------------------------------------------------------------------------------------------------ is it complete?

    def look_due(self) -> None:
        now = self._clock.monotonic()
        for count, (key, arrival) in enumerate(self.backlog.due(now)):
            self._heartbeat.working()
            self._look(key, arrival, now)
            if count >= LOOKS_AT_ONCE:
                break

    def _look(self, key: Key, arrival: ArrivingFile, now: float) -> None:
        try:
            version, facts = check(self._folders[key[0]].watch.root, key[1], remote=arrival.remote)
        except ImageError as error:  # swapped for a link or a pipe since it was seen
            self._refuse_in_place(key, arrival.version, error.reason, error.detail)
            return
        except (FileNotFoundError, NotADirectoryError):
            self.backlog.forget(key)
            return
        except OSError as error:
            where = os.path.join(self._folders[key[0]].watch.root, key[1])
            self.report_blocked(key, arrival.version.ctime_ns, why_unreadable(error, where))
            readiness.put_off(arrival, now)
            arrival.gate = "blocked"
            self.backlog.put(key, arrival)
            return
        if readiness.observed(arrival, version, now, announced=False, rules=self._settings):
            self.backlog.put(key, arrival)
            return
        decision = readiness.judge(arrival, facts, now, self._settings)
        if decision.report_incomplete:
            self._emit("intake.incomplete", folder=key[0], path=key[1], gate=decision.gate)
        if decision.report_stuck:
            waited = round(now - arrival.first_seen, 1)
            self._emit("intake.stuck_upload", folder=key[0], path=key[1], seconds=waited)
        if decision.gate == "companion" and now >= arrival.changed_at + self._settings.incomplete_timeout:
            self.backlog.forget(key)  # comparisons look whether it is still there
            if len(self._held) > self._settings.hints_maximum:
                self._held.clear()
            self._held.add((key, arrival.version.ctime_ns))
        elif decision.readiness is Readiness.WAIT:
            self.backlog.put(key, arrival)
        else:
            refusal = decision.gate if decision.readiness is Readiness.REFUSE else ""
            self.backlog.complete(Complete(key, arrival, decision.readiness is not Readiness.READY, refusal))

    def report_blocked(self, key: Key, ctime_ns: int, cause: str) -> None:
        if (key, ctime_ns) not in self._blocked:
            if len(self._blocked) > self._settings.hints_maximum:
                self._blocked.clear()
            self._blocked.add((key, ctime_ns))
            self._emit("intake.blocked", folder=key[0], path=key[1], cause=cause)


def _not_ours_to_read(root: str, status: os.stat_result) -> tuple[Reason, str] | None:
    if not stat.S_ISREG(status.st_mode):
        return Reason.NOT_REGULAR, kind_of(status.st_mode)
    if status.st_nlink <= 1 or status.st_uid == os.geteuid():
        return None
    with contextlib.suppress(OSError):  # the folder has just gone; so has what is in it
        if status.st_uid == os.stat(root).st_uid:
            return None  # the folder's owner may link what is theirs
    # Somebody else's file, linked in to be read with our rights.
    return Reason.HARDLINK, f"{status.st_nlink} names, and owned by user {status.st_uid}"
