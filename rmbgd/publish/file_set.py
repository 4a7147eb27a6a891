"""The files that one image gives: temporaries that all get their names, or none does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Self

from rmbgd import naming as names
from rmbgd.config.load import Folder
from rmbgd.errors import ImageError
from rmbgd.fs import FileSystem, fault_of, storage_faults
from rmbgd.publish import sidecar
from rmbgd.publish.temporary import GONE, Temporary, hash_of, is_beneath, make_folders
from rmbgd.store.records import FileName, Job, Published, PublishedFile, SetFile, Target


class _NameTaken(Exception): ...


class FileSet:
    """Temporaries of a job below `root`; removed on every way out on which they got no names. Belongs to one thread.

    review         set it, and the whole set goes to people instead
    sidecar_facts  set them, and they become the <output>.json beside the first file, which is published before it
    turn           entered while the files get their names, and once more where they have not got them
    """

    def __init__(self, job: Job, root: str, mode: int, fs: FileSystem) -> None:
        self.review = False
        self.sidecar_facts: Mapping[str, object] | None = None
        self.turn: AbstractContextManager[object] = nullcontext()
        self._job, self._root, self._mode, self._fs = job, root, mode, fs
        self._opened = ExitStack()
        self._made: list[tuple[FileName, Temporary, dict[str, object]]] = []

    def create(self, name: FileName, **facts: object) -> Temporary:
        """The next file of the set, to be written; the first is what is meant where one is spoken of.

        It lies in the folder that mirrors the image's, or in the root: clean-up looks there.
        """
        below = os.path.dirname(self._job.relative_path)
        with storage_faults(self._root):
            below = make_folders(self._root, below if os.path.dirname(name.plain) == below else "", self._fs)
            own = names.temporary_name(self._job.job_id, temporary_kind(len(self._made)))
            temporary = self._opened.enter_context(Temporary(self._root, below, own, self._mode, self._fs))
        self._made.append((name, temporary, facts))
        return temporary

    def describe(self, **facts: object) -> None:
        """Say more of the file that was made last."""
        self._made[-1][2].update(facts)

    @staticmethod
    def data(temporary: Temporary) -> bytes:
        """The bytes of one of its files, read again."""
        return temporary.read()

    @property
    def first(self) -> Temporary:
        return self._made[0][1]

    def seal(self) -> None:
        for _, temporary, _ in self._made:
            temporary.seal()

    @property
    def paths(self) -> list[str]:
        """Where its files lie until they get their names."""
        return [temporary.path for _, temporary, _ in self._made]

    @property
    def described(self) -> list[SetFile]:
        """What is to be published, once it is sealed."""
        return [SetFile(name, made.sha256, made.size, facts) for name, made, facts in self._made]

    def announced(self, targets: Sequence[Target]) -> Published:
        """What it is to be."""
        return Published.announced(targets, self.described)

    def ours(self, targets: Sequence[Target]) -> list[bool] | None:
        """At which of them a file of ours stands; None where one of somebody else stands at any."""
        found = []
        for (_, temporary, _), target in zip(self._made, targets, strict=True):
            # The same bytes: published just before the ledger was damaged, so that it does not know of it any more.
            found.append(stands(target, temporary.sha256))
            if not found[-1] and os.path.lexists(target.full):
                return None
        return found

    def bring_beside(self, targets: Sequence[Target]) -> None:
        """So that renaming is all that is left to do, whatever lies on which file system."""
        for (_, temporary, _), target in zip(self._made, targets, strict=True):
            below = os.path.dirname(target.path)
            if (temporary.root, temporary.below) != (target.output, below):
                temporary.move(target.output, below)

    def rename(self, targets: Sequence[Target], ours: Sequence[bool]) -> bool:
        """The first comes last: where that stands, they all do. False, and none has a name, when one is taken."""
        renamed: list[tuple[Temporary, str]] = []
        try:
            with self.turn:
                for (_, temporary, _), target, replace in reversed([*zip(self._made, targets, ours, strict=True)]):
                    if not temporary.publish(target.full, replace=replace):
                        raise _NameTaken  # noqa: TRY301 - only by an error is the turn left for another try
                    renamed.append((temporary, target.full))
        except _NameTaken:
            _withdraw(renamed)
            return False
        except OSError:
            _withdraw(renamed)
            raise
        return True

    def published(self, targets: Sequence[Target], *, sidecar: bool) -> Published:
        """How it looks where it stands."""
        found = []
        for (_, temporary, facts), target in zip(self._made, targets, strict=True):
            status = os.lstat(target.full)
            looks = (temporary.sha256, temporary.size, facts, status.st_ino, status.st_mtime_ns)
            found.append(PublishedFile(target.slot, target.path, *looks))
        return Published(targets[0].output, tuple(found), sidecar=sidecar)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, traceback)
        if isinstance(error, OSError) and error.errno is not None:
            raise fault_of(error, self._root) from error


def _withdraw(renamed: Iterable[tuple[Temporary, str]]) -> None:
    failed: OSError | None = None
    for temporary, path in renamed:
        try:
            temporary.withdraw(path)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def temporary_kind(number: int) -> str:
    """Of the set's file `number`, from 0 on: what its temporary's name has behind the job."""
    return f".{number}" if number else ""


def stands(target: Target, *known: str) -> bool:
    """Is what stands at the target a file of ours, as we published it or were about to? `known`: more hashes.

    Raises OSError.
    """
    if not is_beneath(target.output, os.path.dirname(target.path)):
        return False
    try:
        status = os.lstat(target.full)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    if (status.st_ino, status.st_size, status.st_mtime_ns) == (target.inode, target.size, target.mtime_ns):
        return True
    mine = {target.pending, target.sha256, *known} - {None}
    return bool(mine) and hash_of(target.full)[0] in mine  # restored from a backup, or renamed just before a crash


def holds(path: str, sha256: str | None, alive: Callable[[], None] = lambda: None) -> bool:
    """Is there a regular file with these bytes? Raises OSError."""
    try:
        return hash_of(path, alive)[0] == sha256
    except ImageError:  # a link or a folder of somebody else
        return False
    except OSError as error:
        if error.errno in GONE:
            return False
        raise


def remove_replaced(targets: Iterable[Target], job: Job, fs: FileSystem) -> list[Target]:
    """Remove what is in the set of an input no more, where it stands as it was published; answers what was removed.

    Raises OSError.
    """
    removed = [target for target in targets if stands(target)]
    for target in removed:
        fs.unlink(target.full)
        sidecar.remove(target, job, fs)
    return removed


def roots_of_sets(folder: Folder) -> tuple[str, ...]:
    """Where the sets of a drop folder are: its output, and, where it has one, the folder for people."""
    return (str(folder.output),) if folder.review is None else (str(folder.output), str(folder.review))
