"""Thumbnails of outputs and originals as data URIs: by the decoders of the pipeline, within their limits.

Files are hostile. One that cannot be shown is an ImageError or an OSError, and costs nobody else anything.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from rmbgd import naming as names
from rmbgd.config.load import Folder, LimitSettings
from rmbgd.fs import folder_beneath, open_regular
from rmbgd.imaging.decode import convert_band, float_scale_of, place, probe, read_limited
from rmbgd.imaging.formats import Header, sniff
from rmbgd.imaging.metadata import colour_plan
from rmbgd.imaging.pillow import opened
from rmbgd.store.reading import Ending

SIDE = 288  # px of the longer side: two beside each other fill a phone at twice its density
QUALITY = 68  # of WebP: about 9 kB, so that a page of two hundred images stays below 6 MB
PIXELS = 64 << 20  # decoded at most, 8 bytes each for a moment; of a larger JPEG an eighth of each side is
VERSIONS = 4  # names that an original may have in `done` or `failed`: a.jpg, a~2.jpg ...
_SMOOTH = ("RGB", "RGBA", "L", "LA", "CMYK")  # modes that can be shrunk before their colours are converted


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """`uri` holds a WebP of `width` x `height` px."""

    uri: str
    width: int
    height: int


def of_output(image: Ending, folder: Folder, limits: LimitSettings) -> Thumbnail | None:
    """None where the output is not there any more, or another one has its name now."""
    if image.output is None:
        return None
    root = folder.review if image.kind == "review" and folder.review is not None else folder.output
    return _of_file(root, image.output, image.size_out, limits)


def of_original(image: Ending, folder: Folder, limits: LimitSettings) -> Thumbnail | None:
    """From where it went: done, failed, or still the input. None where it is not there any more."""
    for root, path in _places(image, folder):
        if (found := _of_file(root, path, image.size, limits)) is not None:
            return found
    return None


def _places(image: Ending, folder: Folder) -> Iterator[tuple[Path, str]]:
    mirrored = folder.failed if image.state == "failed" else folder.done
    if mirrored is not None:
        for number in range(1, VERSIONS + 1):
            yield mirrored, names.version_of(image.path, number)
    yield folder.input, image.path


def _of_file(root: Path, path: str, size: int | None, limits: LimitSettings) -> Thumbnail | None:
    """None where no file of that many bytes is there. No link is followed below `root`."""
    try:
        with folder_beneath(str(root), os.path.dirname(path)) as folder:
            descriptor = open_regular(os.path.basename(path), folder=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if os.fstat(descriptor).st_size != size:
            return None
        return thumbnail(read_limited(descriptor, limits), limits)
    finally:
        os.close(descriptor)


def thumbnail(data: bytes, limits: LimitSettings) -> Thumbnail:
    """Of the whole content of a file. Raises ImageError."""
    if not (is_jpeg := sniff(data) == "JPEG"):
        limits = limits.model_copy(update={"pixels": min(limits.pixels, PIXELS)})
    header = probe(data, limits, animated="first_frame", metadata=())
    with opened(data, "JPEG" if is_jpeg else header.format, header.stream) as image:
        image.draft(None, (2 * SIDE, 2 * SIDE))
        image.load()
        shown: Image.Image = image
        if image.mode in _SMOOTH and header.colour_key is None:
            shown = image.copy() if max(image.size) <= SIDE else image
            shown.thumbnail((SIDE, SIDE), reducing_gap=2.0)
        shown = _upright(shown, header, float_scale_of(image))
        return encoded(shown)


def encoded(image: Image.Image) -> Thumbnail:
    """Of any image that is small enough to be copied; it is shrunk in place."""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=2)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", *image.size)


def _upright(image: Image.Image, header: Header, float_scale: float) -> Image.Image:
    plan = colour_plan(image.mode, header.icc_profile)
    rgb, alpha = convert_band(image, plan, header, float_scale)
    pixels = rgb if alpha is None or not header.has_alpha else np.asarray(cv2.merge([rgb, alpha]), np.uint8)
    height, width, channels = pixels.shape
    turned = np.empty((width, height, channels) if header.turn >= 5 else pixels.shape, np.uint8)
    place(turned, 0, pixels, header.turn)
    return Image.fromarray(turned)
