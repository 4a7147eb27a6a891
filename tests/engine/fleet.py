"""Several GPUs and one standby in one process: fake engines, sensors told by hand, a clock that is moved by hand."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from rmbgd.config.load import HealthSettings
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.devices import Devices
from rmbgd.engine.health_types import Phase
from rmbgd.engine.keeper import Standby
from rmbgd.engine.lane import Lane
from rmbgd.engine.resilient import ResilientEngine
from rmbgd.engine.routing import FailoverRouting
from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.standby import SubstituteEngine
from rmbgd.engine.station import Station
from rmbgd.engine.telling import Moves
from rmbgd.engine.types import Answer, EngineDescription, Poisoned, Work
from rmbgd.errors import EngineLost, ModelError
from rmbgd.events import RecordedEvents
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import FakeBackend, expected_alpha
from tests.engine.image_store import ImageStore

WELL = Reading("fake", temperature=60.0, throttle=frozenset())
HOT = replace(WELL, temperature=91.0)
HEALTH = HealthSettings(canary_blocks=256, probe_passes=1, canary_interval=86_400, golden_interval=86_400)
MODEL, LESSER = "big", "lesser"
GREEN = FakeBackend(np.empty(0, np.uint8)).golden(MODEL).alpha


class Stopping:
    """Never, until told."""

    def __init__(self) -> None:
        self.told = False

    def is_set(self) -> bool:
        return self.told

    def wait(self, timeout: float | None = None) -> bool:
        return self.told


class Child(FakeBackend):
    """A fake engine with what a worker has besides; `gpu.sick` holds what every one of them does wrong."""

    def __init__(self, gpu: Gpu, **options: object) -> None:
        super().__init__(gpu.workspace.images.arena.block, device=gpu.device, models=(MODEL,), **options)
        self.gpu = gpu
        self.alive, self.ended, self.abandoned, self.aborted = True, False, False, False

    lingers = False

    def belongs_to(self, heartbeat: object, *, patience: float | None = None) -> None:
        """Nobody judges here, nor waits."""

    def abort(self) -> None:
        self.alive, self.aborted = False, True

    def close(self) -> None:
        super().close()
        self.alive, self.ended = False, True

    def start(self) -> EngineDescription:
        if self.gpu.sick == "start":
            raise EngineLost("sick")
        if self.gpu.sick == "model":
            raise ModelError("no weights")
        return super().start()

    def segment(self, batch):
        if self.aborted or not self.alive:
            raise EngineLost("killed")
        return super().segment(batch)


class Stored:
    """References that are there."""

    def of(self, description: EngineDescription):
        return dict.fromkeys(description.models, GREEN)

    def abort(self) -> None:
        """Nothing is computed."""


class Gpu:
    """One GPU: what it will do wrong, what its sensor says, and what it has computed. Is its own sensor."""

    def __init__(self, workspace: Fleet, index: int) -> None:
        self.workspace, self.index, self.device = workspace, index, f"cuda:{index}"
        self.reading, self.sick, self.plan = WELL, "", {}
        self.made: list[Child] = []
        self.attendant = Attendant(
            self.device,
            health=workspace.health,
            sensor=self,
            make=self.make,
            references=Stored(),
            moves=Moves("cpu", LESSER, MODEL) if workspace.with_standby else Moves("", "", MODEL),
            emit=workspace.events,
            clock=workspace.clock,
            others=lambda: workspace.devices.others(index),
            changed=workspace.changed,
        )
        lane = Lane(
            self.device,
            workspace.never,
            emit=workspace.events,
            clock=workspace.clock,
            delay_maximum=8.0,
            keep_when_short=workspace.with_standby,
        )
        self.station = Station(lane, self.attendant, health=workspace.health, clock=workspace.clock)

    def make(self) -> Child:
        self.made.append(Child(self, **self.plan))
        return self.made[-1]

    def read(self) -> Reading:
        return self.reading

    def close(self) -> None:
        """A sensor's."""

    @property
    def phase(self) -> Phase:
        return self.attendant.state.phase

    def check(self) -> None:
        self.attendant.tick()
        self.attendant.wait(lambda: self.phase is not Phase.PROBING or self.attendant.state.proved)

    def computed(self) -> list[int]:
        return [image_id for child in self.made for batch in child.batches for image_id in batch]


class Fleet:
    """`count` GPUs with an engine each, that the test uses like the threads would."""

    def __init__(
        self, images: ImageStore, count: int = 2, health: HealthSettings = HEALTH, *, warm: bool = True, tries: int = 3
    ) -> None:
        self.images, self.health, self.with_standby = images, health, not health.require_gpu
        self.clock, self.events, self.stop = FakeClock(), RecordedEvents(), Stopping()
        self.changed = threading.Condition(threading.RLock())
        self.standby_sick, self.standby_plan = "", {}
        self.standbys: list[FakeBackend] = []
        self.gpus = [Gpu(self, index) for index in range(count)]
        self.standby = None
        if self.with_standby:
            lane = Lane("cpu", self.stand_in, emit=self.events, clock=self.clock, delay_maximum=8.0, forgiving=True)
            self.standby = Standby(lane, warm=warm, interval=5.0, emit=self.events, clock=self.clock)
        stations = [gpu.station for gpu in self.gpus]
        self.devices = Devices(stations, self.standby, changed=self.changed, is_stopping=self.stop.is_set)
        self.engines = [
            ResilientEngine(
                FailoverRouting(self.devices, models=[MODEL], index=index),
                tries=tries,
                stop=self.stop,
                clock=self.clock,
            )
            for index in range(count)
        ]
        self.count = 0

    def never(self):
        raise AssertionError("a GPU's lane makes no engine")

    def stand_in(self):
        start = self.standby_sick or "ok"
        engine = FakeBackend(self.images.arena.block, device="cpu", models=(LESSER,), start=start, **self.standby_plan)
        self.standbys.append(engine)
        return SubstituteEngine(engine, {MODEL: LESSER})

    def check(self, times: int = 1) -> None:
        """Health checks of all, an interval apart; probes that they start are waited for."""
        for _ in range(times):
            self.clock.advance(self.health.interval)
            for gpu in self.gpus:
                gpu.check()

    def until(self, *phases: Phase, limit: int = 3000) -> Fleet:
        for _ in range(limit):
            if [gpu.phase for gpu in self.gpus] == list(phases):
                return self
            self.check()
        raise AssertionError(f"{[gpu.phase for gpu in self.gpus]}, not {phases}")

    def well(self) -> Fleet:
        return self.until(*[Phase.OK] * len(self.gpus))

    def put(self, **options: object) -> Work:
        self.count += 1
        return self.images.put(self.count, model=MODEL, **options)

    def run(self, index: int, works: list[Work]) -> list[Answer | Poisoned]:
        """What the engine of that GPU answers; every answer is right."""
        answers = self.engines[index].segment(works).answers
        assert [answer.image_id for answer in answers] == [work.image_id for work in works]
        for work, answer in zip(works, answers, strict=True):
            if isinstance(answer, Answer):
                slot = self.images.slot(work)
                assert np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))
            self.images.leases.pop(work.image_id).release()
        return answers

    def made_by(self, index: int, count: int = 1) -> list[str]:
        """Devices of so many images that the thread of that GPU was given."""
        return [answer.device for answer in self.run(index, [self.put() for _ in range(count)])]

    def deaths(self) -> int:
        """Engine processes that were lost with images in hand."""
        return len([fault for fault in self.events.named("engine.fault") if fault["images"]])

    def may_take(self) -> list[bool]:
        return [self.devices.may_take(index) for index in range(len(self.gpus))]

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
