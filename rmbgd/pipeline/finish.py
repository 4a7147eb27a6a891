"""Finish stage, the one exit of the pipeline: publishes, refuses or puts back; one event per job.

Composes the outcome, publishes it, delivers its event, releases the memory. What the disk refuses is retried until it
is accepted; nothing is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rmbgd.config.load import Folder, Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.types import verdict_of, view
from rmbgd.errors import ImageError, Reason
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.encode import encode
from rmbgd.imaging.formats import SourceFacts
from rmbgd.naming import EXTENSIONS
from rmbgd.pipeline.decode import LARGE_PIXELS, SHORTAGE
from rmbgd.pipeline.dedup import Deduplicator, Follower
from rmbgd.pipeline.items import Arrival, Cutout, Duplicate, JobSource, Postponed, Rejection, Timing
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.publisher import Publisher, SourceChanged
from rmbgd.publish.temporary import Temporary
from rmbgd.store.outbox import JobOutcome, job_keys, refused
from rmbgd.store.records import ContentKey, FileName, Job, Known, Published

T = TypeVar("T")


class Unencoded(Exception):
    """There was no memory to encode with; nothing has been published."""


@dataclass(frozen=True, slots=True)
class Finisher:
    """One instance serves all finish threads; it keeps no state of an image.

    recipe_keys  by folder name: hash of recipe and model
    large        held while one large WebP is encoded: libwebp takes 12 to 24 bytes a pixel
    """

    context: EngineContext
    folders: Mapping[str, tuple[Folder, Recipe]]
    recipe_keys: Mapping[str, str]
    publisher: Publisher
    intake: JobSource
    in_flight: Deduplicator
    storage_retry: StorageRetry
    large: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, arrival: Arrival, heartbeat: Heartbeat) -> None:
        """End one job, and the jobs that waited for its answer."""
        try:
            ended = self._end(arrival, heartbeat)
        finally:
            if arrival.lease is not None:
                arrival.lease.release()
        if isinstance(arrival, Duplicate) or arrival.facts is None:
            return  # only a job that was decoded may lead others
        key = self._content_key(arrival.job, arrival.facts)
        for follower in self.in_flight.leave(key, arrival.job):
            self._end(_for_follower(follower, ended), heartbeat)

    def _end(self, arrival: Arrival, heartbeat: Heartbeat) -> Known | Rejection | Postponed:
        """What became of it, in the shape that its followers can share."""
        job, timing = arrival.job, arrival.timing
        try:
            try:
                match arrival:
                    case Cutout():
                        return self._cutout(arrival, heartbeat)
                    case Duplicate():
                        return self._duplicate(arrival, heartbeat)
                    case Rejection():
                        return self._refuse(arrival, heartbeat)
                    case Postponed():
                        return self._put_back(arrival)
            except ImageError as error:  # the result does not fit its format, or its name the file system
                refusal = Rejection(job, error.reason, error.detail, "finish", timing, arrival.facts)
                return self._refuse(refusal, heartbeat)
        except Released as released:
            return self._put_back(Postponed(job, "stopping", f"held back by the disk: {released}", timing))
        except Unencoded:
            return self._put_back(Postponed(job, "memory", SHORTAGE, timing))
        except SourceChanged as changed:
            return self._put_back(Postponed(job, changed.why, changed.detail, timing))

    # ------------------------------------------------------------------------------------------------ the four ways

    def _cutout(self, cutout: Cutout, heartbeat: Heartbeat) -> Known | Rejection:
        job, matte = cutout.job, cutout.answer.matte
        _, recipe = self.folders[job.folder]
        verdict = verdict_of(matte, empty_below=recipe.empty_below)
        if verdict == "empty" and recipe.on_empty == "refuse":
            detail = f"no pixel group reaches alpha 0.5 (highest {matte.peak:.3f})"
            refusal = Rejection(job, Reason.NO_SUBJECT, detail, "finish", cutout.timing, cutout.facts, cutout.lease)
            return self._refuse(refusal, heartbeat)
        report = _report(cutout, verdict)
        outcome = self._done(cutout, report)
        published = self._retry(lambda: self._publish(cutout, recipe, report, outcome), job, heartbeat)
        self._deliver(outcome, job, cutout.timing)
        return Known(self._content_key(job, cutout.facts), published.output, published.files, report)

    def _publish(self, cutout: Cutout, recipe: Recipe, report: Mapping[str, object], outcome: JobOutcome) -> Published:
        job, timing = cutout.job, cutout.timing
        clock = self.context.clock
        begun = encoded = clock.monotonic()

        def write(files: FileSet) -> None:
            nonlocal encoded
            temporary = files.create(FileName.of_output(job.relative_path, EXTENSIONS[recipe.format]))
            self._encode(cutout, recipe, temporary, empty=report["verdict"] == "empty")
            encoded = clock.monotonic()
            timing.add("encode", encoded - begun)
            outcome.add(milliseconds=self._milliseconds(job, timing))

        # A lesser model's answer is published but not remembered: equal images deserve what was asked for.
        content = self._content_key(job, cutout.facts) if cutout.answer.model == recipe.model else None
        sidecar = _sidecar(cutout.facts, recipe, report)
        published = self.publisher.publish(job, write, outcome, content=content, report=report, sidecar_facts=sidecar)
        timing.add("sync", clock.monotonic() - encoded)
        return published

    def _encode(self, cutout: Cutout, recipe: Recipe, temporary: Temporary, *, empty: bool) -> None:
        slot = view(cutout.lease.block, cutout.region)
        if empty and slot.rgba is not None:  # no subject: what faint alpha there is would be a garbage matte
            slot.rgba[:, :, 3] = 0
        if empty and slot.alpha is not None:
            slot.alpha.fill(0)
        large = recipe.format == "webp" and slot.rgb.size > 3 * LARGE_PIXELS
        with self.large if large else nullcontext():
            try:
                frame = arrange(slot.rgba, slot.alpha, recipe, profile=cutout.facts.icc_profile)
                encode(frame.pixels, recipe, cutout.facts, temporary.write)
            except MemoryError as error:
                raise Unencoded from error

    def _duplicate(self, duplicate: Duplicate, heartbeat: Heartbeat) -> Known | Postponed:
        job, known, timing = duplicate.job, duplicate.known, duplicate.timing
        _, recipe = self.folders[job.folder]
        begun = self.context.clock.monotonic()
        sidecar = _sidecar(duplicate.facts, recipe, known.report)
        outcome = self._done(duplicate, known.report)
        published = self._retry(
            lambda: self.publisher.publish_copy(job, known, outcome, sidecar_facts=sidecar), job, heartbeat
        )
        timing.add("sync", self.context.clock.monotonic() - begun)
        if published is None:
            detail = "the output of an equal image is not there any more; computed anew"
            return self._put_back(Postponed(job, "changed", detail, timing, duplicate.facts))
        self._deliver(outcome, job, timing)
        return known

    def _refuse(self, rejection: Rejection, heartbeat: Heartbeat) -> Rejection:
        job, timing = rejection.job, rejection.timing
        outcome = refused(
            job_keys(job),
            rejection.reason,
            rejection.detail,
            stage=rejection.stage,
            milliseconds=self._milliseconds(job, timing),
            sha256_in=rejection.facts.sha256 if rejection.facts else None,
        )
        self._retry(lambda: self.publisher.quarantine.set_aside(job, outcome), job, heartbeat)
        self._deliver(outcome, job, timing)
        return rejection

    def _put_back(self, postponed: Postponed) -> Postponed:
        job = postponed.job
        spent, why, detail = self._milliseconds(job, postponed.timing), postponed.why, postponed.detail
        self.context.emit("image.postponed", **job_keys(job), milliseconds=spent, why=why, detail=detail)
        self.intake.give_back(job, why, detail)
        return postponed

    def _retry(self, action: Callable[[], T], job: Job, heartbeat: Heartbeat) -> T:
        return self.storage_retry.retry_until_writable(action, job.folder, heartbeat)

    def _deliver(self, outcome: JobOutcome, job: Job, timing: Timing) -> None:
        outcome.add(milliseconds=self._milliseconds(job, timing))
        self.publisher.deliver(outcome)
        self.intake.ended(job)

    def _content_key(self, job: Job, facts: SourceFacts) -> ContentKey:
        return ContentKey(facts.sha256, self.recipe_keys[job.folder])

    def _done(self, image: Cutout | Duplicate, report: Mapping[str, object]) -> JobOutcome:
        """The outcome of a job whose output is about to be published."""
        job, facts = image.job, image.facts
        width, height = facts.size
        keys = job_keys(job) | {"milliseconds": self._milliseconds(job, image.timing)}
        keys |= {"notes": list(facts.notes)} if facts.notes else {}
        keys |= {key: value for key, value in report.items() if key != "peak"}
        keys |= {"width": width, "height": height, "format": facts.format, "bytes_in": job.version.size}
        return JobOutcome("image.done", keys | {"reused": isinstance(image, Duplicate), "sha256_in": facts.sha256})

    def _milliseconds(self, job: Job, timing: Timing) -> dict[str, float]:
        total = (self.context.clock.monotonic() - job.claimed_at) * 1000.0
        return {stage: round(spent, 2) for stage, spent in (timing.milliseconds | {"total": total}).items()}


def _report(cutout: Cutout, verdict: str) -> dict[str, object]:
    """What the engine said of the image; remembered with the answer, so that equal images can say the same."""
    matte, answer = cutout.answer.matte, cutout.answer
    shares = {"coverage": round(matte.coverage, 4), "soft": round(matte.soft, 4), "peak": round(matte.peak, 4)}
    report = {"verdict": verdict, "device": answer.device, "model": answer.model, **shares, "batch": answer.batch}
    return report | ({"engine_tries": answer.tries} if answer.tries > 1 else {})


def _sidecar(facts: SourceFacts, recipe: Recipe, report: Mapping[str, object]) -> dict[str, object] | None:
    if recipe.sidecar == "never" or (recipe.sidecar == "notable" and report["verdict"] == "ok"):
        return None
    width, height = facts.size
    return {"width": width, "height": height, "format": facts.format, "notes": list(facts.notes), **report}


def _for_follower(follower: Follower, ended: Known | Rejection | Postponed) -> Arrival:
    """The answer that an image gets because an equal one got it."""
    job, facts, timing = follower.job, follower.facts, follower.timing
    if isinstance(ended, Known):
        return Duplicate(job, facts, ended, timing)
    return replace(ended, job=job, facts=facts, timing=timing, lease=None)
