"""Launches and bytes that finishing an image takes on a device: counted on `meta`, nothing declared by hand.

Our kernels are charged with the whole of their tensors at every launch, but of the ring only with the planes of the
images. That is more than kernels touch, as each works on one level; where tiles overlap, neighbours read a pixel more
than once, which caches bear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rmbgd.backends.cuda.postprocess import finish_images, job_of
from rmbgd.models.finish import FinishJob
from tests.support.finish import Image, regions
from tests.support.meta import Count, Kernel

MOST_LAUNCHES = 40  # of an image
MOST_BYTES = 100  # for each pixel: 0.1 GB a megapixel
NETWORK = 1024


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[int, int]]], tuple[int, float]]:
    """(launches, bytes a pixel) of a group of images, (height, width) each."""
    pytest.importorskip("triton")
    from rmbgd.models.kernels import finish

    def counted(sizes: list[tuple[int, int]]) -> tuple[int, float]:
        images = [Image(np.empty((*size, 3), np.uint8)) for size in sizes]
        jobs = [job_of(place, place.offset, 0, clean=True) for place in regions(images)]
        pixels = sum(height * width for height, width in sizes)
        mode = Count()

        def note(name: str, given: list[torch.Tensor]) -> None:
            mode.note(name, [tensor for tensor in given if tensor.dtype is not torch.uint8])
            if any(tensor.dtype is torch.uint8 for tensor in given):
                mode.bytes[name] += planes(name, jobs)

        for name in ("_shrink", "_coarse", "_halve", "_relax", "_pack"):
            monkeypatch.setattr(finish, name, Kernel(name, note))
        ring = torch.empty(8 * pixels, dtype=torch.uint8, device="meta")
        mattes = torch.empty((1, NETWORK, NETWORK), device="meta")
        with mode:
            finish_images(ring, mattes, jobs, triton=True)
        return mode.launches.total(), mode.bytes.total() / pixels

    return counted


def planes(name: str, jobs: list[FinishJob]) -> int:
    """Bytes of the ring that a kernel reads and writes."""
    return sum((3 + (job.pixel_bytes if name == "_pack" else 0)) * job.height * job.width for job in jobs)


@pytest.mark.parametrize("size", [(1, 1), (1024, 1024), (1200, 1600), (3000, 4000), (5000, 6600), (1, 60_000)])
def test_an_image_of_any_size_takes_few_launches(count, size):
    launches, _ = count([size])
    assert launches <= MOST_LAUNCHES


@pytest.mark.parametrize("size", [(1024, 1024), (1200, 1600), (3000, 4000), (5000, 6600)])
def test_an_image_moves_few_bytes(count, size):
    assert count([size])[1] <= MOST_BYTES


def test_a_group_of_eight_sizes_takes_as_many_launches_as_one_image(count):
    assert count([(1000 + 50 * n, 1024) for n in range(8)])[0] <= MOST_LAUNCHES
