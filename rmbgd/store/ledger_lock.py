"""The lock of a state directory: one service at a time, and whether one runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from rmbgd.access_rights import user_name
from rmbgd.errors import REMEDIES, ConfigError, LedgerFault
from rmbgd.fs import STORAGE_KINDS

LEDGER = "ledger.sqlite"  # in the state directory
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
PASSING = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENFILE)  # of the disk and the system
TRIES = 10_000  # while somebody looks whether the lock is held, which takes microseconds


def lock_out_others(path: str) -> int:
    """A descriptor of the lock file at `path`, which holds the lock until it is closed.

    Raises ConfigError for what the operator must mend, LedgerFault for what may pass by itself.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in PASSING:
            cause = "descriptors" if error.errno in NO_DESCRIPTORS else STORAGE_KINDS.get(error.errno, "io_error")
            detail = f"{error.strerror}; {REMEDIES.get(error.errno, 'see `dmesg`')}"
            raise LedgerFault(cause, detail, path=path) from error
        raise ConfigError(f"{path}: {_why_no_lock(path, error)}") from error
    try:
        _lock(descriptor)
    except OSError as error:
        os.close(descriptor)
        text = f"no lock can be had there ({error.strerror}); put the state directory on a local disk"
        if isinstance(error, BlockingIOError):
            text = "another rmbgd uses this state directory; stop it, or give this one its own"
        raise ConfigError(f"{path}: {text}") from error
    return descriptor


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError when another service holds it, not when somebody only looks whether it is held."""
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # granted beside those who look
        os.sched_yield()
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _why_no_lock(path: str, error: OSError) -> str:
    if error.errno in NO_DESCRIPTORS:
        return f"{error.strerror}; raise LimitNOFILE of the unit, or `ulimit -n`"
    if os.path.exists(path):
        me = user_name(os.geteuid())
        return f"{error.strerror}; the file belongs to {user_name(os.stat(path).st_uid)}: chown {me} {path}"
    return f"{error.strerror}; the state directory must exist and be writable by the service"


def is_locked(path: str) -> bool | None:
    """Does a service use the ledger at `path`? None when this user may not look. Holds the lock for a moment."""
    try:
        descriptor = os.open(path + ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
