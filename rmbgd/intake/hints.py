"""Where to look sooner: a bounded, de-duplicated set of paths that events left behind.

Hints are never the truth. When there are too many, they are forgotten and the folder is compared whole instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum


class Heard(IntEnum):
    """What was heard of a file last; higher says more."""

    TOUCHED = 0  # mode, owner or times changed
    APPEARED = 1  # created, linked, or renamed
    CLOSED = 2  # a writer closed it


@dataclass(slots=True)
class Hinted:
    """What was heard since the last look. `whole`: folders to compare; `directories`: below a folder, to scan."""

    files: dict[tuple[str, str], Heard] = field(default_factory=dict)  # (folder, relative path)
    directories: set[tuple[str, str]] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.whole)


class Hints:
    """Filled by watchdog's threads, emptied by the reconcile thread. Never makes its callers wait for anything else."""

    def __init__(self, maximum: int, wake: Callable[[], None]) -> None:
        self._maximum = maximum
        self._wake = wake  # called without the lock, whenever the set stops being empty
        self._lock = threading.Lock()
        self._hinted = Hinted()  # guarded by _lock
        self.dropped = 0  # how often the set was full; guarded by _lock

    def file(self, folder: str, path: str, heard: Heard) -> None:
        def note(hinted: Hinted) -> None:
            before = hinted.files.get((folder, path), heard)
            hinted.files[folder, path] = max(before, heard)

        self._add(folder, note)

    def directory(self, folder: str, path: str) -> None:
        self._add(folder, lambda hinted: hinted.directories.add((folder, path)))

    def whole(self, folder: str) -> None:
        self._add(folder, lambda hinted: hinted.whole.add(folder))

    def take(self) -> Hinted:
        """Everything since the last call."""
        with self._lock:
            hinted, self._hinted = self._hinted, Hinted()
            return hinted

    def _add(self, folder: str, note: Callable[[Hinted], None]) -> None:
        with self._lock:
            hinted = self._hinted
            was_empty = not hinted
            if folder in hinted.whole:
                return
            note(hinted)
            if len(hinted.files) + len(hinted.directories) > self._maximum:
                everybody = {name for name, _ in hinted.files} | {name for name, _ in hinted.directories}
                self._hinted = Hinted(whole=everybody | hinted.whole)
                self.dropped += 1
        if was_empty:
            self._wake()
