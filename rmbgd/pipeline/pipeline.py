"""Wires the pipeline: decode, inference and finish threads, with a bounded queue between each two stages.

The thread that builds a Pipeline owns its ends: it closes the last sender of jobs, and all stages end by themselves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from rmbgd.config.load import Folder, PipelineSettings, Recipe
from rmbgd.engine.devices import EngineContext, EngineFactory, Stopped
from rmbgd.engine.supervisor import StartThread
from rmbgd.engine.types import EngineDescription
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.decode import Decoder, is_live
from rmbgd.pipeline.dedup import Deduplicator, recipe_hash
from rmbgd.pipeline.films import FilmStage
from rmbgd.pipeline.finish import Finisher
from rmbgd.pipeline.infer import DeviceThread
from rmbgd.pipeline.items import Arrival, Frame, JobSource, Postponed, ResultPublisher, Timing
from rmbgd.pipeline.produce import Producer
from rmbgd.pipeline.queue import NoSenders, QueueStatistics, Receiver, Sender, queue
from rmbgd.pipeline.recurrent import RecurrentFrames
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.sequence.sequences import Sequences
from rmbgd.sequence.turns import ordered
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job

LIVE = "live"  # the thread of a stage that takes images of realtime folders alone, so that it is never busy with others
NICE = 10  # of threads that may be busy with other images, where there are realtime folders
FOLLOWERS_MAXIMUM = 64  # claimed images that may wait for an equal one; each holds a row and a few hundred bytes


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What a pipeline needs of the rest of the service.

    followers  images that may wait for an equal one; an image that waits may come back undone, see JobSource.give_back
    """

    engine: EngineContext
    build_devices: EngineFactory
    ledger: Ledger
    publisher: ResultPublisher
    storage_retry: StorageRetry
    source: JobSource
    new_heartbeat: Callable[[str], Heartbeat]
    start_thread: StartThread
    on_ready: Callable[[EngineDescription], None]
    on_room: Callable[[], None]
    followers: int = FOLLOWERS_MAXIMUM
    sequences: Sequences = field(default_factory=Sequences)


def images_maximum(settings: PipelineSettings) -> int:
    """In a pipeline at once: jobs, frames and arrivals wait in queues, the rest is in the hands of threads."""
    return 3 * settings.queue + settings.decode_threads + 2 * settings.batch_maximum + settings.finish_threads


class Pipeline:
    """Queues, threads and what they share. Built and ended by one thread, its owner."""

    def __init__(self, context: PipelineContext) -> None:
        config = context.engine.config
        self._context = context
        self._folders: dict[str, tuple[Folder, Recipe]] = {
            folder.name: (folder, config.recipe_of(folder)) for folder in config.folder
        }
        self._has_live = any(folder.latency == "realtime" for folder in config.folder)
        self._has_frames = any(folder.kind == "frames" for folder in config.folder)
        self._has_films = any(folder.kind == "films" for folder in config.folder)
        self._film_stage: FilmStage | None = None  # set once, by its thread
        places = config.pipeline.queue
        self.jobs: Sender[Job]
        self._waiting: Receiver[Job]  # the owner's own end, to take back what was not decoded
        self.jobs, self._waiting = queue(places, "jobs", context.engine.clock, context.on_room)
        self._frames: tuple[Sender[Frame], Receiver[Frame]] = queue(places, "frames", context.engine.clock)
        self._arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = queue(
            # Frames that wait here for one before them must not keep that one out, nor others a live one.
            places + (2 * images_maximum(config.pipeline) if self._has_frames or self._has_live else 0),
            "arrivals",
            context.engine.clock,
        )
        self._in_flight = Deduplicator(followers_maximum=context.followers)
        # What depends on the identity of the models: set by the thread "infer" when one is ready.
        self._stages: Future[tuple[Decoder, Finisher]] = Future()

    def start(self) -> None:
        """Start every thread. They wait for the engine; jobs wait in their queue."""
        context, pipeline = self._context, self._context.engine.config.pipeline
        bodies: list[tuple[str, Callable[[], None]]] = []
        live = [LIVE] if self._has_live else []
        for number in (*range(pipeline.decode_threads), *live):
            heartbeat = context.new_heartbeat(name := f"decode-{number}")
            ends = self._waiting.clone(heartbeat), self._frames[0].clone(heartbeat), self._arrivals[0].clone(heartbeat)
            bodies.append((name, partial(self._decode, *ends, heartbeat, only_live=number == LIVE)))
        heartbeat = context.new_heartbeat("infer")
        both = self._frames[1].clone(heartbeat), self._arrivals[0].clone(heartbeat)
        bodies.append(("infer", partial(self._infer, *both, heartbeat)))
        for number in (*range(pipeline.finish_threads), *live):
            heartbeat = context.new_heartbeat(name := f"finish-{number}")
            arrivals = self._arrivals[1].clone(heartbeat)
            bodies.append((name, partial(self._finish, arrivals, heartbeat, only_live=number == LIVE)))
        if self._has_films:
            heartbeat = context.new_heartbeat("film")
            ends = self._waiting.clone(heartbeat), self._frames[0].clone(heartbeat), self._arrivals[0].clone(heartbeat)
            bodies.append(("film", partial(self._make_films, *ends, heartbeat)))
        for name, body in bodies:
            context.start_thread(name, body)
        context.sequences.turns.listen(self._arrivals[1].look_again)
        self._frames[0].close()
        self._frames[1].close()
        self._arrivals[1].close()

    def exit_stage(self) -> Sender[Arrival]:
        """Another sender to the finish stage, for the intake, which rejects some images. Ask before `let_run`."""
        return self._arrivals[0].clone()

    def take_back(self) -> None:
        """Put back what is only a path. Returns when the last producer of jobs has gone and nothing waits any more."""
        with self._waiting, self._arrivals[0] as arrivals:
            for job in self._waiting:
                arrivals.send(self._taken_back(job))

    def _taken_back(self, job: Job) -> Postponed:
        timing = Timing()
        timing.add("wait", self._context.engine.clock.monotonic() - job.claimed_at)
        return Postponed(job, "stopping", "claimed, but not begun when the service stopped", timing)

    def let_run(self) -> None:
        """Give up the owner's own ends: the pipeline then ends by itself when the last job is through."""
        self._waiting.close()
        self._arrivals[0].close()

    def film(self) -> Mapping[str, object] | None:
        """How far the film in work is. Any thread's."""
        progress = self._film_stage.progress if self._film_stage is not None else None
        return None if progress is None else progress.describe(self._context.engine.clock.monotonic())

    def statistics(self) -> list[QueueStatistics]:
        return [self._waiting.statistics(), self._frames[0].statistics(), self._arrivals[0].statistics()]

    # ------------------------------------------------------------------------------------------------ thread bodies

    def _decode(
        self,
        jobs: Receiver[Job],
        frames: Sender[Frame],
        arrivals: Sender[Arrival],
        heartbeat: Heartbeat,
        *,
        only_live: bool,
    ) -> None:
        """Until the last producer of jobs has gone: frames go to the device, everything else to the finish stage."""
        with jobs, frames, arrivals:
            heartbeat.waiting()
            self._be_nice(only_live=only_live)
            try:
                decoder, _ = self._stages.result()
                while True:
                    [job] = jobs.receive_chosen(decoder.first_live if only_live else decoder.first)
                    self._context.source.moved(job.job_id, "decode")
                    if ordered(job) is not None and self._context.engine.stopping.is_set():
                        arrivals.send(self._taken_back(job))  # as those before it may be: the order holds over a stop
                        continue
                    decoded = decoder.decode(job, heartbeat)
                    if isinstance(decoded, Frame):
                        frames.send(decoded, urgent=is_live(self._folders, job))
                    elif decoded is not None:
                        arrivals.send(decoded)
            except (CancelledError, NoSenders):  # cancelled: there will be no engine, the owner takes the jobs back
                return

    def _make_films(
        self, jobs: Receiver[Job], frames: Sender[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat
    ) -> None:
        """Films, one after another."""
        context = self._context
        with jobs, frames, arrivals:
            heartbeat.waiting()
            self._be_nice(only_live=False)
            try:
                decoder, _ = self._stages.result()
                stage = self._film_stage = FilmStage(
                    context.engine,
                    self._folders,
                    decoder.recipe_keys,
                    context.ledger,
                    context.storage_retry,
                    frames,
                    heartbeat,
                    context.sequences.turns.network,
                )
                while True:
                    [job] = jobs.receive_chosen(stage.first)
                    context.source.moved(job.job_id, "decode")
                    arrivals.send(self._taken_back(job) if context.engine.stopping.is_set() else stage.run(job))
            except (CancelledError, NoSenders):
                return

    def _infer(self, frames: Receiver[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat) -> None:
        """Find the devices, start a thread for each, and let the other stages begin when one of them is ready."""
        engine = self._context.engine
        heartbeat.waiting()  # drivers and weights take their time, and have deadlines of their own
        with frames, arrivals:
            try:
                devices = engine.devices = self._context.build_devices(engine)
                devices.views.listen(frames.look_again)
                first: list[DeviceThread] = []
                turns = self._context.sequences.turns
                turns.listen(frames.look_again)
                recurrent = RecurrentFrames(turns.network, frames.look_again)
                for supervisor in devices.supervisors:
                    own = self._context.new_heartbeat(name := f"infer-{supervisor.device}")
                    thread = DeviceThread(
                        supervisor, devices.views, self._folders, self._context.source, engine, own, recurrent
                    )
                    if not supervisor.is_fallback:
                        first.append(thread)
                    self._context.start_thread(name, partial(thread.run, frames.clone(own), arrivals.clone(own)))
                devices.start(self._context.start_thread)
                if engine.stopping.is_set():
                    devices.stop_waiting()
                description = devices.description()
                for thread in first:  # none of them has an image yet
                    thread.emit_batching()
                self._begin(description)
            except Stopped:  # nothing was decoded
                pass
            finally:
                self._stages.cancel()

    def _finish(self, arrivals: Receiver[Arrival], heartbeat: Heartbeat, *, only_live: bool) -> None:
        with arrivals:
            heartbeat.waiting()
            self._be_nice(only_live=only_live)
            choose = partial(self._first_open, only_live=only_live)
            try:
                _, finisher = self._stages.result()
            except CancelledError:  # nothing was decoded; what comes now only goes back
                finisher = self._finisher({})
            with suppress(NoSenders):
                while True:
                    [arrival] = arrivals.receive_chosen(choose)
                    finisher.finish(arrival, heartbeat)

    def _first_open(self, arrivals: Sequence[Arrival], _now: float, *, only_live: bool) -> tuple[int] | None:
        """The first that waits for no frame before it."""
        gate = self._context.sequences.turns.alpha
        jobs = ((index, arrival.job) for index, arrival in enumerate(arrivals))
        wanted = ((index, job) for index, job in jobs if not only_live or is_live(self._folders, job))
        return next(((index,) for index, job in wanted if gate.is_open(job)), None)

    def _be_nice(self, *, only_live: bool) -> None:
        """The calling thread lets those go first that work for realtime folders alone."""
        if self._has_live and not only_live:
            with suppress(OSError):  # a sandbox that forbids it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    # ------------------------------------------------------------------------------------------------ what they share

    def _begin(self, description: EngineDescription) -> None:
        context, models, folders = self._context, description.models, self._folders
        presets = context.engine.config.presets
        keys = {
            name: _key_of(folder, recipe_hash(recipe, models.get(recipe.model, {}), presets))
            for name, (folder, recipe) in folders.items()
        }
        turns = context.sequences.turns
        decoder = Decoder(context.engine, folders, keys, context.ledger, self._in_flight, turns)
        self._stages.set_result((decoder, self._finisher(keys)))
        context.on_ready(description)

    def _finisher(self, keys: Mapping[str, str]) -> Finisher:
        context = self._context
        return Finisher(
            context=context.engine,
            folders=self._folders,
            recipe_keys=keys,
            publisher=context.publisher,
            intake=context.source,
            in_flight=self._in_flight,
            storage_retry=context.storage_retry,
            producer=Producer(context.engine.config.presets),
            ledger=context.ledger,
            sequences=context.sequences,
        )


def _key_of(folder: Folder, recipe_key: str) -> str:
    """What becomes of a film depends on its folder, too."""
    is_steady = folder.kind == "films" and folder.temporal == "steady"
    return f"{recipe_key}-steady-{folder.look_ahead}" if is_steady else recipe_key
