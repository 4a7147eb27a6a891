"""Seeds: where each subject of an image lies, known from elsewhere, so that subjects which touch can be parted.

From an instance network, or from a JSON file with exactly one of the two, in pixels of the upright image:

    {"boxes": [[left, top, right, bottom], ...]}
    {"masks": [{"size": [height, width], "counts": [length of a run, ...]}, ...]}

Masks are COCO's uncompressed RLE (run_lengths.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from rmbgd.deliver import run_lengths

SEEDS_MAXIMUM = 256  # of one image: as many as it may have subjects
FILE_BYTES_MAXIMUM = 16 << 20  # of a JSON file; 256 masks of 6,000 columns with four runs each take less

Sides = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # left, top, right, bottom; pixels, half open
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True, slots=True)
class SubjectSeeds:
    """Boxes or masks, one for each subject, of an image of height x width pixels."""

    height: int
    width: int
    boxes: tuple[Sides, ...] = ()
    masks: tuple[tuple[int, ...], ...] = ()  # runs that add up to height * width


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Mask(_Strict):
    size: tuple[PositiveInt, PositiveInt]
    counts: tuple[NonNegativeInt, ...]


class _SeedFile(_Strict):
    boxes: Annotated[tuple[Sides, ...], Field(max_length=SEEDS_MAXIMUM)] = ()
    masks: Annotated[tuple[_Mask, ...], Field(max_length=SEEDS_MAXIMUM)] = ()


def parse_seeds(data: bytes, height: int, width: int) -> SubjectSeeds:
    """The seeds of a JSON file, for an upright image of that size.

    Raises ValueError with one sentence for people. No reason to reject an image: it is then parted without seeds.
    """
    if len(data) > FILE_BYTES_MAXIMUM:
        raise ValueError(f"it has {len(data)} bytes; make it smaller than {FILE_BYTES_MAXIMUM}")
    try:
        found = _SeedFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    if bool(found.boxes) == bool(found.masks):
        raise ValueError("it must hold exactly one of 'boxes' and 'masks', with at least one seed")
    for number, (left, top, right, bottom) in enumerate(found.boxes):
        if not (max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)):
            raise ValueError(
                f"boxes.{number}: [left, top, right, bottom] must be a box inside the upright image of {width}x{height}"
            )
    for number, mask in enumerate(found.masks):
        if mask.size != (height, width) or sum(mask.counts) != height * width:
            raise ValueError(
                f"masks.{number}: size must be the upright image's, [{height}, {width}], and counts must add up to it"
            )
    return SubjectSeeds(height, width, found.boxes, tuple(mask.counts for mask in found.masks))


def paint(seeds: SubjectSeeds, core: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Which seed each pixel of `core`, bool [h, w], lies in, counted from 1: uint16 [h, w]; 0 where it is open.

    It is open where several seeds overlap: the nearest pixel that only one of them has decides. A seed that lies
    wholly in others keeps its own.
    """
    labels, covered = np.zeros(core.shape, np.uint16), np.zeros(core.shape, np.uint16)
    for number, (window, area) in enumerate(_areas(seeds, core), 1):
        covered[window] += area
        labels[window][area] = number
    labels[covered > 1] = 0
    for number, (window, area) in enumerate(_areas(seeds, core), 1):
        if not (labels[window][area] == number).any():
            labels[window][area] = number
    return labels


def _areas(seeds: SubjectSeeds, core: NDArray[np.bool_]) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
    """Of each seed: a window of `core`, and which of its core pixels belong to the seed."""
    height, width = core.shape
    rows, columns = (
        (np.arange(to) * 2 + 1) * of // (2 * to) for to, of in ((height, seeds.height), (width, seeds.width))
    )
    for box in seeds.boxes:
        left, top, right, bottom = box
        window = _slice(top, bottom, rows), _slice(left, right, columns)
        yield window, core[window]
    for runs in seeds.masks:
        yield np.s_[:, :], run_lengths.sample(runs, seeds.height, rows, columns) & core


def _slice(first: float, end: float, centres: NDArray[np.integer]) -> slice:
    """The places whose pixel lies between both sides; at least one."""
    start = min(int(np.searchsorted(centres + 0.5, first)), len(centres) - 1)
    return slice(start, max(start + 1, int(np.searchsorted(centres + 0.5, end))))
