"""Output planes by Triton's kernels against the host's, on sizes around the edges of tiles and of everything else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rmbgd.backends.cuda.postprocess import FITTING, check_kernels
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import OutputPlane
from tests.support.finish import Image, disc, finished, noise

SIZE = (48, 64)  # of the mattes
SOLID, SOFT = np.ones(SIZE, np.float32), np.full(SIZE, 0.5, np.float32)


def compared(device: torch.device, images: list[Image], most: int = 3, mattes: list[np.ndarray] | None = None) -> None:
    """All in one group: alpha within one level, colours within `most`, which differ by more than one in few pixels."""
    for found, expected in finished(images, mattes or [disc(*SIZE)] * len(images), device, triton=True):
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= most
        if found.ndim == 3:
            assert difference[..., 3].max() <= 1
            assert (difference > 1).mean() <= 1e-3
        assert (difference > 0).mean() <= 0.01


@pytest.mark.slow
def test_images_of_any_size_are_finished_together(device):
    """Single pixels, strips, sizes beside those of tiles and of the matte; one without edges to clean among them."""
    sizes = [(1, 1), (2, 1), (1, 3), (5, 700), (48, 64), (47, 65), (130, 128), (127, 257), (30, 20)]
    images = [Image(noise(*size, seed), clean=seed != 4) for seed, size in enumerate(sizes)]
    compared(device, images)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (65, 600)])
def test_strips(device, size):
    compared(device, [Image(noise(*size))])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 129), (150, 190)])
def test_tiles_meet_without_a_seam(device, monkeypatch, size):
    """To the bit what one large tile gives: levels of 64 and 65, and of two tiles and a bit, soft almost everywhere."""
    from rmbgd.models.kernels import finish

    case = [Image(noise(*size))], [np.random.default_rng(0).uniform(0, 0.1, SIZE).astype(np.float32)], device
    planes = []
    for tile in (2 * finish.TILE, finish.TILE):
        monkeypatch.setattr(finish, "INTERPRETED_TILE", tile)
        monkeypatch.setattr(finish, "TILE", tile)
        ((found, _),) = finished(*case, triton=True)
        planes.append(found)
    assert np.array_equal(*planes)


@pytest.mark.slow
@pytest.mark.parametrize("with_source_alpha", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_planes_of_each_kind(device, with_source_alpha, clean):
    """16 bits within two levels of 65535."""
    own = noise(50, 71, seed=4)[..., 0] if with_source_alpha else None
    compared(device, [Image(noise(50, 71), own, output, clean=clean) for output in OutputPlane])


@pytest.mark.slow
@pytest.mark.parametrize("triton", [False, True])
def test_refined_alpha_follows_the_image(device, triton):
    """As the host has it, within one level of 255: every plane, an image among them that is too small."""
    rgb, truth = golden_image()
    matte = cv2.resize(truth, SIZE[::-1], interpolation=cv2.INTER_AREA)
    images = [Image(rgb, output=output, clean=False) for output in OutputPlane] + [Image(rgb[:96, :128])]
    refined = finished(images, [matte] * 4, device, triton=triton, refine=True)
    for (found, expected), (plain, _) in zip(refined, finished(images, [matte] * 4, device), strict=True):
        level = 257 if found.dtype == np.uint16 else 1
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= level
        assert (difference > level / 10).mean() <= 1e-3
        assert ((np.abs(found.astype(int) - plain) > 5 * level).sum() > 100) == (len(found) > 96)


def test_mattes_without_soft_pixels_and_without_others(device):
    """Opaque images keep their colours, to the bit."""
    images = [Image(noise(20, 30))] * 3
    compared(device, images, mattes=[SOLID, 0 * SOLID, SOFT])
    ((found, _),) = finished(images[:1], [SOLID], device, triton=True)
    assert np.array_equal(found[..., :3], images[0].rgb)


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_an_image_of_seven_megapixels(device):
    y, x = np.mgrid[0:2200, 0:3200]
    rgb = np.stack((x // 13 % 256, y // 9 % 256, (x + y) // 21 % 256), axis=2).astype(np.uint8)
    compared(device, [Image(rgb)], most=2)


def test_kernels_are_checked_before_they_are_used(device, monkeypatch):
    """Against plain torch; kernels that write nothing are found."""
    from rmbgd.models.kernels import finish

    check_kernels(device)
    monkeypatch.setattr(finish, "finish_images", lambda *_: None)
    with pytest.raises(ValueError, match="compute nonsense"):
        check_kernels(device)


def test_more_steps_than_a_tile_bears_are_refused(device):
    from rmbgd.models.finish import Method
    from rmbgd.models.kernels.finish import finish_images

    with pytest.raises(ValueError, match="13 steps on a tile that bears 12"):
        finish_images(Tensor(), Tensor(), Tensor(), [], Method(13, 0.01, 0, 1, FITTING))
