"""File operations that crash safety hangs on: no-follow open, rename-noreplace, fsync, atomic_write.

Also whose fault an OSError is. Paths are text with surrogateescape, so that every byte name survives. Each operation
behind the FileSystem seam is one step as a crash sees it: it has happened or it has not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rmbgd.errors import ImageError, Reason, StorageFault

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
# What the kernel or the file system says when it knows no such flag, or no hard links.
_NO_SUCH_RENAME = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EISDIR}


@dataclass(frozen=True, slots=True)
class FileVersion:
    """Which content of a path is meant: changes whenever the file is replaced or rewritten."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def version_of(status: os.stat_result) -> FileVersion:
    return FileVersion(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def same_content(status: os.stat_result, version: FileVersion) -> bool:
    """Is this still the version that was claimed? ctime is left out: our own rename changes it."""
    return (status.st_ino, status.st_size, status.st_mtime_ns) == (version.inode, version.size, version.mtime_ns)


# ------------------------------------------------------------------------------------------------- whose fault it is

STORAGE_KINDS: dict[int, str] = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read_only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN), "missing"),
    **dict.fromkeys((errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT), "missing"),
}
"""Everything else that a write can fail with is io_error: retried. Nothing is lost by waiting."""

IMAGE_REASONS = {errno.ENAMETOOLONG: Reason.NAME_TOO_LONG, errno.EFBIG: Reason.OUTPUT_TOO_LARGE}
"""What waiting cannot mend, because it lies in the image or its name."""


def fault_of(error: OSError, path: str) -> StorageFault | ImageError:
    """Whose fault an error while writing below `path` is. Every OSError has an answer."""
    code = error.errno or 0
    detail = f"{errno.errorcode.get(code, 'no errno')}: {error.strerror or error}"
    if code == errno.EROFS and "INVOCATION_ID" in os.environ:  # which systemd sets
        detail += (
            " for this service; if the disk itself is writable, ReadWritePaths= of the unit leaves this folder out: "
            "see its drop-in 20-folders.conf"
        )
    if code in IMAGE_REASONS:
        return ImageError(IMAGE_REASONS[code], detail)
    return StorageFault(STORAGE_KINDS.get(code, "io_error"), detail, path=path)


@contextlib.contextmanager
def storage_faults(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_of(error, path) from error


# ------------------------------------------------------------------------------------------------- opening

# For a folder that strangers write to: no links, pipes or devices, nothing outside the drop folder.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a folder",
}


def kind_of(mode: int) -> str:
    """What an entry is that is no regular file, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def open_regular(path: str, *, folder: int | None = None) -> int:
    """A descriptor for reading. Raises ImageError(not_regular) for anything but a regular file, and OSError.

    Never blocks and never opens what it refuses: pipes and devices are open for the blink that fstat takes at most.
    """
    try:
        descriptor = os.open(path, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageError(Reason.NOT_REGULAR, "a symbolic link") from error
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a device without a driver
            raise ImageError(Reason.NOT_REGULAR, "a socket or a device") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ImageError(Reason.NOT_REGULAR, kind_of(mode))
    return descriptor


def open_folder(root: str, below: str) -> int:
    """A descriptor of a folder below `root`, reached without following a link. Raises OSError."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in below.split("/") if below else ():
        try:
            deeper = os.open(component, _FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor


def holes(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of an open file without data, each with the byte behind it. None where they cannot be seen."""
    at = 0
    with contextlib.suppress(OSError):  # ENXIO: no data behind the last hole; or no such question here
        while at < size and (at := os.lseek(descriptor, at, os.SEEK_HOLE)) < size:
            start, at = at, size
            with contextlib.suppress(OSError):
                at = min(size, os.lseek(descriptor, start, os.SEEK_DATA))
            yield start, at


@contextlib.contextmanager
def folder_beneath(root: str, below: str) -> Iterator[int]:
    """open_folder, closed at the end: a descriptor kept open would keep a disk from being unmounted."""
    descriptor = open_folder(root, below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------- the seam


class FileSystem(Protocol):
    """Where `source_folder` or `target_folder` is an open descriptor, that path is relative to it."""

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces `target`."""

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        """Atomic where the file system can; raises FileExistsError when `target` is taken, by anything."""

    def unlink(self, path: str, *, folder: int | None = None) -> None: ...

    def create(self, path: str, mode: int) -> int:
        """A descriptor, open for reading and writing, of a file that did not exist; `mode` regardless of the umask."""

    def make_folder(self, path: str) -> None:
        """One level; raises FileExistsError."""

    def sync_file(self, descriptor: int) -> None: ...

    def sync_folder(self, path: str) -> None:
        """Makes names that were created, renamed or removed in it survive a power cut."""


class SystemFileSystem:
    def __init__(self) -> None:
        self._checked_rename = threading.Lock()  # our own threads never race each other where the kernel cannot help

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        try:
            _renameat2(source, target, _RENAME_NOREPLACE, source_folder, target_folder)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            self._rename_by_link(source, target, source_folder, target_folder)

    def _rename_by_link(self, source: str, target: str, source_folder: int | None, target_folder: int | None) -> None:
        """For file systems without the flag: link and unlink; without links too (FAT): look, then rename."""
        try:
            os.link(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        else:
            os.unlink(source, dir_fd=source_folder)
            return
        with self._checked_rename:
            with contextlib.suppress(FileNotFoundError):
                os.stat(target, dir_fd=target_folder, follow_symlinks=False)
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
        except BaseException:  # whatever it is: no descriptor and no empty file stays behind
            os.close(descriptor)
            os.unlink(path)
            raise
        return descriptor

    def make_folder(self, path: str) -> None:
        os.mkdir(path)

    def sync_file(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_folder(self, path: str) -> None:
        sync(path, os.O_DIRECTORY)


def _renameat2(
    source: str, target: str, flag: int, source_folder: int | None = None, target_folder: int | None = None
) -> None:
    """renameat2(2). Raises OSError: ENOSYS where the C library does not have it."""
    function = getattr(_libc(), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, there = (_AT_FDCWD if folder is None else folder for folder in (source_folder, target_folder))
    if function(here, os.fsencode(source), there, os.fsencode(target), flag):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, target)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def sync(path: str | Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder, and need not
            raise
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------- whole files


def atomic_write(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Replace a small file whole: a reader sees the old content or the new one, never half of it.

    `durable`: it survives a power cut once this returns. `mode` counts whatever the umask says. Raises OSError, and
    then the old file stands as it stood and no temporary is left.
    """
    path = os.fspath(path)
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync(Path(path).parent)


def make_readable_folder(path: Path) -> None:
    """Make a folder that others may read, whatever the umask: the service is another user than the operator."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all, where others may read it. Raises OSError."""
    make_readable_folder(path.parent)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, text.encode(), durable=True)


def place_file(staged: Path, target: Path) -> None:
    """Give a finished file its name, on one file system, synced and readable by others. Raises OSError."""
    staged.chmod(0o644)
    give_name(staged, target)


def give_name(staged: Path, target: Path) -> None:
    """Put a finished file in the place of another, or of none, on one file system; both are synced. Raises OSError."""
    sync(staged)
    staged.replace(target)
    sync(target.parent)


def place_folder(staged: Path, target: Path) -> None:
    """Give a finished folder its name, on one file system; a reader sees an older one or it, whole. Raises OSError."""
    for entry in staged.iterdir():
        sync(entry)
    sync(staged)
    if not target.exists():
        staged.rename(target)
    else:
        old = staged
        try:
            _renameat2(str(staged), str(target), _RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            # a file system without exchange (NFS, some FUSE): two steps, nothing is lost between them
            old = target.with_name(f".{target.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            staged.rename(target)
        shutil.rmtree(old)
    sync(target.parent)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes. `available` can be had without swapping. 0 where the kernel does not say."""

    total: int
    available: int


def host_memory(path: str = "/proc/meminfo") -> HostMemory:
    """Memory of this host as it is now (/proc/meminfo, proc(5)). Never raises: what cannot be read counts as 0."""
    kibi: dict[str, int] = {}
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if value.rstrip().endswith("kB"):
                kibi[name] = int(value.split()[0])
    return HostMemory(kibi.get("MemTotal", 0) << 10, kibi.get("MemAvailable", 0) << 10)


def usable_cores(membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use: those of its affinity, at most what the quotas of its control groups give it,
    rounded up (cpu.max, cgroup v2). At least 1; never raises."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, StopIteration):
        with open(membership, encoding="ascii", errors="replace") as file:
            group = Path(root, next(line[3:] for line in file if line.startswith("0::")).strip().lstrip("/"))
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
                if quota != "max":
                    cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)
