"""Sensors that read what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path

from rmbgd.engine.sensors.base import MEASURES, Problem, Reading


class ToldSensor:
    """Reads what a file holds, for tests of the whole service: JSON with fields of a Reading, or "hang": then the
    reading does not return until the file says something else. No file: the source has vanished."""

    source = "told"

    def __init__(self, path: Path) -> None:
        self._path, self._never = path, threading.Event()

    def read(self) -> Reading:
        try:
            while (text := self._path.read_text()) == "hang":
                self._never.wait(0.02)  # stands for a call into a driver
        except FileNotFoundError:
            return Reading(self.source, Problem.NO_SOURCE, f"{self._path} is not there")
        told = json.loads(text)
        problem = Problem(told.pop("problem")) if "problem" in told else None
        missing = MEASURES.difference(told) if problem is None else frozenset()
        return Reading(self.source, problem, unsupported=missing, **told)

    def close(self) -> None:
        """Nothing is held."""


NEVER_RETURNS = Reading("never")
"""A script entry of FakeSensor: the call does not return until `release` or `close`."""


class FakeSensor:
    """Replays a script: readings, exceptions to raise, NEVER_RETURNS. The last entry is repeated for ever."""

    source = "fake"

    def __init__(self, script: Iterable[Reading | Exception]) -> None:
        self._script = list(script)
        self._released = threading.Event()
        self.reads = 0  # only the reading thread counts up
        self.closed = False

    def read(self) -> Reading:
        self.reads += 1
        entry = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(entry, Exception):
            raise entry
        if entry is NEVER_RETURNS:
            self._released.wait()
        return entry

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self.closed = True
        self._released.set()
