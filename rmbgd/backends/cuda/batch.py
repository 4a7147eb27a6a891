"""One batch on its way through the device: up, computed, and down into the arena, image by image.

Knows one network and one staging memory; not how batches are formed, nor what is done about faults. The host waits once
for the answers' summaries and once for the last copy. Until it has seen that every number of an answer is one, nothing
of that image goes down.

An image that the staging memory cannot hold is resized and finished by the host; the network does not know.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda import postprocess as edges
from rmbgd.backends.cuda.device import CudaSeam, Mark
from rmbgd.backends.cuda.memory_plan import COARSE_PIXELS
from rmbgd.backends.cuda.network import Network
from rmbgd.backends.cuda.postprocess import FINITE, pack
from rmbgd.backends.cuda.resample import FullSize, bands
from rmbgd.backends.cuda.staging import Band, Source, Staging
from rmbgd.backends.planes import finish
from rmbgd.engine.types import OUTPUT_BYTES, MatteReport, OutputPlane, Work, view
from rmbgd.errors import EngineNonsense
from rmbgd.models.kernels.resize import resized


@dataclass
class Waiting:
    """Bands that are packed on the device, and what to wait for."""

    place: int
    band: Band
    ready: Mark


class BatchRun:
    """Made for one batch, used once: `compute`, then `finish`.

    size  of the batch that is computed; its last places may be empty
    told  float32 on the host, the device's copies can reach it; at least as many rows as images
    wide  whether the network already computes in float32, so that trying again is no use
    """

    def __init__(
        self,
        device: CudaSeam,
        staging: Staging,
        network: Network,
        block: NDArray[np.uint8],
        batch: Sequence[Work],
        size: int,
        told: Tensor,
        *,
        wide: bool,
    ) -> None:
        self.again = 0  # images computed a second time
        self.known_at = 0.0  # perf_counter when the first answers were known
        self._device = device
        self._staging = staging
        self._network = network
        self._block = block
        self._batch = batch
        self._size = size
        self._told = told[: len(batch)]
        self._wide = wide
        self._by_host = {place for place, work in enumerate(batch) if not staging.fits(work.region)}
        self._sources: dict[int, Source] = {}
        self._waiting: list[Waiting] = []
        self._last: Mark | None = None  # of the copies down
        self._known: Mark | None = None  # until the summaries have been looked at
        self._bad: set[int] = set()  # places whose answers are not finite

    def compute(self) -> None:
        """Images up, resized, through the network; nothing is waited for."""
        unput: list[tuple[int, Source]] = []
        for place, work in enumerate(self._batch):
            if place in self._by_host:
                self._put_by_host(place)
                continue
            source = self._staging.bring(work.region)
            if source is None:  # the ring is full of images that were not read yet
                self._put(unput)
                unput = []
                source = self._staging.bring(work.region)
                assert source is not None
            self._sources[place] = source
            unput.append((place, source))
        self._put(unput)
        with self._device.compute():
            self._network.run(self._size)
            self._known = self._tell()

    def finish(self) -> list[MatteReport]:
        """Every output plane is complete. Raises EngineNonsense for an answer that is not finite in float32 either."""
        for group in self._groups():
            self._finish(group)
        self._send()
        if self._bad:
            self._once_more(sorted(self._bad))
        for place in sorted(self._by_host):
            self._finish_by_host(place)
        if self._last is not None:
            self._device.wait(self._last)
        return [
            MatteReport(work.image_id, *(min(max(float(value), 0.0), 1.0) for value in row[:FINITE]))
            for work, row in zip(self._batch, self._told, strict=True)
        ]

    # --- up

    def _put(self, unput: Sequence[tuple[int, Source]]) -> None:
        """Into the network's places; afterwards the pieces may be overwritten."""
        with self._device.compute():
            for _, source in unput:
                self._follow(source)
            runs = groupby(enumerate(unput), lambda entry: entry[1][0] - entry[0])
            for _, run in runs:  # places beside each other
                entries = [entry for _, entry in run]
                self._network.put(entries[0][0], [source.rgb for _, source in entries])
            self._release([source for _, source in unput])

    def _put_by_host(self, place: int) -> None:
        rgb = torch.from_numpy(view(self._block, self._batch[place].region).rgb)
        pixels = resized(rgb, self._network.size).permute(1, 2, 0)
        with self._device.compute():
            self._network.put_resized(place, pixels)

    def _source(self, place: int) -> Source:
        """The image's planes, to be released; brought a second time if others have taken their place."""
        source = self._sources.get(place)
        if source is None or source.piece.gone:
            source = self._staging.bring(self._batch[place].region)
            assert source is not None, "nothing else is held now; a bug"
            self._sources[place] = source
        source.piece.held = True
        self._follow(source)
        return source

    def _follow(self, source: Source) -> None:
        assert source.piece.mark is not None
        self._device.follow(source.piece.mark)

    def _release(self, sources: Sequence[Source]) -> None:
        if sources:
            mark = self._device.mark()
            for source in sources:
                source.piece.mark, source.piece.held = mark, False

    # --- down

    def _groups(self) -> Iterator[list[int]]:
        """Places in the order of finishing: first what is on the device; those of one size to be cleaned together."""
        places = [place for place in range(len(self._batch)) if place not in self._by_host]
        places.sort(key=lambda place: (self._sources[place].piece.gone, *self._alike(place)))
        for alike, run in groupby(places, self._alike):
            group = list(run)
            most = self._together(alike) if alike[0] else 1
            for first in range(0, len(group), most):
                yield group[first : first + most]

    def _together(self, alike: tuple[bool, int, int]) -> int:
        """How many images of one size are estimated in one, by the memory that it takes."""
        height, width = edges.coarse_size(*alike[1:])
        return max(1, COARSE_PIXELS // (height * width))

    def _alike(self, place: int) -> tuple[bool, int, int]:
        work = self._batch[place]
        return self._cleans(work), work.region.height, work.region.width

    @staticmethod
    def _cleans(work: Work) -> bool:
        return work.clean_edges and work.region.output is OutputPlane.RGBA8

    def _finish(self, group: Sequence[int]) -> None:
        """Launch all that turns answers into bytes of output planes."""
        colours: dict[int, Tensor] = {}
        with self._device.compute():
            if self._cleans(self._batch[group[0]]):
                colours = dict(zip(group, edges.estimate([self._coarse(place) for place in group]), strict=True))
            for place in group:
                self._pack(place, colours.get(place))

    def _coarse(self, place: int) -> Tensor:
        source = self._source(place)
        answer = edges.coarse(source.rgb, self._full_size(place))
        self._release([source])
        return answer

    def _pack(self, place: int, colours: Tensor | None) -> None:
        """One image, band by band."""
        region, alpha = self._batch[place].region, self._full_size(place)
        needs_source = region.output is OutputPlane.RGBA8 or region.source_alpha
        source = self._source(place) if needs_source else None
        row_bytes = OUTPUT_BYTES[region.output] * region.width
        for first, last in bands(region.height, region.width):
            band = self._room(region.output_offset + first * row_bytes, (last - first) * row_bytes)
            rows = alpha.rows(first, last)
            rgb = source.rgb[first:last] if source else None
            if rgb is not None and colours is not None:
                rgb = edges.corrected(rgb, rows, colours, (first, last), region.height)
            own = source.source_alpha[first:last] if source and source.source_alpha is not None else None
            pack(region.output, rgb, rows, own, band.memory)
            self._waiting.append(Waiting(place, band, self._device.mark()))
        if source:
            self._release([source])

    def _room(self, offset: int, byte_count: int) -> Band:
        band = self._staging.room(offset, byte_count)
        if band is None:
            self._send()
            band = self._staging.room(offset, byte_count)
            assert band is not None, "everything was sent; a bug"
        for mark in band.piece.after:
            self._device.follow(mark)
        return band

    def _send(self) -> None:
        """What is packed goes down, but for images whose answers are not finite."""
        self._look()
        for waiting in self._waiting:
            if waiting.place in self._bad:
                waiting.band.piece.mark, waiting.band.piece.held = waiting.ready, False
            else:
                self._last = self._staging.send(waiting.band, waiting.ready)
        self._waiting.clear()

    def _full_size(self, place: int) -> FullSize:
        region = self._batch[place].region
        return FullSize(self._network.mattes[place], region.height, region.width)

    def _finish_by_host(self, place: int) -> None:
        work = self._batch[place]
        with self._device.compute():
            matte = self._network.mattes[place].cpu().numpy()
        finish(view(self._block, work.region), matte, clean=work.clean_edges)

    # --- whether answers are numbers

    def _tell(self) -> Mark:
        """Start copying the summaries to the host. On the compute stream."""
        self._told.copy_(self._network.summary[: len(self._batch)], non_blocking=True)
        return self._device.mark()

    def _look(self) -> None:
        """Wait for the summaries, once."""
        if self._known is not None:
            self._device.wait(self._known)
            self._known = None
            self.known_at = self.known_at or time.perf_counter()
            self._bad = {place for place, row in enumerate(self._told.tolist()) if row[FINITE] != 1.0}

    def _once_more(self, places: Sequence[int]) -> None:
        """Alone and in float32. The others of the batch have gone down."""
        if not self._wide:
            self.again = len(places)
            with self._device.compute():
                for place in places:
                    self._network.again(place)
                self._known = self._tell()
            self._look()
        if self._bad:
            raise EngineNonsense(
                f"alpha is not finite for images {sorted(self._bad)} of a batch of {len(self._batch)} "
                f"({self._network.name})" + ("" if self._wide else ", in float32 as well")
            )
        for place in places:
            if place not in self._by_host:
                self._finish([place])
        self._send()
