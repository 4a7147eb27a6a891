"""Sequences that are being written into the folders of an announcer: one is announced as a whole, once it is over.

Frames are remembered as announced one by one, as images are; which sequences are still open is in a file, so that none
is forgotten by a restart in the middle of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.fs import atomic_write

FILE = "open-sequences.json"  # in the state directory
MODE = 0o600


class OpenSequences:
    """`begun` and `close` are the intake's, the others the announcer's."""

    def __init__(self, directory: Path, folders: Mapping[str, Folder], clock: Clock) -> None:
        self._path, self._folders, self._clock = directory / FILE, folders, clock
        self._lock = threading.Lock()
        self._open: set[tuple[str, str]] = set()  # (folder, sequence); guarded by _lock, like all below
        self._over: set[tuple[str, str]] = set()
        with suppress(OSError, ValueError, TypeError):
            self._open = {(str(folder), str(name)) for folder, name in json.loads(self._path.read_bytes())}
        self._left = set(self._open)  # by the last run: no frame of them has come in this one
        self._began = clock.monotonic()

    def begun(self, folder: str, sequence: str) -> None:
        """A frame of it comes: the intake says when it is over."""
        with self._lock:
            self._left.discard((folder, sequence))
            self._over.discard((folder, sequence))

    def close(self, folder: str, sequence: str) -> None:
        """It is over."""
        with self._lock:
            if (folder, sequence) in self._open:
                self._over.add((folder, sequence))

    def add(self, folder: str, sequence: str) -> None:
        """A frame of it is there. On the disk before the frame counts as announced. Raises OSError."""
        with self._lock:
            if (folder, sequence) not in self._open:
                self._write(self._open | {(folder, sequence)})

    def over(self) -> list[tuple[str, str]]:
        """Those that are to be announced."""
        with self._lock:
            for folder, sequence in list(self._left):
                quiet = self._folders[folder].sequence_quiet if folder in self._folders else 0.0
                if self._clock.monotonic() >= self._began + quiet:
                    self._left.discard((folder, sequence))
                    self._over.add((folder, sequence))
            return sorted(self._over)

    def announced(self, folder: str, sequence: str) -> None:
        """Or there is nothing of it. Raises OSError; then it is announced once more."""
        with self._lock:
            if (folder, sequence) in self._over:  # else more of it came meanwhile
                self._write(self._open - {(folder, sequence)})
                self._over.discard((folder, sequence))

    def _write(self, sequences: set[tuple[str, str]]) -> None:
        """They are open from now on; not where the disk refuses."""
        atomic_write(self._path, json.dumps(sorted(sequences)).encode(), mode=MODE, durable=True)
        self._open = sequences
