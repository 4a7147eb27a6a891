"""Which device the next images of one GPU's thread go to: its GPU while that is in use, else another GPU, else the
CPU, else nowhere.

Does not judge a GPU (failover.py) nor do what that judgement asks for (attendant.py). Images that met a fault go to
the CPU first, where there is one: what kills one GPU's process may kill the next one's.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from rmbgd.engine.devices import Devices
from rmbgd.engine.keeper import Standby
from rmbgd.engine.lane import Lane
from rmbgd.engine.resilient import Stop, Stopped
from rmbgd.engine.station import Station, by_queue
from rmbgd.engine.types import EngineDescription
from rmbgd.errors import EngineFault
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

SIZES = (1, 2, 4, 8, 16)  # offered while the GPU has not said what it takes; a lane splits what is too much for it


class FailoverRouting:
    """Belongs to the thread of the GPU with that `index`; the first one speaks for all of them when the service starts.

    models   that images ask for
    """

    def __init__(
        self, devices: Devices, *, models: Sequence[str], index: int = 0, heartbeat: Heartbeat | None = None
    ) -> None:
        self._devices, self._standby = devices, devices.standby
        self._own = devices.stations[index]
        self._index, self._leads = index, index == 0
        self._models = tuple(models)
        self._heartbeat = heartbeat or NullHeartbeat()
        self._held: Station | Standby | None = None
        self._started = self._closed = False

    # ------------------------------------------------------------------------------------------------ Routing

    def lane(self, *, accused: bool = False) -> Lane | None:
        self.release()
        standby = self._standby
        if accused and standby is not None and not standby.missing:
            return self._hold(standby)
        if (station := self._well()) is not None:
            self._give_standby_back()
            return station.lane
        if self._devices.undecided and (standby is None or standby.ready or standby.missing or not standby.warm):
            return None
        if standby is None or standby.ready or not standby.warm:
            self._went_aside()
        return None if standby is None else self._hold(standby)

    def limit(self, lane: Lane) -> int:
        station = self._station_of(lane)
        return lane.limit if station is None else station.limit()

    def began(self, lane: Lane, images: Sequence[int]) -> None:
        self._concerned(lane, images)

    def answered(self, lane: Lane, images: int) -> None:
        self._concerned(lane, ())
        if (station := self._station_of(lane)) is not None:
            station.answered(images)

    def faulted(self, lane: Lane, fault: EngineFault, images: Sequence[int]) -> bool:
        blamed = True
        if (station := self._station_of(lane)) is not None:
            station.attendant.computing(images)
            blamed = station.faulted(fault)
        self._concerned(lane, ())
        return blamed

    @property
    def has_fallback(self) -> bool:
        return self._standby is not None and not self._standby.missing

    def is_fallback(self, lane: Lane) -> bool:
        return self._standby is not None and lane is self._standby.lane

    def description(self) -> EngineDescription | None:
        said = self._of_all() if self._leads else self._of_own()
        self._started = said is not None
        return said

    def to_start(self) -> Lane | None:
        lane = self.lane() if self._leads else None
        return lane if lane is not None and not lane.ready else None

    def came_up(self, lane: Lane, fault: EngineFault | None) -> None:
        if self._standby is None or lane is not self._standby.lane:
            return
        if fault is None:
            self._standby.started()
        else:
            self._standby.failed(fault)

    def wait(self, stop: Stop) -> None:
        self.release()
        devices, own = self._devices, self._own
        if self._leads or self._started:

            def over() -> bool:
                decided = not devices.undecided and (self._standby is not None or not self._started)
                return stop.is_set() or decided or bool(devices.in_use)

        else:
            told = not own.attendant.undecided

            def over() -> bool:
                failed = not told and not own.attendant.undecided
                return stop.is_set() or devices.is_over or own.in_use or failed

        devices.wait(over)
        if devices.is_over and not self._started:
            raise Stopped("no more images come")

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            if isinstance(held, Station):
                held.tidy()  # a process that must not be used any more is not kept till the next image
            held.turn.give()
        self._own.sweep()

    def close(self) -> None:
        self.release()
        if self._closed:
            return
        self._closed = True
        own = self._own
        own.attendant.stop()  # who waits for its turn finds out that there is nothing to be had
        own.turn.take(NullHeartbeat())
        try:
            own.close()
        finally:
            own.turn.give()
        self._devices.leave(self._index)

    # ------------------------------------------------------------------------------------------------ its own

    def _hold(self, place: Station | Standby) -> Lane:
        """Wait for its turn there. What it has is given back first: two threads could wait for each other."""
        self.release()
        place.turn.take(self._heartbeat)
        self._held = place
        return place.lane

    def _well(self) -> Station | None:
        """A GPU that may compute now, its turn taken: its own, or else the one with the shortest queue."""
        others = [station for station in self._devices.stations if station is not self._own]
        for station in (self._own, *by_queue(others)):
            if station.in_use:
                self._hold(station)
                if station.usable():
                    return station
                self.release()
        return None

    def _station_of(self, lane: Lane) -> Station | None:
        return next((station for station in self._devices.stations if station.lane is lane), None)

    def _concerned(self, lane: Lane, images: Sequence[int]) -> None:
        """Where there is one GPU, its images are its images wherever they are computed."""
        station = self._station_of(lane)
        if station is None and len(self._devices.stations) == 1:
            station = self._own
        if station is not None:
            station.attendant.computing(images)

    def _went_aside(self) -> None:
        for station in self._devices.stations:
            if not station.attendant.undecided:
                station.attendant.went_aside()

    def _give_standby_back(self) -> None:
        """On demand it is not kept while a GPU works, unless another thread is at it."""
        standby = self._standby
        if standby is None or standby.warm or not standby.ready or not standby.turn.try_take(self._heartbeat):
            return
        try:
            standby.lane.close()
        finally:
            standby.turn.give()

    def _of_own(self) -> EngineDescription | None:
        if self._own.in_use:
            self._hold(self._own)
            if self._own.usable():
                return self._own.lane.description
        if not self._own.attendant.undecided:
            self._own.attendant.went_aside()
        return None

    def _of_all(self) -> EngineDescription | None:
        """Raises ModelError when the operator has to mend something before any device can compute."""
        errors = [station.attendant.model_error for station in self._devices.stations]
        if errors[0] is not None and all(error is not None for error in errors):
            raise errors[0]
        if (station := self._well()) is not None:
            self._went_aside()
            return station.lane.description
        if self._devices.undecided:
            return None
        standby = self._standby
        if standby is not None and not standby.ready:
            if standby.model_error is not None:
                raise standby.model_error
            return None
        self._went_aside()
        # The weights that were asked for have not been seen: what is computed now must not be found again later.
        unseen: dict[str, dict[str, object]] = {name: {"sha256": f"not seen {uuid.uuid4()}"} for name in self._models}
        return EngineDescription(self._devices.device, unseen, SIZES)
