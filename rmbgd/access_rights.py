"""Access rights: why a file may not be read or a folder not be changed (owner, mode, ACL mask), and what to do.

What is the service's own is mended. Of what belongs to others it can only be said.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import struct
from collections.abc import Iterable, Iterator

READ, CHANGE = os.R_OK, os.W_OK | os.X_OK  # as access(2) and ACLs have them: r = 4, w = 2, x = 1
PRIVATE = "an interrupted `rsync --inplace` or `--append` leaves files so, and umask 077: let rsync run to its end"

# The value of system.posix_acl_access: linux/posix_acl_xattr.h, linux/posix_acl.h.
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")  # version 2; then tag, rights, user or group
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """With another user's rights to files. For root, in a process of one thread. Raises PermissionError."""
    group, groups = os.getegid(), os.getgroups()
    their_groups = groups_of(uid)
    try:
        os.setgroups(their_groups)
        os.setegid(their_groups[0])
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def become(uid: int) -> None:
    """Go on as another user for good. For root."""
    groups = groups_of(uid)
    os.setgroups(groups)
    os.setgid(groups[0])
    os.setuid(uid)


def groups_of(uid: int) -> list[int]:
    """The user's groups, his own first; of a number without an account, the same number."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return [uid]
    return list(dict.fromkeys([entry.pw_gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)]))


def mend(path: str, wanted: int) -> bool:
    """Give ourselves the owner's rights to what is ours and lacks them. False: nothing was changed. Follows no link."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status, bits = os.fstat(descriptor), wanted << 6
            if status.st_uid == os.geteuid() and status.st_mode & bits != bits and not stat.S_ISLNK(status.st_mode):
                os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(status.st_mode) | bits)
                return os.fstat(descriptor).st_mode & bits == bits  # some file systems know no modes
        finally:
            os.close(descriptor)
    return False


def why_unreadable(error: OSError, path: str) -> str:
    """What `error` says; of a lack of rights also whose the file or folder is, the likely cause, and the remedy."""
    said = error.strerror or str(error)
    return "; ".join([said, *_lacks(path, READ)]) if isinstance(error, PermissionError) else said


def why_unchangeable(error: Exception, folders: Iterable[str]) -> str:
    """The same for files that cannot be moved out of, or into, these folders."""
    return "; ".join([str(error), *(why for folder in dict.fromkeys(folders) for why in _lacks(folder, CHANGE))])


def _lacks(path: str, wanted: int) -> Iterator[str]:
    """Which right we lack there, or to the folder on the way to it, if any."""
    try:
        status = os.lstat(path)
    except PermissionError:
        yield from _lacks(os.path.dirname(path), os.X_OK)
        return
    except OSError:
        return
    if os.access(path, wanted, effective_ids=True):
        return
    yield whose(path, status, "read" if wanted == READ else "change")
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 == 0:
        yield f"{PRIVATE}, or chmod g+r '{path}'"
    elif (mask := _masking(path, status, wanted)) is not None:
        letters = "".join(letter if mask & bit else "-" for bit, letter in ((4, "r"), (2, "w"), (1, "x")))
        right = "rwx" if stat.S_ISDIR(status.st_mode) else "r"
        yield f"its ACL gives that right and its mask {letters} takes it away: setfacl -m m::{right} '{path}'"


def _masking(path: str, status: os.stat_result, wanted: int) -> int | None:
    """The mask of the ACL, if it is all that keeps us from a right that the ACL gives us."""
    with contextlib.suppress(OSError, struct.error):
        entries = list(_ENTRY.iter_unpack(os.getxattr(path, "system.posix_acl_access")[_HEADER.size :]))
        groups = {os.getegid(), *os.getgroups()}
        given = [
            rights
            for tag, rights, who in entries
            if (tag == _USER and who == os.geteuid())
            or (tag == _GROUP and who in groups)
            or (tag == _GROUP_OBJ and status.st_gid in groups)
        ]
        mask = next(rights for tag, rights, _ in entries if tag == _MASK)
        if any(rights & wanted == wanted for rights in given) and mask & wanted != wanted:
            return int(mask)
    return None


def whose(path: str, status: os.stat_result, verb: str) -> str:
    """Owner and mode of what we may not `verb`."""
    owner, mode = user_name(status.st_uid), stat.S_IMODE(status.st_mode)
    return f"{path} belongs to user {owner}, mode {mode:04o}, and user {user_name(os.geteuid())} may not {verb} it"


def user_name(uid: int) -> str:
    """The login name, or the number where there is none: commands take both."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
