"""End of a batch on the device: summaries of mattes, and the jobs that write output planes (models/finish.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.types import OUTPUT_BYTES, OutputPlane, Region
from rmbgd.imaging.edges import HARDEST, ITERATIONS, LEVEL_SIDE, SOFTEST, STIFFNESS
from rmbgd.imaging.refine import EXPLAINED, FAINT, FLATNESS, RADIUS
from rmbgd.models import finish
from rmbgd.models.finish import FinishJob, Fitting, Method

SUMMARY = 5  # numbers per matte
FINITE = 4  # of them the one that says whether all of the matte is finite

FITTING = Fitting(RADIUS, FLATNESS, FAINT, EXPLAINED, SCALE, SHIFT)
METHOD = Method(ITERATIONS, STIFFNESS, SOFTEST, HARDEST, FITTING)


def statistics(mattes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each matte, float32 [b, h, w]: mean, peak, share >= 0.5, share in 0.05..0.95; each float32 [b]."""
    flat = mattes.flatten(1)
    solid, soft = flat >= 0.5, (flat > 0.05) & (flat < 0.95)
    return flat.mean(dim=1), flat.amax(dim=1), solid.float().mean(dim=1), soft.float().mean(dim=1)


def summary(mattes: Tensor, finite: Tensor) -> Tensor:
    """The statistics of each matte, and 1 if all of it is finite: float32 [b, 5].

    mattes  float32 [b, h, w]
    finite  bool [b]
    """
    finite = finite & mattes.flatten(1).isfinite().all(dim=1)
    return torch.stack((*statistics(mattes), finite.to(torch.float32)), dim=1)


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the finest level that is worked on whole."""
    step = 2 if max(height, width) <= LEVEL_SIDE else 4
    while max(height, width) > step * LEVEL_SIDE:
        step *= 2
    return -(-height // step), -(-width // step)


def job_of(region: Region, start: int, matte: int, *, clean: bool, refined: bool = False) -> FinishJob:
    """For an image whose region lies from byte `start` of the buffer on, and for the matte of this index."""
    cleans = clean and region.output is OutputPlane.RGBA8
    return FinishJob(
        region.height,
        region.width,
        rgb=start,
        source_alpha=start + region.source_alpha_offset - region.offset if region.source_alpha else -1,
        output=start + region.output_offset - region.offset,
        pixel_bytes=OUTPUT_BYTES[region.output],
        matte=matte,
        coarse=coarse_size(region.height, region.width) if cleans else (0, 0),
        refined=refined,
    )


def finish_images(
    images: Tensor, mattes: Tensor, jobs: Sequence[FinishJob], *, inputs: Tensor | None = None, triton: bool
) -> None:
    """See models.finish.finish_images. `inputs` are there if any job is refined."""
    write = finish.finish_images
    if triton:
        from rmbgd.models.kernels.finish import finish_images as write
    write(images, mattes, mattes[:, None] if inputs is None else inputs, jobs, METHOD)


def check_kernels(device: torch.device) -> None:
    """The finish by its Triton kernels against plain torch. Raises ValueError, and what Triton raises."""
    height, width = 100, 160
    at, pixels = torch.arange(3 * height * width, device=device), height * width
    images = torch.zeros(8 * pixels, dtype=torch.uint8, device=device)
    images[: 3 * pixels] = at * at // 64 % 256
    matte = (at[: 48 * 64].view(1, 48, 64) % 64) / 63.0  # soft everywhere
    grain = (at[: 3 * 48 * 64].view(1, 3, 48, 64) % 7) / 20.0
    inputs = grain + 2.0 * matte  # so that colours explain most of the matte, and not all
    for refined in (False, True):
        job = FinishJob(height, width, 0, -1, 3 * pixels, 4, 0, coarse_size(height, width), refined)
        found = []
        for triton in (False, True):
            images[3 * pixels :] = 0
            finish_images(images, matte, [job], inputs=inputs, triton=triton)
            found.append(images[3 * pixels : 7 * pixels].to(torch.int16))
        apart = (found[1] - found[0]).abs()
        if int(apart.max()) > 3 or float((apart > 1).float().mean()) > 1e-3:
            raise ValueError("the kernels that finish images compute nonsense")
