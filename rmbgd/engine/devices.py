"""All devices of the service: the GPUs, what stands by for them, and what others may know of them.

Does not route an image: each GPU's thread has a routing for that (routing.py). Any thread may ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rmbgd.engine.keeper import Standby
from rmbgd.engine.station import Station
from rmbgd.engine.types import EngineDescription


class Devices:
    """`changed`: the lock that the stations' attendants share; `stop`: the service is stopping."""

    def __init__(
        self,
        stations: Sequence[Station],
        standby: Standby | None,
        *,
        changed: threading.Condition,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.stations, self.standby = tuple(stations), standby
        self._changed, self._is_stopping = changed, is_stopping
        self._users = len(self.stations)  # threads that may need the standby; under the lock
        self.is_over = False  # written under the lock, read by any thread

    # ------------------------------------------------------------------------------------------------ what is well

    @property
    def in_use(self) -> list[Station]:
        """GPUs that images may go to. Waits for nothing."""
        return [station for station in self.stations if station.in_use]

    @property
    def undecided(self) -> bool:
        """A GPU has neither proved itself nor failed, and never has: the service is starting."""
        return any(station.attendant.undecided for station in self.stations)

    def may_take(self, index: int) -> bool:
        """Whether the thread of that GPU is to take images. Waits for nothing: a channel asks with its lock held.

        While its GPU is away and another is well it leaves them to the others; while none is, the first one takes them
        for what stands in. One GPU alone always takes: where there is nothing to choose, nothing is to be left.
        """
        if len(self.stations) == 1 or self._is_stopping() or self.stations[index].in_use:
            return True
        return index == 0 and not self.in_use

    def description(self, index: int) -> EngineDescription | None:
        """Of what the thread of that GPU computes with now. Waits for nothing."""
        own = self.stations[index]
        if self.in_use or self.standby is None:
            return own.lane.description
        return self.standby.lane.description or own.lane.description

    def others(self, index: int) -> list[str]:
        """GPUs in use besides that one. Waits for nothing."""
        return [station.device for station in self.stations if station.in_use and station is not self.stations[index]]

    # ------------------------------------------------------------------------------------------------ for others

    @property
    def device(self) -> str:
        """Those in use now, by name."""
        if in_use := self.in_use:
            return ", ".join(station.device for station in in_use)
        return self.standby.lane.device if self.standby is not None else "none"

    def describe(self) -> dict[str, object]:
        """For the health event."""
        lanes = [station.lane for station in self.stations]
        devices: dict[str, object] = {station.device: station.attendant.describe() for station in self.stations}
        if self.standby is not None:
            lanes.append(self.standby.lane)
            devices[self.standby.lane.device] = self.standby.describe(needed=not self.in_use)
        return {
            "state": self._state(),
            "device": self.device,
            "restarts": sum(lane.restarts for lane in lanes),
            "failures": sum(lane.failures for lane in lanes),
            "devices": devices,
        }

    def _state(self) -> str:
        in_use = self.in_use
        if not in_use and self.undecided:
            return "starting"
        if not in_use and not (self.standby is not None and self.standby.ready):
            return "waiting"
        away = [each for each in self.stations if not each.in_use and not each.attendant.undecided]
        return "degraded" if away and len(self.stations) > 1 else "ready"

    def wake(self) -> None:
        """Something outside has changed: who waits looks again."""
        for station in self.stations:
            station.attendant.wake()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it after every change of any GPU; it must not wait, nor ask for more than what waits for nothing."""
        for station in self.stations:
            station.attendant.listen(listener)

    def wait(self, done: Callable[[], bool]) -> None:
        """Until `done`; it is asked again after each change."""
        with self._changed:
            self._changed.wait_for(done)

    def leave(self, index: int) -> None:
        """The thread of that GPU has closed it and asks for nothing any more. The first one leaves when no images
        come any more: who still waits for his GPU waits in vain. With the last one the standby ends."""
        with self._changed:
            self._users -= 1
            last = self._users == 0
            self.is_over = self.is_over or index == 0
            self._changed.notify_all()
        if last and self.standby is not None:
            self.standby.close()
