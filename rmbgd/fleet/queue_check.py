"""Checks, of each connection, that the queue is as leases need it, and that its clock and ours agree."""

from __future__ import annotations

from collections.abc import Collection

from rmbgd.clock import Clock
from rmbgd.events import Emit
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.streams import clock_ahead, unfit

CLOCKS_APART, CLOCKS_EVERY = 60.0, 3600.0  # s


class QueueCheck:
    """One thread's; `clocks`, how they differ, may be read by any."""

    def __init__(self, broker: Broker, roots: Collection[str], lease: float, clock: Clock, emit: Emit) -> None:
        self._broker, self._roots, self._lease, self._clock, self._emit = broker, roots, lease, clock, emit
        self.clocks = ""
        self._checked = 0  # the connection whose streams and consumers are as they should be
        self._next_clocks = 0.0

    def check(self) -> None:
        """Once for each connection, until it is fit. Raises BrokerFault."""
        if self._checked != (connection := self._broker.connections):
            if found := unfit(self._broker, self._roots, self._lease):
                raise BrokerFault("unfit", f"{found[0]}; mend it with `rmbgd fleet setup --change`")
            self._checked = connection
        if (now := self._clock.monotonic()) >= self._next_clocks:
            self._compare_clocks()
            self._next_clocks = now + CLOCKS_EVERY

    def _compare_clocks(self) -> None:
        ahead = clock_ahead(self._broker)
        self.clocks = ""
        if abs(ahead) > CLOCKS_APART:
            way = "ahead of" if ahead > 0 else "behind"
            self.clocks = f"its clock is {round(abs(ahead))} s {way} the broker's; set both by NTP"
            self._emit("source.clock", seconds=round(abs(ahead), 1), detail=self.clocks)
