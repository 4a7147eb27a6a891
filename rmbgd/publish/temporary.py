"""Temporary files beside their target, copies, and moves that never overwrite. Raises OSError."""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rmbgd import naming as names
from rmbgd.errors import ImageError, StorageFault
from rmbgd.fs import FileSystem, fault_of, folder_beneath, open_regular

CHUNK = 1 << 20
PATH_MAXIMUM = 4096 - 64  # bytes of a whole path, with room for the version and the suffix that a name may get
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN}
FICLONE = 0x40049409  # share the blocks of another file: btrfs, xfs, bcachefs
ALIVE_EVERY = 256 << 20  # bytes between two signs of life
FILM = ".film"  # kind of the temporary that a film is written into, before it is an output


def make_folders(root: str, below: str, fs: FileSystem) -> str:
    """Make sub-folder `below` of `root` and answer its name: x~2 where a file or a link is called x.

    `root` itself is never made: a missing one is a disk that is not there. It may be a link.
    """
    if is_beneath(root, below):
        return below
    if not os.path.isdir(root):
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", root)
    reached = ""
    for component in below.split("/"):
        for name in names.versions(component):
            path = os.path.join(root, reached, name)
            with contextlib.suppress(FileExistsError):
                fs.make_folder(path)
                fs.sync_folder(os.path.join(root, reached))
            if os.path.isdir(path) and not os.path.islink(path):
                reached = os.path.join(reached, name)
                break
    return reached


def is_beneath(root: str, below: str) -> bool:
    """Is `below` a sub-folder of `root` that no link leads to? Results must not leave the folder they belong to."""
    paths = itertools.accumulate(below.split("/"), os.path.join, initial=root) if below else [root]
    return all(os.path.isdir(path) and (path == root or not os.path.islink(path)) for path in paths)


def hash_of(path: str, alive: Callable[[], None] = lambda: None) -> tuple[str, int]:
    """(sha256 in hex, bytes) of a regular file; calls `alive` now and then, as a film takes minutes."""
    with open(open_regular(path), "rb") as file:
        return hash_of_descriptor(file.fileno(), alive)


def hash_of_descriptor(descriptor: int, alive: Callable[[], None] = lambda: None) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    while chunk := os.read(descriptor, CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if size % ALIVE_EVERY < CHUNK:
            alive()
    return digest.hexdigest(), size


def copy(source: int, target: int) -> tuple[str, int]:
    """Fill the empty file `target` with `source`, sharing blocks where possible; (sha256, bytes) of the result."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:  # another file system, or one that cannot
        os.lseek(source, 0, os.SEEK_SET)
        while chunk := os.read(source, CHUNK):
            write_all(target, chunk)
    return hash_of_descriptor(target)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


class Temporary:
    """A file that becomes an output: written beside its target, removed on every way out but success.

    Hashes what passes through `write`; if the descriptor was asked for, the file is read again at the end. Belongs to
    one thread.
    """

    def __init__(self, root: str, below: str, name: str, mode: int, fs: FileSystem) -> None:
        self.root, self.below, self.path, self._fs = root, below, os.path.join(root, below, name), fs
        self._mode = mode
        try:
            self._descriptor = fs.create(self.path, mode)
        except FileExistsError:  # left by an earlier try of the same job, whose clean-up failed
            fs.unlink(self.path)
            self._descriptor = fs.create(self.path, mode)
        self._open = self._there = True
        self._lender: Temporary | None = None  # whose file this is, which gets it back where it is not published
        self._digest = hashlib.sha256()
        self._hashed: int | None = 0  # bytes; None: others were written past the digest
        self.sha256, self.size = "", 0

    def fileno(self) -> int:
        self._hashed = None
        return self._descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        write_all(self._descriptor, data)
        if self._hashed is not None:
            self._digest.update(data)
            self._hashed += memoryview(data).nbytes

    def take(self, other: Temporary) -> None:
        """Hold what `other` holds, whose file becomes this one, and goes back where this one is not published: a file
        that took an hour is still there when the disk refuses the next step."""
        self._hashed = None
        if other._there:
            try:
                self._fs.rename(other.path, self.path)
            except OSError:  # somebody has removed it, or this folder is on another disk
                pass
            else:
                other._there, self._lender = False, other
                os.dup2(other.fileno(), self._descriptor, inheritable=False)
                return
        copy(other.fileno(), self._descriptor)

    def has_back(self) -> None:
        """Who took its file has brought it back."""
        self._there = True

    def read(self) -> bytes:
        """What has been written, as the file has it."""
        with open(self._descriptor if self._open else self.path, "rb", closefd=not self._open) as file:
            file.seek(0)
            return file.read()

    def seal(self) -> None:
        """Sync and close; `sha256` and `size` are then known. Raises OSError: the file must not be used then.

        A failed sync is never tried again: the kernel may have dropped the pages, and would report success.
        """
        if not self._open:
            return
        if self._hashed is not None and os.fstat(self._descriptor).st_size == self._hashed:
            self.sha256, self.size = self._digest.hexdigest(), self._hashed
        else:
            self.sha256, self.size = hash_of_descriptor(self._descriptor)
        self._fs.sync_file(self._descriptor)
        self._close()

    def publish(self, path: str, *, replace: bool) -> bool:
        """Seal it and rename it to `path`. False: something stands there that is not to be, or cannot be, replaced."""
        self.seal()
        try:
            (self._fs.rename if replace else self._fs.rename_noreplace)(self.path, path)
        except (FileExistsError, IsADirectoryError):
            return False
        self._there = False
        return True

    def withdraw(self, path: str) -> None:
        """Take it back from `path`: it is a temporary again."""
        self._fs.rename(path, self.path)
        self._there = True

    def move(self, root: str, below: str) -> None:
        """Bring it beside its target, once it is sealed; copied and synced where that is on another file system."""
        name = os.path.basename(self.path)
        path = os.path.join(root, below, name)
        try:
            self._fs.rename(self.path, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(root, below, name)
        self.root, self.below, self.path = root, below, path

    def release(self) -> None:
        """It stays: somebody else removes or renames it."""
        self._there = False

    def _copy(self, root: str, below: str, name: str) -> None:
        with open(open_regular(self.path), "rb") as file, Temporary(root, below, name, self._mode, self._fs) as there:
            if copy(file.fileno(), there.fileno()) != (self.sha256, self.size):
                raise OSError(errno.EIO, "the copy differs from what was written", self.path)
            there.seal()
            self._fs.unlink(self.path)
            there.release()

    def _close(self) -> None:
        self._open = False
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Removes what was not renamed. An OSError of the encoder's writes becomes the fault it is."""
        with contextlib.suppress(OSError):
            if self._open:
                self._close()
        with contextlib.suppress(OSError):
            if self._there and self._lender is not None:
                self._there = False
                self._fs.rename(self.path, self._lender.path)
                self._lender.has_back()
            elif self._there:
                self._there = False
                self._fs.unlink(self.path)
        if isinstance(error, OSError) and error.errno is not None:
            raise fault_of(error, self.root) from error


def free_paths(root: str, relative_path: str, fs: FileSystem) -> Iterator[str]:
    """Paths below `root` for a file that is mirrored there: versions of its own, from the last that is taken on.

    Flat when the path would be too long. Found in steps that double and then halve: a camera that uses one name each
    minute has half a million in a year. The last taken one comes first, because a try that died may have left our own
    file there. Makes the sub-folder.
    """
    below, path = os.path.split(relative_path)
    if len(os.fsencode(os.path.join(root, relative_path))) <= PATH_MAXIMUM:
        path = os.path.join(make_folders(root, below, fs), path)

    def is_free(number: int) -> bool:
        return not os.path.lexists(os.path.join(root, names.version_of(path, number)))

    bound = 1
    while not is_free(bound):
        bound *= 2
    candidates = range(bound // 2 + 1, bound)
    first_free = candidates.start + bisect.bisect_left(candidates, True, key=is_free)
    return (names.version_of(path, number) for number in itertools.count(max(1, first_free - 1)))


def move_into(root: str, relative_path: str, source: str, job_id: int, fs: FileSystem) -> str:
    """Move `source` below `root`, to its own relative path or to a version of it that is free; answers which."""
    for path in free_paths(root, relative_path, fs):
        with contextlib.suppress(FileExistsError):
            move_exactly(root, path, source, job_id, fs)
            return path
    raise AssertionError("unreachable: some version is free")


def carry_sidecars(root: str, placed: str, relative_path: str, job_id: int, inputs: str, fs: FileSystem) -> None:
    """Move what other programs wrote about an original from `inputs` to where it is `placed`, below `root`.

    What cannot be moved stays. No parent may be a link: it would lead to files of somebody else.
    """
    parent = os.path.dirname(relative_path)
    wanted = zip(names.sidecars_of_others(relative_path), names.sidecars_of_others(placed), strict=True)
    with contextlib.suppress(OSError, ImageError), folder_beneath(inputs, parent) as folder:
        for path, target in wanted:
            source = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
            with contextlib.suppress(OSError, ImageError, StorageFault):
                if stat.S_ISREG(os.lstat(source).st_mode):
                    move_into(root, target, source, job_id, fs)


def move_exactly(root: str, path: str, source: str, job_id: int, fs: FileSystem) -> None:
    """Move `source` to root/path. Raises FileExistsError when that is taken, and OSError.

    Across file systems it is copied, synced and compared before it is removed. On one file system nothing is synced: a
    rename that a power cut takes back leaves the file where it was, in exactly one place.
    """
    full = os.path.join(root, path)
    try:
        fs.rename_noreplace(source, full)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    if not os.path.lexists(full):
        _copy_over(root, path, source, job_id, fs)
    # A try that died between copying and removing left the very same file here.
    elif os.path.islink(full) or not os.path.isfile(full) or hash_of(full) != hash_of(source):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), full)
    fs.unlink(source)


def _copy_over(root: str, path: str, source: str, job_id: int, fs: FileSystem) -> None:
    below, name = os.path.dirname(path), names.temporary_name(job_id, ".original")
    with open(open_regular(source), "rb") as file:
        status = os.fstat(file.fileno())
        with Temporary(root, below, name, status.st_mode & 0o777, fs) as temporary:
            if copy(file.fileno(), temporary.fileno()) != hash_of_descriptor(file.fileno()):
                raise OSError(errno.EIO, "the copy differs from the original", source)
            os.utime(temporary.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            if not temporary.publish(os.path.join(root, path), replace=False):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    fs.sync_folder(os.path.join(root, below))
