"""A sensor behind a thread of its own, so that a driver that hangs costs one reading, not the one who asked.

At most one thread is ever stuck: while a call has not returned, no other is made. Does not know what it reads.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

from rmbgd.health.reading import Problem, Reading, Sensor

CLOSE_TIMEOUT = 1.0  # s for the sensor to let go; a call stuck in a driver is left behind


class DeadlineSensor:
    """`read` and `close` belong to one thread, the asker. The sensor belongs to the thread in here."""

    def __init__(self, sensor: Sensor, timeout: float) -> None:
        self._sensor = sensor
        self._timeout = timeout
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: end
        self._answers: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        self._unanswered = False  # only the asker touches this
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()

    @property
    def source(self) -> str:
        return self._sensor.source

    def read(self) -> Reading:
        """A reading made now, or one whose problem is TIMEOUT. Returns within the timeout."""
        late: tuple[int, ...] = ()
        if self._unanswered:
            try:
                # What it says is old by now, except that driver messages are told once and must not be lost.
                late = self._answers.get_nowait().xids
            except queue.Empty:
                return self._timed_out()
        self._requests.put(True)
        self._unanswered = True
        try:
            reading = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            reading = self._timed_out()
        else:
            self._unanswered = False
        return replace(reading, xids=(*late, *reading.xids)) if late else reading

    def close(self) -> None:
        self._requests.put(False)
        self._thread.join(CLOSE_TIMEOUT)

    @property
    def stuck(self) -> bool:
        """The last call has not returned yet."""
        return self._unanswered

    def _timed_out(self) -> Reading:
        return Reading(self.source, Problem.TIMEOUT, f"no answer within {self._timeout:g} s")

    def _run(self) -> None:
        while self._requests.get():
            try:
                reading = self._sensor.read()
            except Exception as error:  # noqa: BLE001  whatever a driver's binding throws is a bad check, not a crash
                reading = Reading(self.source, Problem.ERROR, f"{type(error).__name__}: {error}")
            self._answers.put(reading)
        self._sensor.close()
