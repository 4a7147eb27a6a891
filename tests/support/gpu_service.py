"""A service with a scripted GPU: a fake engine in the real child process, a sensor that reads a file, short times."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from tests.support.launcher import suffix
from tests.support.service import Event, ServiceUnderTest

QUICK: dict[str, Any] = {
    "interval": 0.05,
    "dwell": 0.2,
    "dwell_maximum": 0.2,
    "cool_checks": 3,
    "good_checks": 2,
    "probe_passes": 1,
    "canary_blocks": 64,
    "canary_interval": 1e9,
    "golden_interval": 1e9,
}
"""Settings of [health], beyond their bounds where a test would wait for minutes."""


class GpuUnderTest(ServiceUnderTest):
    """`gpu` are options of the launcher's failover; `health` goes over QUICK."""

    def __init__(
        self, base: Path, *, health: dict[str, Any] | None = None, gpu: dict[str, Any] | None = None, **more: Any
    ) -> None:
        self.orders, self.sensor = base / "orders", base / "sensor.json"
        told: dict[str, Any] = {"orders": str(self.orders), "sensor": str(self.sensor), "standby": {}, "count": 1}
        told |= {"health": QUICK | (health or {})} | (gpu or {})
        for index in range(told["count"]):
            self._orders(index).mkdir(parents=True)
            self.temperature(60.0, index)
        settings = {"engine": {"device": "cuda:0", "batch_timeout": 10.0}} | more.pop("settings", {})
        super().__init__(base, settings=settings, options={"gpu": told}, **more)

    def _orders(self, index: int) -> Path:
        return self.orders.with_name(self.orders.name + suffix(index))

    def tell(self, text: str, index: int = 0) -> None:
        sensor = self.sensor.with_name(self.sensor.name + suffix(index))
        fresh = sensor.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(sensor)

    def temperature(self, degrees: float, index: int = 0) -> None:
        self.tell(json.dumps({"temperature": degrees, "throttle": []}), index)

    def order(self, name: str, text: str, index: int = 0) -> None:
        fresh = self._orders(index) / f"{name}.fresh"
        fresh.write_text(text)
        fresh.rename(self._orders(index) / name)

    def steps(self, steps: Iterable[str], index: int = 0) -> None:
        """What the next batches on the GPU of that number will meet."""
        self.order("segment", "".join(f"{step}\n" for step in steps), index)

    def withdraw(self, name: str, index: int = 0) -> None:
        (self._orders(index) / name).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ what it says

    def on_gpu(self) -> Self:
        """Started, and its GPU in use."""
        self.start()
        self.wait_for_gpu()
        return self

    def wait_for_gpu(self, index: int = 0) -> Event:
        return self.wait_for("engine.state", device=f"cuda:{index}", to="ok", reason="probe_passed")

    def made_by(self, name: str, data: bytes) -> tuple[str, str]:
        """(device, model) of a new image's cutout."""
        event = self.serve(name, data)
        return event["device"], event["model"]

    def wait_for_status(self, condition: Callable[[Event], Any]) -> Event:
        """The health part of the status file, when it is as wished."""

        def look() -> Event | None:
            with contextlib.suppress(FileNotFoundError):
                health: Event = json.loads((self.runtime / "status.json").read_text())["health"]
                return health if condition(health) else None
            return None

        found: Event = self.wait(look, "a status")
        return found


def assert_proved_before_use(events: list[Event]) -> None:
    """No failback to a GPU without a passed probe of it since its last trip."""
    proved = set()
    for event in events:
        match event["event"]:
            case "engine.state" if event["to"] == "ok" and event["reason"] == "probe_passed":
                proved.add(event["device"])
            case "engine.failover":
                proved.discard(event["from"])
            case "engine.failback":
                assert event["to"] in proved, f"back without a probe: {event}"
