"""Claimed files: moved into <input>/.rmbgd, and put back.

The rename is the lock and the crash record at once. Parents are reached without following links, so that a folder that
is swapped for a link meanwhile cannot make us move somebody else's file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from rmbgd import naming as names
from rmbgd.fs import FileSystem, folder_beneath, open_folder


def claim_by_rename(root: str, relative_path: str, name: str, fs: FileSystem) -> os.stat_result | None:
    """Move the file into the claim folder and say how it looks there; None when somebody has removed it since.

    Raises OSError; the file is then where it was.
    """
    parent, basename = os.path.split(relative_path)
    with folder_beneath(root, parent) as here, claim_folder(root) as there:
        fs.rename_noreplace(basename, name, source_folder=here, target_folder=there)
        with contextlib.suppress(FileNotFoundError):
            return os.stat(name, dir_fd=there, follow_symlinks=False)
    return None


def put_back(root: str, name: str, relative_path: str, fs: FileSystem) -> str:
    """Move a claimed file back where it was, and answer where that is: a~2.jpg when a newer a.jpg has come meanwhile.

    Raises OSError; FileNotFoundError when the claimed file is gone, or its disk with it: nothing is made there then.
    """
    with folder_beneath(root, names.CLAIM_FOLDER) as here:
        os.stat(name, dir_fd=here, follow_symlinks=False)
        parent = _folder_again(root, os.path.dirname(relative_path))
        with folder_beneath(root, parent) as there:
            for path in names.versions(os.path.basename(relative_path)):
                with contextlib.suppress(FileExistsError):
                    fs.rename_noreplace(name, path, source_folder=here, target_folder=there)
                    return os.path.join(parent, path)
    raise AssertionError("unreachable: some version is free")


@contextlib.contextmanager
def claim_folder(root: str) -> Iterator[int]:
    """A descriptor of the claim folder, made when it is missing. Raises OSError: PermissionError if it is not ours."""
    path = os.path.join(root, names.CLAIM_FOLDER)
    with contextlib.suppress(FileExistsError):
        if not os.path.lexists(path):
            os.mkdir(path, 0o700)
    try:
        descriptor = open_folder(root, names.CLAIM_FOLDER)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise PermissionError(errno.EPERM, "another entry has the name of the claim folder", path) from None
        raise
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the claim folder belongs to another user", path)
        yield descriptor
    finally:
        os.close(descriptor)


def _folder_again(root: str, below: str) -> str:
    """Make the sub-folder of a claimed file again if its owner has removed it; "" where that is impossible."""
    reached = ""
    try:
        for component in below.split("/") if below else ():
            with folder_beneath(root, reached) as parent, contextlib.suppress(FileExistsError):
                os.mkdir(component, dir_fd=parent)
            reached = os.path.join(reached, component)
        with folder_beneath(root, reached):
            return reached
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return ""
        raise
