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
from rmbgd.engine.seats import Seat, Seats, seats_of
from rmbgd.engine.types import Backend, EngineDescription, Work
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.batching import Policy
from rmbgd.pipeline.decode import Decoder, decode_loop
from rmbgd.pipeline.dedup import Deduplicator, recipe_hash
from rmbgd.pipeline.finish import Finisher, Returns, finish_loop
from rmbgd.pipeline.infer import Choose, segment_loop
from rmbgd.pipeline.items import Arrival, Frame, Postponed, Timing
from rmbgd.pipeline.queue import ChannelStatistics, Receiver, Sender, channel
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job

TWINS_MAXIMUM = 64  # claimed images that may wait for an equal one; each holds a row and a few hundred bytes


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What a line needs of the rest of the house."""

    config: Config
    arena: Arena
    ledger: Ledger
    publisher: Publisher
    hold: StorageRetry
    intake: Returns
    emit: Emit
    clock: Clock
    new_heartbeat: Callable[[str], Heartbeat]
    start_thread: Callable[[str, Callable[[], None]], object]
    on_ready: Callable[[EngineDescription], None]
    on_room: Callable[[], None]


class Pipeline:
    """Channels, threads and what they share. Built and ended by one thread, its owner."""

    def __init__(self, around: PipelineContext, engine_of: Callable[[Heartbeat], Backend | Seats]) -> None:
        config = around.config
        self._around = around
        self._engine_of = engine_of
        self._folders: dict[str, tuple[Folder, Recipe]] = {
            folder.name: (folder, config.recipe_of(folder)) for folder in config.folder
        }
        places = config.pipeline.queue
        self.jobs: Sender[Job]
        self._waiting: Receiver[Job]  # the owner's own end, to take back what nobody decoded
        self.jobs, self._waiting = channel(places, "jobs", around.clock, around.on_room)
        self._frames: tuple[Sender[Frame], Receiver[Frame]] = channel(places, "frames", around.clock)
        self._arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = channel(places, "arrivals", around.clock)
        self._in_flight = Deduplicator(twins_maximum=TWINS_MAXIMUM)
        # What depends on the engine's answer to "what are you": set by the first segment thread when it is ready.
        self._stages: Future[tuple[Decoder, Finisher]] = Future()

    def start(self) -> None:
        """Start every thread. They wait for the engine; jobs wait in their channel."""
        around, pipeline = self._around, self._around.config.pipeline
        bodies: list[tuple[str, Callable[[], None]]] = []
        for number in range(pipeline.decode_threads):
            heartbeat = around.new_heartbeat(name := f"decode-{number}")
            jobs, frames = self._waiting.clone(heartbeat), self._frames[0].clone(heartbeat)
            bodies.append((name, partial(self._decode, jobs, frames, self._arrivals[0].clone(heartbeat), heartbeat)))
        heartbeat = around.new_heartbeat("segment")
        ends = self._frames[1].clone(heartbeat), self._arrivals[0].clone(heartbeat)
        bodies.append(("segment", partial(self._segment, *ends, heartbeat)))
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

    def statistics(self) -> list[ChannelStatistics]:
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

    def _segment(self, frames: Receiver[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat) -> None:
        """The first device's thread, which finds out how many there are and starts the others'."""
        with frames, arrivals:
            try:
                found = seats_of(self._engine_of(heartbeat))
                found.listen(frames.look_again)
                for seat in found.seats[1:]:
                    self._seat(seat, frames, arrivals)
                first = found.seats[0]
                started = partial(self._first_started, first)
                self._feed(first.engine(heartbeat), started, frames, arrivals, heartbeat)
            finally:
                self._stages.cancel()

    def _seat(self, seat: Seat, frames: Receiver[Frame], arrivals: Sender[Arrival]) -> None:
        heartbeat = self._around.new_heartbeat(name := f"segment-{seat.name}")
        ends = frames.clone(heartbeat), arrivals.clone(heartbeat)
        started = partial(self._policy, seat)
        self._around.start_thread(name, lambda: self._feed(seat.engine(heartbeat), started, *ends, heartbeat))

    def _feed(
        self,
        engine: Backend,
        started: Callable[[EngineDescription], Callable[[], Choose]],
        frames: Receiver[Frame],
        arrivals: Sender[Arrival],
        heartbeat: Heartbeat,
    ) -> None:
        segment_loop(engine, started, self._work, frames, arrivals, self._around.clock, heartbeat)

    def _finish(self, arrivals: Receiver[Arrival], heartbeat: Heartbeat) -> None:
        with arrivals:
            heartbeat.waiting()
            try:
                _, finisher = self._stages.result()
            except CancelledError:  # nothing was decoded; what comes now only goes back
                finisher = self._finisher({})
            finish_loop(finisher, arrivals, heartbeat)

    # ------------------------------------------------------------------------------------------------ what they share

    def _first_started(self, seat: Seat, description: EngineDescription) -> Callable[[], Choose]:
        """The first engine has said what it is: the other stages can begin."""
        self._begin(description)
        return self._policy(seat, description)

    def _policy(self, seat: Seat, description: EngineDescription) -> Callable[[], Choose]:
        return Policy(seat, description, self._folders, self._around.config.pipeline, self._around.emit).now

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
            hold=around.hold,
            emit=around.emit,
            clock=around.clock,
        )

    def _work(self, frame: Frame) -> Work:
        _, recipe = self._folders[frame.job.folder]
        clean = recipe.edge_colours == "clean" and recipe.content != "mask"
        return Work(frame.job.job_id, frame.region, recipe.model, clean)
