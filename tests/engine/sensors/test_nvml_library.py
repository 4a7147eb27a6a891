"""The real pynvml over a real shared library that hangs, loses its GPU, or vanishes, as a driver does (F29 to F31)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

PATIENCE = 60.0  # s; nothing waits that long
SOURCE = Path(__file__).with_name("libnvidia_ml.c")
GPU_IS_LOST, MISMATCH, RESET_REQUIRED, UNKNOWN = 15, 18, 16, 999  # nvmlReturn_t

READER = """
import json, sys
from rmbgd.engine.sensors.choose import choose_sensor
sensor, _ = choose_sensor("nvml", 0.3)
for _ in sys.stdin:
    reading = sensor.read()
    answer = {name: getattr(reading, name) for name in ("source", "temperature", "power", "problem")}
    print(json.dumps(answer | {"unsupported": sorted(reading.unsupported)}), flush=True)
"""
"""Reads once for each line, in a process of its own, because a driver's library is loaded once and for all."""


class Driver:
    """A process that reads the sensor when asked, and what its driver's library says: nothing once it has vanished."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said"
        self.say("61")
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "RMBGD_FAKE_NVML": str(self.said)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", READER], env=environment, **pipes)

    def say(self, text: str) -> None:
        fresh = self.said.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(self.said)

    def read(self) -> dict[str, Any]:
        print(file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a driver's library that can be told what to do")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", SOURCE], check=True)
    under_test = Driver(tmp_path)
    yield under_test
    under_test.process.communicate(timeout=10)
    assert under_test.process.returncode == 0


def test_what_the_library_has_is_read_and_what_it_lacks_is_unknown(driver: Driver) -> None:
    """Functions that this library does not have are unsupported, and no zero."""
    found = driver.read()
    assert (found["source"], found["temperature"], found["power"], found["problem"]) == ("nvml", 61.0, 99.5, None)
    assert set(found["unsupported"]) >= {"ecc_uncorrected", "memory_used", "remap_failed", "throttle"}


def test_a_library_that_hangs_costs_the_deadline_and_comes_back(driver: Driver) -> None:
    """Each reading says so within its deadline; when the library answers again, so does the sensor."""
    driver.say("hang")
    assert [driver.read()["problem"] for _ in range(3)] == ["sensor_timeout"] * 3
    driver.say("70")
    deadline = time.monotonic() + PATIENCE
    while (back := driver.read())["problem"] is not None:  # the call that hung has to come back first
        assert time.monotonic() < deadline
    assert back["temperature"] == 70.0


def test_an_error_of_the_library_is_told_and_over_when_it_is_over(driver: Driver) -> None:
    """The GPU falls off the bus, or the driver is replaced under us; afterwards the library is entered anew."""
    problems = {GPU_IS_LOST: "gpu_is_lost", MISMATCH: "driver_mismatch", RESET_REQUIRED: "sensor_error"}
    for code, problem in (problems | {UNKNOWN: "sensor_error"}).items():
        driver.say(f"error {code}")
        lost = driver.read()
        driver.say("55")
        back = driver.read()
        assert (lost["temperature"], lost["problem"]) == (None, problem)
        assert (back["temperature"], back["problem"]) == (55.0, None)


def test_a_driver_that_is_unloaded_and_loaded_again(driver: Driver) -> None:
    """No device while it is away; a reading when it is back, without a new process."""
    driver.said.unlink()
    assert {driver.read()["problem"] for _ in range(3)} == {"no_device"}
    driver.say("50")
    assert driver.read()["temperature"] == 50.0
