"""Which sensor watches a device, and why that one: NVML, the kernel's thermal zones, or none.

Does not judge what is read: the failover policy does.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from rmbgd.events import Emit
from rmbgd.health.deadline import DeadlineSensor
from rmbgd.health.nvml import NvmlSensor
from rmbgd.health.reading import MEASURES, Problem, Reading, Sensor
from rmbgd.health.thermal import SYSFS, ThermalZoneSensor

Wanted = Literal["auto", "nvml", "sysfs", "none"]


class BlindSensor:
    """For a device that nothing can be read from: every field is unsupported, none is healthy."""

    @property
    def source(self) -> str:
        return "none"

    def read(self) -> Reading:
        return Reading(self.source, unsupported=frozenset(MEASURES))

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Choice:
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


def choose(
    wanted: Wanted,
    timeout: float,
    *,
    index: int = 0,
    uuid: str | None = None,
    sysfs: Path = SYSFS,
    nvml: Callable[[], Any] = import_nvml,
) -> Choice:
    """The sensor for one GPU, after one trial reading. `timeout`: seconds that any reading may take.

    auto takes NVML where it tells a temperature, and where it is there but unwell: the device may be away only for
    now. Where it has no thermometer or knows no device, a thermal zone that names the GPU goes before it (Jetson).
    """
    if wanted == "none":
        return _timed(BlindSensor(), timeout, "chosen in the configuration")
    thermal = ThermalZoneSensor(sysfs)
    if wanted == "sysfs":
        said = f"zones {', '.join(thermal.names)}" if thermal.found else "no thermal zone names the GPU"
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
            return Choice(trial.sensor, "NVML answers with a temperature")
        missing = _what_nvml_lacks(reading)
        useless = reading.problem is Problem.NO_SOURCE
        if useless or (thermal.found and reading.problem in (None, Problem.NO_DEVICE)):
            trial.sensor.close()
            trial = None
    if trial is not None:
        return Choice(trial.sensor, f"{missing}; it is asked again each time")
    if thermal.found:
        return _timed(thermal, timeout, f"{missing}; zones {', '.join(thermal.names)} name the GPU")
    return _timed(BlindSensor(), timeout, f"{missing}, and no thermal zone names the GPU")


def _timed(sensor: Sensor, timeout: float, why: str) -> Choice:
    return Choice(DeadlineSensor(sensor, timeout), why)


def _what_nvml_lacks(reading: Reading) -> str:
    if reading.problem is None:
        return "NVML answers without a temperature"
    return f"NVML does not answer ({reading.problem}: {reading.detail})"


class ToldSensor:
    """Says what stands in a file, for tests of the whole service: JSON with fields of a Reading, or "hang": then the
    reading does not return until the file says something else. No file: the source has vanished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()

    @property
    def source(self) -> str:
        return "told"

    def read(self) -> Reading:
        while True:
            try:
                text = self._path.read_text()
            except FileNotFoundError:
                return Reading(self.source, Problem.NO_SOURCE, f"{self._path} is not there")
            if text != "hang":
                break
            self._closed.wait(0.02)  # stands for a call into a driver
        told = json.loads(text)
        problem = Problem(told.pop("problem")) if "problem" in told else None
        missing = frozenset(MEASURES) - told.keys() if problem is None else frozenset()
        return Reading(self.source, problem, unsupported=missing, **told)

    def close(self) -> None:
        """Nothing is held."""


class Never(Enum):
    """A script entry of FakeSensor: the call does not return until `release` or `close`."""

    RETURNS = "never returns"


class FakeSensor:
    """Replays a script: readings, exceptions to raise, Never.RETURNS. The last entry is repeated for ever."""

    def __init__(self, script: Iterable[Reading | Exception | Never], source: str = "fake") -> None:
        self._script = list(script)
        self._source = source
        self._released = threading.Event()
        self.reads = 0  # only the reading thread counts up
        self.closed = False

    @property
    def source(self) -> str:
        return self._source

    def read(self) -> Reading:
        self.reads += 1
        entry = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(entry, Exception):
            raise entry
        if isinstance(entry, Never):
            self._released.wait()
            return Reading(self._source, Problem.ERROR, "came back")
        return entry

    def release(self) -> None:
        """Let every hanging call return."""
        self._released.set()

    def close(self) -> None:
        self.closed = True
        self._released.set()
