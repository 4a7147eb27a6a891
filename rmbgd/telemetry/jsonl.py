"""One event as one line of JSON (JSON Lines), and the append-only file of such lines.

Standard library only: the exit recorder runs while the next start of the service waits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from rmbgd import __version__

LOG_MODE = 0o640  # names of customers' files are for the owner and the group only
# Besides what JSON itself escapes: DEL, C1, invisible and bidirectional format characters, line separators, surrogates
UNSEEN = re.compile(
    r"[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
TEXT_MAXIMUM = 8192  # characters of one text value; a traceback fits, a file's content does not


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The kernel's name for this boot: monotonic times compare only within one."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return "unknown"


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is none. Unique together with the pid."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])  # after the name, which may hold anything
    return None


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def envelope(event: str, level: str) -> dict[str, Any]:
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
    r"""One line of JSON (RFC 8259), whatever the values are; names are in UTF-8, so that grep finds them.

    File names are hostile: controls, newlines, marks that turn the writing around and bytes that are no UTF-8 (as lone
    \udcXX) are escaped, so that they neither break the line nor steer a terminal. NaN and infinities, which JSON does
    not have, become null.
    """
    line = json.dumps(_plain(keys), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return line if line.isprintable() else UNSEEN.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _plain(value: Any) -> Any:
    """`value` in JSON's types. Never raises for odd types: a log line must not be lost to its own content.

    More than the `default=` of json.dumps, which sees neither NaN, nor long texts, nor keys that are no text.
    """
    match value:
        case Enum():
            return _plain(value.value)
        case None | bool() | int():
            return value
        case str():
            return value if len(value) <= TEXT_MAXIMUM else f"{value[:TEXT_MAXIMUM]}... ({len(value)} characters)"
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key if isinstance(key, str) else str(_plain(key)): _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case set() | frozenset():
            return sorted((_plain(entry) for entry in value), key=str)
        case bytes() | PurePath():
            return _plain(os.fsdecode(value))
        case datetime():
            return rfc3339(value)
    # numpy's scalars and small arrays know their values; of anything else the name must do
    return _plain(value.tolist() if hasattr(value, "tolist") else repr(value))


class JsonlFile:
    """Appends lines to a file; survives rotation, deletion and a full disk. Never raises; counts what it drops.

    Each line is one write(2) to a descriptor opened for appending, so the lines of two processes do not interleave and
    copytruncate works. Before each line the path is compared with the open file, as logging's WatchedFileHandler does,
    so rotation by rename needs no signal. Unlike that handler it keeps no unwritten text in memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.dropped = 0  # lines; written under the lock, read by any thread
        self._lock = threading.RLock()  # a signal handler may log while the same thread is logging
        self._descriptor = -1  # under the lock, as are the next two
        self._opened: os.stat_result | None = None  # the open file, None when there is none
        self._torn = False  # the file does not end in a newline

    def write(self, line: str) -> bool:
        """Append `line`, which holds no newline. False when it could not be written; it is then counted."""
        with self._lock:
            try:
                self._reopen_if_moved()
                data = b"\n" * self._torn + line.encode() + b"\n"
                self._torn = lost = os.write(self._descriptor, data) < len(data)  # the disk is full within the line
            except OSError:
                self._close()
                lost = True
            self.dropped += lost
            return not lost

    def _reopen_if_moved(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._opened is not None and os.path.samestat(os.stat(self.path), self._opened):
                return
        self._close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        try:
            self._descriptor = os.open(self.path, flags)  # it keeps the mode that it has
        except FileNotFoundError:
            self._descriptor = os.open(self.path, flags | os.O_CREAT, LOG_MODE)
            os.fchmod(self._descriptor, LOG_MODE)  # whatever the umask
        self._opened = status = os.fstat(self._descriptor)
        # A power cut or a kill may have left half a line: it must not swallow the next one.
        self._torn = status.st_size > 0 and os.pread(self._descriptor, 1, status.st_size - 1) != b"\n"

    def _close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor, self._opened = -1, None
