"""POLICY: which bytes of a staging buffer the next picture gets, and whose it overwrites. First in, first out.

Only bookkeeping: knows offsets, not memory. A mark is whatever tells the owner that a piece is no longer read or
written (an event on a stream); whoever takes a piece waits for the marks of those that lay there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MarkT = TypeVar("MarkT")

ALIGNMENT = 256  # bytes; what device allocators give, and what wide loads like


@dataclass(eq=False)
class Piece(Generic[MarkT]):
    """Bytes start..end-1 of the buffer. All fields but the place belong to the ring's owner.

    held   not to be overwritten yet
    mark   of the last use; None when there was none
    after  marks to wait for before the first use
    gone   another piece has taken its place
    """

    start: int
    end: int
    held: bool = True
    mark: MarkT | None = None
    after: list[MarkT] = field(default_factory=list)
    gone: bool = False


class Ring(Generic[MarkT]):
    def __init__(self, byte_count: int) -> None:
        self.byte_count = byte_count
        self._live: deque[Piece[MarkT]] = deque()  # in the order in which they were taken
        self._head = 0

    def take(self, byte_count: int) -> Piece[MarkT] | None:
        """The next piece, held; None while a held one lies in its way. Raises ValueError for what can never fit."""
        wanted = max(ALIGNMENT, -(-byte_count // ALIGNMENT) * ALIGNMENT)
        if wanted > self.byte_count:
            raise ValueError(f"{byte_count} bytes can never fit into a ring of {self.byte_count}")
        wraps = self._head + wanted > self.byte_count
        start = 0 if wraps else self._head
        leaving = []
        for piece in self._live:
            skipped = wraps and piece.start >= self._head  # what is passed over leaves first: it is the oldest
            if not skipped and not (piece.start < start + wanted and start < piece.end):
                break
            if piece.held:
                return None
            leaving.append(piece)
        taken: Piece[MarkT] = Piece(start, start + wanted)
        for piece in leaving:
            self._live.popleft()
            piece.gone = True
            if piece.mark is not None:
                taken.after.append(piece.mark)
        self._live.append(taken)
        self._head = taken.end
        return taken

    def clear(self) -> None:
        """Forget everything: nobody reads or writes the buffer now."""
        for piece in self._live:
            piece.gone, piece.held = True, False
        self._live.clear()
        self._head = 0
