"""Images in an arena, for every backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.backends.cpu.backend import CpuBackend
from rmbgd.engine.arena import Arena
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import ModelChoice, Options, OutputPlane, Region, Slot, Work, region_bytes, view

MEBI = 1 << 20
OPTIONS = Options(
    {"u2netp": ModelChoice("u2netp")},
    Path("/nonexistent"),
    precision="float32",
    threads=1,
    batch_maximum=4,
    cpu_runtime="torch",
)


class Canvas:
    """Places images in the arena one after the other, without leases: a test has the arena for itself."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.offset = 0

    def place(self, image_id: int, rgb: np.ndarray, *, source_alpha=None, output=OutputPlane.RGBA8, clean=True) -> Work:
        height, width = rgb.shape[:2]
        region = Region(self.offset, height, width, source_alpha is not None, output)
        self.offset += region_bytes(height, width, source_alpha=source_alpha is not None, output=output)
        slot = view(self.arena.block, region)
        slot.rgb[...] = rgb
        if source_alpha is not None:
            slot.source_alpha[...] = source_alpha
        work = Work(image_id, region, "u2netp", clean)
        self.spoil(work)
        return work

    def slot(self, work: Work) -> Slot:
        return view(self.arena.block, work.region)

    def spoil(self, work: Work) -> None:
        """The output plane is all sevens."""
        self._output(work)[...] = 7

    def plane(self, work: Work) -> np.ndarray:
        """A copy of the output plane."""
        return self._output(work).copy()

    def _output(self, work: Work) -> np.ndarray:
        slot = self.slot(work)
        return slot.alpha if slot.rgba is None else slot.rgba


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena(64 * MEBI) as arena:
        yield arena


@pytest.fixture
def canvas(arena: Arena) -> Canvas:
    return Canvas(arena)


def ball(height: int, width: int) -> np.ndarray:
    """The golden image at another size."""
    return np.asarray(Image.fromarray(golden_image()[0]).resize((width, height), Image.Resampling.BICUBIC))


def by_host(canvas: Canvas, works: list[Work]) -> tuple[list[np.ndarray], list[dict]]:
    """Planes that the CPU's backend makes of images, and what it says of their mattes. The planes are spoilt again."""
    host = CpuBackend(canvas.arena.block, OPTIONS)
    host.start()
    mattes = [asdict(host.segment([work]).answers[0].matte) for work in works]
    planes = [canvas.plane(work) for work in works]
    host.close()
    for work in works:
        canvas.spoil(work)
    return planes, mattes
