"""An Engine made of engines: whatever happens to one of them, every image gets its answer.

Does not know processes or devices (lane.py has them), nor which device should be used (a Routing says so), nor what is
to run again after a fault (retry.py). Here the three are put to work. It gives up only when the service is stopping.

Where the choice between GPU and CPU plugs in: `Routing` (routing.py). It is asked for a lane before each group, so that
work moves within a batch as soon as it decides so, and it is told of every fault and every answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rmbgd.clock import Clock
from rmbgd.engine.lane import Lane
from rmbgd.engine.retry import Attempts
from rmbgd.engine.types import BatchReport, EngineDescription, Work
from rmbgd.errors import EngineFault, EngineLost, EngineMemory
from rmbgd.heartbeat import Heartbeat, NullHeartbeat


class Stop(Protocol):
    """Says whether the service is stopping. threading.Event is one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Until the service is stopping, or `timeout` seconds have passed; True in the first case."""
        ...


class Stopped(EngineLost):
    """The service is stopping, and nobody waits for an engine any more."""


class Routing(Protocol):
    """Which device the images go to. Called by the engine's owner only, except where it says otherwise."""

    def lane(self, *, accused: bool = False) -> Lane | None:
        """To be used now, by the caller alone until the next question or `release`. It need not be ready; it is then
        waited for. None: no device may be used, so images wait.

        `accused`: the next images met a fault; they are better tried where the least is lost by another one.
        """
        ...

    def release(self) -> None:
        """Nothing is computed for now: others may use the lane."""
        ...

    @property
    def has_fallback(self) -> bool:
        """Whether there is a device of last resort besides those that images go to first."""
        ...

    def is_fallback(self, lane: Lane) -> bool: ...

    def limit(self, lane: Lane) -> int:
        """Images that may go to `lane` at once, at least 1."""
        ...

    def began(self, lane: Lane, images: Sequence[int]) -> None:
        """These are computed now, until `answered` or `faulted`."""
        ...

    def faulted(self, lane: Lane, fault: EngineFault, images: Sequence[int]) -> bool:
        """Whether the images may have caused it."""
        ...

    def answered(self, lane: Lane, images: int) -> None: ...

    def to_start(self) -> Lane | None:
        """While there is no description: a lane to be started for it, or None where there is nothing to do but wait."""
        ...

    def came_up(self, lane: Lane, fault: EngineFault | None) -> None:
        """What became of a start: `fault` is None when it is ready."""
        ...

    def description(self) -> EngineDescription | None:
        """What the images will be computed by; None while that is not decided. Raises ModelError."""
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

    def release(self) -> None:
        pass

    @property
    def has_fallback(self) -> bool:
        return False

    def is_fallback(self, lane: Lane) -> bool:  # noqa: ARG002
        return False

    def limit(self, lane: Lane) -> int:
        return lane.limit

    def began(self, lane: Lane, images: Sequence[int]) -> None:
        pass

    def faulted(self, lane: Lane, fault: EngineFault, images: Sequence[int]) -> bool:  # noqa: ARG002
        return True

    def answered(self, lane: Lane, images: int) -> None:
        pass

    def to_start(self) -> Lane | None:
        return self._lane

    def came_up(self, lane: Lane, fault: EngineFault | None) -> None:
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
    """Raises Stopped only when `stop` is set while no engine is ready; the images are then to be put back.

    tries        faults that an image may be part of before it is refused; the last of them alone, see retry.py
    start_tries  starts in a row that may fail before start() gives up; None: it never does
    """

    def __init__(
        self,
        routing: Routing,
        *,
        tries: int,
        stop: Stop,
        clock: Clock,
        heartbeat: Heartbeat | None = None,
        start_tries: int | None = None,
    ) -> None:
        self._routing = routing
        self._tries = tries
        self._stop = stop
        self._clock = clock
        self._heartbeat = heartbeat or NullHeartbeat()
        self._start_tries = start_tries

    def start(self) -> EngineDescription:
        """Raises ModelError, Stopped, and the last fault when every allowed try failed."""
        failed = 0
        try:
            while (description := self._routing.description()) is None:
                lane = self._routing.to_start()
                if lane is None:
                    self._wait_for_change()
                elif (fault := self._bring_up(lane)) is not None:
                    failed += 1
                    if self._start_tries is not None and failed >= self._start_tries:
                        raise fault
        finally:
            self._routing.release()
        return description

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        attempts = Attempts(batch, self._tries)
        milliseconds: Counter[str] = Counter()
        try:
            while attempts.open:
                lane = self._ready_lane(accused=attempts.accused_next())
                group = attempts.next_group(self._routing.limit(lane), fallback=self._routing.has_fallback)
                if not group:
                    break
                if (report := self._run(lane, group, attempts)) is not None:
                    milliseconds.update(report.milliseconds)
                self._heartbeat.working()
        finally:
            self._routing.release()
        return BatchReport(attempts.verdicts(), dict(milliseconds))

    def _run(self, lane: Lane, group: Sequence[Work], attempts: Attempts) -> BatchReport | None:
        """One group on one lane, and what became of it written down; None after a fault."""
        routing, images = self._routing, [work.image_id for work in group]
        routing.began(lane, images)
        try:
            report = lane.segment(group)
        except EngineMemory as fault:
            routing.faulted(lane, fault, images)
            attempts.too_large(group, str(fault), on_fallback=routing.is_fallback(lane))
        except EngineFault as fault:
            if routing.faulted(lane, fault, images):
                attempts.failed(group, str(fault), on_fallback=routing.is_fallback(lane))
            else:
                attempts.interrupted(group)
        else:
            attempts.answered(report.answers)
            routing.answered(lane, len(group))
            return report
        return None

    def close(self) -> None:
        self._routing.close()

    def _ready_lane(self, *, accused: bool = False) -> Lane:
        """The lane in use, once it has an engine that passed its golden image."""
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
            fault = error
        self._routing.came_up(lane, fault)
        self._heartbeat.working()
        return fault

    def _wait_for_change(self) -> None:
        """Raises Stopped."""
        self._heartbeat.waiting()
        self._routing.wait(self._stop)
        if self._stop.is_set():
            raise Stopped("the service is stopping and no device may be used")
        self._heartbeat.working()

    def _wait_until(self, moment: float) -> None:
        """Raises Stopped: there is no engine, and nobody waits for another one."""
        seconds = moment - self._clock.monotonic()
        self._heartbeat.waiting()
        if self._stop.is_set() or (seconds > 0 and self._stop.wait(seconds)):
            raise Stopped("the service is stopping and no engine is ready")
        self._heartbeat.working()
