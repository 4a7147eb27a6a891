"""The host's memory, as the kernel states it."""

from __future__ import annotations

from pathlib import Path

from rmbgd.host import HostMemory, host_memory


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    """In bytes; 0 where nothing can be read."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        8000000 kB\nMemAvailable:    1234 kB\nHugePages_Total:       0\n")

    assert HostMemory(8_000_000 * 1024, 1234 * 1024) == host_memory(str(meminfo))
    assert HostMemory(0, 0) == host_memory(str(tmp_path / "absent"))
    assert host_memory().total >= host_memory().available > 0
