"""Find parts of an image file that were never written: runs of zeros that no encoder makes, and holes.

A copy that was preallocated, or filled from several places at once, has its head and its tail before its middle, and
decoders read zeros without complaint. A hole alone proves nothing: `cp --sparse` makes holes of black areas. What tells
them apart is where the zeros begin and end: writers leave out whole pages, pixels do not keep to pages.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.formats import Coded, Header, cut_short
from rmbgd.imaging.webp import is_longer_than_its_image
from rmbgd.imaging.zero_runs import PAGE, SECTOR, Span, page_runs, run_around, zero_runs

MARGIN, COLOURED = 64, 0.75  # bytes of a row that are looked at, at least; the share of them that is no zero
FIRST_RUNS = 64  # that are looked at one by one
LONG_RUN = 64 << 10  # bytes; so few runs of an image are longer that one of them beginning at a page is no accident
TAIL = 8  # zero bytes at the end; coded data of whole files ended in 5 at most, but for even areas of WebP
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
    if _lacks_its_end(data, header, traces):
        if not accept:
            raise cut_short("its last bytes are zeros, like a part that was never written")
        header.note(NOTE)
    content = np.frombuffer(data, np.uint8)
    for part in header.coded:
        zeros = _coded(data, header, part, traces) if part.zeros is not None else _stored(content, part, traces)
        for (start, end), unwritten in zeros:
            if unwritten and not accept:
                raise cut_short(f"bytes {start} to {end} are zeros, like a part that was never written")
            if unwritten or part.zeros is None:
                header.note(NOTE)


def _lacks_its_end(data: bytes, header: Header, traces: WriteTraces) -> bool:
    """Of a file without an end marker: does it end in fewer zeros than are a run, and yet in more than it may?

    A look at every WebP would be a decoding of each that is even below, so only those are looked at that were filled.
    """
    if header.format == "TIFF":  # its directory, or tables of its coder, are behind the pixels
        coded = all(part.zeros is not None for part in header.coded)
        return traces.refilled and coded and data.endswith(bytes(2 * TAIL))
    if header.format not in ("AVIF", "HEIF") and not (header.format == "WEBP" and traces.refilled):
        return False
    for part in header.coded:
        last = data[max(part.start, part.end - SECTOR) : part.end]
        zeros = len(last) - len(last.rstrip(b"\0"))
        lossy = data[part.start - 8 : part.start - 4] == b"VP8 "
        if zeros >= TAIL and not (lossy and not is_longer_than_its_image(data, part, zeros // 2)):
            return True
    return False


def _coded(data: bytes, header: Header, part: Coded, traces: WriteTraces) -> Iterator[tuple[Span, bool]]:
    """Runs of zeros, and whether the encoder cannot have written them or they keep to pages."""
    is_longer = functools.cache(lambda: header.format == "WEBP" and is_longer_than_its_image(data, part))
    for run in zero_runs(np.frombuffer(data, np.uint8)[part.start : part.end], SECTOR, part.start):
        yield run, run[1] - run[0] > (part.zeros or 0) or is_longer() or _keeps_to_pages(run, traces)


def _stored(content: NDArray[np.uint8], part: Coded, traces: WriteTraces) -> Iterator[tuple[Span, bool]]:
    """Runs that may be black, and whether they were never written: those at holes, at pages, and the first ones."""
    first = itertools.islice(zero_runs(content[part.start : part.end], PAGE, part.start), FIRST_RUNS)
    for run in itertools.chain(_holes(content, part, traces), page_runs(content, part.start, part.end), first):
        yield run, _keeps_to_pages(run, traces) or _is_abrupt(content, part, run)


def _holes(content: NDArray[np.uint8], part: Coded, traces: WriteTraces) -> Iterator[Span]:
    """The zeros around each hole, each run once."""
    behind = part.start
    for start, end in traces.holes:
        if start < part.end and end > behind:
            run = run_around(content, start)
            behind = run[1]
            yield run


def _keeps_to_pages(run: Span, traces: WriteTraces) -> bool:
    """As writers do, who leave out whole pages, and pixels do not."""
    start, end = run
    left, right = start % PAGE == 0, end % PAGE == 0
    if end - start < PAGE:
        return False
    if any(start < behind and first < end for first, behind in traces.holes):
        return traces.reserved or left or right
    return (left and right) or ((left or right) and (traces.refilled or end - start >= LONG_RUN))


def _is_abrupt(content: NDArray[np.uint8], part: Coded, run: Span) -> bool:
    """Do rows of black begin or end in the middle of a row, beside one that is not black there?"""
    start, end = run
    if not part.row or end - start < 2 * part.row:
        return False
    to_come, passed = part.row - (start - part.start) % part.row, (end - part.start) % part.row
    above = content[max(part.start, start - part.row) : start - part.row + to_come]
    below = content[end + part.row - passed : min(part.end, end + part.row)]
    return any(MARGIN <= len(row) < part.row and np.count_nonzero(row) >= COLOURED * len(row) for row in (above, below))
