"""Decode stage: from a claimed path to pixels in leased memory, or to a reason why not.

The only stage that acquires memory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from rmbgd.clock import Clock
from rmbgd.config.load import Folder, LimitSettings, Recipe
from rmbgd.engine.arena import Arena, ArenaClosed
from rmbgd.engine.types import OutputPlane, Region, region_bytes, view
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.fs import open_regular, same_content
from rmbgd.heartbeat import Heartbeat
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.imaging.formats import Header, SourceFacts
from rmbgd.pipeline.batching import HEAD_START
from rmbgd.pipeline.dedup import Deduplicator, Follower
from rmbgd.pipeline.items import Arrival, Duplicate, Frame, Postponed, Rejection, Timing
from rmbgd.pipeline.queue import NoSenders, Receiver, Sender
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import ContentKey, Job

# Above either, a decoder's own temporaries matter for the memory of the whole service: one such image at a time.
LARGE_PIXELS = 16_000_000
LARGE_BYTES = 64 << 20

READ_TRIES = 3
SHORTAGE = "the system gave no memory for it"
GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}

Decoded = Frame | Rejection | Postponed | Duplicate


def output_plane(recipe: Recipe) -> OutputPlane:
    """The least the engine has to write for this recipe."""
    if recipe.content != "mask":
        return OutputPlane.RGBA8
    return OutputPlane.ALPHA16 if recipe.mask_bits == 16 else OutputPlane.ALPHA8


class Decoder:
    """Turns jobs into frames. One instance serves all decode threads; it keeps no state of an image."""

    def __init__(
        self,
        *,
        limits: LimitSettings,
        folders: Mapping[str, tuple[Folder, Recipe]],
        recipe_keys: Mapping[str, str],
        arena: Arena,
        ledger: Ledger,
        in_flight: Deduplicator,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._folders = folders
        self._recipe_keys = recipe_keys  # folder name -> hash of recipe and model
        self._arena = arena
        self._ledger = ledger
        self._in_flight = in_flight
        self._clock = clock
        self._large = threading.Lock()  # held while one large image is read and decoded

    def decode(self, job: Job, heartbeat: Heartbeat) -> Decoded | None:
        """A frame, or why there is none; None when an equal image is being computed and will answer for this one."""
        timing = Timing()
        begun = self._clock.monotonic()
        timing.add("wait", begun - job.claimed_at)
        try:
            with self._alone_if(job.version.size > LARGE_BYTES):
                return self._decode(job, timing, heartbeat)
        except ImageError as error:
            return refusal(job, error, timing, None)
        except OSError as error:
            return unreadable(job, error, timing)
        except StorageFault as fault:  # the ledger could not be asked whether this content is known
            return Postponed(job, "storage", str(fault), timing)
        except MemoryError:
            return Postponed(job, "memory", SHORTAGE, timing)
        except ArenaClosed:
            return Postponed(job, "stopping", "read, but no memory was lent any more", timing)
        finally:
            timing.add("decode", self._clock.monotonic() - begun)

    def first(self, jobs: Sequence[Job], _now: float) -> tuple[int]:
        """Which waiting job goes first: one of a realtime folder, else the oldest, as the batching policy has it."""

        def place(index: int) -> tuple[float, int]:
            job = jobs[index]
            realtime = self._folders[job.folder][0].latency == "realtime"
            return job.claimed_at - (HEAD_START if realtime else 0.0), index

        return (min(range(len(jobs)), key=place),)

    def _decode(self, job: Job, timing: Timing, heartbeat: Heartbeat) -> Decoded | None:
        _, recipe = self._folders[job.folder]
        data = self._read(job)
        if data is None:
            return Postponed(job, "changed", "the file is no longer the one that was claimed", timing)
        digest = hashlib.sha256(data).hexdigest()
        header = probe(data, self._limits, animated=recipe.animated, metadata=recipe.metadata)
        facts = facts_of(header, digest)
        known = self._ledger.same_content(digest, self._recipe_keys[job.folder])
        if known is not None:
            return Duplicate(job, facts, known, timing)
        if not self._in_flight.enter(ContentKey(digest, self._recipe_keys[job.folder]), Follower(job, facts, timing)):
            return None
        try:
            return self._pixels(job, data, header, facts, timing, heartbeat)
        except ImageError as error:  # with the facts, so that followers of this image get the same answer
            return refusal(job, error, timing, facts)
        except MemoryError:
            return Postponed(job, "memory", SHORTAGE, timing, facts)

    def _pixels(
        self, job: Job, data: bytes, header: Header, facts: SourceFacts, timing: Timing, heartbeat: Heartbeat
    ) -> Frame:
        _, recipe = self._folders[job.folder]
        width, height = header.size
        plane = output_plane(recipe)
        lease = self._arena.lease(region_bytes(height, width, source_alpha=header.has_alpha, output=plane), heartbeat)
        try:
            region = Region(lease.offset, height, width, header.has_alpha, plane)
            slot = view(lease.block, region)
            with self._alone_if(height * width > LARGE_PIXELS and len(data) <= LARGE_BYTES):
                facts = decode_into(data, header, slot.rgb, slot.source_alpha, sha256=facts.sha256)
        except BaseException:  # whatever it is: memory of the arena that stays leased is lost until the next start
            lease.release()
            raise
        return Frame(job, region, lease, facts, timing, self._clock.monotonic())

    def _read(self, job: Job) -> bytes | None:
        """The bytes of the claimed version, or None when another version stands there. Raises OSError, ImageError."""
        descriptor = open_regular(job.source)
        try:
            if not same_content(os.fstat(descriptor), job.version):
                return None
            return self._read_with_retries(descriptor)
        finally:
            os.close(descriptor)

    def _read_with_retries(self, descriptor: int) -> bytes:
        """A bad sector stays bad, a passing fault of the link does not: a few tries tell them apart."""
        for _ in range(READ_TRIES - 1):
            try:
                return read_limited(descriptor, self._limits)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
        return read_limited(descriptor, self._limits)

    def _alone_if(self, large: bool) -> AbstractContextManager[object]:
        return self._large if large else nullcontext()


def facts_of(header: Header, sha256: str) -> SourceFacts:
    """What is known before decoding, which may add notes and decide which profile the pixels are in."""
    return SourceFacts(
        format=header.format,
        mode=header.mode,
        size=header.size,
        orientation=header.orientation,
        icc_profile=header.icc_profile,
        dpi=header.dpi,
        metadata=dict(header.metadata),
        sha256=sha256,
        notes=header.notes,
    )


def refusal(job: Job, error: ImageError, timing: Timing, facts: SourceFacts | None) -> Rejection | Postponed:
    """A missing end is waited for until the readiness policy has said that this try is the last."""
    if job.final or not error.maybe_incomplete:
        return Rejection(job, error.reason, error.detail, "decode", timing, facts)
    return Postponed(job, "incomplete", error.detail, timing, facts=facts)


def unreadable(job: Job, error: OSError, timing: Timing) -> Rejection | Postponed:
    if error.errno in GONE:
        return Postponed(job, "vanished", f"{error.strerror}", timing)
    if error.errno == errno.EIO:
        return Rejection(job, Reason.IO_ERROR, f"{error.strerror}", "decode", timing)
    return Postponed(job, "storage", f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}", timing)


def decode_loop(
    decoder: Decoder, jobs: Receiver[Job], frames: Sender[Frame], arrivals: Sender[Arrival], heartbeat: Heartbeat
) -> None:
    """Until the last producer of jobs has gone: frames go to the device, everything else to the finish stage."""
    with jobs, frames, arrivals:
        while True:
            try:
                [job] = jobs.receive_chosen(decoder.first)
            except NoSenders:
                return
            decoded = decoder.decode(job, heartbeat)
            if isinstance(decoded, Frame):
                frames.send(decoded)
            elif decoded is not None:
                arrivals.send(decoded)
