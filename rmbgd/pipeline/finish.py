"""The finish stage: the one exit door. Publishes, refuses, puts back; gives the memory back; emits one event per job.

Does not compute pixels beyond composing what the recipe asks for, and touches no device. What the disk refuses is held
and tried again; nothing is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

from rmbgd.clock import Clock
from rmbgd.config.load import Folder, Recipe
from rmbgd.engine.types import MatteReport, Slot, view
from rmbgd.errors import ImageError, Reason
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.compose import arrange
from rmbgd.imaging.encode import encode
from rmbgd.imaging.formats import SourceFacts
from rmbgd.pipeline.decode import LARGE_PIXELS, SHORTAGE
from rmbgd.pipeline.dedup import Deduplicator, Follower
from rmbgd.pipeline.items import Arrival, Cutout, Duplicate, Frame, Postponed, Rejection, Timing
from rmbgd.pipeline.queue import Receiver
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.publish.publisher import Publisher, SourceChanged
from rmbgd.store.records import ContentKey, Job, Known, Published

# --- POLICY: what a matte says about its image. Absolute values only: nothing is stretched, so nothing is made up.


Verdict = Literal["ok", "empty", "full"]


def verdict_of(matte: MatteReport, *, empty_below: float) -> Verdict:
    """`empty`: there is no subject; `full`: there is no background. `empty_below` is a share of pixels, 0..1."""
    if matte.solid < empty_below or matte.peak < 0.5:
        return "empty"
    if matte.solid > 1.0 - empty_below and matte.coverage > 0.999:
        return "full"
    return "ok"


# The finish stage: the one exit door. Publishes, refuses, puts back; gives the memory back; emits one event per job.


class Returns(Protocol):
    """Where images go that could not be judged: the intake."""

    def give_back(self, job: Job, why: str, detail: str) -> None: ...

    def ended(self, job: Job) -> None: ...


class Unencoded(Exception):
    """There was no memory to encode with; nothing has been published."""


class Finisher:
    """One instance serves all finish threads; it keeps no state of an image."""

    def __init__(
        self,
        *,
        folders: Mapping[str, tuple[Folder, Recipe]],
        recipe_keys: Mapping[str, str],
        publisher: Publisher,
        intake: Returns,
        in_flight: Deduplicator,
        hold: StorageRetry,
        emit: Emit,
        clock: Clock,
    ) -> None:
        self._folders = folders
        self._recipe_keys = recipe_keys  # folder name -> hash of recipe and model
        self._publisher = publisher
        self._intake = intake
        self._in_flight = in_flight
        self._hold = hold
        self._emit = emit
        self._clock = clock
        self._large = threading.Lock()  # held while one large WebP is encoded: libwebp takes 12 to 24 bytes a pixel

    def finish(self, arrival: Arrival, heartbeat: Heartbeat) -> None:
        """End one job, and the jobs that waited for its answer."""
        lease = arrival.frame.lease if isinstance(arrival, Cutout) else getattr(arrival, "lease", None)
        try:
            ended = self._end(arrival, heartbeat)
        finally:
            if lease is not None:
                lease.release()
        for twin in self._twins_of(arrival):
            self._end(_for_twin(twin, ended), heartbeat)

    def _end(self, arrival: Arrival, heartbeat: Heartbeat) -> Known | Rejection | Postponed:
        """What became of it, in the shape that its twins can share."""
        try:
            try:
                return self._try(arrival, heartbeat)
            except ImageError as error:  # the result does not fit its format, or its name the file system
                return self._refuse(_refused(arrival, error), heartbeat)
        except Released as released:
            return self._put_back(_postponed(arrival, "stopping", f"held back by the disk: {released.fault}"))
        except Unencoded:
            return self._put_back(_postponed(arrival, "memory", SHORTAGE))
        except SourceChanged as changed:
            return self._put_back(_postponed(arrival, changed.why, changed.detail))

    def _try(self, arrival: Arrival, heartbeat: Heartbeat) -> Known | Rejection | Postponed:
        if isinstance(arrival, Cutout):
            return self._cutout(arrival, heartbeat)
        if isinstance(arrival, Duplicate):
            return self._duplicate(arrival, heartbeat)
        if isinstance(arrival, Rejection):
            return self._refuse(arrival, heartbeat)
        return self._put_back(arrival)

    # ------------------------------------------------------------------------------------------------ the four ways

    def _cutout(self, cutout: Cutout, heartbeat: Heartbeat) -> Known | Rejection:
        frame, matte = cutout.frame, cutout.answer.matte
        job, timing = frame.job, frame.timing
        _, recipe = self._folders[job.folder]
        verdict = verdict_of(matte, empty_below=recipe.empty_below)
        if verdict == "empty" and recipe.on_empty == "refuse":
            detail = f"no pixel group reaches alpha 0.5 (highest {matte.peak:.3f})"
            return self._refuse(
                Rejection(job, Reason.NO_SUBJECT, detail, "finish", timing, frame.facts, frame.lease), heartbeat
            )
        report = self._report(cutout, verdict)
        telling = self._telling(job, frame.facts, report, reused=False)
        published = self._hold.insist(lambda: self._publish(cutout, recipe, report, telling), job.folder, heartbeat)
        self._emit_done(job, timing, published, telling)
        self._intake.ended(job)
        key = ContentKey(frame.facts.sha256, self._recipe_keys[job.folder])
        return Known(key, published.output, published.path, published.sha256, published.size, report)

    def _publish(
        self, cutout: Cutout, recipe: Recipe, report: Mapping[str, object], telling: Mapping[str, object]
    ) -> Published:
        frame = cutout.frame
        folder, _ = self._folders[frame.job.folder]
        begun = self._clock.monotonic()
        with self._publisher.open_temporary(folder, frame.job) as temporary:
            slot = view(frame.lease.block, frame.region)
            if report["verdict"] == "empty":
                _clear(slot)
            with self._alone_if(recipe.format == "webp" and slot.rgb.size > 3 * LARGE_PIXELS):
                try:
                    encode(arrange(slot.rgba, slot.alpha, recipe), recipe, frame.facts, temporary.write)
                except MemoryError as error:
                    raise Unencoded from error
            encoded = self._clock.monotonic()
            frame.timing.add("encode", encoded - begun)
            # A lesser model's answer is published but not remembered: equal images deserve what was asked for.
            intended = cutout.answer.model == recipe.model
            published = self._publisher.publish(
                temporary,
                frame.job,
                content=ContentKey(frame.facts.sha256, self._recipe_keys[folder.name]) if intended else None,
                report=report,
                sidecar_facts=self._sidecar(frame.facts, recipe, report),
                telling={**telling, **self._took(frame.job, frame.timing)},
            )
        frame.timing.add("sync", self._clock.monotonic() - encoded)
        return published

    def _duplicate(self, duplicate: Duplicate, heartbeat: Heartbeat) -> Known | Postponed:
        job, known = duplicate.job, duplicate.known
        _, recipe = self._folders[job.folder]
        begun = self._clock.monotonic()
        sidecar = self._sidecar(duplicate.facts, recipe, known.report)
        telling = self._telling(job, duplicate.facts, known.report, reused=True)
        so_far = telling | self._took(job, duplicate.timing)
        published = self._hold.insist(
            lambda: self._publisher.publish_copy(job, known, sidecar_facts=sidecar, telling=so_far),
            job.folder,
            heartbeat,
        )
        duplicate.timing.add("sync", self._clock.monotonic() - begun)
        if published is None:
            detail = "the output of an equal image is not there any more; computed anew"
            return self._put_back(Postponed(job, "changed", detail, duplicate.timing, duplicate.facts))
        self._emit_done(job, duplicate.timing, published, telling)
        self._intake.ended(job)
        return known

    def _refuse(self, rejection: Rejection, heartbeat: Heartbeat) -> Rejection:
        job = rejection.job
        sha256 = rejection.facts.sha256 if rejection.facts else None
        telling: dict[str, object] = {"stage": rejection.stage, **({} if sha256 is None else {"sha256_in": sha256})}
        so_far = telling | self._took(job, rejection.timing)
        quarantine = self._hold.insist(
            lambda: self._publisher.quarantine(
                job, rejection.reason, rejection.detail, stage=rejection.stage, sha256=sha256, telling=so_far
            ),
            job.folder,
            heartbeat,
        )
        self._emit(
            "image.failed",
            **self._common(job, rejection.timing),
            **telling,
            reason=str(rejection.reason),
            detail=rejection.detail,
            **({} if quarantine is None else {"quarantine": quarantine}),
        )
        self._publisher.told(job)
        self._intake.ended(job)
        return rejection

    def _put_back(self, postponed: Postponed) -> Postponed:
        job = postponed.job
        self._emit("image.postponed", **self._common(job, postponed.timing), why=postponed.why, detail=postponed.detail)
        self._intake.give_back(job, postponed.why, postponed.detail)
        return postponed

    def _alone_if(self, large: bool) -> AbstractContextManager[object]:
        return self._large if large else nullcontext()

    # ------------------------------------------------------------------------------------------------ what is said

    def _report(self, cutout: Cutout, verdict: str) -> dict[str, object]:
        """What the engine said of the image; remembered with the answer, so that equal images can say the same."""
        matte, answer = cutout.answer.matte, cutout.answer
        report: dict[str, object] = {
            "verdict": verdict,
            "device": answer.device,
            "model": answer.model,
            "coverage": round(matte.coverage, 4),
            "soft": round(matte.soft, 4),
            "peak": round(matte.peak, 4),
            "batch": answer.batch,
        }
        return report | ({"engine_tries": answer.tries} if answer.tries > 1 else {})

    def _sidecar(self, facts: SourceFacts, recipe: Recipe, report: Mapping[str, object]) -> dict[str, object] | None:
        if recipe.sidecar == "never" or (recipe.sidecar == "notable" and report["verdict"] == "ok"):
            return None
        width, height = facts.size
        return {"width": width, "height": height, "format": facts.format, "notes": list(facts.notes), **report}

    def _telling(
        self, job: Job, facts: SourceFacts, report: Mapping[str, object], *, reused: bool
    ) -> dict[str, object]:
        """What image.done says beyond the job's row: the ledger has it before the event is written."""
        width, height = facts.size
        return {
            **({"notes": list(facts.notes)} if facts.notes else {}),
            **{key: value for key, value in report.items() if key != "peak"},
            "width": width,
            "height": height,
            "format": facts.format,
            "bytes_in": job.version.size,
            "reused": reused,
            "sha256_in": facts.sha256,
        }

    def _emit_done(self, job: Job, timing: Timing, published: Published, telling: Mapping[str, object]) -> None:
        self._emit(
            "image.done",
            **self._common(job, timing),
            **telling,
            output=published.path,
            bytes_out=published.size,
            sha256_out=published.sha256,
        )
        self._publisher.told(job)

    def _common(self, job: Job, timing: Timing) -> dict[str, object]:
        whose = {"job": job.job_id, "folder": job.folder, "path": job.relative_path, "attempt": job.attempt}
        return whose | self._took(job, timing)

    def _took(self, job: Job, timing: Timing) -> dict[str, object]:
        total = (self._clock.monotonic() - job.claimed_at) * 1000.0
        spent = {stage: round(value, 2) for stage, value in timing.milliseconds.items()}
        return {"milliseconds": spent | {"total": round(total, 2)}}

    def _twins_of(self, arrival: Arrival) -> list[Follower]:
        """Only a job that was decoded, and so may lead others, has any."""
        frame: Frame | Rejection | Postponed
        if isinstance(arrival, Duplicate):
            return []
        frame = arrival.frame if isinstance(arrival, Cutout) else arrival
        if frame.facts is None:
            return []
        return self._in_flight.leave(ContentKey(frame.facts.sha256, self._recipe_keys[frame.job.folder]), frame.job)


def _clear(slot: Slot) -> None:
    """No subject: what faint alpha there is would be a garbage matte."""
    if slot.rgba is not None:
        slot.rgba[:, :, 3] = 0
    if slot.alpha is not None:
        slot.alpha.fill(0)


def _for_twin(twin: Follower, ended: Known | Rejection | Postponed) -> Arrival:
    """The answer that an image gets because an equal one got it."""
    if isinstance(ended, Known):
        return Duplicate(twin.job, twin.facts, ended, twin.timing)
    if isinstance(ended, Rejection):
        return Rejection(twin.job, ended.reason, ended.detail, ended.stage, twin.timing, twin.facts)
    return Postponed(twin.job, ended.why, ended.detail, twin.timing, twin.facts)


def _job_of(arrival: Arrival) -> Job:
    return arrival.frame.job if isinstance(arrival, Cutout) else arrival.job


def _timing_of(arrival: Arrival) -> Timing:
    return arrival.frame.timing if isinstance(arrival, Cutout) else arrival.timing


def _postponed(arrival: Arrival, why: str, detail: str) -> Postponed:
    return Postponed(_job_of(arrival), why, detail, _timing_of(arrival))


def _refused(arrival: Arrival, error: ImageError) -> Rejection:
    facts = arrival.frame.facts if isinstance(arrival, Cutout) else arrival.facts
    return Rejection(_job_of(arrival), error.reason, error.detail, "finish", _timing_of(arrival), facts)


def finish_loop(finisher: Finisher, arrivals: Receiver[Arrival], heartbeat: Heartbeat) -> None:
    """Until nobody is left who could send anything."""
    with arrivals:
        for arrival in arrivals:
            finisher.finish(arrival, heartbeat)
