"""Finish stage, the one exit of the pipeline: publishes, refuses or puts back; one event per job.

Composes the outcome, publishes it, delivers its event, releases the memory. What the disk refuses is retried until it
is accepted; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np

from rmbgd import naming as names
from rmbgd.config.load import Folder, Recipe
from rmbgd.deliver import confidence
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.types import Slot, verdict_of, view
from rmbgd.errors import ImageError, Reason
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.compose import with_alpha
from rmbgd.imaging.edges import clean_edges
from rmbgd.imaging.formats import SourceFacts
from rmbgd.pipeline.decode import SHORTAGE
from rmbgd.pipeline.dedup import Deduplicator, Follower
from rmbgd.pipeline.items import (
    Arrival,
    Cutout,
    Duplicate,
    FilmCutout,
    JobSource,
    Postponed,
    Rejection,
    ResultPublisher,
    Timing,
)
from rmbgd.pipeline.produce import Producer, Unencoded, names_of
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.publisher import SourceChanged
from rmbgd.sequence.sequences import Sequences
from rmbgd.sequence.turns import ordered
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome, job_keys, refused
from rmbgd.store.records import ContentKey, FileName, Job, Known, Published

T = TypeVar("T")

NO_MEMORY = -4  # of cv2.error: StsNoMem

_NOT_SAID = ("peak", "film_width", "film_height")
"""Keys of a report that image.done has not."""

_SAID_BESIDE = ("verdict", "notes", "score", "unusual", "reasons")
"""Keys of image.done that a sidecar has, too, besides those of the report."""


@dataclass(frozen=True, slots=True)
class Finisher:
    """One instance serves all finish threads; it keeps no state of an image.

    recipe_keys  by folder name: hash of recipe and model
    """

    context: EngineContext
    folders: Mapping[str, tuple[Folder, Recipe]]
    recipe_keys: Mapping[str, str]
    publisher: ResultPublisher
    intake: JobSource
    in_flight: Deduplicator
    storage_retry: StorageRetry
    producer: Producer
    ledger: Ledger
    sequences: Sequences

    def finish(self, arrival: Arrival, heartbeat: Heartbeat) -> None:
        """End one job, and the jobs that waited for its answer."""
        self.intake.moved(arrival.job.job_id, "finish")
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
        timing.begin()
        try:
            try:
                match arrival:
                    case Cutout():
                        return self._cutout(arrival, heartbeat)
                    case FilmCutout():
                        return self._film(arrival, heartbeat)
                    case Duplicate():
                        return self._duplicate(arrival, heartbeat)
                    case Rejection():
                        return self._refuse(arrival, heartbeat)
                    case Postponed():
                        return self._put_back(heartbeat, arrival)
            except ImageError as error:  # the result does not fit its format, or its name the file system
                refusal = Rejection(job, error.reason, error.detail, "finish", timing, arrival.facts)
                return self._refuse(refusal, heartbeat)
        except Released as released:
            return self._put_back(heartbeat, Postponed(job, "stopping", f"held back by the disk: {released}", timing))
        except Unencoded:
            return self._put_back(heartbeat, Postponed(job, "memory", SHORTAGE, timing))
        except SourceChanged as changed:
            return self._put_back(heartbeat, Postponed(job, changed.why, changed.detail, timing))

    # ------------------------------------------------------------------------------------------------ the four ways

    def _cutout(self, cutout: Cutout, heartbeat: Heartbeat) -> Known | Rejection | Postponed:
        job, matte = cutout.job, cutout.answer.matte
        _, recipe = self.folders[job.folder]
        verdict = verdict_of(matte, empty_below=recipe.empty_below)
        if verdict == "empty" and recipe.on_empty == "refuse":
            detail = f"no pixel group reaches alpha 0.5 (highest {matte.peak:.3f})"
            refusal = Rejection(job, Reason.NO_SUBJECT, detail, "finish", cutout.timing, cutout.facts, cutout.lease)
            return self._refuse(refusal, heartbeat)
        try:
            slot = self._planes(cutout)
        except MemoryError as error:
            raise Unencoded from error
        except cv2.error as error:
            if error.code != NO_MEMORY:
                raise
            raise Unencoded from error
        report = _report(cutout, verdict)
        outcome = self._done(cutout, report)
        published = self._retry(lambda: self._publish(cutout, slot, report, outcome, heartbeat), job, heartbeat)
        self._deliver(outcome, job, cutout.timing, heartbeat)
        if outcome.keys["verdict"] == "review":
            detail = "an equal image waits for review; this one is judged by itself"
            return Postponed(job, "review", detail, cutout.timing, cutout.facts)
        return Known(self._content_key(job, cutout.facts), published.output, published.files, report)

    def _film(self, film: FilmCutout, heartbeat: Heartbeat) -> Known | Rejection:
        job, timing, matte = film.job, film.timing, film.answer.matte
        _, recipe = self.folders[job.folder]
        verdict = verdict_of(matte, empty_below=recipe.empty_below)
        if verdict == "empty" and recipe.on_empty == "refuse":
            count = film.result.frames
            detail = f"no pixel group of {count} frames reaches alpha 0.5 (highest {matte.peak:.3f})"
            refusal = Rejection(job, Reason.NO_SUBJECT, detail, "finish", timing, film.facts)
            return self._refuse(refusal, heartbeat)
        report = _report(film, verdict) | {"frames": film.result.frames, "film_seconds": round(film.result.seconds, 3)}
        if film.result.flicker is not None:
            report |= {"flicker": {key: value for key, value in film.result.flicker.items() if key != "frames"}}
        outcome = self._done(film, report)
        report |= {"film_width": film.header.width, "film_height": film.header.height}  # for equal films
        key = self._content_key(job, film.facts)
        remembered = key if film.answer.model == recipe.model else None

        def write(files: FileSet) -> None:
            name = FileName.of_output(job.relative_path, names.FILM_EXTENSIONS[recipe.film])
            files.create(name).take(film.lease.file)
            files.sidecar_facts = _sidecar(film.facts, recipe, report)

        def publish() -> Published:
            return self.publisher.publish(job, write, outcome, content=remembered, report=report)

        begun = self.context.clock.monotonic()
        published = self._retry(publish, job, heartbeat)
        film.lease.release()
        timing.add("sync", self.context.clock.monotonic() - begun)
        self._deliver(outcome, job, timing, heartbeat)
        return Known(key, published.output, published.files, report)

    def _planes(self, cutout: Cutout) -> Slot:
        """What files are made from: what the engine wrote, or of a steady frame what its turn makes of that."""
        job, turns = cutout.job, self.sequences.turns
        slot, clock = view(cutout.lease.block, cutout.region), self.context.clock
        folder, recipe = self.folders[job.folder]
        if folder.kind != "frames":
            return slot
        begun = clock.monotonic()
        alpha = np.asarray(slot.alpha if slot.rgba is None else slot.rgba[:, :, 3])
        if ordered(job) is not None:
            alpha = self.sequences.filters.apply(job, slot.rgb, alpha)
            turns.alpha_made(job)
        steadied = clock.monotonic()
        if folder.temporal == "off":
            return slot
        cutout.timing.add("steady", steadied - begun)
        if all(look.content == "mask" for look in recipe.looks):
            return Slot(slot.rgb, None, None, alpha.copy())  # the filter goes on from its own
        rgba = np.empty((*alpha.shape, 4), np.uint8)
        with_alpha(slot.rgb, alpha, rgba)
        if recipe.edge_colours == "clean":
            clean_edges(slot.rgb, np.multiply(alpha, np.float32(1 / 255), dtype=np.float32), rgba)
        cutout.timing.add("edges", clock.monotonic() - steadied)
        return Slot(slot.rgb, None, rgba, None)

    def _publish(
        self, cutout: Cutout, slot: Slot, report: dict[str, object], outcome: JobOutcome, heartbeat: Heartbeat
    ) -> Published:
        job, timing = cutout.job, cutout.timing
        clock = self.context.clock
        begun = encoded = clock.monotonic()
        day = self.context.clock.wall().date()
        folder, recipe = self.folders[job.folder]

        def write(files: FileSet) -> None:
            nonlocal encoded
            produced = self.producer.produce(cutout, slot, folder, recipe, str(report["verdict"]), files, day)
            encoded = clock.monotonic()
            timing.add("encode", encoded - begun)
            outcome.add(milliseconds=self._milliseconds(job, timing), verdict=produced.verdict, **produced.keys)
            if "score" in produced.keys:
                report["score"] = produced.keys["score"]
            turn = [job.turn.note] if job.turn is not None and job.turn.note else []
            if notes := [*cutout.facts.notes, *produced.notes, *turn]:
                outcome.add(notes=notes)
            if produced.reasons:
                outcome.add(reasons=produced.reasons)
                if "score" in produced.keys:
                    area, history = cutout.answer.matte.coverage, self.ledger.coverages(job.folder)
                    if (unusual := confidence.unusual(area, history)) is not None:
                        outcome.add(unusual=unusual)
            said = {key: outcome.keys[key] for key in _SAID_BESIDE if key in outcome.keys}
            said |= {"compliance": produced.compliance} if produced.compliance else {}
            files.sidecar_facts = _sidecar(cutout.facts, recipe, dict(report) | said)
            files.turn = self.sequences.turns.names.turn(job, heartbeat)

        # A lesser model's answer is published but not remembered: equal images deserve what was asked for.
        remembered = cutout.answer.model == recipe.model and job.turn is None
        content = self._content_key(job, cutout.facts) if remembered else None
        published = self.publisher.publish(job, write, outcome, content=content, report=report)
        timing.add("sync", clock.monotonic() - encoded)
        return published

    def _duplicate(self, duplicate: Duplicate, heartbeat: Heartbeat) -> Known | Postponed:
        job, known, timing = duplicate.job, duplicate.known, duplicate.timing
        _, recipe = self.folders[job.folder]
        begun = self.context.clock.monotonic()
        sidecar = _sidecar(duplicate.facts, recipe, known.report)
        outcome = self._done(duplicate, known.report)
        if any("enlarged" in file.facts for file in known.files):
            outcome.add(notes=[*duplicate.facts.notes, "enlarged"])
        wanted = names_of(known.files, job.relative_path, self.context.clock.wall().date())
        published = self._retry(
            lambda: self.publisher.publish_copy(job, known, outcome, wanted=wanted, sidecar_facts=sidecar),
            job,
            heartbeat,
        )
        timing.add("sync", self.context.clock.monotonic() - begun)
        if published is None:
            detail = "the output of an equal image is not there any more; computed anew"
            return self._put_back(heartbeat, Postponed(job, "changed", detail, timing, duplicate.facts))
        self._deliver(outcome, job, timing, heartbeat)
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
        self._retry(lambda: self.publisher.refuse(job, outcome), job, heartbeat)
        self._deliver(outcome, job, timing, heartbeat)
        return rejection

    def _put_back(self, heartbeat: Heartbeat, postponed: Postponed) -> Postponed:
        job = postponed.job
        spent, why, detail = self._milliseconds(job, postponed.timing), postponed.why, postponed.detail
        self.context.emit("image.postponed", **job_keys(job), milliseconds=spent, why=why, detail=detail)
        if ordered(job) is not None:
            self.sequences.filters.undo(job)
            self.sequences.turns.ended(job, heartbeat)
        self.intake.give_back(job, why, detail)
        return postponed

    def _retry(self, action: Callable[[], T], job: Job, heartbeat: Heartbeat) -> T:
        if self.folders[job.folder][0].kind != "films":
            return self.storage_retry.retry_until_writable(action, job.folder, heartbeat)

        def on_the_disk() -> T:  # which copies, hashes and syncs a film for minutes
            heartbeat.waiting()
            return action()

        result = self.storage_retry.retry_until_writable(on_the_disk, job.folder, heartbeat)
        heartbeat.working()
        return result

    def _deliver(self, outcome: JobOutcome, job: Job, timing: Timing, heartbeat: Heartbeat) -> None:
        self.sequences.turns.deliver.wait(job, heartbeat)
        outcome.add(milliseconds=self._milliseconds(job, timing))
        self.publisher.deliver(outcome)
        self.sequences.turns.ended(job, heartbeat)  # before the intake, which may end the sequence then
        self.intake.ended(job)

    def _content_key(self, job: Job, facts: SourceFacts) -> ContentKey:
        return ContentKey(facts.sha256, self.recipe_keys[job.folder])

    def _done(self, image: Cutout | FilmCutout | Duplicate, report: Mapping[str, object]) -> JobOutcome:
        """The outcome of a job whose output is about to be published."""
        job, facts = image.job, image.facts
        width, height = facts.size
        keys = job_keys(job) | {"milliseconds": self._milliseconds(job, image.timing)}
        keys |= {"notes": list(facts.notes)} if facts.notes else {}
        keys |= {key: value for key, value in report.items() if key not in _NOT_SAID}
        keys |= {"width": width, "height": height, "format": facts.format, "bytes_in": job.version.size}
        return JobOutcome("image.done", keys | {"reused": isinstance(image, Duplicate), "sha256_in": facts.sha256})

    def _milliseconds(self, job: Job, timing: Timing) -> dict[str, float]:
        total = (self.context.clock.monotonic() - job.claimed_at) * 1000.0
        told = timing.milliseconds | {"processor": timing.processor * 1000.0, "total": total}
        return {stage: round(spent, 2) for stage, spent in told.items()}


def _report(cutout: Cutout | FilmCutout, verdict: str) -> dict[str, object]:
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
