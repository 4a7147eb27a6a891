"""Publishes the files of an image: temporaries, sync, ledger, renames, folder syncs, ledger, archive.

In that order and no step less, so that a name appears only when every file of the set is complete and on disk, and a
crash between any two steps ends the same way at the next start: with the whole set, or with none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ImageError, RmbgdError
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, open_regular, same_content, storage_faults
from rmbgd.mounts import is_there
from rmbgd.publish import sidecar
from rmbgd.publish.archive import Archiver, Cleanup
from rmbgd.publish.file_set import FileSet, remove_replaced, roots_of_sets, stands
from rmbgd.publish.quarantine import Quarantine
from rmbgd.publish.temporary import GONE, Temporary, copy, make_folders
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import ContentKey, FileName, Job, Known, Published, PublishedFile, SetFile, SetKey, Target

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
        write: Callable[[FileSet], None],
        outcome: JobOutcome,
        *,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
        sidecar_facts: Mapping[str, object] | None = None,
    ) -> Published:
        """Make the files that `write` makes the set of the job's input, all or none, then archive the original.

        `outcome` is stored with it, for `deliver`, and gets `outputs`, but for one plain output. `content` and `report`
        make the set known for equal images, unless it goes to people. `sidecar_facts` are the set's where `write` gives
        it none.
        """
        with self.open_set(job) as files:
            files.sidecar_facts = sidecar_facts
            write(files)
            content = None if files.review else content
            return self._record(job, *self._place(files, job, outcome), outcome, content, report)

    def publish_copy(
        self,
        job: Job,
        known: Known,
        outcome: JobOutcome,
        *,
        wanted: Sequence[FileName] = (),
        sidecar_facts: Mapping[str, object] | None = None,
    ) -> Published | None:
        """Publish the set that equal content got before; `wanted`: names of its files here, without any a plain one's.

        None, and the set is forgotten, when a file of it is not there any more or is another: compute it.
        """
        wanted = wanted or [self._plain_name(job)]
        with storage_faults(str(self._folders[job.folder].output)):
            self._check_unchanged(job, outcome)
            if (published := self._standing(job, known, wanted)) is not None:
                return self._record(job, published, (), outcome)
        with self.open_set(job) as files:
            files.sidecar_facts = sidecar_facts
            for name, file in zip(wanted, known.files, strict=True):
                if not copy_known(known.output, file, files.create(name, **file.facts)):
                    self._ledger.forget_content(known.key)
                    return None
            return self._record(job, *self._place(files, job, outcome), outcome)

    def refuse(self, job: Job, outcome: JobOutcome) -> None:
        """The original goes to quarantine, with what `outcome` says."""
        self.quarantine.set_aside(job, outcome)

    def deliver(self, outcome: JobOutcome) -> None:
        """Emit the event of a job that was published or refused, as it was stored and whole."""
        self._ledger.outbox.deliver(outcome, self._emit)

    # ---------------------------------------------------------------------------------------------- steps

    def open_set(self, job: Job) -> FileSet:
        return FileSet(job, str(self._folders[job.folder].output), self._mode(job), self._fs)

    def _plain_name(self, job: Job) -> FileName:
        return FileName.of_output(job.relative_path, self._config.extension_of(self._folders[job.folder]))

    def _record(
        self,
        job: Job,
        published: Published,
        removed: Sequence[Target],
        outcome: JobOutcome,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
    ) -> Published:
        outcome.add(output=published.path, bytes_out=published.size, sha256_out=published.sha256)
        if not published.is_plain:
            outcome.add(outputs=published.outputs)
        kept = self._folders[job.folder].originals == "keep" and not job.claimed_by_rename
        self._ledger.done(
            job.job_id, published, outcome, content=content, report=report, original_moved=kept, removed=removed
        )
        if not kept and not self.archiver.archive(job):
            _note_missing(outcome)
        return published

    def _place(self, files: FileSet, job: Job, outcome: JobOutcome) -> tuple[Published, Sequence[Target]]:
        """Rename to the names that belong to this input, or to others where a file that is not ours stands; sync.

        Answers also what the input had besides, which is removed.
        """
        output, *review = self._keys(job)
        key, elsewhere = (review[0], ()) if files.review else (output, review)
        with storage_faults(key.output):
            self._check_unchanged(job, outcome)
            return self.give_names(files, job, key, lambda made: self._ledger.publishing(outcome, key, made, elsewhere))

    def give_names(
        self,
        files: FileSet,
        job: Job,
        key: SetKey,
        announce: Callable[[Sequence[SetFile]], tuple[list[Target], list[Target]]],
    ) -> tuple[Published, Sequence[Target]]:
        """Seal a set and rename it; `announce` tells the ledger which files, and answers as Ledger.publishing does."""
        with storage_faults(key.output):
            files.seal()
            while True:
                targets, besides = announce(files.described)
                wanted = {os.path.dirname(target.path) for target in targets}
                made = {below: make_folders(key.output, below, self._fs) for below in wanted}
                if any(below != folder for below, folder in made.items()):
                    self._ledger.output_names.move(key, targets, made)
                elif self._place_at(targets, files, job):
                    break
                else:
                    self._ledger.output_names.move(key, targets)
            published = files.published(targets, sidecar=files.sidecar_facts is not None)
            changed = {*targets, *remove_replaced(besides, job, self._fs)}
            for path in sorted({os.path.dirname(target.full) for target in changed}):
                self._fs.sync_folder(path)
        return published, besides

    def _place_at(self, targets: Sequence[Target], files: FileSet, job: Job) -> bool:
        """False: a file that we did not write stands at one of the names, or where the sidecar belongs."""
        facts = files.sidecar_facts
        if (ours := files.ours(targets)) is None:
            return False
        files.bring_beside(targets)
        if facts is not None and not (announced := files.announced(targets)).is_plain:
            facts = {**facts, "outputs": announced.outputs}
        if facts is not None and not sidecar.write(targets[0], files.first, job, facts, self._mode(job), self._fs):
            return False
        placed = False
        try:
            placed = files.rename(targets, ours)
        finally:
            for target in targets[placed and facts is not None :]:
                sidecar.remove(target, job, self._fs)
        return placed

    def _standing(self, job: Job, known: Known, wanted: Sequence[FileName]) -> Published | None:
        """The input's set as it stands, where that is what equal content got, and nothing else of it stands."""
        key, *review = self._keys(job)
        if any(self._ledger.output_names.of(other) for other in review):
            return None
        targets = self._ledger.output_names.current(key, wanted)
        found = []
        for target, file in zip(targets, known.files, strict=False):
            if target.sha256 != file.sha256 or target.inode is None or target.mtime_ns is None or not stands(target):
                return None
            here = replace(file, slot=target.slot, path=target.path)
            found.append(replace(here, inode=target.inode, mtime_ns=target.mtime_ns))
        return Published(key.output, tuple(found), sidecar=targets[0].sidecar) if found else None

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

    def _keys(self, job: Job) -> list[SetKey]:
        """Of its set in the output, and, where the folder has one, in the folder for people."""
        return [SetKey(root, job.folder, job.relative_path) for root in roots_of_sets(self._folders[job.folder])]

    def _mode(self, job: Job) -> int:
        return int(self._config.recipe_of(self._folders[job.folder]).file_mode, 8)


def _note_missing(outcome: JobOutcome) -> None:
    notes = outcome.keys.get("notes", [])
    outcome.add(notes=[*(note for note in notes if note != ORIGINAL_MISSING), ORIGINAL_MISSING])


def copy_known(output: str, known: PublishedFile, temporary: Temporary) -> bool:
    """False when the known file cannot be read, or is not what was published."""
    try:
        source = open_regular(os.path.join(output, known.path))
    except (OSError, ImageError):
        return False
    with open(source, "rb") as file:
        return copy(file.fileno(), temporary.fileno()) == (known.sha256, known.size)
