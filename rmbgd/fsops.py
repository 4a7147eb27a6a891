"""The few file operations that crash safety hangs on, behind one seam, and the table of whose fault their errors are.

Knows neither jobs nor folders; decides nothing. Paths are text with surrogateescape, so that every byte name survives.
Each operation is one step as a crash sees it: it has happened or it has not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from typing import Protocol

from rmbgd.errors import ImageError, Reason, StorageFault


class FsOps(Protocol):
    """Where `source_folder` or `target_folder` is an open descriptor, that path is relative to it."""

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces `target`."""
        ...

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        """Atomic where the file system can; raises FileExistsError when `target` is taken, by anything."""
        ...

    def unlink(self, path: str, *, folder: int | None = None) -> None: ...

    def create(self, path: str, mode: int) -> int:
        """A descriptor, open for reading and writing, of a file that did not exist; `mode` regardless of the umask."""
        ...

    def make_folder(self, path: str) -> None:
        """One level; raises FileExistsError."""
        ...

    def sync_file(self, descriptor: int) -> None: ...

    def sync_folder(self, path: str) -> None:
        """Makes names that were created, renamed or removed in it survive a power cut."""
        ...


RENAME_NOREPLACE = 1
# What the kernel or the file system says when it knows no such flag.
_NO_SUCH_RENAME = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EISDIR}


class SystemFs:
    """The operating system's own."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._checked_rename = threading.Lock()  # our own threads never race each other where the kernel cannot help

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        try:
            self._rename_flagged(source, target, source_folder, target_folder)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            self._rename_by_link(source, target, source_folder, target_folder)

    def _rename_flagged(self, source: str, target: str, source_folder: int | None, target_folder: int | None) -> None:
        function = getattr(self._libc, "renameat2", None)
        if function is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        at_fdcwd = -100
        failed = function(
            at_fdcwd if source_folder is None else source_folder,
            os.fsencode(source),
            at_fdcwd if target_folder is None else target_folder,
            os.fsencode(target),
            RENAME_NOREPLACE,
        )
        if failed:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), source, None, target)

    def _rename_by_link(self, source: str, target: str, source_folder: int | None, target_folder: int | None) -> None:
        """For file systems without the flag: link and unlink; without links too (FAT): look, then rename."""
        try:
            os.link(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            os.unlink(source, dir_fd=source_folder)
            return
        with self._checked_rename:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(target) if target_folder is None else os.stat(
                    target, dir_fd=target_folder, follow_symlinks=False
                )
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            os.rename(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder)

    def unlink(self, path: str, *, folder: int | None = None) -> None:
        os.unlink(path, dir_fd=folder)

    def create(self, path: str, mode: int) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, mode)
        except PermissionError:  # FAT and some shares know no modes; the mount's own apply
            pass
        except BaseException:
            os.close(descriptor)
            os.unlink(path)
            raise
        return descriptor

    def make_folder(self, path: str) -> None:
        os.mkdir(path)

    def sync_file(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_folder(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder, and need not
                raise
        finally:
            os.close(descriptor)


# ------------------------------------------------------------------------------------------------- whose fault it is

STORAGE_KINDS: dict[int, str] = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read_only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ESTALE: "missing",
    errno.ENODEV: "missing",
    errno.ENXIO: "missing",
    errno.ENOTCONN: "missing",
    errno.EHOSTDOWN: "missing",
    errno.EHOSTUNREACH: "missing",
    errno.ETIMEDOUT: "missing",
}
"""Everything else that a write can fail with is io_error: hold, say so, try again. Nothing is lost by waiting."""

IMAGE_REASONS: dict[int, Reason] = {
    errno.ENAMETOOLONG: Reason.NAME_TOO_LONG,
    errno.EFBIG: Reason.OUTPUT_TOO_LARGE,
}
"""What waiting cannot mend, because it lies in the picture or its name."""


def fault_of(error: OSError, path: str) -> StorageFault | ImageError:
    """Whose fault an error while writing below `path` is. Every OSError has an answer."""
    code = error.errno or 0
    detail = f"{errno.errorcode.get(code, 'no errno')}: {error.strerror or error}"
    if code in IMAGE_REASONS:
        return ImageError(IMAGE_REASONS[code], detail)
    return StorageFault(STORAGE_KINDS.get(code, "io_error"), detail, path=path)


@contextlib.contextmanager
def storage_faults(path: str) -> Iterator[None]:
    """Turns every OSError of the block into the fault that the table names."""
    try:
        yield
    except OSError as error:
        raise fault_of(error, path) from error


# ------------------------------------------------------------------------------------------------- fakes at this seam


class WorldStopped(BaseException):
    """Nothing runs after this: what a kill -9 looks like to the code that is killed."""


class CrashingFs:
    """The system's operations, and a world that stops before step `after`; from then on every step stops it again.

    Other parts that have steps of their own (the ledger) call `step` too, so that all of them count in one order.
    """

    def __init__(self, after: int) -> None:
        self._left = after
        self._system = SystemFs()
        self.taken = 0

    def step(self) -> None:
        if self._left <= 0:
            raise WorldStopped
        self._left -= 1
        self.taken += 1

    def rename(self, source: str, target: str) -> None:
        self.step()
        self._system.rename(source, target)

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        self.step()
        self._system.rename_noreplace(source, target, source_folder=source_folder, target_folder=target_folder)

    def unlink(self, path: str, *, folder: int | None = None) -> None:
        self.step()
        self._system.unlink(path, folder=folder)

    def create(self, path: str, mode: int) -> int:
        self.step()
        return self._system.create(path, mode)

    def make_folder(self, path: str) -> None:
        self.step()
        self._system.make_folder(path)

    def sync_file(self, descriptor: int) -> None:  # noqa: ARG002 - nothing here survives a power cut anyway
        self.step()

    def sync_folder(self, path: str) -> None:  # noqa: ARG002
        self.step()


class FailingFs(SystemFs):
    """The system's operations, some of which fail: `script` maps their names to errors, one per call, 0 for none.

    `calls` records every operation with its first argument.
    """

    def __init__(self, script: dict[str, list[int]]) -> None:
        super().__init__()
        self._script = {name: list(codes) for name, codes in script.items()}
        self.calls: list[tuple[str, str | int]] = []

    def _before(self, name: str, subject: str | int) -> None:
        self.calls.append((name, subject))
        codes = self._script.get(name)
        code = codes.pop(0) if codes else 0
        if code:
            raise OSError(code, os.strerror(code))

    def rename(self, source: str, target: str) -> None:
        self._before("rename", source)
        super().rename(source, target)

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        self._before("rename_noreplace", source)
        super().rename_noreplace(source, target, source_folder=source_folder, target_folder=target_folder)

    def unlink(self, path: str, *, folder: int | None = None) -> None:
        self._before("unlink", path)
        super().unlink(path, folder=folder)

    def create(self, path: str, mode: int) -> int:
        self._before("create", path)
        return super().create(path, mode)

    def make_folder(self, path: str) -> None:
        self._before("make_folder", path)
        super().make_folder(path)

    def sync_file(self, descriptor: int) -> None:
        self._before("sync_file", descriptor)
        super().sync_file(descriptor)

    def sync_folder(self, path: str) -> None:
        self._before("sync_folder", path)
        super().sync_folder(path)
