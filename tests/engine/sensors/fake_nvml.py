"""A scripted stand-in for the module pynvml: the calls that rmbgd makes, answered from a table that tests change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """Attributes are answers; an answer that is an exception is raised. `calls` lists what was asked."""

    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.temperature: Any = 61
        self.throttle: Any = 0
        self.ecc: Any = 0
        self.remapped: Any = (0, 0, 0, 0)
        self.memory: Any = SimpleNamespace(used=1 << 30, total=16 << 30, free=15 << 30)
        self.recovery: Any = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=0))
        self.power: Any = 123_400
        self.init: Any = None
        self.handle: Any = "handle"
        self.register: Any = None
        self.xids: list[Any] = []
        self.calls: list[str] = []
        self.depth = 0  # nvmlInit minus nvmlShutdown

    def _answer(self, call: str, value: Any) -> Any:
        self.calls.append(call)
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        self._answer("init", self.init)
        self.depth += 1

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")
        self.depth -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._answer(f"index {index}", self.handle)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return self._answer(f"uuid {uuid}", self.handle)

    def nvmlEventSetCreate(self) -> Any:
        return self._answer("events", "events")

    def nvmlEventSetFree(self, events: Any) -> None:
        self.calls.append("free events")

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: int, events: Any) -> None:
        self._answer("register", self.register)

    def nvmlEventSetWait_v2(self, events: Any, timeout: int) -> Any:
        assert timeout == 0
        if not self.xids:
            raise self.NVMLError_Timeout("timeout")
        entry = self.xids.pop(0)
        if isinstance(entry, Exception):
            raise entry
        return SimpleNamespace(eventType=8, eventData=entry)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> Any:
        return self._answer("temperature", self.temperature)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> Any:
        return self._answer("throttle", self.throttle)

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> Any:
        return self._answer("ecc", self.ecc)

    def nvmlDeviceGetRemappedRows(self, handle: Any) -> Any:
        return self._answer("remapped", self.remapped)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return self._answer("memory", self.memory)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> Any:
        assert fields == [230]
        return [self._answer("recovery", self.recovery)]

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> Any:
        return self._answer("power", self.power)


for _name in (
    "NotSupported", "FunctionNotFound", "NoPermission", "LibraryNotFound", "LibRmVersionMismatch", "GpuIsLost",
    "ResetRequired", "DriverNotLoaded", "NotFound", "InvalidArgument", "Timeout", "Unknown",
):  # fmt: skip
    setattr(FakeNvml, f"NVMLError_{_name}", type(f"NVMLError_{_name}", (FakeNvml.NVMLError,), {}))
