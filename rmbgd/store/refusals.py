"""Why SQLite refuses the ledger: which file, whose it is, and what to do.

Opens none of its files: closing one would drop the locks that SQLite holds on it for this process (fcntl(2)).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from rmbgd.access_rights import user_name, whose
from rmbgd.errors import LedgerFault
from rmbgd.fs import STORAGE_KINDS
from rmbgd.store.ledger_lock import NO_DESCRIPTORS

SUFFIXES = ("", "-wal", "-shm")  # SQLite's own: one ledger is three files
DESCRIPTORS = 4  # that SQLite has open at once: these, and the folder while it syncs it

_CAUSES = {
    sqlite3.SQLITE_FULL: "disk_full",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "denied",
    sqlite3.SQLITE_AUTH: "denied",
    sqlite3.SQLITE_CANTOPEN: "missing",
}
_LOOKED_INTO = {"read_only", "denied", "missing", "io_error"}  # SQLite says these of each other's conditions


@dataclass(frozen=True, slots=True)
class Refusal:
    """`cause` as in LedgerFault. `of_operator`: rights and limits, which waiting does not change."""

    cause: str
    text: str
    remedy: str
    of_operator: bool = True

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


@contextlib.contextmanager
def ledger_faults(path: str) -> Iterator[None]:
    """Turns what SQLite and the file system say about the ledger at `path` into the LedgerFault that it is."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        cause, detail = "damaged" if is_damage(error) else _CAUSES.get(_code(error), "io_error"), f"{name}: {error}"
        found = refusal(path) if cause in _LOOKED_INTO and _code(error) != sqlite3.SQLITE_BUSY else None
        if found is not None:
            cause, detail = found.cause, f"{detail}: {found}"
        raise LedgerFault(cause, detail, path=path) from error
    except OSError as error:
        cause = "descriptors" if error.errno in NO_DESCRIPTORS else STORAGE_KINDS.get(error.errno or 0, "io_error")
        raise LedgerFault(cause, f"{error.filename or path}: {error.strerror or error}", path=path) from error


def is_damage(error: sqlite3.Error) -> bool:
    # Text that is no UTF-8 was never written; the Python module says so, and has no code for it.
    undecodable = _code(error) == 0 and str(error).startswith("Could not decode")
    return undecodable or _CAUSES.get(_code(error)) == "damaged"


def _code(error: sqlite3.Error) -> int:
    """The primary one; 0 for what the Python module says itself."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def refusal(path: str) -> Refusal | None:
    """Why this process cannot use the ledger at `path`; None when nothing is in its way."""
    folder = os.path.dirname(path) or "."
    try:
        _open_often(folder)
        for name in (folder, *(path + suffix for suffix in SUFFIXES)):
            if (found := _rights(name, optional=name != path)) is not None:
                return found
        with tempfile.TemporaryFile(dir=folder) as trial:  # it has no name
            trial.write(bytes(4096))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        return _of_error(folder, error)
    return None


def _open_often(folder: str) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(DESCRIPTORS):
            opened.callback(os.close, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _rights(name: str, *, optional: bool) -> Refusal | None:
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return None if optional else Refusal("missing", f"{name} is not there", "it was removed", of_operator=False)
    if not optional and not stat.S_ISREG(status.st_mode):
        return Refusal("denied", f"{name} is no file", "move it away")
    reads, writes = (os.access(name, mode, effective_ids=True) for mode in (os.R_OK, os.W_OK))
    if reads and writes:
        return None
    if os.statvfs(name).f_flag & os.ST_RDONLY:
        return _read_only(name)
    text = whose(name, status, "write" if reads else "read")
    wanted = "u+rwx" if stat.S_ISDIR(status.st_mode) else "u+rw"
    remedy = f"chown {user_name(os.geteuid())} {name}" if status.st_uid != os.geteuid() else f"chmod {wanted} {name}"
    return Refusal("read_only" if reads else "denied", text, remedy)


def _read_only(name: str) -> Refusal:
    text, remedy = f"the file system of {name} is read-only", "see `dmesg` for why, and mount it for writing"
    return Refusal("read_only", text, remedy, of_operator=False)


def _of_error(folder: str, error: OSError) -> Refusal:
    if error.errno in NO_DESCRIPTORS:
        text = f"this process has no file descriptors left ({error.strerror})"
        return Refusal("descriptors", text, "raise LimitNOFILE of the unit, or `ulimit -n`")
    if error.errno == errno.EROFS:
        return _read_only(folder)
    cause, text = STORAGE_KINDS.get(error.errno or 0, "io_error"), f"{folder}: {error.strerror}"
    if cause == "denied":
        return _rights(folder, optional=True) or Refusal(cause, text, "see its owner, mode and attributes (lsattr)")
    remedies = {"missing": "make the directory, or mount its disk", "io_error": "see `dmesg`: the disk fails"}
    return Refusal(cause, text, remedies.get(cause, "make room"), of_operator=False)
