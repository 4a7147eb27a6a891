"""Find parts of an image file that were never written: runs of zeros that no encoder makes, and holes.

A copy that was preallocated, or filled from several places at once, has its head and its tail before its middle, and
decoders read zeros without complaint. A hole alone proves nothing: `cp --sparse` makes holes of black areas. What tells
them apart is where the zeros begin and end: writers leave out whole pages, pixels do not keep to pages.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.formats import Coded, Header, cut_short
from rmbgd.imaging.webp import is_longer_than_its_image
from rmbgd.imaging.zero_runs import PAGE, SECTOR, Span, page_runs, run_around, zero_runs

LONG_RUN = 64 << 10  # bytes; so few runs of an image are longer that one of them beginning at a page is no accident
NOTE = "zero_run"


@dataclass(frozen=True, slots=True)
class WriteTraces:
    """What the file system and the intake saw of how a file was written.

    holes      byte ranges without data, as SEEK_HOLE shows them
    reserved   the holes have their space on the disk: it was asked for before the data came
    refilled   its content changed while its size did not
    """

    holes: Sequence[Span] = ()
    reserved: bool = False
    refilled: bool = False


NO_TRACES = WriteTraces()


def check_written(data: bytes, header: Header, traces: WriteTraces, *, accept: bool) -> None:
    """Raises ImageError(TRUNCATED, maybe_incomplete) when pixels were never written; notes other pages of zeros.

    accept  note all of them
    """
    content = np.frombuffer(data, np.uint8)
    for part in header.coded:
        unwritten = next(
            _of_stored(content, part, traces) if part.zeros is None else _of_coded(data, header, part, traces), None
        )
        if unwritten is not None and not accept:
            start, end = unwritten
            raise cut_short(f"bytes {start} to {end} are zeros, like a part that was never written")
        if unwritten is not None or (part.zeros is None and any(zero_runs(content[part.start : part.end], PAGE))):
            header.note(NOTE)


def _of_coded(data: bytes, header: Header, part: Coded, traces: WriteTraces) -> Iterator[Span]:
    """Zeros that the encoder cannot have written, or that keep to pages."""
    is_longer = functools.cache(lambda: header.format == "WEBP" and is_longer_than_its_image(data))
    for start, end in zero_runs(np.frombuffer(data, np.uint8)[part.start : part.end], SECTOR, part.start):
        if end - start > (part.zeros or 0) or is_longer() or _keeps_to_pages(part, (start, end), len(data), traces):
            yield start, end


def _of_stored(content: NDArray[np.uint8], part: Coded, traces: WriteTraces) -> Iterator[Span]:
    """Zeros that may be black, and that keep to pages, as pixels do not."""
    holes = [run_around(content, start) for start, end in traces.holes if start < part.end and end > part.start]
    for run in (*holes, *page_runs(content, part.start, part.end)):
        if _keeps_to_pages(part, run, len(content), traces):
            yield run


def _keeps_to_pages(part: Coded, run: Span, size: int, traces: WriteTraces) -> bool:
    start, end = run
    left, right = start % PAGE == 0, end % PAGE == 0
    if end - start < PAGE:
        return False
    if any(start < behind and first < end for first, behind in traces.holes):
        to_the_end = end in (part.end, size) and not part.begins_row(start)
        return traces.reserved or left or right or to_the_end
    if left:
        return right or end in (part.end, size) or traces.refilled or end - start >= LONG_RUN
    return right and (traces.refilled or end - start >= LONG_RUN)
