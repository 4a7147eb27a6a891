"""Images lying in an arena, for tests of engines."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from rmbgd.engine.arena import Arena
from rmbgd.engine.types import OutputPlane, Region, Slot, Work, region_bytes, view


class ImageStore(ExitStack):
    """Puts images into an arena and keeps their leases until the end of the test."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena, self.random = arena, np.random.default_rng(0)

    def put(self, image_id=1, *, height=24, width=17, source_alpha=False, output=OutputPlane.RGBA8) -> Work:
        size = region_bytes(height, width, source_alpha=source_alpha, output=output)
        lease = self.enter_context(self.arena.lease(size))
        work = Work(image_id, Region(lease.offset, height, width, source_alpha, output), "fake", clean_edges=True)
        slot = self.slot(work)
        slot.rgb[...] = self.random.integers(0, 256, slot.rgb.shape)
        if slot.source_alpha is not None:
            slot.source_alpha[...] = self.random.integers(0, 256, slot.source_alpha.shape)
        return work

    def slot(self, work: Work) -> Slot:
        return view(self.arena.block, work.region)
