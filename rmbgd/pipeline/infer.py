"""Inference stage: one thread per device takes a batch, runs it on its own worker, and requeues what failed.

A device takes images only while it is well, and puts back to the head of the queue what it could not finish, with what
is then known of them (engine/retry.py). So no thread ever uses the device of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmbgd.config.load import Folder, PipelineSettings, Recipe
from rmbgd.engine import retry
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.supervisor import DeviceSupervisor, DeviceViews
from rmbgd.engine.types import DeviceView, EngineDescription, OutputPlane, Work
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineFault, EngineLost, EngineMemory
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline import batching
from rmbgd.pipeline.items import Arrival, Cutout, Frame, JobSource, Postponed, Rejection
from rmbgd.pipeline.queue import Choice, NoSenders, Receiver, Sender, Taken
from rmbgd.pipeline.recurrent import RecurrentFrames
from rmbgd.sequence.turns import OrderGate

STOPPING = "the service is stopping and no engine is ready"
Folders = Mapping[str, tuple[Folder, Recipe]]


class DeviceThread:
    """What the thread of one device does. Everything is its own; `_choose` is called with the queue's lock held."""

    def __init__(
        self,
        supervisor: DeviceSupervisor,
        views: DeviceViews,
        folders: Folders,
        source: JobSource,
        context: EngineContext,
        heartbeat: Heartbeat,
        recurrent: RecurrentFrames | None = None,
    ) -> None:
        self._supervisor, self._views, self._folders, self._heartbeat = supervisor, views, folders, heartbeat
        self._recurrent = recurrent or RecurrentFrames(OrderGate(), lambda: None)
        self._source = source
        self._stopping, self._clock, self._emit = context.stopping, context.clock, context.emit
        self._settings: PipelineSettings = context.config.pipeline
        self._tries = context.config.engine.tries_used
        self._passed = self._failed = 0  # numbers of its last batches that ended so, for retry.BadEnd
        self._emitted: dict[str, object] = {}  # by device: its batching as last emitted

    def run(self, frames: Receiver[Frame], arrivals: Sender[Arrival]) -> None:
        """Until the last decoder has gone and no batch can come back."""
        with frames, arrivals:
            try:
                while True:
                    with frames.take(self._choose) as batch:
                        outcomes = self._end(batch)
                    answers = {frame.job.job_id: frame.answers for frame in batch.items}
                    for outcome in outcomes:
                        (answers[outcome.job.job_id] or arrivals).send(outcome)
            except NoSenders:
                pass
            finally:
                self._heartbeat.waiting()  # this thread ends, and its silence is no hang
                self._supervisor.close()

    # ------------------------------------------------------------------------------------------------ which images

    def _choose(self, frames: Sequence[Frame], now: float) -> Choice:
        views = self._views.all
        own = views[self._supervisor.index]
        share = batching.share(own, views, stopping=self._stopping.is_set())
        limits = _limits(own.description, self._settings)
        limits = replace(limits, sizes=tuple(size for size in limits.sizes if size <= own.limit))
        places = [place for place, frame in enumerate(frames) if self._may_take(frame, views)]
        if not places:
            return None
        choice = batching.choose([self._facts(frames[place]) for place in places], limits, now, share)
        return [places[index] for index in choice] if isinstance(choice, list) else choice

    def _may_take(self, frame: Frame, views: tuple[DeviceView, ...]) -> bool:
        _, recipe = self._folders[frame.job.folder]
        if frame.history.isolated or not self._is_recurrent(recipe.model):
            return True
        return self._recurrent.may_take(frame.job, self._supervisor.device, views)

    def _is_recurrent(self, model: str) -> bool:
        """As this device has it."""
        description = self._supervisor.view.description
        model = self._supervisor.substitutes.get(model, model)
        return description is not None and bool(description.models.get(model, {}).get("recurrent"))

    def _facts(self, frame: Frame) -> batching.Waiting:
        folder, recipe = self._folders[frame.job.folder]
        isolated, since = frame.history.isolated, max(frame.ready_at, frame.history.behind)
        realtime, suspect = folder.latency == "realtime", frame.job.attempt > 1 or isolated
        return batching.Waiting(recipe.model, realtime, suspect, since, folder.latency_target, isolated)

    def emit_batching(self) -> None:
        """How images are batched here: when the device that computes has no table emitted, or another one."""
        description = self._supervisor.description
        if description is None:
            return
        limits = _limits(description, self._settings)
        folders = {
            name: {
                "latency": folder.latency_target,
                "table": [1] if folder.latency == "realtime" else batching.table(limits, folder.latency_target),
            }
            for name, (folder, _) in self._folders.items()
        }
        if self._emitted.get(description.device) != folders:
            self._emitted[description.device] = folders
            milliseconds = {str(size): round(1000 * seconds, 3) for size, seconds in limits.seconds.items()}
            self._emit("engine.batching", device=description.device, milliseconds=milliseconds, folders=folders)

    # ------------------------------------------------------------------------------------------------ one batch

    def _end(self, batch: Taken[Frame]) -> list[Arrival]:
        """What became of it; nothing where it goes back to the queue."""
        worker = self._supervisor.ready_worker(self._heartbeat)
        self.emit_batching()
        if worker is None:
            if self._stopping.is_set() and self._is_last(batch.items):
                back = [Postponed(it.job, "stopping", STOPPING, it.timing, it.facts, it.lease) for it in batch.items]
                return self._finish(batch, back)
            return []  # the device went away meanwhile: they are put back as they were
        (first, *_others) = batch.items
        fallback = self._views.fallback
        if reason := retry.verdict(first.history, tries=self._tries, fallback=fallback.device if fallback else None):
            self._supervisor.release_worker()
            ended = (first.timing, first.facts, first.lease)
            return self._finish(batch, [Rejection(first.job, reason, first.history.detail, "engine", *ended)])
        return self._run(batch, worker)

    def _is_last(self, frames: Sequence[Frame]) -> bool:
        """The service stops, and no device will compute them: this one, which is down, gives them back."""
        own = self._supervisor.view
        share = batching.share(own, self._views.all, stopping=True)
        return not own.usable and all(share.isolated if each.history.isolated else share.ordinary for each in frames)

    def _run(self, batch: Taken[Frame], worker: EngineWorker) -> list[Arrival]:
        began = self._clock.monotonic()
        for frame in batch.items:
            self._source.moved(frame.owner, "engine")
            frame.timing.add("queue", began - max(frame.ready_at, frame.history.put_back_at))
        self._supervisor.computing(sorted({frame.owner for frame in batch.items}))
        try:
            report = worker.run([self._work(frame) for frame in batch.items])
        except EngineFault as fault:
            self._put_back(batch, fault, began)
            return []
        self._heartbeat.working()
        self._passed = self._views.number_batch()
        self._supervisor.report_ok(report)
        self._add_time(batch, began)
        left_out = set(report.not_finite)
        pairs = zip((it for it in batch.items if it.job.job_id not in left_out), report.answers, strict=True)
        cutouts: list[Arrival] = []
        for it, answer in pairs:
            counted = replace(answer, tries=max(it.history.runs + 1, answer.tries))
            if self._is_recurrent(self._folders[it.job.folder][1].model):
                self._recurrent.computed(it.job, self._supervisor.device)
            cutouts.append(Cutout(it.job, it.region, it.lease, it.facts, it.timing, counted))
        return self._finish(batch, cutouts, [self._not_finite(it) for it in batch.items if it.job.job_id in left_out])

    def _not_finite(self, frame: Frame) -> Frame:
        detail = f"alpha is not finite on {self._supervisor.device}"
        now, number = self._clock.monotonic(), self._passed
        end = retry.BadEnd(self._supervisor.device, detail, True, now, number, self._passed, self._failed)
        return replace(frame, history=retry.after_not_finite(frame.history, end))

    def _put_back(self, batch: Taken[Frame], fault: EngineFault, began: float) -> None:
        alone, device = len(batch.items) == 1, self._supervisor.device
        blamed = self._supervisor.report(fault, len(batch.items))
        self._add_time(batch, began)
        now, number = self._clock.monotonic(), self._views.number_batch()
        end = retry.BadEnd(device, str(fault), alone, now, number, self._passed, self._failed)
        after = retry.after_interruption
        if isinstance(fault, EngineMemory):
            after = retry.after_shortage
        elif blamed:
            killed = isinstance(fault, EngineLost) and fault.cause == KILLED_FROM_OUTSIDE
            after = retry.after_kill if killed else retry.after_fault
        if after is not retry.after_kill:
            self._failed = number
        back = [replace(frame, history=after(frame.history, end)) for frame in batch.items]
        fresh = sum(frame.history.isolated for frame in back) - sum(frame.history.isolated for frame in batch.items)
        batch.put_back(back)
        self._views.isolate(fresh)

    def _finish(self, batch: Taken[Frame], outcomes: Sequence[Arrival], back: Sequence[Frame] = ()) -> list[Arrival]:
        """`back` are those that have no outcome yet, with what is now known of them."""
        batch.finish(back)
        before, after = (sum(frame.history.isolated for frame in frames) for frames in (batch.items, back))
        if before != after:
            self._views.isolate(after - before)
        return list(outcomes)

    def _add_time(self, batch: Taken[Frame], began: float) -> None:
        spent = self._clock.monotonic() - began
        for frame in batch.items:
            frame.timing.add("engine", spent)

    def _work(self, frame: Frame) -> Work:
        _, recipe = self._folders[frame.job.folder]
        clean = recipe.edge_colours == "clean" and frame.region.output is OutputPlane.RGBA8
        model = self._supervisor.substitutes.get(recipe.model, recipe.model)
        refine, second_look = recipe.refine == "auto", recipe.review_below > 0
        link = self._recurrent.link(frame.job) if self._is_recurrent(recipe.model) else None
        return Work(frame.job.job_id, frame.region, model, clean, refine, second_look, link)


def _limits(description: EngineDescription | None, settings: PipelineSettings) -> batching.Limits:
    if description is None:
        return batching.Limits((1,))
    sizes = tuple(size for size in description.batch_sizes if size <= settings.batch_maximum)
    return batching.Limits(sizes, settings.batch_wait, description.seconds)
