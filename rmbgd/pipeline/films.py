"""Film stage: one film at a time; its frames go through the same queue and devices as images, and come out as one file.

A film is decoded and encoded in a process of its own (rmbgd/film/child.py), which may die. Its frames are ordinary
images to the devices, so live ones overtake them and others take turns with them. A film that ends early leaves
nothing: it begins again, and is published whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rmbgd import naming as names
from rmbgd.clock import backoff
from rmbgd.config.load import Folder, Recipe
from rmbgd.engine.arena import Arena, ArenaClosed, Lease
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.types import Answer, MatteReport, OutputPlane, Region, region_bytes, view
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.film.forms import FilmHeader
from rmbgd.film.process import FilmLost, FilmProcess, FilmStopped, UnreadFilm
from rmbgd.fs import SystemFileSystem, open_regular, same_content, storage_faults
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.formats import SourceFacts
from rmbgd.mounts import free_bytes
from rmbgd.pipeline.decode import GONE, SHORTAGE, gone
from rmbgd.pipeline.items import (
    Arrival,
    Cutout,
    Duplicate,
    FilmCutout,
    Frame,
    Postponed,
    Rejection,
    Timing,
    WrittenFilm,
)
from rmbgd.pipeline.queue import Receiver, Sender, queue
from rmbgd.pipeline.storage_retry import Released, StorageRetry
from rmbgd.publish.temporary import CHUNK, FILM, Temporary, make_folders
from rmbgd.sequence.turns import OrderGate
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import FrameTurn, Job

ARENA_SHARE = 4  # of the arena, one part for a film's frames
WITHHELD_PAUSE = 0.5  # s
YIELD_AFTER = 1.0  # s for which an image may wait for memory that a film has
PAUSE_MAXIMUM = 600.0  # s between two tries on a disk that ended the first
AGAIN_FIRST, AGAIN_MAXIMUM = 1.0, 30.0  # s before a process that died is replaced: memory that was short may be back
TRIES = 2  # of a film whose process dies of it
TRIES_FROM_OUTSIDE = 3  # of one whose process is killed, as the kernel does where memory is short
TELL_EVERY = 1.0  # s between two events of progress
UNKNOWN = SourceFacts("", "", (0, 0), 1, None, None, {}, "")


@dataclass(frozen=True, slots=True)
class FilmProgress:
    """Of the film in work: frames that have a matte, of as many as its header says (0: it does not), since `began`."""

    job: Job
    header: FilmHeader
    began: float
    frames: int = 0

    def describe(self, now: float) -> dict[str, object]:
        """For the status file. `left`: seconds, None where nobody can say."""
        spent = max(now - self.began, 1e-3)
        rate = self.frames / spent
        left = round((self.header.frames - self.frames) / rate, 1) if rate and self.header.frames else None
        found: dict[str, object] = {"folder": self.job.folder, "path": self.job.relative_path, "frames": self.frames}
        found |= {"of": self.header.frames or None, "rate": round(rate, 2)}
        return found | {"left": None if left is None else max(left, 0.0), "seconds": round(spent, 1)}


@dataclass(slots=True)
class _Seen:
    """What the engine said of a film's frames so far."""

    frames: int = 0
    coverage: float = 0.0
    soft: float = 0.0
    peak: float = 0.0
    solid: float = 0.0
    device: str = ""
    models: list[str] = field(default_factory=list)
    tries: int = 1
    milliseconds: float = 0.0

    def add(self, cutout: Cutout) -> None:
        answer, matte = cutout.answer, cutout.answer.matte
        self.frames += 1
        self.coverage, self.soft = self.coverage + matte.coverage, self.soft + matte.soft
        self.peak, self.solid = max(self.peak, matte.peak), max(self.solid, matte.solid)
        self.device, self.tries = answer.device, max(self.tries, answer.tries)
        if answer.model not in self.models:
            self.models.append(answer.model)
        self.milliseconds += cutout.timing.milliseconds.get("engine", 0.0) / max(1, answer.batch)

    def answer(self, job: Job, wanted: str) -> Answer:
        """As of one image; a lesser model, if any frame had one."""
        count = max(1, self.frames)
        matte = MatteReport(job.job_id, self.coverage / count, self.peak, self.solid, self.soft / count)
        model = next((each for each in self.models if each != wanted), wanted)
        return Answer(matte, self.device, model, 1, self.tries)


class FilmStage:
    """What the thread of films does; everything is its own but `progress`, which any thread may read."""

    def __init__(
        self,
        context: EngineContext,
        folders: Mapping[str, tuple[Folder, Recipe]],
        recipe_keys: Mapping[str, str],
        ledger: Ledger,
        storage_retry: StorageRetry,
        frames: Sender[Frame],
        heartbeat: Heartbeat,
        gate: OrderGate,
    ) -> None:
        """`gate`: of frames for recurrent networks."""
        self._gate = gate
        self._context, self._folders, self._recipe_keys = context, folders, recipe_keys
        self._ledger, self._storage_retry, self._frames, self._heartbeat = ledger, storage_retry, frames, heartbeat
        self._numbers = itertools.count(1)
        self._files = SystemFileSystem()
        self.progress: FilmProgress | None = None
        self._next_told = 0.0

    def first(self, jobs: Sequence[Job], _now: float) -> tuple[int] | None:
        """Which waiting job is a film; the oldest."""
        films = (index for index, job in enumerate(jobs) if self._folders[job.folder][0].kind == "films")
        return next(((index,) for index in films), None)

    def run(self, job: Job) -> Arrival:
        """The film that was made of it, or why there is none."""
        timing, clock = Timing(), self._context.clock
        timing.begin()
        timing.add("wait", clock.monotonic() - job.claimed_at)
        began = clock.monotonic()
        try:
            return self._film(job, timing)
        except ImageError as error:
            if error.maybe_incomplete and not job.final:
                return Postponed(job, "incomplete", error.detail, timing)
            return Rejection(job, error.reason, error.detail, "decode", timing)
        except UnreadFilm as error:
            if error.number == errno.EIO:
                return Rejection(job, Reason.IO_ERROR, str(error), "decode", timing)
            return Postponed(job, "storage", str(error), timing)
        except OSError as error:
            if error.errno == errno.EIO:
                return Rejection(job, Reason.IO_ERROR, f"{error.strerror}", "decode", timing)
            if error.errno in GONE:
                return gone(job, self._folders[job.folder][0], error, timing)
            return Postponed(
                job, "storage", f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}", timing
            )
        except StorageFault as fault:  # the ledger could not be asked
            return Postponed(job, "storage", str(fault), timing)
        except MemoryError:
            return Postponed(job, "memory", SHORTAGE, timing)
        except Released as released:
            return Postponed(job, "stopping", f"held back by the disk: {released}", timing)
        except (FilmStopped, ArenaClosed):
            return Postponed(job, "stopping", "a film that was begun begins again", timing)
        finally:
            self.progress = None
            timing.add("film", clock.monotonic() - began)
            timing.end()

    def _film(self, job: Job, timing: Timing) -> Arrival:
        limits = self._context.config.limits
        descriptor = open_regular(job.source)
        try:
            status = os.fstat(descriptor)
            if not same_content(status, job.version):
                return Postponed(job, "changed", "the file is no longer the one that was claimed", timing)
            if status.st_size > limits.film_bytes:
                detail = f"{status.st_size} bytes; limits.film_bytes allows {limits.film_bytes}"
                raise ImageError(Reason.TOO_MANY_BYTES, detail)
            digest = self._digest(descriptor)
            known = self._ledger.same_content(digest, self._recipe_keys[job.folder])
            if known is not None:
                size = (int(str(known.report.get("film_width", 0))), int(str(known.report.get("film_height", 0))))
                return Duplicate(job, replace(UNKNOWN, format="FILM", size=size, sha256=digest), known, timing)
            trouble = _DiskTrouble()
            while True:
                try:
                    return self._tried(job, descriptor, digest, timing, trouble)
                except StorageFault as fault:
                    self._wait_for_the_disk(job, trouble, fault)
        finally:
            os.close(descriptor)

    def _wait_for_the_disk(self, job: Job, trouble: _DiskTrouble, fault: StorageFault) -> None:
        """The intake is paused until a film can be begun again. Raises Released."""
        root, faults = str(self._folders[job.folder][0].output), [fault]

        def try_again() -> None:
            if faults:
                raise faults.pop()
            trouble.check(root, self._context.clock.monotonic())

        self._storage_retry.retry_until_writable(try_again, job.folder, self._heartbeat)

    def _digest(self, descriptor: int) -> str:
        digest = hashlib.sha256()
        at = 0
        while data := os.pread(descriptor, CHUNK, at):
            digest.update(data)
            at += len(data)
            self._heartbeat.working()
            if self._context.stopping.is_set():
                raise FilmStopped("the service stops")
        return digest.hexdigest()

    def _tried(self, job: Job, descriptor: int, digest: str, timing: Timing, trouble: _DiskTrouble) -> Arrival:
        """Once more where its process died, which another process need not do. Raises StorageFault."""
        failures = killed = 0
        while True:
            try:
                return self._made(job, descriptor, digest, timing, trouble)
            except FilmLost as lost:
                failures, killed = failures + 1, killed + lost.from_outside
                if killed >= TRIES_FROM_OUTSIDE:
                    return Rejection(job, Reason.EXHAUSTS_MEMORY, str(lost), "decode", timing)
                if failures - killed >= TRIES:
                    return Rejection(job, Reason.DECODER_FAILED, str(lost), "decode", timing)
                self._context.emit(
                    "film.lost", folder=job.folder, path=job.relative_path, job=job.job_id, detail=str(lost)
                )
                self._heartbeat.waiting()
                if self._context.stopping.wait(backoff(failures, AGAIN_FIRST, AGAIN_MAXIMUM)):
                    raise FilmStopped("the service stops") from lost

    def _made(self, job: Job, descriptor: int, digest: str, timing: Timing, trouble: _DiskTrouble) -> Arrival:
        folder, recipe = self._folders[job.folder]
        root, limits = str(folder.output), self._context.config.limits
        self.progress = None
        with ExitStack() as stack:
            with storage_faults(root):
                below = make_folders(root, os.path.dirname(job.relative_path), self._files)
                name = names.temporary_name(job.job_id, FILM)
                written = WrittenFilm(Temporary(root, below, name, int(recipe.file_mode, 8), self._files))
            stack.callback(written.release)
            try:
                with self._process(descriptor, written, root) as process:
                    stem = os.path.splitext(os.path.basename(job.relative_path))[0]
                    is_steady = folder.temporal == "steady"
                    header = process.start(limits, recipe, steady=is_steady, look_ahead=folder.look_ahead, stem=stem)
                    self._began(job, header)
                    seen = self._feed(job, process, header)
                    result = process.finish()
                if process.damage:
                    raise ImageError(Reason.CORRUPT, process.damage)
                with storage_faults(root):  # before it counts as made: a sync that failed is never tried again
                    self._heartbeat.waiting()
                    self._files.sync_file(written.file.fileno())
                    self._heartbeat.working()
            except StorageFault as fault:
                done, now = os.fstat(written.file.fileno()).st_size, self._context.clock.monotonic()
                trouble.learn(fault, done, self.progress, now)
                raise
            stack.pop_all()
        timing.add("engine", seen.milliseconds / 1000)
        notes = (*header.notes, *result.notes)
        size = (header.width, header.height)
        facts = SourceFacts(header.container.upper(), header.pixel_format, size, 1, None, None, {}, digest, notes)
        return FilmCutout(job, facts, timing, seen.answer(job, recipe.model), header, result, written)

    def _process(self, film: int, written: WrittenFilm, place: str) -> FilmProcess:
        try:
            return FilmProcess(
                film,
                written.file.fileno(),
                place,
                patience=self._context.config.pipeline.film_timeout,
                heartbeat=self._heartbeat,
                stopping=self._context.stopping,
                on_output=self._say,
            )
        except OSError as error:  # the machine's fault, whatever it is
            raise UnreadFilm(errno.EAGAIN, f"no process can be started for it: {error}") from error

    def _began(self, job: Job, header: FilmHeader) -> None:
        self.progress = FilmProgress(job, header, self._context.clock.monotonic())
        about = {"width": header.width, "height": header.height, "codec": header.codec, "rate": header.rate}
        about |= {"frames": header.frames or None, "film_seconds": header.seconds or None, "streams": header.streams}
        self._context.emit("film.started", folder=job.folder, path=job.relative_path, job=job.job_id, **about)

    def _moved(self, frames: int) -> None:
        assert self.progress is not None
        self.progress, now = replace(self.progress, frames=frames), self._context.clock.monotonic()
        if now >= self._next_told:
            self._next_told = now + TELL_EVERY
            self._context.emit("film.progress", job=self.progress.job.job_id, **self.progress.describe(now))

    def _say(self, line: str) -> None:
        self._context.emit("engine.output", source="film", line=line)

    def _feed(self, job: Job, process: FilmProcess, header: FilmHeader) -> _Seen:
        """Every frame to a device, and its matte back, in order."""
        size = region_bytes(header.height, header.width, source_alpha=header.source_alpha, output=OutputPlane.ALPHA8)
        pipeline, arena = self._context.config.pipeline, self._context.arena
        most = max(1, min(2 * pipeline.batch_maximum, pipeline.arena_bytes // ARENA_SHARE // size))
        frames = _FramesInWork(job, header)
        sender: Sender[Arrival]
        receiver: Receiver[Arrival]
        sender, receiver = queue(most, "mattes", self._context.clock)
        with sender, receiver, receiver.clone(self._heartbeat) as own:
            try:
                while not frames.is_over:
                    # At once: who holds memory must not wait for more, as images that came before may wait for it. And
                    # anew when others wait for long: what lies between two pieces of memory keeps a large image out.
                    with arena.lease(most * size, self._heartbeat) as lease:
                        frames.lease, frames.places = lease, [lease.offset + each * size for each in range(most)]
                        try:
                            self._exchange(process, frames, sender, own)
                        finally:
                            for _ in range(len(frames.asked)):  # a device has them, and their memory
                                own.receive()
            finally:
                self._gate.forget(job.folder, _sequence_of(job))
        return frames.seen

    def _exchange(
        self, process: FilmProcess, frames: _FramesInWork, answers: Sender[Arrival], own: Receiver[Arrival]
    ) -> None:
        """Until the film is over, or others have waited for memory for so long that this one is given back."""
        arena, clock = self._context.arena, self._context.clock
        while True:
            since = arena.waits_since()
            gives_back = since is not None and clock.monotonic() - since > YIELD_AFTER
            while not (frames.is_over or gives_back) and (place := frames.free_place(arena)) is not None:
                if self._context.stopping.is_set():
                    raise FilmStopped("the service stops")
                if (found := process.next()) is None:
                    frames.is_over = True
                    break
                region = frames.region(place)
                slot = view(frames.block, region)
                process.take(slot.rgb, slot.source_alpha)
                frame = self._frame(frames, found[0], region, answers)
                self._frames.send(frame)
                frames.asked[frame.job.job_id] = found[0]
            if frames.asked:
                frames.take(own.receive())
            elif frames.is_over or gives_back:
                return
            else:  # every place of it is withheld until a process that was killed is gone
                self._heartbeat.waiting()
                self._context.stopping.wait(WITHHELD_PAUSE)
            while (cutout := frames.waiting.pop(frames.given, None)) is not None:
                process.give(frames.given, np.asarray(view(frames.block, cutout.region).alpha, np.uint8))
                frames.give(cutout)
                self._moved(frames.given)

    def _frame(self, frames: _FramesInWork, number: int, region: Region, answers: Sender[Arrival]) -> Frame:
        """Of a number of its own, which no job has: devices know images by it."""
        job, now = frames.job, self._context.clock.monotonic()
        turn = FrameTurn(_sequence_of(job), number, number + 1, number)
        own = replace(job, job_id=-next(self._numbers), attempt=1, turn=turn)
        assert frames.lease is not None
        return Frame(own, region, frames.lease, UNKNOWN, Timing(), now, answers=answers, film=job.job_id)


def _sequence_of(job: Job) -> str:
    """The name of a film as a sequence, which no other has: a path holds no such byte."""
    return f"{job.relative_path}\0{job.job_id}"


@dataclass(slots=True)
class _FramesInWork:
    """Frames of one film between its process and the devices, in one lease that is parted into places.

    places   offsets that are free
    asked    numbers of frames that devices have, by the job of each
    waiting  mattes that wait for one before them, by number
    given    the number of the next one whose matte goes back
    """

    job: Job
    header: FilmHeader
    lease: Lease | None = None
    places: list[int] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, Cutout] = field(default_factory=dict)
    given: int = 0
    is_over: bool = False  # its process has no frame more
    seen: _Seen = field(default_factory=_Seen)

    @property
    def block(self) -> NDArray[np.uint8]:
        assert self.lease is not None
        return self.lease.block

    def free_place(self, arena: Arena) -> int | None:
        """One to which no process that was killed may still write."""
        place = next((each for each in self.places if not arena.is_withheld(each)), None)
        if place is not None:
            self.places.remove(place)
        return place

    def region(self, offset: int) -> Region:
        header = self.header
        return Region(offset, header.height, header.width, header.source_alpha, OutputPlane.ALPHA8)

    def take(self, arrival: Arrival) -> None:
        """What became of a frame. Raises ImageError, FilmStopped."""
        number = self.asked.pop(arrival.job.job_id)
        if isinstance(arrival, Rejection):
            raise ImageError(arrival.reason, f"frame {number}: {arrival.detail}")
        if not isinstance(arrival, Cutout):
            raise FilmStopped("the service stops")
        self.waiting[number] = arrival

    def give(self, cutout: Cutout) -> None:
        self.seen.add(cutout)
        self.places.append(cutout.region.offset)
        self.given += 1


@dataclass(slots=True)
class _DiskTrouble:
    """What a try that the output's disk ended has shown, so that a film is not encoded for nothing again and again.

    byte_count  that it needs, as far as can be said
    not_before  monotonic s
    """

    byte_count: int = 0
    not_before: float = 0.0
    kind: str = ""

    def learn(self, fault: StorageFault, written: int, progress: FilmProgress | None, now: float) -> None:
        done, of = (0, 0) if progress is None else (progress.frames, progress.header.frames)
        self.kind, self.byte_count = fault.kind, 0
        if fault.kind == "disk_full":
            self.byte_count = written * max(of, done + 1) // max(done, 1) if done else 2 * written
        spent = 0.0 if progress is None else now - progress.began
        self.not_before = now + min(spent, PAUSE_MAXIMUM)

    def check(self, root: str, now: float) -> None:
        """Raises StorageFault while it is too early, and there is no room."""
        free = free_bytes(root) or 0
        if now < self.not_before and not 0 < self.byte_count <= free:
            needs = f"; the film needs some {self.byte_count} bytes" if self.byte_count else ""
            raise StorageFault(self.kind, f"the film is begun again later{needs}", path=root)
