"""One batch through the device: uploaded, computed, finished, and downloaded into the arena.

The host waits once for the summaries of the mattes and once for the last copy. Nothing of an image is downloaded before
every number of its matte is known to be finite. Images are finished in groups, as many as lie on the device together.

An image that is too large for the staging buffer is resized and finished by the host.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import CudaSeam, Event
from rmbgd.backends.cuda.memory_plan import PLAIN_PIXELS, WORKING_BYTES
from rmbgd.backends.cuda.network import CudaNetwork
from rmbgd.backends.cuda.postprocess import FINITE, finish_images, job_of
from rmbgd.backends.cuda.staging import Staging, StagingChunk
from rmbgd.backends.planes import finish
from rmbgd.backends.second_look import disagreement, needs_second_look, wider
from rmbgd.engine.types import MatteReport, Region, Work, view
from rmbgd.imaging.refine import refines
from rmbgd.imaging.resize import image_to_network
from rmbgd.models.finish import FinishJob


@dataclass
class BatchRun:
    """Made for one batch, used once: `compute`, then `finish`. Images are named by their index in the batch."""

    device: CudaSeam
    staging: Staging
    network: CudaNetwork
    block: NDArray[np.uint8]  # the shared arena
    batch: Sequence[Work]  # images of one model
    size: int  # of the batch that is computed; its last inputs may be empty
    summary: Tensor  # float32 [>= images, SUMMARY] on the host, page-locked
    computed_at: float = 0.0  # perf_counter when the summaries were on the host
    _chunks: dict[int, StagingChunk] = field(default_factory=dict)
    _finished: list[tuple[int, Event]] = field(default_factory=list)  # by image, until they are downloaded
    _bad: set[int] = field(default_factory=set)  # mattes that are not finite
    _last: Event | None = None  # after the downloads
    _summarised: Event | None = None  # until the summaries have been read

    def __post_init__(self) -> None:
        self.summary = self.summary[: len(self.batch)]
        self._by_host = {index for index, work in enumerate(self.batch) if not self._fits(work.region)}

    def _fits(self, region: Region) -> bool:
        few = self.network.triton or region.height * region.width <= PLAIN_PIXELS
        return few and self.staging.fits(region)

    def compute(self) -> None:
        """Images uploaded, resized, through the network; the host does not wait."""
        uploaded: list[int] = []
        for index, work in enumerate(self.batch):
            if index in self._by_host:
                rgb = image_to_network(view(self.block, work.region).rgb, self.network.size, self.network.filter)
                with self.device.compute_stream():
                    self.network.set_resized(index, torch.from_numpy(rgb))
                continue
            if not self._upload(index):  # the ring is full of images that the network has not read yet
                self._set_inputs(uploaded)
                uploaded = []
                fitted = self._upload(index)
                assert fitted, "no chunk is held now; a bug"
            uploaded.append(index)
        self._set_inputs(uploaded)
        with self.device.compute_stream():
            self.network.run(self.size)
            self.summary.copy_(self.network.summary[: len(self.batch)], non_blocking=True)
            self._summarised = self.device.record_event()

    def finish(self) -> list[MatteReport]:
        """Every output plane is complete but those of images whose mattes are not finite: they are not reported, and
        `not_finite` names them."""
        waiting = sorted(self._chunks, key=lambda index: self._chunks[index].evicted)  # first what is on the device
        while waiting:
            jobs = self._next_group(waiting)
            with self.device.compute_stream():
                for job in jobs:
                    self._wait_upload(job.matte)
                network = self.network
                finish_images(self.staging.memory, network.mattes, jobs, inputs=network.inputs, triton=network.triton)
                done = self.device.record_event()
            self._finished += [(job.matte, done) for job in jobs]
        self._download()
        for index in sorted(self._by_host - self._bad):
            work = self.batch[index]
            with self.device.compute_stream():
                matte = self.network.mattes[index].cpu().numpy()
            slot, size = view(self.block, work.region), self.network.size
            guide = image_to_network(slot.rgb, size, self.network.filter) if self._refines(work) else None
            finish(slot, matte, clean=work.clean_edges, guide=guide)
        if self._last is not None:
            self.device.synchronize_event(self._last)
        return [
            MatteReport(work.image_id, *(min(max(float(value), 0.0), 1.0) for value in row[:FINITE]))
            for index, (work, row) in enumerate(zip(self.batch, self.summary, strict=True))
            if index not in self._bad
        ]

    def look_again(self, reports: Sequence[MatteReport]) -> list[MatteReport]:
        """The reports of `finish`, with the disagreement of a second look where one is asked for.

        One image after the other in the first place of the batch, whose matte nobody needs any more; made wider on the
        host, so that the device needs no memory for it. One without finite alpha says nothing, and is no fault.
        """
        network, looked, places = self.network, list(reports), {work.image_id: at for at, work in enumerate(self.batch)}
        for at, report in enumerate(looked):
            index = places[report.image_id]
            if not (self.batch[index].second_look and needs_second_look(report)):
                continue
            with self.device.compute_stream():
                matte = network.mattes[index].to("cpu", copy=True)
                image = network.inputs[index].permute(1, 2, 0).to("cpu", torch.float32, copy=True).numpy()
                network.inputs[0].copy_(torch.from_numpy(wider(image)).permute(2, 0, 1))
                network.run(1)
                stats, look = network.summary[0].cpu(), network.mattes[0].cpu()
            if float(stats[FINITE]) == 1.0:
                looked[at] = replace(report, disagreement=disagreement(matte.numpy(), look.numpy()))
        return looked

    @property
    def not_finite(self) -> list[int]:
        """Ids of images without an answer, once finished."""
        return [self.batch[index].image_id for index in sorted(self._bad)]

    def _upload(self, index: int) -> bool:
        """Start copying an image to the device; false if the ring has no room for it now."""
        chunk = self.staging.upload(self.batch[index].region)
        if chunk is not None:
            self._chunks[index] = chunk
        return chunk is not None

    def _set_inputs(self, indices: Sequence[int]) -> None:
        """From staging into the network's inputs; afterwards the chunks may be overwritten."""
        with self.device.compute_stream():
            for index in indices:
                self._wait_upload(index)
            for _, run in groupby(enumerate(indices), lambda entry: entry[1] - entry[0]):  # inputs beside each other
                beside = [index for _, index in run]
                images = [self.staging.rgb(self.batch[index].region, self._chunks[index]) for index in beside]
                self.network.set_inputs(beside[0], images)
            done = self.device.record_event()
            for index in indices:
                self._chunks[index].release(done)

    def _wait_upload(self, index: int) -> None:
        last_use = self._chunks[index].last_use
        assert last_use is not None
        self.device.wait_event(last_use)

    def _next_group(self, waiting: list[int]) -> list[FinishJob]:
        """Taken from `waiting`: images that lie on the device together, and whose small levels fit into memory."""
        jobs: list[FinishJob] = []
        left = WORKING_BYTES
        while waiting:
            job = self._hold(waiting[0])
            if job is None and not jobs:
                self._download()
                job = self._hold(waiting[0])
                assert job, "everything was downloaded; a bug"
            if job is None or (jobs and job.working_bytes(self.network.size) > left):
                break
            left -= job.working_bytes(self.network.size)
            jobs.append(job)
            waiting.pop(0)
        return jobs

    def _hold(self, index: int) -> FinishJob | None:
        """The image on the device, not to be overwritten; None if the ring has no room for it now."""
        work = self.batch[index]
        if self._chunks[index].evicted and not self._upload(index):
            return None
        self._chunks[index].held = True
        start, refined = self._chunks[index].start, self._refines(work)
        return job_of(work.region, start, index, clean=work.clean_edges, refined=refined)

    def _refines(self, work: Work) -> bool:
        return work.refine and refines(self.network.size, work.region.height, work.region.width)

    def _download(self) -> None:
        """What is finished, but not images whose mattes are not finite."""
        if self._summarised is not None:
            self.device.synchronize_event(self._summarised)
            self._summarised = None
            self.computed_at = time.perf_counter()
            self._bad = {index for index, row in enumerate(self.summary.tolist()) if row[FINITE] != 1.0}
        for index, ready in self._finished:
            if index in self._bad:
                self._chunks[index].release(ready)
            else:
                self._last = self.staging.download(self.batch[index].region, self._chunks[index], ready)
        self._finished.clear()
