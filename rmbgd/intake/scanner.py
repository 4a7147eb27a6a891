"""Where to look, and whether what is there is complete: from hints and scans to files that may be claimed.

Events, the first scan and every later one go through one door, `_consider`; nothing skips the gates. Claims nothing and
moves nothing; refuses only what must not even be opened, and leaves it where it is.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ImageError, Reason
from rmbgd.events import Emit
from rmbgd.fs import FileVersion, kind_of, version_of
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake import readiness as settle
from rmbgd.intake.file_checks import look
from rmbgd.intake.mounts import file_system, is_local
from rmbgd.intake.priority_queue import Backlog, Complete, Key
from rmbgd.intake.readiness import Arrival, Verdict
from rmbgd.intake.watcher import FolderWatch, Heard, Hints
from rmbgd.naming import CLAIM_FOLDER
from rmbgd.store.ledger import Ledger

# --- The scan of a drop folder: every entry that is not to be left alone, and every directory that should be watched.


# Half-finished uploads and what file managers leave behind; matched without regard to case.
IGNORED_FILES = (
    *(".*", "~$*", "*~", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.download", "*.tmp", "*.temp", "*.swp"),
    *("*.writing", "*.upload", "*.tacitpart", "~syncthing~*", "Thumbs.db", "desktop.ini", "ehthumbs.db"),
)
IGNORED_FOLDERS = (CLAIM_FOLDER, ".*", "@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN")


class Ignored:
    """Which names of a folder are left alone."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        self._files = _either([*IGNORED_FILES, *more])
        self._folders = _either([*IGNORED_FOLDERS, *more])

    def file(self, name: str) -> bool:
        return self._files.match(name) is not None

    def folder(self, name: str) -> bool:
        return self._folders.match(name) is not None

    def path(self, relative_path: str) -> bool:
        """A file whose own name, or any folder above it, is left alone."""
        *folders, name = relative_path.split("/")
        return self.file(name) or any(self.folder(each) for each in folders)


def _either(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns), re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is no directory, below the drop folder, and how it looked."""

    relative_path: str
    status: os.stat_result


@dataclass(slots=True)
class Seen:
    """What a scan went through: `directories` by inode; `unreadable`: (path, error) of those it could not enter."""

    directories: set[int] = field(default_factory=set)
    unreadable: list[tuple[str, OSError]] = field(default_factory=list)


def scan(root: str, below: str, ignored: Ignored, *, recursive: bool, seen: Seen) -> Iterator[Entry]:
    """Every entry below `root`/`below`, in no order. What vanishes meanwhile is left out.

    Can be abandoned at any point. Raises OSError when `root` itself cannot be read.
    """
    todo = [below]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(os.path.join(root, here)) as entries:
                seen.directories.add(os.stat(os.path.join(root, here)).st_ino)
                for entry in entries:
                    path = os.path.join(here, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        if recursive and not ignored.folder(entry.name):
                            todo.append(path)
                    elif not ignored.file(entry.name):
                        yield from _entry(entry, path)
        except FileNotFoundError:
            if not here:
                raise
        except OSError as error:
            if not here:
                raise
            seen.unreadable.append((here, error))


def _entry(entry: os.DirEntry[str], path: str) -> Iterator[Entry]:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Entry(path, status)


# --- Where to look, and whether what is there is complete: from hints and scans to files that may be claimed.


LOOKS_AT_ONCE = 512  # files looked into before the other duties get their turn again
UNANNOUNCED_AFTER = 5.0  # s; a file that is older and that no event told of was missed, not just faster than its event


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


class Scanner:
    """Belongs to the reconcile thread. `room` holds what was found. Raises StorageFault when the ledger refuses."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        clock: Clock,
        emit: Emit,
        heartbeat: Heartbeat,
        on_compared: Callable[[], None],
    ) -> None:
        intake = config.intake
        self.room = Backlog(config.folder, intake.tracked_maximum)
        self.rules = settle.Rules(
            intake.quiet_closed,
            intake.quiet_unknown,
            intake.quiet_remote,
            intake.incomplete_timeout,
            intake.stuck_upload,
        )
        self._ledger, self._clock, self._emit, self._heartbeat, self._on_compared = (
            ledger,
            clock,
            emit,
            heartbeat,
            on_compared,
        )
        self._hints: Hints | None = None
        self._hints_maximum = intake.hints_maximum
        self._watched: dict[str, _Watched] = {}
        self._told: set[tuple[Key, int]] = set()  # blocked files that were told, by ctime
        self._first_round_told = False

    def attach(self, hints: Hints, watches: list[FolderWatch]) -> None:
        """The main thread's, before anything else."""
        self._hints = hints
        for watch in watches:
            self._watched[watch.folder.name] = _Watched(watch.folder, watch, Ignored(watch.folder.ignore))

    def close(self) -> None:
        for watched in self._watched.values():
            watched.watch.close()

    def next_moment(self) -> float | None:
        """When something is due here."""
        moments = [self.room.next_look(), *map(self._next_compare, self._watched.values())]
        return min((moment for moment in moments if moment is not None), default=None)

    def look_again(self, folder: str | None = None) -> None:
        """Something that was being considered may be forgotten: compare one folder, or all, at the next occasion."""
        for name, watched in self._watched.items():
            if folder in (None, name):
                watched.due = watched.surprised = True

    def treat_as_absent(self, folder: str) -> None:
        """Its next check finds that it is back, and what is stranded is tried again."""
        self._watched[folder].was_absent = True

    def is_remote(self, folder: str) -> bool:
        return self._watched[folder].remote

    def stands(self, folder: str, path: str) -> bool:
        """Is there anything at this path?"""
        watched = self._watched.get(folder)
        return watched is not None and os.path.lexists(os.path.join(watched.folder.input, path))

    def facts(self) -> dict[str, dict[str, object]]:
        """What the status says of each folder."""
        return {name: _facts(watched) for name, watched in self._watched.items()}

    # ------------------------------------------------------------------------------------------------ where to look

    def check_folders(self) -> list[str]:
        """Is every folder there, and its watch alive? Names of those that are back."""
        back: list[str] = []
        for name, watched in self._watched.items():
            if watched.watch.check():
                watched.due = watched.surprised = True
                watched.remote = not is_local(file_system(str(watched.folder.input)))
            if watched.watch.present and watched.was_absent:
                watched.was_absent = False
                back.append(name)
            if not watched.watch.present and not watched.was_absent:
                watched.was_absent = True
                watched.due = False
                self.room.forget_folder(name)
        return back

    def take_hints(self, *, rescan: bool) -> None:
        """Look where events point. `rescan`: compare every folder at once."""
        assert self._hints is not None
        hinted = self._hints.take()
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

    def compare_due(self) -> None:
        """Compare the folders whose time has come."""
        now = self._clock.monotonic()
        for watched in self._watched.values():
            if not watched.watch.present:
                continue
            moment = self._next_compare(watched)
            more = watched.more and self.room.half_empty(watched.folder.name)
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
                if self.room.full(watched.folder.name) and self.room.get(key) is None:
                    watched.more = True  # they wait in the folder, which costs no memory
                    break
                self._heartbeat.working()
                new = self._consider(watched, entry.relative_path, entry.status, announced=announced)
                missed += new and wall - entry.status.st_ctime > UNANNOUNCED_AFTER
        except OSError:  # the folder has gone, or turned unreadable: the watch says so at its next check
            pass
        for path, error in seen.unreadable:
            self.tell_blocked((watched.folder.name, path), 0, error.strerror or str(error))
        return seen, missed

    # ------------------------------------------------------------------------------------------------ the one door

    def _consider_path(self, watched: _Watched, path: str, *, announced: bool) -> None:
        key = (watched.folder.name, path)
        try:
            status = os.lstat(os.path.join(watched.folder.input, path))
        except OSError:
            self.room.forget(key)
            return
        if stat.S_ISDIR(status.st_mode):
            return
        if self.room.full(key[0]) and self.room.get(key) is None:
            watched.more = watched.surprised = True
            return
        self._consider(watched, path, status, announced=announced)

    def _consider(self, watched: _Watched, path: str, status: os.stat_result, *, announced: bool) -> bool:
        """An entry was seen, somehow. True when it is new here."""
        key = (watched.folder.name, path)
        version = version_of(status)
        if (refusal := self._not_ours_to_read(watched, status)) is not None:
            self.room.forget(key)
            self._refuse_in_place(key, version, *refusal)
            return False
        now = self._clock.monotonic()
        arrival = self.room.get(key)
        if arrival is not None:
            before = arrival.look_at
            if (
                settle.observed(arrival, version, now, announced=announced, rules=self.rules)
                or arrival.look_at < before
            ):
                self.room.put(key, arrival)
            return False
        if self._ledger.handled(*key, version):  # kept, or refused, or done and nobody lets us move it
            return False
        self.room.put(key, settle.appeared(version, now, announced=announced, remote=watched.remote, rules=self.rules))
        return True

    def _not_ours_to_read(self, watched: _Watched, status: os.stat_result) -> tuple[Reason, str] | None:
        if not stat.S_ISREG(status.st_mode):
            return Reason.NOT_REGULAR, kind_of(status.st_mode)
        if status.st_nlink > 1 and status.st_uid not in (os.geteuid(), _owner_of(str(watched.folder.input))):
            # Somebody else's file, linked in to be read with our rights; the folder's owner may link what is theirs.
            return Reason.HARDLINK, f"{status.st_nlink} names, and owned by user {status.st_uid}"
        return None

    def _refuse_in_place(self, key: Key, version: FileVersion, reason: Reason, detail: str) -> None:
        """It stays where it is, unread, and is told once."""
        folder, path = key
        job = self._ledger.refuse(folder, path, version, reason, detail)
        if job is not None:
            self._emit(
                "image.failed", job=job, folder=folder, path=path, attempt=0, milliseconds={}, reason=str(reason),
                detail=detail, stage="intake",
            )  # fmt: skip
            self._ledger.untold.told(job)

    # ------------------------------------------------------------------------------------------------ is it complete?

    def look_due(self) -> None:
        now = self._clock.monotonic()
        for count, (key, arrival) in enumerate(self.room.due(now)):
            self._heartbeat.working()
            self._look(key, arrival, now)
            if count >= LOOKS_AT_ONCE:
                break

    def _look(self, key: Key, arrival: Arrival, now: float) -> None:
        watched = self._watched[key[0]]
        try:
            version, facts = look(str(watched.folder.input), key[1], remote=arrival.remote)
        except ImageError as error:  # swapped for a link or a pipe since it was seen
            self.room.forget(key)
            self._refuse_in_place(key, arrival.version, error.reason, error.detail)
            return
        except (FileNotFoundError, NotADirectoryError):
            self.room.forget(key)
            return
        except OSError as error:
            self.tell_blocked(key, arrival.version.ctime_ns, error.strerror or str(error))
            settle.put_off(arrival, now)
            self.room.put(key, arrival)
            return
        if settle.observed(arrival, version, now, announced=False, rules=self.rules):
            self.room.put(key, arrival)
            return
        decision = settle.judge(arrival, facts, now, self.rules)
        if decision.tell_incomplete:
            self._emit("intake.incomplete", folder=key[0], path=key[1], gate=decision.gate)
        if decision.tell_stuck:
            waited = round(now - arrival.first_seen, 1)
            self._emit("intake.stuck_upload", folder=key[0], path=key[1], seconds=waited)
        if decision.verdict is Verdict.WAIT:
            self.room.put(key, arrival)
            return
        refusal = decision.gate if decision.verdict is Verdict.REFUSE else ""
        self.room.complete(Complete(key, arrival, decision.verdict is not Verdict.READY, refusal))

    def tell_blocked(self, key: Key, ctime_ns: int, cause: str) -> None:
        if (key, ctime_ns) not in self._told:
            if len(self._told) > self._hints_maximum:
                self._told.clear()
            self._told.add((key, ctime_ns))
            self._emit("intake.blocked", folder=key[0], path=key[1], cause=cause)


def _facts(watched: _Watched) -> dict[str, object]:
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


def _owner_of(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:  # it has just gone; so has what is in it
        return None
