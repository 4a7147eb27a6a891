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

    def _write(self, unified: str, legacy: str, value: object) -> None:
        (self.path / (unified if UNIFIED else legacy)).write_text(str(value))

    def _count(self, unified: str, legacy: str, name: str) -> int:
        text = (self.path / (unified if UNIFIED else legacy)).read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def add(self, pid: int) -> None:
        self._write("cgroup.procs", "cgroup.procs", pid)

    def limit_tasks(self, number: int | None) -> None:
        self._write("pids.max", "pids.max", "max" if number is None else number)

    def memory(self) -> int:
        """Bytes in use."""
        return int((self.path / ("memory.current" if UNIFIED else "memory.usage_in_bytes")).read_text())

    def limit_memory(self, limit: int) -> None:
        self._write("memory.max", "memory.limit_in_bytes", limit)
        with contextlib.suppress(OSError):  # without swap there is nothing to limit
            self._write("memory.swap.max", "memory.memsw.limit_in_bytes", 0 if UNIFIED else limit)

    def killed_for_memory(self) -> int:
        """Processes that the kernel took."""
        return self._count("memory.events", "memory.oom_control", "oom_kill")

    def limit_processor(self, share: float) -> None:
        """That share of one processor, in slices of 100 ms."""
        quota = int(share * 100_000)
        self._write("cpu.max", "cpu.cfs_quota_us", f"{quota} 100000" if UNIFIED else quota)

    def throttled(self) -> int:
        """Slices in which it wanted more than it got."""
        return self._count("cpu.stat", "cpu.stat", "nr_throttled")


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
