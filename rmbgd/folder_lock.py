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
    """The lock of one folder. Belongs to one thread. `folder` is a descriptor of the claim folder."""

    def __init__(self, me: Claimant) -> None:
        self._me = me
        self._descriptor: int | None = None  # of the lock file, while we hold it
        self._noted: Claimant | None = None  # the holder for whom our note lies there
        self.was_anothers = False  # another service had it before us, and may have claimed what was ours

    def take(self, folder: int) -> Claimant | None:
        """Take the lock, or see that it still is ours: who else holds it, or None.

        Raises OSError where this file system has no locks, or takes no file.
        """
        if self._is_ours(folder):
            return None
        self.release()
        descriptor = os.open(LOCK, _OPEN | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=folder)
        found = _read(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            holder = found or UNKNOWN
            if holder != self._noted:
                self._write(NOTE + hashlib.sha256(repr(self._me).encode()).hexdigest()[:16], folder)
                self._noted = holder
            return holder
        self._descriptor, self._noted = descriptor, None
        self.was_anothers = found is not None and not found.is_same_service(self._me)
        self._write(LOCK, folder)
        return None

    def contenders(self, folder: int) -> Iterator[Claimant]:
        """Services that left a note since the last call."""
        for name in os.listdir(folder):
            if name.startswith(NOTE):
                with contextlib.suppress(OSError):
                    with _opened(name, os.O_RDONLY, folder) as descriptor:
                        found = _read(descriptor)
                    os.unlink(name, dir_fd=folder)
                    if found is not None and found != self._me:
                        yield found

    def release(self) -> None:
        """The record stays: it tells the next holder who was here before."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_ours(self, folder: int) -> bool:
        """Held, and still under its name? Who removes the claim folder removes the lock with it."""
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(LOCK, dir_fd=folder, follow_symlinks=False)
            return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), there)
        return False

    def _write(self, name: str, folder: int) -> None:
        record = json.dumps(asdict(self._me)).encode() + b"\n"
        # A full disk: the lock is held all the same, and without a note only we can report the other.
        with (
            contextlib.suppress(OSError),
            _opened(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, folder) as descriptor,
        ):
            os.write(descriptor, record)


def other_holder(root: str, me: Claimant) -> Claimant | None:
    """Another service that claims from the drop folder `root` now, as far as that can be seen. Changes nothing."""
    try:
        with folder_beneath(root, CLAIM_FOLDER) as folder, _opened(LOCK, os.O_RDONLY, folder) as descriptor:
            holder = _read(descriptor)
            if holder is not None and not holder.is_same_service(me):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    except OSError:  # no lock there, or not for us to see
        pass
    return None


@contextlib.contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    descriptor = os.open(name, _OPEN | flags, 0o600, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Claimant | None:
    """The record in a lock or note; None when there is none that can be read."""
    try:
        found = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        return Claimant(str(found["host"]), int(found["pid"]), str(found["state_directory"]), str(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
