"""Removes sub-folders of an input that became empty because their images left (`remove_empty`)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

from rmbgd.config.load import Folder
from rmbgd.fs import folder_beneath

QUIET = 60.0  # s without a change, after the last image left: an uploader may be about to send the next one there
TRACKED_MAXIMUM = 1000  # folders; of what is beyond, the next image that leaves reminds
LOOKS_AT_ONCE = 50

Below = tuple[str, str]  # (folder, path below its input)


class EmptyFolders:
    """Belongs to the reconcile thread. The input itself is never removed, nor what was not left by an image."""

    def __init__(self, folders: Mapping[str, Folder]) -> None:
        self._folders = {name: folder for name, folder in folders.items() if folder.remove_empty}
        # When to look, and how the folder looked before: ns of its last change; None before the first look.
        self._left: dict[Below, tuple[float, int | None]] = {}

    def left(self, folder: str, relative_path: str, now: float) -> None:
        """An image of that path has gone for good."""
        below = posixpath.dirname(relative_path)
        if folder in self._folders and below and len(self._left) < TRACKED_MAXIMUM:
            self._left.setdefault((folder, below), (now, None))

    def next_moment(self) -> float | None:
        return min((moment for moment, _ in self._left.values()), default=None)

    def work(self, now: float) -> None:
        due = [(below, changed) for below, (moment, changed) in self._left.items() if moment <= now]
        for (folder, below), before in due[:LOOKS_AT_ONCE]:
            del self._left[folder, below]
            parent, name = posixpath.split(below)
            try:
                with folder_beneath(str(self._folders[folder].input), parent) as here:
                    changed = os.stat(name, dir_fd=here, follow_symlinks=False).st_mtime_ns
                    if changed != before:
                        self._left[folder, below] = (now + QUIET, changed)
                        continue
                    os.rmdir(name, dir_fd=here)
            except OSError:  # not empty, no folder, not ours to remove, or gone
                continue
            self.left(folder, below, now)
