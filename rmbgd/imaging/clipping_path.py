"""Write a clipping path: the subject's outline as Photoshop image resources, for TIFF and JPEG.

Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks" and "Path resource format". Programs for
page layout cut an image by such a path.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.compose import Bytes

TIFF_TAG = 34377  # ImageResources, of Photoshop's TIFF Technical Notes
PATH, CLIPPING_PATH_NAME = 2000, 2999  # resource numbers: the first saved path; which path clips
KNOTS_MAXIMUM = 2400  # of 26 bytes, with those that begin a subpath: they fit into one segment of a JPEG (64 KiB)
SUBPATHS_MAXIMUM = 400  # the largest outlines; a matte of specks has thousands

_NAME = b"Path 1"
_SOLID = 128  # of 255
_FINE = 2  # points of the outline for a pixel's side: a soft edge's half lies between pixels
_TOLERANCE = 0.5  # pixels by which a straight line may leave the outline
_AREA_LEAST = 4.0  # pixels; a smaller speck or hole has no outline
_JPEG_PREFIX = b"Photoshop 3.0\x00"
_SUBPATH, _CORNER, _FILL_RULE, _INITIAL_FILL = 0, 2, 6, 8  # record selectors: closed subpaths of unlinked knots
_RECORD = np.dtype([("selector", ">u2"), ("points", ">i4", 6)])


def path_resources(alpha: Bytes) -> bytes:
    """The outline of alpha >= 0.5, holes left out, as resource blocks; empty where there is none.

    alpha  uint8 [H, W], of the image that is encoded
    Knots are corners, at most _TOLERANCE from the outline; more where the path would become too long to store.
    """
    height, width = alpha.shape
    outlines = _outlines(alpha)
    if not outlines:
        return b""
    count = 2 + sum(1 + len(outline) for outline in outlines)
    records, at = np.zeros(count, _RECORD), 2
    records["selector"][:2] = _FILL_RULE, _INITIAL_FILL
    for outline in outlines:
        records[at]["selector"], records[at]["points"][0] = _SUBPATH, len(outline) << 16
        knots = records[at + 1 : at + 1 + len(outline)]
        knots["selector"] = _CORNER
        shares = outline[:, ::-1] / (height, width)  # down, then right; as shares of the image
        knots["points"] = np.tile(np.rint(shares * (1 << 24)), 3)  # controls before and after lie on the knot
        at += 1 + len(outline)
    name = bytes([len(_NAME)]) + _NAME
    return _block(PATH, _NAME, records.tobytes()) + _block(CLIPPING_PATH_NAME, b"", name)


def jpeg_segment(resources: bytes) -> bytes:
    """APP13, which holds image resources in a JPEG."""
    body = _JPEG_PREFIX + resources
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def _block(number: int, name: bytes, data: bytes) -> bytes:
    """Names and data are padded to an even length; the length of the data is that without padding."""
    pascal = bytes([len(name)]) + name
    return b"8BIM" + struct.pack(">H", number) + _even(pascal) + struct.pack(">I", len(data)) + _even(data)


def _even(text: bytes) -> bytes:
    return text + b"\x00" * (len(text) % 2)


def _outlines(alpha: Bytes) -> list[NDArray[np.float64]]:
    """Closed polygons around the subject and its holes, largest first, float64 [N, 2] (x, y) pixels from the corner."""
    size = alpha.shape[1] * _FINE, alpha.shape[0] * _FINE
    fine = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR)) >= _SOLID
    # Of a pixel its four corners, so that contours, which join pixels' centres, run along the edges of the pixels.
    corners = cv2.dilate(np.pad(fine.view(np.uint8), 1), np.ones((2, 2), np.uint8), anchor=(1, 1))
    found, _ = cv2.findContours(corners, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    sized = [(cv2.contourArea(contour), contour) for contour in found]
    large = sorted((each for each in sized if each[0] >= _AREA_LEAST * _FINE**2), key=lambda each: -each[0])
    contours = [np.asarray(contour, np.int32) for _, contour in large[:SUBPATHS_MAXIMUM]]
    tolerance = _TOLERANCE * _FINE
    simple = _simplified(contours, tolerance)
    while sum(1 + len(outline) for outline in simple) > KNOTS_MAXIMUM:
        tolerance *= 1.5
        simple = _simplified(contours, tolerance)
    return [(outline.reshape(-1, 2) - 1) / _FINE for outline in simple]


def _simplified(contours: Sequence[NDArray[np.int32]], tolerance: float) -> list[NDArray[np.int32]]:
    simple = (np.asarray(cv2.approxPolyDP(contour, tolerance, closed=True), np.int32) for contour in contours)
    return [outline for outline in simple if len(outline) > 2]
