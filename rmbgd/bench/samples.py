"""Images to measure with, the operator's own or drawn ones; and percentiles and bottlenecks of what was measured.

Drawn images cost about what photographs cost, and are the same on every machine.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ConfigError, ImageError
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.service.destination import below

FOLDER_MAXIMUM = 32  # images taken from a folder: enough variety, and a few hundred MB decoded
APPENDABLE = {"JPEG", "PNG"}  # decoders ignore what follows the end of these
P95_NEEDS, P99_NEEDS = 20, 100  # measurements: below, the rank is the slowest one, which is chance
HAND_OVER = "hand-over"  # what a round trip takes beyond the engine's own stages


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as a file and as pixels. rgb: uint8 [H, W, 3]; its own alpha, where it has any, is not measured."""

    name: str
    data: bytes
    form: str
    rgb: NDArray[np.uint8]


def drawn(count: int, side: int) -> list[Sample]:
    """Waves, discs and noise, seeded by number: JPEG, quality 90, about 2 bits a pixel."""
    return [_decoded(f"{number}.jpg", _jpeg(number, side), LimitSettings()) for number in range(count)]


def from_folder(folder: Path, limits: LimitSettings) -> list[Sample]:
    """The first images below `folder` that the service would take. Raises ConfigError when there is none."""
    found: list[Sample] = []
    why = "it holds no files"
    if not folder.exists():
        raise ConfigError(f"{folder}: no such file or directory")
    root, names = (folder.parent, iter([folder.name])) if folder.is_file() else (folder, below(str(folder), []))
    for name in names:
        try:
            with (root / name).open("rb", buffering=0) as stream:
                image = _decoded(name, read_limited(stream.fileno(), limits), limits)
        except (ImageError, OSError) as error:
            why = f"{name}: {error.strerror if isinstance(error, OSError) else error}"
            continue
        if image.form in APPENDABLE:
            found.append(image)
        else:
            why = f"{name}: measuring needs JPEG or PNG files, this is {image.form}"
        if len(found) == FOLDER_MAXIMUM:
            break
    if not found:
        raise ConfigError(f"{folder}: no image to measure with; {why}")
    return found


def versions(images: Sequence[Sample]) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) for ever; no two alike, so that each is computed and not copied from an equal one."""
    for number, image in enumerate(cycle(images)):
        yield f"{number:06}{'.jpg' if image.form == 'JPEG' else '.png'}", image.data + number.to_bytes(8, "little")


def _decoded(name: str, data: bytes, limits: LimitSettings) -> Sample:
    header = probe(data, limits, animated="first_frame", metadata=())
    width, height = header.size
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if header.has_alpha else None
    decode_into(data, header, rgb, alpha)
    return Sample(name, data, header.format, rgb)


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


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of one kind, in ms. None where too few were measured."""

    count: int
    mean: float
    p50: float
    p95: float | None
    p99: float | None
    jitter: float | None  # p99 - p50
    longest: float


def spread(milliseconds: Sequence[float]) -> Spread:
    ordered = sorted(milliseconds)
    count, p50 = len(ordered), ranked(ordered, 0.50)
    p95 = ranked(ordered, 0.95) if count >= P95_NEEDS else None
    p99 = ranked(ordered, 0.99) if count >= P99_NEEDS else None
    return Spread(count, sum(ordered) / count, p50, p95, p99, None if p99 is None else p99 - p50, ordered[-1])


def ranked(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values: the smallest that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each key of any row, over all rows; where it is missing it counts as 0."""
    return {key: sum(row.get(key, 0.0) for row in rows) / len(rows) for key in dict.fromkeys(chain.from_iterable(rows))}


def stages_of(round_trip: float, stages: Mapping[str, float]) -> dict[str, float]:
    """What a batch took by stage, in ms; the round trip's rest are messages, and waking two processes."""
    return {**stages, HAND_OVER: max(0.0, round_trip - sum(stages.values()))}


def waited(received: Mapping[str, float], sent: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each stage waited for another, of what all receivers and senders waited at the queues, by name.

    Decoders and engine share the way out (`arrivals`): a full one is counted to the engine, whose results go there.
    """
    return {
        "decode": received["jobs"] + sent["frames"],
        "engine": received["frames"] + sent["arrivals"],
        "finish": received["arrivals"],
    }


def busy(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float, threads: Mapping[str, int]
) -> dict[str, float]:
    """Share of its threads' time, 0..1, that each stage did not wait for another, between two times `waited`.

    A stage that never waits is the one that the others wait for; `threads` are those of the stages with several.
    """
    shares = {name: 1.0 - (after[name] - before[name]) / threads.get(name, 1) / seconds for name in after}
    return {stage: min(1.0, max(0.0, share)) for stage, share in shares.items()}


def bottleneck(shares: Mapping[str, float], milliseconds: Mapping[str, float]) -> str:
    """The stage that waits least; of `finish`, the longer half in `milliseconds`: encode, or sync (disk)."""
    finish = "disk" if milliseconds.get("sync", 0.0) > milliseconds.get("encode", 0.0) else "encode"
    return {"decode": "decode", "engine": "device", "finish": finish}[max(shares, key=shares.__getitem__)]
