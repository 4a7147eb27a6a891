"""One batch through the device: uploaded, computed, and downloaded into the arena, image by image.

The host waits once for the summaries of the mattes and once for the last copy. Nothing of an image is downloaded before
every number of its matte is known to be finite.

An image that is too large for the staging buffers is resized and finished by the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda import postprocess
from rmbgd.backends.cuda.device import CudaSeam, Event
from rmbgd.backends.cuda.memory_plan import COARSE_PIXELS
from rmbgd.backends.cuda.network import CudaNetwork
from rmbgd.backends.cuda.resample import bands, resize_band
from rmbgd.backends.cuda.staging import Band, StagedImage, Staging
from rmbgd.backends.planes import finish
from rmbgd.engine.types import OUTPUT_BYTES, MatteReport, OutputPlane, Work, view
from rmbgd.errors import EngineNonsense
from rmbgd.imaging.resize import image_to_network


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
    recomputed: int = 0  # images computed a second time, in float32
    computed_at: float = 0.0  # perf_counter when the summaries were on the host
    _images: dict[int, StagedImage] = field(default_factory=dict)
    _packed: list[tuple[int, Band, Event]] = field(default_factory=list)  # by image, until they are downloaded
    _bad: set[int] = field(default_factory=set)  # mattes that are not finite
    _last: Event | None = None  # after the downloads
    _summarised: Event | None = None  # until the summaries have been read

    def __post_init__(self) -> None:
        self.summary = self.summary[: len(self.batch)]
        self._by_host = {index for index, work in enumerate(self.batch) if not self.staging.fits(work.region)}

    def compute(self) -> None:
        """Images uploaded, resized, through the network; the host does not wait."""
        uploaded: list[int] = []
        for index, work in enumerate(self.batch):
            if index in self._by_host:
                rgb = image_to_network(view(self.block, work.region).rgb, self.network.size, self.network.filter)
                with self.device.compute_stream():
                    self.network.set_resized(index, torch.from_numpy(rgb))
                continue
            if self._upload(index) is None:  # the ring is full of images that the network has not read yet
                self._set_inputs(uploaded)
                uploaded = []
                fitted = self._upload(index)
                assert fitted, "no chunk is held now; a bug"
            uploaded.append(index)
        self._set_inputs(uploaded)
        with self.device.compute_stream():
            self.network.run(self.size)
            self._copy_summary()

    def finish(self) -> list[MatteReport]:
        """Every output plane is complete. Raises EngineNonsense for a matte that is not finite in float32 either."""
        for group in self._groups():
            self._finish(group)
        self._download()
        if self._bad:
            self._recompute(sorted(self._bad))
        for index in sorted(self._by_host):
            work = self.batch[index]
            with self.device.compute_stream():
                matte = self.network.mattes[index].cpu().numpy()
            finish(view(self.block, work.region), matte, clean=work.clean_edges)
        if self._last is not None:
            self.device.synchronize_event(self._last)
        return [
            MatteReport(work.image_id, *(min(max(float(value), 0.0), 1.0) for value in row[: postprocess.FINITE]))
            for work, row in zip(self.batch, self.summary, strict=True)
        ]

    # --- up

    def _upload(self, index: int) -> StagedImage | None:
        """Start copying an image to the device; None if the ring has no room for it."""
        if image := self.staging.upload(self.batch[index].region):
            self._images[index] = image
        return image

    def _set_inputs(self, indices: Sequence[int]) -> None:
        """From staging into the network's inputs; afterwards the chunks may be overwritten."""
        with self.device.compute_stream():
            for index in indices:
                self._wait_upload(self._images[index])
            for _, run in groupby(enumerate(indices), lambda entry: entry[1] - entry[0]):  # inputs beside each other
                beside = [index for _, index in run]
                self.network.set_inputs(beside[0], [self._images[index].rgb for index in beside])
            self._release([self._images[index] for index in indices])

    def _hold(self, index: int) -> StagedImage:
        """The image's planes, to be released; uploaded again if they were evicted."""
        image = self._images.get(index)
        if image is None or image.chunk.evicted:
            image = self._upload(index)
            assert image, "no other chunk is held now; a bug"
        image.chunk.held = True
        self._wait_upload(image)
        return image

    def _wait_upload(self, image: StagedImage) -> None:
        assert image.chunk.last_use is not None
        self.device.wait_event(image.chunk.last_use)

    def _release(self, images: Sequence[StagedImage]) -> None:
        if images:
            event = self.device.record_event()
            for image in images:
                image.chunk.release(event)

    # --- down

    def _groups(self) -> Iterator[list[int]]:
        """Indices in the order of finishing: first what is on the device; images of one size are cleaned together."""
        indices = [index for index in range(len(self.batch)) if index not in self._by_host]
        indices.sort(key=lambda index: (self._images[index].chunk.evicted, *self._kind(index)))
        for (cleans, height, width), run in groupby(indices, self._kind):
            group = list(run)
            # as many as the memory for their small levels takes
            most = max(1, COARSE_PIXELS // math.prod(postprocess.coarse_size(height, width))) if cleans else 1
            for first in range(0, len(group), most):
                yield group[first : first + most]

    def _kind(self, index: int) -> tuple[bool, int, int]:
        """(whether edges are cleaned, height, width)"""
        work, region = self.batch[index], self.batch[index].region
        return work.clean_edges and region.output is OutputPlane.RGBA8, region.height, region.width

    def _finish(self, group: Sequence[int]) -> None:
        """Launch all that turns mattes into bytes of output planes."""
        colours: dict[int, Tensor] = {}
        with self.device.compute_stream():
            if self._kind(group[0])[0]:
                colours = dict(zip(group, postprocess.estimate([self._coarse(index) for index in group]), strict=True))
            for index in group:
                self._pack(index, colours.get(index))

    def _coarse(self, index: int) -> Tensor:
        image = self._hold(index)
        result = postprocess.coarse(image.rgb, self.network.mattes[index])
        self._release([image])
        return result

    def _pack(self, index: int, colours: Tensor | None) -> None:
        region, matte = self.batch[index].region, self.network.mattes[index]
        needs_image = region.output is OutputPlane.RGBA8 or region.source_alpha
        image = self._hold(index) if needs_image else None
        row_bytes = OUTPUT_BYTES[region.output] * region.width
        for first, last in bands(region.height, region.width):
            band = self._take_band(region.output_offset + first * row_bytes, (last - first) * row_bytes)
            alpha = resize_band(matte, (region.height, region.width), (first, last))
            rgb = image.rgb[first:last] if image else None
            if rgb is not None and colours is not None:
                rgb = postprocess.corrected(rgb, alpha, colours, (first, last), region.height)
            own = image.source_alpha[first:last] if image and image.source_alpha is not None else None
            postprocess.pack(region.output, rgb, alpha, own, band.memory)
            self._packed.append((index, band, self.device.record_event()))
        if image:
            self._release([image])

    def _take_band(self, offset: int, byte_count: int) -> Band:
        band = self.staging.take_band(offset, byte_count)
        if band is None:
            self._download()
            band = self.staging.take_band(offset, byte_count)
            assert band, "everything was downloaded; a bug"
        for event in band.chunk.wait_for:
            self.device.wait_event(event)
        return band

    def _download(self) -> None:
        """What is packed, but not images whose mattes are not finite."""
        self._read_summary()
        for index, band, ready in self._packed:
            if index in self._bad:
                band.chunk.release(ready)
            else:
                self._last = self.staging.download(band, ready)
        self._packed.clear()

    # --- whether mattes are finite

    def _copy_summary(self) -> None:
        """Start copying the summaries to the host. On the compute stream."""
        self.summary.copy_(self.network.summary[: len(self.batch)], non_blocking=True)
        self._summarised = self.device.record_event()

    def _read_summary(self) -> None:
        """Wait for the summaries, once."""
        if self._summarised is not None:
            self.device.synchronize_event(self._summarised)
            self._summarised = None
            self.computed_at = self.computed_at or time.perf_counter()
            self._bad = {index for index, row in enumerate(self.summary.tolist()) if row[postprocess.FINITE] != 1.0}

    def _recompute(self, indices: Sequence[int]) -> None:
        """Images alone and in float32. The others of the batch have been downloaded."""
        if not self.network.is_float32:
            self.recomputed = len(indices)
            with self.device.compute_stream():
                for index in indices:
                    self.network.recompute(index)
                self._copy_summary()
            self._read_summary()
        if self._bad:
            raise EngineNonsense(
                f"alpha is not finite for images {sorted(self._bad)} of a batch of {len(self.batch)} "
                f"({self.network.name})" + ("" if self.network.is_float32 else ", in float32 as well")
            )
        for index in indices:
            if index not in self._by_host:
                self._finish([index])
        self._download()
