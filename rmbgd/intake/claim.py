"""Claims complete files, and gives back what could not be judged: first the ledger's row, then the rename.

A crash between two steps leaves a row and a file that startup recovery joins again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rmbgd.config.load import Folder
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, FileVersion, version_of
from rmbgd.intake.priority_queue import Complete
from rmbgd.mounts import is_there
from rmbgd.store.claims import claim_by_rename, put_back
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import Candidate, Job


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A job, or why there is none.

    why  "changed" (look again), "vanished", "handled" (forget it), "busy" (a version is in work), "blocked"
    """

    complete: Complete
    job: Job | None
    why: str = ""
    detail: str = ""


class Claims:
    """Used by the reconcile thread."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, fs: FileSystem, emit: Emit) -> None:
        self._folders, self._ledger, self._fs, self._emit = folders, ledger, fs, emit
        self._put_back: dict[int, str] = {}  # job number -> where its file stands, until the ledger knows
        self._owed: list[int] = []  # rows to release that the ledger has not taken yet

    def claim(self, files: Sequence[Complete]) -> list[ClaimResult]:
        """Take these, in one commit. Raises StorageFault when the ledger cannot be written: nothing is claimed then."""
        self._release_owed()
        looks = [(complete, self._candidate(complete)) for complete in files]
        candidates = [found for _, found in looks if isinstance(found, Candidate)]
        jobs = {(job.folder, job.relative_path): job for job in self._ledger.claim(candidates)}
        results = [
            self._take(complete, found, jobs.get(complete.key)) if isinstance(found, Candidate) else found
            for complete, found in looks
        ]
        with contextlib.suppress(StorageFault):  # tried again before the next claim; what was claimed is claimed
            self._release_owed()
        return results

    def give_back(self, job: Job) -> str | None:
        """Undo a claim. The path where the file stands now, below its folder; None when it was removed from the claim
        folder: then the image is lost, and fails.

        Raises OSError when the folder cannot be reached: the row stays, and recovery ends it when the folder is back.
        """
        path = self._put_back.get(job.job_id, job.relative_path)
        if job.claimed_by_rename and job.job_id not in self._put_back:
            folder = self._folders[job.folder]
            try:
                path = put_back(str(folder.input), os.path.basename(job.source), job.relative_path, self._fs)
            except FileNotFoundError:
                there = is_there(str(folder.input), require_mount=folder.require_mount)
                if not there or os.path.lexists(job.source):
                    raise
                detail = f"{job.source}: gone when it was to be put back"
                self._ledger.failed(outcome := refused(job_keys(job), Reason.VANISHED, detail))
                self._ledger.original_moved(job.job_id)
                self._ledger.outbox.deliver(outcome, self._emit)
                return None
            self._put_back[job.job_id] = path
        self._ledger.release([job.job_id])
        self._put_back.pop(job.job_id, None)
        return path

    def version_at(self, folder: str, path: str) -> FileVersion | None:
        try:
            return version_of(os.lstat(os.path.join(self._folders[folder].input, path)))
        except OSError:
            return None

    def _candidate(self, complete: Complete) -> Candidate | ClaimResult:
        """What is to be claimed, if the file is still the version that was found complete."""
        name, path = complete.key
        folder = self._folders[name]
        try:
            status = os.lstat(os.path.join(folder.input, path))
        except (FileNotFoundError, NotADirectoryError):
            return ClaimResult(complete, None, "vanished")
        except OSError as error:
            return ClaimResult(complete, None, "blocked", error.strerror or str(error))
        if version_of(status) != complete.arrival.version:
            return ClaimResult(complete, None, "changed")
        if self._ledger.handled(name, path, complete.arrival.version):  # seen once more while it was in work
            return ClaimResult(complete, None, "handled")
        seen = (complete.arrival.version, complete.arrival.first_seen)
        by_rename = folder.originals != "keep"
        return Candidate(name, path, str(folder.input), *seen, by_rename=by_rename, final=complete.final)

    def _take(self, complete: Complete, candidate: Candidate, job: Job | None) -> ClaimResult:
        if job is None:
            return ClaimResult(complete, None, "busy")
        if not job.claimed_by_rename:
            return ClaimResult(complete, job)
        root = str(self._folders[job.folder].input)
        name = os.path.basename(job.source)
        try:
            found = claim_by_rename(root, job.relative_path, name, self._fs)
            if found is not None and not stat.S_ISREG(found.st_mode):
                # Swapped for a link or a pipe since: back, and looked at again.
                put_back(root, name, job.relative_path, self._fs)
                self._owed.append(job.job_id)
                return ClaimResult(complete, None, "changed")
        except OSError as error:
            self._owed.append(job.job_id)
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                # Still there? Then it was the claim folder that somebody removed under our hands: it is made again.
                again = os.path.lexists(os.path.join(root, job.relative_path))
                return ClaimResult(complete, None, "changed" if again else "vanished")
            if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
                return self._in_place(complete, candidate)
            return ClaimResult(complete, None, "blocked", error.strerror or str(error))
        # Replaced between our look and the rename? The decoder sees it too, and sends it back like any other.
        return ClaimResult(complete, job)

    def _in_place(self, complete: Complete, candidate: Candidate) -> ClaimResult:
        """It may be read and may not be moved: worked on where it is."""
        try:
            self._release_owed()
            jobs = self._ledger.claim([replace(candidate, by_rename=False)])
        except StorageFault as fault:
            return ClaimResult(complete, None, "blocked", str(fault))
        return self._take(complete, candidate, next(iter(jobs), None))

    def _release_owed(self) -> None:
        if self._owed:
            self._ledger.release(self._owed)
            self._owed.clear()
