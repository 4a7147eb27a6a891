"""Pictures to measure with: the operator's own, or drawn ones that cost about what photographs cost.

Decides nothing about how they are used. Drawn pictures are the same on every machine.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config import Limits
from rmbgd.errors import ConfigError, ImageError
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.oneshot import sources_of

FOLDER_MAXIMUM = 32  # pictures taken from a folder: enough variety, and a few hundred MB decoded
APPENDABLE = {"JPEG", "PNG"}  # decoders ignore what follows the end of these


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as a file and as pixels. rgb: uint8 [H, W, 3]; its own alpha, where it has any, is not measured."""

    name: str
    data: bytes
    form: str
    rgb: NDArray[np.uint8]

    def version(self, number: int) -> bytes:
        """The same picture as a file that equals no other, so that it is computed and not copied from an equal one."""
        return self.data + number.to_bytes(8, "little")


def drawn(count: int, side: int) -> list[Picture]:
    """Waves, discs and noise, seeded by number: JPEG, quality 90, about 2 bits a pixel."""
    return [_decoded(f"{number}.jpg", _jpeg(number, side), Limits()) for number in range(count)]


def from_folder(folder: Path, limits: Limits) -> list[Picture]:
    """The first pictures below `folder` that the service would take. Raises ConfigError when there is none."""
    found: list[Picture] = []
    why = "it holds no files"
    root, names = sources_of(folder)
    for name in names:
        try:
            picture = _decoded(name, _read(root / name, limits), limits)
        except ImageError as error:
            why = f"{name}: {error}"
            continue
        except OSError as error:
            why = f"{name}: {error.strerror}"
            continue
        if picture.form in APPENDABLE:
            found.append(picture)
        else:
            why = f"{name}: measuring needs JPEG or PNG files, this is {picture.form}"
        if len(found) == FOLDER_MAXIMUM:
            break
    if not found:
        raise ConfigError(f"{folder}: no picture to measure with; {why}")
    return found


def versions(pictures: list[Picture]) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) for ever; no two alike."""
    number = 0
    while True:
        picture = pictures[number % len(pictures)]
        yield f"{number:06}{'.jpg' if picture.form == 'JPEG' else '.png'}", picture.version(number)
        number += 1


def _read(path: Path, limits: Limits) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_limited(descriptor, limits)
    finally:
        os.close(descriptor)


def _decoded(name: str, data: bytes, limits: Limits) -> Picture:
    header = probe(data, limits, animated="first_frame", metadata=())
    width, height = header.size
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if header.has_alpha else None
    decode_into(data, header, rgb, alpha)
    return Picture(name, data, header.format, rgb)


def _jpeg(number: int, side: int) -> bytes:
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    pixels = np.empty((side, side, 3), np.float32)
    for channel in range(3):
        fx, fy, phase = random.uniform(1, 6, 3)
        pixels[..., channel] = 128 + 70 * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    cx, cy, radius = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65), random.uniform(0.15, 0.3)
    pixels[np.hypot(x - cx, y - cy) < radius] = random.uniform(30, 225, 3)
    for cells, strength in ((side // 4 + 1, 14.0), (side, 3.0)):
        grain = random.standard_normal((cells, cells), np.float32)
        pixels += strength * cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
