"""Publishes outputs: temporary, sync, ledger, rename, folder sync, ledger, archive.

In that order and no step less, so that a name appears only when the file is complete and on disk, and a crash between
any two steps ends the same way at the next start.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ImageError, RmbgdError
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, open_regular, same_content, storage_faults
from rmbgd.mounts import is_there
from rmbgd.publish import sidecar
from rmbgd.publish.archive import Archiver, Cleanup
from rmbgd.publish.quarantine import Quarantine
from rmbgd.publish.temporary import GONE, Temporary, copy, hash_of, is_beneath, make_folders
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import ContentKey, Job, Known, OutputKey, Published, Target

ORIGINAL_MISSING = "original_missing"
"""A note of image.done: somebody removed the original after it was read, so there was nothing to archive."""


class SourceChanged(RmbgdError):
    """The input is no longer the version that was worked on: its result must not be published.

    why  "changed" | "vanished", as in Postponed
    """

    def __init__(self, why: str, detail: str) -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}")


class Publisher:
    """Serves all finish threads; keeps no state of a job between calls.

    Every method raises StorageFault when the disk is at fault (call again later), ImageError when the name
    or the size is, SourceChanged when the input is another by now. Whatever it raises, no temporary is left.
    """

    def __init__(self, config: Config, ledger: Ledger, clock: Clock, emit: Emit, fs: FileSystem | None = None) -> None:
        self._config, self._ledger, self._emit, self._fs = config, ledger, emit, fs or SystemFileSystem()
        self._folders: Mapping[str, Folder] = {folder.name: folder for folder in config.folder}
        self.archiver = Archiver(self._folders, ledger, clock, emit, self._fs)
        self.quarantine = Quarantine(self._folders, ledger, clock, emit, self._fs)
        self.cleanup = Cleanup(self._folders, ledger, self._fs)

    def publish(
        self,
        job: Job,
        write: Callable[[Temporary], None],
        outcome: JobOutcome,
        *,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
        sidecar_facts: Mapping[str, object] | None = None,
    ) -> Published:
        """Make what `write` writes the output of the job's input, then archive the original.

        `outcome` is stored with it, for `deliver`. `content` and `report` make the answer known for equal images;
        `sidecar_facts` become the <output>.json, which is published before the image.
        """
        with self._open_temporary(job) as temporary:
            write(temporary)
            return self._record(job, self._place(temporary, job, outcome, sidecar_facts), outcome, content, report)

    def publish_copy(
        self, job: Job, known: Known, outcome: JobOutcome, *, sidecar_facts: Mapping[str, object] | None = None
    ) -> Published | None:
        """Publish the answer that equal content got before.

        None, and the answer is forgotten, when that output is not there any more or is another: compute it.
        """
        with storage_faults(str(self._folders[job.folder].output)):
            self._check_unchanged(job, outcome)
            target = self._ledger.output_names.find(self._key(job))
            if target is not None and target.sha256 == known.sha256 and self._stands(target):
                assert target.inode is not None
                assert target.mtime_ns is not None
                identity = (known.sha256, known.size, target.inode, target.mtime_ns)
                published = Published(target.output, target.path, *identity, sidecar=target.sidecar)
                return self._record(job, published, outcome)
        with self._open_temporary(job) as temporary:
            if not _copy_known(known, temporary):
                self._ledger.forget_content(known.key)
                return None
            return self._record(job, self._place(temporary, job, outcome, sidecar_facts), outcome)

    def deliver(self, outcome: JobOutcome) -> None:
        """Emit the event of a job that was published or refused, as it was stored and whole."""
        self._ledger.outbox.deliver(outcome, self._emit)

    # ---------------------------------------------------------------------------------------------- steps

    def _open_temporary(self, job: Job) -> Temporary:
        output = str(self._folders[job.folder].output)
        with storage_faults(output):
            below = make_folders(output, os.path.dirname(job.relative_path), self._fs)
            return Temporary(output, below, names.temporary_name(job.job_id), self._mode(job), self._fs)

    def _record(
        self,
        job: Job,
        published: Published,
        outcome: JobOutcome,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
    ) -> Published:
        outcome.add(output=published.path, bytes_out=published.size, sha256_out=published.sha256)
        kept = self._folders[job.folder].originals == "keep" and not job.claimed_by_rename
        self._ledger.done(job.job_id, published, outcome, content=content, report=report, original_moved=kept)
        if not kept and not self.archiver.archive(job):
            _note_missing(outcome)
        return published

    def _place(
        self, temporary: Temporary, job: Job, outcome: JobOutcome, facts: Mapping[str, object] | None
    ) -> Published:
        """Rename to the name that belongs to this input, or to another where a file that is not ours stands; sync."""
        key = self._key(job)
        with storage_faults(temporary.root):
            self._check_unchanged(job, outcome)
            temporary.seal()
            while True:
                target = self._ledger.publishing(outcome, key, temporary.below, temporary.sha256, temporary.size)
                below = make_folders(target.output, os.path.dirname(target.path), self._fs)
                if below != os.path.dirname(target.path):
                    self._ledger.output_names.move(key, below=below)
                elif self._place_at(target, temporary, job, facts):
                    break
                else:
                    self._ledger.output_names.move(key)
            path = os.path.join(target.output, target.path)
            status = os.lstat(path)
            self._fs.sync_folder(os.path.dirname(path))
        identity = (temporary.sha256, temporary.size, status.st_ino, status.st_mtime_ns)
        return Published(target.output, target.path, *identity, sidecar=facts is not None)

    def _place_at(self, target: Target, temporary: Temporary, job: Job, facts: Mapping[str, object] | None) -> bool:
        """False: a file that we did not write stands at the target, or where its sidecar belongs."""
        path = os.path.join(target.output, target.path)
        # The same bytes: published just before the ledger was damaged, so that it does not know of it any more.
        ours = self._stands(target, temporary.sha256)
        if not ours and os.path.lexists(path):
            return False
        if facts is not None and not sidecar.write(target, temporary, job, facts, self._mode(job), self._fs):
            return False
        placed = temporary.publish(path, replace=ours)
        if facts is None or not placed:
            sidecar.remove(target, job, self._fs)
        return placed

    def _check_unchanged(self, job: Job, outcome: JobOutcome) -> None:
        """The cutout of an input that was removed since is published; one whose whole folder is away waits for it."""
        try:
            status = os.lstat(job.source)
        except OSError as error:
            if error.errno not in GONE:
                raise
            folder = self._folders[job.folder]
            if not is_there(str(folder.input), require_mount=folder.require_mount):
                raise SourceChanged("vanished", "the input folder is not there any more") from error
            _note_missing(outcome)
        else:
            if not same_content(status, job.version):
                raise SourceChanged("changed", "the input was written to, or replaced, while it was worked on")

    def _stands(self, target: Target, *known: str) -> bool:
        """Is what stands at the target a file of ours, as we published it or were about to? `known`: more hashes."""
        path = os.path.join(target.output, target.path)
        if not is_beneath(target.output, os.path.dirname(target.path)):
            return False
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        if (status.st_ino, status.st_size, status.st_mtime_ns) == (target.inode, target.size, target.mtime_ns):
            return True
        mine = {target.pending, target.sha256, *known} - {None}
        return bool(mine) and hash_of(path)[0] in mine  # restored from a backup, or renamed just before a crash

    def _key(self, job: Job) -> OutputKey:
        folder = self._folders[job.folder]
        extension = names.EXTENSIONS[self._config.recipe_of(folder).format]
        return OutputKey(str(folder.output), job.folder, job.relative_path, extension)

    def _mode(self, job: Job) -> int:
        return int(self._config.recipe_of(self._folders[job.folder]).file_mode, 8)


def _note_missing(outcome: JobOutcome) -> None:
    notes = outcome.keys.get("notes", [])
    outcome.add(notes=[*(note for note in notes if note != ORIGINAL_MISSING), ORIGINAL_MISSING])


def _copy_known(known: Known, temporary: Temporary) -> bool:
    """False when the known output cannot be read, or is not what was published."""
    try:
        source = open_regular(os.path.join(known.output, known.path))
    except (OSError, ImageError):
        return False
    with open(source, "rb") as file:
        return copy(file.fileno(), temporary.fileno()) == (known.sha256, known.size)
