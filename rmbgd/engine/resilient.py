"""An Engine made of engines: whatever happens to one of them, every picture gets its answer.

Does not know processes or devices (lane.py has them), nor which device should be used (a Routing says so), nor what is
to run again after a fault (retry.py). Here the three are put to work. It gives up only when the service is stopping.

Where the choice between GPU and CPU plugs in: `Routing`. It is asked for a lane before each group, so that work moves
within a batch as soon as it decides so, and it is told of every fault and every answer. A lane that is not in use is
the routing's own, which may start it on another thread to prove itself and offer it when it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rmbgd.beat import Beat, NoBeat
from rmbgd.clock import Clock
from rmbgd.engine.base import BatchReport, EngineDescription, Work
from rmbgd.engine.lane import Lane
from rmbgd.engine.retry import Attempts
from rmbgd.errors import EngineFault, EngineLost, EngineMemory


class Stop(Protocol):
    """Says whether the service is stopping. threading.Event is one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Until the service is stopping, or `timeout` seconds have passed; True in the first case."""
        ...


class Routing(Protocol):
    """Which device the pictures go to. Called by the engine's owner only; must not block."""

    def lane(self) -> Lane:
        """To be used now. It need not be ready; it is then waited for."""
        ...

    def limit(self, lane: Lane) -> int:
        """Pictures that may go to `lane` at once, at least 1."""
        ...

    def faulted(self, lane: Lane, fault: EngineFault, pictures: Sequence[int]) -> None: ...

    def answered(self, lane: Lane, pictures: int) -> None: ...

    def close(self) -> None:
        """Give every lane back."""
        ...


class OneLane:
    """The routing where there is one device and nothing to choose."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def lane(self) -> Lane:
        return self._lane

    def limit(self, lane: Lane) -> int:
        return lane.limit

    def faulted(self, lane: Lane, fault: EngineFault, pictures: Sequence[int]) -> None:
        pass

    def answered(self, lane: Lane, pictures: int) -> None:
        pass

    def close(self) -> None:
        self._lane.close()


class ResilientEngine:
    """Raises EngineLost only when `stop` is set while no engine is ready; the pictures are then to be put back.

    tries        faults that a picture alone may cause before it is refused
    start_tries  starts in a row that may fail before start() gives up; None: it never does
    """

    def __init__(
        self,
        routing: Routing,
        *,
        tries: int,
        stop: Stop,
        clock: Clock,
        beat: Beat | None = None,
        start_tries: int | None = None,
    ) -> None:
        self._routing = routing
        self._tries = tries
        self._stop = stop
        self._clock = clock
        self._beat = beat or NoBeat()
        self._start_tries = start_tries

    def start(self) -> EngineDescription:
        """Raises ModelError, EngineLost when stopping or when every allowed try failed."""
        description = self._ready_lane(self._start_tries).description
        assert description is not None
        return description

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        attempts = Attempts(batch, self._tries)
        milliseconds: Counter[str] = Counter()
        while attempts.open:
            lane = self._ready_lane()
            group = attempts.next_group(self._routing.limit(lane))
            if not group:
                break
            try:
                report = lane.segment(group)
            except EngineMemory as fault:
                attempts.too_large(group, str(fault))
                self._routing.faulted(lane, fault, [work.image_id for work in group])
            except EngineFault as fault:
                attempts.failed(group, str(fault))
                self._routing.faulted(lane, fault, [work.image_id for work in group])
            else:
                attempts.answered(report.answers)
                milliseconds.update(report.milliseconds)
                self._routing.answered(lane, len(group))
            self._beat.working()
        return BatchReport(attempts.verdicts(), dict(milliseconds))

    def close(self) -> None:
        self._routing.close()

    def _ready_lane(self, tries: int | None = None) -> Lane:
        """The lane in use, once it has an engine that passed its known picture."""
        failed = 0
        while True:
            lane = self._routing.lane()
            if lane.ready:
                return lane
            self._wait_until(lane.next_start)
            try:
                lane.start()
            except EngineFault as fault:
                failed += 1
                self._routing.faulted(lane, fault, [])
                if tries is not None and failed >= tries:
                    raise
            self._beat.working()

    def _wait_until(self, moment: float) -> None:
        """Raises EngineLost when the service is stopping: there is no engine, and nobody waits for another one."""
        seconds = moment - self._clock.monotonic()
        self._beat.waiting()
        if self._stop.is_set() or (seconds > 0 and self._stop.wait(seconds)):
            raise EngineLost("the service is stopping and no engine is ready")
        self._beat.working()
