"""Startup recovery: ends what the last run left unfinished, from the ledger's rows and the files there are.

Runs before anything is watched, and for one folder again when its disk comes back. No attempt is counted before the
work begins. Events of outcomes that may be missing from the log are delivered: once, or, when the last run was killed
just after one, once more with `recovered`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

from rmbgd import naming as names
from rmbgd.config.load import Config, Folder
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, folder_beneath, same_content
from rmbgd.intake.adoption import Adoption
from rmbgd.intake.priority_queue import Suspects
from rmbgd.intake.watcher import FolderWatch
from rmbgd.mounts import is_there
from rmbgd.publish.publisher import Publisher
from rmbgd.store.claims import put_back
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome, job_keys, refused
from rmbgd.store.records import Unfinished

FILM_ATTEMPTS = 10
"""Starts that a film may see in vain. It is decoded in a process of its own, so that the service hardly ever dies of
it, and is in work for long, so that it sees what others die of; and alone, like suspects, it would hold up all."""


@dataclass(slots=True)
class Recovered:
    """What was found. `jobs` counts those that are taken up again, by way of `Recovery.suspects`."""

    jobs: int = 0
    published: int = 0
    temporaries: int = 0
    set_aside: int = 0
    delivered: int = 0  # outcomes whose events may have been missing
    put_back: int = 0  # claimed files without a row, and films, which begin again
    adopted: int = 0  # kept originals without a row, that have their outputs
    unknown: int = 0  # likewise, but whose the output is, nobody can say

    def event(self) -> dict[str, int]:
        """The keys of intake.recovered."""
        found = {"jobs": self.jobs, "published": self.published, "temporaries": self.temporaries}
        found |= {"set_aside": self.set_aside, "told": self.delivered}
        return found | (self.adoption if self.adopted or self.unknown else {})

    @property
    def adoption(self) -> dict[str, int]:
        return {"adopted": self.adopted, "unknown": self.unknown}

    def __bool__(self) -> bool:
        return any(astuple(self))


class Recovery:
    """`recover` is the main thread's, before the reconcile thread runs; everything else is that thread's."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        publisher: Publisher,
        emit: Emit,
        watches: Sequence[FolderWatch] = (),  # they have the locks of their folders
        fs: FileSystem | None = None,
    ) -> None:
        self._config, self._ledger, self._publisher, self._emit = config, ledger, publisher, emit
        self._folders = {folder.name: folder for folder in config.folder}
        self._watches = {watch.folder.name: watch for watch in watches}
        self._fs = fs or SystemFileSystem()
        self._rows: dict[str, list[Unfinished]] = {}
        frames = {folder.name for folder in config.folder if folder.kind == "frames"}
        self.suspects = Suspects(ledger, frames)
        self._adoption: Adoption | None = None  # of a ledger that took the place of another

    def recover(self, alive: Callable[[], None] = lambda: None) -> Recovered:
        """Everything that the last run left, in every folder that is there; the others wait for `recover_folder`."""
        if self._ledger.database.is_adopting():
            self._adoption = Adoption(self._config, self._ledger)
        for row in self._ledger.unfinished():
            self._rows.setdefault(row.folder, []).append(row)
        found = Recovered(delivered=self._ledger.outbox.deliver_pending(self._emit))
        if self._ledger.is_new or self._adoption is not None:
            ours = [name for name in self._folders if not self._is_in_use(name)]
            found.temporaries += self._publisher.cleanup.remove_all(ours, alive)
        for name in self._folders:
            self.recover_folder(name, found, alive)
        self._end_adoption()
        return found

    def recover_folder(
        self, name: str, found: Recovered | None = None, alive: Callable[[], None] = lambda: None
    ) -> Recovered:
        """The same for one folder, when it is there again. Cheap, and changes nothing when nothing is left."""
        found = Recovered() if found is None else found  # an empty one is false
        folder = self._folders[name]
        if not is_there(str(folder.input), require_mount=folder.require_mount) or self._is_in_use(name):
            return found
        for row in self._rows.pop(name, ()):
            try:
                self._recover_row(found, row, folder, alive)
            except (OSError, StorageFault):  # this row is for later; the others need not wait for it
                self._rows.setdefault(name, []).append(row)
        self._put_back(found, folder)
        if self._adoption is not None and name in self._adoption.folders:
            with contextlib.suppress(OSError):  # it may not be read now: when it is back
                adopted, unknown = self._adoption.adopt(folder, alive)
                found.adopted, found.unknown = found.adopted + adopted, found.unknown + unknown
            self._end_adoption()
        return found

    def _end_adoption(self) -> None:
        if self._adoption is not None and not self._adoption.folders:
            self._ledger.database.adopted()
            self._adoption = None

    def _recover_row(
        self, found: Recovered, row: Unfinished, folder: Folder, alive: Callable[[], None] = lambda: None
    ) -> None:
        root, cleanup = str(folder.input), self._publisher.cleanup
        name = names.claimed_name(row.job_id, row.relative_path)
        inside = (names.CLAIM_FOLDER, name) if row.claimed_by_rename else (row.relative_path,)
        row = replace(row, source=os.path.join(root, *inside))
        is_complete = row.state == "publishing" and cleanup.complete(row, alive)
        found.published += is_complete
        found.temporaries += cleanup.remove(row)
        if is_complete or row.state == "done":
            self._done(found, row)
        elif row.state == "failed":
            self._refuse_again(found, row)
        elif not _is_same(row):  # a new version, or its rename never happened: what is there is a new arrival
            if row.claimed_by_rename and os.path.lexists(row.source):
                put_back(root, name, row.relative_path, self._fs)
            elif self._is_lost(row, folder):
                detail = f"{row.source}: gone when the service took up its work again"
                self._ledger.failed(outcome := refused(job_keys(row), Reason.VANISHED, detail))
                self._ledger.original_moved(row.job_id)
                self._publisher.deliver(outcome)
                return
            self._ledger.release([row.job_id])
        elif folder.kind == "films" and row.attempt < FILM_ATTEMPTS:
            if row.claimed_by_rename:
                put_back(root, name, row.relative_path, self._fs)
            self._ledger.release([row.job_id], counted=True)
            found.put_back += 1
        elif row.attempt >= self._config.intake.attempts:
            detail = f"the service died {row.attempt} times with this image in hand"
            outcome = refused(job_keys(row), Reason.CRASH_LOOP, detail)
            self._publisher.quarantine.set_aside(self._ledger.resume(row), outcome)
            self._publisher.deliver(outcome)
            found.set_aside += 1
        else:
            self.suspects.add(row)
            found.jobs += 1

    def _is_in_use(self, name: str) -> bool:
        """By another service: what lies in the claim folder is that one's."""
        watch = self._watches.get(name)
        return watch is not None and watch.take_lock() is not None

    def _is_lost(self, row: Unfinished, folder: Folder) -> bool:
        """A claimed file that is nowhere any more, and that no other service can have taken meanwhile."""
        nowhere = not os.path.lexists(os.path.join(folder.input, row.relative_path))
        watch = self._watches.get(folder.name)
        return row.claimed_by_rename and nowhere and not (watch is not None and watch.lock.was_anothers)

    def _done(self, found: Recovered, row: Unfinished) -> None:
        """The output stands: what is left is the original, and perhaps the event."""
        self._publisher.archiver.archive(self._ledger.resume(row))
        if (outcome := self._ledger.outbox.pending(row.job_id)) is not None:
            self._deliver(found, outcome)

    def _refuse_again(self, found: Recovered, row: Unfinished) -> None:
        """It was refused, and perhaps not moved, and perhaps its event is missing."""
        pending = self._ledger.outbox.pending(row.job_id)
        if pending is None and not os.path.lexists(row.source):
            self._ledger.original_moved(row.job_id)
            return
        outcome = pending or refused(job_keys(row), Reason(row.reason or Reason.CORRUPT), row.detail or "")
        placed = self._publisher.quarantine.set_aside(self._ledger.resume(row), outcome)
        if pending is None and placed is None and row.claimed_by_rename:  # the disk refuses the original still
            self._ledger.outbox.deliver(outcome, None)
            return
        self._deliver(found, outcome)

    def _deliver(self, found: Recovered, outcome: JobOutcome) -> None:
        outcome.add(recovered=True)
        self._publisher.deliver(outcome)
        found.delivered += 1

    def _put_back(self, found: Recovered, folder: Folder) -> None:
        """Claimed files that no job knows: the ledger was lost, or a power cut took the last rename back."""
        root = str(folder.input)
        try:
            with folder_beneath(root, names.CLAIM_FOLDER) as claimed:
                entries = os.listdir(claimed)
        except OSError:
            return
        for name in entries:
            if (ours := names.unclaimed_path(name)) is None:
                continue
            job_id, relative_path = ours
            owner = self._ledger.owner_of(job_id)
            if owner is not None and owner[0] == folder.name and names.claimed_name(job_id, owner[1]) == name:
                continue
            with contextlib.suppress(OSError):  # tried again with the next start, or when the disk comes back
                put_back(root, name, relative_path, self._fs)
                found.put_back += 1


def _is_same(row: Unfinished) -> bool:
    """Are the bytes there, and those of the version that was claimed? Raises OSError where that cannot be found out."""
    try:
        return same_content(os.lstat(row.source), row.version)
    except (FileNotFoundError, NotADirectoryError):
        return False
