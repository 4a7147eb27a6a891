"""GPUs and the CPU behind them in one process: workers without processes, sensors that say what they are told, a clock
that is moved by hand, and the threads of the devices taken step by step. What happens is written into a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from rmbgd.config.load import parse
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.gpu_supervisor import GpuSupervisor
from rmbgd.engine.health_types import Phase
from rmbgd.engine.probe import Probe, ProbeResult
from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.supervisor import CpuSupervisor, DeviceParts, DeviceSupervisor, DeviceViews
from rmbgd.engine.types import EngineDescription, OutputPlane, Region, region_bytes, view
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineFault, EngineLost, EngineMemory, Reason
from rmbgd.events import RecordedEvents
from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.intake.inbox import Inbox
from rmbgd.pipeline.infer import DeviceThread
from rmbgd.pipeline.items import Arrival, Cutout, Frame, Rejection, Timing
from rmbgd.pipeline.queue import Taken, queue
from rmbgd.store.records import Job
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import POISON_COLOUR, FakeBackend, expected_alpha
from rmbgd.testing.worker import InProcessWorker

WELL = Reading("fake", temperature=60.0, throttle=frozenset())
HOT = replace(WELL, temperature=91.0)
HEALTH = {"canary_blocks": 256, "probe_passes": 1, "canary_interval": 86_400.0, "golden_interval": 86_400.0}
MODEL, LESSER = "u2netp", "lesser"
GREEN = FakeBackend(np.empty(0, np.uint8)).golden(MODEL).alpha


class SelfTested(NamedTuple):
    """A fresh worker of the device has passed its self-test."""

    device: str


class Began(NamedTuple):
    device: str
    images: tuple[int, ...]


class Ended(NamedTuple):
    """`outcome`: ok; fault, which an image may have caused; memory; or killed, from outside."""

    device: str
    outcome: str
    at: float


class Answered(NamedTuple):
    """The one verdict of an image. `reason`: why it is rejected; `runs`: how often it is said to have run."""

    image: int
    reason: Reason | None
    runs: int


Trace = list[SelfTested | Began | Ended | Answered]


class Worker(InProcessWorker):
    """Writes what it is asked, and what becomes of it, into the trace."""

    def __init__(self, simulation: Simulation, device: str, make: Callable[[], FakeBackend]) -> None:
        super().__init__(make)
        self.simulation, self.trace, self.device = simulation, simulation.trace, device

    def start(self) -> EngineDescription:
        description = super().start()
        self.trace.append(SelfTested(self.device))
        return description

    def run(self, batch):
        images = tuple(work.image_id for work in batch)
        self.trace.append(Began(self.device, images))
        outcome = "ok"
        try:
            if cause := self.simulation.accident(self.device, images):
                self.close()
                raise EngineLost("an accident", cause=cause.removeprefix("fault"))
            return super().run(batch)
        except EngineFault as fault:
            killed = isinstance(fault, EngineLost) and fault.cause == KILLED_FROM_OUTSIDE
            outcome = "memory" if isinstance(fault, EngineMemory) else "killed" if killed else "fault"
            raise
        finally:
            self.trace.append(Ended(self.device, outcome, self.simulation.clock.monotonic()))


class Gpu(GpuSupervisor):
    """`reading` is its sensor's; `plan` is of every worker that is made for it from now on."""

    def __init__(self, simulation: Simulation, index: int, plan: dict[str, object], *, fallback: bool) -> None:
        self.reading, self.plan = WELL, plan
        self.made: list[Worker] = []
        self.probes = threading.Condition()
        self.may_end = self.ended = 0  # numbers of probes; one that begins between two checks ends with the next one
        super().__init__(
            simulation.parts(f"cuda:{index}", MODEL, self.made, lambda: self.plan),
            health=simulation.context.config.health,
            sensor=SimpleNamespace(read=lambda: self.reading, close=lambda: None),
            references=SimpleNamespace(of=lambda it: dict.fromkeys(it.models, GREEN), abort=lambda: None),
            model=MODEL,
            aside=("cpu", LESSER) if fallback else ("", ""),
        )

    def _probed(self, probe: Probe, result: ProbeResult) -> None:
        with self.probes:
            self.probes.wait_for(lambda: self.may_end >= probe.number, 30)
        super()._probed(probe, result)
        with self.probes:
            self.ended = probe.number
            self.probes.notify_all()

    def let_end(self, number: float) -> None:
        with self.probes:
            self.may_end = number
            self.probes.notify_all()

    def check(self) -> None:
        """One health check; probes that run are waited for."""
        self.tick()
        while self.phase is Phase.PROBING and self.ended < (number := self._state.process):
            self.let_end(number)
            with self.probes:
                assert self.probes.wait_for(lambda: self.ended >= number, 30)

    def close(self) -> None:
        self.let_end(np.inf)
        super().close()

    @property
    def phase(self) -> Phase:
        return self._state.phase


class Simulation:
    """`gpus` of them, with a fallback unless `require_gpu`; or the CPU alone. No supervisor has a thread: its checks
    are made by hand. `plan` is of the CPU's workers, `gpu_plan` of every GPU's: options of a FakeBackend."""

    def __init__(self, context: EngineContext, *, gpus: int = 1, warm: bool = True, plan=None, gpu_plan=None) -> None:
        self.context, self.clock, self.events = context, context.clock, context.emit
        self.trace: Trace = []
        self.views = DeviceViews()
        self.cpu_plan = plan or {}
        self.cpu_made: list[Worker] = []
        fallback = gpus > 0 and not context.config.health.require_gpu
        self.gpus = [Gpu(self, index, gpu_plan or {}, fallback=fallback) for index in range(gpus)]
        supervisors: list[DeviceSupervisor] = list(self.gpus)
        self.cpu: CpuSupervisor | None = None
        if fallback or not gpus:
            model, substitutes = (LESSER, {MODEL: LESSER}) if fallback else (MODEL, {})
            behind = {"is_fallback": fallback, "substitutes": substitutes}
            self.cpu = CpuSupervisor(
                self.parts("cpu", model, self.cpu_made, lambda: self.cpu_plan, **behind),
                delay_maximum=8.0,
                interval=5.0,
                stopping=context.stopping,
                warm=warm,
                undecided_gpus=lambda: any(gpu.undecided for gpu in self.gpus),
            )
            supervisors.append(self.cpu)
        self.devices = context.devices = Devices(supervisors, self.views, [MODEL])
        folder = context.config.folder[0]
        folders = {folder.name: (folder, context.config.recipe_of(folder))}
        self.threads = [
            DeviceThread(each, self.views, folders, Inbox(), context, NullHeartbeat()) for each in supervisors
        ]
        self.sender, self.receiver = queue(10_000, "frames", self.clock)
        self.views.listen(self.receiver.look_again)
        self.hands: list[Taken[Frame] | None] = [None] * len(supervisors)
        self.arrived: list[int] = []
        self.taken: list[int] = []  # by any thread, as often as it was
        self.poison: set[int] = set()
        self.hogs: set[int] = set()  # images that need more memory than there is: the OOM killer comes each time
        self.kills = self.flakes = 0  # of the next batches, from outside; and faults that no image causes
        self.flaked: set[int] = set()  # images that met such a fault; not twice, which would be an image's own
        self.outcomes: dict[int, Arrival] = {}
        self.random = np.random.default_rng(0)

    def parts(self, device: str, model: str, made: list[Worker], plan: Callable[[], dict], **more) -> DeviceParts:
        def make(**other: object) -> Worker:
            options = {"device": device, "models": (model,)} | plan() | other
            made.append(Worker(self, device, lambda: FakeBackend(self.context.arena.block, **options)))
            return self.context.add(made[-1])

        return DeviceParts(device, self.views, make, self.events, self.clock, **more)

    def accident(self, device: str, images: tuple[int, ...]) -> str:
        """What ends the worker that was given these images, if anything does but the images' own poison."""
        if self.kills or self.hogs.intersection(images):
            self.kills = max(self.kills - 1, 0)
            return KILLED_FROM_OUTSIDE
        if self.flakes and device == "cpu" and self.flaked.isdisjoint(images):
            self.flakes -= 1
            self.flaked.update(images)
            return "fault"
        return ""

    def check(self, times: int = 1, *, tick_cpu: bool = True) -> None:
        """Health checks of all devices, an interval apart."""
        for _ in range(times):
            self.clock.advance(self.context.config.health.interval)
            for gpu in self.gpus:
                gpu.check()
            if self.cpu is not None and tick_cpu:
                self.cpu.tick()

    def until(self, *phases: Phase, tick_cpu: bool = True) -> Simulation:
        for _ in range(3000):
            if [gpu.phase for gpu in self.gpus] == list(phases):
                return self
            self.check(tick_cpu=tick_cpu)
        raise AssertionError(f"{[gpu.phase for gpu in self.gpus]}, not {phases}")

    def well(self) -> Simulation:
        self.until(*[Phase.OK] * len(self.gpus))
        if self.cpu is not None:
            self.cpu.tick()
        return self

    def heat(self, index: int = 0) -> None:
        self.gpus[index].reading = HOT
        self.check()

    def mend(self) -> Simulation:
        for gpu in self.gpus:
            gpu.reading, gpu.plan = WELL, {}
        return self.well()

    def put(self, count: int = 1, *, poison: bool = False, hog: bool = False) -> list[int]:
        """Decoded images, at the end of the queue."""
        numbers = [len(self.arrived) + 1 + n for n in range(count)]
        for number in numbers:
            lease = self.context.arena.lease(region_bytes(8, 8, source_alpha=False, output=OutputPlane.RGBA8))
            region = Region(lease.offset, 8, 8, False, OutputPlane.RGBA8)
            job = Job(number, "shop", f"{number}.png", f"/{number}", FileVersion(1, 1, 1, 1), 1, 0.0, 0.0, True)
            rgb = view(self.context.arena.block, region).rgb
            rgb[...] = self.random.integers(0, 256, rgb.shape)
            if poison:
                rgb[0, 0] = POISON_COLOUR
                self.poison.add(number)
            if hog:
                self.hogs.add(number)
            self.arrived.append(number)
            self.sender.send(Frame(job, region, lease, None, Timing(), self.clock.monotonic()))  # type: ignore[arg-type]
            self.clock.advance(0.001)
        return numbers

    def begin(self, index: int) -> bool:
        """The thread of that device takes a batch, if the policy gives it one now."""
        items = list(self.receiver._shared.items)
        idle = self.hands[index] is None and items
        if not idle or not isinstance(self.threads[index]._choose(items, np.inf), list):
            return False
        batch = self.receiver.take(lambda frames, _now: self.threads[index]._choose(frames, np.inf))
        self.taken += [frame.job.job_id for frame in batch.items]
        self.hands[index] = batch
        return True

    def end(self, index: int) -> None:
        """It runs what it has taken: each image has its outcome, or is back in the queue."""
        batch, self.hands[index] = self.hands[index], None
        if batch is None:
            return
        before = self.receiver.statistics()
        with batch:
            outcomes = self.threads[index]._end(batch)
        after = self.receiver.statistics()
        assert after.finished - before.finished == len(outcomes), "what went back is no progress"
        for outcome in outcomes:
            self._note(outcome.job.job_id, outcome)

    def _note(self, number: int, outcome: Arrival) -> None:
        assert number not in self.outcomes
        self.outcomes[number] = outcome
        if isinstance(outcome, Cutout):
            slot = view(self.context.arena.block, outcome.region)
            assert np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))
            self.trace.append(Answered(number, None, outcome.answer.tries))
        elif isinstance(outcome, Rejection):
            runs = sum(number in event.images for event in self.trace if isinstance(event, Began))
            self.trace.append(Answered(number, outcome.reason, runs))
        outcome.lease.release()

    def step(self, index: int) -> bool:
        taken = self.begin(index)
        self.end(index)
        return taken

    def run(self) -> None:
        """Every thread in turn, until no device takes anything."""
        for _ in range(500):
            if not sum(self.step(index) for index in range(len(self.threads))):
                return
        raise AssertionError("it runs for ever")

    def serve(self) -> None:
        """Until every image has its outcome; health checks go on."""
        for _ in range(300):
            self.run()
            if len(self.outcomes) == len(self.arrived):
                return
            self.check()
        raise AssertionError(f"{set(self.arrived) - set(self.outcomes)} have no outcome")

    def rejected(self) -> list[int]:
        return sorted(number for number, outcome in self.outcomes.items() if isinstance(outcome, Rejection))

    def devices_of(self, numbers: list[int]) -> list[str]:
        return [outcome.answer.device for n in numbers if isinstance(outcome := self.outcomes[n], Cutout)]

    def close(self) -> None:
        self.context.stop_waiting()
        for index in range(len(self.threads)):
            self.end(index)
        self.sender.close()
        self.run()
        assert not self.receiver.statistics().depth, "what waits is given back when the service stops"
        self.receiver.close()
        before = len(self.events.events)
        for supervisor in self.devices.supervisors:
            supervisor.close()
        assert len(self.events.events) == before, "an orderly end is no event"
        assert not any(gpu._threads for gpu in self.gpus), "a thread is left behind"
        for made in (*(gpu.made for gpu in self.gpus), self.cpu_made):
            assert all(worker.ended or worker.backend is None for worker in made), "a process is left behind"


def context_of(arena, *, require_gpu: bool = False, tries: int = 3, **health: object) -> EngineContext:
    roots = {name: f"/nowhere/{name}" for name in ("input", "output", "failed")}
    config = parse(
        {
            "folder": [{"name": "shop", "originals": "keep"} | roots],
            "health": HEALTH | {"require_gpu": require_gpu} | health,
            "engine": {"tries": tries},
            "pipeline": {"batch_maximum": 16},
        }
    )
    return EngineContext(config, arena, RecordedEvents(), FakeClock())
