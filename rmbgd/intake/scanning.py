"""The scan of a drop folder: every entry that is not to be left alone, and every directory that should be watched.

Looks at names and stat only; opens no file and follows no link. What an entry means is decided elsewhere.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rmbgd.intake.names import CLAIM_FOLDER

# Half-finished uploads and what file managers leave behind; matched without regard to case.
IGNORED_FILES = (
    *(".*", "~$*", "*~", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.download", "*.tmp", "*.temp", "*.swp"),
    *("*.writing", "*.upload", "*.tacitpart", "~syncthing~*", "Thumbs.db", "desktop.ini", "ehthumbs.db"),
)
IGNORED_FOLDERS = (CLAIM_FOLDER, ".*", "@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN")


class Ignored:
    """Which names of a folder are left alone."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        self._files = _either([*IGNORED_FILES, *more])
        self._folders = _either([*IGNORED_FOLDERS, *more])

    def file(self, name: str) -> bool:
        return self._files.match(name) is not None

    def folder(self, name: str) -> bool:
        return self._folders.match(name) is not None

    def path(self, relative_path: str) -> bool:
        """A file whose own name, or any folder above it, is left alone."""
        *folders, name = relative_path.split("/")
        return self.file(name) or any(self.folder(each) for each in folders)


def _either(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns), re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is no directory, below the drop folder, and how it looked."""

    relative_path: str
    status: os.stat_result


@dataclass(slots=True)
class Seen:
    """What a scan went through: `directories` by inode; `unreadable`: (path, error) of those it could not enter."""

    directories: set[int] = field(default_factory=set)
    unreadable: list[tuple[str, OSError]] = field(default_factory=list)


def scan(root: str, below: str, ignored: Ignored, *, recursive: bool, seen: Seen) -> Iterator[Entry]:
    """Every entry below `root`/`below`, in no order. What vanishes meanwhile is left out.

    Can be abandoned at any point. Raises OSError when `root` itself cannot be read.
    """
    todo = [below]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(os.path.join(root, here)) as entries:
                seen.directories.add(os.stat(os.path.join(root, here)).st_ino)
                for entry in entries:
                    path = os.path.join(here, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        if recursive and not ignored.folder(entry.name):
                            todo.append(path)
                    elif not ignored.file(entry.name):
                        yield from _entry(entry, path)
        except FileNotFoundError:
            if not here:
                raise
        except OSError as error:
            if not here:
                raise
            seen.unreadable.append((here, error))


def _entry(entry: os.DirEntry[str], path: str) -> Iterator[Entry]:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Entry(path, status)
