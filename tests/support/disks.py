"""Disks that fail: power that is cut under an ext4, blocks that cannot be read. Skips where there is no such disk."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
FIBMAP = 1  # _IO(0x00, 1), linux/fs.h
NO_LOG_FLUSH = 2  # what the journal has not written is gone, as when the power goes


def cut_power(mount: Path) -> None:
    """From now on every call on that file system says EIO, and what was not synced is gone at the next mount."""
    descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    except OSError as error:
        pytest.skip(f"this file system cannot be shut down: {error}")
    finally:
        os.close(descriptor)


def first_block(path: Path) -> int:
    """Where on its disk the file begins, in bytes (the FIBMAP ioctl; the file must be synced)."""
    with open(path, "rb") as file:
        answer = fcntl.ioctl(file, FIBMAP, struct.pack("I", 0))
        return int(struct.unpack("I", answer)[0]) * os.fstatvfs(file.fileno()).f_bsize
