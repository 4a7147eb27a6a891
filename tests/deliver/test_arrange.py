"""The finished image: cropped, placed in a frame, on a colour, with a shadow; exact where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.config.load import Recipe
from rmbgd.deliver.arrange import arrange, flatten, place_on_canvas
from rmbgd.deliver.boxes import crop_box
from tests.imaging.builders import photo, rgb_profile, wide_profile

SIDES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS)
def test_hidden_colours_are_zeroed_unless_the_recipe_keeps_them(height: int, width: int, seed: int) -> None:
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    rgba[:, :, 3] *= np.random.default_rng(seed + 1).integers(0, 2, (height, width), np.uint8)
    assert np.array_equal(arrange(rgba.copy(), None, Recipe()).pixels, np.where(rgba[:, :, 3:] == 0, 0, rgba))
    assert np.array_equal(arrange(rgba.copy(), None, Recipe(hidden_colours="keep")).pixels, rgba)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS, st.tuples(*[st.integers(0, 255)] * 3))
def test_flattening_is_exact(height: int, width: int, seed: int, colour: tuple[int, int, int]) -> None:
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    rgba[0, 0, 3], rgba[-1, -1, 3] = 0, 255
    out = np.empty((height, width, 3), np.uint8)
    flatten(rgba, colour, out)
    share = rgba[:, :, 3:].astype(np.int64)
    exact = share * rgba[:, :, :3] + (255 - share) * np.asarray(colour)
    assert np.array_equal(out, (2 * exact + 255) // 510)
    assert (out[rgba[:, :, 3] == 0] == colour).all()


def subject(height: int = 200, width: int = 300) -> np.ndarray:
    """RGBA with an opaque block at rows 60 to 119, columns 100 to 219, on transparent noise."""
    rgba = np.dstack([photo(height, width), np.zeros((height, width), np.uint8)])
    rgba[60:120, 100:220, 3] = 255
    return rgba


def test_the_box_holds_the_subject_and_the_margin() -> None:
    assert crop_box(subject()[:, :, 3], 0.0) == (60, 120, 100, 220)
    assert crop_box(subject()[:, :, 3], 0.05) == (54, 126, 94, 226)
    assert crop_box(subject()[:, :, 3], 0.5)[0] == 0
    assert crop_box(np.full((20, 30), 255, np.uint8), 0.5) == (0, 20, 0, 30)
    assert crop_box(np.zeros((20, 30), np.uint8), 0.1) == (0, 20, 0, 30)


@pytest.mark.parametrize("step", [1, 257])
def test_specks_and_haze_do_not_widen_the_box_but_a_second_subject_does(step: int) -> None:
    alpha = subject()[:, :, 3].astype(np.uint8 if step == 1 else np.uint16) * step
    alpha[0, 0] = alpha[199, 299] = 255 * step
    alpha[alpha == 0] = 9 * step
    assert crop_box(alpha, 0.0) == (60, 120, 100, 220)
    alpha[150:180, 10:40] = 200 * step
    assert crop_box(alpha, 0.0) == (60, 180, 10, 220)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5000), st.integers(1, 3000), st.data())
def test_the_box_is_exact_to_the_pixel_in_images_of_any_size(height: int, width: int, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    alpha = np.zeros((height, width), np.uint8)
    alpha[top:bottom, left:right] = 10
    assert crop_box(alpha, 0.0) == (top, bottom, left, right)


@pytest.mark.parametrize(("height", "width"), [(400, 400), (100, 400), (50, 50), (1, 1), (201, 301)])
def test_the_canvas_has_its_size_and_the_image_its_aspect(height: int, width: int) -> None:
    canvas = place_on_canvas(np.full((20, 30, 4), 255, np.uint8), height, width)
    assert canvas.shape == (height, width, 4)
    rows, columns = np.nonzero(canvas[:, :, 3])
    factor = min(height / 20, width / 30)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (max(1, round(20 * factor)), max(1, round(30 * factor)))
    assert abs(rows.min() - (height - 1 - rows.max())) <= 1
    assert abs(columns.min() - (width - 1 - columns.max())) <= 1


@pytest.mark.parametrize("side", [37, 120, 333])
def test_hidden_colours_do_not_bleed_into_a_resized_edge(side: int) -> None:
    rgba = np.full((120, 120, 4), (0, 255, 0, 0), np.uint8)
    rgba[30:90, 30:90] = (255, 0, 0, 255)
    canvas = place_on_canvas(rgba, side, side)
    assert np.abs(canvas[canvas[:, :, 3] > 2][:, :3].astype(int) - (255, 0, 0)).max() <= 1


def test_a_16_bit_mask_stays_16_bit_on_a_canvas() -> None:
    canvas = place_on_canvas(np.full((10, 10), 12345, np.uint16), 20, 40)
    assert canvas.dtype == np.uint16
    assert set(np.unique(canvas)) == {0, 12345}


def test_a_colour_recipe_gives_exactly_that_background() -> None:
    pixels = arrange(subject(), None, Recipe(content="colour", background="#fefffd")).pixels
    assert pixels.shape == (200, 300, 3)
    assert (pixels[:60] == (254, 255, 253)).all()
    assert np.array_equal(pixels[60:120, 100:220], subject()[60:120, 100:220, :3])


def test_crop_and_canvas_together_fill_the_canvas_with_the_subject() -> None:
    pixels = arrange(subject(), None, Recipe(content="colour", crop=True, crop_margin=0.0, canvas="500x400")).pixels
    assert pixels.shape == (400, 500, 3)
    assert (pixels[:70] == 255).all()
    assert (pixels[76:324, 5:495] < 255).any(axis=2).mean() > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_cropped_too(dtype: type) -> None:
    alpha = subject()[:, :, 3].astype(dtype) * (257 if dtype is np.uint16 else 1)
    pixels = arrange(None, alpha, Recipe(content="mask", crop=True, crop_margin=0.0)).pixels
    assert np.array_equal(pixels, alpha[60:120, 100:220])
    assert pixels.flags.c_contiguous


def test_longest_side_only_makes_smaller() -> None:
    frame = arrange(subject(), None, Recipe(longest_side=150))
    assert (frame.pixels.shape, frame.alpha.shape, frame.enlarged) == ((100, 150, 4), (100, 150), 1.0)
    assert np.array_equal(
        arrange(subject(), None, Recipe(longest_side=999)).pixels, arrange(subject(), None, Recipe()).pixels
    )


def test_enlarging_is_said() -> None:
    assert arrange(subject(), None, Recipe(canvas="600x600")).enlarged == 2.0
    assert arrange(subject(), None, Recipe(canvas="60x60")).enlarged == 1.0
    assert arrange(subject(), None, Recipe()).enlarged == 1.0


def test_foreground_is_colour_times_alpha_on_black() -> None:
    """And in TIFF with the alpha it was multiplied by."""
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    exact = (2 * rgba[:, :, :3].astype(int) * rgba[:, :, 3:] + 255) // 510
    assert np.array_equal(arrange(rgba, None, Recipe(content="foreground"), last=False).pixels, exact)
    wide = arrange(rgba, None, Recipe(content="foreground", format="tiff"), last=False).pixels
    assert np.array_equal(wide, np.dstack([exact, rgba[:, :, 3]]))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_mask_of_a_cutout_is_its_alpha(bits: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    mask = arrange(rgba, None, Recipe(content="mask", mask_bits=bits), last=False).pixels
    assert np.array_equal(mask, rgba[:, :, 3] * np.uint16(257 if bits == 16 else 1))
    assert mask.dtype == (np.uint16 if bits == 16 else np.uint8)


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"content": "mask"}, {"content": "colour"}, {"content": "foreground", "format": "tiff"}, {"shadow": "cast"},
        {"crop": True, "crop_margin": 0.5}, {"canvas": "300x200"}, {"canvas": "80x80", "fill": 0.8},
        {"longest_side": 20}, {"colour_space": "srgb"},
    ],
)  # fmt: skip
def test_planes_that_serve_more_files_stay_as_they_are(asked: dict[str, object]) -> None:
    rgba = subject()
    kept = rgba.copy()
    frame = arrange(rgba, None, Recipe(**asked), profile=rgb_profile(), last=False)
    assert np.array_equal(rgba, kept)
    assert np.array_equal(frame.pixels, arrange(rgba, None, Recipe(**asked), profile=rgb_profile()).pixels)


def test_colours_become_srgb_before_they_meet_the_background() -> None:
    rgba = np.full((20, 20, 4), (200, 80, 40, 255), np.uint8)
    rgba[:, 10:, 3] = 0
    look = Recipe(content="colour", background="#f0f1f2", colour_space="srgb")
    wide = arrange(rgba, None, look, profile=wide_profile(), last=False).pixels
    assert (wide[:, 10:] == (0xF0, 0xF1, 0xF2)).all()
    assert wide[0, 0, 0] > 210  # a wider space needs less red for the same colour
    assert np.array_equal(arrange(rgba, None, look, last=False).pixels[:, :10], rgba[:, :10, :3])
    assert np.array_equal(arrange(rgba, None, look, profile=b"no profile", last=False).pixels[:, :10], rgba[:, :10, :3])
