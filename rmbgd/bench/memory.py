"""What an engine process takes: memory, resident and on its device as NVML sees it, and processor time.

Judges nothing. NVML is injected (pynvml); a machine without it simply has no such figure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self


def resident(pid: int) -> dict[str, int]:
    """{"rss", "rss_peak"} of a process in bytes; empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return {"rss": found.get("VmRSS", 0), "rss_peak": found.get("VmHWM", 0)}


def processor_seconds(pid: int) -> float:
    """Of all its threads since it began; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class DeviceMemory:
    """One device's memory. `base` is what was in use before the engine started: others' and the driver's.

    Used as a context manager. With `nvml` None, or a driver that does not answer, every reading is None.
    """

    def __init__(self, nvml: Any, *, index: int = 0, uuid: str | None = None) -> None:
        self._nvml = nvml
        self._index = index
        self._uuid = uuid
        self._handle: Any = None
        self.base: int | None = None

    def __enter__(self) -> Self:
        nvml = self._nvml
        if nvml is None:
            return self
        try:
            nvml.nvmlInit()
            if self._uuid is not None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            else:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            self.base = int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except nvml.NVMLError:
            self._handle = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()

    def of(self, pid: int) -> int | None:
        """Bytes that the process holds: as the driver books them, else what the device's total rose since `base`."""
        if self._handle is None or self.base is None:
            return None
        nvml = self._nvml
        try:
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == pid and process.usedGpuMemory:
                    return int(process.usedGpuMemory)
            return max(0, int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self.base)
        except nvml.NVMLError:
            return None


def nvml_or_none() -> Any:
    """The module pynvml where it is installed; whether a driver is there shows when it is used."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml
