"""Mount points and file systems of folders: type, free space, and which inodes the kernel watches for us."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

# File systems whose every change passes through this machine's kernel, so that no writer goes unseen.
LOCAL = {
    *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "ntfs3"),
    *("overlay", "ramfs", "reiserfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs"),
}

_ESCAPE = re.compile(r"\\([0-7]{3})")
_WATCHED = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) ", re.MULTILINE)


def is_there(root: str, *, require_mount: bool) -> bool:
    return os.path.isdir(root) and (not require_mount or is_mounted(root))


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc(5)): `root` is the directory of the file system `device` that is seen at `point`."""

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str


def is_mounted(path: str) -> bool:
    """Is a directory from elsewhere mounted exactly at `path`?

    os.path.ismount compares device numbers and so does not see what is bound from the same file system. A directory
    bound onto itself is none: systemd makes such mounts of the paths in ReadWritePaths=, and no disk is in them.
    """
    path = os.path.realpath(path)
    table = read_mounts()
    by_number = {mount.number: mount for mount in table}
    here = next((mount for mount in reversed(table) if mount.point == path), None)
    while here is not None:
        below = by_number.get(here.parent)
        if below is None or below is here or not _shows_what_is_below(here, below):
            return True
        here = below if below.point == path else None  # bound over a mount: that one counts
    return False


def _shows_what_is_below(mount: Mount, below: Mount) -> bool:
    inner = os.path.relpath(mount.point, below.point)
    return mount.device == below.device and mount.root == os.path.normpath(os.path.join(below.root, inner))


def file_system(path: str) -> str:
    """The type of the file system that `path` lies on, as mountinfo names it (proc(5)); "unknown" if it does not."""
    path = os.path.realpath(path) + "/"
    around = [mount for mount in reversed(read_mounts()) if path.startswith(mount.point.rstrip("/") + "/")]
    deepest = max(around, key=lambda mount: len(mount.point), default=None)  # mounted over one another: the last
    return "unknown" if deepest is None else deepest.kind


def free_bytes(path: str) -> int | None:
    """Free space for us on the file system of `path`; None when it is not there or may not be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def read_mounts() -> list[Mount]:
    """In the order in which they were mounted."""
    mounts = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            number, parent, device, root, point, *_ = left.split(" ")
            mounts.append(Mount(int(number), int(parent), device, _plain(root), _plain(point), right.split(" ")[0]))
    return mounts


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), text)


def is_local(kind: str) -> bool:
    """Whether open writers and every event can be seen from here."""
    return kind in LOCAL


def watched_inodes() -> set[int]:
    """Inodes that this process has an inotify watch on, as the kernel tells it: no library's book-keeping to trust."""
    inodes: set[int] = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") != "anon_inode:inotify":
                continue
            with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
                inodes.update(int(number, 16) for number in _WATCHED.findall(file.read()))
        except FileNotFoundError:  # closed between the listing and the look
            continue
    return inodes
