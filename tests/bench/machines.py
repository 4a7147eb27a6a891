"""A machine whose engine process computes alpha by an exact formula, and a module that looks like pynvml."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rmbgd.engine.device_query import VisibleGpus
from rmbgd.engine.wiring import Machine


def machine(gpus: int = 0, **fake: Any) -> Machine:
    """`fake` are options of FakeBackend, which runs in the real child process."""

    def unused(*_: object) -> Any:
        raise AssertionError("measuring needs neither sensors nor a fallback")

    return Machine(
        gpus=lambda: VisibleGpus(gpus, "looked for by a test"),
        sensor=unused,
        fallback=unused,
        factory="rmbgd.testing.engine:create",
        options=lambda _config, device, models, _precision: {"device": device, "models": list(models)} | fake,
    )


class Nvml:
    """One device with 100 bytes in use by others; `booked` bytes by process, as the driver tells or does not."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, used: int = 100, booked: dict[int, int | None] | None = None, well: bool = True) -> None:
        self.used, self.booked, self.well = used, booked or {}, well
        self.shut_down = False

    def nvmlInit(self) -> None:
        if not self.well:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlDeviceGetHandleByIndex(self, _index: int) -> str:
        return "device"

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.booked.items()]
