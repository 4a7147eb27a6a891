"""The preview that people judge by: what it shows, and what it copes with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rmbgd.deliver.preview import DARK, GAP, LIGHT, LINE_HEIGHT, PART, SQUARE, WIDTH, preview

RED, WHITE, BLACK = (250, 0, 0), (LIGHT,) * 3, (0, 0, 0)


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.width) == ("JPEG", "RGB", WIDTH)
        return np.asarray(image).astype(int)


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Red, of which the left half is the subject."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, :, 0] = 250
    alpha = np.zeros((height, width), np.uint8)
    alpha[:, : width // 2] = 255
    return rgb, alpha


def test_three_parts_show_the_original_the_cutout_and_the_matte() -> None:
    page = shown(preview(*scene(400, 400), ["it touches the border"]))
    top, left = GAP + LINE_HEIGHT, [GAP + number * (PART + GAP) for number in range(3)]
    for edge, subject, background in zip(left, (RED, RED, WHITE), (RED, WHITE, BLACK), strict=True):
        for column, colour in ((100, subject), (300, background)):
            assert np.abs(page[top + 210, edge + column] - colour).max() <= 16, (edge, column)
    board = page[top + 6 : top + 390 : SQUARE, left[1] + 210 : left[1] + 390 : SQUARE].mean(axis=2)
    assert np.abs(np.sort(np.unique(board.round(-1)))[[0, -1]] - [DARK, LIGHT]).max() <= 10


def test_the_reasons_stand_below() -> None:
    without, with_ = (shown(preview(*scene(100, 100), lines)) for lines in ([], ["one", "two"]))
    assert with_.shape[0] - without.shape[0] == 2 * LINE_HEIGHT + GAP
    assert with_[without.shape[0] :].min() < 100


@pytest.mark.parametrize(
    "line",
    ["", "\udcff\x1b[31m\u202e", "日本語 ☃ 🎉", "x" * 3000, "word " * 3000],
    ids=["empty", "hostile", "far", "long", "much"],
)
def test_any_text_is_drawn(line: str) -> None:
    assert shown(preview(*scene(100, 100), [line])).shape[0] < 1200


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3000, 4000), (4000, 3000)])
def test_any_size_is_reduced_to_fit(size: tuple[int, int]) -> None:
    rgb, alpha = scene(*size)
    rgb.flags.writeable = alpha.flags.writeable = False
    assert shown(preview(rgb, alpha, ["a"])).shape[0] < 900
