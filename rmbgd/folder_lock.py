"""Lock of a drop folder: flock(2) on <input>/.rmbgd/lock, so that two services do not claim from one folder.

The lock goes with its process, however that ends. A service that waits for it leaves a note beside it, which the holder
reads: both can say that a folder has two services, which is nearly always a copied configuration.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rmbgd.fs import folder_beneath
from rmbgd.naming import CLAIM_FOLDER

LOCK, NOTE = "lock", "contender-"  # names in the claim folder; no claimed file begins like these
RECORD_BYTES = 1 << 16  # a larger record is none of ours
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Claimant:
    """A service that claims from a drop folder, or wants to. `started`: RFC 3339, UTC."""

    host: str
    pid: int
    state_directory: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, with the state directory {self.state_directory}"

    def is_same_service(self, other: Claimant) -> bool:
        """As this one or another run of it."""
        return (self.host, self.state_directory) == (other.host, other.state_directory)


UNKNOWN = Claimant("an unknown host", 0, "unknown", "")


def this_service(state_directory: Path) -> Claimant:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Claimant(platform.node(), os.getpid(), os.path.realpath(state_directory), now)


class FolderLock:
    """The lock of one folder. Belongs to one thread."""

    def __init__(self, me: Claimant) -> None:
        self._me = me
        self._descriptor: int | None = None  # of the lock file, while we hold it
        self._noted: Claimant | None = None  # the holder for whom our note lies there
        self.was_anothers = False  # another service had it before us, and may have claimed what was ours

    def take(self, folder: int) -> Claimant | None:
        """Take the lock, or see that it still is ours: who else holds it, or None. `folder`: the claim folder, opened.

        Raises OSError where this file system has no locks, or takes no file.
        """
        if self._descriptor is not None and self._is_current(folder):
            return None
        self.release()
        descriptor = os.open(LOCK, _OPEN | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor) or UNKNOWN
            os.close(descriptor)
            if holder != self._noted:
                self._write_note(folder)
                self._noted = holder
            return holder
        except OSError:
            os.close(descriptor)
            raise
        former = _read(descriptor)
        self._descriptor, self._noted = descriptor, None
        self.was_anothers = former is not None and not former.is_same_service(self._me)
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._record(), 0)
        return None

    def contenders(self, folder: int) -> Iterator[Claimant]:
        """Services that left a note since the last call."""
        for name in os.listdir(folder):
            if name.startswith(NOTE):
                with contextlib.suppress(OSError):
                    descriptor = os.open(name, _OPEN | os.O_RDONLY, dir_fd=folder)
                    found = _read(descriptor)
                    os.close(descriptor)
                    os.unlink(name, dir_fd=folder)
                    if found is not None and found != self._me:
                        yield found

    def release(self) -> None:
        """The record stays: it tells the next holder who was here before."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_current(self, folder: int) -> bool:
        """Does our lock still stand under its name? Who removes the claim folder removes the lock with it."""
        assert self._descriptor is not None
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(LOCK, dir_fd=folder, follow_symlinks=False))
        return False

    def _write_note(self, folder: int) -> None:
        who = hashlib.sha256(f"{self._me.host} {self._me.state_directory}".encode()).hexdigest()[:16]
        with contextlib.suppress(OSError):  # then only we can report it
            descriptor = os.open(NOTE + who, _OPEN | os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=folder)
            os.write(descriptor, self._record())
            os.close(descriptor)

    def _record(self) -> bytes:
        return json.dumps(asdict(self._me)).encode() + b"\n"


def other_holder(root: str, me: Claimant) -> Claimant | None:
    """Another service that claims from the drop folder `root` now, as far as that can be seen. Changes nothing."""
    with contextlib.suppress(OSError), folder_beneath(root, CLAIM_FOLDER) as folder:
        descriptor = os.open(LOCK, _OPEN | os.O_RDONLY, dir_fd=folder)
        try:
            holder = _read(descriptor)
            if holder is None or holder.is_same_service(me):
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return holder
        finally:
            os.close(descriptor)
    return None


def _read(descriptor: int) -> Claimant | None:
    """The record in a lock or note; None when there is none that can be read."""
    try:
        found = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        return Claimant(str(found["host"]), int(found["pid"]), str(found["state_directory"]), str(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
