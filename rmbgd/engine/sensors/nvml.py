"""NVIDIA's management library as a sensor, through pynvml, which is injected.

A driver that hangs hangs `read`, hence the deadline in base.py. Never sets anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rmbgd.engine.sensors.base import MEASURES, Problem, Reading, Throttle
from rmbgd.engine.visible_devices import VARIABLE, Card, visible

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
    """The GPU that CUDA counts as `index`."""

    source = "nvml"

    def __init__(self, nvml: Any, *, index: int = 0) -> None:
        self._nvml, self._index = nvml, index
        self._handle: Any = None
        self._events: Any = None
        self._entered = False  # the library is to be left again

    def read(self) -> Reading:
        """After any problem the library is left and entered anew next time: a reloaded driver wants that."""
        nvml = self._nvml
        try:
            self._connect()
            asked = {name: self._measure(call) for name, call in self._calls().items()}
            found = {name: value for name, value in asked.items() if value is not None}
            if memory := self._measure(lambda: nvml.nvmlDeviceGetMemoryInfo(self._handle)):
                found |= {"memory_used": int(memory.used), "memory_total": int(memory.total)}
            if remapped := self._measure(lambda: nvml.nvmlDeviceGetRemappedRows(self._handle)):
                found |= {"remap_pending": bool(remapped[2]), "remap_failed": bool(remapped[3])}
            xids = self._xids()
        except nvml.NVMLError as error:
            self.close()
            problems = (problem for name, problem in PROBLEMS.items() if isinstance(error, getattr(nvml, name)))
            recovery = "gpu_reset" if isinstance(error, nvml.NVMLError_ResetRequired) else None
            return Reading(self.source, next(problems, Problem.ERROR), detail=str(error), recovery=recovery)
        return Reading(self.source, unsupported=MEASURES.difference(found), xids=xids, **found)

    def close(self) -> None:
        if not self._entered:
            return
        events, self._events, self._entered = self._events, None, False
        if events is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _connect(self) -> None:
        if self._entered:
            return
        nvml = self._nvml
        nvml.nvmlInit()
        self._entered = True
        self._handle = handle_of(nvml, self._index)
        try:
            self._events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, XID_EVENT, self._events)
        except nvml.NVMLError:  # not every board or container tells; the temperature still counts
            self._events = None

    def _calls(self) -> dict[str, Callable[[], Any]]:
        nvml, handle = self._nvml, self._handle
        kind = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        return {
            "temperature": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "throttle": lambda: _throttle(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "ecc_uncorrected": lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, *kind)),
            "recovery": lambda: _recovery(nvml.nvmlDeviceGetFieldValues(handle, [RECOVERY_FIELD])[0]),
            "power": lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000.0,
        }

    def _measure(self, call: Callable[[], Any]) -> Any:
        """The value, or None for what this board or driver does not have. Raises every other error."""
        nvml = self._nvml
        with suppress(nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
            return call()
        return None

    def _xids(self) -> tuple[int, ...]:
        found: list[int] = []
        with suppress(self._nvml.NVMLError_Timeout):  # none waiting
            while self._events is not None and len(found) < EVENTS_MAXIMUM:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                if event.eventType == XID_EVENT:
                    found.append(int(event.eventData))
        return tuple(found)


def handle_of(nvml: Any, index: int) -> Any:
    """NVML's handle of the card that CUDA counts as `index`. Raises NVMLError: there is none, or it is lost.

    Both count in PCI order, since the engine's process is started so; CUDA_VISIBLE_DEVICES hides and reorders for CUDA
    alone. For a MIG instance it is its card's: an instance has no temperature.
    """
    if (variable := os.environ.get(VARIABLE)) is not None:
        shown = visible(variable, cards(nvml))
        if index >= len(shown):
            raise nvml.NVMLError_NotFound
        index = shown[index]
    return nvml.nvmlDeviceGetHandleByIndex(index)


def cards(nvml: Any) -> list[Card]:
    """Every card, in PCI order. One that is lost counts, too."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        uuid, instances = "", []
        with suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
            for instance in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with suppress(nvml.NVMLError):  # NVML leaves gaps in the numbers
                    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, instance)
                    instances.append(nvml.nvmlDeviceGetUUID(part))
        found.append(Card(uuid, tuple(instances)))
    return found


def _throttle(bits: int) -> frozenset[Throttle]:
    return frozenset(reason for bit, reason in THROTTLE_BITS.items() if bits & bit)


def _recovery(field: Any) -> str | None:
    if field.nvmlReturn != 0:  # older drivers do not know the field
        return None
    number = int(field.value.uiVal)
    return RECOVERY.get(number, f"action_{number}")
