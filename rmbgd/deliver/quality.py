"""Search for the quality at which an encoded file keeps a rule, or its largest size; nine encodings at most for each.

Both are taken to change with quality in one direction, as they nearly do; the file that is returned was looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

LEAST, MOST = 30, 100
"""Qualities. Below the least, blocks of a JPEG are plain to see: no size is worth more."""

Encode = Callable[[int], bytes]
"""The file of a quality; the same bytes each time."""


class Found(NamedTuple):
    """A file, its quality, and which of the two it meets that were searched for."""

    data: bytes
    quality: int
    held: bool = True
    fits: bool = True


def search(
    encode: Encode, first: int, *, holds: Callable[[bytes], bool] | None = None, bytes_maximum: int = 0
) -> Found:
    """The file of a quality as near to `first` as what is asked for allows.

    holds          a rule that a higher quality helps to keep; None: any file will do
    bytes_maximum  0: none
    Where only one of the two can be met, it is the rule; where the rule cannot, the size.
    """
    found = search_up(encode, holds, first) if holds is not None else Found(encode(first), first)
    if not bytes_maximum or len(found.data) <= bytes_maximum:
        return found
    smaller = search_down(encode, bytes_maximum, found.quality if found.held else first)
    held = holds is None or (found.held and holds(smaller.data))
    return smaller._replace(held=held) if held or not found.held else found._replace(fits=False)


def search_up(encode: Encode, holds: Callable[[bytes], bool], first: int) -> Found:
    """The file of the lowest quality from `first` to MOST that holds; of MOST if none does."""

    def attempt(quality: int) -> Found:
        return Found(data := encode(quality), quality, held=holds(data))

    return _nearest(attempt, first, max(first, MOST))


def search_down(encode: Encode, bytes_maximum: int, first: int) -> Found:
    """The file of the highest quality from `first` down to LEAST that is small enough; of LEAST if none is."""

    def attempt(quality: int) -> Found:
        return Found(data := encode(quality), quality, fits=len(data) <= bytes_maximum)

    return _nearest(attempt, first, min(first, LEAST))


def _nearest(attempt: Callable[[int], Found], first: int, end: int) -> Found:
    """The attempt nearest to `first` that meets what it is for, by bisection; else that at `end`."""
    tried = attempt(first)
    if (tried.held and tried.fits) or first == end:
        return tried
    best, missed = attempt(end), first
    while best.held and best.fits and abs(best.quality - missed) > 1:
        tried = attempt((missed + best.quality) // 2)
        if tried.held and tried.fits:
            best = tried
        else:
            missed = tried.quality
    return best
