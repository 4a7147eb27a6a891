"""Clipping paths, read back by a parser of the test's own and drawn: they cover the matte."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from rmbgd.config.load import Recipe
from rmbgd.imaging.clipping_path import KNOTS_MAXIMUM, path_resources
from rmbgd.imaging.encode import encode
from rmbgd.imaging.formats import SourceFacts

FACTS = SourceFacts("JPEG", "RGB", (30, 20), 1, None, None, {}, "0" * 64)


def ring(height: int = 400, width: int = 600) -> np.ndarray:
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 3, height // 3), 15, 0, 360, 255, -1)
    cv2.circle(alpha, (width // 2, height // 2), height // 10, 0, -1)
    alpha[10:40, 10:60] = 255
    return cv2.GaussianBlur(alpha, (0, 0), 2)


def subpaths(record: bytes) -> list[np.ndarray]:
    """Anchors of each closed subpath, (x, y) as shares of the image."""
    rows = [record[at : at + 26] for at in range(0, len(record), 26)]
    assert len(record) % 26 == 0
    assert struct.unpack(">H", rows[0][:2]) == (6,)  # the fill rule comes first
    paths: list[np.ndarray] = []
    at = 1
    while at < len(rows):
        selector, count = struct.unpack(">HH", rows[at][:4])
        if selector == 0:
            knots = [struct.unpack(">H6i", row) for row in rows[at + 1 : at + 1 + count]]
            assert all(knot[0] in (1, 2) and knot[1:3] == knot[3:5] == knot[5:7] for knot in knots)
            paths.append(np.array([(x, y) for _, _, _, y, x, _, _ in knots]) / 2**24)
            at += count
        at += 1
    return paths


def drawn(paths: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Filled by the even-odd rule, four samples a side of a pixel."""
    canvas = np.zeros((shape[0] * 4, shape[1] * 4), np.uint8)
    scaled = [np.rint((path * (shape[1], shape[0]) * 4 - 0.5) * 256).astype(np.int32) for path in paths]
    cv2.fillPoly(canvas, scaled, 1, shift=8)
    return cv2.resize(canvas.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5


def resources_of(form: str, alpha: np.ndarray) -> dict[int, bytes]:
    """As Pillow finds them in an encoded file."""
    buffer = io.BytesIO()
    look = Recipe(format=form, content="colour", clipping_path=True)
    encode(np.dstack([alpha] * 3), look, FACTS, buffer.write, resources=path_resources(alpha))
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        opened.load()
        if form == "jpeg":
            return dict(opened.info["photoshop"])
        return {number: block["data"] for number, block in opened.get_photoshop_blocks().items()}


@pytest.mark.parametrize("form", ["tiff", "jpeg"])
def test_the_path_in_the_file_covers_the_matte_and_leaves_its_holes(form: str) -> None:
    alpha = ring()
    found = resources_of(form, alpha)
    paths = subpaths(found[2000])
    solid, shape = alpha >= 128, drawn(paths, alpha.shape)
    assert len(paths) == 3
    assert (solid & shape).sum() / (solid | shape).sum() > 0.99
    assert found[2999] == b"\x06Path 1"


def test_a_subject_that_touches_the_borders_is_outlined_along_them() -> None:
    (path,) = subpaths(resources_of("tiff", np.full((30, 50), 255, np.uint8))[2000])
    assert sorted(map(tuple, path)) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]


def test_without_a_subject_there_is_no_path() -> None:
    assert path_resources(np.full((30, 50), 127, np.uint8)) == b""
    assert path_resources(np.zeros((1, 1), np.uint8)) == b""


def test_a_ragged_matte_still_fits_into_a_segment_of_jpeg() -> None:
    noise = np.random.default_rng(0).normal(size=(700, 900)).astype(np.float32)
    alpha = np.where(cv2.GaussianBlur(noise, (0, 0), 3) > 0, 255, 0).astype(np.uint8)
    record = resources_of("jpeg", alpha)[2000]
    assert 26 * 100 < len(record) <= 26 * (KNOTS_MAXIMUM + 2)
    assert subpaths(record)
