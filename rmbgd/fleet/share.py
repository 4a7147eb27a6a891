"""A root on a file system that several machines share: what stands there of an image, and publishing a set into it.

The record is the sidecar beside the first file of a set. It names its owner, too: where two inputs would have the same
output, the first to create the record has it, and the other takes its second name.

A name that was never taken: the record first, by a rename that replaces nothing, then the files, the first file last.
An older version: the files first, then the record. Whatever step a crash comes after, the record either fits the files,
or the set counts as absent and is made again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rmbgd import naming as names
from rmbgd.config.load import Folder, Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.fleet.root import (
    Entry,
    RootAnswer,
    RootInput,
    State,
    files_of,
    fingerprint_of_job,
    first_name,
    published_of,
    reason_of_long,
    record_of,
    to_bytes,
)
from rmbgd.fs import FileSystem, FileVersion, SystemFileSystem, storage_faults, version_of
from rmbgd.intake.ignored import Ignored
from rmbgd.intake.scanner import scan
from rmbgd.mounts import is_mounted, is_there
from rmbgd.publish.file_set import FileSet, holds, roots_of_sets
from rmbgd.publish.publisher import SourceChanged
from rmbgd.publish.sidecar import JSON_BYTES
from rmbgd.publish.temporary import PATH_MAXIMUM, Temporary, is_beneath, make_folders
from rmbgd.store.records import Job, Published, Target

NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}  # of a path at which none can be
TRIES = 8  # when other machines publish the same image at the same time
TEMPORARY_AGE = 6 * 3600.0  # s after which a temporary is nobody's: longer than any lease


class ShareFileSystem(SystemFileSystem):
    """NFS may do what it was asked to, lose its answer, do it again and then report that it failed (RFC 1813, 4.6)."""

    def rename(self, source: str, target: str) -> None:
        before = os.lstat(source)
        try:
            super().rename(source, target)
        except FileNotFoundError:
            if not _is_at(target, before):
                raise

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        before = os.stat(source, dir_fd=source_folder, follow_symlinks=False)
        try:
            super().rename_noreplace(source, target, source_folder=source_folder, target_folder=target_folder)
        except (FileExistsError, FileNotFoundError):
            if not _is_at(target, before, target_folder):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(source, dir_fd=source_folder)


def _is_at(target: str, before: os.stat_result, folder: int | None = None) -> bool:
    try:
        found = os.stat(target, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (before.st_dev, before.st_ino)


def fingerprint_of(status: os.stat_result | FileVersion) -> str:
    """Of a version of a file, the same on every machine that sees it."""
    if isinstance(status, FileVersion):
        return f"{status.size}-{status.mtime_ns}"
    return f"{status.st_size}-{status.st_mtime_ns}"


class SharedRoot:
    """A Root that keeps no state of an image."""

    quiet = 60.0

    def __init__(self, folder: Folder, recipe: Recipe, fs: FileSystem | None = None) -> None:
        self.folder, self.recipe, self._fs = folder, recipe, fs or ShareFileSystem()
        self.place = str(folder.input)
        self._mode = int(recipe.file_mode, 8)
        self._device: int | None = None  # of the last image that was there

    # ------------------------------------------------------------------------------------------------ what stands

    def source(self, key: str, fingerprint: str) -> RootInput:
        found = self._state(key, fingerprint)
        if found.state == "ready":
            _open_once(found.path)
        return found

    def _state(self, key: str, fingerprint: str) -> RootInput:
        root = str(self.folder.input)
        path = os.path.join(root, key)
        try:
            status = os.lstat(path)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.require_images()
            return RootInput("gone")
        if not is_beneath(root, os.path.dirname(key)):
            why = "a folder on its way is a symbolic link, which may lead out of the root"
            return RootInput("refused", path, version_of(status), why)
        if not stat.S_ISREG(status.st_mode):
            return RootInput("refused", path, version_of(status), "no regular file")
        self._device = status.st_dev
        state: State = "ready" if fingerprint_of(status) == fingerprint else "superseded"
        return RootInput(state, path, version_of(status))

    def refusable(self, key: str, why: str, reason: Reason) -> RootInput:
        path = os.path.join(self.folder.input, key)
        return RootInput("refused", path, version_of(os.lstat(path)), why, reason)

    def fingerprint(self, key: str) -> str | None:
        try:
            status = os.lstat(os.path.join(self.folder.input, key))
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.require_images()
            return None
        return fingerprint_of(status) if stat.S_ISREG(status.st_mode) else None

    def require_images(self) -> None:
        """Raises FileNotFoundError where not one image is gone, but the root is: what was mounted there is not."""
        root = str(self.folder.input)
        if not is_there(root, require_mount=self.folder.require_mount):
            raise FileNotFoundError(errno.ENOENT, "the root is not there", root)
        if os.stat(root).st_dev == self._device:
            return
        with os.scandir(root) as entries:
            is_empty = next(entries, None) is None
        if is_empty and not is_mounted(root):
            raise FileNotFoundError(errno.ENOENT, "the root is empty, and nothing is mounted there", root)

    def discard(self, job: Job) -> None:
        """Nothing: it is read where it stands."""

    def answer(self, key: str, fingerprint: str, *, refusals: bool = True) -> RootAnswer | None:  # noqa: ARG002
        # A worker that died may have left what an older version had: publishing again removes it.
        records = list(self._records(key))
        whole = [story for root, _, story in records if self._is_whole(root, story, fingerprint)]
        if whole:
            is_alone = len(records) == 1 and self._story(self._reason_path(key), key) is None
            return RootAnswer("done", whole[0]) if is_alone else None
        return self.refusal(key, fingerprint)

    def refusal(self, key: str, fingerprint: str) -> RootAnswer | None:
        """What this version got where it was refused."""
        story = self._story(self._reason_path(key), key)
        return RootAnswer("failed", story) if story is not None and self._is_of(story, fingerprint) else None

    def trouble(self) -> str:
        if not is_there(str(self.folder.input), require_mount=self.folder.require_mount):
            return f"it is not there: {self.folder.input}"
        try:
            with os.scandir(self.folder.input) as entries:
                next(entries, None)
            for root in roots_of_sets(self.folder):
                os.stat(root)
            with contextlib.suppress(FileNotFoundError):  # it is made when it is needed
                os.stat(self.folder.failed)
        except OSError as error:
            return f"it cannot be read now: {error}"
        return ""

    def _check_unchanged(self, job: Job) -> None:
        """Raises SourceChanged: another version is there, or none. What is no regular file has not changed."""
        with contextlib.suppress(OSError):
            _open_once(os.path.join(self.folder.input, job.relative_path))
        try:
            found = self._state(job.relative_path, fingerprint_of_job(job))
        except FileNotFoundError as error:  # the root is away
            raise SourceChanged("vanished", str(error)) from error
        if found.state in ("gone", "superseded"):
            why = "vanished" if found.state == "gone" else "changed"
            raise SourceChanged(why, f"{found.state} while it was worked on {found.detail}".rstrip())

    def inputs(self, unread: list[str] | None = None) -> Iterator[Entry]:
        """In the order of the file system."""
        return (entry for entry, _ in self.files(unread))

    def files(self, unread: list[str] | None = None) -> Iterator[tuple[Entry, os.stat_result]]:
        """Inputs with what the file system says of them."""
        folder, now = self.folder, time.time()
        for path, status in scan(str(folder.input), "", Ignored(folder.ignore), recursive=folder.recursive):
            if isinstance(status, OSError):
                if unread is not None:
                    unread.append(path)
            elif stat.S_ISREG(status.st_mode):
                age = now - status.st_ctime  # mtime may be the sender's, and ahead of now
                unchanged = max(age, now - status.st_mtime)
                yield Entry(path, fingerprint_of(status), age, unchanged), status

    def remove_leftovers(self) -> int:
        """Temporaries of workers that died, in the outputs."""
        found, oldest = 0, time.time() - TEMPORARY_AGE
        for folder in (*roots_of_sets(self.folder), str(self.folder.failed)):
            with contextlib.suppress(OSError):
                for path in _temporaries(folder):
                    with contextlib.suppress(OSError):
                        if os.lstat(path).st_mtime < oldest:
                            os.unlink(path)
                            found += 1
        return found

    # ------------------------------------------------------------------------------------------------ publishing

    def open_set(self, job: Job) -> FileSet:
        with storage_faults(self.place):
            self._check_unchanged(job)
        return FileSet(job, str(self.folder.output), self._mode, self._fs)

    def publish(self, job: Job, files: FileSet, told: Mapping[str, object]) -> tuple[Published, bool]:
        output, *review = roots_of_sets(self.folder)
        root = review[0] if files.review else output
        with storage_faults(root):
            files.seal()
            self._check_unchanged(job)
            published, standing = self._place(job, files, root, told)
            self._remove_others(job, root, published)
            self._withdraw_refusal(job)
        return published, standing

    def _place(self, job: Job, files: FileSet, root: str, told: Mapping[str, object]) -> tuple[Published, bool]:
        key = job.relative_path
        described = files.described
        for variant in ("plain", "later"):
            targets = [
                Target(root, path := getattr(each.name, variant), each.name.slot, path, 1, sha256=each.sha256)
                for each in described
            ]
            for _ in range(TRIES):
                before = self._read(os.path.join(root, names.sidecar_name(targets[0].path)))
                if before and not self._is_mine(before, key):
                    break  # another input has this name
                if before and self._is_whole(root, before, fingerprint_of_job(job)):
                    return published_of(root, before), True
                if not self._have_folders(root, targets):
                    break
                record = record_of(job, files, targets, told, self.folder.recipe)
                files.bring_beside(targets)
                self._check_unchanged(job)  # what came before may have taken long
                if self._read(os.path.join(root, names.sidecar_name(targets[0].path))) != before:
                    continue  # another worker was quicker
                if before:
                    self._replace(job, files, targets, record, before, root)
                elif not self._create(job, files, targets, record):
                    if not os.path.lexists(os.path.join(root, names.sidecar_name(targets[0].path))):
                        break  # a file of somebody else has this name
                    continue  # another worker was quicker
                again = before.get("job") != job.job_id and self._is_of(before, fingerprint_of_job(job))
                return files.published(targets, sidecar=True), again
        raise ImageError(Reason.OUTPUT_TAKEN, f"files of others stand at {targets[0].path} and at its plain name")

    def _create(self, job: Job, files: FileSet, targets: Sequence[Target], record: bytes) -> bool:
        """For names that nobody has; False where somebody does."""
        for target in targets:
            if os.path.lexists(target.full) and not holds(target.full, target.sha256):
                return False
        if not self._write_record(job, targets[0], record, replace_it=False):
            return False
        self._rename(files, targets)
        return True

    def _replace(
        self,
        job: Job,
        files: FileSet,
        targets: Sequence[Target],
        record: bytes,
        before: Mapping[str, object],
        root: str,
    ) -> None:
        """For names that an older version of the same input has, or this one in part."""
        self._rename(files, targets)
        self._write_record(job, targets[0], record, replace_it=True)
        kept = {target.path for target in targets}
        self._remove(root, [path for path, *_ in files_of(before) if path not in kept])

    def _rename(self, files: FileSet, targets: Sequence[Target]) -> None:
        if not files.rename(targets, [True] * len(targets)):
            raise ImageError(Reason.OUTPUT_TAKEN, f"a folder stands at one of {[each.path for each in targets]}")
        for folder in sorted({os.path.dirname(target.full) for target in targets}):
            self._fs.sync_folder(folder)

    def _write_record(self, job: Job, first: Target, record: bytes, *, replace_it: bool) -> bool:
        path = os.path.join(first.output, names.sidecar_name(first.path))
        name = names.temporary_name(job.job_id, ".json")
        with Temporary(first.output, os.path.dirname(first.path), name, self._mode, self._fs) as temporary:
            temporary.write(record)
            if not temporary.publish(path, replace=replace_it):
                return False
        self._fs.sync_folder(os.path.dirname(path))
        return True

    def _have_folders(self, root: str, targets: Iterable[Target]) -> bool:
        """Make the folders of the targets; False where a file has the name of one."""
        folders = {os.path.dirname(target.path) for target in targets}
        return all(is_beneath(root, below) or make_folders(root, below, self._fs) == below for below in folders)

    # ------------------------------------------------------------------------------------------------ refusals

    def refuse(self, job: Job, story: Mapping[str, object]) -> None:
        with storage_faults(str(self.folder.failed)):
            self._check_unchanged(job)  # a newer version may have its result
        self.write_refusal(job, story)

    def write_refusal(self, job: Job, story: Mapping[str, object]) -> None:
        """Without a look at the input. Raises StorageFault."""
        root = str(self.folder.failed)
        below, name = os.path.split(os.path.relpath(self._reason_path(job.relative_path), root))
        with storage_faults(root):
            below = make_folders(root, below, self._fs)
            path = os.path.join(root, below, name)
            record = dict(story) | {"fingerprint": fingerprint_of_job(job), "recipe": self.folder.recipe}
            own = names.temporary_name(job.job_id, ".error")
            with Temporary(root, below, own, self._mode, self._fs) as temporary:
                temporary.write(to_bytes(record))
                temporary.publish(path, replace=True)
            self._fs.sync_folder(os.path.dirname(path))

    def forget_refusal(self, key: str) -> bool:
        if self._story(path := self._reason_path(key), key) is None:
            return False
        with contextlib.suppress(FileNotFoundError):  # another worker did
            self._fs.unlink(path)
        return True

    def _withdraw_refusal(self, job: Job) -> None:
        """An older version was refused, or this one was before it was tried again."""
        self.forget_refusal(job.relative_path)

    def _reason_path(self, key: str) -> str:
        path = os.path.join(str(self.folder.failed), names.reason_name(key))
        if len(os.fsencode(path)) <= PATH_MAXIMUM:
            return path
        return os.path.join(str(self.folder.failed), reason_of_long(key))

    # ------------------------------------------------------------------------------------------------ records

    def _record_names(self, key: str) -> tuple[str, str]:
        """Where the record of an input may be, below a root."""
        name = first_name(self.recipe, key, is_film=self.folder.kind == "films")
        return names.sidecar_name(name.plain), names.sidecar_name(name.later)

    def _is_mine(self, story: Mapping[str, object], key: str) -> bool:
        return (story.get("folder"), story.get("path")) == (self.folder.name, key)

    @staticmethod
    def _read(path: str) -> dict[str, object]:
        """A record, empty where none stands; a file of somebody else is nobody's record, and is not replaced."""
        return _read_record(path) or ({"folder": None} if os.path.lexists(path) else {})

    def _story(self, path: str, key: str) -> dict[str, object] | None:
        story = _read_record(path)
        return story if self._is_mine(story, key) else None

    def _is_of(self, story: Mapping[str, object], fingerprint: str) -> bool:
        """Is it the record of a set of this version and recipe?"""
        return (story.get("fingerprint"), story.get("recipe")) == (fingerprint, self.folder.recipe)

    def _is_whole(self, root: str, story: Mapping[str, object], fingerprint: str) -> bool:
        """And does all of it stand?"""
        files = files_of(story)
        if not self._is_of(story, fingerprint) or not files:
            return False
        return all(_has_size(os.path.join(root, path), size) for path, size, _ in files)

    def _records(self, key: str) -> Iterator[tuple[str, str, dict[str, object]]]:
        """Root, path and story of each record of an input: more than one where a worker died."""
        for root in roots_of_sets(self.folder):
            for path in self._record_names(key):
                if (story := self._story(os.path.join(root, path), key)) is not None:
                    yield root, path, story

    def _remove_others(self, job: Job, root: str, published: Published) -> None:
        """What older versions of the input have in the other root, or under its other name; the record last."""
        record = names.sidecar_name(published.path)
        kept = {(root, file.path) for file in published.files} | {(root, record)}
        for there, path, story in list(self._records(job.relative_path)):
            if (there, path) != (root, record):
                files = [each for each, *_ in files_of(story) if (there, each) not in kept]
                self._remove(there, [*files, path])

    def _remove(self, root: str, paths: Iterable[str]) -> None:
        for path in paths:
            if is_beneath(root, os.path.dirname(path)):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.unlink(os.path.join(root, path))


def _open_once(path: str) -> None:
    """NFS asks its server for rights and times when a file is opened (RFC 1813, 4.11). Raises OSError."""
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))


def _read_record(path: str) -> dict[str, object]:
    """Empty where none stands. Raises OSError where one may: what cannot be read just now is not another's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in NO_FILE | {errno.ENXIO}:
            raise
        return {}
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        data = file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= JSON_BYTES else b""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _temporaries(folder: str) -> Iterator[str]:
    """One after another: a folder may hold millions of files, whose names os.walk would keep all at once."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if names.is_temporary(entry.name):
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    yield from _temporaries(entry.path)


def _has_size(path: str, size: int) -> bool:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
