"""Control groups: less memory, fewer tasks, less processor time for a running service. Version 1 and 2; else skips."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
UNIFIED = (ROOT / "cgroup.controllers").exists()


class Group:
    """A control group of one controller, with one process and whatever it starts from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def tasks(self) -> int:
        """Threads of every process in it."""
        return int((self.path / "pids.current").read_text())

    def limit_tasks(self, number: int | None) -> None:
        (self.path / "pids.max").write_text("max" if number is None else str(number))

    def memory(self) -> int:
        """Bytes in use."""
        return int((self.path / ("memory.current" if UNIFIED else "memory.usage_in_bytes")).read_text())

    def limit_memory(self, limit: int) -> None:
        (self.path / ("memory.max" if UNIFIED else "memory.limit_in_bytes")).write_text(str(limit))
        with contextlib.suppress(OSError):  # without swap there is nothing to limit
            swap, most = ("memory.swap.max", 0) if UNIFIED else ("memory.memsw.limit_in_bytes", limit)
            (self.path / swap).write_text(str(most))

    def killed_for_memory(self) -> int:
        """Processes that the kernel took."""
        text = (self.path / ("memory.events" if UNIFIED else "memory.oom_control")).read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def limit_processor(self, share: float) -> None:
        """That share of one processor, in slices of 100 ms."""
        quota = str(int(share * 100_000))
        if UNIFIED:
            (self.path / "cpu.max").write_text(f"{quota} 100000")
        else:
            (self.path / "cpu.cfs_quota_us").write_text(quota)

    def throttled(self) -> int:
        """Slices in which it wanted more than it got."""
        text = (self.path / "cpu.stat").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("nr_throttled "))


@contextlib.contextmanager
def group(controller: str, pid: int) -> Iterator[Group]:
    """The process `pid`, in a group of its own for `controller`: "memory", "pids" or "cpu"."""
    parent = ROOT if UNIFIED else ROOT / controller
    path = parent / f"rmbgd-test-{os.getpid()}"
    try:
        if UNIFIED:
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for {controller} can be made here: {error}")
    made = Group(path)
    try:
        made.add(pid)
        yield made
    finally:
        for left in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(left)
        path.rmdir()
