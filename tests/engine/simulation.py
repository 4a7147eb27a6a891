"""GPUs and the CPU behind them in one process: workers without processes, sensors that say what they are told, a clock
that is moved by hand, and the threads of the devices taken step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from rmbgd.config.load import parse
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.gpu_supervisor import GpuSupervisor, Names
from rmbgd.engine.health_types import Phase
from rmbgd.engine.probe import Probe, ProbeResult
from rmbgd.engine.sensors.base import Reading
from rmbgd.engine.supervisor import CpuSupervisor, DeviceParts, DeviceSupervisor, DeviceViews
from rmbgd.engine.types import EngineDescription, OutputPlane, Region, region_bytes
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, ModelError
from rmbgd.events import RecordedEvents
from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline.infer import DeviceThread
from rmbgd.pipeline.items import Arrival, Cutout, Frame, Rejection, Timing
from rmbgd.pipeline.queue import Taken, queue
from rmbgd.store.records import Job
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import POISON_COLOUR, FakeBackend, expected_alpha
from rmbgd.testing.worker import InProcessWorker
from tests.engine.traces import Answered, Began, Ended, SelfTested, Took, Trace

WELL = Reading("fake", temperature=60.0, throttle=frozenset())
HOT = replace(WELL, temperature=91.0)
HEALTH = {"canary_blocks": 256, "probe_passes": 1, "canary_interval": 86_400.0, "golden_interval": 86_400.0}
MODEL, LESSER = "u2netp", "lesser"
GREEN = FakeBackend(np.empty(0, np.uint8)).golden(MODEL).alpha


class Sick(FakeBackend):
    """`sick` is what its start meets."""

    def __init__(self, block: object, sick: str, **options: object) -> None:
        super().__init__(block, **options)  # type: ignore[arg-type]
        self.sick = sick

    def start(self) -> EngineDescription:
        if self.sick:
            raise ModelError("no weights") if self.sick == "model" else EngineLost("it is sick")
        return super().start()


class Worker(InProcessWorker):
    """Writes what it is asked, and what becomes of it, into the trace."""

    def __init__(self, trace: Trace, device: str, make: Callable[[], FakeBackend]) -> None:
        super().__init__(make)
        self.trace, self.device = trace, device

    def start(self) -> EngineDescription:
        description = super().start()
        self.trace.append(SelfTested(self.device))
        return description

    def run(self, batch):
        self.trace.append(Began(self.device, tuple(work.image_id for work in batch)))
        try:
            report = super().run(batch)
        except EngineFault as fault:
            self.trace.append(Ended(self.device, "memory" if isinstance(fault, EngineMemory) else "fault"))
            raise
        self.trace.append(Ended(self.device, "ok"))
        return report


class StoredReferences:
    """The CPU's answers are there."""

    def of(self, description: EngineDescription):
        return dict.fromkeys(description.models, GREEN)

    def abort(self) -> None:
        """Nothing is computed."""


class Gpu(GpuSupervisor):
    """`reading` is its sensor's; `sick` and `plan` are of every worker that is made for it from now on."""

    def __init__(self, simulation: Simulation, index: int, *, fallback: bool) -> None:
        self.reading, self.sick, self.plan = WELL, "", {}
        self.made: list[Worker] = []
        self.probed = threading.Event()
        super().__init__(
            DeviceParts(
                f"cuda:{index}",
                simulation.views,
                lambda: simulation.worker(self, f"cuda:{index}", MODEL, self.sick, self.plan),
                simulation.events,
                simulation.clock,
                keep_when_short=fallback,
            ),
            health=simulation.context.config.health,
            sensor=SimpleNamespace(read=lambda: self.reading, close=lambda: None),
            references=StoredReferences(),
            names=Names("cpu", LESSER, MODEL) if fallback else Names("", "", MODEL),
        )

    def _start_probe(self, number: int) -> None:
        self.probed.clear()
        super()._start_probe(number)

    def _probed(self, probe: Probe, result: ProbeResult) -> None:
        super()._probed(probe, result)
        self.probed.set()

    def check(self) -> None:
        """One health check; a probe that runs is waited for."""
        self.tick()
        if self._state.phase is Phase.PROBING:
            assert self.probed.wait(30)

    @property
    def phase(self) -> Phase:
        return self._state.phase


class Simulation:
    """`gpus` of them, with a fallback unless `require_gpu`; or the CPU alone. No supervisor has a thread: its checks
    are made by hand."""

    def __init__(
        self, context: EngineContext, *, gpus: int = 1, warm: bool = True, plan: dict[str, object] | None = None
    ) -> None:
        self.context, self.clock, self.events = context, context.clock, context.emit
        assert isinstance(self.clock, FakeClock)
        assert isinstance(self.events, RecordedEvents)
        self.trace: Trace = []
        self.views = DeviceViews()
        self.cpu_sick, self.cpu_plan = "", plan or {}
        self.cpu_made: list[Worker] = []
        fallback = gpus > 0 and not context.config.health.require_gpu
        self.gpus = [Gpu(self, index, fallback=fallback) for index in range(gpus)]
        supervisors: list[DeviceSupervisor] = list(self.gpus)
        self.cpu: CpuSupervisor | None = None
        if fallback or not gpus:
            model = LESSER if fallback else MODEL
            self.cpu = CpuSupervisor(
                DeviceParts(
                    "cpu",
                    self.views,
                    lambda: self.worker(self.cpu_made, "cpu", model, self.cpu_sick, self.cpu_plan),
                    self.events,
                    self.clock,
                    is_fallback=fallback,
                    substitutes={MODEL: LESSER} if fallback else {},
                ),
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
            DeviceThread(supervisor, self.views, folders, context, NullHeartbeat()) for supervisor in supervisors
        ]
        self.sender, self.receiver = queue(10_000, "frames", self.clock)
        self.views.listen(self.receiver.look_again)
        self.hands: list[Taken[Frame] | None] = [None] * len(supervisors)
        self.arrived: list[int] = []
        self.poison: set[int] = set()
        self.outcomes: dict[int, Arrival] = {}
        self.random = np.random.default_rng(0)

    def worker(self, made: object, device: str, model: str, sick: str, plan: dict[str, object]) -> Worker:
        block = self.context.arena.block
        worker = Worker(self.trace, device, lambda: Sick(block, sick, device=device, models=(model,), **plan))
        (made.made if isinstance(made, Gpu) else made).append(worker)  # type: ignore[attr-defined]
        self.context.add(worker)
        return worker

    # ------------------------------------------------------------------------------------------------ time and health

    def check(self, times: int = 1, *, tick_cpu: bool = True) -> None:
        """Health checks of all devices, an interval apart."""
        for _ in range(times):
            self.clock.advance(self.context.config.health.interval)
            for gpu in self.gpus:
                gpu.check()
            if self.cpu is not None and tick_cpu:
                self.cpu.tick()

    def until(self, *phases: Phase, limit: int = 3000, tick_cpu: bool = True) -> Simulation:
        for _ in range(limit):
            if [gpu.phase for gpu in self.gpus] == list(phases):
                return self
            self.check(tick_cpu=tick_cpu)
        raise AssertionError(f"{[gpu.phase for gpu in self.gpus]}, not {phases}")

    def well(self) -> Simulation:
        self.until(*[Phase.OK] * len(self.gpus))
        if self.cpu is not None:
            self.cpu.tick()
        return self

    # ------------------------------------------------------------------------------------------------ images

    def put(self, count: int = 1, *, poison: bool = False) -> list[int]:
        """Decoded images, at the end of the queue."""
        numbers = []
        for _ in range(count):
            number = len(self.arrived) + 1
            size = region_bytes(8, 8, source_alpha=False, output=OutputPlane.RGBA8)
            lease = self.context.arena.lease(size)
            region = Region(lease.offset, 8, 8, False, OutputPlane.RGBA8)
            job = Job(number, "shop", f"{number}.png", f"/{number}", FileVersion(1, 1, 1, 1), 1, 0.0, 0.0, True)
            frame = Frame(job, region, lease, None, Timing(), self.clock.monotonic())  # type: ignore[arg-type]
            rgb = self.rgb(region)
            rgb[...] = self.random.integers(0, 256, rgb.shape)
            if poison:
                rgb[0, 0] = POISON_COLOUR
                self.poison.add(number)
            self.arrived.append(number)
            self.sender.send(frame)
            self.clock.advance(0.001)
            numbers.append(number)
        return numbers

    def rgb(self, region: Region):
        return self.context.arena.block[region.offset : region.offset + 3 * 64].reshape(8, 8, 3)

    def begin(self, index: int) -> bool:
        """The thread of that device takes a batch, if the policy gives it one now."""
        if self.hands[index] is not None:
            return False
        items = list(self.receiver._shared.items)
        if not items or not isinstance(self.threads[index]._choose(items, np.inf), list):
            return False
        batch = self.receiver.take(lambda frames, _now: self.threads[index]._choose(frames, np.inf))
        self.trace.append(Took(self.devices.supervisors[index].device, tuple(each.job.job_id for each in batch.items)))
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
            self._note(outcome)

    def _note(self, outcome: Arrival) -> None:
        job = outcome.frame.job if isinstance(outcome, Cutout) else outcome.job
        assert job.job_id not in self.outcomes
        self.outcomes[job.job_id] = outcome
        if isinstance(outcome, Cutout):
            frame, runs = outcome.frame, outcome.answer.tries
            output = self.context.arena.block[frame.region.output_offset :][: 4 * 64].reshape(8, 8, 4)
            assert np.array_equal(output[..., 3], expected_alpha(self.rgb(frame.region)))
            frame.lease.release()
            self.trace.append(Answered(job.job_id, False, runs))
        else:
            lease = outcome.lease  # type: ignore[union-attr]
            assert lease is not None
            lease.release()
            if isinstance(outcome, Rejection):
                runs = sum(job.job_id in event.images for event in self.trace if isinstance(event, Began))
                self.trace.append(Answered(job.job_id, True, runs))

    def step(self, index: int) -> bool:
        taken = self.begin(index)
        self.end(index)
        return taken

    def run(self, limit: int = 500) -> None:
        """Every thread in turn, until no device takes anything."""
        for _ in range(limit):
            if not sum(self.step(index) for index in range(len(self.threads))):
                return
        raise AssertionError("it runs for ever")

    def serve(self, limit: int = 300) -> None:
        """Until every image has its outcome; health checks go on."""
        for _ in range(limit):
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
            if self.hands[index] is not None:
                self.end(index)
        self.sender.close()
        while self.receiver.statistics().depth:
            self.run()
            assert not self.receiver.statistics().depth, "what waits is given back when the service stops"
        self.receiver.close()
        for supervisor in self.devices.supervisors:
            supervisor.close()
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
