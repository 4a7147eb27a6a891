"""Whether a drop folder is there, what kind of file system it lies on, and what the kernel really watches for us.

Reads /proc and stat only. Does not open or change any folder.
"""

from __future__ import annotations

import os
import re

# File systems whose every change passes through this machine's kernel, so that no writer goes unseen.
LOCAL = frozenset(
    [
        "bcachefs",
        "btrfs",
        "erofs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "nilfs2",
        "ntfs3",
        "overlay",
        "ramfs",
        "reiserfs",
        "tmpfs",
        "ubifs",
        "vfat",
        "xfs",
        "zfs",
    ]
)

_ESCAPE = re.compile(r"\\([0-7]{3})")
_WATCHED = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) ", re.MULTILINE)


def is_there(root: str, *, require_mount: bool) -> bool:
    """Is the drop folder there, and its disk in it where it must be one of its own?"""
    return os.path.isdir(root) and (not require_mount or os.path.ismount(root))


def file_system(path: str) -> str:
    """The type of the file system that `path` lies on, as mountinfo names it (proc(5)); "unknown" if not told."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    for mount_point, found in mounts():
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):  # of several mounted over one another the last is on top
            best, kind = mount_point, found
    return kind


def mounts() -> list[tuple[str, str]]:
    """(mount point, type) in the order in which they were mounted."""
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            mount_point = _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
            found.append((mount_point, right.split(" ")[0]))
    return found


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
