"""POLICY: which names in a drop folder are no images: unfinished uploads, control files of downloads, sidecars."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from rmbgd.naming import SIDECARS

# Behind the name of the file that is being transferred. As long as one of these stands beside it, it is unfinished:
# aria2, lftp, axel, qBittorrent, uTorrent, BitComet, Opera, FDM, Thunder, DownThemAll, yt-dlp, browsers, SFTP clients.
COMPANIONS = (
    *(".aria2", ".lftp-pget-status", ".st", ".!qB", ".!ut", ".bc!", ".opdownload", ".fdmdownload", ".xltd"),
    *(".xltd.cfg", ".td", ".td.cfg", ".dtapart", ".ytdl", ".part", ".partial", ".filepart", ".crdownload"),
    *(".download", ".upload", ".uploading", ".inprogress", ".incomplete", ".lock"),
)

# What editors, desktops and synchronisation leave behind.
BYPRODUCTS = (
    *(".*", "~$*", "*~", "#*#", "*.tmp", "*.temp", "*.swp", "*.kate-swp", "*.writing", "*.tacitpart", "~syncthing~*"),
    *("*.goutputstream-*", "*.sb-*", "Thumbs.db", "desktop.ini", "ehthumbs.db", "Icon\r"),
)
FOLDERS = (".*", "@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")


class Ignored:
    """Names that are left alone; matched without regard to case. `more`: further patterns."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        behind = [f"*{suffix}" for suffix in (*COMPANIONS, *SIDECARS)]
        self._files = _either([*BYPRODUCTS, *behind, *more])
        self._folders = _either([*FOLDERS, *more])

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
