"""Watches drop folders with inotify through watchdog; polls where events cannot be relied on.

Events become hints where to look. The watch is checked from outside, again and again: that the folder is still the same
one, that the kernel still watches every directory, that threads live and that nothing arrives without an event.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Self

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import InotifyConstants, Mask

from rmbgd.clock import Clock
from rmbgd.config.load import Folder, IntakeSettings
from rmbgd.events import Emit
from rmbgd.folder_lock import Claimant, FolderLock
from rmbgd.mounts import file_system, is_local, is_mounted, is_there, watched_inodes
from rmbgd.naming import CLAIM_FOLDER
from rmbgd.store.claims import claim_folder

MISSED_LIMIT, MISSED_WINDOW = 3, 3600.0  # so many files without an event in so many seconds: events are unreliable
OVERFLOW_LOGGER = "watchdog.observers.inotify_c"  # the only place where watchdog reports an overflow

Mode = Literal["events", "poll", "waiting"]


class FileEvent(IntEnum):
    """What happened to a file last; higher says more."""

    TOUCHED = 0  # mode, owner or times changed
    APPEARED = 1  # created, linked, or renamed
    CLOSED = 2  # a writer closed it


@dataclass(slots=True)
class PendingHints:
    """Where to look. `whole`: folders to compare; `directories`: below a folder, to scan."""

    files: dict[tuple[str, str], FileEvent] = field(default_factory=dict)  # (folder, relative path)
    directories: set[tuple[str, str]] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.whole)


class Hints:
    """A bounded set of paths that events named. Filled by watchdog's threads, emptied by the reconcile thread."""

    def __init__(self, maximum: int, wake: Callable[[], None]) -> None:
        self._maximum = maximum
        self._wake = wake  # called without the lock, whenever the set stops being empty
        self._lock = threading.Lock()
        self._hinted = PendingHints()  # guarded by _lock

    def file(self, folder: str, path: str, event: FileEvent) -> None:
        key = (folder, path)
        self._add(folder, lambda hinted: hinted.files.update({key: max(event, hinted.files.get(key, event))}))

    def directory(self, folder: str, path: str) -> None:
        self._add(folder, lambda hinted: hinted.directories.add((folder, path)))

    def whole(self, folder: str) -> None:
        self._add(folder, lambda hinted: hinted.whole.add(folder))

    def take(self) -> PendingHints:
        with self._lock:
            hinted, self._hinted = self._hinted, PendingHints()
            return hinted

    def _add(self, folder: str, note: Callable[[PendingHints], None]) -> None:
        with self._lock:
            hinted, was_empty = self._hinted, not self._hinted
            if folder in hinted.whole:
                return
            note(hinted)
            if len(hinted.files) + len(hinted.directories) > self._maximum:
                folders = {name for name, _ in (*hinted.files, *hinted.directories)}
                self._hinted = PendingHints(whole=folders | hinted.whole)
        if was_empty:
            self._wake()


_EVENTS: dict[type[FileSystemEvent], FileEvent] = {
    FileAttribEvent: FileEvent.TOUCHED,
    FileCreatedEvent: FileEvent.APPEARED,
    FileClosedEvent: FileEvent.CLOSED,
    FileMovedEvent: FileEvent.APPEARED,
}


class _Emitter(InotifyEmitter):
    """Asks the kernel for what matters: about two events a file, so that its queue holds thousands of files."""

    def get_event_mask_from_filter(self) -> Mask:
        inotify = InotifyConstants
        arrivals = inotify.IN_CREATE | inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO | inotify.IN_ATTRIB
        # Not MOVED_FROM: the library holds every event behind an unpaired one for 0.5 s.
        return Mask(arrivals | inotify.IN_DELETE_SELF | inotify.IN_EXCL_UNLINK)


class _Handler(FileSystemEventHandler):
    """Called in watchdog's thread. It must not raise: that would end the thread without a trace."""

    def __init__(self, folder: str, root: str, hints: Hints) -> None:
        self._folder, self._prefix, self._hints = folder, root.rstrip("/") + "/", hints
        self.received = 0  # events on files; written by watchdog's thread only

    def on_any_event(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.dest_path or event.src_path)
        relative = path.removeprefix(self._prefix)
        if relative == path or relative.split("/", 1)[0] == CLAIM_FOLDER:
            return
        if isinstance(event, (DirCreatedEvent, DirMovedEvent)):
            self._hints.directory(self._folder, relative)
        elif type(event) in _EVENTS:
            self.received += 1
            self._hints.file(self._folder, relative, _EVENTS[type(event)])


class FolderWatch:
    """The watch on one drop folder. Every method is the reconcile thread's, unless it says otherwise."""

    def __init__(
        self, folder: Folder, settings: IntakeSettings, hints: Hints, emit: Emit, clock: Clock, lock: FolderLock
    ) -> None:
        self.folder, self.root, self.lock = folder, str(folder.input), lock
        self._settings, self._hints, self._emit, self._clock = settings, hints, emit, clock
        self._identity: tuple[int, int] | None = None  # (device, inode) of the directory that is watched
        self._observer: BaseObserver | None = None
        self._handler = _Handler(folder.name, self.root, hints)
        self._mode: Mode | None = None  # None before the first look
        self._cause: str | None = None
        self._received_when_degraded = 0
        self._wanted = self._armed = 0
        self._missed: list[float] = []  # when; within MISSED_WINDOW
        self._missed_total = self._overflows = self._incomplete_scans = 0
        self._next_check = float("-inf")

    @property
    def present(self) -> bool:
        return self._mode in ("events", "poll")

    @property
    def compare_every(self) -> float:
        """Seconds between two comparisons of the whole folder with the ledger."""
        return self._settings.reconcile if self._mode == "events" else self._settings.reconcile_lossy

    def status(self) -> dict[str, object]:
        """What the health event says of this folder's watch."""
        return {
            "mode": self._mode or "waiting",
            "cause": self._cause,
            "armed": self._armed,
            "wanted": self._wanted,
            "overflows": self._overflows,
            "missed": self._missed_total,
        }

    def check(self) -> bool:
        """Is everything as it was? True: compare the whole folder at once. Cheap when called too often."""
        now = self._clock.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + self._settings.root_check
        identity, trouble = self._identify()
        holder = None if identity is None else self.take_lock()
        if identity is None or holder is not None:
            self._lose(trouble, holder)
            return False
        if identity != self._identity:
            replaced = self._identity is not None
            self._arm(identity)
            if replaced:
                self._emit("folder.replaced", folder=self.folder.name)
            return True
        observer = self._observer
        if observer is not None and not (
            observer.emitters and all(each.is_alive() for each in (observer, *observer.emitters))
        ):
            self._arm(identity)
            self._degrade("dead")
            return True
        if self._cause == "silent" and self._handler.received > self._received_when_degraded:
            self._restore()
        return False

    def take_lock(self) -> Claimant | None:
        """Another service that claims from this folder; None when the lock is ours, or there cannot be one.

        Also the main thread's, before the reconcile thread runs.
        """
        comes_and_goes = self.folder.require_mount and is_local(file_system(self.root))
        if self.folder.originals == "keep" or comes_and_goes:  # nothing is claimed; no open file may hold up an unmount
            return None
        if not is_there(self.root, require_mount=self.folder.require_mount):
            return None
        # Nobody can lock a folder in which we may not write, or a file system that has no locks: worked on without one.
        with contextlib.suppress(OSError), claim_folder(self.root) as claims:
            if (holder := self.lock.take(claims)) is not None:
                return holder
            for each in self.lock.contenders(claims):
                who = {"host": each.host, "contender_pid": each.pid, "state_directory": each.state_directory}
                self._emit("folder.contested", folder=self.folder.name, **who)
        return None

    def overflowed(self) -> None:
        """The kernel dropped events. Called from watchdog's thread by way of its log."""
        self._overflows += 1
        if self._mode == "events":
            self._hints.whole(self.folder.name)

    def compared(self, directories: set[int], missed: int) -> None:
        """A whole comparison is over: it saw these directory inodes, and `missed` files without an event."""
        now = self._clock.monotonic()
        self._missed_total += missed
        self._missed = [then for then in self._missed if now - then < MISSED_WINDOW] + [now] * min(missed, MISSED_LIMIT)
        if self._observer is None:
            return
        watched = watched_inodes() & directories
        self._wanted, self._armed = len(directories), len(watched)
        # A directory made during the scan may not be watched yet; one that is missing twice is missing.
        self._incomplete_scans = self._incomplete_scans + 1 if watched < directories else 0
        if self._incomplete_scans == 1:
            self._hints.whole(self.folder.name)
        elif self._incomplete_scans == 2:
            self._arm_observer()
            self._hints.whole(self.folder.name)
        elif self._incomplete_scans > 2:
            self._degrade("watch_limit")
        elif self._cause in ("watch_limit", "dead"):
            self._restore()
        if len(self._missed) >= MISSED_LIMIT and self._mode == "events":
            self._degrade("silent")

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
        self._armed = 0

    def _identify(self) -> tuple[tuple[int, int] | None, str]:
        """(device, inode) of the folder, or None and why."""
        try:
            found = os.stat(self.root)
        except OSError as error:
            return None, "denied" if isinstance(error, PermissionError) else "missing"
        if not stat.S_ISDIR(found.st_mode):
            return None, "missing"
        if self.folder.require_mount and not is_mounted(self.root):
            return None, "not_mounted"
        if not os.access(self.root, os.R_OK | os.X_OK):
            return None, "denied"
        return (found.st_dev, found.st_ino), ""

    def _lose(self, trouble: str, holder: Claimant | None) -> None:
        self.close()
        self.lock.release()
        self._identity = None
        cause, more = (trouble, {}) if holder is None else ("in_use", {"holder": str(holder)})
        if (self._mode, self._cause) != ("waiting", cause):
            self._mode, self._cause = "waiting", cause
            self._emit("folder.waiting", folder=self.folder.name, cause=cause, **more)

    def _arm(self, identity: tuple[int, int]) -> None:
        self._identity, self._cause, self._incomplete_scans = identity, None, 0
        self._missed.clear()
        kind = file_system(self.root)
        wanted = self.folder.watch == "events" or (self.folder.watch == "auto" and is_local(kind))
        self._mode = "events" if wanted else "poll"
        if wanted:
            self._arm_observer()
        else:
            self.close()
        self._armed = int(self._observer is not None)
        if self._mode == "events" or not wanted:
            self._emit(
                "folder.watching", folder=self.folder.name, mode=self._mode, file_system=kind, watches=self._armed
            )

    def _arm_observer(self) -> None:
        self.close()
        observer = BaseObserver(_Emitter)
        kinds = [*_EVENTS, DirCreatedEvent, DirMovedEvent]
        try:
            observer.schedule(self._handler, self.root, recursive=self.folder.recursive, event_filter=kinds)
            observer.start()
        except OSError:  # no instance or no watch left for us, or the folder has just gone: comparing finds out
            observer.unschedule_all()
            self._degrade("watch_limit")
            return
        self._observer = observer

    def _degrade(self, cause: str) -> None:
        if self._mode == "poll" and self._cause == cause:
            return
        self._mode, self._cause = "poll", cause
        self._received_when_degraded = self._handler.received
        self._emit("watch.degraded", folder=self.folder.name, cause=cause, wanted=self._wanted, armed=self._armed)

    def _restore(self) -> None:
        self._mode, self._cause = "events", None
        self._missed.clear()
        self._emit("watch.restored", folder=self.folder.name)


class OverflowListener(logging.Handler):
    """Listens to watchdog's log, the only place where it reports that the kernel dropped events."""

    def __init__(self, watches: Sequence[FolderWatch], emit: Emit) -> None:
        super().__init__(logging.WARNING)
        self._watches, self._emit_event, self._logger = watches, emit, logging.getLogger(OVERFLOW_LOGGER)

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            for watch in self._watches:
                watch.overflowed()
            self._emit_event("watch.overflow")

    def __enter__(self) -> Self:
        """Also keeps watchdog from writing beside the event log, whole watch tables among it."""
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
        package = logging.getLogger("watchdog")
        package.addHandler(logging.NullHandler())
        package.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
