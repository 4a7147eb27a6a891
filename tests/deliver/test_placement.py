"""The subject in its frame: fill, margins and alignment measured in the result, tilt taken out, odd images defined."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.config.load import Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.deliver.boxes import crop_box, subject_box
from tests.imaging.builders import photo


def ellipse(height: int, width: int, across: tuple[float, float], angle: float, soft: float) -> np.ndarray:
    """Alpha of an ellipse of these half axes (shares of the sides) in the middle."""
    alpha = np.zeros((height, width), np.uint8)
    axes = max(2, round(across[0] * width)), max(2, round(across[1] * height))
    cv2.ellipse(alpha, (width // 2, height // 2), axes, angle, 0, 360, 255, -1)
    return cv2.GaussianBlur(alpha, (0, 0), soft) if soft else alpha


def cutout(alpha: np.ndarray) -> np.ndarray:
    return np.dstack([photo(*alpha.shape), alpha])


def turned_bar(angle: float, size: tuple[int, int] = (300, 110), shape: str = "rectangle") -> np.ndarray:
    """Alpha of a bar turned clockwise by so many degrees, 600 x 500."""
    alpha = np.zeros((600, 500), np.uint8)
    if shape == "rectangle":
        corners = cv2.boxPoints(((250.0, 300.0), size, angle))
        cv2.fillPoly(alpha, [np.rint(corners * 16).astype(np.int32)], 255, shift=4)
    else:
        cv2.ellipse(alpha, (250, 300), (size[0] // 2, size[1] // 2), angle, 0, 360, 255, -1)
    return alpha


@settings(deadline=None, max_examples=40)
@given(
    st.integers(60, 900), st.integers(60, 900), st.tuples(*[st.floats(0.05, 0.6)] * 2), st.floats(0, 180),
    st.sampled_from([0.0, 0.7, 3.0]), st.sampled_from(["600x600", "800x500", "411x733"]), st.floats(0.2, 1.0),
    st.sampled_from([0.0, 20.0, 45.0]), st.sampled_from(["centre", "bottom"]),
)  # fmt: skip
def test_the_subject_fills_the_share_of_the_frame_that_is_asked_for(
    height: int, width: int, across: tuple[float, float], angle: float, soft: float, canvas: str, fill: float,
    straighten: float, align: str,
) -> None:  # fmt: skip
    alpha = ellipse(height, width, across, angle, soft)
    recipe = Recipe(content="mask", canvas=canvas, fill=fill, straighten=straighten, align=align)
    frame = arrange(None, alpha, recipe)
    frame_width, frame_height = map(int, canvas.split("x"))
    assert frame.pixels.shape == (frame_height, frame_width)
    top, bottom, left, right = subject_box(frame.pixels)
    filled = max((bottom - top) / frame_height, (right - left) / frame_width)
    assert abs(filled - fill) <= 0.005
    assert abs(left - (frame_width - right)) <= 3
    below = frame_height - bottom
    assert abs(below - (round(frame_height * (1 - fill) / 2) if align == "bottom" else top)) <= 3


@settings(deadline=None, max_examples=30)
@given(
    st.integers(40, 700), st.integers(40, 700), st.tuples(*[st.floats(0.1, 0.5)] * 2), st.floats(0, 90),
    st.tuples(*[st.floats(0, 0.4)] * 4), st.sampled_from(["centre", "bottom"]),
)  # fmt: skip
def test_margins_are_kept_and_met_on_the_binding_axis(
    height: int, width: int, across: tuple[float, float], angle: float, margins: tuple[float, ...], align: str
) -> None:
    alpha = ellipse(height, width, across, angle, 0.0)
    frame = arrange(None, alpha, Recipe(content="mask", canvas="700x500", margins=list(margins), align=align))
    top, bottom, left, right = subject_box(frame.pixels)
    asked = [share * side for share, side in zip(margins, (500, 700, 500, 700), strict=True)]
    spare = [seen - least for seen, least in zip((top, 700 - right, 500 - bottom, left), asked, strict=True)]
    assert min(spare) >= -1
    assert min(spare[0] + spare[2], spare[1] + spare[3]) <= 4
    if align == "bottom":
        assert spare[2] <= 2
    else:
        assert abs(spare[0] - spare[2]) <= 3
    assert abs(spare[1] - spare[3]) <= 3


@settings(deadline=None, max_examples=30)
@given(st.integers(40, 900), st.integers(40, 900), st.tuples(*[st.floats(0.15, 0.5)] * 2), st.floats(0.3, 1.0))
def test_the_aspect_of_the_subject_is_kept(height: int, width: int, across: tuple[float, float], fill: float) -> None:
    alpha = ellipse(height, width, across, 0.0, 0.0)
    before = subject_box(alpha)
    frame = arrange(None, alpha, Recipe(content="mask", canvas="640x480", fill=fill))
    seen, sides = np.diff(subject_box(frame.pixels))[::2], np.diff(before)[::2]
    factor = seen.max() / sides[np.argmax(seen)]
    assert np.abs(seen - factor * sides).max() <= 2 + factor
    assert frame.enlarged == pytest.approx(max(1.0, factor), abs=0.1 * max(1.0, factor))


def test_thin_ends_that_vanish_in_a_smaller_frame_do_not_count() -> None:
    """A hair of two pixels above the subject is not seen in a frame a tenth as large: the box is what is left."""
    alpha = np.zeros((4000, 3000), np.uint8)
    alpha[1500:3500, 1000:2000] = 255
    alpha[200:1500, 1500:1502] = 255
    top, bottom, left, right = subject_box(arrange(None, alpha, Recipe(canvas="300x300", fill=0.8)).pixels)
    assert (bottom - top, (top + bottom) / 2) == (240, 150)
    assert abs((right - left) - 120) <= 1


def test_specks_do_not_move_the_subject_and_stay_where_they_fit() -> None:
    alpha = np.zeros((1000, 1000), np.uint8)
    alpha[300:700, 300:700] = 255
    plain = arrange(None, alpha, Recipe(canvas="500x500", fill=0.8)).pixels
    alpha[250:256, 250:256] = alpha[10:16, 10:16] = 255
    specks = arrange(None, alpha, Recipe(canvas="500x500", fill=0.8)).pixels
    assert subject_box(specks) == subject_box(plain) == (50, 450, 50, 450)
    assert (specks.max(), specks[:8, :8].max(), plain[:8, :8].max()) == (255, 255, 0)
    assert cv2.connectedComponents((specks > 0).view(np.uint8))[0] == 3  # background, subject, and the nearer speck


def test_half_pixels_of_the_background_s_colour_do_not_come_back() -> None:
    """No filter overshoots: colours of an even subject stay what they are, but for rounding at a quarter of alpha."""
    rgba = np.full((400, 400, 4), (0, 255, 0, 0), np.uint8)
    rgba[100:300, 150:250] = (180, 60, 20, 255)
    for recipe in (Recipe(canvas="900x900", fill=0.9), Recipe(canvas="77x77", fill=0.7)):
        for turn in (0.0, 30.0):
            source = rgba if not turn else np.ascontiguousarray(np.rot90(rgba))
            pixels = arrange(source, None, recipe, last=False).pixels
            seen = pixels[pixels[:, :, 3] > 60][:, :3].astype(int)
            assert np.abs(seen - (180, 60, 20)).max() <= 4


@pytest.mark.parametrize("angle", [-40.0, -12.0, -1.0, 0.5, 7.0, 30.0, 44.0])
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_an_oblong_subject_is_turned_upright(angle: float, shape: str) -> None:
    """Its box in the frame has the aspect of the bar itself."""
    alpha = turned_bar(angle, (400, 120), shape)
    frame = arrange(None, alpha, Recipe(content="mask", canvas="800x800", fill=0.8, straighten=45.0)).pixels
    top, bottom, left, right = subject_box(frame)
    assert (right - left) / (bottom - top) == pytest.approx(400 / 120, rel=0.03)


@pytest.mark.parametrize(
    ("alpha", "limit"),
    [
        (turned_bar(20.0), 19.0),  # beyond the limit
        (ellipse(600, 600, (0.3, 0.3), 0.0, 2.0), 45.0),  # a disc
        (ellipse(600, 600, (0.3, 0.25), 30.0, 2.0), 45.0),  # nearly one
        (turned_bar(20.0), 0.0),
    ],
)
def test_what_leans_too_far_or_has_no_direction_is_not_turned(alpha: np.ndarray, limit: float) -> None:
    turned = arrange(None, alpha, Recipe(canvas="500x500", fill=0.8, straighten=limit)).pixels
    assert np.array_equal(turned, arrange(None, alpha, Recipe(canvas="500x500", fill=0.8)).pixels)


def test_a_turned_rgba_has_the_alpha_of_its_turned_mask_and_its_colours() -> None:
    rgba = cutout(turned_bar(11.0, (480, 150)))
    for canvas in ("900x900", "120x90"):
        recipe = Recipe(canvas=canvas, fill=0.8, straighten=15.0)
        frame = arrange(rgba, None, recipe, last=False)
        mask = arrange(rgba, None, Recipe(content="mask", canvas=canvas, fill=0.8, straighten=15.0), last=False)
        assert np.abs(frame.pixels[:, :, 3].astype(int) - mask.pixels).max() <= 1
        solid = frame.pixels[frame.pixels[:, :, 3] == 255]
        assert np.abs(solid[:, :3].mean(axis=0) - rgba[rgba[:, :, 3] == 255][:, :3].mean(axis=0)).max() < 3


@pytest.mark.parametrize("straighten", [0.0, 45.0])
@pytest.mark.parametrize("content", ["rgba", "mask", "colour", "foreground"])
@pytest.mark.parametrize(
    ("height", "width", "value"), [(1, 1, 255), (1, 300, 255), (300, 1, 200), (20, 30, 255), (20, 30, 0), (20, 30, 100)]
)
def test_odd_images_have_defined_results(height: int, width: int, value: int, content: str, straighten: float) -> None:
    """A subject that touches all borders, none, one pixel, one row: the frame as asked for, and its fill."""
    alpha = np.full((height, width), value, np.uint8)
    recipe = Recipe(content=content, canvas="200x100", fill=0.8, straighten=straighten)
    frame = arrange(cutout(alpha), None, recipe)
    assert frame.pixels.shape[:2] == frame.alpha.shape == (100, 200)
    found = subject_box(frame.alpha)
    assert (found is None) == (value < 128)
    if found:
        assert max((found[1] - found[0]) / 100, (found[3] - found[2]) / 200) == pytest.approx(0.8, abs=0.011)
    else:
        assert frame.alpha.max() == value


def test_one_pixel_is_a_subject_too() -> None:
    alpha = np.zeros((50, 40), np.uint8)
    alpha[13, 7] = 255
    frame = arrange(None, alpha, Recipe(content="mask", canvas="100x100", fill=0.5))
    assert subject_box(frame.pixels) == (25, 75, 25, 75)
    assert frame.enlarged == pytest.approx(50, rel=0.05)


def test_a_16_bit_mask_is_placed_like_one_of_8() -> None:
    alpha = ellipse(300, 400, (0.3, 0.2), 20.0, 3.0)
    for straighten in (0.0, 45.0):
        recipe = Recipe(canvas="250x250", fill=0.8, straighten=straighten)
        wide, narrow = arrange(None, alpha * np.uint16(257), recipe).pixels, arrange(None, alpha, recipe).pixels
        assert wide.dtype == np.uint16
        assert np.abs(wide / 257 - narrow).max() <= 1


def test_the_subject_box_counts_alpha_of_a_half_and_more() -> None:
    alpha = np.zeros((100, 100), np.uint8)
    alpha[20:80, 30:60] = 127
    assert subject_box(alpha) is None
    alpha[40:50, 35:55] = 128
    assert subject_box(alpha) == subject_box(alpha * np.uint16(257)) == (40, 50, 35, 55)
    assert crop_box(alpha, 0.0) == (20, 80, 30, 60)
