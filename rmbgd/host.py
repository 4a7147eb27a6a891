"""Reads how much memory this host has, and how much of it is available (/proc/meminfo, proc(5))."""

from __future__ import annotations

from dataclasses import dataclass

MEMINFO = "/proc/meminfo"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes. `available` can be had without swapping. 0 where the kernel does not say."""

    total: int
    available: int


def host_memory(path: str = MEMINFO) -> HostMemory:
    """As it is now. Never raises: what cannot be read counts as 0."""
    kibi: dict[str, int] = {}
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if value.rstrip().endswith("kB"):
                    kibi[name] = int(value.split()[0])
    except OSError:
        pass
    return HostMemory(kibi.get("MemTotal", 0) << 10, kibi.get("MemAvailable", 0) << 10)
