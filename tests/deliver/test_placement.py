"""The subject in its frame: fill, margins and alignment measured in the result, tilt taken out, odd images defined."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.config.load import Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.deliver.boxes import subject_box
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
