"""Find long runs of zero bytes in memory, by skimming: a few bytes of each page are looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
SECTOR = 512  # bytes; what a copy tool that reserves space first leaves as zeros is at least this long

_LOOKED_AT = (0, 128, 256, 384, 511)  # words of eight bytes of a page, its first and its last among them

Span = tuple[int, int]  # first byte, and the byte behind the last


def zero_runs(data: NDArray[np.uint8], minimum: int, at: int = 0) -> Iterator[Span]:
    """Every run of at least `minimum` (512 or more) zero bytes, as a span; `at` is added to its ends.

    Looks at eight bytes of each `minimum` / 4: a long run has three such words in a row.
    """
    step = minimum // 4
    words = data[: len(data) // 8 * 8].view(np.uint64)[:: step // 8]
    empty = words == 0
    candidates = np.flatnonzero(empty[:-2] & empty[1:-1] & empty[2:]) * step
    behind = 0
    for candidate in candidates.tolist():
        if candidate < behind:
            continue
        start, behind = run_around(data, candidate)
        if behind - start >= minimum:
            yield at + start, at + behind


def page_runs(data: NDArray[np.uint8], start: int, end: int) -> Iterator[Span]:
    """Runs of a page or more that touch data[start:end] and begin or end where a page does; one may come twice."""
    first, last = -(-start // PAGE), end // PAGE
    if first >= last:
        return
    words = data[first * PAGE : last * PAGE].view(np.uint64).reshape(-1, PAGE // 8)[:, _LOOKED_AT]
    pages = np.flatnonzero(~words.any(axis=1)) + first
    begins = pages[data[np.maximum(pages * PAGE - 1, 0)] != 0] * PAGE
    pages = pages[(pages + 1) * PAGE < len(data)]
    ends = pages[data[(pages + 1) * PAGE] != 0] * PAGE
    for at in (*begins.tolist(), *ends.tolist()):
        run = run_around(data, at)
        if run[1] - run[0] >= PAGE:
            yield run


def run_around(data: NDArray[np.uint8], at: int) -> Span:
    """The zeros before `at` and from `at` on."""
    return _first_of(data, at), _behind(data, at)


def _behind(data: NDArray[np.uint8], at: int) -> int:
    length = PAGE
    while at < len(data):
        there = data[at : at + length]
        if (index := int(np.argmax(there != 0))) or there[0]:
            return at + index
        at, length = at + len(there), min(2 * length, 1 << 20)
    return at


def _first_of(data: NDArray[np.uint8], at: int) -> int:
    length = PAGE
    while at > 0:
        there = data[max(0, at - length) : at][::-1]
        if (index := int(np.argmax(there != 0))) or there[0]:
            return at - index
        at, length = at - len(there), min(2 * length, 1 << 20)
    return at
