"""Putting files where others read them: whole, synced, or not at all.

Does not know what it places. A reader that has the old file open keeps it: nothing here writes into a file in place,
which matters for weights that are mapped (a mapped file that shrinks kills the process that reads it).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h: swap two names in one step


@contextlib.contextmanager
def temporary_beside(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary file beside `path`; on leaving it is synced and takes the name, on an error it vanishes.

    Readable by others by default: the service runs as another user than the operator.
    """
    open_folder(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def open_folder(path: Path) -> None:
    """Make a folder that others may read, whatever the umask; one that is already there is left as it is."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all. Raises OSError."""
    with temporary_beside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def place_folder(staged: Path, target: Path) -> None:
    """Give a finished folder its name, on one file system.

    An older folder of that name is exchanged in one step, so that a reader sees either of them whole, and then removed.
    Raises OSError.
    """
    for entry in staged.iterdir():
        sync(entry)
    sync(staged)
    if not target.exists():
        staged.rename(target)
    elif _exchange(staged, target):
        shutil.rmtree(staged)
    else:  # a file system without exchange (NFS, some FUSE): two steps, nothing is lost between them
        old = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        staged.rename(target)
        shutil.rmtree(old)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names with renameat2(2); False where the file system or the kernel cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(other))
