"""Quarantine: refused originals go into the failed folder, each with a file that says why.

Safe to call again after a crash or a storage fault at any point.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime

import rmbgd
from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.errors import REASON_TEXT, ImageError, Reason
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, storage_faults
from rmbgd.publish.sidecar import read_json
from rmbgd.publish.temporary import Temporary, carry_sidecars, free_paths, hash_of, move_exactly
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import Job

REASON_MODE = 0o640
HASHED_BYTES = 64 << 20  # a larger file is not read once more only to tell its hash
IMMOVABLE = {errno.EPERM, errno.EACCES, errno.EROFS}


class Quarantine:
    """Called by finish threads, and by the reconcile thread for what it refuses itself. Raises StorageFault."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, clock: Clock, emit: Emit, fs: FileSystem) -> None:
        self._folders, self._ledger, self._clock, self._emit, self._fs = folders, ledger, clock, emit, fs

    def set_aside(self, job: Job, outcome: JobOutcome) -> str | None:
        """Move the job's original to quarantine for what `outcome` says; answers its path below the failed folder.

        None when it stayed in place, with originals = "keep" or where it may not be moved, and when it is gone. Also
        where the other disk refuses its name or its size: each start tries that again. The outcome, stored before, gets
        the path.
        """
        self._ledger.failed(outcome)
        folder = self._folders[job.folder]
        try:
            with storage_faults(str(folder.failed)):
                placed = self._set_aside(job, folder, outcome.keys) if os.path.lexists(job.source) else None
        except ImageError as error:
            detail = f"{folder.failed}: {error}"
            self._emit("storage.retire_failed", folder=job.folder, path=job.relative_path, detail=detail)
            return None
        self._ledger.original_moved(job.job_id)
        if placed is not None:
            outcome.add(quarantine=placed)
        return placed

    def _set_aside(self, job: Job, folder: Folder, outcome: Mapping[str, object]) -> str | None:
        story, failed = self.story(job, outcome), str(folder.failed)
        for path in free_paths(failed, job.relative_path, self._fs):
            if not self.write_reason(failed, path, job.job_id, story):
                continue
            if folder.originals == "keep" and not job.claimed_by_rename:
                return None
            try:
                move_exactly(failed, path, job.source, job.job_id, self._fs)
            except FileExistsError:
                self._fs.unlink(os.path.join(failed, names.reason_name(path)))
                continue
            except OSError as error:
                if error.errno in IMMOVABLE and not job.claimed_by_rename:
                    return None  # the reason could be written, so it is the input that cannot be
                raise
            if folder.sidecars == "carry":
                carry_sidecars(failed, path, job.relative_path, job.job_id, str(folder.input), self._fs)
            return path
        raise AssertionError("unreachable: some version is free")

    def write_reason(self, failed: str, path: str, job_id: int, story: Mapping[str, object]) -> bool:
        """Publish the reason file of `path`; False when that of another file stands there."""
        full = os.path.join(failed, names.reason_name(path))
        name = names.temporary_name(job_id, ".error")
        with Temporary(failed, os.path.dirname(path), name, REASON_MODE, self._fs) as temporary:
            temporary.write(json.dumps(story, indent=1).encode() + b"\n")
            if not temporary.publish(full, replace=False):
                found = read_json(full)  # perhaps of the same job, before a crash
                return all(found.get(key) == story[key] for key in ("job", "folder", "path", "version"))
        self._fs.sync_folder(os.path.dirname(full))
        return True

    def story(self, job: Job, outcome: Mapping[str, object]) -> dict[str, object]:
        """Content of a reason file, for what `outcome` says of reason, detail and stage."""
        now = self._clock.wall()
        seen = now.timestamp() - (self._clock.monotonic() - job.first_seen)
        version = job.version
        return {
            "reason": outcome["reason"],
            "meaning": REASON_TEXT[Reason(str(outcome["reason"]))],
            "detail": outcome["detail"],
            "stage": outcome["stage"],
            "path": job.relative_path,
            "folder": job.folder,
            "job": job.job_id,
            "attempts": job.attempt,
            "first_seen": datetime.fromtimestamp(seen, UTC).isoformat(timespec="milliseconds"),
            "time": now.isoformat(timespec="milliseconds"),
            "size": version.size,
            "sha256": outcome.get("sha256_in") or _hash(job),
            "version": {"inode": version.inode, "size": version.size, "mtime_ns": version.mtime_ns},
            "rmbgd": rmbgd.__version__,
        }


def _hash(job: Job) -> str | None:
    """Best effort: the file may be unreadable, which may be why it is here."""
    if job.version.size > HASHED_BYTES:
        return None
    try:
        return hash_of(job.source)[0]
    except (OSError, ImageError):
        return None
