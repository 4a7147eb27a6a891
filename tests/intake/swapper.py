"""Swaps a file for a link, and a folder for a link, as fast as one processor can: `python swapper.py ROOT OUTSIDE`.

Below ROOT `file.png` is an image and `folder/file.png` another; both are exchanged in one step (renameat2) with links
that lead below OUTSIDE, and back, until stdin is closed. Says "up" when it has begun.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def main() -> None:
    root, outside = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    pairs = []
    for name, target in {"file.png": os.path.join(outside, "secret.png"), "folder": outside}.items():
        link = os.path.join(outside, f"link-{name}")
        os.symlink(target, link)
        pairs.append((os.fsencode(os.path.join(root, name)), os.fsencode(link)))
    print("up", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for here, there in pairs * 100:
            libc.renameat2(AT_FDCWD, here, AT_FDCWD, there, RENAME_EXCHANGE)  # while it is claimed there is nothing


if __name__ == "__main__":
    main()
