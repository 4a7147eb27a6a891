"""Sensors that read what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from rmbgd.engine.sensors.base import MEASURES, Problem, Reading


class ToldSensor:
    """Reads what a file holds, for tests of the whole service: JSON with fields of a Reading, or "hang": then the
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
