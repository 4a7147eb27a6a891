"""What the last run left unfinished is ended as if it had not died: from the ledger's rows and the files there are.

Runs before anything is watched, and for one folder again when its disk comes back. Computes nothing, and counts no
attempt before the work begins. What may have been ended without being told is told: events of outcomes come once, or,
when the last run was killed just after one, once more with `recovered`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, folder_beneath, same_content
from rmbgd.intake.mounts import is_there
from rmbgd.store.claims import put_back
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job, Unfinished

# The events of images that another run has ended: told at the next start, from the ledger, when they may be missing.


UNSAID: Mapping[str, object] = {"milliseconds": {}, "stage": "intake"}
"""Of an image that no stage has worked on."""


class Outcomes:
    """Belongs to recovery. Each outcome is told once; `told` counts them."""

    def __init__(self, ledger: Ledger, emit: Emit) -> None:
        self._ledger = ledger
        self._emit = emit
        self._untold: dict[int, dict[str, object]] = {}
        self.told = 0

    def load(self) -> None:
        """What the last run may not have told; that of jobs with which nothing else is left to do is told at once."""
        self._untold = self._ledger.untold.keys()
        for row in self._ledger.ended_untold():
            if row.state == "done":
                self.done(row)
            else:
                self.refused(row, None, otherwise=None)

    def stage(self, row: Unfinished) -> str:
        """Which stage refused it."""
        return str(self._untold.get(row.job_id, UNSAID)["stage"])

    def done(self, row: Unfinished) -> None:
        """An image whose output stands, unless its event surely was written."""
        telling = self._untold.pop(row.job_id, None)
        if telling is not None:
            self.told += 1
            output = {"output": row.target, "bytes_out": row.size_out, "sha256_out": row.sha256_out}
            self._emit("image.done", **_whose(row), **telling, **output, recovered=True)
            self._ledger.untold.told(row.job_id)

    def refused(self, row: Unfinished, placed: str | None, *, otherwise: Mapping[str, object] | None) -> None:
        """The same of one that was refused. `otherwise`: what to say when the ledger does not know; None: nothing."""
        telling = self._untold.pop(row.job_id, otherwise)
        if telling is not None:
            self.told += 1
            self._failed(row, telling, Reason(row.reason or Reason.CORRUPT), row.detail or "", placed, recovered=True)

    def set_aside(self, row: Unfinished, reason: Reason, detail: str, placed: str | None) -> None:
        """One that is refused just now."""
        self._failed(row, UNSAID, reason, detail, placed)

    def _failed(
        self,
        row: Unfinished,
        telling: Mapping[str, object],
        reason: Reason,
        detail: str,
        placed: str | None,
        **extra: object,
    ) -> None:
        where = {} if placed is None else {"quarantine": placed}
        self._emit("image.failed", **_whose(row), **telling, reason=str(reason), detail=detail, **where, **extra)
        self._ledger.untold.told(row.job_id)


def _whose(row: Unfinished) -> dict[str, object]:
    return {"job": row.job_id, "folder": row.folder, "path": row.relative_path, "attempt": row.attempt}


# --- What the last run left unfinished is ended as if it had not died: from the ledger's rows and the files there are.


class Leftovers(Protocol):
    """What recovery needs to know and do in output folders."""

    def complete(self, row: Unfinished) -> bool: ...

    def retire(self, row: Unfinished, source: str) -> None: ...

    def remove(self, row: Unfinished) -> int: ...

    def remove_all(self) -> int: ...


class Quarantine(Protocol):
    def __call__(
        self,
        job: Job,
        reason: Reason,
        detail: str,
        *,
        stage: str,
        sha256: str | None = None,
        telling: Mapping[str, object] | None = None,
    ) -> str | None: ...


class Answers(Protocol):
    """What recovery needs of the publisher."""

    @property
    def leftovers(self) -> Leftovers: ...

    @property
    def quarantine(self) -> Quarantine: ...


class Suspects:
    """Jobs during which the last run died. One of them may be the cause, so each is worked on while no other is.

    Its attempt is counted at the moment when it is handed out: an image that was only in flight together with one that
    kills the service is not counted with it again and again, and is not set aside with it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[tuple[Unfinished, str]] = deque()
        self._current: int | None = None

    def __len__(self) -> int:
        """How many have not been handed out yet."""
        return len(self._waiting)

    def add(self, row: Unfinished, source: str) -> None:
        """Behind those that fewer runs died with."""
        self._waiting.append((row, source))
        self._waiting = deque(sorted(self._waiting, key=lambda each: (each[0].attempt, each[0].job_id)))

    def next(self) -> Job | None:
        """The next to send, its attempt counted; None while the one before is at work, or when all are through.

        Raises StorageFault when the attempt cannot be counted; nothing is handed out then.
        """
        if not self._waiting or (self._current is not None and self._ledger.is_in_flight(self._current)):
            return None
        row, source = self._waiting[0]
        job = self._ledger.next_attempt(row, source)
        self._waiting.popleft()
        self._current = job.job_id
        return job


@dataclass(slots=True)
class Recovered:
    """What was found. `jobs` counts those that are taken up again, by way of `Recovery.suspects`."""

    jobs: int = 0
    published: int = 0
    temporaries: int = 0
    set_aside: int = 0
    told: int = 0  # outcomes whose events may be missing
    adopted: int = field(default=0)  # claimed files without a row, put back where they were

    def event(self) -> dict[str, int]:
        """The keys of intake.recovered."""
        return {
            "jobs": self.jobs,
            "published": self.published,
            "temporaries": self.temporaries,
            "set_aside": self.set_aside,
            "told": self.told,
        }

    def __bool__(self) -> bool:
        return any((self.jobs, self.published, self.temporaries, self.set_aside, self.told, self.adopted))


class Recovery:
    """`recover` is the main thread's, before the reconcile thread runs; everything else is that thread's."""

    def __init__(
        self, config: Config, ledger: Ledger, publisher: Answers, clock: Clock, emit: Emit, fs: FileSystem | None = None
    ) -> None:
        self._config = config
        self._folders = {folder.name: folder for folder in config.folder}
        self._ledger = ledger
        self._publisher = publisher
        self._clock = clock
        self._emit = emit
        self._fs = fs or SystemFileSystem()
        self._rows: dict[str, list[Unfinished]] = {}
        self._outcomes = Outcomes(ledger, emit)
        self.suspects = Suspects(ledger)

    def recover(self) -> Recovered:
        """Everything that the last run left, in every folder that is there; the others wait for `recover_folder`."""
        for row in self._ledger.unfinished():
            self._rows.setdefault(row.folder, []).append(row)
        found = Recovered()
        self._outcomes.load()
        if self._ledger.is_new:
            found.temporaries += self._publisher.leftovers.remove_all()
        for name in self._folders:
            self._recover_into(found, name)
        found.told = self._outcomes.told
        return found

    def recover_folder(self, name: str) -> Recovered:
        """The same for one folder, when it is there again. Cheap, and changes nothing when nothing is left."""
        found, told = Recovered(), self._outcomes.told
        self._recover_into(found, name)
        found.told = self._outcomes.told - told
        return found

    def left(self, name: str) -> int:
        """Rows of a folder that could not be ended yet: it is not there, or its disk refused."""
        return len(self._rows.get(name, ()))

    # ---------------------------------------------------------------------------------------------- one folder

    def _recover_into(self, found: Recovered, name: str) -> None:
        folder = self._folders[name]
        if not is_there(str(folder.input), require_mount=folder.require_mount):
            return
        left = []
        for row in self._rows.pop(name, ()):
            try:
                self._recover_row(found, row, folder)
            except (OSError, StorageFault):  # this row is for later; the others need not wait for it
                left.append(row)
        if left:
            self._rows[name] = left
        self._adopt(found, folder)

    def _recover_row(self, found: Recovered, row: Unfinished, folder: Folder) -> None:
        root, leftovers = str(folder.input), self._publisher.leftovers
        name = names.claimed_name(row.job_id, row.relative_path)
        source = (
            os.path.join(root, names.CLAIM_FOLDER, name) if row.by_rename else os.path.join(root, row.relative_path)
        )
        found.temporaries += leftovers.remove(row)
        if row.state == "done":
            leftovers.retire(row, source)
            self._outcomes.done(row)
        elif row.state == "failed":
            self._refuse_again(row, source)
        elif row.state == "publishing" and leftovers.complete(row):
            leftovers.retire(row, source)
            found.published += 1
            self._outcomes.done(row)
        elif not _is_same(source, row):
            self._release(row, root, name, source)
        elif row.attempt >= self._config.intake.attempts:
            detail = f"the service died {row.attempt} times with this image in hand"
            self._set_aside(row, source, detail)
            found.set_aside += 1
        else:
            self.suspects.add(row, source)
            found.jobs += 1

    def _release(self, row: Unfinished, root: str, name: str, source: str) -> None:
        """Its rename never happened, its owner took it away, or somebody wrote on: what stands there is new."""
        if row.by_rename and os.path.lexists(source):
            put_back(root, name, row.relative_path, self._fs)
        self._ledger.release([row.job_id])

    def _set_aside(self, row: Unfinished, source: str, detail: str) -> None:
        """It has been the end of too many runs."""
        job, reason = self._job(row, source), Reason.CRASH_LOOP
        placed = self._publisher.quarantine(job, reason, detail, stage="intake", telling=UNSAID)
        self._outcomes.set_aside(row, reason, detail, placed)

    def _refuse_again(self, row: Unfinished, source: str) -> None:
        """It was refused, and perhaps not moved, and perhaps not told."""
        there = os.path.lexists(source)
        reason, stage = Reason(row.reason or Reason.CORRUPT), self._outcomes.stage(row)
        placed = self._publisher.quarantine(self._job(row, source), reason, row.detail or "", stage=stage)
        self._outcomes.refused(row, placed, otherwise=UNSAID if there else None)

    def _job(self, row: Unfinished, source: str) -> Job:
        now = self._clock.monotonic()
        seen = min(now, now - (self._clock.wall().timestamp() - row.first_seen))
        how = (row.version, row.attempt, seen, now, row.by_rename, row.final)
        return Job(row.job_id, row.folder, row.relative_path, source, *how)

    def _adopt(self, found: Recovered, folder: Folder) -> None:
        """Claimed files that no job knows: the ledger was lost, or a power cut took the last rename back."""
        root = str(folder.input)
        for name in list(_claimed(root)):
            ours = names.unclaimed_path(name)
            if ours is None:
                continue
            job_id, relative_path = ours
            owner = self._ledger.owner_of(job_id)
            if owner is not None and owner[0] == folder.name and names.claimed_name(job_id, owner[1]) == name:
                continue
            try:
                put_back(root, name, relative_path, self._fs)
            except OSError:  # tried again with the next start, or when the disk comes back
                continue
            found.adopted += 1


def _claimed(root: str) -> Iterator[str]:
    try:
        with folder_beneath(root, names.CLAIM_FOLDER) as folder:
            yield from os.listdir(folder)
    except OSError:
        return


def _is_same(source: str, row: Unfinished) -> bool:
    """Are the bytes there, and those of the version that was claimed? Raises OSError where that cannot be told."""
    try:
        return same_content(os.lstat(source), row.version)
    except (FileNotFoundError, NotADirectoryError):
        return False
