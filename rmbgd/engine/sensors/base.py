"""What a sensor says of one device, and the seam to whatever says it.

A leaf: knows no driver, no thread and no threshold. What was not read is None, never zero, so that nobody takes a
missing number for a healthy one.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Protocol


class Problem(StrEnum):
    """Why a reading says nothing. The last three mean that the device itself is out of reach."""

    TIMEOUT = "sensor_timeout"
    ERROR = "sensor_error"
    NO_SOURCE = "no_source"  # the driver's library is missing, as in containers without it; the device may be well
    NO_DEVICE = "no_device"
    GPU_IS_LOST = "gpu_is_lost"
    DRIVER_MISMATCH = "driver_mismatch"


OUT_OF_REACH = frozenset({Problem.NO_DEVICE, Problem.GPU_IS_LOST, Problem.DRIVER_MISMATCH})


class Throttle(StrEnum):
    """Why the device runs slower than it could. Its ordinary power limit is no fault and is not listed."""

    HARDWARE_THERMAL = "hardware_thermal"
    SOFTWARE_THERMAL = "software_thermal"
    POWER_BRAKE = "power_brake"


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at one device.

    source             "nvml", "sysfs", "none", ...
    problem            None when the source answered
    unsupported        names of the fields below that this source or board can never give; any other None is a failure
    temperature        °C
    throttle           empty when it runs freely
    ecc_uncorrected    uncorrectable memory errors since the driver was loaded
    remap_failed       the board has no spare memory rows left: it is to be replaced
    remap_pending      a row is replaced at the next reset; harmless until then
    memory_used        bytes
    memory_total       bytes
    recovery           what the driver asks for: "none", or e.g. "gpu_reset", "reboot"
    power              W
    xids               driver messages since the last reading
    """

    source: str
    problem: Problem | None = None
    detail: str = ""
    unsupported: frozenset[str] = frozenset()
    temperature: float | None = None
    throttle: frozenset[Throttle] | None = None
    ecc_uncorrected: int | None = None
    remap_failed: bool | None = None
    remap_pending: bool | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    recovery: str | None = None
    power: float | None = None
    xids: tuple[int, ...] = ()

    def lacks(self, name: str) -> bool:
        """Whether the source should have given `name` and did not."""
        return getattr(self, name) is None and name not in self.unsupported


MEASURES = frozenset(field.name for field in fields(Reading)) - {"source", "problem", "detail", "unsupported", "xids"}
"""The fields of a reading that a source may or may not support."""


class Sensor(Protocol):
    """Reads one device. Owned by one thread; may hang as long as its driver does."""

    @property
    def source(self) -> str: ...

    def read(self) -> Reading:
        """Never raises for a device that is unwell: the reading's `problem` says so."""
        ...

    def close(self) -> None: ...


CLOSE_TIMEOUT = 1.0  # s for the sensor to let go; a call stuck in a driver is left behind


class DeadlineSensor:
    """A sensor behind a thread of its own: a driver that hangs costs one reading, not the one who asked.

    `read` and `close` belong to one thread, the asker. The sensor belongs to the thread in here.
    """

    def __init__(self, sensor: Sensor, timeout: float) -> None:
        self.source, self._sensor, self._timeout = sensor.source, sensor, timeout
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: end
        self._answers: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        self._unanswered = False  # only the asker touches this
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()

    def read(self) -> Reading:
        """A reading made now, or one whose problem is TIMEOUT. Returns within the timeout."""
        late: tuple[int, ...] = ()
        try:
            if self._unanswered:
                # What it says is old by now, except that driver messages come once and must not be lost.
                late = self._answers.get_nowait().xids
            self._requests.put(True)
            self._unanswered = True
            reading = self._answers.get(timeout=self._timeout)
            self._unanswered = False
        except queue.Empty:
            reading = Reading(self.source, Problem.TIMEOUT, f"no answer within {self._timeout:g} s")
        return replace(reading, xids=(*late, *reading.xids))

    def close(self) -> None:
        self._requests.put(False)
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while self._requests.get():
            try:
                reading = self._sensor.read()
            except Exception as error:  # noqa: BLE001  whatever a driver's binding throws is a bad check, not a crash
                reading = Reading(self.source, Problem.ERROR, f"{type(error).__name__}: {error}")
            self._answers.put(reading)
        self._sensor.close()
