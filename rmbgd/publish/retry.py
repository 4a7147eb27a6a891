"""Retry of rejected originals: from the failed folder back into the input, as the operator asks.

Killed between any two steps, an original is in exactly one place: it moves first, then its sidecars; then the ledger
forgets the failure, and at last the reason file goes. What is left of that, the next retry ends.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from rmbgd import naming as names
from rmbgd.config.load import Folder
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, folder_beneath
from rmbgd.mounts import is_there
from rmbgd.publish.sidecar import read_json
from rmbgd.publish.temporary import carry_sidecars, make_folders, move_exactly
from rmbgd.store import reading
from rmbgd.store.ledger import Ledger
from rmbgd.store.reading import Ending

AT_ONCE = 64  # originals whose failures are forgotten in one commit
REASON_SUFFIX = names.reason_name("")
VERSIONS = 8  # of a name, among which the original of a listed failure is looked for
ALIKE = 16  # characters that all versions of a name begin with, also of one that had to be cut
TAKEN = "a file of this name has come into the input meanwhile; it stays in the failed folder"


@dataclass(frozen=True, slots=True)
class RejectedOriginal:
    """`placed`, `note`: it and its reason file, below the failed folder; None where there is none."""

    path: str
    placed: str | None
    note: str | None
    reason: str | None
    record: Ending | None


@dataclass(frozen=True, slots=True)
class WantedOriginals:
    """Rejected originals of one folder: by their paths below the input or below the failed folder, or without any all.

    reason  only those that were rejected for it
    """

    folder: str
    inputs: Collection[str] = ()
    placed: Collection[str] = ()
    reason: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.inputs, *self.placed)

    def may_include(self, name: str) -> bool:
        """Cheap, for folders of a hundred thousand files."""
        stems = (posixpath.splitext(posixpath.basename(path))[0][:ALIKE] for path in self.paths)
        return not self.paths or any(name.startswith(stem) for stem in stems)

    def includes(self, found: RejectedOriginal) -> bool:
        named = not self.paths or found.path in self.inputs or found.placed in self.placed
        return named and self.reason in (None, found.reason)


@dataclass(slots=True)
class RetryResult:
    """`left`: (path below the input, why it could not be retried). `matched`: every path that was found."""

    retried: int = 0
    in_place: int = 0  # of these: had stayed in the input
    left: list[tuple[str, str]] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)


class Retrier:
    """Used by the control thread. Raises StorageFault where the ledger refuses."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, emit: Emit, fs: FileSystem | None = None) -> None:
        self._folders, self._ledger, self._emit, self._fs = folders, ledger, emit, fs or SystemFileSystem()

    def retry(self, wanted: WantedOriginals, person: str) -> RetryResult:
        result, folder = RetryResult(), self._folders[wanted.folder]
        if not is_there(str(folder.input), require_mount=folder.require_mount):
            result.left.append(("", "the input folder is not there now; try again when it is"))
            return result
        self._ledger.flush()  # what is settled shall say so
        with reading.reading(self._ledger.path) as db:
            records = reading.failures(db, wanted.folder)
        found = (each for each in self._find(folder, wanted, records) if wanted.includes(each))
        while some := list(islice(found, AT_ONCE)):
            self._retry(folder, some, person, result)
        return result

    # ---------------------------------------------------------------------------------------------- what there is

    def _find(
        self, folder: Folder, wanted: WantedOriginals, records: Mapping[int, Ending]
    ) -> Iterator[RejectedOriginal]:
        """What the ledger or a reason file proves to be ours; nothing else in the failed folder is touched."""
        unseen = {number: record for number, record in records.items() if not record.by_rename}
        for found in self._find_failed(folder, wanted, records):
            if found.record is not None:
                unseen.pop(found.record.job_id, None)
            yield found
        for record in unseen.values():  # stayed in the input, and has no reason file
            yield RejectedOriginal(record.path, None, None, record.reason, record)

    def _find_failed(
        self, folder: Folder, wanted: WantedOriginals, records: Mapping[int, Ending]
    ) -> Iterator[RejectedOriginal]:
        by_path = {record.path: record for record in records.values()}
        for below, files in _directories(str(folder.failed), wanted):
            notes = {name for name in files if name.endswith(REASON_SUFFIX)}
            for name in sorted(filter(wanted.may_include, files - notes), key=os.fsencode):
                placed, note = posixpath.join(below, name), posixpath.join(below, names.reason_name(name))
                notes.discard(posixpath.basename(note))
                if (found := _described(folder, note, placed, records)) is not None:
                    yield found
                elif (record := by_path.get(placed)) is not None and _is_original_of(record, folder, placed):
                    yield RejectedOriginal(record.path, placed, None, record.reason, record)
            for name in sorted(filter(wanted.may_include, notes), key=os.fsencode):
                if (found := _described(folder, posixpath.join(below, name), None, records)) is not None:
                    yield found

    # ---------------------------------------------------------------------------------------------- what is done

    def _retry(self, folder: Folder, some: Sequence[RejectedOriginal], person: str, result: RetryResult) -> None:
        retried: list[RejectedOriginal] = []
        forgotten: list[RejectedOriginal] = []  # their originals are nowhere any more, or were moved by a killed retry
        for each in some:
            result.matched |= {each.path, each.placed or each.path}
            if each.record is not None and not each.record.settled:
                result.left.append((each.path, "it is being set aside right now; try again"))
            elif each.placed is None:
                self._carry_sidecars(folder, each, (each.note or "").removesuffix(REASON_SUFFIX))
                in_place = each.record is not None and not each.record.by_rename
                stands = in_place and os.path.lexists(os.path.join(folder.input, each.path))
                (retried if stands else forgotten).append(each)
            elif why := self._move_back(folder, each, each.placed):
                result.left.append((each.path, why))
            else:
                retried.append(each)
        for below in {posixpath.dirname(each.path) for each in retried if each.placed is not None}:
            with contextlib.suppress(OSError):  # a power cut must not take back the moves alone
                self._fs.sync_folder(os.path.join(folder.input, below))
        over = [*retried, *forgotten]
        self._ledger.forget_failures([each.record.job_id for each in over if each.record is not None])
        for each in over:
            if each.note is not None:
                with contextlib.suppress(OSError):  # the next retry removes it
                    self._fs.unlink(os.path.join(folder.failed, each.note))
        for each in retried:
            known = {} if each.reason is None else {"reason": each.reason}
            self._emit("image.retried", folder=folder.name, path=each.path, **known, person=person)
        result.retried += len(retried)
        result.in_place += sum(each.placed is None for each in retried)

    def _move_back(self, folder: Folder, each: RejectedOriginal, placed: str) -> str:
        """Why it could not be; empty when it was."""
        root, source = str(folder.input), os.path.join(folder.failed, placed)
        below, name = posixpath.split(each.path)
        job_id = 0 if each.record is None else each.record.job_id
        try:
            if not stat.S_ISREG(os.lstat(source).st_mode):
                return f"{source} is no regular file"
            if make_folders(root, below, self._fs) != below:
                return f"its folder {below} is a file or a link in the input"
            with folder_beneath(root, below) as there:  # a link may be swapped in: strangers write to the input
                target = f"/proc/self/fd/{there}"
                move_exactly(target, name, source, job_id, self._fs)
        except FileExistsError:
            return TAKEN
        except OSError as error:
            return error.strerror or str(error)
        except (ImageError, StorageFault) as error:
            return str(error)
        self._carry_sidecars(folder, each, placed)
        return ""

    def _carry_sidecars(self, folder: Folder, each: RejectedOriginal, placed: str) -> None:
        if folder.sidecars == "carry" and placed and os.path.isdir(folder.input / posixpath.dirname(each.path)):
            job_id = 0 if each.record is None else each.record.job_id
            carry_sidecars(str(folder.input), each.path, placed, job_id, str(folder.failed), self._fs)


def original_of(folder: Folder, failure: Ending) -> str | None:
    """Where it lies; None where it is not found at once."""
    if not failure.by_rename:
        stays = os.path.join(folder.input, failure.path)
        return stays if os.path.lexists(stays) else None
    for placed in islice(names.versions(failure.path), VERSIONS):
        note = os.path.join(folder.failed, names.reason_name(placed))
        if _is_original_of(failure, folder, placed) or read_json(note).get("job") == failure.job_id:
            return os.path.join(folder.failed, placed)
    return None


def _directories(root: str, wanted: WantedOriginals) -> Iterator[tuple[str, set[str]]]:
    """(path below `root`, names of its files), of those in which wanted ones may lie."""
    if not wanted.paths:
        for here, _, files in os.walk(root):
            yield "" if here == root else os.path.relpath(here, root), set(files)
        return
    for below in sorted({posixpath.dirname(path) for path in wanted.paths}):
        with contextlib.suppress(OSError), folder_beneath(root, below) as folder, os.scandir(folder) as entries:
            yield below, {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def _described(folder: Folder, note: str, placed: str | None, records: Mapping[int, Ending]) -> RejectedOriginal | None:
    """By its reason file; None where that is none of ours, or is another drop folder's."""
    story = read_json(os.path.join(folder.failed, note))
    path, number = story.get("path"), story.get("job")
    if story.get("reason") == Reason.REJECTED_IN_REVIEW:
        return None  # what lies there is a result; its original is where it was archived
    if story.get("folder") != folder.name or not isinstance(path, str) or not isinstance(number, int):
        return None
    if posixpath.isabs(path) or posixpath.normpath(path) != path or path.startswith("../"):
        return None  # not written by us
    record = records.get(number)
    known = record if record is not None and record.path == path else None
    return RejectedOriginal(path, placed, note, str(story.get("reason")), known)


def _is_original_of(record: Ending, folder: Folder, placed: str) -> bool:
    try:
        status = os.lstat(os.path.join(folder.failed, placed))
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
