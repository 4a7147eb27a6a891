"""NVIDIA's management library as a sensor, through pynvml, which is injected.

A driver that hangs hangs `read`, hence the deadline in base.py. Never sets anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from rmbgd.engine.sensors.base import Problem, Reading, Throttle

EVENTS_MAXIMUM = 64  # driver messages taken at one reading; a storm of them must not keep the reading from returning

RECOVERY = {
    0: "none",
    1: "gpu_reset",
    2: "reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
"""nvmlDeviceGpuRecoveryAction_t: what the driver wants done before the device is used again."""

RECOVERY_FIELD = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, which older bindings do not name
XID_EVENT = 8  # nvmlEventTypeXidCriticalError

# nvmlClocksEventReason...: the bits that mean trouble; the ordinary power cap and idling do not.
THROTTLE_BITS = {0x20: Throttle.SOFTWARE_THERMAL, 0x40: Throttle.HARDWARE_THERMAL, 0x80: Throttle.POWER_BRAKE}


PROBLEMS = {
    "NVMLError_LibraryNotFound": Problem.NO_SOURCE,
    "NVMLError_LibRmVersionMismatch": Problem.DRIVER_MISMATCH,
    "NVMLError_GpuIsLost": Problem.GPU_IS_LOST,
    "NVMLError_DriverNotLoaded": Problem.NO_DEVICE,
    "NVMLError_NotFound": Problem.NO_DEVICE,
    "NVMLError_InvalidArgument": Problem.NO_DEVICE,
}
"""By the name of the binding's exception."""


class NvmlSensor:
    """One GPU, by UUID where it is known, else by its index in PCI order.

    CUDA counts devices in another order unless CUDA_DEVICE_ORDER=PCI_BUS_ID, and only those that
    CUDA_VISIBLE_DEVICES names: give the UUID that the engine's process reports.
    """

    source = "nvml"

    def __init__(self, nvml: Any, *, index: int = 0, uuid: str | None = None) -> None:
        self._nvml, self._index, self._uuid = nvml, index, uuid
        self._handle: Any = None
        self._events: Any = None
        self._unsupported: set[str] = set()

    def read(self) -> Reading:
        """After any problem the library is left and entered anew next time: a reloaded driver wants that."""
        self._unsupported = set()
        try:
            self._connect()
            measures = {name: self._measure(name, call) for name, call in self._calls().items()}
            memory = self._measure("memory_used", lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle))
            remapped = self._measure("remap_failed", lambda: self._nvml.nvmlDeviceGetRemappedRows(self._handle))
            xids = self._xids()
        except self._nvml.NVMLError as error:
            self.close()
            return self._unwell(error)
        if memory is None:
            self._unsupported.add("memory_total")
        if remapped is None:
            self._unsupported.add("remap_pending")
        return Reading(
            source=self.source,
            unsupported=frozenset(self._unsupported),
            memory_used=memory and int(memory.used),
            memory_total=memory and int(memory.total),
            remap_pending=remapped and bool(remapped[2]),
            remap_failed=remapped and bool(remapped[3]),
            xids=xids,
            **measures,
        )

    def _connect(self) -> None:
        if self._handle is not None:
            return
        nvml = self._nvml
        nvml.nvmlInit()
        try:
            if self._uuid is not None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            else:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
        except nvml.NVMLError:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
            raise
        try:
            self._events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, XID_EVENT, self._events)
        except nvml.NVMLError:  # not every board or container tells; the temperature still counts
            self._events = None

    def close(self) -> None:
        if self._handle is None:
            return
        self._handle = None
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _calls(self) -> dict[str, Callable[[], Any]]:
        nvml, handle = self._nvml, self._handle
        kind = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        return {
            "temperature": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "throttle": lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "ecc_uncorrected": lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, *kind)),
            "recovery": self._recovery,
            "power": lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000.0,
        }

    def _measure(self, name: str, call: Callable[[], Any]) -> Any:
        """The value, or None for what this board or driver does not have. Raises every other error."""
        nvml, value = self._nvml, None
        with contextlib.suppress(
            nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission
        ):
            value = call()
        if value is None:
            self._unsupported.add(name)
        return value

    def _recovery(self) -> str | None:
        (value,) = self._nvml.nvmlDeviceGetFieldValues(self._handle, [RECOVERY_FIELD])
        if value.nvmlReturn != 0:  # older drivers do not know the field
            return None
        number = int(value.value.uiVal)
        return RECOVERY.get(number, f"action_{number}")

    def _xids(self) -> tuple[int, ...]:
        found: list[int] = []
        while self._events is not None and len(found) < EVENTS_MAXIMUM:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError_Timeout:  # none waiting
                break
            if event.eventType == XID_EVENT:
                found.append(int(event.eventData))
        return tuple(found)

    def _unwell(self, error: Exception) -> Reading:
        nvml = self._nvml
        problems = (problem for name, problem in PROBLEMS.items() if isinstance(error, getattr(nvml, name)))
        problem = next(problems, Problem.ERROR)
        recovery = "gpu_reset" if isinstance(error, nvml.NVMLError_ResetRequired) else None
        return Reading(self.source, problem, detail=str(error), recovery=recovery)


def _throttle(bits: int) -> frozenset[Throttle]:
    return frozenset(reason for bit, reason in THROTTLE_BITS.items() if bits & bit)
