"""Which sensor watches a device, and why that one: NVML, the kernel's thermal zones, or none.

Does not judge what is read: the failover policy does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmbgd.engine.sensors.base import MEASURES, DeadlineSensor, Problem, Reading, Sensor
from rmbgd.engine.sensors.nvml import NvmlSensor
from rmbgd.events import Emit

# --- The kernel's thermal zones as a sensor: boards without NVML, such as Jetson.


SYSFS = Path("/sys")
ASLEEP_BELOW = -200_000  # m°C: Orin's zone of a sleeping GPU reads -256 °C, or refuses with EAGAIN
OTHER_MEASURES = frozenset(MEASURES) - {"temperature"}


def zones(root: Path, word: str) -> list[Path]:
    """Folders of the thermal zones whose type holds `word`, whatever its case."""
    found = []
    for zone in sorted(root.glob("class/thermal/thermal_zone*")):
        try:
            name = (zone / "type").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        if word in name.lower():
            found.append(zone)
    return found


class ThermalZoneSensor:
    """The hottest zone that names the GPU; while the GPU sleeps, the hottest of the whole chip ("tj").

    A sleeping GPU has no temperature of its own. Its chip's junction temperature is never below the GPU's, so it is a
    safe answer, and it lets a board that rests after a trip be seen to cool.
    """

    source = "sysfs"

    def __init__(self, root: Path = SYSFS) -> None:
        self._gpu, self._chip = zones(root, "gpu"), zones(root, "tj")
        self.names = ", ".join(zone.name for zone in self._gpu)  # of the zones in use, for people; empty: there is none

    def read(self) -> Reading:
        if not self._gpu:
            return Reading(self.source, Problem.NO_SOURCE, "no thermal zone names the GPU", OTHER_MEASURES)
        temperature = _hottest(self._gpu)
        if temperature is not None:
            return Reading(self.source, unsupported=OTHER_MEASURES, temperature=temperature)
        temperature = _hottest(self._chip)
        detail = "the GPU sleeps; temperature of the chip" if temperature is not None else "no zone can be read"
        return Reading(self.source, detail=detail, unsupported=OTHER_MEASURES, temperature=temperature)

    def close(self) -> None:
        """Nothing is held between readings."""


def _hottest(zones: list[Path]) -> float | None:
    """°C of the hottest zone that answers; None when none does."""
    values = []
    for zone in zones:
        try:
            millidegrees = int((zone / "temp").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if millidegrees > ASLEEP_BELOW:
            values.append(millidegrees / 1000.0)
    return max(values, default=None)


# --- the choice


Wanted = Literal["auto", "nvml", "sysfs", "none"]


class BlindSensor:
    """For a device that nothing can be read from: every field is unsupported, none is healthy."""

    source = "none"

    def read(self) -> Reading:
        return Reading(self.source, unsupported=frozenset(MEASURES))

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class ChosenSensor:
    """A sensor that keeps its deadline, and the sentence that says why it was chosen."""

    sensor: DeadlineSensor
    why: str

    @property
    def source(self) -> str:
        return self.sensor.source

    def announce(self, emit: Emit, device: str) -> None:
        """Say once where the health of `device` is read from."""
        emit("engine.sensor", device=device, source=self.source, why=self.why)


def import_nvml() -> Any:
    """pynvml, imported when first needed: no machine without a GPU pays for it."""
    return importlib.import_module("pynvml")


def choose_sensor(
    wanted: Wanted,
    timeout: float,
    *,
    index: int = 0,
    uuid: str | None = None,
    sysfs: Path = SYSFS,
    nvml: Callable[[], Any] = import_nvml,
) -> ChosenSensor:
    """The sensor for one GPU, after one trial reading. `timeout`: seconds that any reading may take.

    auto takes NVML where it tells a temperature, and where it is there but unwell: the device may be away only for
    now. Where it has no thermometer or knows no device, a thermal zone that names the GPU goes before it (Jetson).
    """
    if wanted == "none":
        return _timed(BlindSensor(), timeout, "chosen in the configuration")
    thermal = ThermalZoneSensor(sysfs)
    if wanted == "sysfs":
        said = f"zones {thermal.names}" if thermal.names else "no thermal zone names the GPU"
        return _timed(thermal, timeout, f"chosen in the configuration; {said}")
    try:
        library = nvml()
    except ImportError as error:
        trial, missing = None, f"pynvml cannot be imported ({error})"
    else:
        trial = _timed(NvmlSensor(library, index=index, uuid=uuid), timeout, "chosen in the configuration")
        if wanted == "nvml":
            return trial
        reading = trial.sensor.read()
        if reading.temperature is not None:
            return ChosenSensor(trial.sensor, "NVML answers with a temperature")
        missing = "NVML answers without a temperature"
        if reading.problem is not None:
            missing = f"NVML does not answer ({reading.problem}: {reading.detail})"
        useless = reading.problem is Problem.NO_SOURCE
        if useless or (thermal.names and reading.problem in (None, Problem.NO_DEVICE)):
            trial.sensor.close()
            trial = None
    if trial is not None:
        return ChosenSensor(trial.sensor, f"{missing}; it is asked again each time")
    if thermal.names:
        return _timed(thermal, timeout, f"{missing}; zones {thermal.names} name the GPU")
    return _timed(BlindSensor(), timeout, f"{missing}, and no thermal zone names the GPU")


def _timed(sensor: Sensor, timeout: float, why: str) -> ChosenSensor:
    return ChosenSensor(DeadlineSensor(sensor, timeout), why)
