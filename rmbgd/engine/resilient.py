"""An Engine made of engines: whatever happens to one of them, every picture gets its answer.

Does not know processes or devices (lane.py has them), nor which device should be used (a Routing says so), nor what is
to run again after a fault (retry.py). Here the three are put to work. It gives up only when the service is stopping.

Where the choice between GPU and CPU plugs in: `Routing` (routing.py). It is asked for a lane before each group, so that
work moves within a batch as soon as it decides so, and it is told of every fault and every answer.
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
    """Which device the pictures go to. Called by the engine's owner only, except where it says otherwise."""

    def lane(self, *, accused: bool = False) -> Lane | None:
        """To be used now. It need not be ready; it is then waited for. None: no device may be used, so pictures wait.

        `accused`: the next picture brought an engine down, alone; it is better tried on another device.
        """
        ...

    def limit(self, lane: Lane) -> int:
        """Pictures that may go to `lane` at once, at least 1."""
        ...

    def began(self, lane: Lane, pictures: Sequence[int]) -> None:
        """These are computed now, until `answered` or `faulted`."""
        ...

    def faulted(self, lane: Lane, fault: EngineFault, pictures: Sequence[int]) -> None: ...

    def answered(self, lane: Lane, pictures: int) -> None: ...

    def description(self) -> EngineDescription | None:
        """What the pictures will be computed by; None while that is not decided. Raises ModelError."""
        ...

    def wait(self, stop: Stop) -> None:
        """After `lane` was None: until that may have changed, or the service is stopping."""
        ...

    def close(self) -> None:
        """Give every lane back."""
        ...


class OneLane:
    """The routing where there is one device and nothing to choose."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def lane(self, *, accused: bool = False) -> Lane | None:  # noqa: ARG002 - there is no other
        return self._lane

    def limit(self, lane: Lane) -> int:
        return lane.limit

    def began(self, lane: Lane, pictures: Sequence[int]) -> None:
        pass

    def faulted(self, lane: Lane, fault: EngineFault, pictures: Sequence[int]) -> None:
        pass

    def answered(self, lane: Lane, pictures: int) -> None:
        pass

    def description(self) -> EngineDescription | None:
        return self._lane.description if self._lane.ready else None

    def wait(self, stop: Stop) -> None:  # noqa: ARG002
        raise AssertionError("there is always a lane; a bug")

    def close(self) -> None:
        self._lane.close()

    @property
    def device(self) -> str:
        """In use. Any thread."""
        return self._lane.device

    def describe(self) -> dict[str, object]:
        """For the health event. Any thread; reads single values only."""
        lane = self._lane
        state = "ready" if lane.ready else "starting" if lane.description is None else "restarting"
        return {"state": state, "device": lane.device, "restarts": lane.restarts, "failures": lane.failures}

    def wake(self) -> None:
        """Nobody waits here."""


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
        failed = 0
        while (description := self._routing.description()) is None:
            lane = self._routing.lane()
            if lane is None or lane.ready:
                self._wait_for_change()
            elif (fault := self._bring_up(lane)) is not None:
                failed += 1
                if self._start_tries is not None and failed >= self._start_tries:
                    raise fault
        return description

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        attempts = Attempts(batch, self._tries)
        milliseconds: Counter[str] = Counter()
        while attempts.open:
            lane = self._ready_lane()
            group = attempts.next_group(self._routing.limit(lane))
            if not group:
                break
            if attempts.accused(group):
                lane = self._ready_lane(accused=True)
            pictures = [work.image_id for work in group]
            self._routing.began(lane, pictures)
            try:
                report = lane.segment(group)
            except EngineMemory as fault:
                attempts.too_large(group, str(fault))
                self._routing.faulted(lane, fault, pictures)
            except EngineFault as fault:
                attempts.failed(group, str(fault))
                self._routing.faulted(lane, fault, pictures)
            else:
                attempts.answered(report.answers)
                milliseconds.update(report.milliseconds)
                self._routing.answered(lane, len(group))
            self._beat.working()
        return BatchReport(attempts.verdicts(), dict(milliseconds))

    def close(self) -> None:
        self._routing.close()

    def _ready_lane(self, *, accused: bool = False) -> Lane:
        """The lane in use, once it has an engine that passed its known picture."""
        while True:
            lane = self._routing.lane(accused=accused)
            if lane is None:
                self._wait_for_change()
            elif lane.ready:
                return lane
            else:
                self._bring_up(lane)

    def _bring_up(self, lane: Lane) -> EngineFault | None:
        """One try, when its time has come."""
        self._wait_until(lane.next_start)
        fault = None
        try:
            lane.start()
        except EngineFault as error:
            self._routing.faulted(lane, error, [])
            fault = error
        self._beat.working()
        return fault

    def _wait_for_change(self) -> None:
        """Raises EngineLost when the service is stopping."""
        self._beat.waiting()
        self._routing.wait(self._stop)
        if self._stop.is_set():
            raise EngineLost("the service is stopping and no device may be used")
        self._beat.working()

    def _wait_until(self, moment: float) -> None:
        """Raises EngineLost when the service is stopping: there is no engine, and nobody waits for another one."""
        seconds = moment - self._clock.monotonic()
        self._beat.waiting()
        if self._stop.is_set() or (seconds > 0 and self._stop.wait(seconds)):
            raise EngineLost("the service is stopping and no engine is ready")
        self._beat.working()
