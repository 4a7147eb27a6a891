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


class Driver:
    """A process that reads the sensor when asked, and what its driver's library says."""

    def __init__(self, folder: Path) -> None:
        self._said = folder / "said"
        self.say("61")
        environment = {"LD_LIBRARY_PATH": str(folder), "RMBGD_FAKE_NVML": str(self._said)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.sensors.nvml_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            cwd=Path(__file__).parents[3],
        )
        assert self._line()["source"] == "nvml"

    def say(self, text: str) -> None:
        fresh = self._said.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(self._said)

    def vanish(self) -> None:
        self._said.unlink()

    def read(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._line()

    def read_until(self, problem: str | None) -> dict[str, Any]:
        """A call that hung has to come back first, whenever that is."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.read())["problem"] != problem:
            assert time.monotonic() < deadline, f"never {problem}: {found}"
        return found

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a driver's library that can be told what to do")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    under_test = Driver(tmp_path)
    yield under_test
    assert under_test.process.stdin is not None
    assert under_test.process.stdout is not None
    under_test.process.stdin.close()
    assert under_test.process.wait(10) == 0
    under_test.process.stdout.close()


def test_what_the_library_has_is_read_and_what_it_lacks_is_unknown(driver: Driver) -> None:
    """Temperature and power; functions that this library does not have are unsupported, and no zero."""
    found = driver.read()
    assert (found["temperature"], found["power"], found["problem"]) == (61.0, 99.5, None)
    assert set(found["unsupported"]) >= {"ecc_uncorrected", "memory_used", "remap_failed", "throttle"}


def test_a_library_that_hangs_costs_the_deadline_and_comes_back(driver: Driver) -> None:
    """Each reading says so within its deadline; when the library answers again, so does the sensor."""
    driver.say("hang")
    hung = [driver.read() for _ in range(3)]
    driver.say("70")
    back = driver.read_until(None)
    assert [reading["problem"] for reading in hung] == ["sensor_timeout"] * 3
    assert back["temperature"] == 70.0


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (GPU_IS_LOST, "gpu_is_lost"),
        (MISMATCH, "driver_mismatch"),
        (RESET_REQUIRED, "sensor_error"),
        (UNKNOWN, "sensor_error"),
    ],
)
def test_an_error_of_the_library_is_told_and_over_when_it_is_over(driver: Driver, code: int, problem: str) -> None:
    """The GPU falls off the bus, or the driver is replaced under us; afterwards the library is entered anew."""
    driver.say(f"error {code}")
    lost = driver.read()
    driver.say("55")
    back = driver.read()
    assert (lost["temperature"], lost["problem"]) == (None, problem)
    assert (back["temperature"], back["problem"]) == (55.0, None)


def test_a_driver_that_is_unloaded_and_loaded_again(driver: Driver) -> None:
    """No device while it is away; a reading when it is back, without a new process."""
    driver.vanish()
    away = [driver.read() for _ in range(3)]
    driver.say("50")
    assert {reading["problem"] for reading in away} == {"no_device"}
    assert driver.read()["temperature"] == 50.0
