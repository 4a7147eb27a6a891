"""What scenarios need of the machine: disks that fail, file flags, kernel settings; skips what cannot be had."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import glob
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.mounts import read_mounts

CLONE_NEWNS = 0x20000  # linux/sched.h
FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
FIBMAP = 1  # _IO(0x00, 1), linux/fs.h
NO_LOG_FLUSH = 2  # what the journal has not written is gone, as when the power goes


def run(*command: str | Path) -> None:
    """Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr or done.stdout}")


@functools.cache
def _cannot_mount() -> str:
    """Why not, or nothing."""
    if os.geteuid():
        return "mounting needs root"
    with tempfile.TemporaryDirectory() as place:
        try:
            run("mount", "-t", "tmpfs", "-o", "size=64k", "none", place)
        except (RuntimeError, OSError) as error:
            return f"this machine lets nobody mount: {error}"
        run("umount", place)
    return ""


def need_mounts() -> None:
    if reason := _cannot_mount():
        pytest.skip(reason)


@contextlib.contextmanager
def mounted(where: Path, kind: str, options: str, source: str | Path = "none") -> Iterator[None]:
    """A file system at `where`, taken away at the end, even if somebody uses it still."""
    need_mounts()
    mount(where, kind, options, source)
    try:
        yield
    finally:
        unmount(where)


def mount(where: Path, kind: str, options: str, source: str | Path = "none") -> None:
    run("mount", "-t", kind, "-o", options, source, where)


def unmount(where: Path) -> None:
    """Everything that is mounted there; like a stick that is pulled: whoever has a file open keeps it."""
    while str(where) in (each.point for each in read_mounts()):  # os.path.ismount does not see all bind mounts
        run("umount", "-l", where)


@functools.cache  # once, for all that follows
def own_mounts() -> None:
    """What this process mounts is nobody else's: a container that starts meanwhile would inherit it and keep the file
    system alive over an unmount. Of others' disks it lets go for the same reason. Before any thread is started.

    Raises OSError.
    """
    need_mounts()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    run("mount", "--make-rprivate", "/")
    loops = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if "/dev/loop" in line]
    for point in reversed(loops):
        run("umount", "-l", point)


@contextlib.contextmanager
def disk(image: Path, megabytes: int = 32) -> Iterator[str]:
    """An ext4 file system in a file, behind a loop device: the device's path, to be mounted as often as you like."""
    need_mounts()
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:" + os.environ["PATH"]) is None:
        pytest.skip("mkfs.ext4 is not installed (e2fsprogs)")
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", "-F", image)
    found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    try:
        yield found.stdout.strip()
    finally:
        run("losetup", "--detach", found.stdout.strip())


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


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody can change, rename or remove it, not even root."""
    try:
        run("chattr", "+i", path)
    except (RuntimeError, FileNotFoundError) as error:
        pytest.skip(f"no immutable files here: {error}")
    try:
        yield
    finally:
        run("chattr", "-i", path)


@contextlib.contextmanager
def kernel_setting(name: str, value: int) -> Iterator[None]:
    """A value below /proc/sys, put back at the end."""
    path = Path("/proc/sys") / name
    try:
        before = path.read_text()
        path.write_text(str(value))
    except OSError as error:
        pytest.skip(f"cannot set {name}: {error.strerror}")
    try:
        yield
    finally:
        path.write_text(before)


def without_override() -> list[str]:
    """A command prefix: root whom file modes bind, as they bind everybody else."""
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to have files that the service may not read")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def false_clock(control: Path) -> dict[str, str]:
    """Environment of a process whose wall clock says what stands in `control` (faketime(1)); monotonic time is true."""
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not libraries:
        pytest.skip("libfaketime is not installed (Debian package faketime)")
    return {
        "LD_PRELOAD": libraries[0],
        "FAKETIME_TIMESTAMP_FILE": str(control),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "NO_FAKE_STAT": "1",
    }


@contextlib.contextmanager
def memory_folder(fallback: Path) -> Iterator[Path]:
    """A folder on a file system in memory where there is one, so that thousands of syncs cost nothing."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < 2 << 30:
        yield fallback
        return
    with tempfile.TemporaryDirectory(prefix="rmbgd-scenario-", dir=shared) as place:
        yield Path(place)
