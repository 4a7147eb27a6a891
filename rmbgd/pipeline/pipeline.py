"""The line of three stages, wired: decode, segment, finish, with a bounded channel between each two.

Does not know where jobs come from (the intake, or a list of files) nor what an engine is. Who builds a Line owns its
ends: it closes the last sender of jobs, and everything behind ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial

from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder, Recipe
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import EngineContext, EngineFactory, Stopped
from rmbgd.engine.types import EngineDescription
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.decode import Decoder, decode_loop
from rmbgd.pipeline.dedup import Deduplicator, recipe_hash
from rmbgd.pipeline.finish import Finisher, finish_loop
from rmbgd.pipeline.infer import DeviceThread
from rmbgd.pipeline.items import Arrival, Frame, JobSource, Postponed, Timing
from rmbgd.pipeline.queue import QueueStatistics, Receiver, Sender, queue
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job

FOLLOWERS_MAXIMUM = 64  # claimed images that may wait for an equal one; each holds a row and a few hundred bytes


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What a line needs of the rest of the house."""

    config: Config
    engine: EngineContext
    build_devices: EngineFactory
    arena: Arena
    ledger: Ledger
    publisher: Publisher
    hold: StorageRetry
    intake: JobSource
    emit: Emit
    clock: Clock
    new_heartbeat: Callable[[str], Heartbeat]
    start_thread: Callable[[str, Callable[[], None]], object]
    on_ready: Callable[[EngineDescription], None]
    on_room: Callable[[], None]


class Pipeline:
    """Channels, threads and what they share. Built and ended by one thread, its owner."""

    def __init__(self, around: PipelineContext) -> None:
        config = around.config
        self._around = around
        self._folders: dict[str, tuple[Folder, Recipe]] = {
            folder.name: (folder, config.recipe_of(folder)) for folder in config.folder
        }
        places = config.pipeline.queue
        self.jobs: Sender[Job]
        self._waiting: Receiver[Job]  # the owner's own end, to take back what nobody decoded
        self.jobs, self._waiting = queue(places, "jobs", around.clock, around.on_room)
        self._frames: tuple[Sender[Frame], Receiver[Frame]] = queue(places, "frames", around.clock)
        self._arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = queue(places, "arrivals", around.clock)
        self._in_flight = Deduplicator(followers_maximum=FOLLOWERS_MAXIMUM)
        # What depends on the identity of the models: set by the thread "infer" when one is ready.
        self._stages: Future[tuple[Decoder, Finisher]] = Future()

    def start(self) -> None:
        """Start every thread. They wait for the engine; jobs wait in their channel."""
        around, pipeline = self._around, self._around.config.pipeline
        bodies: list[tuple[str, Callable[[], None]]] = []
        for number in range(pipeline.decode_threads):
            heartbeat = around.new_heartbeat(name := f"decode-{number}")
            jobs, frames = self._waiting.clone(heartbeat), self._frames[0].clone(heartbeat)
            bodies.append((name, partial(self._decode, jobs, frames, self._arrivals[0].clone(heartbeat), heartbeat)))
        heartbeat = around.new_heartbeat("infer")
        ends = self._frames[1].clone(heartbeat), self._arrivals[0].clone(heartbeat)
        bodies.append(("infer", partial(self._infer, *ends, heartbeat)))
        for number in range(pipeline.finish_threads):
            heartbeat = around.new_heartbeat(name := f"finish-{number}")
            bodies.append((name, partial(self._finish, self._arrivals[1].clone(heartbeat), heartbeat)))
        for name, body in bodies:
            around.start_thread(name, body)
        self._frames[0].close()
        self._frames[1].close()
        self._arrivals[1].close()

    def door(self) -> Sender[Arrival]:
        """Another end of the exit door, for who refuses images before they are decoded. Ask before `let_run`."""
        return self._arrivals[0].clone()

    def take_back(self) -> None:
        """Put back what is only a path. Returns when the last producer of jobs has gone and nothing waits any more."""
        now = self._around.clock.monotonic()
        with self._waiting, self._arrivals[0] as arrivals:
            for job in self._waiting:
                timing = Timing()
                timing.add("wait", now - job.claimed_at)
                arrivals.send(Postponed(job, "stopping", "claimed, but not begun when the service stopped", timing))

    def let_run(self) -> None:
        """Give up the owner's own ends: the line then ends by itself when the last job is through."""
        self._waiting.close()
        self._arrivals[0].close()

    def statistics(self) -> list[QueueStatistics]:
        return [self._waiting.statistics(), self._frames[0].statistics(), self._arrivals[0].statistics()]

    # ------------------------------------------------------------------------------------------------ thread bodies

    def _decode(
        self, jobs: Receiver[Job], frames: Sender[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat
    ) -> None:
        with jobs, frames, arrivals:
            heartbeat.waiting()
            try:
                decoder, _ = self._stages.result()
            except CancelledError:  # there will be no engine: the owner takes the jobs back
                return
            decode_loop(decoder, jobs, frames, arrivals, heartbeat)

    def _infer(self, frames: Receiver[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat) -> None:
        """Find the devices, start a thread for each, and let the other stages begin when one of them is ready."""
        engine = self._around.engine
        heartbeat.waiting()  # drivers and weights take their time, and have deadlines of their own
        with frames, arrivals:
            try:
                devices = engine.devices = self._around.build_devices(engine)
                devices.views.listen(frames.look_again)
                for supervisor in devices.supervisors:
                    own = self._around.new_heartbeat(name := f"infer-{supervisor.device}")
                    thread = DeviceThread(supervisor, devices.views, self._folders, engine, own)
                    ends = frames.clone(own), arrivals.clone(own)
                    self._around.start_thread(name, partial(thread.run, *ends))
                devices.start()
                if engine.stopping.is_set():
                    devices.stop_waiting()
                self._begin(devices.description())
            except Stopped:  # nothing was decoded
                pass
            finally:
                self._stages.cancel()

    def _finish(self, arrivals: Receiver[Arrival], heartbeat: Heartbeat) -> None:
        with arrivals:
            heartbeat.waiting()
            try:
                _, finisher = self._stages.result()
            except CancelledError:  # nothing was decoded; what comes now only goes back
                finisher = self._finisher({})
            finish_loop(finisher, arrivals, heartbeat)

    # ------------------------------------------------------------------------------------------------ what they share

    def _begin(self, description: EngineDescription) -> None:
        keys = {
            name: recipe_hash(recipe, description.models.get(recipe.model, {}))
            for name, (_, recipe) in self._folders.items()
        }
        around = self._around
        decoder = Decoder(
            limits=around.config.limits,
            folders=self._folders,
            recipe_keys=keys,
            arena=around.arena,
            ledger=around.ledger,
            in_flight=self._in_flight,
            clock=around.clock,
        )
        self._stages.set_result((decoder, self._finisher(keys)))
        around.on_ready(description)

    def _finisher(self, keys: Mapping[str, str]) -> Finisher:
        around = self._around
        return Finisher(
            folders=self._folders,
            recipe_keys=keys,
            publisher=around.publisher,
            intake=around.intake,
            in_flight=self._in_flight,
            storage_retry=around.hold,
            emit=around.emit,
            clock=around.clock,
        )
