"""What becomes of an original after success: archived, deleted, or left.

Never reopens a finished job: what cannot be moved now is tried again later, and the image is not computed twice. Does
not publish and does not refuse.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.errors import ImageError, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, FileVersion, same_content, storage_faults
from rmbgd.publish import sidecar
from rmbgd.publish.temporary import GONE, hash_of, move_into
from rmbgd.store.claims import put_back
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job, Published, Unfinished

RETRY_FIRST, RETRY_MAXIMUM = 1.0, 300.0  # seconds; an original that nobody lets us move is no reason to hurry


@dataclass(frozen=True, slots=True)
class Original:
    """A finished job's input: where it lies and which version of it was worked on."""

    job_id: int
    folder: str
    relative_path: str
    source: str
    version: FileVersion
    claimed_by_rename: bool


def original_of(job: Job) -> Original:
    return Original(job.job_id, job.folder, job.relative_path, job.source, job.version, job.claimed_by_rename)


def original_of_row(row: Unfinished, source: str) -> Original:
    return Original(row.job_id, row.folder, row.relative_path, source, row.version, row.by_rename)


class Archiver:
    """`retire` is called by finish threads, `retry` by the reconcile thread."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, clock: Clock, emit: Emit, fs: FileSystem) -> None:
        self._folders = folders
        self._ledger = ledger
        self._clock = clock
        self._emit = emit
        self._fs = fs
        self._lock = threading.Lock()
        # job number -> (original, when to try, seconds to wait after that); guarded by _lock
        self._waiting: dict[int, tuple[Original, float, float]] = {}

    def retire(self, original: Original) -> None:
        """Move the original where it belongs. Raises nothing: a failure is told once and tried again."""
        try:
            self._retire(original)
        except (OSError, StorageFault) as error:
            self._later(original, error)
        else:
            self._ledger.retired(original.job_id)

    def waiting(self) -> int:
        """Originals that could not be moved yet."""
        with self._lock:
            return len(self._waiting)

    def retry(self) -> float | None:
        """Try what is due again; answers the monotonic moment of the next try, or None."""
        now = self._clock.monotonic()
        with self._lock:
            due = [original for original, when, _ in self._waiting.values() if when <= now]
        for original in due:
            try:
                self._retire(original)
            except (OSError, StorageFault) as error:
                self._later(original, error)
            else:
                with self._lock:
                    del self._waiting[original.job_id]
                self._ledger.retired(original.job_id)
        with self._lock:
            return min((when for _, when, _ in self._waiting.values()), default=None)

    def _later(self, original: Original, error: Exception) -> None:
        with self._lock:
            _, _, delay = self._waiting.get(original.job_id, (None, None, RETRY_FIRST))
            first = original.job_id not in self._waiting
            retry_at = self._clock.monotonic() + delay
            self._waiting[original.job_id] = (original, retry_at, min(2 * delay, RETRY_MAXIMUM))
        if first:
            self._emit("storage.retire_failed", folder=original.folder, path=original.relative_path, detail=str(error))

    def _retire(self, original: Original) -> None:
        folder = self._folders[original.folder]
        if folder.originals == "keep" and not original.claimed_by_rename:
            return
        try:
            status = os.lstat(original.source)
        except OSError as error:
            if error.errno in GONE:  # moved before a crash, or by its owner
                return
            raise
        if not same_content(status, original.version):
            self._written_meanwhile(original, folder)
        elif folder.originals == "archive":
            assert folder.done is not None
            move_into(str(folder.done), original.relative_path, original.source, original.job_id, self._fs)
        elif folder.originals == "delete":
            self._fs.unlink(original.source)
        else:  # the folder said something else when this was claimed
            put_back(str(folder.input), os.path.basename(original.source), original.relative_path, self._fs)

    def _written_meanwhile(self, original: Original, folder: Folder) -> None:
        """Somebody who had it open wrote on after we read it: nobody worked on that content, so it is a new arrival."""
        if original.claimed_by_rename:
            put_back(str(folder.input), os.path.basename(original.source), original.relative_path, self._fs)


# --- What a run that died left in output folders: outputs that were complete, and temporaries that never will be.


KINDS = ("", ".json", ".error", ".original")
"""Of temporaries that one job may leave: cutout, sidecar, reason file, archive copy."""


class Leftovers:
    """Used by the reconcile thread, and by the main thread before that one runs. Raises StorageFault."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, retirer: Archiver, fs: FileSystem) -> None:
        self._folders = folders
        self._ledger = ledger
        self._retirer = retirer
        self._fs = fs

    def complete(self, row: Unfinished) -> bool:
        """Did the rename of an announced output happen? Then the job is done, and is recorded so."""
        folder = self._folders[row.folder]
        if row.target is None or row.sha256_out is None:
            return False
        path = os.path.join(folder.output, row.target)
        with storage_faults(path):
            try:
                if hash_of(path) != (row.sha256_out, row.size_out):
                    return False
                status = os.lstat(path)
            except ImageError:  # a stranger's link or folder
                return False
            except OSError as error:
                if error.errno in GONE:
                    return False
                raise
            # The rename may not be on the disk yet: what is recorded as done must be.
            self._fs.sync_folder(os.path.dirname(path))
            beside = sidecar.settle(str(folder.output), row, self._fs)
        identity = (row.sha256_out, status.st_size, status.st_ino, status.st_mtime_ns)
        self._ledger.done(row.job_id, Published(str(folder.output), row.target, *identity, sidecar=beside))
        return True

    def retire(self, row: Unfinished, source: str) -> None:
        """The original of a finished job, as after publishing. Raises nothing."""
        self._retirer.retire(original_of_row(row, source))

    def remove(self, row: Unfinished) -> int:
        """Remove the temporaries of one job; answers how many."""
        folder = self._folders[row.folder]
        parents = {os.path.dirname(row.relative_path), os.path.dirname(row.target or ""), ""}
        found = 0
        for root in _roots(folder):
            for parent in parents:
                for kind in KINDS:
                    with storage_faults(root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        self._fs.unlink(os.path.join(root, parent, names.temporary_name(row.job_id, kind)))
                        found += 1
        return found

    def remove_all(self) -> int:
        """Remove every temporary of ours: for when the ledger is new, and nobody knows whose they were."""
        found = 0
        for root in {root for folder in self._folders.values() for root in _roots(folder)}:
            for here, _, files in os.walk(root):
                for name in files:
                    if names.is_temporary(name):
                        with contextlib.suppress(OSError):
                            self._fs.unlink(os.path.join(here, name))
                            found += 1
        return found


def _roots(folder: Folder) -> Iterator[str]:
    yield str(folder.output)
    yield str(folder.failed)
    if folder.done is not None:
        yield str(folder.done)
