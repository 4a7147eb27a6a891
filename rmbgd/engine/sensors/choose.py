"""Which sensor watches a device, and why that one: NVML, the kernel's thermal zones, or none.

Does not judge what is read: the failover policy does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from rmbgd.engine.sensors.base import MEASURES, DeadlineSensor, Problem, Reading, Sensor
from rmbgd.engine.sensors.nvml import NvmlSensor

SYSFS = Path("/sys")
ASLEEP_BELOW = -200_000  # m°C: Orin's zone of a sleeping GPU reads -256 °C, or refuses with EAGAIN
import_nvml = partial(import_module, "pynvml")  # when first needed: no machine without a GPU pays for it
OTHER_MEASURES = MEASURES - {"temperature"}


class ThermalZoneSensor:
    """The kernel's thermal zones, for boards without NVML, such as Jetson: the hottest zone that names the GPU; while
    the GPU sleeps, the hottest of the whole chip ("tj").

    A sleeping GPU has no temperature of its own. Its chip's junction temperature is never below the GPU's, so it is a
    safe answer, and it lets a board that rests after a trip be seen to cool.
    """

    source = "sysfs"

    def __init__(self, root: Path = SYSFS) -> None:
        self._gpu, self._chip = _zones(root, "gpu"), _zones(root, "tj")
        self.names = ", ".join(zone.name for zone in self._gpu)  # of the zones in use, for people; empty: there is none

    def read(self) -> Reading:
        if not self._gpu:
            return Reading(self.source, Problem.NO_SOURCE, "no thermal zone names the GPU", OTHER_MEASURES)
        temperature, detail = _hottest(self._gpu), ""
        if temperature is None:
            temperature = _hottest(self._chip)
            detail = "no zone can be read" if temperature is None else "the GPU sleeps; temperature of the chip"
        return Reading(self.source, detail=detail, unsupported=OTHER_MEASURES, temperature=temperature)

    def close(self) -> None:
        """Nothing is held between readings."""


def _zones(root: Path, word: str) -> list[Path]:
    """Folders of the thermal zones whose type holds `word`, whatever its case."""
    found = []
    for zone in sorted(root.glob("class/thermal/thermal_zone*")):
        with suppress(OSError):
            if word in (zone / "type").read_text(encoding="ascii", errors="replace").lower():
                found.append(zone)
    return found


def _hottest(zones: list[Path]) -> float | None:
    """°C of the hottest zone that answers; None when none does."""
    values = []
    for zone in zones:
        with suppress(OSError, ValueError):
            values.append(int((zone / "temp").read_text(encoding="ascii")))
    return max((value / 1000.0 for value in values if value > ASLEEP_BELOW), default=None)


class BlindSensor:
    """For a device that nothing can be read from: every field is unsupported, none is healthy."""

    source = "none"

    def read(self) -> Reading:
        return Reading(self.source, unsupported=MEASURES)

    def close(self) -> None:
        """Nothing is held."""


def choose_sensor(
    wanted: Literal["auto", "nvml", "sysfs", "none"],
    timeout: float,
    *,
    index: int = 0,
    sysfs: Path = SYSFS,
    nvml: Callable[[], Any] = import_nvml,
) -> tuple[DeadlineSensor, str]:
    """The sensor for the GPU that CUDA counts as `index`, and why that one. `timeout`: seconds that a reading may take.

    auto takes NVML where a trial reading tells a temperature, and where it is there but unwell: the device may be away
    only for now. Where it has no thermometer or knows no device, a thermal zone that names the GPU goes before it
    (Jetson).
    """
    configured = "chosen in the configuration"
    if wanted == "none":
        return DeadlineSensor(BlindSensor(), timeout), configured
    thermal = ThermalZoneSensor(sysfs)
    if wanted == "sysfs":
        said = f"zones {thermal.names}" if thermal.names else "no thermal zone names the GPU"
        return DeadlineSensor(thermal, timeout), f"{configured}; {said}"
    try:
        trial = DeadlineSensor(NvmlSensor(nvml(), index=index), timeout)
    except ImportError as error:
        missing = f"pynvml cannot be imported ({error})"
    else:
        if wanted == "nvml":
            return trial, configured
        reading = trial.read()
        if reading.temperature is not None:
            return trial, "NVML answers with a temperature"
        missing = "NVML answers without a temperature"
        if reading.problem is not None:
            missing = f"NVML does not answer ({reading.problem}: {reading.detail})"
        replaceable = bool(thermal.names) and reading.problem in (None, Problem.NO_DEVICE)
        if reading.problem is not Problem.NO_SOURCE and not replaceable:
            return trial, f"{missing}; it is asked again each time"
        trial.close()
    fallback: Sensor = thermal if thermal.names else BlindSensor()
    found = f"; zones {thermal.names} name the GPU" if thermal.names else ", and no thermal zone names the GPU"
    return DeadlineSensor(fallback, timeout), missing + found
