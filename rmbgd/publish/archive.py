"""Originals after success: archived, deleted, or left; and what a crash left in output folders.

A finished job is never reopened: an original that cannot be moved now is tried again later, and the image is not
computed twice.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rmbgd import naming as names
from rmbgd.access_rights import CHANGE, mend, why_unchangeable
from rmbgd.clock import Clock, backoff
from rmbgd.config.load import Folder
from rmbgd.errors import ImageError, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, same_content, storage_faults
from rmbgd.publish import sidecar
from rmbgd.publish.file_set import holds, remove_replaced, roots_of_sets, stands, temporary_kind
from rmbgd.publish.temporary import FILM, GONE, carry_sidecars, move_into
from rmbgd.store.claims import put_back
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job, Published, PublishedFile, SetKey, Target, Unfinished

RETRY_FIRST, RETRY_MAXIMUM = 1.0, 300.0  # seconds; an original that may not be moved is no reason to hurry

TEMPORARY_KINDS = ("", ".json", ".error", ".original", FILM)  # cutout, sidecar, reason file, archive copy, film


class Archiver:
    """`archive` is called by finish threads, `retry` by the reconcile thread."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, clock: Clock, emit: Emit, fs: FileSystem) -> None:
        self._folders, self._ledger, self._clock, self._emit, self._fs = folders, ledger, clock, emit, fs
        self._lock = threading.Lock()
        # job number -> (job, monotonic time of the next try, failures so far); guarded by _lock
        self._waiting: dict[int, tuple[Job, float, int]] = {}

    def archive(self, job: Job) -> bool:
        """Move the original of a finished job where it belongs; False when somebody has removed it.

        Raises nothing: a failure is emitted, and retried.
        """
        found = True
        try:
            found = self._move(job)
        except (OSError, StorageFault, ImageError) as error:  # a name or a size that the other disk refuses
            folders = self._around(job)
            if isinstance(error, PermissionError) and any(mend(folder, CHANGE) for folder in folders):
                return self.archive(job)
            with self._lock:
                failures = self._waiting[job.job_id][2] + 1 if job.job_id in self._waiting else 1
                retry_at = self._clock.monotonic() + backoff(failures, RETRY_FIRST, RETRY_MAXIMUM)
                self._waiting[job.job_id] = (job, retry_at, failures)
            if failures == 1:
                detail = why_unchangeable(error, folders)
                self._emit("storage.retire_failed", folder=job.folder, path=job.relative_path, detail=detail)
        else:
            with self._lock:
                self._waiting.pop(job.job_id, None)
            self._ledger.original_moved(job.job_id)
        return found

    def retry(self) -> float | None:
        """Retry what is due; answers the monotonic time of the next retry, or None."""
        now = self._clock.monotonic()
        with self._lock:
            due = [job for job, when, _ in self._waiting.values() if when <= now]
        for job in due:
            self.archive(job)
        with self._lock:
            return min((when for _, when, _ in self._waiting.values()), default=None)

    def _around(self, job: Job) -> list[str]:
        """The folders that moving its original changes."""
        folder = self._folders[job.folder]
        there = str(folder.done or folder.input)
        return [os.path.dirname(job.source), there, os.path.dirname(os.path.join(there, job.relative_path))]

    def _move(self, job: Job) -> bool:
        folder = self._folders[job.folder]
        if folder.originals == "keep" and not job.claimed_by_rename:
            return True
        try:
            status = os.lstat(job.source)
        except OSError as error:
            if error.errno in GONE:  # moved before a crash, or by its owner
                return False
            raise
        changed = not same_content(status, job.version)
        if changed and not job.claimed_by_rename:
            return True
        if changed or folder.originals == "keep":
            # A writer that still had it open wrote on after we read it: new content, so a new arrival. Or the folder's
            # settings were others when it was claimed.
            put_back(str(folder.input), os.path.basename(job.source), job.relative_path, self._fs)
        elif folder.originals == "archive":
            assert folder.done is not None
            placed = move_into(str(folder.done), job.relative_path, job.source, job.job_id, self._fs)
            if folder.sidecars == "carry":
                carry_sidecars(str(folder.done), placed, job.relative_path, job.job_id, str(folder.input), self._fs)
        else:
            self._fs.unlink(job.source)
        return True


class Cleanup:
    """What a run that died left in output folders: complete outputs without a record, and temporaries.

    Used by the reconcile thread, and by the main thread before that one runs. Raises StorageFault.
    """

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, fs: FileSystem) -> None:
        self._folders, self._ledger, self._fs = folders, ledger, fs

    def complete(self, row: Unfinished, alive: Callable[[], None] = lambda: None) -> bool:
        """Did the files of an announced set get their names? Then the job is done, and is recorded so.

        Where some have and the others still lie beside them, these get theirs; else none keeps its name.
        """
        had = self._had(row)
        announced = [target for target in had if target.pending is not None]
        first = next((each for each in announced if (each.path, each.pending) == (row.target, row.sha256_out)), None)
        if first is None:
            return False
        announced.sort(key=lambda target: target is first)  # which has to come last
        with storage_faults(first.output):
            missing = [target for target in announced if not holds(target.full, target.pending, alive)]
            if missing and not self._finish(row, announced, missing, alive):
                if sidecar.is_of(first, row):
                    sidecar.remove(first, row, self._fs)
                return False
            besides = [target for target in had if target.pending is None]
            changed = {*announced, *remove_replaced(besides, row, self._fs)}
            # The renames may not be on the disk yet: what is recorded as done must be.
            for folder in sorted({os.path.dirname(target.full) for target in changed}):
                self._fs.sync_folder(folder)
            files = tuple(_as_published(target) for target in reversed(announced))
            published = Published(first.output, files, sidecar=sidecar.recover(first, row, self._fs))
        self._ledger.done(row.job_id, published, removed=besides)
        return True

    def _finish(
        self, row: Unfinished, announced: Sequence[Target], missing: Sequence[Target], alive: Callable[[], None]
    ) -> bool:
        """Give the files that have no names theirs; where that cannot be, take them from those that have."""
        renamed = [target for target in announced if target not in missing and target.pending != target.sha256]
        if not renamed:  # no name was given: as if it had not been announced
            return False
        kinds = [temporary_kind(number) for number in range(len(announced))]
        for target in missing:
            folder = os.path.dirname(target.full)
            paths = [os.path.join(folder, names.temporary_name(row.job_id, kind)) for kind in kinds]
            lying = next((path for path in paths if holds(path, target.pending, alive)), None)
            try:
                if lying is None:
                    break
                (self._fs.rename if stands(target) else self._fs.rename_noreplace)(lying, target.full)
            except (FileExistsError, IsADirectoryError):
                break
            renamed.append(target)
        else:
            return True
        for target in renamed:
            self._fs.unlink(target.full)
            self._fs.sync_folder(os.path.dirname(target.full))
        return False

    def remove(self, row: Unfinished) -> int:
        """Remove the temporaries of one job; answers how many."""
        roots, found = _roots(self._folders[row.folder]), 0
        had = self._had(row)
        paths = (row.relative_path, row.target or "", *(target.path for target in had))
        parents = {"", *map(os.path.dirname, paths)}
        for number in itertools.count():
            kinds = TEMPORARY_KINDS if number == 0 else (temporary_kind(number),)
            before = found
            for root, parent, kind in itertools.product(roots, parents, kinds):
                with storage_faults(root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._fs.unlink(os.path.join(root, parent, names.temporary_name(row.job_id, kind)))
                    found += 1
            if number >= len(had) and found == before:  # they are made, and get their names, from one end
                return found
        raise AssertionError("unreachable: some number is too large")

    def _had(self, row: Unfinished) -> list[Target]:
        """Everything that has a name of this input."""
        keys = (SetKey(root, row.folder, row.relative_path) for root in roots_of_sets(self._folders[row.folder]))
        return [target for key in keys for target in self._ledger.output_names.of(key).values()]

    def remove_all(self, folders: Iterable[str], alive: Callable[[], None] = lambda: None) -> int:
        """Remove every temporary of ours there: for when the ledger is new and cannot say whose they were."""
        found = 0
        for root in {root for name in folders for root in _roots(self._folders[name])}:
            for here, _, files in os.walk(root):
                alive()
                for name in filter(names.is_temporary, files):
                    with contextlib.suppress(OSError):
                        self._fs.unlink(os.path.join(here, name))
                        found += 1
        return found


def _roots(folder: Folder) -> list[str]:
    others = [str(root) for root in (folder.failed, folder.done) if root is not None]
    return [*roots_of_sets(folder), *others]


def _as_published(target: Target) -> PublishedFile:
    status = os.lstat(target.full)
    file = PublishedFile(target.slot, target.path, target.pending or "", status.st_size)
    return replace(file, inode=status.st_ino, mtime_ns=status.st_mtime_ns)
