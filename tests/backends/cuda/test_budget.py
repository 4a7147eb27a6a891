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
NETWORK, SMALL_NETWORK = 1024, 320


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, float]]:
    """(launches, bytes a pixel) of a group of images, (height, width) each; those of the small network are refined."""
    pytest.importorskip("triton")
    from rmbgd.models.kernels import finish

    def counted(sizes: list[tuple[int, int]], network: int = NETWORK) -> tuple[int, float]:
        images = [Image(np.empty((*size, 3), np.uint8)) for size in sizes]
        refined = network == SMALL_NETWORK
        jobs = [job_of(place, place.offset, 0, clean=True, refined=refined) for place in regions(images)]
        pixels = sum(height * width for height, width in sizes)
        mode = Count()

        def note(name: str, given: list[torch.Tensor]) -> None:
            mode.note(name, [tensor for tensor in given if tensor.dtype is not torch.uint8])
            if any(tensor.dtype is torch.uint8 for tensor in given):
                mode.bytes[name] += planes(name, jobs)

        for name in ("_shrink", "_fit", "_coarse", "_halve", "_relax", "_pack"):
            monkeypatch.setattr(finish, name, Kernel(name, note))
        ring = torch.empty(8 * pixels, dtype=torch.uint8, device="meta")
        mattes = torch.empty((1, network, network), device="meta")
        inputs = torch.empty((1, 3, network, network), dtype=torch.float16, device="meta")
        with mode:
            finish_images(ring, mattes, jobs, inputs=inputs, triton=True)
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


@pytest.mark.parametrize("size", [(641, 641), (1024, 1024), (1200, 1600), (3000, 4000)])
def test_refining_takes_one_launch_more(count, size):
    launches, moved_bytes = count([size], SMALL_NETWORK)
    assert launches <= min(MOST_LAUNCHES, count([size])[0] + 1)
    assert moved_bytes <= MOST_BYTES


def test_a_group_of_eight_sizes_takes_as_many_launches_as_one_image(count):
    assert count([(1000 + 50 * n, 1024) for n in range(8)])[0] <= MOST_LAUNCHES
