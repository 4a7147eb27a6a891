"""Images finished on a device, beside the planes that the host makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rmbgd.backends.cuda.postprocess import finish_images, job_of
from rmbgd.backends.planes import SCALE, SHIFT, finish
from rmbgd.engine.types import OutputPlane, Region, region_bytes, view
from rmbgd.imaging.refine import refines
from rmbgd.imaging.resize import image_to_network
from rmbgd.resampling import Filter


@dataclass(frozen=True)
class Image:
    rgb: np.ndarray
    source_alpha: np.ndarray | None = None
    output: OutputPlane = OutputPlane.RGBA8
    clean: bool = True


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def disc(height: int, width: int) -> np.ndarray:
    """A disc with a wide soft border and some texture: float32 [height, width]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    return np.clip(2.5 - 8 * distance + 0.1 * np.sin(x), 0, 1).astype(np.float32)


def regions(images: Sequence[Image]) -> list[Region]:
    """One after the other, as in an arena."""
    found, offset = [], 0
    for image in images:
        height, width, own = *image.rgb.shape[:2], image.source_alpha is not None
        found.append(Region(offset, height, width, own, image.output))
        offset += region_bytes(height, width, source_alpha=own, output=image.output)
    return found


def finished(
    images: Sequence[Image],
    mattes: Sequence[np.ndarray],
    device: torch.device | str = "cpu",
    *,
    triton: bool = False,
    refine: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(output plane by the device, by the host) of each image, all in one group; with `refine` also refined where they
    are large enough, from inputs of float16."""
    places = regions(images)
    size = mattes[0].shape
    guides = [
        image_to_network(image.rgb, size, Filter.BOX) if refine and refines(size, *image.rgb.shape[:2]) else None
        for image in images
    ]
    end = places[-1].output_offset + 4 * places[-1].height * places[-1].width
    block = np.full(end + 64, 7, np.uint8)
    for image, place in zip(images, places, strict=True):
        view(block, place).rgb[...] = image.rgb
        if image.source_alpha is not None:
            view(block, place).source_alpha[...] = image.source_alpha
    there = torch.from_numpy(block.copy()).to(device)
    jobs = [
        job_of(place, place.offset, index, clean=image.clean, refined=guides[index] is not None)
        for index, (image, place) in enumerate(zip(images, places, strict=True))
    ]
    seen = np.stack([np.zeros((*size, 3), np.uint8) if guide is None else guide for guide in guides])
    inputs = torch.from_numpy((seen * np.array(SCALE) + np.array(SHIFT)).astype(np.float16)).to(device)
    finish_images(
        there, torch.from_numpy(np.stack(mattes)).to(device), jobs, inputs=inputs.permute(0, 3, 1, 2), triton=triton
    )
    by_device = there.cpu().numpy()
    for image, place, matte, guide in zip(images, places, mattes, guides, strict=True):
        finish(view(block, place), matte, clean=image.clean, guide=guide)
    assert len(by_device) == len(block)
    assert (by_device[end:] == 7).all()
    return [(_output(by_device, place), _output(block, place)) for place in places]


def _output(block: np.ndarray, place: Region) -> np.ndarray:
    slot = view(block, place)
    plane = slot.alpha if slot.rgba is None else slot.rgba
    assert plane is not None
    return plane
