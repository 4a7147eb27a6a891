"""The opening rule for a folder that strangers write to: no links, pipes or devices, nothing outside the drop folder.

Knows neither settling nor jobs. openat2 would do much of this in one call, but RestrictSUIDSGID of the unit forbids it,
so every component is opened by itself, relative to the one before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from rmbgd.errors import ImageError, Reason
from rmbgd.jobs import Version

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


def version_of(status: os.stat_result) -> Version:
    return Version(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def same_content(status: os.stat_result, version: Version) -> bool:
    """Is this still the version that was claimed? ctime is left out: our own rename changes it."""
    return (status.st_ino, status.st_size, status.st_mtime_ns) == (version.inode, version.size, version.mtime_ns)


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


@contextlib.contextmanager
def folder_beneath(root: str, below: str) -> Iterator[int]:
    """open_folder, closed at the end: a descriptor kept open would keep a disk from being unmounted."""
    descriptor = open_folder(root, below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
