"""One look at an arriving file: companions, an open writer, its beginning, holes, its end marker. Reads a few kilobytes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from rmbgd.access_rights import READ, mend
from rmbgd.fs import FileVersion, folder_beneath, holes, open_regular, version_of
from rmbgd.imaging.completeness import Head, Tail, head_of, tail_of
from rmbgd.intake.ignored import COMPANIONS
from rmbgd.intake.readiness import ReadinessFacts, Writer


def check(root: str, relative_path: str, *, remote: bool) -> tuple[FileVersion, ReadinessFacts]:
    """The version that was checked, and what it showed. Raises ImageError(not_regular) and OSError."""
    parent, name = os.path.split(relative_path)
    with folder_beneath(root, parent) as folder:
        try:
            descriptor = open_regular(name, folder=folder)
        except PermissionError:
            if not mend(os.path.join(root, relative_path), READ):
                raise
            descriptor = open_regular(name, folder=folder)
        companion = next((suffix for suffix in COMPANIONS if _stands(name + suffix, folder)), "")
    try:
        status = os.fstat(descriptor)
        writer = Writer.UNSEEN if remote else writer_of(descriptor)
        if writer is Writer.OPEN:
            return version_of(status), ReadinessFacts(writer, True, Tail.UNKNOWN, companion)
        try:
            head, tail = head_of(descriptor), tail_of(descriptor, status.st_size)
        except OSError:  # not judged here: the decoder meets the same error and has a reason for it
            head, tail = Head.KNOWN, Tail.UNKNOWN
        return version_of(status), ReadinessFacts(writer, is_dense(descriptor, status.st_size), tail, companion, head)
    finally:
        os.close(descriptor)


def has_companion(root: str, relative_path: str) -> bool:
    """Raises OSError where that cannot be seen."""
    parent, name = os.path.split(relative_path)
    with folder_beneath(root, parent) as folder:
        return any(_stands(name + suffix, folder) for suffix in COMPANIONS)


def _stands(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:  # a name that would be too long included
        return False
    return True


def writer_of(descriptor: int) -> Writer:
    """Asks the kernel for a read lease, which it refuses while anybody has the file open, or mapped, for writing.

    A writer that opens during the lease waits until we give it back, microseconds later; the kernel then signals us. It
    would be SIGIO, which ends a process: SIGURG, which does nothing unless asked to, is taken instead. fcntl(2).
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        # EACCES: neither our file nor CAP_LEASE; EINVAL: a file system without leases.
        return Writer.OPEN if error.errno == errno.EAGAIN else Writer.UNSEEN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Writer.NONE


def is_dense(descriptor: int, size: int) -> bool:
    """No unwritten blocks: preallocated uploads have some until the end. True where that cannot be seen."""
    return next(holes(descriptor, size), None) is None
