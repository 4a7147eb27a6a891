"""A scripted stand-in for the module pynvml: the calls that rmbgd makes, answered from a table that tests change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """Attributes are answers; an answer that is an exception is raised. `calls` lists what was asked."""

    NVML_TEMPERATURE_GPU, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.temperature: Any = 61
        self.throttle = self.ecc = 0
        self.remapped: Any = (0, 0, 0, 0)
        self.memory = SimpleNamespace(used=1 << 30, total=16 << 30, free=15 << 30)
        self.recovery = [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=0))]
        self.power = 123_400
        self.init = self.register = None
        self.handle, self.events = "handle", "events"
        self.xids: Any = []
        self.calls: list[tuple[Any, ...]] = []
        self.depth = 0  # nvmlInit minus nvmlShutdown

    def answer(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if isinstance(value := getattr(self, name), Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        self.answer("init")
        self.depth += 1

    def nvmlShutdown(self) -> None:
        self.depth -= 1

    def nvmlEventSetFree(self, events: Any) -> None:
        assert events == self.events

    def nvmlEventSetWait_v2(self, events: Any, timeout: int) -> Any:
        assert timeout == 0
        if not self.answer("xids"):
            raise self.NVMLError_Timeout("timeout")
        return SimpleNamespace(eventType=8, eventData=self.xids.pop(0))


for _call, _answer in {
    "nvmlDeviceGetHandleByIndex": "handle", "nvmlDeviceGetHandleByUUID": "handle", "nvmlEventSetCreate": "events",
    "nvmlDeviceRegisterEvents": "register", "nvmlDeviceGetTemperature": "temperature",
    "nvmlDeviceGetCurrentClocksThrottleReasons": "throttle", "nvmlDeviceGetTotalEccErrors": "ecc",
    "nvmlDeviceGetRemappedRows": "remapped", "nvmlDeviceGetMemoryInfo": "memory",
    "nvmlDeviceGetFieldValues": "recovery", "nvmlDeviceGetPowerUsage": "power",
}.items():  # fmt: skip
    setattr(FakeNvml, _call, lambda self, *arguments, answer=_answer: self.answer(answer, *arguments))

for _name in (
    "NotSupported", "FunctionNotFound", "NoPermission", "LibraryNotFound", "LibRmVersionMismatch", "GpuIsLost",
    "ResetRequired", "DriverNotLoaded", "NotFound", "InvalidArgument", "Timeout", "Unknown",
):  # fmt: skip
    setattr(FakeNvml, f"NVMLError_{_name}", type(f"NVMLError_{_name}", (FakeNvml.NVMLError,), {}))
