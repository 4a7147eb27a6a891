"""Compares a root's inputs with what stands of their results: the truth, whatever the queue remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from rmbgd.fleet.root import Entry, Root

LOOKS_AT_ONCE = 16  # a share answers in milliseconds, and the next look need not wait for that
LOOKED_AT = 1024
UNKNOWN = "unknown"  # of an image whose record cannot be read, while its root can


def answered(root: Root, entries: Iterable[Entry]) -> Iterator[tuple[Entry, str]]:
    """Each with "done", "failed", "" where this version has no answer, or UNKNOWN. Raises OSError."""

    def look(entry: Entry) -> tuple[Entry, str]:
        try:
            found = root.answer(entry.key, entry.fingerprint)
        except OSError:
            if root.trouble():
                raise
            return entry, UNKNOWN
        return entry, "" if found is None else found.kind

    left = iter(entries)
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        while some := list(islice(left, LOOKED_AT)):  # map takes all that it is given at once
            yield from pool.map(look, some)
