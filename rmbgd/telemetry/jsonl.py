"""One event as one line of JSON, and the file such lines are appended to.

Standard library only, so that the exit recorder starts in a blink. Knows nothing of the journal, of structlog, or of
which events there are.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from rmbgd import __version__

LOG_MODE = 0o640  # names of customers' files are nobody else's business
KEPT_MAXIMUM = 8192  # characters of one text value; a traceback fits, a file's content does not


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The kernel's name for this boot: monotonic times compare only within one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is none. Unique together with the pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])  # after the name, which may hold anything
    except (OSError, ValueError, IndexError):
        return None


def rfc3339(moment: datetime) -> str:
    """UTC with milliseconds: 2026-01-31T09:15:00.123Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def envelope(event: str, level: str) -> dict[str, Any]:
    """The keys that every line carries, in the order in which people read them."""
    return {
        "event": event,
        "level": level,
        "time": rfc3339(datetime.now(UTC)),
        "monotonic": round(time.monotonic(), 3),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "version": __version__,
    }


def to_json(keys: Mapping[str, Any]) -> str:
    r"""One line of ASCII JSON (RFC 8259), whatever the values are.

    ASCII, because file names are hostile: escapes, newlines, bytes that are no UTF-8 (as lone \udcXX) must neither
    break the line nor reach a terminal. NaN and infinities, which JSON does not have, become null.
    """
    return json.dumps(_plain(keys), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """`value` in what JSON has. Never raises for odd types: a log line must not be lost to its own content."""
    if value is None or (isinstance(value, (bool, int)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return value if len(value) <= KEPT_MAXIMUM else f"{value[:KEPT_MAXIMUM]}... ({len(value)} characters)"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(_plain(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(entry) for entry in value), key=str)
    if isinstance(value, (bytes, PurePath)):
        return _plain(os.fsdecode(value))
    if isinstance(value, datetime):
        return rfc3339(value)
    if hasattr(value, "tolist"):  # numpy's scalars and small arrays
        return _plain(value.tolist())
    return _plain(repr(value))


def _open(path: str) -> int:
    """A descriptor for appending. A file made here has LOG_MODE, whatever the umask says; one found keeps its mode."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, LOG_MODE)
        os.fchmod(descriptor, LOG_MODE)
        return descriptor


class JsonlFile:
    """Appends lines to a file that others rotate, delete or fill the disk under. Never raises; what is lost is counted.

    Each line is one write(2) to a descriptor opened for appending, so lines of two processes do not mix. Before each
    line the path is looked at: when another file stands there, or none, it is opened anew, so rotation by rename needs
    no signal.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.dropped = 0  # written under the lock, read by anyone
        self._lock = threading.RLock()  # a signal handler may log while the same thread is logging
        self._descriptor: int | None = None  # under the lock
        self._identity: tuple[int, int] | None = None  # device and inode; under the lock
        self._torn = False  # the file does not end in a newline; under the lock

    def write(self, line: str) -> bool:
        """Append `line`, which holds no newline. False when it could not be written; it is then counted."""
        with self._lock:
            try:
                descriptor = self._open_anew_if_moved()
                data = ("\n" if self._torn else "").encode() + line.encode() + b"\n"
                written = os.write(descriptor, data)
                self._torn = written < len(data)
            except OSError:
                self._close()
                self.dropped += 1
                return False
            if self._torn:  # the disk is full in the middle of the line
                self.dropped += 1
            return not self._torn

    def _open_anew_if_moved(self) -> int:
        try:
            there = os.stat(self.path)
            identity = (there.st_dev, there.st_ino)
        except FileNotFoundError:
            identity = None
        if self._descriptor is not None and identity == self._identity:
            return self._descriptor
        self._close()
        self._descriptor = descriptor = _open(self.path)
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        # A power cut or a kill may have left half a line: it must not swallow the next one.
        self._torn = status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"
        return descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None
        self._identity = None

    def close(self) -> None:
        with self._lock:
            self._close()
