"""Decode stage: from a claimed path to pixels in leased memory, or to a reason why not.

The only stage that acquires memory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from rmbgd.config.load import Folder, Recipe
from rmbgd.engine.arena import ArenaClosed
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.types import OutputPlane, Region, region_bytes, view
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.fs import holes, open_regular, same_content
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.imaging.formats import Header, SourceFacts
from rmbgd.imaging.unwritten import WriteTraces, check_written
from rmbgd.mounts import is_there
from rmbgd.pipeline.batching import HEAD_START
from rmbgd.pipeline.dedup import Deduplicator, Follower
from rmbgd.pipeline.items import Duplicate, Frame, Postponed, Rejection, Timing
from rmbgd.sequence.turns import Turns
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import ContentKey, Job

# Above either, a decoder's own temporaries matter for the memory of the whole service: one such image at a time.
LARGE_PIXELS = 16_000_000
LARGE_BYTES = 64 << 20

READ_TRIES = 3
SHORTAGE = "the system gave no memory for it"
GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}

Decoded = Frame | Rejection | Postponed | Duplicate


def output_plane(folder: Folder, recipe: Recipe) -> OutputPlane:
    """The least the engine has to write for this folder: of steady frames alpha alone, colours follow from another."""
    if folder.temporal == "steady":
        return OutputPlane.ALPHA8
    if any(look.content != "mask" for look in recipe.looks):
        return OutputPlane.RGBA8
    return OutputPlane.ALPHA16 if any(look.mask_bits == 16 for look in recipe.looks) else OutputPlane.ALPHA8


def is_live(folders: Mapping[str, tuple[Folder, Recipe]], job: Job) -> bool:
    """Is it of a realtime folder?"""
    return folders[job.folder][0].latency == "realtime"


@dataclass(frozen=True, slots=True)
class Decoder:
    """One instance serves all decode threads; it keeps no state of an image.

    recipe_keys  by folder name: hash of recipe and model
    large        held while one large image is read and decoded
    turns        of frames
    """

    context: EngineContext
    folders: Mapping[str, tuple[Folder, Recipe]]
    recipe_keys: Mapping[str, str]
    ledger: Ledger
    in_flight: Deduplicator
    turns: Turns
    large: threading.Lock = field(default_factory=threading.Lock)

    def decode(self, job: Job, heartbeat: Heartbeat) -> Decoded | None:
        """A frame, or why there is none; None when an equal image is being computed and will answer for this one."""
        timing = Timing()
        clock = self.context.clock
        begun = clock.monotonic()
        timing.begin()
        timing.add("wait", begun - job.claimed_at)
        try:
            is_large = job.version.size > LARGE_BYTES
            if is_large:  # a frame that waits for its turn must not keep the one before it out
                self.turns.memory.wait(job, heartbeat)
            with self.large if is_large else nullcontext():
                return self._decode(job, timing, heartbeat)
        except ImageError as error:
            return _refusal(job, error, timing, None)
        except OSError as error:
            if error.errno == errno.EIO:
                return Rejection(job, Reason.IO_ERROR, f"{error.strerror}", "decode", timing)
            if error.errno in GONE:
                return gone(job, self.folders[job.folder][0], error, timing)
            name = errno.errorcode.get(error.errno or 0, "error")
            return Postponed(job, "storage", f"{name}: {error.strerror}", timing)
        except StorageFault as fault:  # the ledger could not be asked whether this content is known
            return Postponed(job, "storage", str(fault), timing)
        except MemoryError:
            return Postponed(job, "memory", SHORTAGE, timing)
        except ArenaClosed:
            return Postponed(job, "stopping", "read, but no memory was lent any more", timing)
        finally:
            timing.add("decode", clock.monotonic() - begun)
            timing.end()
            self.turns.memory.wait(job, heartbeat)
            self.turns.memory.let_pass(job)

    def first(self, jobs: Sequence[Job], _now: float) -> tuple[int] | None:
        """Which waiting job goes first: one of a realtime folder, else the oldest, as the batching policy has it. Films
        are not for decode threads."""

        def place(index: int) -> tuple[bool, float]:
            job = jobs[index]
            waits = not self.turns.memory.is_open(job)  # for a frame before it that may be behind it here
            return waits, job.claimed_at - (HEAD_START if is_live(self.folders, job) else 0.0)

        images = [index for index, job in enumerate(jobs) if self.folders[job.folder][0].kind != "films"]
        return (min(images, key=place),) if images else None

    def first_live(self, jobs: Sequence[Job], _now: float) -> tuple[int] | None:
        """The oldest of a realtime folder."""
        live = [index for index, job in enumerate(jobs) if is_live(self.folders, job)]
        return (min(live, key=lambda index: not self.turns.memory.is_open(jobs[index])),) if live else None

    def _decode(self, job: Job, timing: Timing, heartbeat: Heartbeat) -> Decoded | None:
        _, recipe = self.folders[job.folder]
        read = self._read(job)
        if read is None:
            return Postponed(job, "changed", "the file is no longer the one that was claimed", timing)
        data, traces = read
        digest = hashlib.sha256(data).hexdigest()
        header = probe(data, self.context.config.limits, animated=recipe.animated, metadata=recipe.metadata)
        check_written(data, header, traces, accept=self.context.config.intake.accept_unwritten)
        facts = header.facts(digest)
        if job.turn is not None:  # what becomes of a frame depends on the one before it, too
            return self._pixels(job, data, header, facts, timing, heartbeat)
        known = self.ledger.same_content(digest, self.recipe_keys[job.folder])
        if known is not None:
            return Duplicate(job, facts, known, timing)
        if not self.in_flight.enter(ContentKey(digest, self.recipe_keys[job.folder]), Follower(job, facts, timing)):
            return None
        try:
            return self._pixels(job, data, header, facts, timing, heartbeat)
        except ImageError as error:  # with the facts, so that followers of this image get the same answer
            return _refusal(job, error, timing, facts)
        except MemoryError:
            return Postponed(job, "memory", SHORTAGE, timing, facts)

    def _pixels(
        self, job: Job, data: bytes, header: Header, facts: SourceFacts, timing: Timing, heartbeat: Heartbeat
    ) -> Frame:
        width, height = header.size
        plane = output_plane(*self.folders[job.folder])
        self.turns.memory.wait(job, heartbeat)
        lease = self.context.arena.lease(
            region_bytes(height, width, source_alpha=header.has_alpha, output=plane),
            heartbeat,
            urgent=is_live(self.folders, job),
        )
        self.turns.memory.let_pass(job)
        try:
            region = Region(lease.offset, height, width, header.has_alpha, plane)
            slot = view(lease.block, region)
            large = height * width > LARGE_PIXELS and len(data) <= LARGE_BYTES  # not by its bytes already
            with self.large if large else nullcontext():
                facts = decode_into(data, header, slot.rgb, slot.source_alpha, sha256=facts.sha256)
        except BaseException:  # whatever it is: memory of the arena that stays leased is lost until the next start
            lease.release()
            raise
        return Frame(job, region, lease, facts, timing, self.context.clock.monotonic())

    def _read(self, job: Job) -> tuple[bytes, WriteTraces] | None:
        """The bytes of the claimed version, or None when another version stands there. Raises OSError, ImageError."""
        descriptor, limits = open_regular(job.source), self.context.config.limits
        try:
            status = os.fstat(descriptor)
            if not same_content(status, job.version):
                return None
            found = tuple(holes(descriptor, status.st_size))
            missing = sum(end - start for start, end in found)
            reserved = status.st_blocks * 512 > status.st_size - missing / 2  # file systems add blocks of their own
            traces = WriteTraces(found, reserved, job.refilled)
            for _ in range(READ_TRIES - 1):  # a bad sector stays bad, a passing fault of the link does not
                try:
                    return read_limited(descriptor, limits), traces
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
            return read_limited(descriptor, limits), traces
        finally:
            os.close(descriptor)


def gone(job: Job, folder: Folder, error: OSError, timing: Timing) -> Rejection | Postponed:
    """A file that is gone unread: a loss only out of the claim folder, where nobody but us had it."""
    if job.claimed_by_rename and is_there(str(folder.input), require_mount=folder.require_mount):
        return Rejection(job, Reason.VANISHED, f"{job.source}: {error.strerror}", "decode", timing)
    return Postponed(job, "vanished", f"{error.strerror}", timing)


def _refusal(job: Job, error: ImageError, timing: Timing, facts: SourceFacts | None) -> Rejection | Postponed:
    """A missing end is waited for until the readiness policy has said that this try is the last."""
    if job.final or not error.maybe_incomplete:
        return Rejection(job, error.reason, error.detail, "decode", timing, facts)
    return Postponed(job, "incomplete", error.detail, timing, facts=facts)
